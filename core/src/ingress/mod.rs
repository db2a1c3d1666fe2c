//! The link service: edges attach over gRPC, one bidirectional stream each.
//!
//! Invariants:
//! 1. The first batch of a stream holds `hello`, within [`HELLO_DEADLINE`], and no other does.
//! 2. An edge never has more operations under way than it was granted; one that does is cut off.
//! 3. However a stream ends, the engine hears of it exactly once.
//!
//! Called by the command line; feeds [`crate::runtime`].

mod outbox;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use trunkline_proto::ids::is_valid_id;
use trunkline_proto::link::link_server::{Link, LinkServer};
use trunkline_proto::link::{CoreBatch, EdgeBatch, EdgeHello, VERSION};
use trunkline_proto::peer::peer_server::PeerServer;
use trunkline_proto::ports::{CREDIT_INITIAL, CorePort, EdgePort};

use self::outbox::{OutStream, Outbox};
use crate::cluster::PeerService;
use crate::runtime::{Attached, CoreHandle};

/// Within this an edge must say `hello`.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of one batch on the wire, in either direction.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A silent connection is probed after this.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A probe unanswered for this long ends the connection, and with it its stream.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After the shutdown was asked for, streams may take this long to end.
pub const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
/// HTTP/2 flow control windows: large enough that credit, not they, limits a link.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Why the link service ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrpcError {
    #[error("gRPC: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves the link, health and reflection on `listener` until `shutdown` is over. Streams end with
/// [`crate::runtime::Core::shutdown`], which lets the last acks out: call it first.
pub async fn serve_grpc(
    listener: TcpListener,
    handle: CoreHandle,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), GrpcError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<LinkServer<LinkService>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(trunkline_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let link = LinkServer::new(LinkService {
        handle: handle.clone(),
    })
    .max_decoding_message_size(MESSAGE_BYTES_MAX)
    .max_encoding_message_size(MESSAGE_BYTES_MAX);
    // A core that has everything to itself has nobody to answer to.
    let peer = handle.shares_conversations().then(|| {
        PeerServer::new(PeerService::new(handle.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    });
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(link)
        .add_optional_service(peer)
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            async move {
                shutdown.await;
                health.set_not_serving::<LinkServer<LinkService>>().await;
                // Nobody waits for it when the server ended by itself.
                let _ = stopping.send(());
            },
        );
    handle.grpc_listens();
    tokio::select! {
        result = server => Ok(result?),
        () = overtime(stopped) => Ok(()),
    }
}

/// Ends [`SHUTDOWN_MAX`] after the shutdown began; never, if that never happens.
async fn overtime(stopped: tokio::sync::oneshot::Receiver<()>) {
    if stopped.await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(SHUTDOWN_MAX).await;
    tracing::warn!("edge streams did not end in time");
}

struct LinkService {
    handle: CoreHandle,
}

#[tonic::async_trait]
impl Link for LinkService {
    type AttachStream = OutStream;

    async fn attach(
        &self,
        request: Request<Streaming<EdgeBatch>>,
    ) -> Result<Response<OutStream>, Status> {
        if self.handle.is_draining() {
            return Err(Status::unavailable("the core is stopping"));
        }
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello in time"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended before its hello"))?;
        let (hello, rest) = greeted(first)?;
        let outbox = Arc::new(Outbox::default());
        let port = Arc::new(Port {
            outbox: Arc::clone(&outbox),
            credit: AtomicI64::new(0),
        });
        let attached = self.handle.attach(hello, Arc::clone(&port) as _);
        tokio::spawn(read(inbound, rest, attached, port));
        Ok(Response::new(OutStream(outbox)))
    }
}

/// Checks the first batch: its hello, and what came with it.
fn greeted(mut first: EdgeBatch) -> Result<(EdgeHello, EdgeBatch), Status> {
    let hello = first
        .hello
        .take()
        .ok_or_else(|| Status::invalid_argument("the first batch of a stream must hold hello"))?;
    if hello.version != VERSION {
        return Err(Status::failed_precondition(format!(
            "the edge speaks version {} of the link protocol, this core speaks {VERSION}: run \
             edges and cores of the same release",
            hello.version
        )));
    }
    if !is_valid_id(&hello.edge_id) {
        return Err(Status::invalid_argument(
            "hello.edge_id: 1-64 bytes of [A-Za-z0-9._:@-]",
        ));
    }
    if !first.ops.is_empty() {
        return Err(Status::invalid_argument(
            "the first batch holds operations, but no credit was granted yet",
        ));
    }
    Ok((hello, first))
}

/// The edge's end of a stream: queues what goes to it and knows how much it may send.
struct Port {
    outbox: Arc<Outbox>,
    /// Operations that the edge may still send.
    credit: AtomicI64,
}

impl Port {
    /// Takes credit for operations that came. `false`: the edge had less.
    fn spend(&self, operations: usize) -> bool {
        let operations = operations as i64;
        self.credit.fetch_sub(operations, Ordering::AcqRel) >= operations
    }
}

impl EdgePort for Port {
    fn deliver(&self, batch: CoreBatch) {
        // Before the batch leaves: the edge may use it at once.
        self.credit
            .fetch_add(i64::from(batch.credit), Ordering::AcqRel);
        self.outbox.deliver(batch);
    }

    fn cut(&self, reason: &str) {
        self.outbox.cut(reason);
    }
}

/// Reads the edge's batches until the stream ends on either side. Dropping `attached` at the end
/// tells the engine.
async fn read(
    mut inbound: Streaming<EdgeBatch>,
    first: EdgeBatch,
    attached: Attached,
    port: Arc<Port>,
) {
    attached.submit(first);
    let status = loop {
        let message = tokio::select! {
            message = inbound.message() => message,
            () = port.outbox.cut.notified() => return,
        };
        match message {
            Ok(Some(batch)) if batch.hello.is_some() => {
                break Status::invalid_argument("hello belongs in the first batch alone");
            }
            Ok(Some(batch)) if !port.spend(batch.ops.len()) => {
                break Status::resource_exhausted(format!(
                    "operations beyond the credit; it begins with {CREDIT_INITIAL}"
                ));
            }
            Ok(Some(batch)) => attached.submit(batch),
            Ok(None) => break Status::ok("the edge has ended its side"),
            Err(status) => {
                tracing::info!(%status, "edge stream broke");
                break status;
            }
        }
    };
    port.outbox.end(status, false);
}
