//! Load generators: real clients in great number, on the product's own ring, that know what the
//! server should have done and when it should have done it.
//!
//! Latencies are counted from the moment at which a message was *due*, not from when the generator
//! got round to sending it: a server that stalls shows in every message that was due meanwhile
//! (no coordinated omission).
//!
//! # Layout
//! - [`args`]: the command line of `trunkline bench`, what several scenarios share of it
//! - [`scenario`]: the scenarios on chat clients
//! - [`echo`], [`floor`]: the socket path compared with the kernel's price and with other servers
//! - [`fleet`]: the chat clients, up to millions
//! - [`target`]: the server under load: found or started, its groups, its own view of itself
//! - [`probe`]: CPU and memory, of processes and of the kernel
//! - [`progress`]: how a run tells what it is doing
//! - [`result`]: the typed result of a run, the same for every scenario
//! - [`output`]: what becomes of it
//! - [`preset`]: scenario files, turned into the command line
//! - [`catalogue`], [`budget`]: what the figures mean, and limits on them
//! - [`html`], [`compare`], [`plan`]: a result as a page, against another, and as a fleet
//! - [`tools`]: the subcommands that run no scenario; [`stored`], [`units`]: what they read and how
//!   figures are written

pub mod args;
pub mod budget;
pub mod catalogue;
pub mod compare;
pub mod echo;
pub mod fleet;
pub mod floor;
pub mod html;
pub mod output;
pub mod plan;
pub mod preset;
pub mod probe;
pub mod progress;
pub mod result;
pub mod scenario;
pub mod stored;
pub mod target;
pub mod tools;
pub mod units;

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
