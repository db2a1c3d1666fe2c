//! `trunkline edge`: sockets here, the core elsewhere, and with `--upgrade` in place of the process
//! that ran before; or, with `--echo`, no core at all.

use std::future::IntoFuture as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use trunkline_edge::echo::{Options, run_echo_shard};
use trunkline_edge::handover;
use trunkline_edge::node::{CoreLink, EdgeNode};
use trunkline_edge::observe::admin::edge_admin_router;
use trunkline_edge::ring::{self, BACKLOG, DriverChoice, DriverConfig, bind_reuseport};
use trunkline_identity::Verifier;

use super::listen::{Listening, bind};
use super::serve::until;
use super::signals::Ending;
use super::{Ended, notify, parts};
use crate::exit::Failure;
use crate::settings::Settings;

/// Whoever still reads an admin page at the end has this long.
const PAGES_MAX: Duration = Duration::from_secs(2);

/// A running edge, and the listeners of its process.
struct Running {
    edge: EdgeNode,
    admin: TcpListener,
    upgrade: Option<UnixListener>,
    /// The old process ends when this is dropped.
    predecessor: Option<UnixStream>,
}

pub fn run(settings: &Settings, runtime: &Runtime, upgrade: bool) -> Result<Ended, Failure> {
    let mut ending = Ending::register()?;
    let secret = parts::secret(settings)?;
    let verifier = parts::verifier(&secret);
    let Running {
        mut edge,
        admin,
        upgrade,
        predecessor,
    } = if upgrade {
        take_over(settings, verifier)?
    } else {
        start(settings, verifier)?
    };
    let failed = |e: std::io::Error| Failure::Runtime(format!("the admin listener: {e}"));
    let admin_address = admin.local_addr().map_err(failed)?;
    if let Some(listener) = upgrade {
        let admin = admin.try_clone().map_err(failed)?.into();
        edge.offer_upgrade(listener, admin, ending.handed_over())
            .map_err(|e| Failure::Runtime(format!("cannot wait for upgrades: {e}")))?;
    }
    let (stop, stopped) = watch::channel(false);
    admin.set_nonblocking(true).map_err(failed)?;
    let admin = {
        let _guard = runtime.enter();
        tokio::net::TcpListener::from_std(admin).map_err(failed)?
    };
    let pages = axum::serve(admin, edge_admin_router(edge.handle()))
        .with_graceful_shutdown(until(stopped))
        .into_future();
    let pages = runtime.spawn(pages);

    let mut listening = Listening::default();
    listening.add("ws", edge.ws_addr());
    listening.add("tcp", edge.tcp_addr());
    listening.add("admin", admin_address);
    listening.write(settings.ports_file.as_deref())?;
    Listening::banner(
        "trunkline edge",
        &[
            ("WebSocket", format!("ws://{}/v1/connect", edge.ws_addr())),
            ("TCP", edge.tcp_addr().to_string()),
            ("core", settings.cores.join(", ")),
            ("admin", format!("http://{admin_address}/metrics")),
            ("driver", edge.driver_name().to_owned()),
        ],
    );
    notify::ready();
    drop(predecessor);

    let handle = edge.handle();
    let budget = settings.drain_budget;
    let ended = ending.wait(|| handle.drain(budget), || edge.is_over());
    edge.stop();
    let counts = edge.join();
    tracing::info!(
        clean = counts.clean,
        forced = counts.forced,
        "connections have ended"
    );
    // Nobody waits when the pages have ended by themselves.
    let _ = stop.send(true);
    let _ = runtime.block_on(async { tokio::time::timeout(PAGES_MAX, pages).await });
    Ok(ended)
}

/// An edge on listeners of its own.
fn start(settings: &Settings, verifier: Verifier) -> Result<Running, Failure> {
    let link = CoreLink::Grpc(settings.cores.clone());
    let admin = TcpListener::bind(settings.admin)
        .map_err(|e| Failure::Runtime(format!("cannot listen on {}: {e}", settings.admin)))?;
    let edge = EdgeNode::start(parts::edge_config(settings), verifier, link)
        .map_err(|e| Failure::Runtime(e.to_string()))?;
    let name = upgrade_name(settings, edge.ws_addr());
    let upgrade = match handover::listen(&name) {
        Ok(listener) => Some(listener),
        Err(error) if settings.upgrade_socket.is_some() => {
            let what = format!("cannot listen on the upgrade socket {name}: {error}");
            return Err(Failure::Runtime(what));
        }
        Err(error) => {
            tracing::warn!("this edge cannot be upgraded in place: {name}: {error}");
            None
        }
    };
    Ok(Running {
        edge,
        admin,
        upgrade,
        predecessor: None,
    })
}

