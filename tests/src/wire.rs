//! Frames on plain sockets, by hand: a WebSocket or raw TCP client that sends what it is told to and
//! nothing else (no pong, no heartbeat), and reads strictly. It shares the schema with the product
//! and no code of its clients.

use std::io;

use bytes::{Buf as _, BytesMut};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use trunkline_proto::client::{ClientFrame, ServerBody, ServerFrame};
use trunkline_proto::json;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Json,
    Proto,
    Tcp,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Json, Self::Proto, Self::Tcp];

    /// The listener that speaks it.
    pub const fn listener(self) -> &'static str {
        match self {
            Self::Json | Self::Proto => "ws",
            Self::Tcp => "tcp",
        }
    }
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What came.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Frame(Box<ServerFrame>),
    /// A WebSocket ping.
    Ping,
    /// The server's close with its code; on raw TCP the end after an `error` with `close_code`.
    /// 0: the end of the stream without any code.
    Closed(u16),
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Refused {
    /// The upgrade was answered with this status.
    Http(u16),
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Connects, the WebSocket handshake included.
pub async fn open(kind: Kind, address: &str) -> Result<(Reader, Writer), Refused> {
    handshake(kind, address, TcpStream::connect(address).await?).await
}

/// As [`open`], with so small a receive buffer that the server soon feels a client that does not
/// read.
pub async fn open_narrow(kind: Kind, address: &str) -> Result<(Reader, Writer), Refused> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4 * 1024)?;
    let stream = socket.connect(address.parse().expect("an address")).await?;
    handshake(kind, address, stream).await
}

async fn handshake(
    kind: Kind,
    address: &str,
    stream: TcpStream,
) -> Result<(Reader, Writer), Refused> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let mut reader = Reader {
        half: read,
        kind,
        incoming: BytesMut::new(),
        close_code: 0,
    };
    let mut writer = Writer { half: write, kind };
    if kind != Kind::Tcp {
        upgrade(&mut reader, &mut writer, address).await?;
    }
    Ok((reader, writer))
}

async fn upgrade(reader: &mut Reader, writer: &mut Writer, host: &str) -> Result<(), Refused> {
    let subprotocol = match writer.kind {
        Kind::Json => "trunkline.json.v1",
        Kind::Proto | Kind::Tcp => "trunkline.proto.v1",
    };
    let request = format!(
        "GET /v1/connect HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    );
    writer.half.write_all(request.as_bytes()).await?;
    loop {
        let end = reader.incoming.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = end {
            let head = reader.incoming.split_to(end + 4);
            let head = String::from_utf8_lossy(&head);
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
            return match status {
                Some(101) => Ok(()),
                Some(status) => Err(Refused::Http(status)),
                None => panic!("no status line: {head}"),
            };
        }
        if !reader.fill().await? {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// The sending half.
pub struct Writer {
    half: OwnedWriteHalf,
    kind: Kind,
}

impl Writer {
    pub async fn send(&mut self, frame: &ClientFrame) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode(self.kind, frame, &mut bytes);
        self.half.write_all(&bytes).await
    }

    /// Appends a frame as it goes over this wire.
    pub fn encode(&self, frame: &ClientFrame, out: &mut Vec<u8>) {
        encode(self.kind, frame, out);
    }

    /// Several frames in one write, as [`Writer::encode`] wrote them.
    pub async fn send_encoded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.half.write_all(bytes).await
    }

    /// An unsolicited WebSocket pong.
    pub async fn pong(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        ws_frame(PONG, &[], &mut bytes);
        self.half.write_all(&bytes).await
    }
}

/// Appends a frame as it goes over the wire.
fn encode(kind: Kind, frame: &ClientFrame, out: &mut Vec<u8>) {
    match kind {
        Kind::Tcp => frame
            .encode_length_delimited(out)
            .expect("a Vec takes everything"),
        Kind::Proto => ws_frame(BINARY, &frame.encode_to_vec(), out),
        Kind::Json => {
            let mut text = Vec::new();
            json::encode_client(frame, &mut text);
            ws_frame(TEXT, &text, out);
        }
    }
}

/// Masked with a key of zeros, which is a key like any other.
fn ws_frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
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
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// The receiving half.
pub struct Reader {
    half: OwnedReadHalf,
    kind: Kind,
    incoming: BytesMut,
    close_code: u16,
}

impl Reader {
    /// The next thing that comes. A broken connection is an error; its end is [`Heard::Closed`].
    pub async fn next(&mut self) -> io::Result<Heard> {
        loop {
            let heard = match self.kind {
                Kind::Tcp => self.parse_tcp(),
                Kind::Json | Kind::Proto => self.parse_ws(),
            };
            if let Some(heard) = heard {
                return Ok(heard);
            }
            if !self.fill().await? {
                return Ok(Heard::Closed(self.close_code));
            }
        }
    }

    /// Something that is here already, without waiting.
    pub fn next_buffered(&mut self) -> Option<Heard> {
        match self.kind {
            Kind::Tcp => self.parse_tcp(),
            Kind::Json | Kind::Proto => self.parse_ws(),
        }
    }

    async fn fill(&mut self) -> io::Result<bool> {
        self.incoming.reserve(64 * 1024);
        Ok(self.half.read_buf(&mut self.incoming).await? > 0)
    }

    fn parse_tcp(&mut self) -> Option<Heard> {
        let mut length = 0_usize;
        let mut prefix = 0;
        loop {
            let byte = *self.incoming.get(prefix)?;
            length |= usize::from(byte & 0x7f) << (7 * prefix);
            prefix += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        if self.incoming.len() < prefix + length {
            return None;
        }
        self.incoming.advance(prefix);
        let bytes = self.incoming.split_to(length).freeze();
        let frame = ServerFrame::decode(bytes).expect("a frame of the schema");
        if let Some(ServerBody::Error(error)) = &frame.frame
            && error.close_code != 0
        {
            self.close_code = u16::try_from(error.close_code).expect("a close code");
        }
        Some(Heard::Frame(Box::new(frame)))
    }

    fn parse_ws(&mut self) -> Option<Heard> {
        let [first, second] = *self.incoming.first_chunk::<2>()?;
        assert_eq!(first & 0xf0, 0x80, "whole frames without extensions");
        let (head, length) = match second {
            126 => {
                let bytes = *self.incoming.get(2..)?.first_chunk::<2>()?;
                (4, usize::from(u16::from_be_bytes(bytes)))
            }
            127 => {
                let bytes = *self.incoming.get(2..)?.first_chunk::<8>()?;
                (10, u64::from_be_bytes(bytes) as usize)
            }
            n @ 0..=125 => (2, usize::from(n)),
            _ => panic!("a server does not mask"),
        };
        if self.incoming.len() < head + length {
            return None;
        }
        self.incoming.advance(head);
        let payload = self.incoming.split_to(length).freeze();
        Some(match (first & 0x0f, self.kind) {
            (TEXT, Kind::Json) => Heard::Frame(Box::new(
                json::decode_server(&payload).expect("a frame of the contract"),
            )),
            (BINARY, Kind::Proto) => Heard::Frame(Box::new(
                ServerFrame::decode(payload).expect("a frame of the schema"),
            )),
            (CLOSE, _) => Heard::Closed(
                payload
                    .first_chunk::<2>()
                    .map_or(0, |code| u16::from_be_bytes(*code)),
            ),
            (PING, _) => Heard::Ping,
            (opcode, kind) => panic!("opcode {opcode} on a {kind:?} session"),
        })
    }
}
