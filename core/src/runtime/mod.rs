//! The threads that drive engine and store: one for the engine, one that commits, a few that read.
//! Everything outside speaks to them through a [`CoreHandle`].
//!
//! Invariants:
//! 1. The engine is touched by its thread alone, and learns of everything through one queue.
//! 2. That queue needs no bound of its own: edges hold credit, REST calls hold a permit of
//!    [`CoreConfig::requests_max`], the store answers what the engine asked.
//! 3. A permit is held until the engine has answered, also when its caller has gone.
//!
//! Called by the command line (start, stop), by [`crate::ingress`] and [`crate::rest`].

pub mod cluster;
mod metrics;
mod pace;
mod queue;
mod store_threads;
pub mod streams;
mod turns;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use trunkline_proto::client::Error;
use trunkline_proto::codes::Code;
use trunkline_proto::link::{EdgeBatch, EdgeHello, EdgeOp};
use trunkline_proto::ports::{CorePort, EdgePort, OpLists};

use self::cluster::{ClusterLink, Incarnation};
use self::metrics::Metrics;
pub(crate) use self::metrics::RequestLabels;
use self::queue::{Sender, queue};
use self::streams::Bounds;
use crate::engine::{
    EdgeKey, Engine, EngineConfig, EngineStats, Input, RegisteredSession, Request, Response,
};
use crate::ownership::stats::OwnershipStats;
use crate::store::stats::StoreStats;
use crate::store::{MessageStore, StoreError};

/// Operations that may wait for one edge's credit; beyond, its stream is cut.
pub const LINK_BUFFER_OPS_MAX: usize = 262_144;
/// Bytes of those operations; beyond, the stream is cut.
pub const LINK_BUFFER_BYTES_MAX: usize = 256 << 20;
/// REST calls that the engine may have unanswered; beyond, `overloaded`.
pub const REQUESTS_MAX: usize = 4_096;
/// After this a REST call is told `unavailable`: its outcome is unknown.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// When a refused REST call should try again.
const OVERLOADED_RETRY_MS: u32 = 1_000;

/// Called once, on the engine's thread, when the store failed for good. Ends the process.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// Bounds and connections of a core.
#[derive(Clone)]
pub struct CoreConfig {
    pub engine: EngineConfig,
    pub requests_max: usize,
    pub request_timeout: Duration,
    pub link_buffer_ops_max: usize,
    pub link_buffer_bytes_max: usize,
    /// Counters of the store, shown with the core's.
    pub store_stats: Option<Arc<StoreStats>>,
    /// What ownership counts, shown with the core's. `None` with a single core.
    pub ownership_stats: Option<Arc<OwnershipStats>>,
    /// Whether the core is ready only when it serves gRPC (not in `serve`).
    pub needs_grpc: bool,
    /// Whether the core is ready only when it serves HTTP.
    pub needs_http: bool,
    pub on_fatal: FatalHook,
    /// Where several cores share the conversations; [`EngineConfig::partitions`] goes with it.
    pub cluster: Option<ClusterLink>,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            requests_max: REQUESTS_MAX,
            request_timeout: REQUEST_TIMEOUT,
            link_buffer_ops_max: LINK_BUFFER_OPS_MAX,
            link_buffer_bytes_max: LINK_BUFFER_BYTES_MAX,
            store_stats: None,
            ownership_stats: None,
            needs_grpc: true,
            needs_http: true,
            on_fatal: Arc::new(|_| std::process::exit(70)),
            cluster: None,
        }
    }
}

/// Why a core did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the store does not answer: {0}")]
    Store(#[from] StoreError),
    #[error("the store's thread ended before it answered")]
    StoreThread,
}

/// What happens to the engine's thread.
enum Event {
    Attach {
        edge: EdgeKey,
        hello: EdgeHello,
        port: Arc<dyn EdgePort>,
    },
    Batch {
        edge: EdgeKey,
        batch: EdgeBatch,
    },
    Detach {
        edge: EdgeKey,
    },
    Call {
        user: String,
        request: Request,
        from_core: bool,
        reply: Reply,
    },
    /// The committer is done. `life`: of the engine that asked.
    Committed {
        life: u32,
        commit: u64,
        result: Result<(), StoreError>,
    },
    /// What the store answered to a reader.
    Read {
        life: u32,
        input: Input,
    },
    /// What ownership says, or another core.
    Told(Input),
    /// This core is another incarnation from now on.
    Reborn(Incarnation),
    Stop,
}

/// Where a REST call's answer goes. Holds the call's permit.
struct Reply {
    to: oneshot::Sender<Result<Response, Error>>,
    _permit: OwnedSemaphorePermit,
}

impl Reply {
    fn send(self, response: Result<Response, Error>) {
        // The caller may have gone.
        let _ = self.to.send(response);
    }
}

/// What the admin pages show of the engine's thread.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) engine: EngineStats,
    pub(crate) edges: Vec<EdgeReport>,
}

