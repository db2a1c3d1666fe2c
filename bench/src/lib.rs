//! Load generators: real clients in great number, on the product's own ring, that know what the
//! server should have done and when it should have done it.
//!
//! Latencies are counted from the moment at which a message was *due*, not from when the generator
//! got round to sending it: a server that stalls shows in every message that was due meanwhile
//! (no coordinated omission).
//!
//! # Layout
//! - [`args`]: the command line of `trunkline bench`
//! - [`chat`]: the scenario: connect, settle, load, drain
//! - [`worker`]: one generator thread: a driver and its clients
//! - [`wire`]: the client's side of the WebSocket and of delimited frames
//! - [`target`]: the server under load: found or started, its tokens, groups, CPU and memory
//! - [`report`]: the typed result of `chat`, as text and JSON
//! - [`result`]: the typed result of a run, the same for every scenario

pub mod args;
pub mod chat;
pub mod report;
pub mod result;
pub mod target;
pub mod wire;
pub mod worker;

/// Why a run gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The command line contradicts itself.
    #[error("{0}")]
    Usage(String),
    /// The server is not there, refused, or died.
    #[error("server: {0}")]
    Server(String),
    /// Not all connections came up.
    #[error(
        "only {connected} of {wanted} connections came up within {seconds} s; first failure: {failure}"
    )]
    Connect {
        connected: u32,
        wanted: u32,
        seconds: u64,
        failure: String,
    },
    /// No driver for the generator's own sockets.
    #[error("generator: {0}")]
    Driver(#[from] trunkline_edge::ring::OpenError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}
