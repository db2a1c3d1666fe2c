//! A shard's side of the link: what goes up, against the core's credit, in order.
//!
//! Invariants:
//! 1. Nothing is sent without credit. Announcements that find none wait in the backlog, which holds
//!    at most an `opened` and a `closed` for each session; a client's frame is refused instead.
//! 2. Nothing overtakes the backlog, so a session's frames never come before its `opened`.
//! 3. What was not yet handed over when the link broke is forgotten: the announcements on the next
//!    link say what there is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use trunkline_proto::link::{EdgeOp, SessionClosed, SessionOpened, edge_op::Op};

use super::buffers::Buffers;

/// Operations that the edge may still send on one attachment; shared by its shards.
#[derive(Debug)]
pub struct Credit {
    available: AtomicU64,
    /// Some shard found none and waits.
    wanted: AtomicBool,
}

impl Credit {
    /// For a new attachment.
    pub fn new(operations: u32) -> Self {
        Self {
            available: AtomicU64::new(u64::from(operations)),
            wanted: AtomicBool::new(false),
        }
    }

    /// Adds what the core granted. True if a shard waits for it and must be woken.
    pub fn grant(&self, operations: u32) -> bool {
        self.available
            .fetch_add(u64::from(operations), Ordering::SeqCst);
        operations > 0 && self.wanted.swap(false, Ordering::SeqCst)
    }

    /// What is left.
    pub fn available(&self) -> u64 {
        self.available.load(Ordering::SeqCst)
    }

    fn take(&self) -> bool {
        let one_less = |available: u64| available.checked_sub(1);
        self.available
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
            .is_ok()
    }

    /// As `take`; on failure the next grant is reported.
    fn take_or_wait(&self) -> bool {
        if self.take() {
            return true;
        }
        self.wanted.store(true, Ordering::SeqCst);
        // A grant may have come in between and have seen nobody wait.
        self.take()
    }
}

/// Why a client's frame cannot go up now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    LinkDown,
    NoCredit,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Uplink {
    credit: Option<Arc<Credit>>,
    /// The slot at which the announcing of sessions goes on.
    pub(crate) announce_from: Option<u32>,
    backlog: VecDeque<EdgeOp>,
    ops: Vec<EdgeOp>,
    settled: u32,
    buffers: Buffers,
}

impl Uplink {
    /// Whether there is a core.
    pub const fn is_up(&self) -> bool {
        self.credit.is_some()
    }

    /// A new attachment: all sessions are to be announced.
    pub fn up(&mut self, credit: Arc<Credit>) {
        *self = Self {
            credit: Some(credit),
            announce_from: Some(0),
            buffers: std::mem::take(&mut self.buffers),
            ..Self::default()
        };
    }

    /// The attachment is over.
    pub fn down(&mut self) {
        *self = Self {
            buffers: std::mem::take(&mut self.buffers),
            ..Self::default()
        };
    }

    /// Takes the credit for one frame of an announced session; [`Uplink::frame`] follows.
    pub fn admit(&mut self, announced: bool) -> Result<(), Refusal> {
        let Some(credit) = &self.credit else {
            return Err(Refusal::LinkDown);
        };
        if !announced {
            return Err(Refusal::LinkDown);
        }
        if !self.backlog.is_empty() || !credit.take() {
            return Err(Refusal::NoCredit);
        }
        Ok(())
    }

    /// A client's frame in protobuf, whose credit was taken.
    pub fn frame(&mut self, handle: u64, bytes: &[u8]) {
        let bytes = self.buffers.copy(bytes);
        self.push(handle, Op::Frame(bytes));
    }

    /// An operation whose credit was taken.
    fn push(&mut self, handle: u64, op: Op) {
        self.ops.push(EdgeOp {
            handle,
            op: Some(op),
        });
    }

