//! `storm`: an edge dies with everybody on it, and they all go to the other one, which has clients of
//! its own that go on talking. How long until everybody is there and knows everything, and what those
//! who were there already feel of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;
use trunkline_proto::client::{
    ClientBody, Message, SendMessage, ServerBody, ServerFrame, Sync as SyncFrame,
};

use crate::BenchError;
use crate::args::{FleetArgs, OutputArgs, TargetArgs, parse_duration, parse_rate, seconds};
use crate::fleet::again::Again;
use crate::fleet::schedule::Schedule;
use crate::fleet::talk::{Names, Phase, Talk, Talkers, Talking};
use crate::fleet::{Backoff, Behaviour, Crowd, Fleet, Shape};
use crate::progress::Progress;
use crate::result::{Better, Latency, RunResult};
use crate::scenario::chat;
use crate::scenario::common::{self, Meter, Sampler};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  15,000 clients lose their edge and go to the other one, where 200 talk:
    trunkline bench storm --spawn-two -n 15000 --calm 200

  65,000, all at once instead of with the back-off that the protocol asks for:
    trunkline bench storm --spawn-two -n 65000 --backoff none --spawn-args \"--connections-max 80000 --shards 1\"

A tenth of them (--missed) gets a message while they are away, and must have it in the end: by a page
of their sync, or live when they were back already.";

/// `trunkline bench storm`
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct StormArgs {
    /// Clients on the other edge, who talk meanwhile
    #[arg(long, default_value_t = 100)]
    pub calm: u32,
    /// Messages per second of all of these
    #[arg(long, default_value = "1000/s", value_parser = parse_rate)]
    pub calm_rate: f64,
    /// Part of the clients that gets a message while away, 0 to 1
    #[arg(long, default_value_t = 0.1)]
    pub missed: f64,
    /// These messages per second
    #[arg(long, default_value = "5000/s", value_parser = parse_rate)]
    pub missed_rate: f64,
    /// When clients that lost their connection try again
    #[arg(long, value_enum, default_value = "full-jitter")]
    pub backoff: BackoffChoice,
    /// How long the calm ones talk before
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub before: Duration,
    /// For everybody to be there and whole again
    #[arg(long, default_value = "120s", value_parser = parse_duration)]
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

/// When clients try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackoffChoice {
    /// Exponential with full jitter, 1 s to 60 s, as the protocol asks
    FullJitter,
    /// At once, every time
    None,
}

impl BackoffChoice {
    pub fn backoff(self) -> Backoff {
        match self {
            Self::FullJitter => Backoff::default(),
            Self::None => Backoff::NONE,
        }
    }
}

/// What is known of each client that lost its edge.
mod known {
    /// A message to it was acked.
    pub const WRITTEN: u8 = 1;
    /// It has it.
    pub const GOT: u8 = 2;
    /// Its sync after the storm is over.
    pub const SYNCED: u8 = 4;
}

/// What the `client_msg_id` of a message begins with that somebody missed; its number follows.
const MISSED: &str = "missed-";

/// Between the scenario and the clients.
struct Storm {
    /// ns since the origin; `u64::MAX`: it has not begun.
    began: AtomicU64,
    clients: Vec<AtomicU8>,
    /// How many of them are targets: every so-manieth.
    targets: u32,
    missed_rate: f64,
}

impl Storm {
    fn has_begun(&self) -> bool {
        self.began.load(Ordering::Acquire) != u64::MAX
    }

    fn target(&self, n: u32) -> u32 {
        (u64::from(n) * self.clients.len() as u64 / u64::from(self.targets.max(1))) as u32
    }

    fn mark(&self, client: u32, what: u8) {
        if let Some(known) = self.clients.get(client as usize) {
            known.fetch_or(what, Ordering::Relaxed);
        }
    }

    fn count(&self, what: u8) -> u32 {
        let has = |known: &&AtomicU8| known.load(Ordering::Relaxed) & what == what;
        self.clients.iter().filter(has).count() as u32
    }

    /// Everybody has synced, all messages were taken, and all of them have come.
    fn is_over(&self) -> bool {
        self.count(known::SYNCED) == self.clients.len() as u32
            && self.count(known::WRITTEN) == self.targets
            && self.count(known::WRITTEN | known::GOT) == self.targets
    }
}

/// The clients of one worker: those of the storm, and the calm ones, who also write what others miss.
struct Clients {
    storm: Arc<Storm>,
    talkers: Talkers,
    /// Indexes of the calm ones of this worker.
    calm: Range<u32>,
    /// The part of the targets that this worker writes to.
    writes: Range<u32>,
    /// ns between two of these, of this worker's share of the rate.
    write_each_ns: f64,
    schedule: Schedule,
    /// Targets whose message was refused, and clients whose sync was.
    again: Vec<u32>,
    syncs: Again,
}