/// One attached edge, for `/debug/edges`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct EdgeReport {
    /// Number of the stream in this process.
    pub stream: u32,
    pub edge_id: String,
    pub incarnation: u64,
    /// Sessions that the edge opened, less those that it closed.
    pub sessions: u64,
    /// Operations that the edge still takes.
    pub credit: usize,
    /// Operations that wait for its credit.
    pub waiting: usize,
    pub operations_in: u64,
    pub operations_out: u64,
}

const GRPC: u8 = 1;
const HTTP: u8 = 2;
const DRAINING: u8 = 4;
const FAILED: u8 = 8;
/// No lease: a core of several that has not entered, or has lapsed.
const UNBORN: u8 = 16;

/// What handle and threads share.
struct Shared {
    metrics: Metrics,
    snapshot: Arc<Mutex<Arc<Snapshot>>>,
    /// Bits of [`GRPC`], [`HTTP`]: listening; [`DRAINING`], [`FAILED`].
    state: AtomicU8,
    /// Of operations that the engine has taken in.
    lists: OpLists,
}

impl Shared {
    fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.lock() = Arc::new(snapshot);
    }

    fn set_born(&self, born: bool) {
        if born {
            self.state.fetch_and(!UNBORN, Ordering::Release);
        } else {
            self.state.fetch_or(UNBORN, Ordering::Release);
        }
    }

    fn fail(&self) {
        self.state.fetch_or(FAILED, Ordering::Release);
    }
}

/// A running core.
pub struct Core {
    handle: CoreHandle,
    threads: Vec<JoinHandle<()>>,
}

impl Core {
    /// Starts the threads. Blocks until the store has told its message id floor.
    pub fn start(config: CoreConfig, store: Arc<dyn MessageStore>) -> Result<Self, StartError> {
        tracing::info!(
            "user memory of a user with one session, in the core: {}",
            RegisteredSession::of_this_build()
        );
        let (events, events_rx) = queue();
        let (commits, commits_rx) = crossbeam_channel::unbounded();
        let (reads, reads_rx) = crossbeam_channel::unbounded();
        let (floor, floor_rx) = crossbeam_channel::bounded(1);
        let snapshot = Arc::new(Mutex::new(Arc::new(Snapshot::default())));
        let shared = Arc::new(Shared {
            metrics: Metrics::new(
                Arc::clone(&snapshot),
                config.store_stats.clone(),
                config.ownership_stats.clone(),
            ),
            snapshot,
            state: AtomicU8::new(if config.cluster.is_some() { UNBORN } else { 0 }),
            lists: OpLists::default(),
        });
        let committer = store_threads::Committer::new(Arc::clone(&store), Arc::clone(&shared))?;
        let mut threads = vec![store_threads::start_committer(
            committer,
            commits_rx.clone(),
            events.clone(),
            Some(floor),
        )?];
        // As many as there can be commits under way.
        for _ in 1..config.engine.lanes {
            threads.push(store_threads::start_committer(
                store_threads::Committer::new(Arc::clone(&store), Arc::clone(&shared))?,
                commits_rx.clone(),
                events.clone(),
                None,
            )?);
        }
        for index in 0..store_threads::READERS {
            threads.push(store_threads::start_reader(
                index,
                Arc::clone(&store),
                reads_rx.clone(),
                events.clone(),
            )?);
        }
        let message_id_floor = floor_rx.recv().map_err(|_| StartError::StoreThread)??;
        let engine = Engine::new(config.engine.clone(), message_id_floor, rand::random());
        let wiring = turns::Wiring {
            shared: Arc::clone(&shared),
            events: events_rx,
            commits,
            reads,
            bounds: Bounds {
                ops_max: config.link_buffer_ops_max,
                bytes_max: config.link_buffer_bytes_max,
            },
            incarnation: rand::random(),
            watermark_flush_ms: config.engine.watermark_flush_ms,
            on_fatal: Arc::clone(&config.on_fatal),
            engine: config.engine.clone(),
            cluster: config.cluster.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || turns::Turns::new(engine, wiring).run())?;
        // Joined first: with it end the queues of the others.
        threads.insert(0, thread);
        let needed =
            if config.needs_grpc { GRPC } else { 0 } | if config.needs_http { HTTP } else { 0 };
        Ok(Self {
            handle: CoreHandle {
                events,
                shared,
                permits: Arc::new(Semaphore::new(config.requests_max)),
                config: Arc::new(HandleConfig {
                    requests_max: config.requests_max,
                    request_timeout: config.request_timeout,
                    needed,
                    shares: config.cluster.is_some(),
                }),
                next_edge: Arc::new(AtomicU32::new(0)),
            },
            threads,
        })
    }

    pub fn handle(&self) -> CoreHandle {
        self.handle.clone()
    }

    /// Stops: takes nothing new, lets what is under way finish, answers it, cuts the streams, joins
    /// the threads. Blocks; from async code call it where blocking is allowed.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.handle.drain();
        // If the thread is gone already there is nothing to stop.
        let _ = self.handle.events.send(Event::Stop);
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!(thread = name, "a thread of the core panicked");
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop();
    }
}

struct HandleConfig {
    requests_max: usize,
    request_timeout: Duration,
    /// Bits of the listeners without which the core is not ready.
    needed: u8,
    shares: bool,
}

