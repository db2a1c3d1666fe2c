//! Deadlines, heartbeats and the end of tokens, on one coarse wheel with one entry for each
//! connection. Receiving bytes only writes a tick into the slot; the entry looks at it when it comes
//! up.

use trunkline_proto::client::{Pong, ServerBody, ServerFrame};
use trunkline_proto::codes::{Close, Code};
use trunkline_proto::limits::silence_max_ms;

use super::slots::{Conn, flag};
use super::{End, Shard, State, Transport};
use crate::frame::encode;
use crate::observe::counters::Number;
use crate::ring::ConnId;

/// Room for entries that are due that a quiet shard keeps.
const DUE_KEPT: usize = 1_024;

impl Shard {
    /// The tick at which `ms` from now have surely passed.
    pub(super) fn ticks_ahead(&self, ms: u64) -> u32 {
        self.tick.saturating_add(self.ticks(ms))
    }

    fn ticks(&self, ms: u64) -> u32 {
        let ticks = (ms * 1_000_000).div_ceil(self.tick_ns) + 1;
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    /// Sees to it that the wheel brings the connection up by its next deadline.
    pub(super) fn arm(&mut self, id: ConnId) {
        let Some(conn) = self.slots.get(id) else {
            return;
        };
        let due = self.next_due(conn);
        if due != 0 && (conn.timer_at == 0 || due < conn.timer_at) {
            let filed = self.wheel.file(id.slot, due);
            if let Some(conn) = self.slots.get_mut(id) {
                conn.timer_at = filed;
            }
        }
    }

    /// The tick at which something is to be done about the connection; 0: never.
    fn next_due(&self, conn: &Conn) -> u32 {
        if conn.state != State::Live {
            return conn.deadline();
        }
        let silence = if conn.has(flag::PROBED) {
            silence_max_ms(self.settings.heartbeat_ms)
        } else {
            2 * u64::from(self.settings.heartbeat_ms)
        };
        let due = conn.last_seen.saturating_add(self.ticks(silence));
        match conn.expires_at {
            0 => due,
            at => due.min(self.ticks_ahead(self.ms_until(at))),
        }
    }

    fn ms_until(&self, unix_s: u32) -> u64 {
        (u64::from(unix_s) * 1_000).saturating_sub(self.now.unix_ms)
    }

    /// Deals with every connection whose entry has come up.
    pub(super) fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(self.tick, &mut due);
        for (slot, tick) in due.drain(..) {
            let Some(conn) = self.slots.at_mut(slot) else {
                continue;
            };
            if conn.timer_at != tick {
                continue;
            }
            conn.timer_at = 0;
            let generation = conn.generation;
            let id = ConnId { slot, generation };
            self.look_at(id);
            self.arm(id);
        }
        // A crowd that was due at once must not hold on to its room for ever.
        due.shrink_to(DUE_KEPT);
        self.due = due;
    }

    fn look_at(&mut self, id: ConnId) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        let state = conn.state;
        match state {
            State::Free => {}
            State::Live => self.look_at_live(id),
            _ if self.tick < conn.deadline() => {}
            State::Closing => {
                // Once: the driver's answer ends the connection.
                conn.set_deadline(0);
                self.drop_now(id, End::Error);
            }
            State::Handshake | State::AwaitConnect | State::Registering => {
                self.open_overdue(id, state);
            }
        }
    }

    fn look_at_live(&mut self, id: ConnId) {
        let heartbeat_ms = self.settings.heartbeat_ms;
        let probe_after = self.ticks(2 * u64::from(heartbeat_ms));
        let close_after = self.ticks(silence_max_ms(heartbeat_ms));
        let now_s = self.now.unix_ms / 1_000;
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        conn.rest_sends(self.send_rate, self.now.mono_ns);
        if conn.expires_at != 0 && u64::from(conn.expires_at) <= now_s {
            self.unauthorized(id, "", "the token has expired");
            return;
        }
        let silent = self.tick.saturating_sub(conn.last_seen);
        if silent >= close_after && conn.has(flag::PROBED) {
            let error = Code::Unavailable.closing(Close::HeartbeatMissed, "nothing came for long");
            let error = (conn.transport() == Transport::Tcp).then_some(error);
            self.finish(id, Close::HeartbeatMissed, error);
        } else if silent >= probe_after && !conn.has(flag::PROBED) {
            conn.set(flag::PROBED);
            self.probe(id);
        }
    }

    /// Asks a silent peer for a sign of life.
    fn probe(&mut self, id: ConnId) {
        self.counters.inc(Number::Probes);
        match self.slots.get(id).map(|conn| conn.transport()) {
            Some(Transport::WebSocket) => self.send_control(id, |out| encode::ping(out, b"")),
            Some(Transport::Tcp) => {
                let frame = ServerFrame::push(ServerBody::Pong(Pong::default()));
                self.send(id, &frame);
            }
            None => {}
        }
    }
}
