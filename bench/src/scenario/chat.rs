//! `chat`: connect, talk for a while, wait for what is under way, and see that everybody has seen
//! everything.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::BenchError;
use crate::args::{FleetArgs, OutputArgs, TargetArgs, parse_duration, seconds};
use crate::fleet::ledger::unlike;
use crate::fleet::talk::{Names, Phase, Talk, Talkers, Talking};
use crate::fleet::{Fleet, People, Shape, Tally};
use crate::progress::Progress;
use crate::result::{Better, RunResult};
use crate::scenario::common::{self, Meter, Sampler};
use crate::scenario::hot::{self, HotArgs};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  Start a server of its own, 1,000 clients, 20,000 messages a second for 10 s:
    trunkline bench chat --spawn -n 1000 --rate 20000

  As many as the server takes (each client keeps 16 messages under way):
    trunkline bench chat --spawn -n 1000 --rate 0 --inflight 16

  Half of the messages into 20 groups of 50:
    trunkline bench chat --spawn --groups 20 --group-size 50 --group-share 0.5 --rate 2000

  Beside them 20 members of one group who keep 16 messages each under way in it:
    trunkline bench chat --spawn -n 1000 --rate 5000 --hot-members 20

  A server that runs already, with its secret:
    trunkline bench chat --ws 127.0.0.1:7400 --http 127.0.0.1:7410 --secret … --server-pid 4711

Every message must be acked and reach every other member, once and in order; what does not is told as
a problem. Latencies run from the moment at which a message was due.";

/// `trunkline bench chat`
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct ChatArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub load: LoadArgs,
    /// Load before anything is counted
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    #[command(flatten)]
    #[serde(flatten)]
    pub hot: HotArgs,
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

/// What talking clients say.
#[derive(Clone, Debug, Args, Serialize)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Messages per second over all clients, sent when they are due, whatever comes back; 0: see
    /// --inflight
    #[arg(long, default_value_t = 10_000)]
    pub rate: u32,
    /// With --rate 0: messages that each sender keeps under way
    #[arg(long, default_value_t = 8)]
    pub inflight: u32,
    /// How many of the clients send; default all
    #[arg(long)]
    pub senders: Option<u32>,
    /// Groups to create
    #[arg(long, default_value_t = 0)]
    pub groups: u32,
    /// Members of each, taken round from the clients
    #[arg(long, default_value_t = 10)]
    pub group_size: u32,
    /// Part of the messages that goes to groups, 0 to 1; the others go to each client's partner
    #[arg(long, default_value_t = 0.0)]
    pub group_share: f64,
    /// Bytes of a message's content, 17 to 1000
    #[arg(long, default_value_t = 128)]
    pub payload: u32,
}

/// For answers that are under way when the load ends.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// From the last acks to the last deliveries.
pub const TRAILING: Duration = Duration::from_millis(300);
/// For workers to tell what their clients saw.
const REPORT_MAX: Duration = Duration::from_secs(20);

impl LoadArgs {
    /// What clap cannot see.
    pub fn check(&self, clients: u32) -> Result<(), BenchError> {
        let wrong = |what: &str| Err(BenchError::Usage(what.to_owned()));
        if !(17..=1000).contains(&self.payload) {
            return wrong("--payload: from 17 (the time of the message) to 1000 bytes");
        }
        if !(0.0..=1.0).contains(&self.group_share) {
            return wrong("--group-share: from 0 to 1");
        }
        if self.group_share > 0.0 && self.groups == 0 {
            return wrong("--group-share needs --groups");
        }
        if self.groups > 0 && !(2..=clients).contains(&self.group_size) {
            return wrong("--group-size: from 2 to the number of connections");
        }
        if self.senders.is_some_and(|n| n == 0 || n > clients) {
            return wrong("--senders: from 1 to the number of connections");
        }
        if self.rate == 0 && self.inflight == 0 {
            return wrong("--rate 0 --inflight 0 sends nothing: see `trunkline bench idle`");
        }
        Ok(())
    }

    /// Who of the clients with these numbers says what; groups come with [`create_groups`].
    pub fn talk(&self, talkers: std::ops::Range<u32>, churn: f64) -> Talk {
        let senders = self.senders.unwrap_or(talkers.len() as u32);
        Talk {
            rate: (self.rate > 0).then_some(f64::from(self.rate)),
            inflight: self.inflight,
            senders: talkers.start..talkers.start + senders,
            talkers,
            payload: self.payload as usize,
            groups: Vec::new(),
            group_size: self.group_size,
            group_share: self.group_share,
            churn,
            names: &Names::PLAIN,
        }
    }
}