impl Clients {
    fn new(storm: &Arc<Storm>, talkers: Talkers, numbers: Range<u32>, calm: &Range<u32>) -> Self {
        let stormy = storm.clients.len() as u32;
        let ours = calm.start.max(numbers.start)..calm.end.min(numbers.end);
        let part = |n: u32| {
            let done = u64::from(n.saturating_sub(stormy));
            (u64::from(storm.targets) * done / calm.len().max(1) as u64) as u32
        };
        let writes = if ours.is_empty() {
            0..0
        } else {
            part(ours.start)..part(ours.end)
        };
        let calm = if ours.is_empty() {
            0..0
        } else {
            ours.start - numbers.start..ours.end - numbers.start
        };
        Self {
            storm: Arc::clone(storm),
            talkers,
            calm,
            write_each_ns: 1e9 * f64::from(storm.targets)
                / (storm.missed_rate * writes.len() as f64),
            writes,
            schedule: Schedule::default(),
            again: Vec::new(),
            syncs: Again::default(),
        }
    }

    fn write(&mut self, target: u32, crowd: &mut Crowd) {
        let client = self.storm.target(target);
        let writer = self.calm.start + target % self.calm.len() as u32;
        let message = SendMessage {
            to: crowd.people.user(client),
            client_msg_id: format!("{MISSED}{target}"),
            content: "you were away".to_owned(),
            ..SendMessage::default()
        };
        if !crowd.send(writer, ClientBody::SendMessage(message)) {
            self.again.push(target);
        }
    }

    fn read(&self, client: u32, message: &Message, crowd: &mut Crowd) {
        let target = message.client_msg_id.strip_prefix(MISSED);
        let target = target.and_then(|n| n.parse().ok());
        let number = crowd.number(client);
        if target.is_some_and(|n| self.storm.target(n) == number) {
            self.storm.mark(number, known::GOT);
        } else {
            crowd.tally.count("strange");
        }
    }
}

impl Behaviour for Clients {
    fn up(&mut self, client: u32, crowd: &mut Crowd) {
        if self.calm.contains(&client) {
            return self.talkers.up(client, crowd);
        }
        if self.storm.has_begun() {
            crowd.send(client, ClientBody::Sync(SyncFrame::default()));
        }
    }

    fn down(&mut self, client: u32, crowd: &mut Crowd) {
        if self.calm.contains(&client) {
            self.talkers.down(client, crowd);
        }
    }

    fn frame(&mut self, client: u32, frame: ServerFrame, crowd: &mut Crowd) {
        let target_of = |id: &str| id.strip_prefix(MISSED)?.parse::<u32>().ok();
        if self.calm.contains(&client) {
            match &frame.frame {
                Some(ServerBody::Ack(ack)) => {
                    if let Some(target) = target_of(&ack.client_msg_id) {
                        return self.storm.mark(self.storm.target(target), known::WRITTEN);
                    }
                }
                Some(ServerBody::Error(error)) => {
                    if let Some(target) = target_of(&error.client_msg_id) {
                        return self.again.push(target);
                    }
                }
                _ => {}
            }
            return self.talkers.frame(client, frame, crowd);
        }
        match frame.frame {
            Some(ServerBody::Message(message)) => self.read(client, &message, crowd),
            Some(ServerBody::Page(page)) => {
                for message in &page.messages {
                    self.read(client, message, crowd);
                }
            }
            Some(ServerBody::Error(error)) => {
                let (now, random) = (crowd.shared.now(), crowd.random());
                if self.syncs.refused(client, &error, now, random) {
                    crowd.tally.count("sync_refused");
                }
            }
            Some(ServerBody::Synced(_)) => {
                let since = self.storm.began.load(Ordering::Relaxed);
                let now = crowd.shared.now();
                crowd.tally.time("synced", now.saturating_sub(since));
                let number = crowd.number(client);
                self.storm.mark(number, known::SYNCED);
            }
            _ => {}
        }
    }

