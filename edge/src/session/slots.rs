//! The shard's table of connections: one small slot each, beside the driver's table and indexed by
//! the same slot number, with everything rare in a box.
//!
//! Invariants:
//! 1. A slot that is not [`State::Free`] belongs to the `ConnId` with its generation; every other
//!    `ConnId` of that slot is stale and finds nothing.
//! 2. The table grows in chunks that never move, so a million connections are never copied.
//! 3. [`Cold`] exists only while something in it does.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use trunkline_proto::client::ClientFrame;
use trunkline_proto::codes::Close;
use trunkline_proto::gcra::Gcra;

use super::outbox::Outbox;
use crate::frame::encode_once::Encoding;
use crate::frame::{tcp, ws};
use crate::ring::ConnId;

const _: () = assert!(
    size_of::<Conn>() <= 128,
    "a million connections: each byte here is a megabyte"
);

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nobody's.
    Free,
    /// The HTTP request is still coming in.
    Handshake,
    /// Upgraded, or raw TCP: waits for `connect`.
    AwaitConnect,
    /// Announced to the core: waits for `registered`.
    Registering,
    /// A session.
    Live,
    /// The last bytes are on their way or the peer's end is awaited; nothing that comes counts.
    Closing,
}

impl State {
    /// Those that a socket can be in, for tables and metrics.
    pub const SHOWN: [Self; 5] = [
        Self::Handshake,
        Self::AwaitConnect,
        Self::Registering,
        Self::Live,
        Self::Closing,
    ];

    /// In metrics and on the debug pages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Handshake => "handshake",
            Self::AwaitConnect => "await_connect",
            Self::Registering => "registering",
            Self::Live => "live",
            Self::Closing => "closing",
        }
    }
}

/// Which of the two transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    WebSocket,
    Tcp,
}

impl Transport {
    /// In metrics and on the debug pages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::Tcp => "tcp",
        }
    }
}

/// What ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not ended yet.
    None,
    /// The peer's close frame.
    Peer,
    /// The peer's FIN without one.
    Eof,
    /// The socket failed, or the peer reset it.
    Error,
    /// The HTTP request was refused or did not come in time.
    Handshake,
    /// This side closed it.
    Ours(Close),
}

impl End {
    /// In metrics and on the debug pages.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::None => "stopped",
            Self::Peer => "closed by peer",
            Self::Eof => "end of stream",
            Self::Error => "socket error",
            Self::Handshake => "handshake failed",
            Self::Ours(close) => close.reason(),
        }
    }
}

/// Bits of [`Conn::flags`].
pub mod flag {
    /// The driver holds an unsent tail: frames go to the outbox.
    pub const BLOCKED: u8 = 1;
    /// Asked for a sign of life since the last one.
    pub const PROBED: u8 = 1 << 1;
    /// FIN goes out behind what is owed.
    pub const FIN: u8 = 1 << 2;
    /// FIN was handed to the driver.
    pub const FIN_SENT: u8 = 1 << 3;
    /// Given to the driver for closing: nothing is sent any more.
    pub const DROPPED: u8 = 1 << 4;
    /// The core was told of this session on the present link.
    pub const ANNOUNCED: u8 = 1 << 5;
    /// Was told to reconnect elsewhere.
    pub const TOLD_TO_LEAVE: u8 = 1 << 6;
}

/// The reading side.
#[derive(Debug, Default)]
pub enum Codec {
    #[default]
    None,
    Ws(ws::Decoder),
    Tcp(tcp::Decoder),
}

/// No entry in the turn's table.
pub const NO_TURN: u32 = u32::MAX;

/// One connection.
#[derive(Debug)]
pub struct Conn {
    pub codec: Codec,
    pub cold: Option<Box<Cold>>,
    /// User id, then device id once that is known, without a separator.
    identity: Option<Box<str>>,
    /// The session's own share of the send rate.
    pub sends: Gcra,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// IPv4 in its mapped form.
    address: [u8; 16],
    pub generation: u32,
    /// Ticks: of the accept, of the last bytes, of the valid timer entry (0: none), of the state's
    /// own deadline (0: none).
    pub accepted_at: u32,
    pub last_seen: u32,
    pub timer_at: u32,
    pub deadline: u32,
    /// Unix seconds at which the token ends; 0: never.
    pub expires_at: u32,
    /// Index in the turn's table, or [`NO_TURN`].
    pub turn: u32,
    /// Sends refused in a row.
    pub refused: u8,
    /// Sends whose answer has not come.
    pub sends_under_way: u16,
    port: u16,
    pub flags: u8,
    pub syncs_under_way: u8,
    pub fetches_under_way: u8,
    user_len: u8,
    pub state: State,
    pub encoding: Encoding,
    pub end: End,
}

