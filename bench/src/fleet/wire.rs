//! The client's side of the wire, as thin as a generator needs it: masked frames out, unmasked frames
//! in, delimited frames both ways. Stateless: what is left of a frame is kept by the caller. Not a
//! WebSocket implementation for anybody else: it trusts the server that it measures, and says so
//! where it stops trusting.
//!
//! What a million clients get most (`connected`, `pong`) is told from the first byte and not decoded.

use prost::Message as _;
use trunkline_proto::client::{ClientFrame, ServerBody, ServerFrame};

use crate::args::Transport;

/// What came from the server does not read as it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WireError(pub String);

/// Appends one frame as this transport has it. `mask`: of the WebSocket frame.
pub fn put(frame: &ClientFrame, transport: Transport, mask: u32, out: &mut Vec<u8>) {
    match transport {
        Transport::Tcp => {
            out.reserve(frame.encoded_len() + 3);
            // A Vec grows, so this cannot fail.
            let _ = frame.encode_length_delimited(out);
        }
        Transport::WsProto => put_masked(2, &frame.encode_to_vec(), mask, out),
        Transport::WsJson => {
            let mut text = Vec::with_capacity(256);
            trunkline_proto::json::encode_client(frame, &mut text);
            put_masked(1, &text, mask, out);
        }
    }
}

/// Appends a final, masked WebSocket frame.
pub fn put_masked(opcode: u8, payload: &[u8], mask: u32, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | n as u8),
        n @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    let key = mask.to_be_bytes();
    out.extend_from_slice(&key);
    out.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
}

/// The server's answer to the upgrade request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgraded {
    /// 101; the head is that long.
    Yes(usize),
    /// Another status, and `Retry-After` in seconds if it has one.
    No(u16, Option<u32>),
}

/// Reads the answer's head; `None`: it is not whole yet.
pub fn upgraded(data: &[u8]) -> Result<Option<Upgraded>, WireError> {
    let Some(end) = data.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    if data.starts_with(b"HTTP/1.1 101 ") {
        return Ok(Some(Upgraded::Yes(end + 4)));
    }
    let head = String::from_utf8_lossy(&data[..end]);
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| WireError(format!("no HTTP answer: {first:?}")))?;
    let retry = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let ours = name.eq_ignore_ascii_case("retry-after");
        ours.then(|| value.trim().parse().ok())?
    });
    Ok(Some(Upgraded::No(status, retry)))
}

/// What a server may say to a generator.
#[derive(Debug, PartialEq)]
pub enum FromServer<'a> {
    Connected,
    Pong,
    Frame(Box<ServerFrame>),
    /// A WebSocket ping, to be answered.
    Ping(&'a [u8]),
    /// The server closes, with this code; 1005: without one.
    Close(u16),
}

/// The first frame in `data`, with its length; `None`: it is not whole yet.
pub fn split(
    transport: Transport,
    data: &[u8],
) -> Result<Option<(usize, FromServer<'_>)>, WireError> {
    match transport {
        Transport::Tcp => split_delimited(data),
        Transport::WsProto | Transport::WsJson => split_websocket(data),
    }
}

fn split_delimited(data: &[u8]) -> Result<Option<(usize, FromServer<'_>)>, WireError> {
    let mut rest = data;
    let Ok(length) = prost::encoding::decode_varint(&mut rest) else {
        return Ok(None);
    };
    let length = usize::try_from(length).map_err(|e| WireError(e.to_string()))?;
    if rest.len() < length {
        return Ok(None);
    }
    let frame = decode(&rest[..length])?;
    Ok(Some((data.len() - rest.len() + length, frame)))
}

fn split_websocket(data: &[u8]) -> Result<Option<(usize, FromServer<'_>)>, WireError> {
    let (Some(&first), Some(&second)) = (data.first(), data.get(1)) else {
        return Ok(None);
    };
    if first & 0x80 == 0 || second & 0x80 != 0 {
        return Err(WireError(
            "a fragment or a masked frame from the server".into(),
        ));
    }
    let (head, length) = match second {
        126 => match data.get(2..4) {
            Some(b) => (4, usize::from(b[0]) << 8 | usize::from(b[1])),
            None => return Ok(None),
        },
        127 => match data.get(2..10) {
            Some(b) => (10, b.iter().fold(0, |n, &b| n << 8 | usize::from(b))),
            None => return Ok(None),
        },
        n => (2, usize::from(n)),
    };
    let Some(payload) = data.get(head..head + length) else {
        return Ok(None);
    };
    let frame = match first & 0x0f {
        1 => of_frame(
            trunkline_proto::json::decode_server(payload).map_err(|e| WireError(e.to_string()))?,
        ),
        2 => decode(payload)?,
        8 => FromServer::Close(match payload {
            [high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => 1005,
        }),
        9 => FromServer::Ping(payload),
        10 => FromServer::Pong,
        other => return Err(WireError(format!("opcode {other} from the server"))),
    };
    Ok(Some((head + length, frame)))
}

/// First bytes of `ServerFrame.connected` (field 2) and `.pong` (field 13), both messages.
const CONNECTED: u8 = 2 << 3 | 2;
const PONG: u8 = 13 << 3 | 2;

fn decode(payload: &[u8]) -> Result<FromServer<'_>, WireError> {
    match payload.first() {
        Some(&CONNECTED) => Ok(FromServer::Connected),
        Some(&PONG) => Ok(FromServer::Pong),
        _ => ServerFrame::decode(payload)
            .map(of_frame)
            .map_err(|e| WireError(e.to_string())),
    }
}

