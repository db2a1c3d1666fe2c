//! A whole edge in a process: a thread for each shard with its listeners, the link to the core, and
//! a handle for everything that looks at it or ends it. Called by the command line.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use trunkline_identity::Verifier;
use trunkline_proto::limits;
use trunkline_proto::link::{EdgeHello, VERSION};
use trunkline_proto::ports::Handle;

use crate::link::grpc::{self, BadCoreUrl};
use crate::link::manager::{AttachLocal, Attacher, run_local};
use crate::link::{Inbox, LinkState, ToShard};
use crate::observe::counters::{Number, Published};
use crate::observe::memory::{IdleSession, Memory};
use crate::observe::{self, ProcessNumbers};
use crate::ring::{
    self, BACKLOG, Driver, DriverChoice, DriverConfig, OpenError, Waker, bind_reuseport,
};
use crate::session::{ClosedRecord, ConnInfo, DrainCounts, Settings, Shard, State};
use crate::shard::{LISTENER_TCP, LISTENER_WS, ShardLoop};

/// Shards of one process: a handle has a byte for them.
pub const SHARDS_MAX: usize = 256;
/// A debug page is not waited for longer than this.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What an edge is started with.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// Unique in a deployment; empty: a random one.
    pub edge_id: String,
    pub ws: SocketAddr,
    pub tcp: SocketAddr,
    /// 0: one for each core that the process may use.
    pub shards: usize,
    pub driver: DriverChoice,
    /// Of each shard.
    pub driver_config: DriverConfig,
    /// Told to the core.
    pub sessions_per_user_max: u32,
    /// For all shards: rates of connects count for the process; `shard`, `incarnation` and `seed`
    /// are filled in.
    pub settings: Settings,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            edge_id: String::new(),
            ws: SocketAddr::from(([127, 0, 0, 1], 7_400)),
            tcp: SocketAddr::from(([127, 0, 0, 1], 7_401)),
            shards: 0,
            driver: DriverChoice::Auto,
            driver_config: DriverConfig::default(),
            sessions_per_user_max: limits::SESSIONS_PER_USER_MAX,
            settings: Settings::default(),
        }
    }
}

/// Where the core is.
pub enum CoreLink {
    /// In this process.
    Local(AttachLocal),
    /// Behind one of these addresses.
    Grpc(Vec<String>),
}