/// What a connection owns only now and then.
#[derive(Debug, Default)]
pub struct Cold {
    /// The beginning of an HTTP request.
    pub head: Vec<u8>,
    /// Frames that came before `registered`.
    pub queue: VecDeque<ClientFrame>,
    pub queue_bytes: usize,
    /// The `id` of the `connect` that is being answered.
    pub connect_id: String,
    pub outbox: Option<Outbox>,
}

impl Cold {
    fn is_empty(&self) -> bool {
        self.head.capacity() == 0
            && self.queue.capacity() == 0
            && self.connect_id.is_empty()
            && self.outbox.is_none()
    }
}

impl Default for Conn {
    fn default() -> Self {
        Self {
            codec: Codec::None,
            cold: None,
            identity: None,
            sends: Gcra::default(),
            bytes_in: 0,
            bytes_out: 0,
            address: [0; 16],
            generation: 0,
            accepted_at: 0,
            last_seen: 0,
            timer_at: 0,
            deadline: 0,
            expires_at: 0,
            turn: NO_TURN,
            refused: 0,
            sends_under_way: 0,
            port: 0,
            flags: 0,
            syncs_under_way: 0,
            fetches_under_way: 0,
            user_len: 0,
            state: State::Free,
            encoding: Encoding::ProtoTcp,
            end: End::None,
        }
    }
}

impl Conn {
    /// A connection just accepted.
    pub fn new(id: ConnId, transport: Transport, peer: SocketAddr, tick: u32) -> Self {
        let (state, codec, encoding) = match transport {
            Transport::WebSocket => (State::Handshake, Codec::None, Encoding::JsonWs),
            Transport::Tcp => (
                State::AwaitConnect,
                Codec::Tcp(tcp::Decoder::default()),
                Encoding::ProtoTcp,
            ),
        };
        Self {
            codec,
            encoding,
            state,
            generation: id.generation,
            address: mapped(peer.ip()).octets(),
            port: peer.port(),
            accepted_at: tick,
            last_seen: tick,
            ..Self::default()
        }
    }

    /// Raw TCP has an encoding of its own.
    pub const fn transport(&self) -> Transport {
        match self.encoding {
            Encoding::ProtoTcp => Transport::Tcp,
            Encoding::JsonWs | Encoding::ProtoWs => Transport::WebSocket,
        }
    }

    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub const fn set(&mut self, flag: u8) {
        self.flags |= flag;
    }

    pub const fn clear(&mut self, flag: u8) {
        self.flags &= !flag;
    }

    /// Whether the core may know of it.
    pub const fn is_session(&self) -> bool {
        matches!(self.state, State::Registering | State::Live)
    }

    /// Empty until a token was accepted.
    pub fn user(&self) -> &str {
        let identity = self.identity.as_deref().unwrap_or_default();
        &identity[..usize::from(self.user_len)]
    }

    /// Empty until `connect`.
    pub fn device(&self) -> &str {
        let identity = self.identity.as_deref().unwrap_or_default();
        &identity[usize::from(self.user_len)..]
    }

    /// Both ids are checked ones: at most 64 bytes each.
    pub fn set_identity(&mut self, user: &str, device: &str) {
        debug_assert!(user.len() <= usize::from(u8::MAX));
        let mut identity = String::with_capacity(user.len() + device.len());
        identity.push_str(user);
        identity.push_str(device);
        self.identity = Some(identity.into_boxed_str());
        self.user_len = user.len() as u8;
    }

    /// Heap bytes of the ids.
    pub fn identity_bytes(&self) -> usize {
        self.identity.as_deref().map_or(0, str::len)
    }

    pub fn take_identity(&mut self) -> (Option<Box<str>>, usize) {
        (self.identity.take(), usize::from(self.user_len))
    }

    pub fn peer(&self) -> SocketAddr {
        let address = Ipv6Addr::from(self.address).to_canonical();
        SocketAddr::new(address, self.port)
    }

