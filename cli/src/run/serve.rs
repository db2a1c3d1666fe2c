//! `trunkline serve`: edge and core in one process, over the same link messages.

use std::future::IntoFuture as _;

use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use trunkline_core::rest::{CoreMemory, core_debug_router, serve_http};
use trunkline_core::runtime::CoreHandle;
use trunkline_edge::node::{CoreLink, EdgeHandle, EdgeNode};
use trunkline_edge::observe::admin::edge_debug_router;
use trunkline_edge::observe::memory::MemoryPage;

use super::listen::{Listening, bind, openable};
use super::signals::Ending;
use super::{Ended, parts};
use crate::exit::Failure;
use crate::settings::Settings;

pub fn run(settings: &Settings, runtime: &Runtime) -> Result<Ended, Failure> {
    let mut ending = Ending::register()?;
    let secret = parts::secret(settings)?;
    let (http, http_address) = bind(runtime, settings.http)?;
    let (admin, admin_address) = bind(runtime, settings.admin)?;
    let core = parts::start_core(settings, false)?;
    let core_handle = core.handle();
    let attach = core.handle();
    let link = CoreLink::Local(Box::new(move |hello, port| {
        attach.attach_local(hello, port)
    }));
    let edge = EdgeNode::start(parts::edge_config(settings), parts::verifier(&secret), link)
        .map_err(|e| Failure::Runtime(e.to_string()))?;

    let (stop, stopped) = watch::channel(false);
    let (ws_port, tcp_port) = (edge.ws_addr().port(), edge.tcp_addr().port());
    let rest = parts::rest_config(settings, &secret, ws_port, tcp_port);
    let front = runtime.spawn(serve_http(
        http,
        core.handle(),
        rest,
        until(stopped.clone()),
    ));
    let pages = admin_router(edge.handle(), core.handle());
    let admin_page = runtime.spawn(
        axum::serve(admin, pages)
            .with_graceful_shutdown(until(stopped))
            .into_future(),
    );

    wait_ready(&edge.handle(), &core_handle);
    let mut listening = Listening::default();
    listening.add("ws", edge.ws_addr());
    listening.add("tcp", edge.tcp_addr());
    listening.add("http", http_address);
    listening.add("admin", admin_address);
    listening.write(settings.ports_file.as_deref())?;
    announce(settings, &edge, http_address, admin_address);

    let edge_handle = edge.handle();
    let budget = settings.drain_budget;
    let ended = ending.wait(|| edge_handle.drain(budget), || edge.is_over());
    edge.stop();
    let counts = edge.join();
    tracing::info!(
        clean = counts.clean,
        forced = counts.forced,
        "connections have ended"
    );
    core.shutdown();
    // Nobody waits when both have ended by themselves.
    let _ = stop.send(true);
    runtime.block_on(async {
        let _ = front.await;
        let _ = admin_page.await;
    });
    Ok(ended)
}

/// Over when the flag is set, or its owner is gone.
pub async fn until(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|stop| *stop).await;
}

fn wait_ready(edge: &EdgeHandle, core: &CoreHandle) {
    while !(edge.is_ready() && core.is_ready()) {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn announce(
    settings: &Settings,
    edge: &EdgeNode,
    http: std::net::SocketAddr,
    admin: std::net::SocketAddr,
) {
    let mut lines = vec![
        ("page", format!("http://{}/", openable(http))),
        ("WebSocket", format!("ws://{}/v1/connect", edge.ws_addr())),
        ("TCP", edge.tcp_addr().to_string()),
        ("admin", format!("http://{admin}/metrics")),
        ("data", settings.store_dir.display().to_string()),
        ("driver", edge.driver_name().to_owned()),
    ];
    if settings.dev_tokens {
        tracing::warn!(
            "development tokens: anybody who reaches this machine's loopback can be any user"
        );
        lines.push(("tokens", "development: anybody may be any user".to_owned()));
    }
    Listening::banner("trunkline serve", &lines);
}

/// The pages of both tiers on one address.
fn admin_router(edge: EdgeHandle, core: CoreHandle) -> Router {
    let (ready_edge, ready_core) = (edge.clone(), core.clone());
    let (metrics_edge, metrics_core) = (edge.clone(), core.clone());
    let (memory_edge, memory_core) = (edge.clone(), core.clone());
    let healthy = edge.clone();
    Router::new()
        .route("/healthz", get(async move || health(healthy.is_healthy())))
        .route(
            "/readyz",
            get(async move || readiness(&ready_edge, &ready_core)),
        )
        .route(
            "/metrics",
            get(async move || metrics(&metrics_edge, &metrics_core)),
        )
        .route(
            "/debug/memory",
            get(async move || Json(memory(&memory_edge, &memory_core))),
        )
        .merge(edge_debug_router(edge))
        .merge(core_debug_router(core))
}

/// What both tiers hold: the edge's page, and the core's within it.
fn memory(edge: &EdgeHandle, core: &CoreHandle) -> Value {
    // Of numbers under fixed names, which JSON can always hold.
    let mut page = serde_json::to_value(MemoryPage::from(edge.memory())).unwrap_or_default();
    page["core"] = serde_json::to_value(CoreMemory::of(core)).unwrap_or_default();
    page
}

const fn health(is_healthy: bool) -> (StatusCode, &'static str) {
    if is_healthy {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "a shard has failed\n")
    }
}

fn readiness(edge: &EdgeHandle, core: &CoreHandle) -> (StatusCode, &'static str) {
    match edge.not_ready() {
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        None if core.is_ready() => (StatusCode::OK, "ready\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the core is not ready\n"),
    }
}

fn metrics(
    edge: &EdgeHandle,
    core: &CoreHandle,
) -> ([(header::HeaderName, &'static str); 1], String) {
    let mut text = String::new();
    edge.encode_metrics(&mut text);
    core.encode_metrics(&mut text);
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
}
