//! Sessions: what each connection may do, as one pure state machine for each shard. `(state, input,
//! now) → actions`: no socket, no clock, no randomness but a seeded generator for jitter, so the
//! same code runs on the kernel and in a simulator's virtual time. The real loop around it is
//! [`crate::shard`].
//!
//! A turn is: [`Shard::begin`] with the time, any number of inputs, [`Shard::end_turn`]. What is to
//! be sent is gathered for each connection and leaves once, at the end.
//!
//! # Layout
//! - `slots`: the table of connections, a cache line each; `texts`: their ids
//! - `opening`: accept, HTTP upgrade, `connect`, registration
//! - `incoming`: bytes to frames to operations of the core
//! - `closing`: every way in which a connection ends; `closed`: the last ones, with reasons
//! - `clock`: deadlines, heartbeats, the end of tokens
//! - `draining`: sending everybody elsewhere
//! - `moving`: connections from and to another process
//! - `outbox`: what a slow socket is owed; `turns`: what a turn brings for each socket, in the
//!   memory of an `arena`
//! - `addresses`: how often an address may connect
//! - [`crate::hub`]: deliveries of the core
//!
//! # Invariants
//! 1. A connection walks through [`State`] forwards only, and every state but `Live` has a deadline.
//! 2. The core hears `opened` before a session's first frame and `closed` after its last, on each
//!    attachment.
//! 3. Every client frame of a live session is answered here or goes up, once, in order.
//! 4. A connection costs its slot, its ids and four bytes in the timer wheel; all else is there
//!    only while it is used.

mod addresses;
mod arena;
mod clock;
mod closed;
mod closing;
mod draining;
mod incoming;
mod moving;
mod opening;
mod outbox;
mod settings;
mod slots;
mod texts;
mod turns;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use trunkline_identity::Verifier;
use trunkline_proto::client::ServerFrame;
use trunkline_proto::gcra::Rate;
use trunkline_proto::link::{EdgeOp, SessionOpened};
use trunkline_proto::ports::Handle;

pub use addresses::ADDRESSES_MAX;
pub use closed::{CLOSED_MAX, ClosedRecord};
pub use draining::DrainCounts;
pub use outbox::{Bounds, Class, classify};
pub use settings::Settings;
pub(crate) use slots::flag;
pub use slots::{End, State, Transport};

use crate::frame::encode_once::{Encoding, encode};
use crate::link::uplink::{Credit, Uplink};
use crate::observe::counters::{Counters, Number};
use crate::ring::{ConnId, DriverMemory};
use crate::timers::Wheel;
use addresses::Addresses;
use closed::ClosedLog;
use draining::Drain;
use outbox::{Dropped, Full, Outbox};
use slots::{Conn, Slots};
use turns::Turns;

/// Sessions announced to a new core in one turn.
const ANNOUNCED_PER_TURN: usize = 1_024;
/// Bytes that the buffer for encoding keeps from one turn to the next.
const SCRATCH_KEPT_BYTES: usize = 16 * 1024;
/// The address of a peer that nobody knows.
const UNKNOWN_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// Connections looked at for one debug page: what lies beyond is left out.
const LISTED_FROM_MAX: usize = 65_536;

/// The time, as the loop read it at the turn's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, ns since the shard's start.
    pub mono_ns: u64,
    /// ms since the Unix epoch; may jump.
    pub unix_ms: u64,
}

/// What a turn wants done: sends first, then shutdowns, then closes.
#[derive(Debug, Default)]
pub struct Actions {
    /// At most one for each connection.
    pub sends: Vec<(ConnId, Bytes)>,
    pub shutdowns: Vec<ConnId>,
    pub closes: Vec<ConnId>,
    /// For the core, in order.
    pub ops: Vec<EdgeOp>,
    /// Operations of the core dealt with: the credit to grant.
    pub settled: u32,
}

impl Actions {
    /// Whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.sends.is_empty()
            && self.shutdowns.is_empty()
            && self.closes.is_empty()
            && self.ops.is_empty()
            && self.settled == 0
    }
}