/// Creates the groups of a talk.
pub fn create_groups(
    talk: &mut Talk,
    groups: u32,
    target: &Target,
    people: &People,
    progress: &dyn Progress,
) -> Result<(), BenchError> {
    if groups > 0 {
        progress.phase("creating groups", Some(u64::from(groups)));
    }
    for group in 0..groups {
        let members: Vec<_> = talk.members(group).map(|n| people.user(n)).collect();
        talk.groups
            .push(target.create_group(&format!("bench {group}"), &members)?);
        progress.at(u64::from(group) + 1, "groups");
    }
    Ok(())
}

/// Runs the scenario.
pub fn run(args: &ChatArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    args.fleet.check()?;
    args.load.check(args.fleet.connections)?;
    if args.hot.hot_members > 0 {
        return hot::run(args, progress);
    }
    common::with_target(Target::open(&args.target, 1), |target| {
        let people = Fleet::people(&args.fleet, target)?;
        let mut talk = args.load.talk(0..args.fleet.connections, 0.0);
        create_groups(&mut talk, args.load.groups, target, &people, progress)?;
        let (talk, talking) = (Arc::new(talk), Talking::new());
        let mut talkers = |numbers| Box::new(Talkers::new(&talk, &talking, numbers)) as Box<_>;
        let shape = Shape::default();
        let fleet = Fleet::start(&args.fleet, target, &people, shape, &mut talkers);
        common::with_fleet(fleet, |fleet| {
            let parts: [&dyn common::ErasedArgs; 3] = [args, &args.fleet, &args.target];
            let mut result = common::begin("chat", &parts);
            let mut sampler = Sampler::new();
            connect(target, fleet, progress, &mut sampler, &mut result)?;
            progress.phase("talking", None);
            talking.set(Phase::Load);
            common::hold(args.warmup, target, fleet, &mut sampler)?;
            let window = Window::open(target, fleet, &talking, args.duration);
            common::hold(args.duration, target, fleet, &mut sampler)?;
            window.close(target, &talking, &mut result);
            let tally = settle(
                &[(&talk, &talking)],
                fleet,
                target,
                &mut sampler,
                &mut result,
            )?;
            told(&tally, &mut result);
            let sent = tally.counted("sent") as f64;
            result.metric("sent", sent, "count", Better::Neither);
            common::session_problems(&tally, &mut result);
            sampler.into_result(&mut result);
            Ok(result)
        })
    })
}

/// Connects all, and tells how that went.
pub fn connect(
    target: &Target,
    fleet: &Fleet,
    progress: &dyn Progress,
    sampler: &mut Sampler,
    result: &mut RunResult,
) -> Result<(), BenchError> {
    progress.phase("connecting", Some(u64::from(fleet.len())));
    let meter = Meter::start(target);
    fleet.allow(fleet.len())?;
    fleet.wait_sessions(u64::from(fleet.len()), progress, &mut |_| {
        sampler.look(target, fleet);
    })?;
    let usage = meter.stop(target);
    let rate = f64::from(fleet.len()) / usage.seconds;
    result.metric("connect_rate", rate, "per_second", Better::Higher);
    usage.each("session", u64::from(fleet.len()), "us", result);
    let tally = fleet.take()?;
    result.latency("connect", &tally.connect);
    common::connect_problems(&tally, result);
    common::session_problems(&tally, result);
    Ok(())
}

/// The measured part of a load.
pub struct Window {
    meter: Meter,
    seconds: f64,
}

impl Window {
    /// What is due from now on, for so long, is measured.
    pub fn open(target: &Target, fleet: &Fleet, talking: &Talking, duration: Duration) -> Self {
        let from = fleet.shared.now();
        talking.acked.store(0, Ordering::Relaxed);
        talking.delivered.store(0, Ordering::Relaxed);
        talking
            .to
            .store(from + duration.as_nanos() as u64, Ordering::Relaxed);
        talking.from.store(from, Ordering::Relaxed);
        Self {
            meter: Meter::start(target),
            seconds: duration.as_secs_f64(),
        }
    }

