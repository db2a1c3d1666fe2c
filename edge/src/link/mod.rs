//! The way to the core and back. Shards hand their operations to a [`CorePort`] once a turn; what
//! the core sends is split by shard in [`router`] and put into the shards' inboxes, one wake
//! for each batch and shard. Whether the core is in this process or behind gRPC shows only in
//! [`manager`], which attaches and attaches anew.
//!
//! Invariants:
//! 1. An attachment has a number. What a shard gets of an earlier one is delivered, but registers
//!    nobody and grants nothing: sessions and credit are counted afresh on each attachment.
//! 2. An inbox gets [`ToShard::LinkUp`] before anything that the core says about a session.
//! 3. The inboxes are bounded by the credit that the edge grants: an operation's credit returns
//!    when a shard has dealt with it.

mod buffers;
pub mod grpc;
pub mod manager;
pub mod rosters;
pub mod router;
pub mod shared;
pub mod uplink;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use trunkline_proto::ports::{CREDIT_INITIAL, CorePort};

use crate::handover::{Held, Order};
use crate::hub::ShardOp;
use crate::ring::Waker;
use crate::session::{ClosedRecord, ConnInfo, State};
use uplink::Credit;

/// What a shard is told by other threads.
pub enum ToShard {
    /// A core is attached.
    LinkUp {
        attachment: u64,
        credit: Arc<Credit>,
        port: Arc<dyn CorePort>,
    },
    /// It is no longer.
    LinkDown { attachment: u64 },
    /// What the core sent.
    Core {
        attachment: u64,
        ops: Vec<ShardOp>,
        /// Credit to return when this is dealt with.
        settles: u32,
    },
    /// Accept and read no more; answered with the listening sockets when that is so.
    Hold { held: Sender<Held> },
    /// Go on as before.
    LetGo,
    /// Do nothing but what is ordered: a successor takes everything over.
    Depart { orders: Receiver<Order> },
    /// Send everybody elsewhere.
    Drain { budget_ms: u64 },
    /// Close everything and end.
    Stop,
    /// Answer a debug page. A dropped sender is an answer too.
    Conns {
        state: Option<State>,
        limit: usize,
        answer: tokio::sync::oneshot::Sender<Vec<ConnInfo>>,
    },
    /// As above, of connections that ended.
    Closed {
        limit: usize,
        answer: tokio::sync::oneshot::Sender<Vec<ClosedRecord>>,
    },
}

/// The way into a shard.
#[derive(Clone)]
pub struct Inbox {
    pub sender: Sender<ToShard>,
    pub waker: Waker,
}

impl Inbox {
    /// Puts `item` in and wakes the shard. A shard that has ended takes no more; nobody waits for it.
    pub fn push(&self, item: ToShard) {
        if self.sender.send(item).is_ok() {
            self.waker.wake();
        }
    }
}

/// Up to when an edge has everything, by the clock of which core process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// The highest `core_time_ms` of a batch that came.
    pub from_ms: u64,
    /// Of the core process that sent this batch. While a core looks for what the sessions of a broken
    /// link may have missed it repeats the time that it was greeted with, which raises nothing: the
    /// time goes on belonging to the process before.
    pub core_incarnation: u64,
}

impl Resume {
    /// A batch of this core process came.
    pub fn told_until(&mut self, core_time_ms: u64, core_incarnation: u64) {
        if core_time_ms > self.from_ms {
            *self = Self {
                from_ms: core_time_ms,
                core_incarnation,
            };
        }
    }
}

/// What the process knows of its link.
#[derive(Debug, Default)]
pub struct LinkState {
    up: AtomicBool,
    resume: Mutex<Resume>,
    credit: Mutex<Option<Arc<Credit>>>,
    /// Rosters of the present attachment, and handles in them.
    rosters: AtomicU64,
    roster_handles: AtomicU64,
}

impl LinkState {
    /// Of a process that goes on where another stood.
    pub fn resuming(resume: Resume) -> Self {
        Self {
            resume: Mutex::new(resume),
            ..Self::default()
        }
    }

    /// Whether the core has something of this edge that it has not answered: its credit is then not
    /// what it was at first.
    pub fn awaits_core(&self) -> bool {
        let credit = self.credit.lock();
        let short = |c: &Arc<Credit>| c.available() < u64::from(CREDIT_INITIAL);
        credit.as_ref().is_some_and(short)
    }

    /// Whether a core is attached.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Where the next attachment resumes.
    pub fn resume(&self) -> Resume {
        *self.resume.lock()
    }

    /// Rosters that the core keeps here, and handles in them.
    pub fn rosters(&self) -> (u64, u64) {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (of(&self.rosters), of(&self.roster_handles))
    }

    fn set_rosters(&self, rosters: usize, handles: usize) {
        self.rosters.store(rosters as u64, Ordering::Relaxed);
        self.roster_handles.store(handles as u64, Ordering::Relaxed);
    }

    /// Operations that may still go up.
    pub fn credit(&self) -> u64 {
        self.credit.lock().as_ref().map_or(0, |c| c.available())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_a_core_only_repeats_stays_that_of_the_core_before() {
        let mut resume = Resume::default();
        resume.told_until(100, 1);
        // The next core looks for what was missed since, and stands still meanwhile.
        for time in [100, 99, 100] {
            resume.told_until(time, 2);
        }
        let told = |from_ms, core_incarnation| Resume {
            from_ms,
            core_incarnation,
        };
        assert_eq!(resume, told(100, 1));
        resume.told_until(101, 2);
        assert_eq!(resume, told(101, 2));
    }
}