/// A connection on the debug page.
#[derive(Clone, Debug, Serialize)]
pub struct ConnInfo {
    pub state: &'static str,
    pub transport: &'static str,
    pub encoding: &'static str,
    pub user: String,
    pub device: String,
    pub peer: SocketAddr,
    pub handle: String,
    pub age_ms: u64,
    pub silent_ms: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub owed_bytes: usize,
    pub sends_under_way: u16,
}

/// One shard's connections and everything that is decided about them.
pub struct Shard {
    settings: Settings,
    verifier: Verifier,
    send_rate: Rate,
    now: Now,
    tick: u32,
    tick_ns: u64,
    jitter: Jitter,
    pub(crate) slots: Slots,
    wheel: Wheel,
    due: Vec<(u32, u32)>,
    pub(crate) turns: Turns,
    pub(crate) uplink: Uplink,
    pub(crate) counters: Counters,
    addresses: Addresses,
    closed: ClosedLog,
    drain: Option<Drain>,
    /// Steps towards open sessions that were taken so far: see [`Shard::openings`].
    openings: u64,
    /// FIN behind what leaves in this turn.
    fins: Vec<ConnId>,
    /// To be dropped at the end of this turn.
    drops: Vec<ConnId>,
    scratch: Vec<u8>,
    /// For a client's frame that did not come in protobuf, or not in its plainest form.
    inbound: Vec<u8>,
}

impl Shard {
    /// Bytes of a connection's slot.
    pub const SLOT_BYTES: usize = size_of::<Conn>();
    /// Bytes of its entry in the timer wheel.
    pub const TIMER_BYTES: usize = Wheel::ENTRY_BYTES;

    /// Bytes that the ids of one session take.
    pub const fn identity_bytes(user: usize, device: usize) -> usize {
        Slots::identity_bytes(user, device)
    }

    /// No connections, no core.
    pub fn new(settings: Settings, verifier: Verifier) -> Self {
        let tick_ns = settings.tick_ms() * 1_000_000;
        let address_rate = Rate::new(settings.address_rate, settings.address_burst);
        Self {
            send_rate: Rate::new(settings.send_rate, settings.send_burst),
            now: Now::default(),
            tick: 1,
            tick_ns,
            jitter: Jitter::new(settings.seed),
            slots: Slots::default(),
            wheel: Wheel::new(1),
            due: Vec::new(),
            turns: Turns::default(),
            uplink: Uplink::default(),
            counters: Counters::default(),
            addresses: Addresses::new(address_rate, settings.address_exempt.clone()),
            closed: ClosedLog::default(),
            drain: None,
            openings: 0,
            fins: Vec::new(),
            drops: Vec::new(),
            scratch: Vec::new(),
            inbound: Vec::new(),
            settings,
            verifier,
        }
    }

    /// Connections per second that are let in; 0: no limit.
    pub const fn arrival_rate(&self) -> u32 {
        self.settings.arrival_rate
    }

    /// Events so far that were part of opening a session: arrivals, handshakes, `connect`s, and the
    /// core's answers to these.
    pub const fn openings(&self) -> u64 {
        self.openings
    }

    /// The turn begins at `now`, which never goes back in its monotonic part.
    pub fn begin(&mut self, now: Now) {
        self.now = now;
        let tick = now.mono_ns / self.tick_ns + 1;
        self.tick = u32::try_from(tick).unwrap_or(u32::MAX).max(self.tick);
    }

    /// A core is attached: all sessions are announced, against its credit.
    pub fn link_up(&mut self, credit: Arc<Credit>) {
        if self.uplink.is_up() {
            self.link_down();
        }
        self.uplink.up(credit);
    }

    /// The core is gone. Who has something under way is told that its outcome is unknown.
    pub fn link_down(&mut self) {
        if !self.uplink.is_up() {
            return;
        }
        self.uplink.down();
        self.counters.inc(Number::LinkBreaks);
        let mut from = 0;
        while let Some(id) = self.slots.next_used(from) {
            from = id.slot + 1;
            let Some(conn) = self.slots.get_mut(id) else {
                continue;
            };
            conn.clear(flag::ANNOUNCED);
            let under_way =
                conn.sends_under_way > 0 || conn.syncs_under_way > 0 || conn.fetches_under_way > 0;
            conn.sends_under_way = 0;
            conn.syncs_under_way = 0;
            conn.fetches_under_way = 0;
            if under_way && conn.state == State::Live {
                self.unavailable(id);
            }
        }
    }

