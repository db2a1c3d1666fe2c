//! What the generator speaks: bare TCP, WebSocket, and inside a WebSocket the protocols of servers
//! that have no echo, with which a client subscribes to a subject and publishes to it.
//!
//! Pure: bytes in, [`Said`] out. A [`Dialect`] holds nothing of a connection; what a connection has
//! of an unfinished frame is in its [`Session`], and is nothing while it is quiet.
//!
//! Called by `crate::echo::generator`.

mod centrifuge;
mod mqtt;
mod nats;
mod websocket;

use std::fmt;
use std::str::FromStr;

pub use centrifuge::Centrifuge;
pub use mqtt::Mqtt;
pub use nats::Nats;

use crate::fleet::wire::put_masked;

/// Bytes of an unfinished frame that a connection may keep: a server that sends more is not echoing.
const PARTIAL_BYTES_MAX: usize = 4 << 20;
/// The mask of all frames. Any will do that is not zero: the server must take it off.
const MASK: u32 = 0x5a17_c3e9;
const OPCODE_BINARY: u8 = 2;

/// What came from the server does not read as it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProtocolError(pub String);

/// One thing that the server said.
#[derive(Debug, PartialEq)]
pub enum Said<'a> {
    /// It has taken the subscription: messages may go.
    Ready,
    /// A message came back, or was delivered.
    Message(&'a [u8]),
    /// It wants this in return, ready for the wire.
    Reply(Vec<u8>),
    /// Nothing that matters here.
    Other,
}

/// The way in which messages travel inside the transport.
pub trait Dialect: Send + Sync {
    /// What the client says first; `Said::Ready` answers it.
    fn hello(&self, client: u32) -> Vec<u8>;

    /// One message of `client`.
    fn message(&self, client: u32, payload: &[u8]) -> Vec<u8>;

    /// Takes one thing from the front of a stream: its length and what it means; none if it is not
    /// whole. `Said::Reply` is without the transport's frame.
    fn take<'a>(&self, data: &'a [u8]) -> Result<Option<(usize, Said<'a>)>, ProtocolError>;
}

/// How a client publishes and subscribes where there is no echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subjects {
    /// Each client hears itself.
    Own,
    /// All clients hear all.
    Common,
}

impl Subjects {
    fn name(self, client: u32) -> String {
        match self {
            Self::Own => format!("bench-{client}"),
            Self::Common => "bench-all".to_owned(),
        }
    }
}

/// The protocols, by the schemes of their URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Tcp,
    Ws,
    Nats,
    Mqtt,
    Centrifuge,
}

const SCHEMES: [(Scheme, &str); 5] = [
    (Scheme::Tcp, "tcp"),
    (Scheme::Ws, "ws"),
    (Scheme::Nats, "nats+ws"),
    (Scheme::Mqtt, "mqtt+ws"),
    (Scheme::Centrifuge, "centrifuge+ws"),
];