    pub fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    pub fn outbox(&mut self) -> &mut Outbox {
        self.cold().outbox.get_or_insert_default()
    }

    /// Bytes that the driver and the outbox still owe the peer.
    pub fn owed(&self) -> usize {
        let outbox = self.cold.as_ref().and_then(|c| c.outbox.as_ref());
        outbox.map_or(0, Outbox::owed)
    }

    /// Frees the box if nothing is in it.
    pub fn tidy(&mut self) {
        if self.cold.as_ref().is_some_and(|c| c.is_empty()) {
            self.cold = None;
        }
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

const CHUNK: usize = 1_024;

/// The table.
#[derive(Debug, Default)]
pub struct Slots {
    chunks: Vec<Box<[Conn]>>,
    used: usize,
}

impl Slots {
    /// Slots in use.
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Heap bytes of the table.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<Conn>()
    }

    /// Takes the slot of `id` for `conn`. The driver reuses a slot only after its close was told.
    pub fn insert(&mut self, id: ConnId, conn: Conn) {
        let chunk = id.slot as usize / CHUNK;
        while self.chunks.len() <= chunk {
            self.chunks
                .push((0..CHUNK).map(|_| Conn::default()).collect());
        }
        let slot = &mut self.chunks[chunk][id.slot as usize % CHUNK];
        debug_assert_eq!(slot.state, State::Free);
        *slot = conn;
        self.used += 1;
    }

    /// The connection, unless `id` is stale.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.at_mut(id.slot)?;
        (conn.generation == id.generation).then_some(conn)
    }

    /// The connection, unless `id` is stale.
    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        let chunk = self.chunks.get(id.slot as usize / CHUNK)?;
        let conn = &chunk[id.slot as usize % CHUNK];
        (conn.state != State::Free && conn.generation == id.generation).then_some(conn)
    }

    /// Whoever has the slot.
    pub fn at_mut(&mut self, slot: u32) -> Option<&mut Conn> {
        let chunk = self.chunks.get_mut(slot as usize / CHUNK)?;
        let conn = &mut chunk[slot as usize % CHUNK];
        (conn.state != State::Free).then_some(conn)
    }

    /// Frees the slot and hands out what was in it.
    pub fn remove(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.get_mut(id)?;
        let conn = std::mem::take(conn);
        self.used -= 1;
        Some(conn)
    }

    /// Who has the first slot from `from` on that is in use.
    pub fn next_used(&self, from: u32) -> Option<ConnId> {
        let mut slot = from;
        while let Some(chunk) = self.chunks.get(slot as usize / CHUNK) {
            let conn = &chunk[slot as usize % CHUNK];
            if conn.state != State::Free {
                let generation = conn.generation;
                return Some(ConnId { slot, generation });
            }
            slot += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    fn conn(id: ConnId) -> Conn {
        let peer = "192.0.2.7:4000".parse().unwrap();
        Conn::new(id, Transport::Tcp, peer, 5)
    }

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut slots = Slots::default();
        slots.insert(id(3_000, 7), conn(id(3_000, 7)));
        assert!(slots.get_mut(id(3_000, 7)).is_some());
        assert!(slots.get_mut(id(3_000, 6)).is_none());
        assert!(slots.get_mut(id(3_001, 7)).is_none());
        assert!(slots.get_mut(id(90_000, 7)).is_none());
        assert_eq!(slots.next_used(0), Some(id(3_000, 7)));
        assert!(slots.remove(id(3_000, 7)).is_some());
        assert!(slots.get_mut(id(3_000, 7)).is_none());
        assert_eq!((slots.used(), slots.next_used(0)), (0, None));
    }

    #[test]
    fn identity_and_peer_are_kept_whole() {
        let mut conn = conn(id(0, 1));
        assert_eq!((conn.user(), conn.device()), ("", ""));
        conn.set_identity("alice", "phone");
        assert_eq!((conn.user(), conn.device()), ("alice", "phone"));
        assert_eq!(conn.identity_bytes(), 10);
        assert_eq!(conn.peer().to_string(), "192.0.2.7:4000");
    }

    #[test]
    fn the_box_goes_with_its_last_content() {
        let mut conn = conn(id(0, 1));
        conn.cold().connect_id = "7".into();
        conn.tidy();
        assert!(conn.cold.is_some());
        conn.cold().connect_id.clear();
        conn.tidy();
        assert!(conn.cold.is_none());
    }
}
