//! `soak`: talk for long at a modest rate while clients come and go. Everybody must still see
//! everything, and memory must not grow.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::BenchError;
use crate::args::{FleetArgs, OutputArgs, TargetArgs, parse_duration, seconds};
use crate::fleet::talk::{Phase, Talkers, Talking};
use crate::fleet::{Fleet, Shape};
use crate::progress::Progress;
use crate::result::{Better, RunResult, Series};
use crate::scenario::chat::{self, LoadArgs, Window};
use crate::scenario::common::{self, Sampler};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  An hour with 1,000 clients, of whom a tenth leaves and comes back every minute:
    trunkline bench soak --spawn -n 1000 --rate 500 --duration 1h --churn 0.1

  In groups too, against a server that runs already:
    trunkline bench soak --groups 20 --group-size 50 --group-share 0.3 --rate 200 --duration 8h --secret … --server-pid 4711

Whoever comes back asks for what it missed and must get all of it. `memory_growth` is the slope of the
server's memory over the second half.";

/// `trunkline bench soak`
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct SoakArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub load: LoadArgs,
    /// Part of the clients that leaves and comes back at once, every minute
    #[arg(long, default_value_t = 0.1)]
    pub churn: f64,
    #[arg(long, default_value = "5m", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
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
pub fn run(args: &SoakArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    args.fleet.check()?;
    args.load.check(args.fleet.connections)?;
    if args.load.rate == 0 || !(0.0..=60.0).contains(&args.churn) {
        let message = "--rate: at least 1 in a soak; --churn: from 0 to 60";
        return Err(BenchError::Usage(message.into()));
    }
    common::with_target(Target::open(&args.target, 1), |target| {
        let people = Fleet::people(&args.fleet, target)?;
        let mut talk = args.load.talk(0..args.fleet.connections, args.churn);
        chat::create_groups(&mut talk, args.load.groups, target, &people, progress)?;
        let (talk, talking) = (Arc::new(talk), Talking::new());
        let mut talkers = |numbers| Box::new(Talkers::new(&talk, &talking, numbers)) as Box<_>;
        let shape = Shape::default();
        let fleet = Fleet::start(&args.fleet, target, &people, shape, &mut talkers);
        common::with_fleet(fleet, |fleet| {
            let parts: [&dyn common::ErasedArgs; 3] = [args, &args.fleet, &args.target];
            let mut result = common::begin("soak", &parts);
            let mut sampler = Sampler::new();
            chat::connect(target, fleet, progress, &mut sampler, &mut result)?;
            progress.phase("talking", None);
            talking.set(Phase::Load);
            let window = Window::open(target, fleet, &talking, args.duration);
            common::hold(args.duration, target, fleet, &mut sampler)?;
            window.close(target, &talking, &mut result);
            if let Some(growth) = sampler.get("server_memory").and_then(slope) {
                result.metric("memory_growth", growth, "bytes_per_second", Better::Lower);
            }
            let tally = chat::settle(
                &[(&talk, &talking)],
                fleet,
                target,
                &mut sampler,
                &mut result,
            )?;
            chat::told(&tally, &mut result);
            for name in ["sent", "left", "fetched", "away"] {
                let n = tally.counted(name) as f64;
                result.metric(name, n, "count", Better::Neither);
            }
            result.latency("reconnect", &tally.connect);
            common::session_problems(&tally, &mut result);
            common::connect_problems(&tally, &mut result);
            sampler.into_result(&mut result);
            Ok(result)
        })
    })
}

/// Least squares over the second half of a series: its unit in a second. `None` with under three
/// points.
fn slope(series: &Series) -> Option<f64> {
    let half = &series.points[series.points.len() / 2..];
    if half.len() < 3 {
        return None;
    }
    let n = half.len() as f64;
    let mean = |at: usize| half.iter().map(|p| p[at]).sum::<f64>() / n;
    let (x, y) = (mean(0), mean(1));
    let over = half.iter().map(|p| (p[0] - x) * (p[1] - y)).sum::<f64>();
    let under = half.iter().map(|p| (p[0] - x).powi(2)).sum::<f64>();
    (under > 0.0).then(|| over / under)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_that_of_the_second_half() {
        let value = |i: u32| {
            if i < 10 {
                1_000.0 * f64::from(i)
            } else {
                10_000.0 + 3.0 * f64::from(i)
            }
        };
        let series = Series {
            points: (0..20).map(|i| [f64::from(i), value(i)]).collect(),
            ..Series::default()
        };
        assert!((slope(&series).unwrap() - 3.0).abs() < 1e-9);
        assert_eq!(slope(&Series::default()), None);
    }
}