fn of_frame(frame: ServerFrame) -> FromServer<'static> {
    match frame.frame {
        Some(ServerBody::Connected(_)) => FromServer::Connected,
        Some(ServerBody::Pong(_)) => FromServer::Pong,
        _ => FromServer::Frame(Box::new(frame)),
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::client::{Connected, Pong, Synced};

    use super::*;

    fn frames() -> [ServerFrame; 4] {
        [
            ServerFrame::push(ServerBody::Connected(Connected {
                user_id: "alice".into(),
                ..Connected::default()
            })),
            ServerFrame::push(ServerBody::Synced(Synced { conversations: 7 })),
            ServerFrame::push(ServerBody::Pong(Pong {
                nonce: "x".repeat(300),
            })),
            ServerFrame::answer("id", ServerBody::Synced(Synced { conversations: 8 })),
        ]
    }

    fn websocket(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
        out.push(0x80 | opcode);
        if payload.len() < 126 {
            out.push(payload.len() as u8);
        } else {
            out.extend([126, (payload.len() >> 8) as u8, payload.len() as u8]);
        }
        out.extend(payload);
    }

    fn bytes(transport: Transport) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames() {
            match transport {
                Transport::Tcp => frame.encode_length_delimited(&mut out).unwrap(),
                Transport::WsProto => websocket(2, &frame.encode_to_vec(), &mut out),
                Transport::WsJson => {
                    let mut text = Vec::new();
                    trunkline_proto::json::encode_server(&frame, &mut text);
                    websocket(1, &text, &mut out);
                }
            }
        }
        out
    }

    #[test]
    fn frames_are_found_when_they_are_whole_and_not_before() {
        let [_, second, _, fourth] = frames();
        let expected = [
            FromServer::Connected,
            FromServer::Frame(Box::new(second)),
            FromServer::Pong,
            FromServer::Frame(Box::new(fourth)),
        ];
        for transport in [Transport::Tcp, Transport::WsProto, Transport::WsJson] {
            let bytes = bytes(transport);
            let mut used = 0;
            for expected in &expected {
                let mut end = used;
                let (length, frame) = loop {
                    if let Some(found) = split(transport, &bytes[used..end]).unwrap() {
                        break found;
                    }
                    end += 1;
                };
                assert_eq!((&frame, length), (expected, end - used), "{transport:?}");
                used = end;
            }
            assert_eq!(used, bytes.len());
        }
    }

    #[test]
    fn pings_and_closes_are_told_apart() {
        let mut out = Vec::new();
        websocket(9, b"hi", &mut out);
        websocket(8, &4410u16.to_be_bytes(), &mut out);
        websocket(8, &[], &mut out);
        let mut seen = Vec::new();
        let mut rest = &out[..];
        while let Some((length, frame)) = split(Transport::WsProto, rest).unwrap() {
            seen.push(frame);
            rest = &rest[length..];
        }
        let close = FromServer::Close;
        assert_eq!(seen, [FromServer::Ping(b"hi"), close(4410), close(1005)]);
        assert!(split(Transport::WsProto, &[0x02, 0x00]).is_err());
    }

    #[test]
    fn an_upgrade_is_taken_or_refused_with_its_status() {
        let yes = b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n\r\n\x82\x00";
        assert_eq!(upgraded(&yes[..30]), Ok(None));
        assert_eq!(upgraded(yes), Ok(Some(Upgraded::Yes(yes.len() - 2))));
        let no = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\n\r\n";
        assert_eq!(upgraded(no), Ok(Some(Upgraded::No(503, Some(7)))));
        let no = b"HTTP/1.1 401 Unauthorized\r\n\r\n";
        assert_eq!(upgraded(no), Ok(Some(Upgraded::No(401, None))));
        assert!(upgraded(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn masking_is_undone_by_the_same_key() {
        let mut out = Vec::new();
        put_masked(1, b"hello", 0x0102_0304, &mut out);
        assert_eq!(&out[..6], &[0x81, 0x85, 1, 2, 3, 4]);
        let plain: Vec<u8> = out[6..]
            .iter()
            .zip([1, 2, 3, 4].iter().cycle())
            .map(|(a, b)| a ^ b)
            .collect();
        assert_eq!(plain, b"hello");
    }
}
