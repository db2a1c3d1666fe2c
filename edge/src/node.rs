//! A whole edge in a process: a thread for each shard with its listeners (`crew`), the link to the
//! core, and a handle for everything that looks at it or ends it. Called by the command line.

mod crew;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use socket2::SockRef;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use trunkline_identity::Verifier;
use trunkline_proto::limits;
use trunkline_proto::link::EdgeHello;

use self::crew::{Beginning, Crew, Link, hello, listen, shards_of, spread, watch_release};
use crate::handover::giver::Giver;
use crate::handover::taker::Offer;
use crate::handover::{HandoverError, socket};
use crate::link::grpc::BadCoreUrl;
use crate::link::manager::AttachLocal;
use crate::link::{Inbox, LinkState, Resume, ToShard};
use crate::observe::counters::{Number, Published};
use crate::observe::memory::{IdleSession, Memory};
use crate::observe::{self, ProcessNumbers};
use crate::ring::{DriverChoice, DriverConfig, OpenError};
use crate::session::{ClosedRecord, ConnInfo, DrainCounts, Settings, State};

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
    edge_id: String,
    /// Where the shards' clock began.
    origin: Instant,
    /// Where a successor may ask.
    upgrade: Option<UnixListener>,
}

/// What a predecessor handed over beside its connections.
#[derive(Debug)]
pub struct TakenOver {
    pub connections: u64,
    /// The listener of the admin pages.
    pub admin: Option<TcpListener>,
    /// Where the next successor asks.
    pub upgrade: Option<UnixListener>,
    /// The predecessor's process ends when this is dropped: not before whoever watches it knows of
    /// the new one.
    pub predecessor: UnixStream,
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
    /// The node is gone, or its sockets are a successor's.
    ended: AtomicBool,
    handed_over: AtomicBool,
    failed_upgrades: AtomicU64,
    /// µs for which clients waited when this process took over; 0: it did not.
    pause_us: AtomicU64,
}

impl EdgeNode {
    /// Listens, starts the shards, and begins to attach to the core.
    pub fn start(
        config: EdgeConfig,
        verifier: Verifier,
        core: CoreLink,
    ) -> Result<Self, StartError> {
        let shards = shards_of(&config)?;
        // Checked before anything is started.
        let link = Link::checked(core)?;
        let (ws, ws_listeners) = listen(config.ws, shards)?;
        let (tcp, tcp_listeners) = listen(config.tcp, shards)?;
        let crew = Crew::muster(&config, &verifier, shards, Instant::now())?;
        tracing::info!(
            "user memory of an idle session, on the edge: {}",
            IdleSession::of_this_build()
        );
        let one_each = |sockets: Vec<TcpListener>| sockets.into_iter().map(|s| vec![s]).collect();
        let beginning = Beginning {
            ws: (ws, one_each(ws_listeners)),
            tcp: (tcp, one_each(tcp_listeners)),
            hello: hello(&config, crew.incarnation),
            link_state: LinkState::default(),
            released: None,
        };
        Ok(crew.begin(beginning, link))
    }

