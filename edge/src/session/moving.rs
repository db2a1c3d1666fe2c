//! Connections on their way from one process to the next: everything that a slot knows, and a slot
//! made of it again. The driver's share of [`state::Connection`] is filled in by the loop.
//!
//! Invariants:
//! 1. Times are carried relative to the moment, so that the clocks of the two processes need not
//!    agree: ages, and what is left of deadlines.
//! 2. Of what was under way to the core only that it was is carried: its outcome is unknown, and the
//!    successor tells the client so.
//! 3. The new slot has a handle of its own, which the core hears when all sessions are announced.

use std::collections::VecDeque;
use std::net::SocketAddr;

use prost::Message as _;
use trunkline_proto::client::ClientFrame;
use trunkline_proto::codes::Close;
use trunkline_proto::limits::ID_BYTES_MAX;

use super::outbox::Outbox;
use super::slots::{Codec, flag};
use super::{End, Shard, State, Transport};
use crate::frame::encode_once::Encoding;
use crate::frame::{tcp, ws};
use crate::handover::state::{self, BadState};
use crate::observe::counters::Number;
use crate::ring::ConnId;

/// [`state::Connection::end`] of a connection that this side closes: this and its close code.
const ENDS_OURS: u32 = 1_000;

impl Shard {
    /// The connections in order of their slots, from `from` on.
    pub(crate) fn next_connection(&self, from: u32) -> Option<ConnId> {
        self.slots.next_used(from)
    }

    /// All that is known of a connection. After a turn has ended, so that nothing waits to be sent.
    pub(crate) fn depart(&self, id: ConnId) -> Option<state::Connection> {
        let conn = self.slots.get(id)?;
        let (mut ws, mut tcp) = (None, None);
        match conn.kept_codec() {
            Codec::None => {}
            Codec::Ws(decoder) => ws = Some(decoder.carried()?),
            Codec::Tcp(decoder) => tcp = Some(decoder.carried()),
        }
        let cold = conn.cold.as_deref();
        let (user, device) = self.slots.identity(id);
        let (bytes_in, bytes_out) = conn.bytes_in_out();
        let deadline = conn.deadline();
        let under_way =
            conn.sends_under_way > 0 || conn.syncs_under_way > 0 || conn.fetches_under_way > 0;
        Some(state::Connection {
            encoding: number_of(conn.encoding),
            state: conn.state as u32,
            end: end_number(conn.end),
            peer: self.slots.peer(id)?.to_string(),
            user: user.to_owned(),
            device: device.to_owned(),
            age_ms: self.ms_since(conn.accepted_at),
            silent_ms: self.ms_since(conn.last_seen),
            deadline_in_ms: (deadline != 0).then(|| self.ms_to(deadline)),
            expires_at: conn.expires_at,
            sends_ahead_ns: conn.sends_ahead_ns(self.send_rate, self.now.mono_ns),
            bytes_in,
            bytes_out,
            refused: conn.refused.into(),
            probed: conn.has(flag::PROBED),
            fin_wanted: conn.has(flag::FIN),
            fin_sent: conn.has(flag::FIN_SENT),
            under_way,
            ws,
            tcp,
            head: cold.map(|c| c.head.clone()).unwrap_or_default(),
            early: cold
                .map(|c| c.queue.iter().map(ClientFrame::encode_to_vec).collect())
                .unwrap_or_default(),
            connect_id: cold.map(|c| c.connect_id.clone()).unwrap_or_default(),
            outbox: cold.and_then(|c| c.outbox.as_ref()).map(Outbox::carried),
            ..state::Connection::default()
        })
    }

    /// Takes in a connection of another process, for which the driver holds a tail of `unsent` bytes.
    pub(crate) fn arrive(
        &mut self,
        id: ConnId,
        carried: state::Connection,
        unsent: usize,
    ) -> Result<(), BadState> {
        let parts = Parts::of(carried, unsent)?;
        let under_way = parts.rest.under_way;
        let (state, transport) = (parts.state, parts.transport);
        // The clock did not begin with this process, but the wheel did.
        self.expire();
        self.settle_in(id, parts, unsent > 0);
        let counters = &mut self.counters;
        counters.inc(Number::TakenOver);
        if let Some(gauge) = Number::sockets(state, transport) {
            counters.inc(gauge);
        }
        if let Some(conn) = self.slots.get(id) {
            counters.add(Number::OutboxBytes, conn.owed() as u64);
            counters.add(Number::OutboxSockets, u64::from(conn.has(flag::BLOCKED)));
        }
        self.arm(id);
        if under_way && state == State::Live {
            self.unavailable(id);
        }
        Ok(())
    }