    fn tick(&mut self, now: u64, crowd: &mut Crowd) -> Duration {
        while let Some(client) = self.syncs.due(now) {
            // One that is away asks when it is back.
            if crowd.is_up(client) {
                crowd.send(client, ClientBody::Sync(SyncFrame::default()));
            }
        }
        let mut wait = self.talkers.tick(now, crowd).min(self.syncs.wait(now));
        if self.storm.has_begun() && !self.calm.is_empty() {
            for target in std::mem::take(&mut self.again) {
                self.write(target, crowd);
            }
            while !self.writes.is_empty() {
                if self.schedule.due(now, self.write_each_ns).is_none() {
                    wait = wait.min(self.schedule.wait(now));
                    break;
                }
                let target = self.writes.start;
                self.writes.start += 1;
                self.write(target, crowd);
            }
        }
        wait
    }
}

/// Runs the scenario.
pub fn run(args: &StormArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    let wrong = |what: &str| Err(BenchError::Usage(what.to_owned()));
    if !args.target.spawn_two {
        return wrong("storm kills an edge, so it needs edges of its own: --spawn-two");
    }
    if args.calm < 2 || !(0.0..=1.0).contains(&args.missed) {
        return wrong("--calm: at least 2; --missed: from 0 to 1");
    }
    let stormy = args.fleet.connections;
    let mut fleet_args = args.fleet.clone();
    fleet_args.connections = stormy.saturating_add(args.calm);
    fleet_args.check()?;
    common::with_target(Target::open(&args.target, 2), |target| {
        let people = Fleet::people(&fleet_args, target)?;
        let calm = stormy..fleet_args.connections;
        let talk = Arc::new(Talk {
            rate: Some(args.calm_rate),
            inflight: 0,
            senders: calm.clone(),
            talkers: calm.clone(),
            payload: 128,
            groups: Vec::new(),
            group_size: 0,
            group_share: 0.0,
            churn: 0.0,
            names: &Names::PLAIN,
        });
        let talking = Talking::new();
        let storm = Arc::new(Storm {
            began: AtomicU64::new(u64::MAX),
            clients: (0..stormy).map(|_| AtomicU8::new(0)).collect(),
            targets: (f64::from(stormy) * args.missed) as u32,
            missed_rate: args.missed_rate,
        });
        let mut clients = |numbers: Range<u32>| {
            let talkers = Talkers::new(&talk, &talking, numbers.clone());
            Box::new(Clients::new(&storm, talkers, numbers, &calm)) as Box<_>
        };
        let shape = Shape {
            backoff: args.backoff.backoff(),
            second_edge_from: stormy,
        };
        let fleet = Fleet::start(&fleet_args, target, &people, shape, &mut clients);
        common::with_fleet(fleet, |fleet| {
            let parts: [&dyn common::ErasedArgs; 3] = [args, &args.fleet, &args.target];
            let mut result = common::begin("storm", &parts);
            let whole = Whole {
                args,
                talk: &talk,
                talking: &talking,
                storm: &storm,
            };
            whole.measure(target, fleet, progress, &mut result)?;
            Ok(result)
        })
    })
}

struct Whole<'a> {
    args: &'a StormArgs,
    talk: &'a Talk,
    talking: &'a Talking,
    storm: &'a Storm,
}