impl FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = SCHEMES.iter().find(|(_, name)| *name == text);
        found.map(|(scheme, _)| *scheme).ok_or_else(|| {
            let names: Vec<_> = SCHEMES.iter().map(|(_, name)| *name).collect();
            format!("unknown scheme {text:?}: one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = SCHEMES.iter().find(|(scheme, _)| scheme == self);
        f.write_str(found.map_or("", |(_, name)| name))
    }
}

/// The transport and what runs in it.
pub struct Protocol {
    scheme: Scheme,
    /// None: the payload is the message.
    dialect: Option<Box<dyn Dialect>>,
    payload_bytes: usize,
    host: String,
    path: String,
}

impl Protocol {
    /// `host` and `path` are those of the upgrade request.
    pub fn new(
        scheme: Scheme,
        subjects: Subjects,
        payload_bytes: usize,
        host: &str,
        path: &str,
    ) -> Self {
        let dialect: Option<Box<dyn Dialect>> = match scheme {
            Scheme::Tcp | Scheme::Ws => None,
            Scheme::Nats => Some(Box::new(Nats { subjects })),
            Scheme::Mqtt => Some(Box::new(Mqtt { subjects })),
            Scheme::Centrifuge => Some(Box::new(Centrifuge { subjects })),
        };
        Self {
            scheme,
            dialect,
            payload_bytes,
            host: host.to_owned(),
            path: path.to_owned(),
        }
    }

    /// What is sent as soon as the connection is up; empty: nothing, and it is ready.
    pub fn opening(&self) -> Vec<u8> {
        let subprotocol = match self.scheme {
            Scheme::Tcp => return Vec::new(),
            Scheme::Ws | Scheme::Nats => None,
            Scheme::Mqtt => Some("mqtt"),
            Scheme::Centrifuge => Some("centrifuge-protobuf"),
        };
        websocket::request(&self.host, &self.path, subprotocol)
    }

    /// One message, ready for the wire.
    pub fn message(&self, client: u32, payload: &[u8]) -> Vec<u8> {
        match (&self.dialect, self.scheme) {
            (_, Scheme::Tcp) => payload.to_vec(),
            (None, _) => framed(payload),
            (Some(dialect), _) => framed(&dialect.message(client, payload)),
        }
    }

    /// Whether all clients' messages are the same bytes.
    pub fn shares_messages(&self) -> bool {
        self.dialect.is_none()
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    put_masked(OPCODE_BINARY, payload, MASK, &mut out);
    out
}

/// One connection's state: what is not whole yet.
#[derive(Debug, Default)]
pub struct Session {
    upgraded: bool,
    /// The beginning of a frame, or of the upgrade's answer.
    wire: Vec<u8>,
    /// The beginning of a dialect's message whose end comes in another frame.
    carried: Vec<u8>,
}

impl Session {
    /// Reads what has come for `client` and hands it to `on`.
    pub fn received(
        &mut self,
        protocol: &Protocol,
        client: u32,
        data: &[u8],
        on: &mut dyn FnMut(Said<'_>),
    ) -> Result<(), ProtocolError> {
        if self.wire.is_empty() {
            let used = self.split(protocol, client, data, on)?;
            self.wire.extend_from_slice(&data[used..]);
        } else {
            let mut all = std::mem::take(&mut self.wire);
            all.extend_from_slice(data);
            let used = self.split(protocol, client, &all, on)?;
            if used < all.len() {
                all.drain(..used);
                self.wire = all;
            }
        }
        if self.wire.len() > PARTIAL_BYTES_MAX {
            return Err(ProtocolError("a frame without an end".into()));
        }
        Ok(())
    }

    /// Handles what is whole at the front of `data`; returns its length.
    fn split(
        &mut self,
        protocol: &Protocol,
        client: u32,
        data: &[u8],
        on: &mut dyn FnMut(Said<'_>),
    ) -> Result<usize, ProtocolError> {
        if protocol.scheme == Scheme::Tcp {
            let whole = data.chunks_exact(protocol.payload_bytes);
            let rest = whole.remainder().len();
            whole.for_each(|message| on(Said::Message(message)));
            return Ok(data.len() - rest);
        }
        let mut used = 0;
        if !self.upgraded {
            let Some(length) = websocket::upgraded(data)? else {
                return Ok(0);
            };
            used = length;
            self.upgraded = true;
            match &protocol.dialect {
                None => on(Said::Ready),
                Some(dialect) => on(Said::Reply(framed(&dialect.hello(client)))),
            }
        }
        while let Some((length, frame)) = websocket::take(&data[used..])? {
            used += length;
            match (frame, &protocol.dialect) {
                (websocket::Frame::Pong(reply), _) => on(Said::Reply(reply)),
                (websocket::Frame::Other, _) => {}
                (websocket::Frame::Data { whole: false, .. }, None) => {
                    return Err(ProtocolError("it fragments what it sends back".into()));
                }
                (websocket::Frame::Data { payload, .. }, None) => on(Said::Message(payload)),
                (websocket::Frame::Data { payload, .. }, Some(dialect)) => {
                    self.stream(&**dialect, payload, on)?;
                }
            }
        }
        Ok(used)
    }

    /// A dialect's bytes, whose messages may go across frames.
    fn stream(
        &mut self,
        dialect: &dyn Dialect,
        payload: &[u8],
        on: &mut dyn FnMut(Said<'_>),
    ) -> Result<(), ProtocolError> {
        let mut carried = std::mem::take(&mut self.carried);
        let data = if carried.is_empty() {
            payload
        } else {
            carried.extend_from_slice(payload);
            &carried
        };
        let mut used = 0;
        while let Some((length, said)) = dialect.take(&data[used..])? {
            used += length;
            match said {
                Said::Reply(bytes) => on(Said::Reply(framed(&bytes))),
                other => on(other),
            }
        }
        self.carried = data[used..].to_vec();
        if self.carried.len() > PARTIAL_BYTES_MAX {
            return Err(ProtocolError("a message without an end".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server would have said, however the bytes were cut.
    fn read_in_pieces(protocol: &Protocol, bytes: &[u8], piece: usize) -> Vec<String> {
        let mut session = Session::default();
        let mut said = Vec::new();
        for part in bytes.chunks(piece) {
            session
                .received(protocol, 7, part, &mut |what| {
                    said.push(format!("{what:?}"))
                })
                .unwrap();
        }
        assert!(session.wire.is_empty() && session.carried.is_empty());
        said
    }

    fn unmasked(payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x82, payload.len() as u8];
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let protocol = Protocol::new(Scheme::Ws, Subjects::Own, 5, "h", "/");
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n\r\n".to_vec();
        bytes.extend(unmasked(b"hello"));
        bytes.extend([0x89, 2, b'h', b'i']);
        bytes.extend(unmasked(b"again"));
        let whole = read_in_pieces(&protocol, &bytes, bytes.len());
        assert_eq!(whole.len(), 4);
        assert_eq!(whole[0], "Ready");
        assert!(whole[2].starts_with("Reply"));
        for piece in 1..bytes.len() {
            assert_eq!(read_in_pieces(&protocol, &bytes, piece), whole);
        }
    }

    #[test]
    fn bare_tcp_is_cut_by_length() {
        let protocol = Protocol::new(Scheme::Tcp, Subjects::Own, 3, "h", "/");
        assert!(protocol.opening().is_empty());
        for piece in 1..9 {
            let said = read_in_pieces(&protocol, b"abcdefghi", piece);
            assert_eq!(said.len(), 3, "{said:?}");
        }
    }

    #[test]
    fn a_dialects_messages_may_go_across_frames() {
        let protocol = Protocol::new(Scheme::Nats, Subjects::Own, 5, "h", "/");
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        bytes.extend(unmasked(b"INFO {}\r\nPONG\r\nMSG bench-7 1 5\r\nhe"));
        bytes.extend(unmasked(b"llo\r\nPI"));
        bytes.extend(unmasked(b"NG\r\n"));
        let whole = read_in_pieces(&protocol, &bytes, bytes.len());
        assert_eq!(whole.len(), 5, "{whole:?}");
        for piece in 1..bytes.len() {
            assert_eq!(read_in_pieces(&protocol, &bytes, piece), whole);
        }
    }

    #[test]
    fn what_a_server_must_not_do_is_an_error() {
        let protocol = Protocol::new(Scheme::Ws, Subjects::Own, 5, "h", "/");
        let read = |bytes: &[u8]| {
            let mut session = Session {
                upgraded: true,
                ..Session::default()
            };
            session.received(&protocol, 0, bytes, &mut |_| {})
        };
        assert!(read(&[0x02, 1, b'x']).is_err(), "a fragment");
        assert!(read(&[0x88, 2, 3, 232]).is_err(), "a close");
        assert!(read(&[0x82, 0x81, 0, 0, 0, 0, 0]).is_err(), "a mask");
        let mut session = Session::default();
        let refusal = b"HTTP/1.1 503 Service Unavailable\r\n\r\n";
        let error = session
            .received(&protocol, 0, refusal, &mut |_| {})
            .unwrap_err();
        assert!(error.0.contains("503"), "{error}");
    }

    #[test]
    fn schemes_parse_and_print() {
        for (scheme, name) in SCHEMES {
            assert_eq!(name.parse::<Scheme>().unwrap(), scheme);
            assert_eq!(scheme.to_string(), name);
        }
        assert!("http".parse::<Scheme>().is_err());
    }
}
