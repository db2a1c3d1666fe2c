//! What goes from an edge to its successor, as protobuf messages: the greetings, and everything that
//! makes a connection. Times are relative to the moment of the hand-over, since the clocks of two
//! processes are not the same.
//!
//! A field that is added gets a new tag; [`super::FORMAT`] rises when an older or newer process could
//! not make sense of what it reads, and then the hand-over is refused.

use bytes::Bytes;

/// The successor's first message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Of the product, for people.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Where it is configured to listen; empty: anywhere.
    #[prost(string, tag = "3")]
    pub ws: String,
    #[prost(string, tag = "4")]
    pub tcp: String,
    /// The configured id; empty: whatever it is.
    #[prost(string, tag = "5")]
    pub edge_id: String,
}

/// The answer of the edge that runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    #[prost(string, tag = "2")]
    pub version: String,
    #[prost(string, tag = "3")]
    pub edge_id: String,
    #[prost(uint64, tag = "4")]
    pub connections: u64,
    /// Its monotonic clock, ns.
    #[prost(uint64, tag = "5")]
    pub clock_ns: u64,
}

/// Why there will be no hand-over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refusal {
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// Listening sockets: what each descriptor of the message is (see [`super::socket`]).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Listeners {
    #[prost(uint32, repeated, tag = "1")]
    pub kinds: Vec<u32>,
}

/// Some connections: one for each descriptor of the message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Batch {
    #[prost(message, repeated, tag = "1")]
    pub connections: Vec<Connection>,
}

/// There are no more.
#[derive(Clone, PartialEq, prost::Message)]
pub struct End {
    #[prost(uint64, tag = "1")]
    pub connections: u64,
    /// `core_time_ms` of the last batch of the core.
    #[prost(uint64, tag = "2")]
    pub core_time_ms: u64,
    /// Of the core process that it is of.
    #[prost(uint64, tag = "3")]
    pub core_incarnation: u64,
}

/// One connection, all layers of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Connection {
    // ---- the driver's ----
    /// What the socket had no room for.
    #[prost(bytes = "bytes", tag = "1")]
    pub tail: Bytes,
    #[prost(bool, tag = "2")]
    pub eof: bool,
    /// 0: none, 1: due behind the tail, 2: sent.
    #[prost(uint32, tag = "3")]
    pub fin: u32,
    // ---- the session's ----
    /// 1: JSON over WebSocket, 2: protobuf over WebSocket, 3: protobuf over raw TCP.
    #[prost(uint32, tag = "4")]
    pub encoding: u32,
    /// 1 to 5, from `Handshake` to `Closing`.
    #[prost(uint32, tag = "5")]
    pub state: u32,
    /// Why it is closing: 0 not, 1 the peer's close, 2 end of stream, 3 error, 4 handshake; from 1000
    /// on the close code of this side.
    #[prost(uint32, tag = "6")]
    pub end: u32,
    #[prost(string, tag = "7")]
    pub peer: String,
    #[prost(string, tag = "8")]
    pub user: String,
    #[prost(string, tag = "9")]
    pub device: String,
    #[prost(uint64, tag = "10")]
    pub age_ms: u64,
    #[prost(uint64, tag = "11")]
    pub silent_ms: u64,
    /// Until the deadline of its state.
    #[prost(uint64, optional, tag = "12")]
    pub deadline_in_ms: Option<u64>,
    /// Unix seconds at which the token ends; 0: never.
    #[prost(uint32, tag = "13")]
    pub expires_at: u32,
    /// How far the send rate's next free place lies ahead.
    #[prost(uint64, tag = "14")]
    pub sends_ahead_ns: u64,
    #[prost(uint64, tag = "15")]
    pub bytes_in: u64,
    #[prost(uint64, tag = "16")]
    pub bytes_out: u64,
    /// Sends refused in a row.
    #[prost(uint32, tag = "17")]
    pub refused: u32,
    #[prost(bool, tag = "18")]
    pub probed: bool,
    #[prost(bool, tag = "19")]
    pub fin_wanted: bool,
    #[prost(bool, tag = "20")]
    pub fin_sent: bool,
    /// Something had not been answered: its outcome is unknown.
    #[prost(bool, tag = "21")]
    pub under_way: bool,
    #[prost(message, optional, tag = "22")]
    pub ws: Option<WsDecoder>,
    #[prost(message, optional, tag = "23")]
    pub tcp: Option<TcpDecoder>,
    /// The beginning of an HTTP request.
    #[prost(bytes = "vec", tag = "24")]
    pub head: Vec<u8>,
    /// Client frames that came before `connected`, encoded.
    #[prost(bytes = "vec", repeated, tag = "25")]
    pub early: Vec<Vec<u8>>,
    /// The `id` of the `connect` that is being answered.
    #[prost(string, tag = "26")]
    pub connect_id: String,
    #[prost(message, optional, tag = "27")]
    pub outbox: Option<Outbox>,
}

/// The reading side of a WebSocket.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WsDecoder {
    /// A close frame or an error ended the reading.
    #[prost(bool, tag = "1")]
    pub ended: bool,
    /// The beginning of a header.
    #[prost(bytes = "vec", tag = "2")]
    pub head: Vec<u8>,
    /// The frame whose payload is under way.
    #[prost(message, optional, tag = "3")]
    pub frame: Option<WsFrame>,
    /// What has come of a control frame.
    #[prost(bytes = "vec", tag = "4")]
    pub control: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    pub message: Option<WsMessage>,
}

/// A frame of which some payload is still to come.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WsFrame {
    #[prost(bool, tag = "1")]
    pub fin: bool,
    #[prost(uint32, tag = "2")]
    pub opcode: u32,
    #[prost(uint64, tag = "3")]
    pub len: u64,
    #[prost(fixed32, tag = "4")]
    pub key: u32,
    #[prost(uint64, tag = "5")]
    pub received: u64,
}

/// A message of which some has come.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WsMessage {
    #[prost(bool, tag = "1")]
    pub text: bool,
    #[prost(uint64, tag = "2")]
    pub wire_bytes: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
    /// The beginning of a code point.
    #[prost(bytes = "vec", tag = "4")]
    pub code_point: Vec<u8>,
}

/// The reading side of a raw TCP connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TcpDecoder {
    #[prost(bool, tag = "1")]
    pub ended: bool,
    /// The beginning of a length.
    #[prost(bytes = "vec", tag = "2")]
    pub head: Vec<u8>,
    /// Bytes that the frame under way still lacks.
    #[prost(uint64, optional, tag = "3")]
    pub missing: Option<u64>,
    /// Those that it has.
    #[prost(bytes = "vec", tag = "4")]
    pub data: Vec<u8>,
}

/// What waits behind the tail.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Outbox {
    #[prost(bytes = "vec", tag = "1")]
    pub control: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub items: Vec<OutboxItem>,
}

/// A frame that waits.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OutboxItem {
    #[prost(bytes = "bytes", tag = "1")]
    pub bytes: Bytes,
    /// 0: chat, 1: receipt, 2: presence, 3: typing.
    #[prost(uint32, tag = "2")]
    pub class: u32,
    #[prost(fixed64, tag = "3")]
    pub key: u64,
}

/// What was handed over makes no sense here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the predecessor handed over a connection that makes no sense here: {0}")]
pub struct BadState(pub &'static str);
