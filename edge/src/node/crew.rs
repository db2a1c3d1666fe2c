//! The threads of an edge: made with their drivers, given what a predecessor hands over if there is
//! one, and set going together. Whatever can fail fails before that.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use trunkline_identity::Verifier;
use trunkline_proto::link::{EdgeHello, VERSION};
use trunkline_proto::ports::Handle;

use super::{CoreLink, EdgeConfig, EdgeHandle, EdgeNode, SHARDS_MAX, Shared, StartError};
use crate::handover::{ANNOUNCE_MAX, ATTACH_MAX, BATCH_CONNECTIONS, Batch, HandoverError};
use crate::link::grpc::{self, run_grpc};
use crate::link::manager::{AttachLocal, Attacher, run_local};
use crate::link::{Inbox, LinkState, ToShard};
use crate::observe::counters::Published;
use crate::ring::{self, BACKLOG, DriverChoice, DriverConfig, Waker, bind_reuseport};
use crate::session::{DrainCounts, Settings, Shard};
use crate::shard::ShardLoop;

/// The core, checked.
pub(super) enum Link {
    Local(AttachLocal),
    Grpc(Vec<tonic::transport::Endpoint>),
}

impl Link {
    pub(super) fn checked(core: CoreLink) -> Result<Self, StartError> {
        Ok(match core {
            CoreLink::Grpc(urls) if urls.is_empty() => return Err(StartError::NoCore),
            CoreLink::Grpc(urls) => Self::Grpc(grpc::endpoints(&urls)?),
            CoreLink::Local(attach) => Self::Local(attach),
        })
    }
}

/// Shards whose threads have their drivers and wait for the word to begin.
pub(super) struct Crew {
    pub(super) shards: Vec<Started>,
    pub(super) incarnation: u64,
    origin: Instant,
    /// The link's.
    runtime: Runtime,
}

/// What a crew begins with: for each shard its listeners, of one address.
pub(super) struct Beginning {
    pub(super) ws: (SocketAddr, Vec<Vec<TcpListener>>),
    pub(super) tcp: (SocketAddr, Vec<Vec<TcpListener>>),
    pub(super) hello: EdgeHello,
    pub(super) link_state: LinkState,
    /// Told by each shard when it reads what it took over.
    pub(super) released: Option<Sender<()>>,
}

impl Crew {
    pub(super) fn muster(
        config: &EdgeConfig,
        verifier: &Verifier,
        shards: usize,
        origin: Instant,
    ) -> Result<Self, StartError> {
        let cores = ring::allowed_cores().unwrap_or_default();
        let incarnation = incarnation();
        let mut started = Vec::with_capacity(shards);
        for number in 0..shards {
            // More shards than cores share them as the scheduler likes.
            let core = (shards <= cores.len()).then(|| cores[number]);
            let settings = settings_of(&config.settings, number, shards, incarnation);
            let seat = seat(config, core, settings, verifier.clone(), origin);
            started.push(start_shard(number, seat)?);
        }
        Ok(Self {
            shards: started,
            incarnation,
            origin,
            // Whatever can fail does before anything is taken over.
            runtime: link_runtime().map_err(StartError::Thread)?,
        })
    }

    /// Whether that many connections find room, spread evenly.
    pub(super) fn check_room(&self, connections: u64) -> Result<(), HandoverError> {
        let least = self.shards.iter().map(|s| u64::from(s.slots_max)).min();
        let room = least.unwrap_or(0) * self.shards.len() as u64;
        // A batch more or less for each shard.
        let uneven = (BATCH_CONNECTIONS * self.shards.len()) as u64;
        if connections + uneven.min(connections / 10) > room {
            return Err(HandoverError::Room { room, connections });
        }
        Ok(())
    }