/// Why an edge did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{0}")]
    Driver(#[from] OpenError),
    #[error("{0} shards: 1 to {SHARDS_MAX} are possible")]
    Shards(usize),
    #[error("{0}")]
    Core(#[from] BadCoreUrl),
    #[error("no core address was given")]
    NoCore,
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// A running edge.
pub struct EdgeNode {
    handle: EdgeHandle,
    threads: Vec<JoinHandle<io::Result<DrainCounts>>>,
    link_stop: watch::Sender<bool>,
    runtime: Option<Runtime>,
    driver: &'static str,
    ws: SocketAddr,
    tcp: SocketAddr,
}

/// For whoever looks at an edge or ends it. Cheap to clone.
#[derive(Clone)]
pub struct EdgeHandle {
    shared: Arc<Shared>,
}

struct Shared {
    inboxes: Arc<[Inbox]>,
    published: Vec<Arc<Published>>,
    link: Arc<LinkState>,
    draining: AtomicBool,
    failed: AtomicUsize,
}

impl EdgeNode {
    /// Listens, starts the shards, and begins to attach to the core.
    pub fn start(
        config: EdgeConfig,
        verifier: Verifier,
        core: CoreLink,
    ) -> Result<Self, StartError> {
        let cores = ring::allowed_cores().unwrap_or_default();
        let shards = match config.shards {
            0 => cores.len().clamp(1, SHARDS_MAX),
            shards if shards <= SHARDS_MAX => shards,
            shards => return Err(StartError::Shards(shards)),
        };
        // Checked before anything is started.
        let link = match core {
            CoreLink::Grpc(urls) if urls.is_empty() => return Err(StartError::NoCore),
            CoreLink::Grpc(urls) => Link::Grpc(grpc::endpoints(&urls)?),
            CoreLink::Local(attach) => Link::Local(attach),
        };
        let (ws, ws_listeners) = listen(config.ws, shards)?;
        let (tcp, tcp_listeners) = listen(config.tcp, shards)?;
        let incarnation = incarnation();
        let mut started = Vec::with_capacity(shards);
        for (number, listeners) in ws_listeners.into_iter().zip(tcp_listeners).enumerate() {
            // More shards than cores share them as the scheduler likes.
            let core = (shards <= cores.len()).then(|| cores[number]);
            let settings = settings_of(&config.settings, number, shards, incarnation);
            let seat = seat(&config, core, settings, verifier.clone(), listeners);
            started.push(start_shard(number, seat)?);
        }
        let driver = started.first().map_or("none", |s| s.driver);
        let inboxes: Arc<[Inbox]> = started.iter().map(|s| s.inbox.clone()).collect();
        let shared = Arc::new(Shared {
            inboxes: inboxes.clone(),
            published: started.iter().map(|s| s.published.clone()).collect(),
            link: Arc::default(),
            draining: AtomicBool::new(false),
            failed: AtomicUsize::new(0),
        });
        let mut threads = Vec::with_capacity(shards);
        for shard in started {
            // Set only now: the shard begins its loop with it.
            if shard.begin.send(shared.clone()).is_ok() {
                threads.push(shard.thread);
            }
        }
        tracing::info!(
            "user memory of an idle session, on the edge: {}",
            IdleSession::of_this_build()
        );
        let hello = hello(&config, incarnation);
        let attacher = Attacher::new(inboxes, hello, shared.link.clone());
        let (link_stop, stopped) = watch::channel(false);
        let runtime = start_link(attacher, link, stopped).map_err(StartError::Thread)?;
        Ok(Self {
            handle: EdgeHandle { shared },
            threads,
            link_stop,
            runtime: Some(runtime),
            driver,
            ws,
            tcp,
        })
    }

    /// Where the WebSocket listener is.
    pub const fn ws_addr(&self) -> SocketAddr {
        self.ws
    }

    /// Where the raw TCP listener is.
    pub const fn tcp_addr(&self) -> SocketAddr {
        self.tcp
    }

    /// What drives the sockets: "uring" or "epoll".
    pub const fn driver_name(&self) -> &'static str {
        self.driver
    }

    /// Whether all shards have ended, so that [`EdgeNode::join`] does not wait.
    pub fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// To look at this edge and to end it.
    pub fn handle(&self) -> EdgeHandle {
        self.handle.clone()
    }

    /// See [`EdgeHandle::drain`].
    pub fn drain(&self, budget: Duration) {
        self.handle.drain(budget);
    }

    /// See [`EdgeHandle::stop`].
    pub fn stop(&self) {
        self.handle.stop();
    }

    /// Waits until all shards have ended, by [`EdgeNode::drain`] or [`EdgeNode::stop`], and lets the
    /// link go.
    pub fn join(mut self) -> DrainCounts {
        let mut counts = DrainCounts::default();
        for thread in std::mem::take(&mut self.threads) {
            // A shard that failed has been logged and counted by itself.
            if let Ok(Ok(shard)) = thread.join() {
                counts.clean += shard.clean;
                counts.forced += shard.forced;
            }
        }
        counts
    }
}

impl Drop for EdgeNode {
    fn drop(&mut self) {
        self.handle.stop();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        // Nobody listens any more if the link has ended by itself.
        let _ = self.link_stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl EdgeHandle {
    /// Sends everybody elsewhere within `budget`; the shards end as soon as nobody is left.
    pub fn drain(&self, budget: Duration) {
        self.shared.draining.store(true, Ordering::Release);
        let budget_ms = u64::try_from(budget.as_millis()).unwrap_or(u64::MAX);
        for inbox in &*self.shared.inboxes {
            inbox.push(ToShard::Drain { budget_ms });
        }
    }

    /// Closes everything at once.
    pub fn stop(&self) {
        self.shared.draining.store(true, Ordering::Release);
        for inbox in &*self.shared.inboxes {
            inbox.push(ToShard::Stop);
        }
    }

    /// Whether all shards run.
    pub fn is_healthy(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire) == 0
    }

    /// Why no new connections should come here; none: they should.
    pub fn not_ready(&self) -> Option<&'static str> {
        if !self.is_healthy() {
            Some("a shard has failed\n")
        } else if self.shared.draining.load(Ordering::Acquire) {
            Some("draining\n")
        } else if !self.shared.link.is_up() {
            Some("no core is attached\n")
        } else {
            None
        }
    }

    /// Whether new connections should come here.
    pub fn is_ready(&self) -> bool {
        self.not_ready().is_none()
    }

    /// Appends the numbers in the Prometheus text format.
    pub fn encode_metrics(&self, out: &mut String) {
        let shards: Vec<&Published> = self.shared.published.iter().map(|p| &**p).collect();
        let process = ProcessNumbers {
            link_up: self.shared.link.is_up(),
            credit: self.shared.link.credit(),
            draining: self.shared.draining.load(Ordering::Acquire),
        };
        observe::encode(&shards, process, out);
    }

    /// A published number, summed over the shards.
    pub fn number(&self, number: Number) -> u64 {
        self.shared.published.iter().map(|p| p.get(number)).sum()
    }

    /// User memory that the shards hold.
    pub fn memory(&self) -> Memory {
        let sockets = State::SHOWN.into_iter().flat_map(|state| {
            use crate::session::Transport::{Tcp, WebSocket};
            [WebSocket, Tcp].map(|transport| Number::sockets(state, transport))
        });
        Memory {
            connections: sockets.flatten().map(|n| self.number(n)).sum(),
            slots_bytes: self.number(Number::MemorySlots),
            driver_slots_bytes: self.number(Number::MemoryDriverSlots),
            identities_bytes: self.number(Number::MemoryIdentities),
            timers_bytes: self.number(Number::MemoryTimers),
            addresses_bytes: self.number(Number::MemoryAddresses),
            outboxes_bytes: self.number(Number::OutboxBytes),
            closed_bytes: self.number(Number::MemoryClosed),
            receive_buffers_bytes: self.number(Number::MemoryBuffers),
            queues_bytes: self.number(Number::MemoryQueues),
        }
    }

    /// Connections in `state`, or in any; at most `limit`.
    pub async fn connections(&self, state: Option<State>, limit: usize) -> Vec<ConnInfo> {
        let ask = |answer| ToShard::Conns {
            state,
            limit,
            answer,
        };
        let mut all = self.ask(ask).await;
        all.truncate(limit);
        all
    }

    /// The last connections that ended, newest first; at most `limit`.
    pub async fn closed(&self, limit: usize) -> Vec<ClosedRecord> {
        let mut all = self.ask(|answer| ToShard::Closed { limit, answer }).await;
        all.sort_by_key(|record| std::cmp::Reverse(record.at_ms));
        all.truncate(limit);
        all
    }

    /// Asks all shards; one that has ended or is too slow is left out.
    async fn ask<T>(&self, question: impl Fn(oneshot::Sender<Vec<T>>) -> ToShard) -> Vec<T> {
        let mut answers = Vec::new();
        for inbox in &*self.shared.inboxes {
            let (sender, answer) = oneshot::channel();
            inbox.push(question(sender));
            answers.push(answer);
        }
        let mut all = Vec::new();
        for answer in answers {
            if let Ok(Ok(list)) = tokio::time::timeout(ANSWER_MAX, answer).await {
                all.extend(list);
            }
        }
        all
    }
}

enum Link {
    Local(AttachLocal),
    Grpc(Vec<tonic::transport::Endpoint>),
}

fn start_link(
    attacher: Attacher,
    link: Link,
    stopped: watch::Receiver<bool>,
) -> io::Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("edge-link")
        .enable_all()
        .build()?;
    match link {
        Link::Local(attach) => drop(runtime.spawn(run_local(attacher, attach, stopped))),
        Link::Grpc(cores) => drop(runtime.spawn(grpc::run_grpc(attacher, cores, stopped))),
    }
    Ok(runtime)
}

