//! The client's end of a socket: frames to bytes and back, over raw TCP and WebSocket.

use prost::Message as _;
use trunkline_proto::client::{ClientFrame, ServerFrame};
use trunkline_proto::json;
use trunkline_proto::limits::{SUBPROTOCOL_JSON, SUBPROTOCOL_PROTO, WS_PATH};

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    WsProto,
    WsJson,
}

/// What came out of the bytes.
#[derive(Debug)]
pub enum Came {
    /// The WebSocket is open.
    Upgraded,
    /// The handshake was refused with this status.
    Refused(u16),
    Frame(Box<ServerFrame>),
    Ping(Vec<u8>),
    /// A close frame with this code.
    Close(u16),
    /// Not what a server may send.
    Broken(String),
}

/// The reading side of one connection.
#[derive(Debug)]
pub struct Reader {
    kind: Kind,
    upgraded: bool,
    bytes: Vec<u8>,
}

impl Reader {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            upgraded: kind == Kind::Tcp,
            bytes: Vec::new(),
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether something came in part.
    pub fn is_partial(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The next thing that came whole.
    pub fn take(&mut self) -> Option<Came> {
        if !self.upgraded {
            return self.next_head();
        }
        match self.kind {
            Kind::Tcp => self.next_delimited(),
            Kind::WsProto | Kind::WsJson => self.next_ws(),
        }
    }

    fn next_head(&mut self) -> Option<Came> {
        let end = self.bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        self.bytes.drain(..end);
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        match status {
            Some(101) => {
                self.upgraded = true;
                Some(Came::Upgraded)
            }
            Some(status) => Some(Came::Refused(status)),
            None => Some(Came::Broken(format!("not an HTTP answer: {head:?}"))),
        }
    }

    fn next_delimited(&mut self) -> Option<Came> {
        let mut input = &self.bytes[..];
        if input.is_empty() {
            return None;
        }
        let Ok(len) = prost::decode_length_delimiter(&mut input) else {
            // A varint that is still coming in.
            return (self.bytes.len() >= 10).then(|| Came::Broken("no frame length".into()));
        };
        let head = self.bytes.len() - input.len();
        if input.len() < len {
            return None;
        }
        let frame = ServerFrame::decode(&input[..len]);
        self.bytes.drain(..head + len);
        Some(frame.map_or_else(
            |e| Came::Broken(e.to_string()),
            |f| Came::Frame(Box::new(f)),
        ))
    }

    fn next_ws(&mut self) -> Option<Came> {
        let (opcode, range) = ws_frame(&self.bytes)?;
        let payload = self.bytes[range.clone()].to_vec();
        self.bytes.drain(..range.end);
        let broken = |what: String| Some(Came::Broken(what));
        match (opcode, self.kind) {
            (0x81, Kind::WsJson) => match json::decode_server(&payload) {
                Ok(frame) => Some(Came::Frame(Box::new(frame))),
                Err(e) => broken(e.to_string()),
            },
            (0x82, Kind::WsProto) => match ServerFrame::decode(&payload[..]) {
                Ok(frame) => Some(Came::Frame(Box::new(frame))),
                Err(e) => broken(e.to_string()),
            },
            (0x88, _) => {
                let code = payload
                    .get(..2)
                    .map_or(1005, |c| u16::from_be_bytes([c[0], c[1]]));
                Some(Came::Close(code))
            }
            (0x89, _) => Some(Came::Ping(payload)),
            other => broken(format!("unexpected WebSocket frame {other:?}")),
        }
    }
}

/// First byte and payload of the frame at the beginning, if it is whole.
fn ws_frame(bytes: &[u8]) -> Option<(u8, std::ops::Range<usize>)> {
    let (&opcode, &short) = (bytes.first()?, bytes.get(1)?);
    let (start, len): (usize, usize) = match short {
        126 => (
            4,
            usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => {
            let long = u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?);
            (10, usize::try_from(long).ok()?)
        }
        short => (2, usize::from(short)),
    };
    let end = start.checked_add(len)?;
    (bytes.len() >= end).then_some((opcode, start..end))
}

/// The request that opens a WebSocket.
pub fn request(kind: Kind) -> Vec<u8> {
    let protocol = match kind {
        Kind::Tcp => return Vec::new(),
        Kind::WsProto => SUBPROTOCOL_PROTO,
        Kind::WsJson => SUBPROTOCOL_JSON,
    };
    format!(
        "GET {WS_PATH} HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
    .into_bytes()
}

/// A client's frame. `key`: the WebSocket mask.
pub fn encode(kind: Kind, frame: &ClientFrame, key: u32, out: &mut Vec<u8>) {
    match kind {
        Kind::Tcp => out.extend_from_slice(&frame.encode_length_delimited_to_vec()),
        Kind::WsProto => masked(0x82, &frame.encode_to_vec(), key, out),
        Kind::WsJson => {
            let mut text = Vec::new();
            json::encode_client(frame, &mut text);
            masked(0x81, &text, key, out);
        }
    }
}

/// The answer to a ping.
pub fn pong(payload: &[u8], key: u32, out: &mut Vec<u8>) {
    masked(0x8a, payload, key, out);
}

fn masked(opcode: u8, payload: &[u8], key: u32, out: &mut Vec<u8>) {
    out.push(opcode);
    match payload.len() {
        len @ ..126 => out.push(0x80 | len as u8),
        len @ ..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let key = key.to_be_bytes();
    out.extend_from_slice(&key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k));
}