    /// Fills the slot of a connection that came.
    fn settle_in(&mut self, id: ConnId, parts: Parts, is_blocked: bool) {
        let accepted_at = self.ticks_ago(parts.rest.age_ms);
        let last_seen = self.ticks_ago(parts.rest.silent_ms);
        let deadline = parts.rest.deadline_in_ms;
        let deadline = deadline.map_or(0, |in_ms| self.ticks_ahead(in_ms));
        let (rate, now_ns) = (self.send_rate, self.now.mono_ns);
        let carried = parts.rest;
        let conn = self
            .slots
            .insert(id, parts.transport, parts.peer, self.tick);
        conn.encoding = parts.encoding;
        conn.state = parts.state;
        conn.end = parts.end;
        conn.accepted_at = accepted_at;
        conn.last_seen = last_seen;
        conn.set_deadline(deadline);
        conn.resume_sends(rate, now_ns, carried.sends_ahead_ns);
        conn.resume_bytes(carried.bytes_in, carried.bytes_out);
        conn.put_codec(parts.codec);
        conn.expires_at = carried.expires_at;
        conn.refused = u8::try_from(carried.refused).unwrap_or(u8::MAX);
        for (is_set, bit) in [
            (carried.probed, flag::PROBED),
            (carried.fin_wanted, flag::FIN),
            (carried.fin_sent, flag::FIN_SENT),
            (is_blocked, flag::BLOCKED),
        ] {
            if is_set {
                conn.set(bit);
            }
        }
        if !carried.head.is_empty() {
            conn.cold().head = carried.head;
        }
        if !parts.early.is_empty() {
            let cold = conn.cold();
            cold.queue = parts.early;
            cold.queue_bytes = parts.early_bytes;
        }
        if !carried.connect_id.is_empty() {
            conn.cold().connect_id = carried.connect_id;
        }
        if parts.outbox.is_some() {
            conn.cold().outbox = parts.outbox;
        }
        if !carried.user.is_empty() {
            self.slots.set_identity(id, &carried.user, &carried.device);
        }
    }

    /// Whether the core knows of all sessions.
    pub(crate) fn all_announced(&self) -> bool {
        self.uplink.is_up() && self.uplink.announce_from.is_none() && self.uplink.backlog() == 0
    }

    /// ms until `tick`; 0 if it is over.
    fn ms_to(&self, tick: u32) -> u64 {
        u64::from(tick.saturating_sub(self.tick)) * (self.tick_ns / 1_000_000)
    }

    /// The tick that was `ms` ago.
    fn ticks_ago(&self, ms: u64) -> u32 {
        let ticks = (ms * 1_000_000).div_ceil(self.tick_ns);
        self.tick
            .saturating_sub(u32::try_from(ticks).unwrap_or(u32::MAX))
    }
}

/// What came, checked.
struct Parts {
    encoding: Encoding,
    transport: Transport,
    state: State,
    end: End,
    peer: SocketAddr,
    codec: Codec,
    early: VecDeque<ClientFrame>,
    early_bytes: usize,
    outbox: Option<Outbox>,
    /// All that needs no check.
    rest: state::Connection,
}

impl Parts {
    fn of(mut carried: state::Connection, unsent: usize) -> Result<Self, BadState> {
        let encoding = encoding_of(carried.encoding).ok_or(BadState("an unknown encoding"))?;
        let peer = carried.peer.parse();
        let state = State::SHOWN
            .into_iter()
            .find(|state| *state as u32 == carried.state);
        let transport = match encoding {
            Encoding::ProtoTcp => Transport::Tcp,
            Encoding::JsonWs | Encoding::ProtoWs => Transport::WebSocket,
        };
        let codec = match (carried.ws.take(), carried.tcp.take(), transport) {
            (None, None, _) => Codec::None,
            (Some(ws), None, Transport::WebSocket) => Codec::Ws(ws::Decoder::resumed(ws)?),
            (None, Some(tcp), Transport::Tcp) => Codec::Tcp(tcp::Decoder::resumed(tcp)?),
            _ => return Err(BadState("a decoder of another transport")),
        };
        if carried.user.len().max(carried.device.len()) > ID_BYTES_MAX {
            return Err(BadState("an id that is too long"));
        }
        let early_bytes = carried.early.iter().map(Vec::len).sum();
        let early: Result<VecDeque<_>, _> = std::mem::take(&mut carried.early)
            .iter()
            .map(|bytes| ClientFrame::decode(&bytes[..]))
            .collect();
        let outbox = match carried.outbox.take() {
            None if unsent == 0 => None,
            outbox => Some(Outbox::resumed(outbox.unwrap_or_default(), unsent)?),
        };
        Ok(Self {
            encoding,
            transport,
            state: state.ok_or(BadState("an unknown state"))?,
            end: end_of(carried.end).ok_or(BadState("an unknown end"))?,
            peer: peer.map_err(|_| BadState("an address that is none"))?,
            codec,
            early: early.map_err(|_| BadState("an early frame that is none"))?,
            early_bytes,
            outbox,
            rest: carried,
        })
    }
}

const fn number_of(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::JsonWs => 1,
        Encoding::ProtoWs => 2,
        Encoding::ProtoTcp => 3,
    }
}

const fn encoding_of(number: u32) -> Option<Encoding> {
    Some(match number {
        1 => Encoding::JsonWs,
        2 => Encoding::ProtoWs,
        3 => Encoding::ProtoTcp,
        _ => return None,
    })
}

const fn end_number(end: End) -> u32 {
    match end {
        End::None => 0,
        End::Peer => 1,
        End::Eof => 2,
        End::Error => 3,
        End::Handshake => 4,
        End::Ours(close) => ENDS_OURS + close.code() as u32,
    }
}

fn end_of(number: u32) -> Option<End> {
    Some(match number {
        0 => End::None,
        1 => End::Peer,
        2 => End::Eof,
        3 => End::Error,
        4 => End::Handshake,
        _ => {
            let code = u16::try_from(number.checked_sub(ENDS_OURS)?).ok()?;
            End::Ours(Close::from_code(code)?)
        }
    })
}
