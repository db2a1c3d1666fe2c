//! The shard's table of connections: one slot each, a cache line, beside the driver's table and
//! indexed by the same slot number, with everything rare in a box.
//!
//! Invariants:
//! 1. A slot that is not [`State::Free`] belongs to the `ConnId` with its generation; every other
//!    `ConnId` of that slot is stale and finds nothing.
//! 2. The table grows in chunks that never move, so a million connections are never copied; there
//!    are chunks only where there are slots, which a driver with several rings numbers with gaps.
//! 3. [`Cold`] exists only while something in it does.
//! 4. Strings of a slot lie in [`Texts`] as long as it is in use.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use trunkline_proto::client::ClientFrame;
use trunkline_proto::codes::Close;
use trunkline_proto::gcra::{CompactGcra, Rate};

use super::outbox::Outbox;
use super::texts::{Text, Texts};
use crate::frame::encode_once::Encoding;
use crate::frame::{tcp, ws};
use crate::ring::ConnId;

const _: () = assert!(
    size_of::<Conn>() == 64,
    "a heartbeat touches one cache line, and a million connections make each byte a megabyte"
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
    pub const BLOCKED: u16 = 1;
    /// Asked for a sign of life since the last one.
    pub const PROBED: u16 = 1 << 1;
    /// FIN goes out behind what is owed.
    pub const FIN: u16 = 1 << 2;
    /// FIN was handed to the driver.
    pub const FIN_SENT: u16 = 1 << 3;
    /// Given to the driver for closing: nothing is sent any more.
    pub const DROPPED: u16 = 1 << 4;
    /// The core was told of this session on the present link.
    pub const ANNOUNCED: u16 = 1 << 5;
    /// Was told to reconnect elsewhere.
    pub const TOLD_TO_LEAVE: u16 = 1 << 6;
    /// The peer's address is an IPv6 one and lies among the texts.
    pub(super) const ADDRESS_V6: u16 = 1 << 7;
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
///
/// A chunk of them is a multiple of a page and the allocator puts such where pages begin, so each is
/// one cache line. To demand that alignment would have the allocator round 16 KiB up to 20.
#[derive(Debug)]
pub struct Conn {
    pub cold: Option<Box<Cold>>,
    /// User id and device id, behind their lengths.
    identity: Text,
    /// An IPv4 address, or the reference to an IPv6 one.
    address: u32,
    /// What came and went, modulo 2^32: what lies above is in the box.
    bytes_in: u32,
    bytes_out: u32,
    pub generation: u32,
    /// Ticks: of the accept, of the last bytes, of the valid timer entry (0: none).
    pub accepted_at: u32,
    pub last_seen: u32,
    pub timer_at: u32,
    /// Unix seconds at which the token ends; 0: never.
    pub expires_at: u32,
    /// While live: the session's own share of the send rate. In every other state: the tick at
    /// which that state is over (0: never).
    deadline_or_sends: u32,
    /// Index in the turn's table, or [`NO_TURN`].
    pub turn: u32,
    port: u16,
    /// Sends whose answer has not come.
    pub sends_under_way: u16,
    pub flags: u16,
    /// Sends refused in a row.
    pub refused: u8,
    pub syncs_under_way: u8,
    pub fetches_under_way: u8,
    pub state: State,
    pub encoding: Encoding,
    pub end: End,
}

/// What a connection owns only now and then.
#[derive(Debug, Default)]
pub struct Cold {
    /// The beginning of an HTTP request.
    pub head: Vec<u8>,
    /// A frame or message that came in part.
    codec: Codec,
    /// Frames that came before `registered`.
    pub queue: VecDeque<ClientFrame>,
    pub queue_bytes: usize,
    /// The `id` of the `connect` that is being answered.
    pub connect_id: String,
    pub outbox: Option<Outbox>,
    /// Bytes in and out beyond what the slot counts, in units of 2^32.
    carried: [u32; 2],
}

impl Cold {
    fn is_empty(&self) -> bool {
        self.head.capacity() == 0
            && matches!(self.codec, Codec::None)
            && self.queue.capacity() == 0
            && self.connect_id.is_empty()
            && self.outbox.is_none()
            && self.carried == [0; 2]
    }
}

impl Default for Conn {
    fn default() -> Self {
        Self {
            cold: None,
            identity: Text::NONE,
            address: 0,
            bytes_in: 0,
            bytes_out: 0,
            generation: 0,
            accepted_at: 0,
            last_seen: 0,
            timer_at: 0,
            expires_at: 0,
            deadline_or_sends: 0,
            turn: NO_TURN,
            port: 0,
            sends_under_way: 0,
            flags: 0,
            refused: 0,
            syncs_under_way: 0,
            fetches_under_way: 0,
            state: State::Free,
            encoding: Encoding::ProtoTcp,
            end: End::None,
        }
    }
}

impl Conn {
    /// A connection just accepted, its address apart.
    fn new(id: ConnId, transport: Transport, tick: u32) -> Self {
        let (state, encoding) = match transport {
            Transport::WebSocket => (State::Handshake, Encoding::JsonWs),
            Transport::Tcp => (State::AwaitConnect, Encoding::ProtoTcp),
        };
        Self {
            encoding,
            state,
            generation: id.generation,
            accepted_at: tick,
            last_seen: tick,
            ..Self::default()
        }
    }

    /// Moves on. A session goes live without a deadline and with a limiter at rest, and leaves with
    /// neither; otherwise the deadline stays what it was.
    pub const fn enter(&mut self, state: State) {
        if matches!(self.state, State::Live) || matches!(state, State::Live) {
            self.deadline_or_sends = 0;
        }
        self.state = state;
    }

    /// The tick at which the present state is over; 0: never.
    pub const fn deadline(&self) -> u32 {
        match self.state {
            State::Live => 0,
            _ => self.deadline_or_sends,
        }
    }

    /// Puts the end of the present state off, or forward. A live session has none.
    pub const fn set_deadline(&mut self, tick: u32) {
        if !matches!(self.state, State::Live) {
            self.deadline_or_sends = tick;
        }
    }

    /// Takes one send of a live session, or says after how many ms to try again.
    pub fn take_send(&mut self, rate: Rate, now_ns: u64) -> Result<(), u32> {
        debug_assert_eq!(self.state, State::Live);
        let mut sends = CompactGcra::from_bits(self.deadline_or_sends);
        let outcome = sends.take(rate, now_ns);
        self.deadline_or_sends = sends.bits();
        outcome
    }

    /// Lets a limiter that is at rest say so; to be called now and then.
    pub const fn rest_sends(&mut self, rate: Rate, now_ns: u64) {
        if matches!(self.state, State::Live) {
            let mut sends = CompactGcra::from_bits(self.deadline_or_sends);
            sends.rest(rate, now_ns);
            self.deadline_or_sends = sends.bits();
        }
    }

    /// How far a live session's send rate is used up, for [`Conn::resume_sends`].
    pub const fn sends_ahead_ns(&self, rate: Rate, now_ns: u64) -> u64 {
        match self.state {
            State::Live => CompactGcra::from_bits(self.deadline_or_sends).ahead_ns(rate, now_ns),
            _ => 0,
        }
    }

    /// Goes on with a send rate that another process has counted.
    pub const fn resume_sends(&mut self, rate: Rate, now_ns: u64, ahead_ns: u64) {
        if matches!(self.state, State::Live) {
            self.deadline_or_sends = CompactGcra::ahead(rate, now_ns, ahead_ns).bits();
        }
    }

    /// Raw TCP has an encoding of its own.
    pub const fn transport(&self) -> Transport {
        match self.encoding {
            Encoding::ProtoTcp => Transport::Tcp,
            Encoding::JsonWs | Encoding::ProtoWs => Transport::WebSocket,
        }
    }

    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub const fn set(&mut self, flag: u16) {
        self.flags |= flag;
    }

    pub const fn clear(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    /// Whether the core may know of it.
    pub const fn is_session(&self) -> bool {
        matches!(self.state, State::Registering | State::Live)
    }

    /// The reading side, to be put back with [`Conn::put_codec`]: what was kept, or a new one.
    pub fn take_codec(&mut self) -> Codec {
        let kept = self.cold.as_mut().map(|c| std::mem::take(&mut c.codec));
        match kept {
            None | Some(Codec::None) => match self.transport() {
                Transport::WebSocket => Codec::Ws(ws::Decoder::default()),
                Transport::Tcp => Codec::Tcp(tcp::Decoder::default()),
            },
            Some(kept) => kept,
        }
    }

    /// What is kept of the reading side.
    pub fn kept_codec(&self) -> &Codec {
        self.cold.as_ref().map_or(&Codec::None, |c| &c.codec)
    }

    /// Keeps the reading side, if there is anything to keep of it.
    pub fn put_codec(&mut self, codec: Codec) {
        let is_idle = match &codec {
            Codec::None => true,
            Codec::Ws(decoder) => decoder.is_idle(),
            Codec::Tcp(decoder) => decoder.is_idle(),
        };
        if !is_idle {
            self.cold().codec = codec;
        } else if self.cold.is_some() {
            self.tidy();
        }
    }

    /// Lets go of all that only an open connection needs.
    pub fn drop_incoming(&mut self) {
        if let Some(cold) = self.cold.as_mut() {
            cold.head = Vec::new();
            cold.codec = Codec::None;
            cold.queue = VecDeque::new();
            cold.connect_id = String::new();
        }
        self.tidy();
    }

    pub fn count_in(&mut self, bytes: usize) {
        let sum = u64::from(self.bytes_in) + bytes as u64;
        self.bytes_in = sum as u32;
        if sum >> 32 != 0 {
            self.cold().carried[0] += (sum >> 32) as u32;
        }
    }

    pub fn count_out(&mut self, bytes: usize) {
        let sum = u64::from(self.bytes_out) + bytes as u64;
        self.bytes_out = sum as u32;
        if sum >> 32 != 0 {
            self.cold().carried[1] += (sum >> 32) as u32;
        }
    }

    /// Bytes that came and went.
    pub fn bytes_in_out(&self) -> (u64, u64) {
        let [carried_in, carried_out] = self.cold.as_ref().map_or([0; 2], |c| c.carried);
        (
            u64::from(carried_in) << 32 | u64::from(self.bytes_in),
            u64::from(carried_out) << 32 | u64::from(self.bytes_out),
        )
    }

    /// Goes on with what another process has counted.
    pub fn resume_bytes(&mut self, came: u64, went: u64) {
        (self.bytes_in, self.bytes_out) = (came as u32, went as u32);
        let carried = [(came >> 32) as u32, (went >> 32) as u32];
        if carried != [0; 2] {
            self.cold().carried = carried;
        }
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

/// What a removed connection was.
#[derive(Debug)]
pub struct Removed {
    pub conn: Conn,
    pub user: String,
    pub device: String,
    pub peer: SocketAddr,
}

/// Slots of a chunk: 16 KiB.
const CHUNK: usize = 256;

/// The table.
#[derive(Debug, Default)]
pub struct Slots {
    chunks: Vec<Option<Box<[Conn]>>>,
    chunks_held: usize,
    used: usize,
    texts: Texts,
}

impl Slots {
    /// Slots in use.
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Heap bytes of the table.
    pub const fn bytes(&self) -> usize {
        self.chunks_held * CHUNK * size_of::<Conn>()
            + self.chunks.capacity() * size_of::<Option<Box<[Conn]>>>()
    }

    /// Heap bytes of ids, and of the addresses that are no IPv4 ones.
    pub const fn texts_bytes(&self) -> usize {
        self.texts.bytes()
    }

    /// Ids, and addresses that are no IPv4 ones, that are in use.
    pub fn texts_kept(&self) -> usize {
        self.texts.kept()
    }

    /// Bytes that the ids of one session take.
    pub const fn identity_bytes(user: usize, device: usize) -> usize {
        Texts::bytes_of(LENGTHS + user + device)
    }

    /// Takes the slot of `id` for a connection just accepted. The driver reuses a slot only after
    /// its close was told.
    pub fn insert(
        &mut self,
        id: ConnId,
        transport: Transport,
        peer: SocketAddr,
        tick: u32,
    ) -> &mut Conn {
        let mut conn = Conn::new(id, transport, tick);
        conn.port = peer.port();
        match peer.ip().to_canonical() {
            IpAddr::V4(v4) => conn.address = v4.to_bits(),
            IpAddr::V6(v6) => {
                let octets = v6.octets();
                let text = self
                    .texts
                    .insert(octets.len(), |to| to.copy_from_slice(&octets));
                conn.address = text.bits();
                conn.set(flag::ADDRESS_V6);
            }
        }
        let chunk = id.slot as usize / CHUNK;
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk = self.chunks[chunk].get_or_insert_with(|| {
            self.chunks_held += 1;
            (0..CHUNK).map(|_| Conn::default()).collect()
        });
        let slot = &mut chunk[id.slot as usize % CHUNK];
        debug_assert_eq!(slot.state, State::Free);
        *slot = conn;
        self.used += 1;
        slot
    }

    /// The connection, unless `id` is stale.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.at_mut(id.slot)?;
        (conn.generation == id.generation).then_some(conn)
    }

    /// The connection, unless `id` is stale.
    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        let chunk = self.chunks.get(id.slot as usize / CHUNK)?.as_ref()?;
        let conn = &chunk[id.slot as usize % CHUNK];
        (conn.state != State::Free && conn.generation == id.generation).then_some(conn)
    }

    /// Whoever has the slot.
    pub fn at_mut(&mut self, slot: u32) -> Option<&mut Conn> {
        let chunk = self.chunks.get_mut(slot as usize / CHUNK)?.as_mut()?;
        let conn = &mut chunk[slot as usize % CHUNK];
        (conn.state != State::Free).then_some(conn)
    }

    /// User id and device id: empty until a token was accepted, or until `connect`.
    pub fn identity(&self, id: ConnId) -> (&str, &str) {
        self.get(id).map_or(("", ""), |conn| self.identity_of(conn))
    }

    fn identity_of(&self, conn: &Conn) -> (&str, &str) {
        let [user_len, device_len, ids @ ..] = self.texts.get(conn.identity) else {
            return ("", "");
        };
        let (user, rest) = ids.split_at(usize::from(*user_len));
        let device = &rest[..usize::from(*device_len)];
        // Checked when they were set.
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
        (text(user), text(device))
    }

    /// Both ids are checked ones: at most 64 bytes each.
    pub fn set_identity(&mut self, id: ConnId, user: &str, device: &str) {
        let Some(before) = self.get(id).map(|conn| conn.identity) else {
            return;
        };
        self.texts.remove(before);
        let length = LENGTHS + user.len() + device.len();
        let identity = self.texts.insert(length, |to| {
            to[0] = user.len() as u8;
            to[1] = device.len() as u8;
            let (to_user, to_device) = to[LENGTHS..].split_at_mut(user.len());
            to_user.copy_from_slice(user.as_bytes());
            to_device.copy_from_slice(device.as_bytes());
        });
        if let Some(conn) = self.get_mut(id) {
            conn.identity = identity;
        }
    }

    /// Where the peer is.
    pub fn peer(&self, id: ConnId) -> Option<SocketAddr> {
        self.get(id).map(|conn| self.peer_of(conn))
    }

    fn peer_of(&self, conn: &Conn) -> SocketAddr {
        let address = if conn.has(flag::ADDRESS_V6) {
            let octets = self.texts.get(Text::from_bits(conn.address));
            let octets = octets.first_chunk::<16>().copied().unwrap_or_default();
            IpAddr::V6(Ipv6Addr::from(octets))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(conn.address))
        };
        SocketAddr::new(address, conn.port)
    }

    /// Frees the slot and hands out what was in it.
    pub fn remove(&mut self, id: ConnId) -> Option<Removed> {
        let conn = std::mem::take(self.get_mut(id)?);
        self.used -= 1;
        let (user, device) = self.identity_of(&conn);
        let (user, device) = (user.to_owned(), device.to_owned());
        let peer = self.peer_of(&conn);
        self.texts.remove(conn.identity);
        if conn.has(flag::ADDRESS_V6) {
            self.texts.remove(Text::from_bits(conn.address));
        }
        Some(Removed {
            conn,
            user,
            device,
            peer,
        })
    }

    /// Who has the first slot from `from` on that is in use.
    pub fn next_used(&self, from: u32) -> Option<ConnId> {
        let mut slot = from as usize;
        while let Some(chunk) = self.chunks.get(slot / CHUNK) {
            if let Some(chunk) = chunk {
                let rest = &chunk[slot % CHUNK..];
                if let Some(at) = rest.iter().position(|conn| conn.state != State::Free) {
                    return Some(ConnId {
                        slot: (slot + at) as u32,
                        generation: rest[at].generation,
                    });
                }
            }
            slot = (slot / CHUNK + 1) * CHUNK;
        }
        None
    }
}

/// Bytes before the ids that say how long they are.
const LENGTHS: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    fn insert(slots: &mut Slots, id: ConnId, peer: &str) {
        slots.insert(id, Transport::Tcp, peer.parse().unwrap(), 5);
    }

    const PEER: &str = "192.0.2.7:4000";

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut slots = Slots::default();
        insert(&mut slots, id(3_000, 7), PEER);
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
    fn slots_with_gaps_take_no_memory_for_the_gaps() {
        let mut slots = Slots::default();
        for ring in 0..50 {
            insert(&mut slots, id(ring * 20_000, 1), PEER);
        }
        assert!(slots.bytes() < 50 * 20_000, "{} bytes", slots.bytes());
        let mut found = 0;
        let mut from = 0;
        while let Some(next) = slots.next_used(from) {
            assert_eq!(next.slot, found * 20_000);
            found += 1;
            from = next.slot + 1;
        }
        assert_eq!(found, 50);
    }

    #[test]
    fn identity_and_peer_are_kept_whole_and_let_go() {
        let mut slots = Slots::default();
        for peer in [PEER, "[2001:db8::7]:4000"] {
            for round in 0..1_000 {
                let id = id(0, round);
                insert(&mut slots, id, peer);
                assert_eq!(slots.identity(id), ("", ""));
                slots.set_identity(id, "alice", "");
                assert_eq!(slots.identity(id), ("alice", ""));
                slots.set_identity(id, "alice", "phone");
                assert_eq!(slots.identity(id), ("alice", "phone"));
                assert_eq!(slots.peer(id).unwrap().to_string(), peer);
                let removed = slots.remove(id).unwrap();
                assert_eq!((&*removed.user, &*removed.device), ("alice", "phone"));
                assert_eq!(removed.peer.to_string(), peer);
            }
        }
        assert_eq!(slots.texts_kept(), 0);
        // A page for each of the three lengths that were kept.
        assert_eq!(slots.texts_bytes(), 3 * 16_384);
        let (longest, id) = ("x".repeat(64), id(9, 1));
        insert(&mut slots, id, PEER);
        slots.set_identity(id, &longest, &longest);
        assert_eq!(slots.identity(id), (&*longest, &*longest));
    }

    #[test]
    fn bytes_are_counted_beyond_four_gigabytes() {
        let mut slots = Slots::default();
        insert(&mut slots, id(0, 1), PEER);
        let conn = slots.get_mut(id(0, 1)).unwrap();
        for _ in 0..9 {
            conn.count_in(1 << 30);
            conn.count_out(3 << 30);
        }
        assert_eq!(conn.bytes_in_out(), (9 << 30, 27 << 30));
        conn.tidy();
        assert_eq!(conn.bytes_in_out(), (9 << 30, 27 << 30));
    }

    #[test]
    fn deadline_and_limiter_do_not_meet() {
        let mut slots = Slots::default();
        insert(&mut slots, id(0, 1), PEER);
        let conn = slots.get_mut(id(0, 1)).unwrap();
        let rate = Rate::new(1, 2);
        conn.set_deadline(u32::MAX);
        conn.enter(State::Registering);
        assert_eq!(conn.deadline(), u32::MAX);
        conn.enter(State::Live);
        assert_eq!(conn.deadline(), 0);
        assert!(conn.take_send(rate, 5_000).is_ok() && conn.take_send(rate, 5_000).is_ok());
        assert!(conn.take_send(rate, 5_000).is_err());
        conn.set_deadline(9);
        assert!(
            conn.take_send(rate, 5_000).is_err(),
            "no send for a deadline"
        );
        conn.rest_sends(rate, 60_000_000_000);
        assert!(conn.take_send(rate, 60_000_000_000).is_ok());
        conn.enter(State::Closing);
        assert_eq!(conn.deadline(), 0);
        conn.set_deadline(99);
        assert_eq!(conn.deadline(), 99);
    }

    #[test]
    fn the_box_goes_with_its_last_content() {
        let mut slots = Slots::default();
        insert(&mut slots, id(0, 1), PEER);
        let conn = slots.get_mut(id(0, 1)).unwrap();
        conn.cold().connect_id = "7".into();
        conn.tidy();
        assert!(conn.cold.is_some());
        conn.cold().connect_id.clear();
        conn.tidy();
        assert!(conn.cold.is_none());
        // A decoder between frames is nothing worth keeping.
        let codec = conn.take_codec();
        conn.put_codec(codec);
        assert!(conn.cold.is_none());
    }
}
