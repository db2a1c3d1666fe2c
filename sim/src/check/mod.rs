//! The checker: looks at everything that crosses a boundary, and draws no randomness.

pub mod clients;
pub mod core;
pub mod truth;

use clients::ClientCheck;
use core::CoreCheck;
use trunkline_core::store::WriteBatch;
use truth::{Truth, Verdict};

/// Violations kept; the first is the one to look at.
const VIOLATIONS_MAX: usize = 8;

/// All that is known, and what was broken.
#[derive(Debug, Default)]
pub struct Checker {
    pub truth: Truth,
    pub clients: ClientCheck,
    /// Of the present core process.
    pub core: CoreCheck,
    pub violations: Vec<String>,
}

impl Checker {
    /// Notes a verdict.
    pub fn judge(&mut self, at_ns: u64, verdict: Verdict) {
        if let Err(what) = verdict
            && self.violations.len() < VIOLATIONS_MAX
        {
            self.violations
                .push(format!("at {} ms: {what}", at_ns / 1_000_000));
        }
    }

    /// A batch got to stable storage.
    pub fn durable(&mut self, at_ns: u64, batch: &WriteBatch) {
        let mut messages = batch.conversations.iter().flat_map(|c| &c.messages);
        let sent = messages.try_for_each(|m| self.clients.was_sent(m));
        let verdict = sent.and_then(|()| self.truth.committed(batch));
        self.judge(at_ns, verdict);
    }
}
