//! Sending everybody elsewhere: every session is told once, in slices, to reconnect after a delay of
//! its own; it stays good until its client leaves or the budget ends.
//!
//! The first quarter of the budget goes to the telling, the delays reach over its half, and the last
//! quarter is for those who are late. Connections that are no session yet are told nothing: their
//! own deadlines, or the end of the budget, end them.

use trunkline_proto::client::{Reconnect, ServerBody, ServerFrame};
use trunkline_proto::codes::Close;

use super::slots::flag;
use super::{End, Shard, State};
use crate::observe::counters::Number;
use crate::ring::ConnId;

/// Between two slices.
const SLICE_NS: u64 = 50_000_000;
/// Connections closed in one turn at the end of the budget.
const CLOSED_PER_TURN: usize = 1_024;

/// How the draining sessions ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainCounts {
    /// Left by themselves.
    pub clean: u64,
    /// Were closed at the end of the budget.
    pub forced: u64,
}

/// The state of a drain.
#[derive(Debug)]
pub struct Drain {
    ends_ns: u64,
    next_slice_ns: u64,
    /// The slot at which the telling goes on; none: everybody was told.
    tell_from: Option<u32>,
    per_slice: usize,
    delay_ms_max: u64,
    /// The slot at which the closing goes on.
    close_from: u32,
}

impl Drain {
    /// When there is something to do next; none: nothing but the clients' leaving is awaited.
    pub fn next_ns(&self) -> Option<u64> {
        Some(match self.tell_from {
            Some(_) => self.next_slice_ns.min(self.ends_ns),
            None if self.ends_ns == u64::MAX => return None,
            None => self.ends_ns,
        })
    }
}

impl Shard {
    /// New connections are refused from now on, and sessions sent away within `budget_ms`.
    pub fn drain(&mut self, budget_ms: u64) {
        if self.drain.is_some() {
            return;
        }
        let now = self.now.mono_ns;
        let budget_ns = budget_ms.saturating_mul(1_000_000);
        let slices = (budget_ns / 4 / SLICE_NS).max(1);
        let sessions = self.slots.used() as u64;
        self.drain = Some(Drain {
            ends_ns: now.saturating_add(budget_ns),
            next_slice_ns: now,
            tell_from: Some(0),
            per_slice: sessions.div_ceil(slices).max(1) as usize,
            delay_ms_max: budget_ms / 2,
            close_from: 0,
        });
    }

    /// Closes every connection and refuses new ones; no drain that was under way goes on.
    pub fn close_all(&mut self) {
        self.drain = None;
        self.drain(0);
    }

    /// Whether new connections are refused.
    pub const fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Whether a drain has ended: nobody is left.
    pub const fn is_drained(&self) -> bool {
        self.drain.is_some() && self.slots.used() == 0
    }

    /// How sessions have ended since the drain began.
    pub const fn drain_counts(&self) -> DrainCounts {
        DrainCounts {
            clean: self.counters.get(Number::DrainedClean),
            forced: self.counters.get(Number::DrainedForced),
        }
    }

    /// The next slice, if it is due.
    pub(super) fn drain_on(&mut self) {
        let Some(drain) = &mut self.drain else {
            return;
        };
        let now = self.now.mono_ns;
        if now >= drain.ends_ns {
            self.close_rest();
            return;
        }
        let Some(mut from) = drain.tell_from.filter(|_| now >= drain.next_slice_ns) else {
            return;
        };
        drain.next_slice_ns = now + SLICE_NS;
        let per_slice = drain.per_slice;
        let mut told = 0;
        let mut next = None;
        while let Some(id) = self.slots.next_used(from) {
            if told == per_slice {
                next = Some(from);
                break;
            }
            from = id.slot + 1;
            told += usize::from(self.tell_to_leave(id));
        }
        if let Some(drain) = &mut self.drain {
            drain.tell_from = next;
        }
    }

    /// Tells a live session to reconnect, once, if this shard drains.
    pub(super) fn tell_to_leave(&mut self, id: ConnId) -> bool {
        let Some(delay_ms_max) = self.drain.as_ref().map(|d| d.delay_ms_max) else {
            return false;
        };
        let Some(conn) = self.slots.get_mut(id) else {
            return false;
        };
        if conn.state != State::Live || conn.has(flag::TOLD_TO_LEAVE) {
            return false;
        }
        conn.set(flag::TOLD_TO_LEAVE);
        let after_ms = self.jitter.up_to(delay_ms_max);
        let reconnect = Reconnect {
            after_ms: u32::try_from(after_ms).unwrap_or(u32::MAX),
            reason: Close::Draining.reason().to_owned(),
        };
        self.send(id, &ServerFrame::push(ServerBody::Reconnect(reconnect)));
        true
    }

    /// The budget is spent: whoever is still here is closed.
    fn close_rest(&mut self) {
        let mut from = self.drain.as_ref().map_or(0, |d| d.close_from);
        let mut more = false;
        let mut closed = 0;
        while let Some(id) = self.slots.next_used(from) {
            if closed == CLOSED_PER_TURN {
                more = true;
                break;
            }
            from = id.slot + 1;
            closed += 1;
            match self.slots.get(id).map(|conn| conn.state) {
                Some(State::Handshake) => self.drop_now(id, End::Ours(Close::Draining)),
                Some(State::AwaitConnect | State::Registering | State::Live) => {
                    self.finish(id, Close::Draining, None);
                }
                Some(State::Closing | State::Free) | None => {}
            }
        }
        if let Some(drain) = &mut self.drain {
            drain.tell_from = None;
            drain.close_from = from;
            // Everybody has been closed once; what still comes up is refused at the door.
            drain.ends_ns = if more { 0 } else { u64::MAX };
        }
    }

    pub(super) fn count_drained(&mut self, end: End) {
        if self.drain.is_some() {
            self.counters.inc(match end {
                End::Ours(Close::Draining) => Number::DrainedForced,
                _ => Number::DrainedClean,
            });
        }
    }
}
