//! `bench echo`, `bench floor` and `bench pairs`: the instrument that compares a socket path with
//! the kernel's own price, with other runtimes and with other servers. The same cheap generator, the
//! same work, and the server's CPU time for each message.
//!
//! # Layout
//! - [`args`]: the command lines
//! - [`contestant`]: the server: found or started, on a processor of its own
//! - [`protocol`]: what the generator speaks: TCP, WebSocket, NATS, MQTT, Centrifuge
//! - [`payload`]: what is sent and must come back
//! - [`generator`]: the thread that sends, compares, counts and times
//! - [`cpu`]: CPU time in ns
//! - [`measure`]: one measurement of one server
//! - [`pairs`]: several servers in turn, medians and ratios

pub mod args;
pub mod contestant;
pub mod cpu;
pub mod generator;
pub mod measure;
pub mod pairs;
pub mod payload;
pub mod protocol;

#[cfg(test)]
mod tests;

use args::{EchoArgs, FloorArgs, LoadArgs, Shape};
use contestant::Contestant;
use measure::Measured;

use crate::BenchError;
use crate::args::parameters;
use crate::progress::Progress;
use crate::result::RunResult;

/// `trunkline bench echo`
pub fn run(args: &EchoArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    one("echo", &args.contestant()?, &args.load, progress)
}

/// `trunkline bench floor`
pub fn run_floor(args: &FloorArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    one("floor", &Contestant::Floor, &args.load, progress)
}

fn one(
    scenario: &str,
    contestant: &Contestant,
    load: &LoadArgs,
    progress: &dyn Progress,
) -> Result<RunResult, BenchError> {
    let mut result = RunResult::begin(scenario, parameters(&[load]));
    progress.phase(scenario, None);
    let measured = measure::measure(contestant, load)?;
    add(&mut result, measured, load.shape);
    Ok(result)
}

fn add(result: &mut RunResult, measured: Measured, shape: Shape) {
    result.metrics.extend(measured.metrics);
    result.problems.extend(measured.problems);
    let answer = match shape {
        Shape::Echo => "echo",
        Shape::Chat => "ack",
        Shape::Fanout => "last_delivery",
    };
    result.latency(answer, &measured.tally.answer);
    result.latency("delivery", &measured.tally.delivery);
}