/// What a shard's thread is given.
struct Seat {
    /// To be pinned to.
    core: Option<usize>,
    driver: DriverChoice,
    driver_config: DriverConfig,
    settings: Settings,
    verifier: Verifier,
    listeners: (TcpListener, TcpListener),
}

fn seat(
    config: &EdgeConfig,
    core: Option<usize>,
    settings: Settings,
    verifier: Verifier,
    listeners: (TcpListener, TcpListener),
) -> Seat {
    Seat {
        core,
        driver: config.driver,
        driver_config: DriverConfig {
            slots_max: config.driver_config.slots_max.min(Handle::SLOTS_MAX),
            ..config.driver_config.clone()
        },
        settings,
        verifier,
        listeners,
    }
}

struct Started {
    inbox: Inbox,
    /// The driver's name.
    driver: &'static str,
    published: Arc<Published>,
    begin: Sender<Arc<Shared>>,
    thread: JoinHandle<io::Result<DrainCounts>>,
}

/// Starts a shard's thread and waits until it has its driver, which must be made there.
fn start_shard(number: usize, seat: Seat) -> Result<Started, StartError> {
    let (sender, inbox) = unbounded();
    let (ready, is_ready) = bounded(1);
    let (begin, begins) = bounded::<Arc<Shared>>(1);
    let published = Arc::new(Published::default());
    let of_thread = published.clone();
    let thread = std::thread::Builder::new()
        .name(format!("edge-shard-{number}"))
        .spawn(move || run_shard(seat, inbox, &of_thread, &ready, &begins))
        .map_err(StartError::Thread)?;
    let (waker, driver) = match is_ready.recv() {
        Ok(opened) => opened?,
        Err(_) => {
            let gone = io::Error::other("the shard's thread ended while it started");
            return Err(StartError::Thread(gone));
        }
    };
    Ok(Started {
        inbox: Inbox { sender, waker },
        driver,
        published,
        begin,
        thread,
    })
}