/// A running core, as its front ends see it. Cheap to clone.
#[derive(Clone)]
pub struct CoreHandle {
    events: Sender<Event>,
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    config: Arc<HandleConfig>,
    next_edge: Arc<AtomicU32>,
}

impl CoreHandle {
    /// Asks the engine on behalf of `user`, who is a valid user id.
    pub async fn request(&self, user: String, request: Request) -> Result<Response, Error> {
        self.ask(user, request, false).await
    }

    /// As [`CoreHandle::request`], for another core: it is answered here or not at all.
    pub async fn request_of_core(&self, user: String, request: Request) -> Result<Response, Error> {
        self.ask(user, request, true).await
    }

    async fn ask(
        &self,
        user: String,
        request: Request,
        from_core: bool,
    ) -> Result<Response, Error> {
        if self.is_draining() {
            return Err(Code::Unavailable.error("the core is stopping"));
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return Err(Error {
                retry_after_ms: OVERLOADED_RETRY_MS,
                ..Code::Overloaded.error("too many calls are under way")
            });
        };
        let (to, answer) = oneshot::channel();
        let call = Event::Call {
            user,
            request,
            from_core,
            reply: Reply {
                to,
                _permit: permit,
            },
        };
        if self.events.send(call).is_err() {
            return Err(Code::Unavailable.error("the core has stopped"));
        }
        match tokio::time::timeout(self.config.request_timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Code::Unavailable.error("the core is stopping")),
            Err(_) => Err(Code::Unavailable.error("no answer in time; the outcome is unknown")),
        }
    }

    /// This core is another incarnation from now on: it forgets everything that it was, and its
    /// edges attach anew.
    pub fn reborn(&self, incarnation: Incarnation) {
        // A core that has stopped needs no other life.
        let _ = self.events.send(Event::Reborn(incarnation));
    }

    /// Tells the engine what ownership says, or what another core answered.
    pub fn tell(&self, input: Input) {
        // A core that has stopped needs to know nothing.
        let _ = self.events.send(Event::Told(input));
    }

    /// Attaches an edge of the same process. The greeting, with the edge's first credit, goes to
    /// `port` from the engine's thread; the edge grants its own credit with the batches that it
    /// submits. Dropping the answer detaches the edge.
    pub fn attach_local(&self, hello: EdgeHello, port: Arc<dyn EdgePort>) -> Arc<dyn CorePort> {
        Arc::new(self.attach(hello, port))
    }

    pub(crate) fn attach(&self, hello: EdgeHello, port: Arc<dyn EdgePort>) -> Attached {
        let edge = EdgeKey(self.next_edge.fetch_add(1, Ordering::Relaxed));
        let attach = Event::Attach {
            edge,
            hello,
            port: Arc::clone(&port),
        };
        if self.events.send(attach).is_err() {
            port.cut("the core has stopped");
        }
        Attached {
            edge,
            events: self.events.clone(),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Whether this is a core of several.
    pub fn shares_conversations(&self) -> bool {
        self.config.shares
    }

    /// Takes nothing new from now on; readiness goes off. [`Core::shutdown`] does the rest.
    pub fn drain(&self) {
        self.shared.state.fetch_or(DRAINING, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) & (DRAINING | FAILED) != 0
    }

    /// Whether everything that was asked for listens, and nothing is about to end.
    pub fn is_ready(&self) -> bool {
        let state = self.shared.state.load(Ordering::Acquire);
        state & (DRAINING | FAILED | UNBORN) == 0
            && state & self.config.needed == self.config.needed
    }

    pub(crate) fn grpc_listens(&self) {
        self.shared.state.fetch_or(GRPC, Ordering::Release);
    }

    pub(crate) fn http_listens(&self) {
        self.shared.state.fetch_or(HTTP, Ordering::Release);
    }

    /// The attached edges, as of at most a quarter of a second ago.
    pub fn edges(&self) -> Vec<EdgeReport> {
        self.shared.snapshot.lock().edges.clone()
    }

    /// The engine's figures, as of at most a quarter of a second ago.
    pub fn engine_stats(&self) -> EngineStats {
        self.shared.snapshot.lock().engine
    }

    /// Appends all metrics in the Prometheus text form, version 0.0.4, so that several parts of a
    /// process can share one page.
    pub fn encode_metrics(&self, out: &mut String) {
        let outstanding = self.config.requests_max - self.permits.available_permits();
        self.shared
            .metrics
            .encode(self.events.len(), outstanding, out);
    }

    pub(crate) fn answered(&self, labels: &RequestLabels, took: Duration) {
        self.shared.metrics.answered(labels, took);
    }
}

/// An attached stream, as its front end holds it. Dropping it detaches the edge.
pub(crate) struct Attached {
    edge: EdgeKey,
    events: Sender<Event>,
    shared: Arc<Shared>,
}

impl CorePort for Attached {
    fn submit(&self, batch: EdgeBatch) {
        // A core that has stopped has cut the stream, or refused it.
        let _ = self.events.send(Event::Batch {
            edge: self.edge,
            batch,
        });
    }

    fn list(&self) -> Vec<EdgeOp> {
        self.shared.lists.take()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Detach { edge: self.edge });
    }
}
