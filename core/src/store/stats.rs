//! What a store has done since it was opened, for the metrics.
//!
//! Counters only rise and are read without a lock: figures of one moment may be off by an operation
//! against one another. Written by the store, read by the runtime's metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one store.
#[derive(Debug, Default)]
pub struct StoreStats {
    commits: AtomicU64,
    failed_commits: AtomicU64,
    commit_nanos: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
    reads: AtomicU64,
    messages_read: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreFigures {
    /// Batches committed.
    pub commits: u64,
    /// Batches that were not, or of which it is not known.
    pub failed_commits: u64,
    /// Sum of the time that committed batches took, stable storage included.
    pub commit_time: Duration,
    /// Messages in committed batches.
    pub messages: u64,
    /// Keys and rows of committed batches, before any overhead of the store's files.
    pub bytes: u64,
    /// Loads, reads and index look-ups.
    pub reads: u64,
    /// Messages that these returned.
    pub messages_read: u64,
}

impl StoreStats {
    /// The counters as they stand.
    pub fn figures(&self) -> StoreFigures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreFigures {
            commits: get(&self.commits),
            failed_commits: get(&self.failed_commits),
            commit_time: Duration::from_nanos(get(&self.commit_nanos)),
            messages: get(&self.messages),
            bytes: get(&self.bytes),
            reads: get(&self.reads),
            messages_read: get(&self.messages_read),
        }
    }

    pub(super) fn committed(&self, messages: u64, bytes: u64, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn commit_failed(&self) {
        self.failed_commits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self, messages: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.messages_read
            .fetch_add(messages as u64, Ordering::Relaxed);
    }
}