/// An edge on the listeners, with the connections, of the one that runs.
fn take_over(settings: &Settings, verifier: Verifier) -> Result<Running, Failure> {
    if settings.ws.port() == 0 && settings.upgrade_socket.is_none() {
        let what =
            "with port 0 for ws the edge that runs cannot be found: name its --upgrade-socket";
        return Err(Failure::configuration("--upgrade", what));
    }
    let name = upgrade_name(settings, settings.ws);
    let link = CoreLink::Grpc(settings.cores.clone());
    let taken = handover::connect(&name)
        .and_then(|old| EdgeNode::take_over(parts::edge_config(settings), verifier, link, old));
    let (edge, taken) = taken.map_err(|e| Failure::Runtime(format!("--upgrade: {e}")))?;
    let admin = match taken.admin {
        Some(admin) => admin,
        None => TcpListener::bind(settings.admin)
            .map_err(|e| Failure::Runtime(format!("cannot listen on {}: {e}", settings.admin)))?,
    };
    if let Ok(kept) = admin.local_addr()
        && settings.admin.port() != 0
        && kept != settings.admin
    {
        tracing::warn!("the admin pages stay at {kept}, until a restart");
    }
    Ok(Running {
        edge,
        admin,
        upgrade: taken.upgrade,
        predecessor: Some(taken.predecessor),
    })
}

/// The socket that upgrades of the edge on `ws` go through.
fn upgrade_name(settings: &Settings, ws: SocketAddr) -> String {
    let named = settings.upgrade_socket.clone();
    named.unwrap_or_else(|| format!("@trunkline-edge-{ws}"))
}

/// The echo server, a shard for each core, with the least of admin pages.
pub fn run_echo(settings: &Settings, runtime: &Runtime) -> Result<Ended, Failure> {
    let mut ending = Ending::register()?;
    let (admin, admin_address) = bind(runtime, settings.admin)?;
    let failed = |e: &dyn std::fmt::Display| Failure::Runtime(e.to_string());
    let stop = Arc::new(AtomicBool::new(false));
    let choice = settings.io_driver;
    let config = parts::driver_config(settings);
    let (mut ws, mut tcp) = (settings.ws, settings.tcp);
    let mut shards = Vec::new();
    for _ in 0..settings.shards.unwrap_or_else(parts::cores) {
        let listeners = [bind_reuseport(ws, BACKLOG), bind_reuseport(tcp, BACKLOG)];
        let [ws_listener, tcp_listener] = listeners;
        let ws_listener = ws_listener.map_err(|e| failed(&format_args!("{ws}: {e}")))?;
        let tcp_listener = tcp_listener.map_err(|e| failed(&format_args!("{tcp}: {e}")))?;
        // The first shard's ports are everybody's.
        ws = ws_listener.local_addr().map_err(|e| failed(&e))?;
        tcp = tcp_listener.local_addr().map_err(|e| failed(&e))?;
        let seat = EchoSeat {
            listeners: [ws_listener, tcp_listener],
            choice,
            config: config.clone(),
            stop: Arc::clone(&stop),
        };
        shards.push(seat.start().map_err(|e| failed(&e))?);
    }
    let pages = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async || "ready\n"));
    let (pages_stop, pages_stopped) = watch::channel(false);
    let pages = axum::serve(admin, pages)
        .with_graceful_shutdown(until(pages_stopped))
        .into_future();
    let pages = runtime.spawn(pages);

    let mut listening = Listening::default();
    listening.add("ws", ws);
    listening.add("tcp", tcp);
    listening.add("admin", admin_address);
    listening.write(settings.ports_file.as_deref())?;
    Listening::banner(
        "trunkline edge --echo",
        &[
            ("WebSocket", format!("ws://{ws}/")),
            ("TCP", tcp.to_string()),
        ],
    );

    let over = || shards.iter().all(JoinHandle::is_finished);
    let ended = ending.wait(|| stop.store(true, Ordering::Release), over);
    stop.store(true, Ordering::Release);
    let _ = pages_stop.send(true);
    let _ = runtime.block_on(pages);
    for shard in shards {
        shard
            .join()
            .map_err(|_| Failure::Runtime("a shard panicked".into()))?
            .map_err(Failure::Runtime)?;
    }
    Ok(ended)
}

/// A running echo shard.
type EchoShard = JoinHandle<Result<(), String>>;

/// What one echo shard is given.
struct EchoSeat {
    listeners: [std::net::TcpListener; 2],
    choice: DriverChoice,
    config: DriverConfig,
    stop: Arc<AtomicBool>,
}

impl EchoSeat {
    /// Starts the shard, and waits until it listens.
    fn start(self) -> Result<EchoShard, String> {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("echo-shard".into())
            .spawn(move || self.run(&ready).map_err(|e| e.to_string()))
            .map_err(|e| e.to_string())?;
        if is_ready.recv().is_ok() {
            return Ok(thread);
        }
        // It has ended by an error of its own.
        match thread.join() {
            Ok(Err(error)) => Err(error),
            _ => Err("a shard ended while it started".into()),
        }
    }

    fn run(self, ready: &std::sync::mpsc::Sender<()>) -> Result<(), Box<dyn std::error::Error>> {
        let options = Options::default();
        // The driver is made on the thread that uses it.
        let mut driver = ring::open(self.choice, &self.config)?;
        let [ws, tcp] = self.listeners;
        driver.listen(options.ws, ws)?;
        driver.listen(options.tcp, tcp)?;
        // Whoever does not wait any more stops us soon.
        let _ = ready.send(());
        run_echo_shard(&mut *driver, &self.stop, &options)?;
        Ok(())
    }
}
