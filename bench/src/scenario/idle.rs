//! `idle`: sessions that are there and give their signs of life. What each costs in memory, and what
//! all of them cost in CPU.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::BenchError;
use crate::args::{FleetArgs, OutputArgs, TargetArgs, parse_duration, seconds};
use crate::fleet::Fleet;
use crate::progress::Progress;
use crate::result::{Better, RunResult};
use crate::scenario::common::{self, Memory, Meter, SETTLE, Sampler};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  What 15,000 idle sessions cost, with a server of its own:
    trunkline bench idle --spawn -n 15000 --duration 30s

  A million, on a machine that has 12 GB to spare (a tenth more is room for uneven spread):
    trunkline bench idle --spawn -n 1000000 --duration 60s --spawn-args \"--connections-max 1100000 --shards 1\"

  The same with signs of life that the server has to answer:
    trunkline bench idle --spawn -n 15000 --heartbeat ping

How it counts: memory of each session is the slope between the first sessions (--first) and all, so
that what a process costs once is in no session's price. Kernel memory is the growth of slabs and
socket buffers of the whole machine; on loopback both ends are here and alike, so a session's is half
of it.";

/// `trunkline bench idle`
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct IdleArgs {
    /// How long the sessions are held
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// Sessions that are up before memory is read for the first time; default: a tenth, at most
    /// 10,000
    #[arg(long)]
    pub first: Option<u32>,
    #[command(flatten)]
    #[serde(skip)]
    pub fleet: FleetArgs,
    #[command(flatten)]
    #[serde(skip)]
    pub target: TargetArgs,
    #[command(flatten)]
    #[serde(skip)]
    pub output: OutputArgs,
}

const FIRST_MAX: u32 = 10_000;

/// Runs the scenario.
pub fn run(args: &IdleArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    args.fleet.check()?;
    if args
        .first
        .is_some_and(|n| n == 0 || n >= args.fleet.connections)
    {
        let message = "--first: at least one, and fewer than --connections";
        return Err(BenchError::Usage(message.into()));
    }
    common::with_present(&args.fleet, &args.target, |target, fleet| {
        measure(args, target, fleet, progress)
    })
}

fn measure(
    args: &IdleArgs,
    target: &Target,
    fleet: &Fleet,
    progress: &dyn Progress,
) -> Result<RunResult, BenchError> {
    let parts: [&dyn common::ErasedArgs; 3] = [args, &args.fleet, &args.target];
    let mut result = common::begin("idle", &parts);
    let mut sampler = Sampler::new();
    let first = args.first.unwrap_or((fleet.len() / 10).clamp(1, FIRST_MAX));
    progress.phase("connecting the first", Some(u64::from(first)));
    let first = fleet.allow(first)?;
    let look = |sampler: &mut Sampler, wanted: u32| {
        fleet.wait_sessions(u64::from(wanted), progress, &mut |_| {
            sampler.look(target, fleet);
        })
    };
    look(&mut sampler, first)?;
    common::hold(SETTLE, target, fleet, &mut sampler)?;
    let memory_first = Memory::now(target);
    progress.phase("connecting", Some(u64::from(fleet.len())));
    let meter = Meter::start(target);
    fleet.allow(fleet.len())?;
    look(&mut sampler, fleet.len())?;
    let connecting = meter.stop(target);
    let further = fleet.len() - first;
    let rate = f64::from(further) / connecting.seconds;
    result.metric("connect_rate", rate, "per_second", Better::Higher);
    connecting.each("session", u64::from(further), "us", &mut result);
    common::hold(SETTLE, target, fleet, &mut sampler)?;
    Memory::now(target).slope(&memory_first, further, fleet.len(), &mut result);
    own_view(target, &mut result);

    progress.phase("holding", None);
    let connected = fleet.take()?;
    result.latency("connect", &connected.connect);
    common::connect_problems(&connected, &mut result);
    common::session_problems(&connected, &mut result);
    let meter = Meter::start(target);
    common::hold(args.duration, target, fleet, &mut sampler)?;
    let usage = meter.stop(target);
    let held = fleet.take()?;
    usage.percent(&mut result);
    if held.heartbeats > 0 {
        usage.each("heartbeat", held.heartbeats, "ns", &mut result);
        let rate = held.heartbeats as f64 / usage.seconds;
        result.metric("heartbeat_rate", rate, "per_second", Better::Neither);
    }
    common::session_problems(&held, &mut result);
    common::connect_problems(&held, &mut result);
    let up = fleet.up();
    result.metric("sessions", f64::from(up), "count", Better::Higher);
    if up < fleet.len() {
        let problem = format!("{} of {} sessions were up at the end", up, fleet.len());
        result.problems.push(problem);
    }
    sampler.into_result(&mut result);
    Ok(result)
}

/// What the edges themselves say that a session costs them.
fn own_view(target: &Target, result: &mut RunResult) {
    for process in &target.processes {
        if let Some(bytes) = process.debug_memory("bytes_per_connection") {
            let name = format!("{}_tables_bytes_per_session", process.name);
            result.metric(&name, bytes, "bytes", Better::Lower);
        }
    }
}