    /// Tells throughput and CPU.
    pub fn close(self, target: &Target, talking: &Talking, result: &mut RunResult) {
        let usage = self.meter.stop(target);
        let acked = talking.acked.load(Ordering::Relaxed);
        let delivered = talking.delivered.load(Ordering::Relaxed);
        let rate = |n: u64| n as f64 / self.seconds;
        result.metric("acked_rate", rate(acked), "per_second", Better::Higher);
        let delivery_rate = rate(delivered);
        result.metric("delivery_rate", delivery_rate, "per_second", Better::Higher);
        usage.percent(result);
        usage.each("message", acked, "us", result);
    }
}

/// Ends the load, waits for what is under way, and sees that everybody has seen everything, in all of
/// these talks.
pub fn settle(
    talks: &[(&Talk, &Talking)],
    fleet: &Fleet,
    target: &Target,
    sampler: &mut Sampler,
    result: &mut RunResult,
) -> Result<Tally, BenchError> {
    let set = |phase| talks.iter().for_each(|(_, talking)| talking.set(phase));
    let outstanding = || -> u64 {
        let of = |talking: &Talking| talking.outstanding.load(Ordering::Relaxed);
        talks.iter().map(|(_, talking)| of(talking)).sum()
    };
    let behind = || -> u32 {
        let of = |talking: &Talking| talking.catching_up.load(Ordering::Relaxed);
        talks.iter().map(|(_, talking)| of(talking)).sum()
    };
    set(Phase::Quiet);
    fleet.wait_until(DRAIN_MAX, || {
        sampler.look(target, fleet);
        outstanding() == 0 && behind() == 0 && fleet.up() == fleet.len()
    })?;
    // Deliveries come with or after the last acks.
    common::hold(TRAILING, target, fleet, sampler)?;
    let unanswered = outstanding();
    let unit = "count";
    result.metric("unanswered", unanswered as f64, unit, Better::Lower);
    if unanswered > 0 {
        result
            .problems
            .push(format!("{unanswered} messages were not answered"));
    }
    let behind = behind();
    if behind > 0 {
        let problem = format!("{behind} clients did not get all that they had missed");
        result.problems.push(problem);
    }
    if fleet.up() < fleet.len() {
        let problem = format!(
            "{} of {} clients were up at the end",
            fleet.up(),
            fleet.len()
        );
        result.problems.push(problem);
    }
    set(Phase::Report);
    let told = || talks.iter().all(|(_, t)| t.reports() == fleet.workers());
    if !fleet.wait_until(REPORT_MAX, told)? {
        return Err(BenchError::Server("a generator thread hangs".into()));
    }
    let tally = fleet.take()?;
    judge(talks, fleet, &tally, result)?;
    Ok(tally)
}

/// Tells what was not as it should be in what everybody saw.
fn judge(
    talks: &[(&Talk, &Talking)],
    fleet: &Fleet,
    tally: &Tally,
    result: &mut RunResult,
) -> Result<(), BenchError> {
    let unit = "count";
    let (mut conversations, mut not_whole) = (0, 0);
    let (mut first_unlike, mut first_wrong) = (None, None);
    for (talk, talking) in talks {
        let ends = std::mem::take(&mut *talking.ends.lock().map_err(|_| poisoned())?);
        let (unlike, first) = unlike(&ends, talk.members_of(&fleet.people));
        not_whole += unlike;
        first_unlike = first_unlike.or(first);
        let of_talk: std::collections::BTreeSet<u64> = ends.iter().map(|e| e.0).collect();
        conversations += of_talk.len();
        let wrong = talking.first_wrong.lock().map_err(|_| poisoned())?;
        first_wrong = first_wrong.or(wrong.clone());
    }
    let wrong = tally.counted("wrong");
    result.metric("wrong_deliveries", wrong as f64, unit, Better::Lower);
    let whole = "conversations_not_whole";
    result.metric(whole, not_whole as f64, unit, Better::Lower);
    let name = "conversations";
    result.metric(name, conversations as f64, unit, Better::Neither);
    if wrong > 0 {
        let problem = format!(
            "{wrong} deliveries were not as they should be; the first: {}",
            first_wrong.unwrap_or_default()
        );
        result.problems.push(problem);
    }
    if let Some(first) = first_unlike {
        let problem = format!("{not_whole} conversations were not seen whole by all; one: {first}");
        result.problems.push(problem);
    }
    Ok(())
}

fn poisoned() -> BenchError {
    BenchError::Server("a generator thread panicked".into())
}

/// Latencies of the load.
pub fn told(tally: &Tally, result: &mut RunResult) {
    for name in ["ack", "delivery"] {
        if let Some(times) = tally.times.get(name) {
            result.latency(name, times);
        }
    }
}
