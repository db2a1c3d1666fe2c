//! One attached edge stream, as the engine's thread sees it: the credit that the edge granted, what
//! waits for more of it, and what the edge is owed. Pure but for handing batches to the port.
//!
//! Invariants:
//! 1. Operations leave in the order in which they were made, never more than the edge granted.
//! 2. A batch's `core_time_ms` is below the time of everything that still waits: an edge that
//!    resumes from it misses nothing.
//! 3. While an edge that came back announces its sessions, and for [`ANNOUNCE_GRACE_MS`] after the
//!    last of them, the time that it resumes from stands still: should the stream break again, the
//!    sessions that were not hinted yet are hinted from the first break on. A hint too many is
//!    harmless.
//! 4. What waits is bounded by [`Bounds`]; beyond them the stream is cut.
//!
//! Called by the engine's thread, and by the simulator.

use std::collections::VecDeque;
use std::sync::Arc;

use prost::Message as _;
use trunkline_proto::link::{CoreBatch, CoreOp, CoreWelcome, EdgeHello};
use trunkline_proto::ports::{CREDIT_INITIAL, EdgePort};

/// Ms after an announcement within which its hints have gone out, with much to spare.
const ANNOUNCE_GRACE_MS: u64 = 10_000;

/// What may wait for one edge's credit.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub ops_max: usize,
    pub bytes_max: usize,
}

struct Waiting {
    made_ms: u64,
    op: CoreOp,
}

pub struct EdgeStream {
    pub edge_id: String,
    pub incarnation: u64,
    pub port: Arc<dyn EdgePort>,
    /// Sessions that the edge opened, less those that it closed.
    pub sessions: u64,
    pub operations_in: u64,
    pub operations_out: u64,
    /// Whether the stream is on the list of those to flush at the turn's end.
    pub touched: bool,
    resumed_from_ms: u64,
    /// Until then [`EdgeStream::resumed_from_ms`] stands.
    announcing_until_ms: u64,
    credit: usize,
    waiting: VecDeque<Waiting>,
    /// Of the first `sized` of `waiting`.
    waiting_bytes: usize,
    sized: usize,
    owed: u32,
}

/// What a flush came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Flushed {
    Nothing,
    Batch { operations: usize },
    OverBounds,
}

impl EdgeStream {
    /// Greets the edge, with its first credit.
    ///
    /// The greeting's time is the one that the edge resumes from: were it the present, a stream that
    /// broke before the hints went out would hide what happened in between.
    pub fn open(hello: &EdgeHello, port: Arc<dyn EdgePort>, core_incarnation: u64) -> Self {
        port.deliver(CoreBatch {
            welcome: Some(CoreWelcome {
                version: trunkline_proto::link::VERSION,
                incarnation: core_incarnation,
            }),
            ops: Vec::new(),
            credit: CREDIT_INITIAL,
            core_time_ms: hello.resume_from_ms,
        });
        Self {
            edge_id: hello.edge_id.clone(),
            incarnation: hello.incarnation,
            port,
            sessions: 0,
            operations_in: 0,
            operations_out: 0,
            touched: false,
            resumed_from_ms: hello.resume_from_ms,
            announcing_until_ms: 0,
            credit: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            sized: 0,
            owed: 0,
        }
    }

    /// The edge announces sessions that were live before, or is about to.
    pub fn announces(&mut self, now_ms: u64) {
        if self.resumed_from_ms > 0 {
            self.announcing_until_ms = now_ms + ANNOUNCE_GRACE_MS;
        }
    }

    /// The edge takes `operations` more. No edge needs more credit than may wait for it here.
    pub fn grant(&mut self, operations: u32, bounds: Bounds) {
        self.credit = self
            .credit
            .saturating_add(operations as usize)
            .min(bounds.ops_max);
    }

    /// Owes the edge credit for `operations` that are dealt with.
    pub fn settle(&mut self, operations: u32) {
        self.owed = self.owed.saturating_add(operations);
    }

    pub fn push(&mut self, op: CoreOp, made_ms: u64) {
        self.waiting.push_back(Waiting { made_ms, op });
    }

    /// Operations that the edge still takes.
    pub fn credit(&self) -> usize {
        self.credit
    }

    /// Operations that wait for credit.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Hands over what the credit allows, as one batch.
    pub fn flush(&mut self, now_ms: u64, bounds: Bounds) -> Flushed {
        let ready = self.waiting.len().min(self.credit);
        let mut ops = Vec::with_capacity(ready);
        for waiting in self.waiting.drain(..ready) {
            if self.sized > 0 {
                self.sized -= 1;
                self.waiting_bytes -= waiting.op.encoded_len();
            }
            ops.push(waiting.op);
        }
        self.credit -= ready;
        self.operations_out += ready as u64;
        for waiting in self.waiting.iter().skip(self.sized) {
            self.waiting_bytes += waiting.op.encoded_len();
        }
        self.sized = self.waiting.len();
        let over = self.waiting.len() > bounds.ops_max || self.waiting_bytes > bounds.bytes_max;
        if !ops.is_empty() || self.owed > 0 {
            let core_time_ms = self.told_until_ms(now_ms);
            self.port.deliver(CoreBatch {
                welcome: None,
                ops,
                credit: std::mem::take(&mut self.owed),
                core_time_ms,
            });
        } else if !over {
            return Flushed::Nothing;
        }
        if over {
            Flushed::OverBounds
        } else {
            Flushed::Batch { operations: ready }
        }
    }

