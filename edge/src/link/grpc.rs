//! The link over gRPC: one stream to one of the cores, on a tokio runtime of its own.
//!
//! Invariants: the first batch holds the greeting and the edge's credit, and every batch after it
//! at most 1 MiB and one operation; what the shards hand over leaves in that order, in as
//! few batches as the stream takes.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use trunkline_proto::link::link_client::LinkClient;
use trunkline_proto::link::{CoreBatch, EdgeBatch, EdgeHello, EdgeOp, VERSION};
use trunkline_proto::ports::{CorePort, EdgePort, OpLists};

use super::manager::{Attacher, Backoff, first_grant};
use super::router::EdgeRouter;

/// To connect, to greet, and to be greeted: each within this.
const ATTACH_MAX: Duration = Duration::from_secs(5);
/// A silent connection is probed after this, and over after as much again.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Bytes of operations from which on a batch is sent rather than filled further.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes of one batch of the core.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Flow control windows: large enough that credit, not they, limits the link.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Batches between the pump and the stream.
const STREAM_QUEUE: usize = 2;
/// Batches of shards that the pump takes at once.
const PUMP_TAKES: usize = 64;

/// An address that is none.
#[derive(Debug, thiserror::Error)]
#[error("core address {url:?}: {source}: write http://host:port")]
pub struct BadCoreUrl {
    url: String,
    source: tonic::transport::Error,
}

/// Checks the cores' addresses.
pub fn endpoints(urls: &[String]) -> Result<Vec<Endpoint>, BadCoreUrl> {
    urls.iter()
        .map(|url| match Endpoint::from_shared(url.clone()) {
            Ok(endpoint) => Ok(endpoint
                .connect_timeout(ATTACH_MAX)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)),
            Err(source) => Err(BadCoreUrl {
                url: url.clone(),
                source,
            }),
        })
        .collect()
}

/// Keeps one of the cores attached, the next in turn after each failure, until `stop` says so.
pub async fn run_grpc(attacher: Attacher, cores: Vec<Endpoint>, mut stop: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    for core in cores.iter().cycle() {
        let (hello, router) = attacher.begin();
        let since = Instant::now();
        let attached = tokio::select! {
            attached = attach(core, hello) => attached,
            _ = stop.wait_for(|&stop| stop) => return,
        };
        match attached {
            Ok((inbound, welcome, port)) => {
                tracing::info!(core = %core.uri(), "attached to a core");
                attacher.up(&router, &port);
                drop(port);
                router.deliver(welcome);
                let reason = tokio::select! {
                    status = receive(inbound, &router) => status.to_string(),
                    () = router.until_cut() => "the stream was cut".to_owned(),
                    _ = stop.wait_for(|&stop| stop) => "stopping".to_owned(),
                };
                attacher.down(&router);
                tracing::info!(core = %core.uri(), "detached from the core: {reason}");
            }
            Err(status) => {
                let reason = status.message();
                tracing::warn!(core = %core.uri(), "cannot attach to the core: {reason}");
            }
        }
        if backoff.wait(since.elapsed(), &mut stop).await {
            return;
        }
    }
}

/// The stream, its first batch, and the way up.
type Attached = (Streaming<CoreBatch>, CoreBatch, Arc<dyn CorePort>);

async fn attach(core: &Endpoint, hello: EdgeHello) -> Result<Attached, Status> {
    let late = |what: &'static str| move |_| Status::deadline_exceeded(what);
    let channel: Channel = timeout(ATTACH_MAX, core.connect())
        .await
        .map_err(late("no connection in time"))?
        .map_err(|e| Status::unavailable(format!("{e}: {}", root_cause(&e))))?;
    let (to_pump, from_shards) = mpsc::unbounded_channel();
    let (to_stream, outbound) = mpsc::channel(STREAM_QUEUE);
    let greeting = EdgeBatch {
        hello: Some(hello),
        ..first_grant()
    };
    // Cannot fail: the queue is empty and its other end is here.
    let _ = to_stream.try_send(greeting);
    let mut client = LinkClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let inbound = timeout(ATTACH_MAX, client.attach(ReceiverStream::new(outbound)))
        .await
        .map_err(late("no answer to the greeting in time"))??;
    let mut inbound = inbound.into_inner();
    let first = timeout(ATTACH_MAX, inbound.message())
        .await
        .map_err(late("no welcome in time"))??
        .ok_or_else(|| Status::unavailable("the stream ended before its welcome"))?;
    match &first.welcome {
        Some(welcome) if welcome.version == VERSION => {}
        Some(welcome) => {
            return Err(Status::failed_precondition(format!(
                "the core speaks version {} of the link protocol, this edge speaks {VERSION}: \
                 run edges and cores of the same release",
                welcome.version
            )));
        }
        None => return Err(Status::failed_precondition("the core did not say welcome")),
    }
    let lists = Arc::new(OpLists::default());
    tokio::spawn(pump(from_shards, to_stream, lists.clone()));
    let port = GrpcPort { to_pump, lists };
    Ok((inbound, first, Arc::new(port)))
}

