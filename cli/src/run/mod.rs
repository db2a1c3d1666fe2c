//! The long-running subcommands: `serve`, `edge`, `core`. Each starts its parts in the order in
//! which they depend on one another, says where it listens, waits for a signal, and takes the parts
//! down in the opposite order.
//!
//! SIGTERM drains; a second SIGTERM, or SIGINT at any time, stops at once. The exit code is 0 after
//! a drain that ran its course or when a successor has taken over, 128 + the signal's number after a stop.

mod core;
mod edge;
mod listen;
mod notify;
mod parts;
mod serve;
mod signals;

use std::io::IsTerminal as _;

use clap::ArgMatches;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use crate::args;
use crate::exit::Failure;
use crate::settings::Settings;
use crate::settings::table::Role;

/// Threads for REST, gRPC and the admin pages; the message path has threads of its own.
const FRONT_THREADS: usize = 2;

/// A shorter HS256 secret can be found by trying.
const SECRET_BYTES_MIN: usize = 32;

/// Why `--upgrade` is for edges alone.
const NO_UPGRADE: &str = "only `trunkline edge` with a core can be upgraded in place: a store can be \
open in one process only. Run `trunkline core` and `trunkline edge` apart, or restart";

/// How a process that ran has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After a drain.
    Drained,
    /// A successor has everything.
    HandedOver,
    /// Stopped at once by this signal.
    Stopped(i32),
}

/// Runs until a signal ends it.
pub fn run(
    role: Role,
    matches: &ArgMatches,
    environment: &[(String, String)],
) -> Result<Ended, Failure> {
    // Before anything of size is allocated.
    let small_pages = trunkline_edge::ring::disable_huge_pages();
    let flags = args::given_settings(matches);
    let config = args::given_config(matches);
    let settings = Settings::load(role, &flags, config.as_deref(), environment)
        .map_err(Failure::Configuration)?;
    let upgrade = args::is_upgrade(matches);
    if upgrade && (role != Role::Edge || settings.echo) {
        return Err(Failure::configuration("--upgrade", NO_UPGRADE));
    }
    start_logging(&settings)?;
    if let Err(error) = small_pages {
        tracing::warn!("huge pages stay on, idle sessions will cost more memory: {error}");
    }
    match trunkline_edge::ring::raise_nofile() {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!("the limit on open files stays as it is: {error}"),
    }
    warn_about(&settings);
    let runtime = runtime()?;
    match (role, settings.echo) {
        (Role::Serve, _) => serve::run(&settings, &runtime),
        (Role::Edge, true) => edge::run_echo(&settings, &runtime),
        (Role::Edge, false) => edge::run(&settings, &runtime, upgrade),
        (Role::Core, _) => core::run(&settings, &runtime),
    }
}

/// What an operator should hear once.
fn warn_about(settings: &Settings) {
    if settings.send_rate == 0 {
        tracing::warn!("send_rate is 0: users may send without limit");
    }
    let is_short = |secret: &String| secret.len() < SECRET_BYTES_MIN;
    if settings.jwt_secret.as_ref().is_some_and(is_short) {
        tracing::warn!("jwt_secret is shorter than {SECRET_BYTES_MIN} bytes: it can be guessed");
    }
}

fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(FRONT_THREADS)
        .thread_name("front")
        .enable_all()
        .build()
        .map_err(|e| Failure::Runtime(format!("cannot start threads: {e}")))
}

fn start_logging(settings: &Settings) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|e| Failure::configuration("--log", e.to_string()))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let done = if settings.log_json {
        log.json().try_init()
    } else {
        log.try_init()
    };
    done.map_err(|e| Failure::Runtime(format!("cannot log: {e}")))
}
