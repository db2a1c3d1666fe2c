//! The client's side of the wire, as thin as a generator needs it: the upgrade request, masked
//! frames out, unmasked frames in, delimited frames both ways. Not a WebSocket implementation for
//! anybody else: it trusts the server that it measures, and says so where it stops trusting.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use trunkline_proto::client::{ClientFrame, ServerFrame};
use trunkline_proto::limits::{SUBPROTOCOL_JSON, SUBPROTOCOL_PROTO, WS_PATH};

use crate::args::Transport;

/// What came from the server does not read as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError(pub String);

/// The upgrade request of one client, which asks for `connected` at once.
pub fn upgrade(host: &str, token: &str, device: &str, transport: Transport, key: u128) -> Vec<u8> {
    let protocol = match transport {
        Transport::WsJson => SUBPROTOCOL_JSON,
        Transport::WsProto | Transport::Tcp => SUBPROTOCOL_PROTO,
    };
    let key = STANDARD.encode(key.to_be_bytes());
    format!(
        "GET {WS_PATH}?device_id={device} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

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

/// What a server may say to a generator.
#[derive(Debug, PartialEq)]
pub enum FromServer {
    Frame(Box<ServerFrame>),
    /// A WebSocket ping, to be answered.
    Ping(Vec<u8>),
    /// The server closes, with this code.
    Close(u16),
}

/// Splits what one connection receives into frames.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a frame whose end has not come.
    partial: Vec<u8>,
    upgraded: bool,
}

impl Reader {
    /// Hands each whole frame in `data`, after what was left before, to `on`.
    pub fn read(
        &mut self,
        transport: Transport,
        data: &[u8],
        on: &mut dyn FnMut(FromServer),
    ) -> Result<(), WireError> {
        if self.partial.is_empty() {
            let used = self.split(transport, data, on)?;
            self.partial.extend_from_slice(&data[used..]);
        } else {
            let mut all = std::mem::take(&mut self.partial);
            all.extend_from_slice(data);
            let used = self.split(transport, &all, on)?;
            all.drain(..used);
            self.partial = all;
        }
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(())
    }

    fn split(
        &mut self,
        transport: Transport,
        data: &[u8],
        on: &mut dyn FnMut(FromServer),
    ) -> Result<usize, WireError> {
        let mut used = 0;
        if !self.upgraded && transport != Transport::Tcp {
            let Some(end) = data.windows(4).position(|w| w == b"\r\n\r\n") else {
                return Ok(0);
            };
            if !data.starts_with(b"HTTP/1.1 101 ") {
                let line = data.split(|&b| b == b'\r').next().unwrap_or_default();
                return Err(WireError(String::from_utf8_lossy(line).into_owned()));
            }
            self.upgraded = true;
            used = end + 4;
        }
        loop {
            let rest = &data[used..];
            let one = match transport {
                Transport::Tcp => split_delimited(rest)?,
                Transport::WsProto | Transport::WsJson => split_websocket(rest)?,
            };
            let Some((length, frame)) = one else {
                return Ok(used);
            };
            used += length;
            on(frame);
        }
    }
}

type Split = Option<(usize, FromServer)>;

fn split_delimited(data: &[u8]) -> Result<Split, WireError> {
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

fn split_websocket(data: &[u8]) -> Result<Split, WireError> {
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
        1 => FromServer::Frame(Box::new(
            trunkline_proto::json::decode_server(payload).map_err(|e| WireError(e.to_string()))?,
        )),
        2 => decode(payload)?,
        8 => FromServer::Close(match payload {
            [high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => 1005,
        }),
        9 => FromServer::Ping(payload.to_vec()),
        10 => return Ok(Some((head + length, FromServer::Frame(Box::default())))),
        other => return Err(WireError(format!("opcode {other} from the server"))),
    };
    Ok(Some((head + length, frame)))
}

fn decode(payload: &[u8]) -> Result<FromServer, WireError> {
    ServerFrame::decode(payload)
        .map(|frame| FromServer::Frame(Box::new(frame)))
        .map_err(|e| WireError(e.to_string()))
}

#[cfg(test)]
mod tests {
    use trunkline_proto::client::{Pong, ServerBody};

    use super::*;

    fn pong(nonce: &str) -> ServerFrame {
        ServerFrame::push(ServerBody::Pong(Pong {
            nonce: nonce.into(),
        }))
    }

    fn read_split_at(transport: Transport, bytes: &[u8], cut: usize) -> Vec<FromServer> {
        let mut reader = Reader::default();
        let mut seen = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            reader
                .read(transport, part, &mut |frame| seen.push(frame))
                .unwrap();
        }
        assert!(reader.partial.is_empty());
        seen
    }

    #[test]
    fn frames_are_found_wherever_the_bytes_are_cut() {
        let long = "x".repeat(300);
        let expected: Vec<_> = [pong("a"), pong(&long)]
            .into_iter()
            .map(|f| FromServer::Frame(Box::new(f)))
            .collect();
        let mut tcp = Vec::new();
        let mut ws = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        for frame in [pong("a"), pong(&long)] {
            frame.encode_length_delimited(&mut tcp).unwrap();
            let body = frame.encode_to_vec();
            ws.push(0x82);
            if body.len() < 126 {
                ws.push(body.len() as u8);
            } else {
                ws.extend([126, (body.len() >> 8) as u8, body.len() as u8]);
            }
            ws.extend(body);
        }
        for cut in 0..tcp.len() {
            assert_eq!(read_split_at(Transport::Tcp, &tcp, cut), expected);
        }
        for cut in 0..ws.len() {
            assert_eq!(read_split_at(Transport::WsProto, &ws, cut), expected);
        }
    }

    #[test]
    fn a_refused_upgrade_is_told_with_its_status() {
        let error = Reader::default()
            .read(
                Transport::WsProto,
                b"HTTP/1.1 401 Unauthorized\r\nX: y\r\n\r\n",
                &mut |_| {},
            )
            .unwrap_err();
        assert_eq!(error.0, "HTTP/1.1 401 Unauthorized");
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