    /// The time up to which the edge has been told everything once it has what is sent now.
    fn told_until_ms(&self, now_ms: u64) -> u64 {
        if now_ms < self.announcing_until_ms {
            return self.resumed_from_ms.min(now_ms);
        }
        let oldest_ms = self.waiting.front().map_or(u64::MAX, |w| w.made_ms);
        now_ms.min(oldest_ms.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use trunkline_proto::link::{Registered, core_op};

    #[derive(Default)]
    struct Recorder {
        batches: Mutex<Vec<CoreBatch>>,
    }

    impl EdgePort for Recorder {
        fn deliver(&self, batch: CoreBatch) {
            self.batches.lock().push(batch);
        }

        fn cut(&self, _reason: &str) {}
    }

    impl Recorder {
        fn take(&self) -> Vec<CoreBatch> {
            std::mem::take(&mut self.batches.lock())
        }
    }

    const BOUNDS: Bounds = Bounds {
        ops_max: 10,
        bytes_max: 1_000,
    };

    fn op(handle: u64) -> CoreOp {
        CoreOp {
            op: Some(core_op::Op::Registered(Registered { handle })),
        }
    }

    fn handles(batch: &CoreBatch) -> Vec<u64> {
        batch
            .ops
            .iter()
            .map(|o| match &o.op {
                Some(core_op::Op::Registered(r)) => r.handle,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn open() -> (EdgeStream, Arc<Recorder>) {
        let port = Arc::new(Recorder::default());
        let hello = EdgeHello {
            edge_id: "e".into(),
            resume_from_ms: 77,
            ..EdgeHello::default()
        };
        let stream = EdgeStream::open(&hello, port.clone(), 5);
        let greeting = port.take();
        assert_eq!(greeting.len(), 1);
        assert_eq!(greeting[0].credit, CREDIT_INITIAL);
        assert_eq!(greeting[0].core_time_ms, 77);
        assert_eq!(greeting[0].welcome.as_ref().unwrap().incarnation, 5);
        (stream, port)
    }

    #[test]
    fn operations_wait_for_credit_and_keep_their_order() {
        let (mut stream, port) = open();
        for handle in 0..5 {
            stream.push(op(handle), 100);
        }
        assert_eq!(stream.flush(100, BOUNDS), Flushed::Nothing);
        stream.grant(3, BOUNDS);
        assert_eq!(stream.flush(200, BOUNDS), Flushed::Batch { operations: 3 });
        stream.push(op(5), 201);
        stream.grant(9, BOUNDS);
        assert_eq!(stream.flush(300, BOUNDS), Flushed::Batch { operations: 3 });
        assert_eq!(stream.credit(), 6);
        let batches = port.take();
        assert_eq!(handles(&batches[0]), [0, 1, 2]);
        assert_eq!(handles(&batches[1]), [3, 4, 5]);
        assert_eq!(batches[0].core_time_ms, 99, "op 3 of ms 100 still waits");
        assert_eq!(batches[1].core_time_ms, 300);
        assert_eq!(stream.waiting_bytes, 0);
    }

    #[test]
    fn credit_for_the_edge_needs_no_credit_of_it() {
        let (mut stream, port) = open();
        stream.settle(3);
        stream.settle(4);
        stream.push(op(1), 10);
        assert_eq!(stream.flush(20, BOUNDS), Flushed::Batch { operations: 0 });
        let batches = port.take();
        assert_eq!(batches[0].credit, 7);
        assert_eq!(batches[0].core_time_ms, 9);
        assert_eq!(stream.flush(21, BOUNDS), Flushed::Nothing);
        assert!(port.take().is_empty(), "credit is told once");
    }

    #[test]
    fn what_waits_is_bounded_in_operations_and_in_bytes() {
        let (mut stream, _port) = open();
        for handle in 0..10 {
            stream.push(op(handle), 1);
        }
        assert_eq!(stream.flush(1, BOUNDS), Flushed::Nothing);
        stream.push(op(10), 1);
        assert_eq!(stream.flush(1, BOUNDS), Flushed::OverBounds);

        let (mut stream, _port) = open();
        let bytes_max = 3 * op(1 << 40).encoded_len();
        let bounds = Bounds {
            ops_max: 10,
            bytes_max,
        };
        for _ in 0..3 {
            stream.push(op(1 << 40), 1);
            assert_eq!(stream.flush(1, bounds), Flushed::Nothing);
        }
        stream.push(op(1 << 40), 1);
        assert_eq!(stream.flush(1, bounds), Flushed::OverBounds);
    }

    #[test]
    fn credit_does_not_pile_up_without_bound() {
        let (mut stream, _port) = open();
        stream.grant(u32::MAX, BOUNDS);
        stream.grant(u32::MAX, BOUNDS);
        assert_eq!(stream.credit(), BOUNDS.ops_max);
    }

    #[test]
    fn the_time_to_resume_from_stands_while_sessions_are_announced() {
        let (mut stream, port) = open();
        stream.grant(10, BOUNDS);
        let told = |stream: &mut EdgeStream, now_ms| {
            stream.push(op(1), now_ms);
            stream.flush(now_ms, BOUNDS);
            port.take().remove(0).core_time_ms
        };
        stream.announces(1_000);
        assert_eq!(told(&mut stream, 1_001), 77);
        stream.announces(5_000);
        assert_eq!(told(&mut stream, 5_000 + ANNOUNCE_GRACE_MS - 1), 77);
        assert_eq!(told(&mut stream, 5_000 + ANNOUNCE_GRACE_MS), 15_000);
    }
}