    /// The shards run, the link attaches.
    pub(super) fn begin(self, beginning: Beginning, link: Link) -> EdgeNode {
        let driver = self.shards.first().map_or("none", |s| s.driver);
        let inboxes: Arc<[Inbox]> = self.shards.iter().map(|s| s.inbox.clone()).collect();
        let shared = Arc::new(Shared {
            inboxes: inboxes.clone(),
            published: self.shards.iter().map(|s| s.published.clone()).collect(),
            link: Arc::new(beginning.link_state),
            draining: AtomicBool::new(false),
            failed: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            failed_upgrades: AtomicU64::new(0),
            pause_us: AtomicU64::new(0),
        });
        let ((ws, ws_listeners), (tcp, tcp_listeners)) = (beginning.ws, beginning.tcp);
        let listeners = ws_listeners.into_iter().zip(tcp_listeners);
        let mut threads = Vec::with_capacity(self.shards.len());
        for (shard, (ws, tcp)) in self.shards.into_iter().zip(listeners) {
            // Set only now: the shard begins its loop with it.
            let run = Start::Run {
                shared: shared.clone(),
                ws,
                tcp,
                released: beginning.released.clone(),
            };
            if shard.start.send(run).is_ok() {
                threads.push(shard.thread);
            }
        }
        let edge_id = beginning.hello.edge_id.clone();
        let attacher = Attacher::new(inboxes, beginning.hello, shared.link.clone());
        let (link_stop, stopped) = watch::channel(false);
        match link {
            Link::Local(attach) => drop(self.runtime.spawn(run_local(attacher, attach, stopped))),
            Link::Grpc(cores) => drop(self.runtime.spawn(run_grpc(attacher, cores, stopped))),
        }
        EdgeNode {
            handle: EdgeHandle { shared },
            threads,
            link_stop,
            runtime: Some(self.runtime),
            driver,
            ws,
            tcp,
            edge_id,
            origin: self.origin,
            upgrade: None,
        }
    }
}

/// Deals a predecessor's listeners out; a shard that gets none binds one more to the port.
pub(super) fn spread(
    sockets: Vec<OwnedFd>,
    shards: usize,
) -> Result<(SocketAddr, Vec<Vec<TcpListener>>), HandoverError> {
    let sockets: Vec<TcpListener> = sockets.into_iter().map(TcpListener::from).collect();
    let first = sockets.first();
    let first = first.ok_or_else(|| io::Error::other("a listener is missing"))?;
    let address = first.local_addr()?;
    let mut dealt: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    for (index, socket) in sockets.into_iter().enumerate() {
        dealt[index % shards].push(socket);
    }
    for empty in dealt.iter_mut().filter(|sockets| sockets.is_empty()) {
        empty.push(bind_reuseport(address, BACKLOG)?);
    }
    Ok((address, dealt))
}

/// Says how long clients have waited, when they do no more.
pub(super) fn watch_release(
    shared: Arc<Shared>,
    released: Receiver<()>,
    connections: u64,
    began: Instant,
) {
    let watch = move || {
        let shards = shared.inboxes.len();
        let told = (0..shards).all(|_| released.recv_timeout(ATTACH_MAX + ANNOUNCE_MAX).is_ok());
        let pause = began.elapsed();
        let us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        shared.pause_us.store(us.max(1), Ordering::Release);
        let pause_ms = pause.as_millis();
        if told {
            tracing::info!(connections, pause_ms, "took over from the edge before");
        } else {
            tracing::error!(connections, "a shard does not read what it took over");
        }
    };
    let name = std::thread::Builder::new().name("edge-release".into());
    if let Err(error) = name.spawn(watch) {
        tracing::warn!("nobody will tell how long the upgrade took: {error}");
    }
}

fn link_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("edge-link")
        .enable_all()
        .build()
}

/// What a shard's thread is given.
struct Seat {
    /// To be pinned to.
    core: Option<usize>,
    driver: DriverChoice,
    driver_config: DriverConfig,
    settings: Settings,
    verifier: Verifier,
    origin: Instant,
}

fn seat(
    config: &EdgeConfig,
    core: Option<usize>,
    settings: Settings,
    verifier: Verifier,
    origin: Instant,
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
        origin,
    }
}

/// What a shard's thread is told before it runs.
enum Start {
    /// Take these in.
    Adopt {
        batch: Batch,
        done: Sender<Result<(), HandoverError>>,
    },
    Run {
        shared: Arc<Shared>,
        ws: Vec<TcpListener>,
        tcp: Vec<TcpListener>,
        /// Connections were taken in: to be told when they are read.
        released: Option<Sender<()>>,
    },
}

