//! `trunkline core`: the engine and its store, for edges that attach over gRPC.

use tokio::runtime::Runtime;
use tokio::sync::watch;
use trunkline_core::ingress::serve_grpc;
use trunkline_core::rest::{serve_admin, serve_http};

use super::listen::{Listening, bind};
use super::serve::until;
use super::signals::Ending;
use super::{Ended, parts};
use crate::exit::Failure;
use crate::settings::Settings;

/// Where edges listen by default; `ws_url` and `tcp_url` say otherwise.
const EDGE_WS_PORT: u16 = 7_400;
const EDGE_TCP_PORT: u16 = 7_401;

pub fn run(settings: &Settings, runtime: &Runtime) -> Result<Ended, Failure> {
    let mut ending = Ending::register()?;
    let secret = parts::secret(settings)?;
    let (http, http_address) = bind(runtime, settings.http)?;
    let (grpc, grpc_address) = bind(runtime, settings.grpc)?;
    let (admin, admin_address) = bind(runtime, settings.admin)?;
    let core = parts::start_core(settings, true)?;
    let handle = core.handle();
    let (stop, stopped) = watch::channel(false);
    let rest = parts::rest_config(settings, &secret, EDGE_WS_PORT, EDGE_TCP_PORT);
    let fronts = [
        runtime.spawn(log_end(
            "gRPC",
            serve_grpc(grpc, core.handle(), until(stopped.clone())),
        )),
        runtime.spawn(log_end(
            "HTTP",
            serve_http(http, core.handle(), rest, until(stopped.clone())),
        )),
        runtime.spawn(log_end(
            "admin",
            serve_admin(admin, core.handle(), until(stopped)),
        )),
    ];
    while !handle.is_ready() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let mut listening = Listening::default();
    listening.add("http", http_address);
    listening.add("grpc", grpc_address);
    listening.add("admin", admin_address);
    listening.write(settings.ports_file.as_deref())?;
    Listening::banner(
        "trunkline core",
        &[
            ("edges", format!("http://{grpc_address}")),
            ("REST", format!("http://{http_address}/")),
            ("admin", format!("http://{admin_address}/metrics")),
            ("store", settings.store_dir.display().to_string()),
        ],
    );
    // What is under way ends with the shutdown; there are no clients to send elsewhere.
    let ended = ending.wait(|| handle.drain(), || true);
    core.shutdown();
    // Nobody waits when all have ended by themselves.
    let _ = stop.send(true);
    runtime.block_on(async {
        for front in fronts {
            let _ = front.await;
        }
    });
    Ok(ended)
}

async fn log_end<E: std::fmt::Display>(what: &str, front: impl Future<Output = Result<(), E>>) {
    if let Err(error) = front.await {
        tracing::error!("{what} has ended: {error}");
    }
}