fn root_cause(error: &dyn std::error::Error) -> &dyn std::error::Error {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// Hands everything that comes to the router; why it ended.
async fn receive(mut inbound: Streaming<CoreBatch>, router: &EdgeRouter) -> Status {
    loop {
        match inbound.message().await {
            Ok(Some(batch)) => router.deliver(batch),
            Ok(None) => return Status::ok("the core has ended the stream"),
            Err(status) => return status,
        }
    }
}

/// The shards' end of the stream. What waits in it is bounded by the core's credit.
struct GrpcPort {
    to_pump: mpsc::UnboundedSender<EdgeBatch>,
    /// Of batches that the pump has merged.
    lists: Arc<OpLists>,
}

impl CorePort for GrpcPort {
    fn submit(&self, batch: EdgeBatch) {
        // Fails when the stream is over, which the shards are about to be told.
        let _ = self.to_pump.send(batch);
    }

    fn list(&self) -> Vec<EdgeOp> {
        self.lists.take()
    }
}

/// Merges what the shards hand over while the stream takes its time.
async fn pump(
    mut from_shards: mpsc::UnboundedReceiver<EdgeBatch>,
    to_stream: mpsc::Sender<EdgeBatch>,
    lists: Arc<OpLists>,
) {
    let mut taken = Vec::with_capacity(PUMP_TAKES);
    while from_shards.recv_many(&mut taken, PUMP_TAKES).await > 0 {
        for batch in merge(taken.drain(..), &lists) {
            if to_stream.send(batch).await.is_err() {
                return;
            }
        }
    }
}

/// The same operations in the same order, in batches of at most 1 MiB and one operation. The lists
/// that they came in go to `lists`.
fn merge(batches: impl Iterator<Item = EdgeBatch>, lists: &OpLists) -> Vec<EdgeBatch> {
    let mut merged = vec![EdgeBatch::default()];
    let mut bytes = 0;
    for mut batch in batches {
        for op in batch.ops.drain(..) {
            if bytes >= BATCH_BYTES {
                merged.push(EdgeBatch::default());
                bytes = 0;
            }
            bytes += op.encoded_len();
            if let Some(last) = merged.last_mut() {
                last.ops.push(op);
            }
        }
        merged[0].credit += batch.credit;
        lists.give(batch.ops);
    }
    merged
}

#[cfg(test)]
mod tests {
    use trunkline_proto::client::{ClientBody, ClientFrame, SendMessage};
    use trunkline_proto::link::edge_op::Op;

    use super::*;

    fn op(handle: u64, content_len: usize) -> EdgeOp {
        let body = ClientBody::SendMessage(SendMessage {
            content: "x".repeat(content_len),
            ..SendMessage::default()
        });
        let frame = ClientFrame {
            id: String::new(),
            frame: Some(body),
        };
        EdgeOp {
            handle,
            op: Some(Op::Frame(frame.encode_to_vec().into())),
        }
    }

    #[test]
    fn merging_keeps_order_and_bounds() {
        let batches = (0..40u64).map(|i| EdgeBatch {
            hello: None,
            ops: vec![op(2 * i, 60_000), op(2 * i + 1, 10)],
            credit: 1,
        });
        let merged = merge(batches, &OpLists::default());
        assert!(merged.len() > 1);
        assert_eq!(merged.iter().map(|b| b.credit).sum::<u32>(), 40);
        let handles: Vec<u64> = merged
            .iter()
            .flat_map(|b| b.ops.iter().map(|op| op.handle))
            .collect();
        assert_eq!(handles, (0..80).collect::<Vec<_>>());
        for batch in &merged {
            assert!(batch.encoded_len() < BATCH_BYTES + 70_000);
        }
    }

    #[test]
    fn addresses_are_checked() {
        assert!(endpoints(&["http://127.0.0.1:7420".into()]).is_ok());
        let error = endpoints(&["not an address".into()]).unwrap_err();
        assert!(error.to_string().contains("http://host:port"));
    }
}