fn run_shard(
    seat: Seat,
    inbox: Receiver<ToShard>,
    published: &Arc<Published>,
    ready: &Sender<Result<(Waker, &'static str), StartError>>,
    begins: &Receiver<Arc<Shared>>,
) -> io::Result<DrainCounts> {
    if let Some(core) = seat.core
        && let Err(error) = ring::pin_to_core(core)
    {
        tracing::warn!("cannot pin a shard to core {core}: {error}");
    }
    let driver = match ring::open(seat.driver, &seat.driver_config) {
        Ok(driver) => driver,
        Err(error) => {
            // The caller waits for exactly this.
            let _ = ready.send(Err(error.into()));
            return Ok(DrainCounts::default());
        }
    };
    let _ = ready.send(Ok((driver.waker(), driver.name())));
    let Ok(shared) = begins.recv() else {
        // Another shard did not start.
        return Ok(DrainCounts::default());
    };
    let shard = Shard::new(seat.settings, seat.verifier);
    let result = serve(driver, shard, seat.listeners, inbox, published);
    if let Err(error) = &result {
        shared.failed.fetch_add(1, Ordering::AcqRel);
        tracing::error!("a shard's driver has failed: {error}");
    }
    result
}

fn serve(
    mut driver: Box<dyn Driver>,
    shard: Shard,
    listeners: (TcpListener, TcpListener),
    inbox: Receiver<ToShard>,
    published: &Arc<Published>,
) -> io::Result<DrainCounts> {
    driver.listen(LISTENER_WS, listeners.0)?;
    driver.listen(LISTENER_TCP, listeners.1)?;
    ShardLoop::new(driver, shard, inbox, published.clone()).run()
}

/// One listener for each shard, all on one port.
fn listen(
    address: SocketAddr,
    shards: usize,
) -> Result<(SocketAddr, Vec<TcpListener>), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let first = bind_reuseport(address, BACKLOG).map_err(failed)?;
    let bound = first.local_addr().map_err(failed)?;
    let mut listeners = vec![first];
    for _ in 1..shards {
        listeners.push(bind_reuseport(bound, BACKLOG).map_err(failed)?);
    }
    Ok((bound, listeners))
}

/// A shard's own: its number, its share of the rates, its seed.
fn settings_of(all: &Settings, number: usize, shards: usize, incarnation: u64) -> Settings {
    let shards = shards as u32;
    Settings {
        shard: number as u8,
        incarnation,
        seed: incarnation ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        address_rate: all.address_rate.div_ceil(shards),
        address_burst: all.address_burst.div_ceil(shards),
        accept_rate: all.accept_rate.div_ceil(shards),
        accept_burst: all.accept_burst.div_ceil(shards),
        ..all.clone()
    }
}

/// Later process starts have higher ones, and no two the same.
fn incarnation() -> u64 {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ms = unix.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
    ms << 20 | u64::from(rand::random::<u32>() >> 12)
}

fn hello(config: &EdgeConfig, incarnation: u64) -> EdgeHello {
    let edge_id = match &*config.edge_id {
        "" => format!("edge-{incarnation:x}"),
        id => id.to_owned(),
    };
    EdgeHello {
        edge_id,
        incarnation,
        resume_from_ms: 0,
        send_rate: config.settings.send_rate,
        send_burst: config.settings.send_burst,
        sessions_per_user_max: config.sessions_per_user_max,
        version: VERSION,
    }
}
