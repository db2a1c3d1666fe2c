//! The way out of one gRPC stream: batches from the engine's thread to the HTTP/2 connection.
//!
//! What lies here is bounded by the edge's own credit. Large batches are split, so that none comes
//! near the message size that both sides accept; a part that is not the last of its batch carries a
//! time one below, since an edge that got only that part must not resume from after the rest.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::Notify;
use tonic::Status;
use trunkline_proto::link::{CoreBatch, CoreOp};
use trunkline_proto::ports::EdgePort;

/// A batch is split when its operations come to more bytes than this. One operation alone may be
/// larger (a page of 200 messages is at most some 2.5 MB).
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

#[derive(Default)]
struct State {
    batches: VecDeque<CoreBatch>,
    waker: Option<Waker>,
    end: Option<Status>,
    ended: bool,
}

/// One stream's queue, shared by the engine's thread (as [`EdgePort`]) and the response.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// Tells the task that reads the edge's batches that the stream is over.
    pub(super) cut: Notify,
}

impl Outbox {
    /// Ends the response after what lies here, or in place of it when `discard`.
    pub(super) fn end(&self, status: Status, discard: bool) {
        let mut state = self.state.lock();
        if discard {
            state.batches.clear();
        }
        state.end.get_or_insert(status);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.cut.notify_one();
    }
}

impl EdgePort for Outbox {
    fn deliver(&self, batch: CoreBatch) {
        let parts = split(batch);
        let mut state = self.state.lock();
        if state.ended || state.end.is_some() {
            return;
        }
        state.batches.extend(parts);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn cut(&self, reason: &str) {
        self.end(Status::aborted(reason), true);
    }
}

fn split(batch: CoreBatch) -> Vec<CoreBatch> {
    let mut parts: Vec<Vec<CoreOp>> = vec![Vec::new()];
    let mut bytes = 0;
    for op in batch.ops {
        let length = op.encoded_len();
        if bytes > 0 && bytes + length > BATCH_BYTES_MAX {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        // There is always a last part.
        if let Some(part) = parts.last_mut() {
            part.push(op);
        }
    }
    let last = parts.len() - 1;
    let mut welcome = batch.welcome;
    parts
        .into_iter()
        .enumerate()
        .map(|(index, ops)| CoreBatch {
            welcome: welcome.take(),
            ops,
            credit: if index == last { batch.credit } else { 0 },
            core_time_ms: if index == last {
                batch.core_time_ms
            } else {
                batch.core_time_ms.saturating_sub(1)
            },
        })
        .collect()
}

/// The response's body.
pub(super) struct OutStream(pub(super) Arc<Outbox>);

impl Stream for OutStream {
    type Item = Result<CoreBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.state.lock();
        if let Some(batch) = state.batches.pop_front() {
            return Poll::Ready(Some(Ok(batch)));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        if let Some(status) = state.end.take() {
            state.ended = true;
            return Poll::Ready(Some(Err(status)));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The connection is gone: nothing more needs to be kept for it.
impl Drop for OutStream {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ended = true;
        state.batches = VecDeque::new();
        drop(state);
        self.0.cut.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use trunkline_proto::client::{Message, ServerBody, ServerFrame};
    use trunkline_proto::link::{Deliver, core_op};

    fn op(bytes: usize) -> CoreOp {
        let message = Message {
            content: "x".repeat(bytes),
            ..Message::default()
        };
        CoreOp {
            op: Some(core_op::Op::Deliver(Deliver {
                handles: vec![1],
                frame: Some(ServerFrame::push(ServerBody::Message(message))),
            })),
        }
    }

    #[test]
    fn a_large_batch_is_split_and_only_its_last_part_counts_as_all() {
        let parts = split(CoreBatch {
            ops: vec![op(600_000), op(600_000), op(2_000_000), op(10), op(10)],
            credit: 9,
            core_time_ms: 50,
            welcome: None,
        });
        let shape: Vec<_> = parts
            .iter()
            .map(|p| (p.ops.len(), p.credit, p.core_time_ms))
            .collect();
        assert_eq!(shape, [(1, 0, 49), (1, 0, 49), (1, 0, 49), (2, 9, 50)]);
        let parts = split(CoreBatch {
            credit: 3,
            core_time_ms: 50,
            ..CoreBatch::default()
        });
        assert_eq!((parts.len(), parts[0].credit), (1, 3));
    }

    #[tokio::test]
    async fn a_cut_discards_what_lies_here_and_ends_with_its_reason() {
        let outbox = Arc::new(Outbox::default());
        let mut stream = OutStream(outbox.clone());
        outbox.deliver(CoreBatch::default());
        assert!(stream.next().await.unwrap().is_ok());
        outbox.deliver(CoreBatch::default());
        outbox.cut("no credit");
        outbox.deliver(CoreBatch::default());
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!(status.message(), "no credit");
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_graceful_end_lets_the_rest_out() {
        let outbox = Arc::new(Outbox::default());
        let mut stream = OutStream(outbox.clone());
        outbox.deliver(CoreBatch::default());
        outbox.end(Status::unavailable("bye"), false);
        assert!(stream.next().await.unwrap().is_ok());
        assert!(stream.next().await.unwrap().is_err());
        assert!(stream.next().await.is_none());
    }
}