pub(super) struct Started {
    inbox: Inbox,
    /// The driver's name.
    driver: &'static str,
    slots_max: u32,
    published: Arc<Published>,
    start: Sender<Start>,
    thread: JoinHandle<io::Result<DrainCounts>>,
}

impl Started {
    pub(super) fn adopt(&self, batch: Batch) -> Result<(), HandoverError> {
        let gone = || io::Error::other("a shard's thread has ended");
        let (done, is_done) = bounded(1);
        let sent = self.start.send(Start::Adopt { batch, done });
        sent.map_err(|_| gone())?;
        is_done.recv().map_err(|_| gone())?
    }
}

/// What a shard's thread says of its driver.
type Opened = Result<(Waker, &'static str, u32), StartError>;

/// Starts a shard's thread and waits until it has its driver, which must be made there.
fn start_shard(number: usize, seat: Seat) -> Result<Started, StartError> {
    let (sender, inbox) = unbounded();
    let (ready, is_ready) = bounded(1);
    let (start, starts) = bounded::<Start>(1);
    let published = Arc::new(Published::default());
    let of_thread = published.clone();
    let thread = std::thread::Builder::new()
        .name(format!("edge-shard-{number}"))
        .spawn(move || run_shard(seat, inbox, &of_thread, &ready, &starts))
        .map_err(StartError::Thread)?;
    let (waker, driver, slots_max) = match is_ready.recv() {
        Ok(opened) => opened?,
        Err(_) => {
            let gone = io::Error::other("the shard's thread ended while it started");
            return Err(StartError::Thread(gone));
        }
    };
    Ok(Started {
        inbox: Inbox { sender, waker },
        driver,
        slots_max,
        published,
        start,
        thread,
    })
}

fn run_shard(
    seat: Seat,
    inbox: Receiver<ToShard>,
    published: &Arc<Published>,
    ready: &Sender<Opened>,
    starts: &Receiver<Start>,
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
    let _ = ready.send(Ok((driver.waker(), driver.name(), driver.slots_max())));
    let shard = Shard::new(seat.settings, seat.verifier);
    let mut shard = ShardLoop::new(driver, shard, inbox, published.clone(), seat.origin);
    loop {
        match starts.recv() {
            // Another shard did not start, or the hand-over broke off.
            Err(_) => return Ok(DrainCounts::default()),
            Ok(Start::Adopt { batch, done }) => {
                // Whoever gave the batch waits.
                let _ = done.send(shard.adopt(batch));
            }
            Ok(Start::Run {
                shared,
                ws,
                tcp,
                released,
            }) => {
                let result = shard.listen(ws, tcp).and_then(|()| {
                    if let Some(released) = released {
                        shard.begin_taken(released);
                    }
                    shard.run()
                });
                if let Err(error) = &result {
                    shared.failed.fetch_add(1, Ordering::AcqRel);
                    tracing::error!("a shard's driver has failed: {error}");
                }
                return result;
            }
        }
    }
}

/// As many shards as configured, or one for each core.
pub(super) fn shards_of(config: &EdgeConfig) -> Result<usize, StartError> {
    match config.shards {
        0 => Ok(ring::allowed_cores()
            .unwrap_or_default()
            .len()
            .clamp(1, SHARDS_MAX)),
        shards if shards <= SHARDS_MAX => Ok(shards),
        shards => Err(StartError::Shards(shards)),
    }
}

/// One listener for each shard, all on one port.
pub(super) fn listen(
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
        arrival_rate: all.arrival_rate.div_ceil(shards),
        ..all.clone()
    }
}

/// Later process starts have higher ones, and no two the same.
fn incarnation() -> u64 {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ms = unix.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
    ms << 20 | u64::from(rand::random::<u32>() >> 12)
}

pub(super) fn hello(config: &EdgeConfig, incarnation: u64) -> EdgeHello {
    let edge_id = match &*config.edge_id {
        "" => format!("edge-{incarnation:x}"),
        id => id.to_owned(),
    };
    EdgeHello {
        edge_id,
        incarnation,
        resume_from_ms: 0,
        resume_from_incarnation: 0,
        send_rate: config.settings.send_rate,
        send_burst: config.settings.send_burst,
        sessions_per_user_max: config.sessions_per_user_max,
        version: VERSION,
    }
}
