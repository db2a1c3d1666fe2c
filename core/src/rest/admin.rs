//! The admin pages: is it alive, is it ready, what does it count, who is attached. For operators,
//! on an address of their own; no authentication.

use std::future::Future;
use std::io;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;

use super::listen;
use super::problem::Problem;
use crate::engine::RegistryBytes;
use crate::runtime::{CoreHandle, EdgeReport};

/// What `/metrics` is.
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves the admin pages of a core until `shutdown` is over.
pub async fn serve_admin(
    listener: TcpListener,
    handle: CoreHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listen::serve(listener, core_admin_router(handle), shutdown).await
}

/// All admin pages of a core: `/healthz`, `/readyz`, `/metrics`, `/debug/edges`, `/debug/memory`.
pub fn core_admin_router(handle: CoreHandle) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/debug/memory", get(memory))
        .with_state(handle.clone())
        .merge(core_debug_router(handle))
        .fallback(|| async { Problem::not_found("nothing is here") })
}

/// `/debug/edges` alone, for a process that has the other pages of its own.
pub fn core_debug_router(handle: CoreHandle) -> Router {
    Router::new()
        .route("/debug/edges", get(edges))
        .with_state(handle)
}

async fn readyz(State(handle): State<CoreHandle>) -> Response {
    if handle.is_ready() {
        "ready\n".into_response()
    } else if handle.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    }
}

async fn metrics(State(handle): State<CoreHandle>) -> Response {
    let mut text = String::new();
    handle.encode_metrics(&mut text);
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response()
}

async fn memory(State(handle): State<CoreHandle>) -> Json<CoreMemory> {
    Json(CoreMemory::of(&handle))
}

/// The page `/debug/memory` of a core: what its registry takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CoreMemory {
    sessions: u64,
    users: u64,
    /// By part, in bytes.
    registry: RegistryBytes,
    registry_bytes: u64,
    registry_bytes_per_session: u64,
}

impl CoreMemory {
    /// As of at most a quarter of a second ago.
    pub fn of(handle: &CoreHandle) -> Self {
        let stats = handle.engine_stats();
        let registry_bytes = stats.registry.total();
        Self {
            sessions: stats.sessions,
            users: stats.users,
            registry: stats.registry,
            registry_bytes,
            registry_bytes_per_session: registry_bytes.checked_div(stats.sessions).unwrap_or(0),
        }
    }
}

async fn edges(State(handle): State<CoreHandle>) -> Json<Vec<EdgeReport>> {
    Json(handle.edges())
}
