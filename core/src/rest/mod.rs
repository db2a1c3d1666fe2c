//! The HTTP front: the REST calls of the external contract, the demo page, the admin pages.
//!
//! Invariants:
//! 1. Every error is a [`problem::Problem`], whoever finds it: a handler, a path that does not
//!    exist, a body that is too long.
//! 2. Nothing is decided here: calls become [`crate::engine::Request`]s, and answers come from there.
//! 3. Bounded: connections, idle time ([`listen`]), bodies ([`BODY_BYTES_MAX`]), calls under way
//!    ([`crate::runtime::CoreConfig::requests_max`]).
//!
//! Called by the command line.

mod admin;
mod assets;
mod calls;
mod cors;
mod extract;
mod listen;
mod problem;
mod view;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use tokio::net::TcpListener;
use trunkline_identity::Verifier;
use trunkline_proto::limits;

pub use self::admin::{
    CoreMemory, METRICS_CONTENT_TYPE, core_admin_router, core_debug_router, serve_admin,
};
pub use self::listen::{HTTP_CONNECTIONS_MAX, HTTP_IDLE_MAX, HTTP_SHUTDOWN_MAX};
use self::problem::Problem;
use crate::runtime::{CoreHandle, RequestLabels};

/// Bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// Where clients find a transport, as `GET /v1/config` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advertised {
    /// On the host by which the caller reached this front, at this port.
    Port(u16),
    /// Exactly here (for proxies, or edges on other hosts).
    Url(String),
}

/// What the REST front is told.
#[derive(Clone, Debug)]
pub struct RestConfig {
    pub verifier: Verifier,
    /// Signs development tokens; `None`: there are none.
    pub dev_token_secret: Option<String>,
    /// Origins besides our own that browsers may call from. `*`: all.
    pub cors_origins: Vec<String>,
    pub websocket: Advertised,
    pub tcp: Advertised,
    pub max_frame_bytes: usize,
    pub send_rate: u32,
    pub send_burst: u32,
    pub group_members_max: usize,
    pub sessions_per_user_max: u32,
    pub heartbeat_ms: u32,
}

impl RestConfig {
    /// The contract's defaults, no development tokens, no foreign origins.
    pub fn new(verifier: Verifier) -> Self {
        Self {
            verifier,
            dev_token_secret: None,
            cors_origins: Vec::new(),
            websocket: Advertised::Port(7400),
            tcp: Advertised::Port(7401),
            max_frame_bytes: limits::FRAME_BYTES_MAX,
            send_rate: limits::SEND_RATE,
            send_burst: limits::SEND_BURST,
            group_members_max: limits::GROUP_MEMBERS_MAX,
            sessions_per_user_max: limits::SESSIONS_PER_USER_MAX,
            heartbeat_ms: limits::HEARTBEAT_MS,
        }
    }
}

/// What every call has at hand. Cheap to clone.
#[derive(Clone)]
struct RestState {
    handle: CoreHandle,
    config: Arc<RestConfig>,
}

impl RestState {
    fn handle(&self) -> &CoreHandle {
        &self.handle
    }

    fn config(&self) -> &RestConfig {
        &self.config
    }

    fn verifier(&self) -> &Verifier {
        &self.config.verifier
    }
}

/// Serves REST and the demo page on `listener` until `shutdown` is over. The core counts as ready
/// from here on.
pub async fn serve_http(
    listener: TcpListener,
    handle: CoreHandle,
    config: RestConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = router(handle.clone(), config);
    handle.http_listens();
    listen::serve(listener, router, shutdown).await
}

/// REST and the demo page.
pub fn router(handle: CoreHandle, config: RestConfig) -> Router {
    let origins: cors::AllowedOrigins = config.cors_origins.clone().into();
    let state = RestState {
        handle: handle.clone(),
        config: Arc::new(config),
    };
    calls_router()
        .merge(unbuilt_router())
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .fallback(|request: Request| async move {
            assets::serve(request.method(), request.uri().path(), request.headers())
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(origins, cors::cors))
        .layer(middleware::from_fn_with_state(handle, observe))
        .with_state(state)
}

fn calls_router() -> Router<RestState> {
    Router::new()
        .route("/v1/config", get(calls::config))
        .route("/v1/dev/token", get(calls::dev_token))
        .route(
            "/v1/conversations",
            get(calls::list_conversations).post(calls::create_conversation),
        )
        .route(
            "/v1/conversations/{id}",
            get(calls::get_conversation)
                .patch(calls::set_title)
                .delete(calls::delete_conversation),
        )
        .route("/v1/conversations/{id}/members", get(calls::list_members))
        .route(
            "/v1/conversations/{id}/members/{user}",
            put(calls::put_member).delete(calls::remove_member),
        )
        .route("/v1/conversations/{id}/messages", get(calls::messages))
        .route("/v1/conversations/{id}/read", post(calls::mark_read))
        .route("/v1/conversations/{id}/receipts", get(calls::receipts))
        .route("/v1/messages", post(calls::send_message))
}

/// Calls of the contract that answer `not_implemented`.
fn unbuilt_router() -> Router<RestState> {
    let unbuilt = calls::not_implemented;
    Router::new()
        .route("/v1/history/{participant}", get(unbuilt))
        .route("/v1/chat/{group}", get(unbuilt))
        .route("/v1/users/{id}/status", get(unbuilt))
        .route("/v1/user/settings", get(unbuilt).put(unbuilt))
        .route("/v1/media", post(unbuilt))
        .route("/v1/devices/{device}", put(unbuilt).delete(unbuilt))
}

/// Counts and times each answer, and sets the headers that all have.
async fn observe(State(handle): State<CoreHandle>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", MatchedPath::as_str)
        .to_owned();
    // Methods are a closed set in the figures, whatever a client makes up.
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known,
        _ => "other",
    }
    .to_owned();
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    let labels = RequestLabels {
        method,
        route,
        status,
    };
    handle.answered(&labels, begun.elapsed());
    response
}