    /// Announces a session. Only while the link is up.
    pub fn opened(&mut self, handle: u64, opened: SessionOpened) {
        self.push_or_wait(handle, Op::Opened(opened));
    }

    /// Says that an announced session is over. Only while the link is up.
    pub fn closed(&mut self, handle: u64) {
        self.push_or_wait(handle, Op::Closed(SessionClosed {}));
    }

    fn push_or_wait(&mut self, handle: u64, op: Op) {
        let Some(credit) = &self.credit else {
            return;
        };
        if self.backlog.is_empty() && credit.take_or_wait() {
            self.push(handle, op);
        } else {
            self.backlog.push_back(EdgeOp {
                handle,
                op: Some(op),
            });
        }
    }

    /// Moves on what waited for credit. True when nothing waits any more.
    pub fn advance(&mut self) -> bool {
        let Some(credit) = &self.credit else {
            return true;
        };
        while !self.backlog.is_empty() {
            if !credit.take_or_wait() {
                return false;
            }
            self.ops.extend(self.backlog.pop_front());
        }
        true
    }

    /// Whether there is something to announce and credit for it.
    pub fn can_advance(&self) -> bool {
        let waits = self.announce_from.is_some() || !self.backlog.is_empty();
        waits && self.credit.as_ref().is_some_and(|c| c.available() > 0)
    }

    /// Announcements that wait.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Operations of the core that were dealt with: it may send as many more.
    pub const fn settle(&mut self, operations: u32) {
        self.settled += operations;
    }

    /// What goes up at the end of the turn.
    pub fn take(&mut self, ops: &mut Vec<EdgeOp>) -> u32 {
        ops.append(&mut self.ops);
        std::mem::take(&mut self.settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(credit: u32) -> (Uplink, Arc<Credit>) {
        let credit = Arc::new(Credit::new(credit));
        let mut uplink = Uplink::default();
        uplink.up(credit.clone());
        (uplink, credit)
    }

    fn handles(uplink: &mut Uplink) -> Vec<u64> {
        let mut ops = Vec::new();
        uplink.take(&mut ops);
        ops.iter().map(|op| op.handle).collect()
    }

    #[test]
    fn without_credit_frames_are_refused_and_announcements_wait_in_order() {
        let (mut uplink, credit) = up(1);
        uplink.opened(1, SessionOpened::default());
        assert_eq!(uplink.admit(true), Err(Refusal::NoCredit));
        uplink.opened(2, SessionOpened::default());
        uplink.closed(1);
        assert_eq!(handles(&mut uplink), [1]);
        assert_eq!(uplink.backlog(), 2);
        assert!(credit.grant(1));
        assert!(!uplink.advance());
        // Credit or not: nothing overtakes what waits.
        assert!(credit.grant(5));
        assert_eq!(uplink.admit(true), Err(Refusal::NoCredit));
        assert!(uplink.advance());
        assert_eq!(handles(&mut uplink), [2, 1]);
        assert_eq!(uplink.admit(true), Ok(()));
        uplink.frame(2, b"");
        assert_eq!(handles(&mut uplink), [2]);
        assert_eq!(credit.available(), 3);
        assert!(!credit.grant(1), "nobody waits");
    }

    #[test]
    fn a_broken_link_forgets_what_was_not_handed_over() {
        let (mut uplink, _credit) = up(1);
        uplink.opened(1, SessionOpened::default());
        uplink.opened(2, SessionOpened::default());
        uplink.settle(3);
        uplink.down();
        assert_eq!(uplink.admit(true), Err(Refusal::LinkDown));
        let mut ops = Vec::new();
        assert_eq!(uplink.take(&mut ops), 0);
        assert!(ops.is_empty());
    }

    #[test]
    fn a_session_that_was_not_announced_sends_nothing() {
        let (mut uplink, credit) = up(10);
        assert_eq!(uplink.admit(false), Err(Refusal::LinkDown));
        assert_eq!(credit.available(), 10);
    }
}