impl Whole<'_> {
    fn measure(
        &self,
        target: &mut Target,
        fleet: &Fleet,
        progress: &dyn Progress,
        result: &mut RunResult,
    ) -> Result<(), BenchError> {
        let mut sampler = Sampler::new();
        chat::connect(target, fleet, progress, &mut sampler, result)?;
        progress.phase("calm", None);
        self.talking.set(Phase::Load);
        self.window(fleet);
        common::hold(self.args.before, target, fleet, &mut sampler)?;
        let before = fleet.take()?;

        progress.phase("storm", Some(u64::from(fleet.len())));
        let sessions_before = fleet.shared.sessions.load(Ordering::Relaxed);
        let meter = Meter::start(target);
        let began = self.kill(target, fleet)?;
        let (mut all_up, mut all_synced) = (None, None);
        let clients = u64::from(self.args.fleet.connections);
        let over = fleet.wait_until(self.args.patience, || {
            sampler.look(target, fleet);
            let back = fleet.shared.sessions.load(Ordering::Relaxed) - sessions_before;
            progress.at(back, "sessions are back");
            if back >= clients && fleet.up() == fleet.len() {
                all_up.get_or_insert_with(|| began.elapsed());
            }
            if all_up.is_some() && self.storm.count(known::SYNCED) as u64 == clients {
                all_synced.get_or_insert_with(|| began.elapsed());
            }
            all_synced.is_some() && self.storm.is_over()
        })?;
        let usage = meter.stop(target);
        let during = fleet.take()?;
        for (name, time) in [
            ("seconds_to_all", all_up),
            ("seconds_to_synced", all_synced),
        ] {
            if let Some(time) = time {
                result.metric(name, time.as_secs_f64(), "s", Better::Lower);
            }
        }
        usage.each("storm_session", clients, "us", result);
        result.latency("storm_connect", &during.connect);
        if let Some(synced) = during.times.get("synced") {
            result.latency("storm_synced", synced);
        }
        self.calm(&before, &during, result);
        self.judge(over, &during, result);
        let settled = chat::settle(
            &[(self.talk, self.talking)],
            fleet,
            target,
            &mut sampler,
            result,
        )?;
        common::session_problems(&settled, result);
        sampler.into_result(result);
        Ok(())
    }

    /// All that is due from now on is timed.
    fn window(&self, fleet: &Fleet) {
        let from = fleet.shared.now();
        self.talking.to.store(u64::MAX, Ordering::Relaxed);
        self.talking.from.store(from, Ordering::Relaxed);
    }

    /// Ends the first edge, as a power cut would.
    fn kill(&self, target: &mut Target, fleet: &Fleet) -> Result<Instant, BenchError> {
        let edge = target.process("edge").and_then(|p| p.spawned.as_mut());
        let edge = edge.ok_or_else(|| BenchError::Usage("no edge to kill".into()))?;
        self.window(fleet);
        let began = Instant::now();
        self.storm
            .began
            .store(fleet.shared.now(), Ordering::Release);
        edge.signal("KILL")?;
        edge.wait_end(Duration::from_secs(20))?;
        target.processes.retain(|p| p.name != "edge");
        Ok(began)
    }

    /// What those felt who were on the other edge already.
    fn calm(
        &self,
        before: &crate::fleet::Tally,
        during: &crate::fleet::Tally,
        result: &mut RunResult,
    ) {
        let p99 = |tally: &crate::fleet::Tally| {
            let times = tally.times.get("ack")?;
            Latency::of(times).map(|l| l.p99_ms)
        };
        for (name, tally) in [("calm_ack_before", before), ("calm_ack_during", during)] {
            if let Some(times) = tally.times.get("ack") {
                result.latency(name, times);
            }
        }
        if let (Some(before), Some(during)) = (p99(before), p99(during)) {
            let ratio = during / before;
            result.metric("calm_p99_ratio", ratio, "ratio", Better::Lower);
        }
    }

    fn judge(&self, over: bool, during: &crate::fleet::Tally, result: &mut RunResult) {
        let storm = self.storm;
        let refused: u64 = during.refused.values().sum();
        let counts = [
            ("refused_connects", refused, Better::Lower),
            (
                "refused_syncs",
                during.counted("sync_refused"),
                Better::Lower,
            ),
            (
                "missed_messages",
                u64::from(storm.count(known::WRITTEN)),
                Better::Neither,
            ),
            (
                "missed_messages_seen",
                u64::from(storm.count(known::WRITTEN | known::GOT)),
                Better::Neither,
            ),
            (
                "synced",
                u64::from(storm.count(known::SYNCED)),
                Better::Neither,
            ),
        ];
        for (name, n, better) in counts {
            result.metric(name, n as f64, "count", better);
        }
        for (status, n) in &during.refused {
            let name = format!("refused_connects.{status}");
            result.metric(&name, *n as f64, "count", Better::Lower);
        }
        if !over {
            let problem = format!(
                "after {} s {} of {} clients had synced, {} of {} messages to those away were \
                 taken, {} of them seen",
                self.args.patience.as_secs(),
                storm.count(known::SYNCED),
                storm.clients.len(),
                storm.count(known::WRITTEN),
                storm.targets,
                storm.count(known::WRITTEN | known::GOT),
            );
            result.problems.push(problem);
        }
        let strange = during.counted("strange");
        if strange > 0 {
            let problem = format!("{strange} messages came to somebody else");
            result.problems.push(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_over_when_every_written_message_was_seen() {
        let storm = Storm {
            began: AtomicU64::new(0),
            clients: (0..10).map(|_| AtomicU8::new(known::SYNCED)).collect(),
            targets: 2,
            missed_rate: 1.0,
        };
        assert_eq!((storm.target(0), storm.target(1)), (0, 5));
        assert!(!storm.is_over(), "nothing was written");
        storm.mark(0, known::WRITTEN | known::GOT);
        storm.mark(5, known::WRITTEN);
        assert!(!storm.is_over(), "one was not seen");
        storm.mark(5, known::GOT);
        assert!(storm.is_over());
        storm.clients[9].store(0, Ordering::Relaxed);
        assert!(!storm.is_over(), "one has not synced");
    }
}
