//! `fanout`: messages to groups whose members are all online. What one delivery costs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use trunkline_proto::client::{ClientBody, SendMessage, ServerBody, ServerFrame};

use crate::BenchError;
use crate::args::{FleetArgs, OutputArgs, TargetArgs, parse_duration, parse_rate, seconds};
use crate::fleet::schedule::Schedule;
use crate::fleet::{Behaviour, Crowd, Fleet, Shape};
use crate::progress::Progress;
use crate::result::{Better, RunResult};
use crate::scenario::chat;
use crate::scenario::common::{self, Meter, Sampler};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  One group of 500, one message at a time:
    trunkline bench fanout --spawn --members 500

  10,000 members; the server must allow groups that large:
    trunkline bench fanout --spawn --members 10000 --spawn-args \"--group-members-max 10000\"

  Eight messages at a time, which leave each socket in few sends:
    trunkline bench fanout --spawn --members 500 --burst 8

  At ten a second, whatever comes back:
    trunkline bench fanout --spawn --members 5000 --rate 10 --spawn-args \"--group-members-max 5000\"

--connections follows from --members and --conversations: each member is a client.";

/// `trunkline bench fanout`
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct FanoutArgs {
    /// Members of each group, all online; the first one writes
    #[arg(long, default_value_t = 500)]
    pub members: u32,
    /// Groups
    #[arg(long, default_value_t = 1)]
    pub conversations: u32,
    /// Messages that are under way in each group: the next come when all deliveries of these have
    #[arg(long, default_value_t = 1)]
    pub burst: u32,
    /// Messages per second over all groups, whatever comes back; without: see --burst
    #[arg(long, value_name = "N/s", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Bytes of a message's content, 17 to 1000
    #[arg(long, default_value_t = 128)]
    pub payload: u32,
    /// Load before anything is counted
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
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

/// Between the scenario and the clients.
struct Load {
    groups: Vec<Group>,
    members: u32,
    burst: u64,
    rate: Option<f64>,
    payload: usize,
    running: AtomicBool,
    /// What was due between these is timed; ns since the origin.
    from: AtomicU64,
    to: AtomicU64,
    /// Deliveries since the beginning, and those that were not the next one.
    delivered: AtomicU64,
    wrong: AtomicU64,
}

struct Group {
    id: String,
    published: AtomicU64,
    acked: AtomicU64,
    delivered: AtomicU64,
}

impl Load {
    fn window(&self, due: u64) -> bool {
        due >= self.from.load(Ordering::Relaxed) && due < self.to.load(Ordering::Relaxed)
    }

    /// Everything published was acked and reached all others.
    fn is_quiet(&self) -> bool {
        let others = u64::from(self.members - 1);
        self.groups.iter().all(|group| {
            let published = group.published.load(Ordering::Relaxed);
            group.acked.load(Ordering::Relaxed) == published
                && group.delivered.load(Ordering::Relaxed) == published * others
        })
    }
}

struct Members {
    load: Arc<Load>,
    /// Last seq that each client saw.
    seen: Vec<u64>,
    numbers: Range<u32>,
    schedule: Schedule,
}

impl Members {
    fn new(load: &Arc<Load>, numbers: Range<u32>) -> Self {
        Self {
            load: Arc::clone(load),
            seen: vec![0; numbers.len()],
            numbers,
            schedule: Schedule::default(),
        }
    }

    /// Everybody in a group sees every message, in order: own ones by their acks.
    fn see(&mut self, client: u32, seq: u64) {
        let last = &mut self.seen[client as usize];
        if seq != *last + 1 {
            self.load.wrong.fetch_add(1, Ordering::Relaxed);
        }
        *last = seq;
    }

    fn publish(&self, group: u32, due: u64, crowd: &mut Crowd) {
        let of = &self.load.groups[group as usize];
        let Some(publisher) = crowd.index_of(group * self.load.members) else {
            return;
        };
        let n = of.published.load(Ordering::Relaxed);
        let message = SendMessage {
            conversation_id: of.id.clone(),
            client_msg_id: format!("{due:016x}-{n}"),
            content: format!("{due:016x}-{:.<width$}", "", width = self.load.payload - 17),
            ..SendMessage::default()
        };
        if crowd.send(publisher, ClientBody::SendMessage(message)) {
            of.published.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Groups whose publisher is among these clients.
    fn groups(&self) -> Range<u32> {
        let first = self.numbers.start.div_ceil(self.load.members);
        first..self.numbers.end.div_ceil(self.load.members)
    }
}

impl Behaviour for Members {
    fn frame(&mut self, client: u32, frame: ServerFrame, crowd: &mut Crowd) {
        let group = (self.numbers.start + client) / self.load.members;
        let now = crowd.shared.now();
        let due_of = |text: &str| u64::from_str_radix(text.get(..16)?, 16).ok();
        match frame.frame {
            Some(ServerBody::Message(message)) => {
                self.see(client, message.seq);
                let of = &self.load.groups[group as usize];
                of.delivered.fetch_add(1, Ordering::Relaxed);
                self.load.delivered.fetch_add(1, Ordering::Relaxed);
                let due = due_of(&message.content);
                if let Some(due) = due.filter(|&due| self.load.window(due)) {
                    crowd.tally.time("delivery", now.saturating_sub(due));
                }
            }
            Some(ServerBody::Ack(ack)) => {
                self.see(client, ack.seq);
                let of = &self.load.groups[group as usize];
                of.acked.fetch_add(1, Ordering::Relaxed);
                let due = due_of(&ack.client_msg_id);
                if let Some(due) = due.filter(|&due| self.load.window(due)) {
                    crowd.tally.time("ack", now.saturating_sub(due));
                }
            }
            _ => {}
        }
    }

    fn tick(&mut self, now: u64, crowd: &mut Crowd) -> Duration {
        if !self.load.running.load(Ordering::Acquire) {
            return Duration::MAX;
        }
        let groups = self.groups();
        if groups.is_empty() {
            return Duration::MAX;
        }
        if let Some(rate) = self.load.rate {
            let part = groups.len() as f64 / self.load.groups.len() as f64;
            while let Some((due, n)) = self.schedule.due(now, 1e9 / (rate * part)) {
                let group = groups.start + (n % groups.len() as u64) as u32;
                self.publish(group, due, crowd);
            }
            return self.schedule.wait(now);
        }
        let others = u64::from(self.load.members - 1);
        for group in groups {
            let of = &self.load.groups[group as usize];
            let published = of.published.load(Ordering::Relaxed);
            if of.delivered.load(Ordering::Relaxed) >= published * others
                && of.acked.load(Ordering::Relaxed) >= published
            {
                for _ in 0..self.load.burst {
                    self.publish(group, now, crowd);
                }
            }
        }
        // Deliveries at other workers are seen when the turn is over.
        if self.numbers.len() as u32 == self.load.members * self.load.groups.len() as u32 {
            Duration::MAX
        } else {
            Duration::from_micros(200)
        }
    }
}

/// For what is under way when the load ends.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// Runs the scenario.
pub fn run(args: &FanoutArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    let wrong = |what: &str| Err(BenchError::Usage(what.to_owned()));
    if args.members < 2 || args.conversations == 0 || args.burst == 0 {
        return wrong("--members: at least 2; --conversations and --burst: at least 1");
    }
    if !(17..=1000).contains(&args.payload) {
        return wrong("--payload: from 17 (the time of the message) to 1000 bytes");
    }
    let mut fleet_args = args.fleet.clone();
    fleet_args.connections = args.members.saturating_mul(args.conversations);
    fleet_args.check()?;
    common::with_target(Target::open(&args.target, 1), |target| {
        let people = Fleet::people(&fleet_args, target)?;
        progress.phase("creating groups", Some(u64::from(args.conversations)));
        let mut groups = Vec::new();
        for group in 0..args.conversations {
            let first = group * args.members;
            let members: Vec<_> = (first..first + args.members)
                .map(|n| people.user(n))
                .collect();
            groups.push(Group {
                id: target.create_group(&format!("bench {group}"), &members)?,
                published: AtomicU64::new(0),
                acked: AtomicU64::new(0),
                delivered: AtomicU64::new(0),
            });
        }
        let load = Arc::new(Load {
            groups,
            members: args.members,
            burst: u64::from(args.burst),
            rate: args.rate,
            payload: args.payload as usize,
            running: false.into(),
            from: AtomicU64::new(u64::MAX),
            to: AtomicU64::new(u64::MAX),
            delivered: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
        });
        let mut members = |numbers| Box::new(Members::new(&load, numbers)) as Box<_>;
        let shape = Shape::default();
        let fleet = Fleet::start(&fleet_args, target, &people, shape, &mut members);
        common::with_fleet(fleet, |fleet| {
            let parts: [&dyn common::ErasedArgs; 3] = [args, &fleet_args, &args.target];
            let mut result = common::begin("fanout", &parts);
            measure(args, target, fleet, &load, progress, &mut result)?;
            Ok(result)
        })
    })
}

fn measure(
    args: &FanoutArgs,
    target: &Target,
    fleet: &Fleet,
    load: &Load,
    progress: &dyn Progress,
    result: &mut RunResult,
) -> Result<(), BenchError> {
    let mut sampler = Sampler::new();
    chat::connect(target, fleet, progress, &mut sampler, result)?;
    progress.phase("publishing", None);
    load.running.store(true, Ordering::Release);
    common::hold(args.warmup, target, fleet, &mut sampler)?;
    let acked = || -> u64 {
        let groups = load.groups.iter();
        groups.map(|g| g.acked.load(Ordering::Relaxed)).sum()
    };
    let meter = Meter::start(target);
    let (delivered_before, acked_before) = (load.delivered.load(Ordering::Relaxed), acked());
    let from = fleet.shared.now();
    load.to.store(u64::MAX, Ordering::Relaxed);
    load.from.store(from, Ordering::Relaxed);
    common::hold(args.duration, target, fleet, &mut sampler)?;
    load.to.store(fleet.shared.now(), Ordering::Relaxed);
    let delivered = load.delivered.load(Ordering::Relaxed) - delivered_before;
    let messages = acked() - acked_before;
    let usage = meter.stop(target);
    load.running.store(false, Ordering::Release);
    let quiet = fleet.wait_until(DRAIN_MAX, || load.is_quiet())?;

    let rate = |n: u64| n as f64 / usage.seconds;
    result.metric(
        "delivery_rate",
        rate(delivered),
        "per_second",
        Better::Higher,
    );
    result.metric("acked_rate", rate(messages), "per_second", Better::Higher);
    usage.each("delivery", delivered, "ns", result);
    usage.percent(result);
    let tally = fleet.take()?;
    chat::told(&tally, result);
    let count = |name: &str, n: u64, result: &mut RunResult| {
        result.metric(name, n as f64, "count", Better::Neither);
    };
    let published: u64 = load
        .groups
        .iter()
        .map(|g| g.published.load(Ordering::Relaxed))
        .sum();
    count("published", published, result);
    count("delivered", load.delivered.load(Ordering::Relaxed), result);
    let wrong = load.wrong.load(Ordering::Relaxed);
    result.metric("wrong_deliveries", wrong as f64, "count", Better::Lower);
    if wrong > 0 {
        let problem = format!("{wrong} deliveries came twice, out of order, or after a gap");
        result.problems.push(problem);
    }
    if !quiet {
        let all = published * u64::from(args.members - 1);
        let came = load.delivered.load(Ordering::Relaxed);
        let problem = format!("{came} of {all} deliveries came, of {published} messages");
        result.problems.push(problem);
    }
    common::session_problems(&tally, result);
    sampler.into_result(result);
    Ok(())
}