    /// Whether sessions can be registered now.
    pub const fn is_link_up(&self) -> bool {
        self.uplink.is_up()
    }

    /// Ends the turn: what it brought about is appended to `actions`.
    pub fn end_turn(&mut self, actions: &mut Actions) {
        self.expire();
        self.drain_on();
        self.announce();
        let (counters, slots) = (&mut self.counters, &mut self.slots);
        self.turns.drain(|id, bytes| {
            let Some(conn) = slots.get_mut(id) else {
                return;
            };
            conn.turn = slots::NO_TURN;
            if !conn.has(flag::DROPPED) && !bytes.is_empty() {
                conn.count_out(bytes.len());
                counters.add(Number::BytesOut, bytes.len() as u64);
                actions.sends.push((id, bytes));
            }
        });
        self.scratch.clear();
        self.scratch.shrink_to(SCRATCH_KEPT_BYTES);
        self.inbound.clear();
        self.inbound.shrink_to(SCRATCH_KEPT_BYTES);
        for id in self.fins.drain(..) {
            if let Some(conn) = self.slots.get_mut(id)
                && !conn.has(flag::BLOCKED | flag::FIN_SENT | flag::DROPPED)
            {
                conn.set(flag::FIN_SENT);
                actions.shutdowns.push(id);
            }
        }
        actions.closes.append(&mut self.drops);
        actions.settled += self.uplink.take(&mut actions.ops);
    }

    /// How long nothing needs to be done if nothing happens; none: for ever.
    pub fn timeout(&self) -> Option<Duration> {
        if !self.turns.is_empty() || self.uplink.can_advance() {
            return Some(Duration::ZERO);
        }
        let tick = self.wheel.next().map(|tick| {
            let at = u64::from(tick - 1).saturating_mul(self.tick_ns);
            at.saturating_sub(self.now.mono_ns)
        });
        let drain = self.drain.as_ref().and_then(Drain::next_ns);
        let drain = drain.map(|at| at.saturating_sub(self.now.mono_ns));
        tick.into_iter()
            .chain(drain)
            .min()
            .map(Duration::from_nanos)
    }

    /// Notes what the driver takes, for the gauges.
    pub fn note_driver_memory(&mut self, memory: DriverMemory) {
        let counters = &mut self.counters;
        counters.set(Number::MemoryDriverSlots, memory.slots as u64);
        counters.set(Number::MemoryBuffers, memory.buffers as u64);
        counters.set(Number::MemoryQueues, memory.queues as u64);
    }

    /// The numbers, gauges of memory included.
    pub fn counters(&mut self) -> &Counters {
        let counters = &mut self.counters;
        counters.set(Number::LinkBacklog, self.uplink.backlog() as u64);
        counters.set(Number::MemorySlots, self.slots.bytes() as u64);
        counters.set(Number::MemoryIdentities, self.slots.texts_bytes() as u64);
        counters.set(Number::MemoryClosed, self.closed.bytes() as u64);
        counters.set(Number::MemoryTimers, self.wheel.bytes() as u64);
        counters.set(Number::MemoryAddresses, self.addresses.bytes() as u64);
        counters
    }

    /// Connections in any state.
    pub const fn connections(&self) -> usize {
        self.slots.used()
    }

    /// Ids and long addresses that are kept: none once all connections are gone. Walks a list.
    pub fn texts_kept(&self) -> usize {
        self.slots.texts_kept()
    }

    /// The connections with the lowest slots, at most `limit`, of those in `state` if given.
    pub fn list(&self, state: Option<State>, limit: usize) -> Vec<ConnInfo> {
        let mut list = Vec::new();
        let mut from = 0;
        for _ in 0..LISTED_FROM_MAX {
            let Some(id) = self.slots.next_used(from).filter(|_| list.len() < limit) else {
                break;
            };
            from = id.slot + 1;
            if let Some(conn) = self.slots.get(id)
                && state.is_none_or(|s| s == conn.state)
            {
                list.push(self.info(id, conn));
            }
        }
        list
    }

