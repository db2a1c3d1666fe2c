//! `drain`: an edge is told to end, and its clients leave when it tells each of them to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use trunkline_proto::client::{ServerBody, ServerFrame};

use crate::BenchError;
use crate::args::{FleetArgs, OutputArgs, TargetArgs, parse_duration, seconds};
use crate::fleet::{Behaviour, Crowd, Fleet, Shape};
use crate::progress::Progress;
use crate::result::{Better, RunResult};
use crate::scenario::chat;
use crate::scenario::common::{self, Meter, Sampler};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  15,000 clients move to another edge within the 30 s that an edge has:
    trunkline bench drain --spawn-two -n 15000

  Within 10 s, from a server that is alone:
    trunkline bench drain --spawn -n 15000 --spawn-args \"--drain-budget 10s\"

  Clients that do not obey are closed at the end of the budget:
    trunkline bench drain --spawn -n 1000 --disobey 100 --spawn-args \"--drain-budget 10s\"";

/// `trunkline bench drain`
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct DrainArgs {
    /// Clients that stay although they are told to leave
    #[arg(long, default_value_t = 0)]
    pub disobey: u32,
    /// For the edge to end
    #[arg(long, default_value = "90s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub patience: Duration,
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

/// Between the scenario and the clients.
#[derive(Default)]
struct Seen {
    /// Clients that were told to leave, and that left as told.
    told: AtomicU32,
    left: AtomicU32,
    /// Clients whose session the server ended.
    ended: AtomicU32,
}

struct Leavers {
    seen: Arc<Seen>,
    disobey: u32,
    told_at: Vec<bool>,
}

impl Behaviour for Leavers {
    fn frame(&mut self, client: u32, frame: ServerFrame, crowd: &mut Crowd) {
        let Some(ServerBody::Reconnect(reconnect)) = frame.frame else {
            return;
        };
        if std::mem::replace(&mut self.told_at[client as usize], true) {
            return crowd.tally.count("told_twice");
        }
        self.seen.told.fetch_add(1, Ordering::Relaxed);
        let after = u64::from(reconnect.after_ms) * 1_000_000;
        crowd.tally.time("told_to_wait", after);
        if crowd.number(client) < self.disobey {
            return crowd.stay_away(client);
        }
        if crowd.edges() > 1 {
            crowd.send_to_edge(client, 1);
        } else {
            crowd.stay_away(client);
        }
        let at = crowd.shared.now() + after;
        crowd.move_at(client, at);
        self.seen.left.fetch_add(1, Ordering::Relaxed);
    }

    fn down(&mut self, client: u32, _: &mut Crowd) {
        self.seen.ended.fetch_add(1, Ordering::Relaxed);
        if self.told_at[client as usize] && self.disobey == 0 {
            self.seen.left.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Runs the scenario.
pub fn run(args: &DrainArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    args.fleet.check()?;
    if !args.target.spawn && !args.target.spawn_two {
        let message = "drain ends an edge, so it needs one of its own: --spawn or --spawn-two";
        return Err(BenchError::Usage(message.into()));
    }
    if args.disobey > args.fleet.connections {
        let message = "--disobey: not more than --connections";
        return Err(BenchError::Usage(message.into()));
    }
    common::with_target(Target::open(&args.target, 2), |target| {
        let people = Fleet::people(&args.fleet, target)?;
        let seen = Arc::new(Seen::default());
        let mut leavers = |numbers: std::ops::Range<u32>| {
            Box::new(Leavers {
                seen: Arc::clone(&seen),
                disobey: args.disobey,
                told_at: vec![false; numbers.len()],
            }) as Box<_>
        };
        let shape = Shape::default();
        let fleet = Fleet::start(&args.fleet, target, &people, shape, &mut leavers);
        common::with_fleet(fleet, |fleet| measure(args, target, fleet, &seen, progress))
    })
}

fn measure(
    args: &DrainArgs,
    target: &mut Target,
    fleet: &Fleet,
    seen: &Seen,
    progress: &dyn Progress,
) -> Result<RunResult, BenchError> {
    let parts: [&dyn common::ErasedArgs; 3] = [args, &args.fleet, &args.target];
    let mut result = common::begin("drain", &parts);
    let mut sampler = Sampler::new();
    chat::connect(target, fleet, progress, &mut sampler, &mut result)?;
    progress.phase("draining", Some(u64::from(fleet.len())));
    let meter = Meter::start(target);
    let name = if args.target.spawn_two {
        "edge"
    } else {
        "serve"
    };
    let edge = target.process(name).and_then(|p| p.spawned.as_mut());
    let edge = edge.ok_or_else(|| BenchError::Usage(format!("no process {name}")))?;
    edge.signal("TERM")?;
    let began = Instant::now();
    let (mut status, mut next) = (None, began);
    let mut failed = None;
    fleet.wait_until(args.patience, || {
        if Instant::now() >= next {
            next += Duration::from_millis(100);
            let told = seen.told.load(Ordering::Relaxed);
            sampler.point("told_to_leave", "count", f64::from(told));
            sampler.point("up", "count", f64::from(fleet.up()));
            progress.at(u64::from(told), "told to leave");
        }
        match edge.ended() {
            Ok(ended) => status = ended,
            Err(error) => failed = Some(error),
        }
        status.is_some() || failed.is_some()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let seconds = began.elapsed().as_secs_f64();
    match status {
        Some(status) if status.success() => {
            result.metric("seconds_to_empty", seconds, "s", Better::Lower);
        }
        Some(status) => result
            .problems
            .push(format!("the edge ended with {status}")),
        None => {
            let patience = args.patience.as_secs();
            let problem = format!("the edge had not ended after {patience} s");
            result.problems.push(problem);
        }
    }
    let others = fleet.len() - args.disobey;
    let come = if args.target.spawn_two { others } else { 0 };
    fleet.wait_until(args.fleet.stall_max, || fleet.up() == come)?;
    let usage = meter.stop(target);
    usage.each("drained_session", u64::from(fleet.len()), "us", &mut result);
    let tally = fleet.take()?;
    if let Some(times) = tally.times.get("told_to_wait") {
        result.latency("told_to_wait", times);
    }
    if args.target.spawn_two {
        result.latency("moved", &tally.connect);
    }
    let forced: u64 = tally.closes.values().sum();
    let counts = [
        (
            "told_to_leave",
            u64::from(seen.told.load(Ordering::Relaxed)),
        ),
        ("clean", u64::from(seen.left.load(Ordering::Relaxed))),
        ("forced", forced),
        ("sessions_after", u64::from(fleet.up())),
    ];
    for (name, n) in counts {
        result.metric(name, n as f64, "count", Better::Neither);
    }
    if seen.told.load(Ordering::Relaxed) < fleet.len() {
        let problem = format!("{} of {} were told to leave", counts[0].1, fleet.len());
        result.problems.push(problem);
    }
    if tally.counted("told_twice") > 0 {
        let n = tally.counted("told_twice");
        result.problems.push(format!("{n} were told twice"));
    }
    if forced > u64::from(args.disobey) {
        let problem = format!("{forced} sessions were ended by the server");
        result.problems.push(problem);
    }
    if fleet.up() != come {
        let problem = format!("{} sessions in the end, not {come}", fleet.up());
        result.problems.push(problem);
    }
    sampler.into_result(&mut result);
    Ok(result)
}
