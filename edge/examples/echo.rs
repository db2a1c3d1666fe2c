//! The echo server by itself, one shard: for conformance suites and comparisons.
//!
//! `cargo run --example echo -- [ws address] [tcp address] [auto|uring|epoll]`, by default
//! `127.0.0.1:7400 127.0.0.1:7401 auto`. Runs until it is killed.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;

use trunkline_edge::echo::{Options, run_echo_shard};
use trunkline_edge::ring::{BACKLOG, DriverChoice, DriverConfig, bind_reuseport, open};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |default: &str| args.next().unwrap_or_else(|| default.to_owned());
    let ws: SocketAddr = next("127.0.0.1:7400").parse()?;
    let tcp: SocketAddr = next("127.0.0.1:7401").parse()?;
    let choice: DriverChoice = next("auto").parse()?;
    let options = Options::default();
    let mut driver = open(choice, &DriverConfig::default())?;
    driver.listen(options.ws, bind_reuseport(ws, BACKLOG)?)?;
    driver.listen(options.tcp, bind_reuseport(tcp, BACKLOG)?)?;
    println!("{}: WebSocket on {ws}, TCP on {tcp}", driver.name());
    run_echo_shard(&mut *driver, &AtomicBool::new(false), &options)?;
    Ok(())
}
