//! The admin pages of an edge: health, readiness, numbers, connections, memory.

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};

use super::memory::MemoryPage;
use crate::node::EdgeHandle;
use crate::session;

/// Connections on one page when the caller does not say, and at most.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;

/// `/healthz`, `/readyz`, `/metrics` and the `/debug` pages.
pub fn edge_admin_router(handle: EdgeHandle) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/debug/memory", get(memory))
        .with_state(handle.clone())
        .merge(edge_debug_router(handle))
}

/// `/debug/conns` alone, to merge with another admin server's pages.
pub fn edge_debug_router(handle: EdgeHandle) -> Router {
    Router::new()
        .route("/debug/conns", get(conns))
        .with_state(handle)
}

async fn healthz(State(edge): State<EdgeHandle>) -> (StatusCode, &'static str) {
    if edge.is_healthy() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "a shard has failed\n")
    }
}

async fn readyz(State(edge): State<EdgeHandle>) -> (StatusCode, &'static str) {
    match edge.not_ready() {
        None => (StatusCode::OK, "ready\n"),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn metrics(State(edge): State<EdgeHandle>) -> Response {
    let mut text = String::new();
    edge.encode_metrics(&mut text);
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

#[derive(Debug, Deserialize)]
struct ConnsQuery {
    state: Option<String>,
    limit: Option<usize>,
}

/// A page of `/debug/conns`.
#[derive(Debug, Serialize)]
struct Page<T> {
    connections: Vec<T>,
}

async fn conns(State(edge): State<EdgeHandle>, Query(query): Query<ConnsQuery>) -> Response {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
    let state = query.state.as_deref().unwrap_or("all");
    if state == "closed" {
        let connections = edge.closed(limit).await;
        return Json(Page { connections }).into_response();
    }
    let wanted = session::State::SHOWN
        .into_iter()
        .find(|s| s.name() == state);
    if wanted.is_none() && state != "all" {
        let states = "state: all, handshake, await_connect, registering, live, closing or closed\n";
        return (StatusCode::BAD_REQUEST, states).into_response();
    }
    let connections = edge.connections(wanted, limit).await;
    Json(Page { connections }).into_response()
}

async fn memory(State(edge): State<EdgeHandle>) -> Json<MemoryPage> {
    Json(edge.memory().into())
}
