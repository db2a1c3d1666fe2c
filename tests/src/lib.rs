//! What the tests on real processes share.
//!
//! # Layout
//! - [`process`]: `trunkline` processes on ports of their own: started, killed, started again
//! - [`proxy`]: a TCP proxy that cuts what runs through it, in the middle of whatever it carries
//! - [`checker`]: all acks, all deliveries and all stored rows, compared
//! - [`wire`], [`session`]: plain clients that share no code with the product's own
//! - [`person`], [`cast`]: people behind `trunkline-client`, alone and talking to one another
//! - [`tap`]: a man in the middle of raw TCP who drops frames
//! - [`rest`]: the few REST calls that the tests make
//!
//! Invariants: a process that a test started ends with the test; ports are the kernel's choice; what
//! is waited for is polled with a deadline.

pub mod cast;
pub mod checker;
pub mod person;
pub mod process;
pub mod proxy;
pub mod rest;
pub mod session;
pub mod tap;
pub mod wire;

use std::time::{Duration, Instant};

/// How long anything may take that a test waits for, on a slow machine with its cores taken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `probe` gives a value, or fails saying what it waited for.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
