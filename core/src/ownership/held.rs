//! What this process holds at this moment: epochs by partition, and the end of the lease.
//!
//! Invariants:
//! 1. The clock is read when the question is asked, not earlier: whoever asks *after* a write
//!    returned learns whether the write was made by an owner.
//! 2. A partition is let go here before anybody else is told that it may have it.
//! 3. A lease that lapsed stays lapsed: no renewal that comes later brings it back.
//!
//! Written by the ownership driver, read by the fenced store and the runtime, without locks.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

/// A clock that goes on while the machine is suspended (CLOCK_BOOTTIME), ns from any origin.
pub trait BootClock: Send + Sync + 'static {
    fn now_ns(&self) -> u64;
}

/// See the module.
pub struct Held {
    incarnation: Uuid,
    clock: Arc<dyn BootClock>,
    /// By partition; 0: not held.
    epochs: Box<[AtomicU64]>,
    valid_until_ns: AtomicU64,
    lapsed: AtomicBool,
}

impl Held {
    /// Of an incarnation that has just entered: valid until `valid_until_ns`, and holds nothing.
    pub fn new(
        incarnation: Uuid,
        partitions: u16,
        clock: Arc<dyn BootClock>,
        valid_until_ns: u64,
    ) -> Self {
        Self {
            incarnation,
            clock,
            epochs: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
            valid_until_ns: AtomicU64::new(valid_until_ns),
            lapsed: AtomicBool::new(false),
        }
    }

    pub const fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    pub fn partitions(&self) -> u16 {
        self.epochs.len() as u16
    }

    /// Whether the lease is valid now. Once it is not, it never is again.
    pub fn is_valid(&self) -> bool {
        if self.lapsed.load(Ordering::SeqCst) {
            return false;
        }
        if self.clock.now_ns() < self.valid_until_ns.load(Ordering::SeqCst) {
            return true;
        }
        self.lapse();
        false
    }

    /// The epoch under which a partition is held now.
    pub fn epoch(&self, partition: u16) -> Option<u64> {
        let epoch = self
            .epochs
            .get(usize::from(partition))?
            .load(Ordering::SeqCst);
        (epoch > 0 && self.is_valid()).then_some(epoch)
    }

    /// Whether a partition is still held under this epoch.
    pub fn holds(&self, partition: u16, epoch: u64) -> bool {
        self.epoch(partition) == Some(epoch)
    }

    /// The lease was renewed: valid until then. Without effect on one that lapsed.
    pub fn renewed(&self, valid_until_ns: u64) {
        self.valid_until_ns
            .fetch_max(valid_until_ns, Ordering::SeqCst);
    }

    /// The lease is over.
    pub fn lapse(&self) {
        self.lapsed.store(true, Ordering::SeqCst);
    }

    /// A partition was taken.
    pub fn took(&self, partition: u16, epoch: u64) {
        if let Some(slot) = self.epochs.get(usize::from(partition)) {
            slot.store(epoch, Ordering::SeqCst);
        }
    }

    /// A partition is no longer held.
    pub fn let_go(&self, partition: u16) {
        self.took(partition, 0);
    }

    /// Partitions held now, with their epochs, ascending.
    pub fn all(&self) -> Vec<(u16, u64)> {
        (0..self.partitions())
            .filter_map(|p| Some((p, self.epoch(p)?)))
            .collect()
    }
}

impl Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("incarnation", &self.incarnation)
            .field("valid", &self.is_valid())
            .field("partitions", &self.all().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct At(AtomicU64);

    impl BootClock for At {
        fn now_ns(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn held(until: u64) -> (Held, Arc<At>) {
        let clock = Arc::new(At(AtomicU64::new(0)));
        (Held::new(Uuid::nil(), 4, clock.clone(), until), clock)
    }

    #[test]
    fn a_partition_is_held_until_it_is_let_go() {
        let (held, _) = held(100);
        assert_eq!(held.epoch(2), None);
        held.took(2, 7);
        assert!(held.holds(2, 7) && !held.holds(2, 6));
        assert_eq!(held.all(), [(2, 7)]);
        held.let_go(2);
        assert_eq!(held.epoch(2), None);
        assert_eq!(held.epoch(4), None, "no such partition");
    }

    #[test]
    fn a_lease_that_lapsed_is_not_brought_back_by_a_late_renewal() {
        let (held, clock) = held(100);
        held.took(0, 1);
        held.renewed(200);
        clock.0.store(199, Ordering::SeqCst);
        assert!(held.holds(0, 1));
        clock.0.store(200, Ordering::SeqCst);
        assert!(!held.holds(0, 1));
        held.renewed(300);
        assert!(!held.is_valid() && held.all().is_empty());
    }

    #[test]
    fn an_older_renewal_does_not_shorten_the_lease() {
        let (held, clock) = held(100);
        held.renewed(50);
        clock.0.store(99, Ordering::SeqCst);
        assert!(held.is_valid());
    }
}
