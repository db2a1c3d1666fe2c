//! What the ownership task tells the core's runtime, and what it is told back.
//!
//! # How the runtime follows
//! | event | what the runtime does |
//! |---|---|
//! | [`OwnershipEvent::Entered`] | builds the fenced store and the engine over this [`Held`], with this worker for message ids; serves nothing yet |
//! | [`OwnershipEvent::Gained`] | serves the partition. `Held` says so already when the event is sent |
//! | [`OwnershipEvent::CatchUp`] | repeats the effects of an earlier owner's journal in the background, then answers |
//! | [`OwnershipEvent::Release`] | assigns nothing more in the partition, lets what is under way settle (at most some 200 ms), stores `settled`, forgets its conversations, then answers. What it does not answer in a second is handed over regardless |
//! | [`OwnershipEvent::Lost`] | forgets the partition's conversations at once: nothing of it can be committed any more |
//! | [`OwnershipEvent::Lapsed`] | drops engine, store and caches; answers `unavailable` until the next `Entered` |
//!
//! Invariants:
//! 1. `Held` is ahead of events that take away, and no later than events that give: whoever asks it
//!    after a write returned is right, whether or not the event has been handled.
//! 2. Between `Entered` and the next `Entered` all events are of one incarnation.
//! 3. The queue of events ends when the task has ended, and not before everything is let go.
//!
//! The queue has no bound of its own: there are at most three events for each partition that changes
//! its owner, and one for each incarnation that its journal is to be read of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::held::Held;
use super::machine::Worker;

/// See the module.
#[derive(Debug)]
pub enum OwnershipEvent {
    Entered {
        held: Arc<Held>,
        ids: Arc<MessageIds>,
    },
    Gained {
        partition: u16,
        epoch: u64,
    },
    /// Dropping the answer asks for it again after a while.
    CatchUp {
        partition: u16,
        epoch: u64,
        incarnation: Uuid,
        done: oneshot::Sender<()>,
    },
    /// Dropping the answer equals [`Settled::Partly`].
    Release {
        partition: u16,
        epoch: u64,
        settled: oneshot::Sender<Settled>,
    },
    Lost {
        partition: u16,
        epoch: u64,
    },
    Lapsed,
}

/// How far a partition got that is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Everything that was committed has had all its effects, durably: pushes, inboxes, the bus.
    Entirely,
    /// The next owner has to read this incarnation's journal.
    Partly,
}

/// From which worker, and within which times, message ids are made.
#[derive(Debug)]
pub struct MessageIds {
    worker_id: u16,
    from_ms: u64,
    below_ms: AtomicU64,
}

impl MessageIds {
    pub(super) const fn new(worker: Worker) -> Self {
        Self {
            worker_id: worker.id,
            from_ms: worker.ids_from_ms,
            below_ms: AtomicU64::new(worker.ids_below_ms),
        }
    }

    pub const fn worker_id(&self) -> u16 {
        self.worker_id
    }

    /// Ids are of this time, ms since the Unix epoch, or later: this worker's earlier ids are not.
    pub const fn from_ms(&self) -> u64 {
        self.from_ms
    }

    /// The time to make an id at: `wall_ms` within the bounds that the next holder of the worker
    /// knows of. A clock that jumps ahead thus leaves no ids that another may give again.
    pub fn clamp(&self, wall_ms: u64) -> u64 {
        let below = self.below_ms.load(Ordering::Relaxed);
        wall_ms.max(self.from_ms).min(below.saturating_sub(1))
    }

    pub(super) fn renewed(&self, below_ms: u64) {
        self.below_ms.fetch_max(below_ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_ids_stay_between_the_floors_of_this_holder_and_the_next() {
        let ids = MessageIds::new(Worker {
            id: 3,
            ids_from_ms: 1_000,
            ids_below_ms: 5_000,
        });
        assert_eq!(ids.clamp(10), 1_000);
        assert_eq!(ids.clamp(4_000), 4_000);
        assert_eq!(ids.clamp(9_000), 4_999);
        ids.renewed(10_000);
        ids.renewed(7_000);
        assert_eq!(ids.clamp(9_000), 9_000);
    }
}
