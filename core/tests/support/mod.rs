//! A whole core in the test's process: the embedded store in a temporary directory, real sockets on
//! loopback, and the two sorts of peers that a core has: an HTTP client and an edge.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod edge;
pub mod http;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use trunkline_core::ingress::serve_grpc;
use trunkline_core::rest::{RestConfig, serve_admin, serve_http};
use trunkline_core::runtime::{Core, CoreConfig, CoreHandle};
use trunkline_core::store::MessageStore;
use trunkline_core::store::embedded::{EmbeddedOptions, EmbeddedStore};
use trunkline_identity::{KeySource, Verifier};

pub const SECRET: &str = "a secret of the tests, long enough to be one";
/// Within this everything that must happen happens, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct TestCore {
    pub handle: CoreHandle,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    core: Option<Core>,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

pub fn rest_config() -> RestConfig {
    RestConfig {
        dev_token_secret: Some(SECRET.into()),
        ..RestConfig::new(Verifier::new(&KeySource::Secret(SECRET.into())))
    }
}

pub fn core_config() -> CoreConfig {
    CoreConfig {
        on_fatal: Arc::new(|reason| panic!("the store failed: {reason}")),
        ..CoreConfig::default()
    }
}

pub fn token(user: &str) -> String {
    trunkline_identity::mint(SECRET, user, Duration::from_secs(600))
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

impl TestCore {
    pub async fn start() -> Self {
        Self::with(core_config(), rest_config()).await
    }

    pub async fn with(config: CoreConfig, rest: RestConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path(), &EmbeddedOptions::default()).unwrap();
        let config = CoreConfig {
            store_stats: Some(store.stats()),
            ..config
        };
        Self::on_store(config, rest, Arc::new(store), dir).await
    }

    pub async fn on_store(
        config: CoreConfig,
        rest: RestConfig,
        store: Arc<dyn MessageStore>,
        dir: tempfile::TempDir,
    ) -> Self {
        let core = Core::start(config, store).unwrap();
        let handle = core.handle();
        let (stop, stopped) = watch::channel(false);
        let until = |mut stopped: watch::Receiver<bool>| async move {
            let _ = stopped.wait_for(|&stop| stop).await;
        };
        let (http_listener, http) = listener().await;
        let (grpc_listener, grpc) = listener().await;
        let (admin_listener, admin) = listener().await;
        let (of_http, of_grpc, of_admin) = (handle.clone(), handle.clone(), handle.clone());
        let (end_http, end_grpc, end_admin) = (
            until(stopped.clone()),
            until(stopped.clone()),
            until(stopped),
        );
        let tasks = vec![
            tokio::spawn(async move {
                serve_http(http_listener, of_http, rest, end_http)
                    .await
                    .unwrap();
            }),
            tokio::spawn(async move {
                serve_grpc(grpc_listener, of_grpc, end_grpc).await.unwrap();
            }),
            tokio::spawn(async move {
                serve_admin(admin_listener, of_admin, end_admin)
                    .await
                    .unwrap();
            }),
        ];
        let started = Self {
            handle,
            http,
            grpc,
            admin,
            core: Some(core),
            stop,
            tasks,
            _dir: dir,
        };
        eventually("the core is ready", || started.handle.is_ready()).await;
        started
    }

    /// Drains the core; its listeners stay.
    pub async fn drain(&mut self) {
        let core = self.core.take().expect("drained once");
        tokio::task::spawn_blocking(move || core.shutdown())
            .await
            .unwrap();
    }

    /// Ends it all, in the order that the product uses.
    pub async fn shutdown(mut self) {
        if self.core.is_some() {
            self.drain().await;
        }
        self.stop.send(true).unwrap();
        for task in self.tasks.drain(..) {
            tokio::time::timeout(PATIENCE, task)
                .await
                .expect("a server does not end")
                .unwrap();
        }
    }
}

pub fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64
}

/// Waits until `condition` holds; fails the test if it never does.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
