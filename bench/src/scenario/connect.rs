//! `connect`: establish sessions, and perhaps end them all and establish them all at once again.

use clap::Args;
use serde::Serialize;

use crate::BenchError;
use crate::args::{FleetArgs, OutputArgs, TargetArgs};
use crate::fleet::Fleet;
use crate::progress::Progress;
use crate::result::{Better, RunResult};
use crate::scenario::common::{self, Meter, Sampler};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  20,000 sessions as fast as they go, with a server of its own:
    trunkline bench connect --spawn -n 20000

  At 5,000 a second, each timed from when it was due:
    trunkline bench connect --spawn -n 50000 --ramp 5000/s --spawn-args \"--connections-max 60000\"

  Then all leave and come back at once:
    trunkline bench connect --spawn -n 15000 --storm

  What raw TCP costs instead, in two tiers:
    trunkline bench connect --spawn-two -n 15000 --transport tcp";

/// `trunkline bench connect`
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct ConnectArgs {
    /// When all are there, have them all leave and come back at once
    #[arg(long)]
    pub storm: bool,
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

/// Runs the scenario.
pub fn run(args: &ConnectArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    args.fleet.check()?;
    common::with_present(&args.fleet, &args.target, |target, fleet| {
        measure(args, target, fleet, progress)
    })
}

fn measure(
    args: &ConnectArgs,
    target: &Target,
    fleet: &Fleet,
    progress: &dyn Progress,
) -> Result<RunResult, BenchError> {
    let parts: [&dyn common::ErasedArgs; 3] = [args, &args.fleet, &args.target];
    let mut result = common::begin("connect", &parts);
    let mut sampler = Sampler::new();
    let wanted = u64::from(fleet.len());
    progress.phase("connecting", Some(wanted));
    fleet.allow(fleet.len())?;
    round(
        "",
        wanted,
        target,
        fleet,
        progress,
        &mut sampler,
        &mut result,
    )?;
    if args.storm {
        progress.phase("connecting all again", Some(2 * wanted));
        fleet.leave()?;
        round(
            "storm_",
            2 * wanted,
            target,
            fleet,
            progress,
            &mut sampler,
            &mut result,
        )?;
    }
    result.metric("sessions", wanted as f64, "count", Better::Neither);
    sampler.into_result(&mut result);
    Ok(result)
}

/// Waits until as many sessions came up since the beginning, and tells what that took.
fn round(
    prefix: &str,
    wanted: u64,
    target: &Target,
    fleet: &Fleet,
    progress: &dyn Progress,
    sampler: &mut Sampler,
    result: &mut RunResult,
) -> Result<(), BenchError> {
    let meter = Meter::start(target);
    fleet.wait_sessions(wanted, progress, &mut |_| sampler.look(target, fleet))?;
    let usage = meter.stop(target);
    let tally = fleet.take()?;
    let sessions = f64::from(fleet.len());
    let rate = sessions / usage.seconds;
    let name = |what: &str| format!("{prefix}{what}");
    result.metric(&name("connect_rate"), rate, "per_second", Better::Higher);
    let seconds = usage.seconds;
    result.metric(&name("seconds_to_all"), seconds, "s", Better::Lower);
    result.latency(&name("connect"), &tally.connect);
    usage.each(
        &format!("{prefix}session"),
        u64::from(fleet.len()),
        "us",
        result,
    );
    common::connect_problems(&tally, result);
    common::session_problems(&tally, result);
    Ok(())
}