    /// The last connections that ended, newest first.
    pub fn list_closed(&self, limit: usize) -> Vec<ClosedRecord> {
        self.closed.newest(limit).cloned().collect()
    }

    fn info(&self, id: ConnId, conn: &Conn) -> ConnInfo {
        let (user, device) = self.slots.identity(id);
        let (bytes_in, bytes_out) = conn.bytes_in_out();
        ConnInfo {
            state: conn.state.name(),
            transport: conn.transport().name(),
            encoding: match conn.encoding {
                Encoding::JsonWs => "json",
                Encoding::ProtoWs | Encoding::ProtoTcp => "proto",
            },
            user: user.to_owned(),
            device: device.to_owned(),
            peer: self.slots.peer(id).unwrap_or(UNKNOWN_PEER),
            handle: format!("{:016x}", self.handle(id)),
            age_ms: self.ms_since(conn.accepted_at),
            silent_ms: self.ms_since(conn.last_seen),
            bytes_in,
            bytes_out,
            owed_bytes: conn.owed(),
            sends_under_way: conn.sends_under_way,
        }
    }

    fn ms_since(&self, tick: u32) -> u64 {
        u64::from(self.tick.saturating_sub(tick)) * (self.tick_ns / 1_000_000)
    }

    pub(crate) fn handle(&self, id: ConnId) -> u64 {
        Handle {
            shard: self.settings.shard,
            slot: id.slot,
            generation: id.generation,
        }
        .to_u64()
    }

    /// The connection that a handle of this shard names; it may be gone.
    pub(crate) const fn conn_id(handle: u64) -> ConnId {
        let handle = Handle::from_u64(handle);
        ConnId {
            slot: handle.slot,
            generation: handle.generation,
        }
    }

    /// Announces sessions that the present core has not heard of, as credit and turn allow.
    fn announce(&mut self) {
        if !self.uplink.advance() {
            return;
        }
        let Some(mut from) = self.uplink.announce_from else {
            return;
        };
        for _ in 0..ANNOUNCED_PER_TURN {
            let Some(id) = self.slots.next_used(from) else {
                self.uplink.announce_from = None;
                return;
            };
            from = id.slot + 1;
            self.announce_one(id);
            if self.uplink.backlog() > 0 {
                break;
            }
        }
        self.uplink.announce_from = Some(from);
    }

    /// Announces a session unless the core knows of it.
    fn announce_one(&mut self, id: ConnId) {
        let handle = self.handle(id);
        let age_ms = self
            .slots
            .get(id)
            .map_or(0, |conn| self.ms_since(conn.accepted_at));
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        if !conn.is_session() || conn.has(flag::ANNOUNCED) || !self.uplink.is_up() {
            return;
        }
        conn.set(flag::ANNOUNCED);
        let announced_again = conn.state == State::Live;
        let (user, device) = self.slots.identity(id);
        let opened = SessionOpened {
            user_id: user.to_owned(),
            device_id: device.to_owned(),
            announced_again,
            age_ms,
        };
        self.uplink.opened(handle, opened);
    }

    /// Sends a frame of this edge's own.
    pub(crate) fn send(&mut self, id: ConnId, frame: &ServerFrame) {
        let (class, key) = classify(frame);
        self.send_classified(id, frame, class, key);
    }

    /// Sends a frame, or queues it if the socket does not keep up.
    pub(crate) fn send_classified(
        &mut self,
        id: ConnId,
        frame: &ServerFrame,
        class: Class,
        key: u64,
    ) {
        self.send_written(id, class, key, |encoding, out| encode(frame, encoding, out));
    }

