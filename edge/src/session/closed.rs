//! The last connections that ended, with reasons, for whoever asks why.

use std::collections::VecDeque;
use std::net::SocketAddr;

use serde::Serialize;

/// Ends that a shard remembers.
pub const CLOSED_MAX: usize = 1_024;

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClosedRecord {
    /// ms since the Unix epoch.
    pub at_ms: u64,
    pub user: String,
    pub device: String,
    pub reason: &'static str,
    /// Of the close frame that this side sent; 0: none.
    pub code: u16,
    pub transport: &'static str,
    pub age_ms: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub peer: SocketAddr,
}

/// The ring of the last [`CLOSED_MAX`].
#[derive(Debug, Default)]
pub struct ClosedLog {
    records: VecDeque<ClosedRecord>,
}

impl ClosedLog {
    pub fn push(&mut self, record: ClosedRecord) {
        if self.records.len() == CLOSED_MAX {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// Heap bytes held.
    pub fn bytes(&self) -> usize {
        let ids = |r: &ClosedRecord| r.user.capacity() + r.device.capacity();
        self.records.capacity() * size_of::<ClosedRecord>()
            + self.records.iter().map(ids).sum::<usize>()
    }

    /// Newest first.
    pub fn newest(&self, limit: usize) -> impl Iterator<Item = &ClosedRecord> {
        self.records.iter().rev().take(limit)
    }
}
