//! `slow`: some members of a busy group stop reading. The server must bound what it keeps for them,
//! end their sessions, and not let the others wait; and when they come back they must get everything.
//! Beside them, clients may fall silent without a FIN, and must be found out in time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::BenchError;
use crate::args::{FleetArgs, OutputArgs, TargetArgs, Transport, parse_duration, seconds};
use crate::fleet::sleeper::{Ending, Sleeper};
use crate::fleet::talk::{Names, Phase, Talk, Talkers, Talking};
use crate::fleet::{Fleet, Shape, Tally};
use crate::progress::Progress;
use crate::result::{Better, Latency, RunResult};
use crate::scenario::chat::{self, Window};
use crate::scenario::common::{self, Sampler};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  A group of 200, of whom 20 do not read for 20 s:
    trunkline bench slow --spawn -n 200 --duration 20s

  Bounds that are reached sooner, and 50 clients beside it that fall silent:
    trunkline bench slow --spawn -n 100 --half-open 50 --spawn-args \"--outbox-hard-bytes 65536 --outbox-soft-bytes 16384 --heartbeat 2s\"";

/// `trunkline bench slow`
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct SlowArgs {
    /// Part of the members that stops reading
    #[arg(long, default_value_t = 0.1)]
    pub share: f64,
    /// Messages per second into the group
    #[arg(long, default_value_t = 200)]
    pub rate: u32,
    /// Bytes of a message's content, 17 to 1000
    #[arg(long, default_value_t = 1_000)]
    pub payload: u32,
    /// How long the group talks before, all of it reading
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub before: Duration,
    /// How long the slow ones do not read
    #[arg(long, default_value = "20s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// Clients that fall silent without a FIN in the end, to be found out
    #[arg(long, default_value_t = 0)]
    pub half_open: u32,
    /// For these to be found out; the server's time is twice its heartbeat and 5 s
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

impl SlowArgs {
    fn check(&self) -> Result<u32, BenchError> {
        let wrong = |what: &str| Err(BenchError::Usage(what.to_owned()));
        self.fleet.check()?;
        if self.fleet.threads != 1 || self.fleet.transport != Transport::WsProto {
            return wrong("slow runs with --threads 1 and --transport ws-proto");
        }
        if !(17..=1000).contains(&self.payload) || self.rate == 0 {
            return wrong("--payload: from 17 to 1000 bytes; --rate: at least 1");
        }
        let slow = (f64::from(self.fleet.connections) * self.share).round() as u32;
        if slow == 0 || slow + 2 > self.fleet.connections {
            return wrong("--share: at least one client that is slow, and two that are not");
        }
        Ok(slow)
    }
}

/// Runs the scenario.
pub fn run(args: &SlowArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    let slow = args.check()?;
    let mut fleet_args = args.fleet.clone();
    // First who falls silent, then who reads, then who does not: they come later.
    fleet_args.connections = args.half_open + args.fleet.connections;
    let members = args.half_open..fleet_args.connections;
    let late = fleet_args.connections - slow;
    common::with_target(Target::open(&args.target, 1), |target| {
        let people = Fleet::people(&fleet_args, target)?;
        let mut talk = Talk {
            rate: Some(f64::from(args.rate)),
            inflight: 0,
            senders: members.start..members.start + 2,
            talkers: members.clone(),
            payload: args.payload as usize,
            groups: Vec::new(),
            group_size: members.len() as u32,
            group_share: 1.0,
            churn: 0.0,
            names: &Names::PLAIN,
        };
        chat::create_groups(&mut talk, 1, target, &people, progress)?;
        let (talk, talking) = (Arc::new(talk), Talking::new());
        let mut talkers = |numbers| {
            let mut talkers = Talkers::new(&talk, &talking, numbers);
            talkers.come_late(late);
            Box::new(talkers) as Box<_>
        };
        let shape = Shape::default();
        let fleet = Fleet::start(&fleet_args, target, &people, shape, &mut talkers);
        common::with_fleet(fleet, |fleet| {
            let parts: [&dyn common::ErasedArgs; 3] = [args, &args.fleet, &args.target];
            let mut result = common::begin("slow", &parts);
            let course = Course {
                args,
                slow: late..fleet_args.connections,
                talk: &talk,
                talking: &talking,
            };
            course.measure(target, fleet, progress, &mut result)?;
            Ok(result)
        })
    })
}

struct Course<'a> {
    args: &'a SlowArgs,
    /// Numbers of those who do not read.
    slow: std::ops::Range<u32>,
    talk: &'a Talk,
    talking: &'a Talking,
}

