//! What ownership has done since the start, for the metrics. Written by the driver.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::held::BootClock;

/// Counters and gauges of one core.
pub struct OwnershipStats {
    clock: Arc<dyn BootClock>,
    pub(super) held: AtomicU64,
    /// 0: no lease.
    pub(super) valid_until_ns: AtomicU64,
    pub(super) gains: AtomicU64,
    pub(super) take_overs: AtomicU64,
    pub(super) hand_overs: AtomicU64,
    pub(super) losses: AtomicU64,
    pub(super) lapses: AtomicU64,
    pub(super) catch_ups: AtomicU64,
    pub(super) renewals: AtomicU64,
    pub(super) statements: AtomicU64,
    pub(super) statements_unanswered: AtomicU64,
}

/// The figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnershipFigures {
    /// Partitions held; 0 without a valid lease.
    pub held: u64,
    /// How long the lease is still good, without another renewal.
    pub lease_left_ms: u64,
    /// Partitions that came, from whomever.
    pub gains: u64,
    /// Of these, from a core that died.
    pub take_overs: u64,
    /// Partitions that went to another core as they should.
    pub hand_overs: u64,
    /// Partitions that others took because they had declared this core dead.
    pub losses: u64,
    pub lapses: u64,
    /// Journals of earlier owners that were asked to be read, by partition.
    pub catch_ups: u64,
    pub renewals: u64,
    pub statements: u64,
    /// Of these, without an answer in time.
    pub statements_unanswered: u64,
}

impl OwnershipStats {
    pub(crate) const fn new(clock: Arc<dyn BootClock>) -> Self {
        Self {
            clock,
            held: AtomicU64::new(0),
            valid_until_ns: AtomicU64::new(0),
            gains: AtomicU64::new(0),
            take_overs: AtomicU64::new(0),
            hand_overs: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            lapses: AtomicU64::new(0),
            catch_ups: AtomicU64::new(0),
            renewals: AtomicU64::new(0),
            statements: AtomicU64::new(0),
            statements_unanswered: AtomicU64::new(0),
        }
    }

    /// The figures as they stand.
    pub fn figures(&self) -> OwnershipFigures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let left_ns = get(&self.valid_until_ns).saturating_sub(self.clock.now_ns());
        OwnershipFigures {
            held: if left_ns > 0 { get(&self.held) } else { 0 },
            lease_left_ms: left_ns / 1_000_000,
            gains: get(&self.gains),
            take_overs: get(&self.take_overs),
            hand_overs: get(&self.hand_overs),
            losses: get(&self.losses),
            lapses: get(&self.lapses),
            catch_ups: get(&self.catch_ups),
            renewals: get(&self.renewals),
            statements: get(&self.statements),
            statements_unanswered: get(&self.statements_unanswered),
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Debug for OwnershipStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.figures().fmt(f)
    }
}