    /// As [`Shard::send_classified`], of a frame that `write` writes.
    fn send_written(
        &mut self,
        id: ConnId,
        class: Class,
        key: u64,
        write: impl FnOnce(Encoding, &mut Vec<u8>),
    ) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        self.counters.inc(Number::frame_out(class));
        self.scratch.clear();
        write(conn.encoding, &mut self.scratch);
        if !conn.has(flag::BLOCKED) {
            return self.turns.append(id, conn, &self.scratch);
        }
        let bytes = Bytes::copy_from_slice(&self.scratch);
        self.enqueue(id, bytes, class, key);
    }

    /// Queues a frame for a socket that does not keep up, or closes it if that is too much.
    pub(crate) fn enqueue(&mut self, id: ConnId, bytes: Bytes, class: Class, key: u64) {
        let bounds = self.settings.outbox;
        let pushed = self.with_outbox(id, |outbox| outbox.push(bytes, class, key, bounds));
        match pushed {
            Some(Ok(Dropped {
                typing,
                presence,
                receipts,
            })) => {
                let counters = &mut self.counters;
                counters.add(Number::DroppedTyping, u64::from(typing));
                counters.add(Number::DroppedPresence, u64::from(presence));
                counters.add(Number::DroppedReceipts, u64::from(receipts));
            }
            Some(Err(Full)) => self.close_slow(id),
            None => {}
        }
    }

    /// Sends a WebSocket control frame: it does not wait behind other frames.
    fn send_control(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        self.counters.inc(Number::OutControl);
        self.scratch.clear();
        write(&mut self.scratch);
        if !conn.has(flag::BLOCKED) {
            return self.turns.append(id, conn, &self.scratch);
        }
        let scratch = std::mem::take(&mut self.scratch);
        self.with_outbox(id, |outbox| outbox.push_control(&scratch));
        self.scratch = scratch;
    }

    /// Sends what a connection gets once in its life, whatever the bounds and behind all that it is
    /// owed: the answer to the handshake, the farewell.
    fn send_always(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        self.scratch.clear();
        write(&mut self.scratch);
        if !conn.has(flag::BLOCKED) {
            return self.turns.append(id, conn, &self.scratch);
        }
        let bytes = Bytes::copy_from_slice(&self.scratch);
        self.with_outbox(id, |outbox| outbox.push_always(bytes));
    }

    /// Works on an outbox and keeps the gauge of what is owed.
    fn with_outbox<R>(&mut self, id: ConnId, work: impl FnOnce(&mut Outbox) -> R) -> Option<R> {
        let outbox = self.slots.get_mut(id)?.outbox();
        let before = outbox.owed();
        let result = work(outbox);
        let after = outbox.owed();
        self.counters.add(Number::OutboxBytes, after as u64);
        self.counters.sub(Number::OutboxBytes, before as u64);
        Some(result)
    }

    /// The driver holds `unsent` bytes: what comes for this connection waits.
    pub fn blocked(&mut self, id: ConnId, unsent: usize) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        let pending = self.turns.withdraw(conn);
        if !conn.has(flag::BLOCKED) {
            conn.set(flag::BLOCKED);
            self.counters.inc(Number::OutboxSockets);
        }
        self.with_outbox(id, |outbox| outbox.set_held(unsent));
        if !pending.is_empty() {
            self.enqueue(id, pending, Class::Chat, 0);
        }
    }

    /// The driver's tail is with the kernel: all that waited leaves in this turn.
    pub fn drained(&mut self, id: ConnId) {
        self.unblock(id);
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        if conn.has(flag::FIN) {
            self.fins.push(id);
        }
    }

    /// Ends the waiting: the outbox moves into the turn.
    fn unblock(&mut self, id: ConnId) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        if !conn.has(flag::BLOCKED) {
            return;
        }
        conn.clear(flag::BLOCKED);
        self.counters.sub(Number::OutboxSockets, 1);
        let Some(outbox) = conn.cold().outbox.take() else {
            return;
        };
        conn.tidy();
        self.counters.sub(Number::OutboxBytes, outbox.owed() as u64);
        if !outbox.is_empty() && !conn.has(flag::DROPPED) {
            self.turns.share(id, conn, &outbox.take());
        }
    }
}

/// xorshift64*: a seeded source for jitter, nothing more.
#[derive(Debug)]
struct Jitter(u64);

impl Jitter {
    fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Evenly within `0..=max`.
    fn up_to(&mut self, max: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((u128::from(high) * (u128::from(max) + 1)) >> 32) as u64
    }
}