    /// Takes the listeners and connections of the edge at the other end of `predecessor` over, which
    /// ends; see [`crate::handover`]. After an error that edge goes on.
    pub fn take_over(
        config: EdgeConfig,
        verifier: Verifier,
        core: CoreLink,
        predecessor: UnixStream,
    ) -> Result<(Self, TakenOver), HandoverError> {
        let failed = |e: StartError| HandoverError::from(Box::new(e));
        let shards = shards_of(&config).map_err(failed)?;
        let link = Link::checked(core).map_err(failed)?;
        let offer = Offer::ask(predecessor, config.ws, config.tcp, &config.edge_id)?;
        // The clock goes on, and with it everything that was measured on it.
        let origin = Instant::now().checked_sub(offer.clock());
        let origin = origin.unwrap_or_else(Instant::now);
        let crew = Crew::muster(&config, &verifier, shards, origin).map_err(failed)?;
        crew.check_room(offer.welcome.connections)?;
        let edge_id = offer.welcome.edge_id.clone();
        let began = Instant::now();
        let mut next = 0;
        let mut came = offer.take(|batch| {
            next = (next + 1) % shards;
            crew.shards[next].adopt(batch)
        })?;
        let mut listening = std::mem::take(&mut came.listeners);
        let mut of = |kind| listening.remove(&kind).unwrap_or_default();
        let (ws, tcp) = (of(socket::WS), of(socket::TCP));
        let admin = of(socket::ADMIN).pop().map(TcpListener::from);
        let upgrade = of(socket::UPGRADE).pop().map(UnixListener::from);
        let (released, is_released) = bounded(shards);
        let beginning = Beginning {
            ws: spread(ws, shards)?,
            tcp: spread(tcp, shards)?,
            hello: EdgeHello {
                edge_id,
                ..hello(&config, crew.incarnation)
            },
            link_state: LinkState::resuming(came.resume),
            released: Some(released),
        };
        came.commit()?;
        let node = crew.begin(beginning, link);
        let connections = came.connections;
        let shared = node.handle.shared.clone();
        watch_release(shared, is_released, connections, began);
        let taken = TakenOver {
            connections,
            admin,
            upgrade,
            predecessor: came.into_stream(),
        };
        Ok((node, taken))
    }

    /// From now on a successor may take everything over that asks at `listener`, the listener of the
    /// `admin` pages too. `gone` is called when it has: the shards have ended or are about to.
    pub fn offer_upgrade(
        &mut self,
        listener: UnixListener,
        admin: OwnedFd,
        gone: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let handle = self.handle();
        let giver = Giver {
            handle: handle.clone(),
            listener: listener.try_clone()?,
            others: vec![(socket::ADMIN, admin)],
            edge_id: self.edge_id.clone(),
            ws: self.ws,
            tcp: self.tcp,
            origin: self.origin,
        };
        self.upgrade = Some(listener);
        std::thread::Builder::new()
            .name("edge-upgrade".into())
            .spawn(move || {
                giver.run();
                if handle.is_handed_over() {
                    gone();
                }
            })
            .map(drop)
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
        self.handle.shared.ended.store(true, Ordering::Release);
        if let Some(listener) = self.upgrade.take()
            && !self.handle.is_handed_over()
        {
            // Ends the wait of whoever accepts from it; it fails for nobody.
            let _ = SockRef::from(&listener).shutdown(std::net::Shutdown::Both);
            let address = listener.local_addr().ok();
            if let Some(path) = address.as_ref().and_then(|a| a.as_pathname()) {
                // Another start would replace it.
                let _ = std::fs::remove_file(path);
            }
        }
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
    /// Whether this edge's sockets are a successor's now.
    pub fn is_handed_over(&self) -> bool {
        self.shared.handed_over.load(Ordering::Acquire)
    }

    pub(crate) fn set_handed_over(&self) {
        self.shared.handed_over.store(true, Ordering::Release);
        self.shared.ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }

    pub(crate) fn count_failed_upgrade(&self) {
        self.shared.failed_upgrades.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn inboxes(&self) -> &[Inbox] {
        &self.shared.inboxes
    }

    pub(crate) fn resume(&self) -> Resume {
        self.shared.link.resume()
    }

    pub(crate) fn awaits_core(&self) -> bool {
        self.shared.link.awaits_core()
    }

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
        let (rosters, roster_handles) = self.shared.link.rosters();
        let process = ProcessNumbers {
            link_up: self.shared.link.is_up(),
            credit: self.shared.link.credit(),
            rosters,
            roster_handles,
            draining: self.shared.draining.load(Ordering::Acquire),
            failed_upgrades: self.shared.failed_upgrades.load(Ordering::Acquire),
            upgrade_pause_us: self.shared.pause_us.load(Ordering::Acquire),
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