impl Course<'_> {
    fn measure(
        &self,
        target: &Target,
        fleet: &Fleet,
        progress: &dyn Progress,
        result: &mut RunResult,
    ) -> Result<(), BenchError> {
        let mut sampler = Sampler::new();
        progress.phase("connecting", Some(u64::from(self.slow.start)));
        fleet.allow(self.slow.start)?;
        fleet.wait_sessions(u64::from(self.slow.start), progress, &mut |_| {
            sampler.look(target, fleet);
        })?;
        progress.phase("all read", None);
        self.talking.set(Phase::Load);
        Window::open(target, fleet, self.talking, self.args.before);
        common::hold(self.args.before, target, fleet, &mut sampler)?;
        let before = fleet.take()?;

        progress.phase("some do not read", None);
        let server = target.addresses(self.args.fleet.transport)?[0];
        let asleep: Result<Vec<_>, _> = self
            .slow
            .clone()
            .map(|number| Sleeper::connect(server, &fleet.people, number))
            .collect();
        let mut asleep = asleep?;
        let resident_before = target.resident();
        let window = Window::open(target, fleet, self.talking, self.args.duration);
        self.watch(target, fleet, &mut asleep, &mut sampler, result)?;
        window.close(target, self.talking, result);
        let resident_after = target.resident();
        if let (Some(before), Some(after)) = (resident_before, resident_after) {
            let grown = after as f64 - before as f64;
            result.metric("server_memory_grown", grown, "bytes", Better::Lower);
        }
        let during = fleet.take()?;
        felt(&before, &during, result);
        self.wake(asleep, result)?;

        progress.phase("they come back", Some(self.slow.len() as u64));
        fleet.allow(fleet.len())?;
        fleet.wait_sessions(u64::from(fleet.len()), progress, &mut |_| {
            sampler.look(target, fleet);
        })?;
        let tally = chat::settle(
            &[(self.talk, self.talking)],
            fleet,
            target,
            &mut sampler,
            result,
        )?;
        let fetched = tally.counted("fetched");
        result.metric("fetched", fetched as f64, "count", Better::Neither);
        common::connect_problems(&tally, result);
        common::session_problems(&tally, result);
        if self.args.half_open > 0 {
            progress.phase("falling silent", Some(u64::from(self.args.half_open)));
            self.half_open(target, fleet, &mut sampler, result)?;
        }
        sampler.into_result(result);
        Ok(())
    }

    /// Holds while they do not read, and watches what the server keeps for them.
    fn watch(
        &self,
        target: &Target,
        fleet: &Fleet,
        asleep: &mut [Sleeper],
        sampler: &mut Sampler,
        result: &mut RunResult,
    ) -> Result<(), BenchError> {
        let mut signs = Instant::now();
        let mut outboxes_max: f64 = 0.0;
        let steps = (self.args.duration.as_millis() / 250).max(1) as u32;
        for _ in 0..steps {
            common::hold(self.args.duration / steps, target, fleet, sampler)?;
            if signs.elapsed() >= self.args.fleet.heartbeat_every {
                signs = Instant::now();
                // One whose session has ended finds out when it wakes.
                asleep.iter_mut().for_each(|sleeper| {
                    sleeper.sign();
                });
            }
            let kept = |p: &crate::target::Process| p.metric("trunkline_edge_outbox_bytes", "");
            let bytes: Vec<f64> = target.processes.iter().filter_map(kept).collect();
            if !bytes.is_empty() {
                let bytes = bytes.iter().sum();
                outboxes_max = outboxes_max.max(bytes);
                sampler.point("outboxes", "bytes", bytes);
            }
        }
        result.metric("outboxes_max", outboxes_max, "bytes", Better::Lower);
        Ok(())
    }

    /// The slow ones wake up and find what became of their sessions.
    fn wake(&self, asleep: Vec<Sleeper>, result: &mut RunResult) -> Result<(), BenchError> {
        let mut endings: BTreeMap<Ending, u32> = BTreeMap::new();
        for sleeper in asleep {
            *endings.entry(sleeper.wake()?).or_default() += 1;
        }
        let ended = self.slow.len() as u32 - endings.get(&Ending::Alive).copied().unwrap_or(0);
        let unit = "count";
        let slow = self.slow.len() as f64;
        result.metric("slow_clients", slow, unit, Better::Neither);
        result.metric(
            "slow_clients_ended",
            f64::from(ended),
            unit,
            Better::Neither,
        );
        for (ending, n) in endings {
            match ending {
                Ending::Code(4410) | Ending::Broken => {}
                Ending::Code(code) => {
                    let problem = format!("{n} slow clients were closed with {code}, not 4410");
                    result.problems.push(problem);
                }
                Ending::Alive => {
                    let problem = format!(
                        "{n} slow clients were not ended: was there too little to reach the bound?"
                    );
                    result.problems.push(problem);
                }
            }
        }
        Ok(())
    }

    fn half_open(
        &self,
        target: &Target,
        fleet: &Fleet,
        sampler: &mut Sampler,
        result: &mut RunResult,
    ) -> Result<(), BenchError> {
        fleet.silence(self.args.half_open)?;
        let rest = fleet.len() - self.args.half_open;
        fleet.wait_until(self.args.patience, || {
            sampler.look(target, fleet);
            fleet.up() <= rest
        })?;
        let tally = fleet.take()?;
        let found = tally.closes.get(&4411).copied().unwrap_or(0);
        result.metric("half_open_found", found as f64, "count", Better::Neither);
        if let Some(times) = tally.times.get("reaped") {
            result.latency("half_open_found_after", times);
            let seconds = |ns: u64| ns as f64 / 1e9;
            let (first, last) = (seconds(times.min()), seconds(times.max()));
            result.metric("half_open_first", first, "s", Better::Neither);
            result.metric("half_open_last", last, "s", Better::Lower);
        }
        if found != u64::from(self.args.half_open) || fleet.up() != rest {
            let problem = format!(
                "{found} of {} silent clients were closed with 4411; {} of {rest} others are up",
                self.args.half_open,
                fleet.up()
            );
            result.problems.push(problem);
        }
        Ok(())
    }
}

/// What those who read felt of those who did not.
fn felt(before: &Tally, during: &Tally, result: &mut RunResult) {
    let mut p99 = Vec::new();
    for (name, tally) in [("delivery_before", before), ("delivery_during", during)] {
        if let Some(times) = tally.times.get("delivery") {
            result.latency(name, times);
            p99.extend(Latency::of(times).map(|l| l.p99_ms));
        }
    }
    if let [before, during] = p99[..] {
        result.metric("p99_ratio", during / before, "ratio", Better::Lower);
    }
    let sent = during.counted("sent");
    result.metric("sent", sent as f64, "count", Better::Neither);
    // The windows of the calm part and of this one; what came between them is in neither.
    let mut both = before.clone();
    if both.add(during).is_ok() {
        common::session_problems(&both, result);
    }
}
