//! `chat --hot-members`: the load of [`super::chat`], first by itself, then beside one conversation
//! whose members write as fast as they are answered. What do the others feel of it?
//!
//! The hot members are clients of their own, numbered after the others. They keep a closed loop, so
//! they take what the server gives them; the others keep their rate, so that what they wait for shows.
//! Called by [`super::chat::run`].

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use trunkline_proto::client::ServerFrame;

use crate::BenchError;
use crate::fleet::talk::{Names, Phase, Talk, Talkers, Talking};
use crate::fleet::{Behaviour, Crowd, Fleet, Shape, Tally};
use crate::progress::Progress;
use crate::result::{Better, Latency, RunResult};
use crate::scenario::chat::{self, ChatArgs, Window};
use crate::scenario::common::{self, Meter, Sampler};
use crate::target::Target;

/// One conversation that is busier than all others.
#[derive(Clone, Debug, Args, Serialize)]
#[command(next_help_heading = "A hot conversation beside the others")]
pub struct HotArgs {
    /// Clients more, all members of one group; the load is measured without and with them; 0: none
    #[arg(long, default_value_t = 0)]
    pub hot_members: u32,
    /// How many of them write, as fast as they are answered; default all
    #[arg(long)]
    pub hot_senders: Option<u32>,
    /// Messages that each of these keeps under way
    #[arg(long, default_value_t = 16)]
    pub hot_inflight: u32,
}

const NAMES: Names = Names {
    ack: "hot_ack",
    delivery: "hot_delivery",
    sent: "hot_sent",
    refused: Some("hot_refused"),
};

impl HotArgs {
    fn check(&self, args: &ChatArgs) -> Result<(), BenchError> {
        let wrong = |what: &str| Err(BenchError::Usage(what.to_owned()));
        if args.load.rate == 0 {
            return wrong("--hot-members: the others need a --rate to keep");
        }
        if self.hot_members < 2 {
            return wrong("--hot-members: at least 2");
        }
        if !(1..=self.hot_members).contains(&self.senders()) {
            return wrong("--hot-senders: from 1 to --hot-members");
        }
        if self.hot_inflight == 0 {
            return wrong("--hot-inflight: at least 1");
        }
        Ok(())
    }

    fn senders(&self) -> u32 {
        self.hot_senders.unwrap_or(self.hot_members)
    }

    /// What the members say, whose numbers begin at `from`.
    fn talk(&self, from: u32, payload: u32) -> Talk {
        Talk {
            rate: None,
            inflight: self.hot_inflight,
            senders: from..from + self.senders(),
            talkers: from..from + self.hot_members,
            payload: payload as usize,
            groups: Vec::new(),
            group_size: self.hot_members,
            group_share: 1.0,
            churn: 0.0,
            names: &NAMES,
        }
    }
}

/// A worker's clients: those who keep their rate, and from an index on the hot ones.
struct Both {
    calm: Talkers,
    hot: Talkers,
    hot_from: u32,
}

impl Both {
    fn of(&mut self, client: u32) -> &mut Talkers {
        if client < self.hot_from {
            &mut self.calm
        } else {
            &mut self.hot
        }
    }
}

impl Behaviour for Both {
    fn up(&mut self, client: u32, crowd: &mut Crowd) {
        self.of(client).up(client, crowd);
    }

    fn frame(&mut self, client: u32, frame: ServerFrame, crowd: &mut Crowd) {
        self.of(client).frame(client, frame, crowd);
    }

    fn down(&mut self, client: u32, crowd: &mut Crowd) {
        self.of(client).down(client, crowd);
    }

    fn tick(&mut self, now: u64, crowd: &mut Crowd) -> Duration {
        let calm = self.calm.tick(now, crowd);
        calm.min(self.hot.tick(now, crowd))
    }
}

/// Runs the scenario.
pub(super) fn run(args: &ChatArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    args.hot.check(args)?;
    let calm_clients = args.fleet.connections;
    let mut fleet_args = args.fleet.clone();
    fleet_args.connections = calm_clients.saturating_add(args.hot.hot_members);
    fleet_args.check()?;
    common::with_target(Target::open(&args.target, 1), |target| {
        let people = Fleet::people(&fleet_args, target)?;
        let mut calm = args.load.talk(0..calm_clients, 0.0);
        chat::create_groups(&mut calm, args.load.groups, target, &people, progress)?;
        let mut hot = args.hot.talk(calm_clients, args.load.payload);
        chat::create_groups(&mut hot, 1, target, &people, progress)?;
        let (calm, hot) = (Arc::new(calm), Arc::new(hot));
        let (calm_talking, hot_talking) = (Talking::new(), Talking::new());
        let mut clients = |numbers: Range<u32>| {
            Box::new(Both {
                calm: Talkers::new(&calm, &calm_talking, numbers.clone()),
                hot: Talkers::new(&hot, &hot_talking, numbers.clone()),
                hot_from: calm_clients.saturating_sub(numbers.start),
            }) as Box<_>
        };
        let shape = Shape::default();
        let fleet = Fleet::start(&fleet_args, target, &people, shape, &mut clients);
        common::with_fleet(fleet, |fleet| {
            let parts: [&dyn common::ErasedArgs; 3] = [args, &args.fleet, &args.target];
            let mut result = common::begin("chat", &parts);
            let course = Course {
                args,
                calm: (&calm, &calm_talking),
                hot: (&hot, &hot_talking),
            };
            course.measure(target, fleet, progress, &mut result)?;
            Ok(result)
        })
    })
}

struct Course<'a> {
    args: &'a ChatArgs,
    calm: (&'a Talk, &'a Talking),
    hot: (&'a Talk, &'a Talking),
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
        chat::connect(target, fleet, progress, &mut sampler, result)?;
        progress.phase("talking", None);
        self.calm.1.set(Phase::Load);
        common::hold(self.args.warmup, target, fleet, &mut sampler)?;
        let window = Window::open(target, fleet, self.calm.1, self.args.duration);
        common::hold(self.args.duration, target, fleet, &mut sampler)?;
        window.close(target, self.calm.1, result);
        // What was due at the end of the window, and comes late, belongs to it.
        common::hold(chat::TRAILING, target, fleet, &mut sampler)?;
        let mut all = fleet.take()?;
        chat::told(&all, result);

        progress.phase("beside a hot conversation", None);
        self.hot.1.set(Phase::Load);
        common::hold(self.args.warmup, target, fleet, &mut sampler)?;
        // What the hot conversation needed to get going is not counted.
        let starting = fleet.take()?;
        self.beside(target, fleet, &mut sampler, result)?;
        let during = fleet.take()?;
        felt(&all, &during, result);
        all.add(&starting)?;
        all.add(&during)?;
        let seen_wrong = all.counted("wrong");
        let talks = [self.calm, self.hot];
        all.add(&chat::settle(&talks, fleet, target, &mut sampler, result)?)?;
        if seen_wrong > 0 {
            let problem = format!("{seen_wrong} deliveries under load were not as they should be");
            result.problems.push(problem);
        }
        for name in ["sent", "hot_sent", "hot_refused"] {
            let n = all.counted(name) as f64;
            result.metric(name, n, "count", Better::Neither);
        }
        common::session_problems(&all, result);
        sampler.into_result(result);
        Ok(())
    }

    /// The measured part with the hot conversation.
    fn beside(
        &self,
        target: &Target,
        fleet: &Fleet,
        sampler: &mut Sampler,
        result: &mut RunResult,
    ) -> Result<(), BenchError> {
        let meter = Meter::start(target);
        for (_, talking) in [self.calm, self.hot] {
            Window::open(target, fleet, talking, self.args.duration);
        }
        common::hold(self.args.duration, target, fleet, sampler)?;
        let usage = meter.stop(target);
        let rate = |n: u64| n as f64 / usage.seconds;
        let (calm, hot) = (self.calm.1, self.hot.1);
        for (name, n) in [
            ("beside_hot_acked_rate", &calm.acked),
            ("hot_acked_rate", &hot.acked),
            ("hot_delivery_rate", &hot.delivered),
        ] {
            let rate = rate(n.load(Ordering::Relaxed));
            result.metric(name, rate, "per_second", Better::Higher);
        }
        let unit = "percent_of_core";
        let percent = |seconds: f64| 100.0 * seconds / usage.seconds;
        for (name, seconds) in [
            ("beside_hot_server_cpu", usage.server),
            ("beside_hot_generator_cpu", usage.generator),
        ] {
            if let Some(seconds) = seconds {
                result.metric(name, percent(seconds), unit, Better::Neither);
            }
        }
        common::hold(chat::TRAILING, target, fleet, sampler)
    }
}

/// What the others felt: their latencies, and how many times the p99 of before that is.
fn felt(before: &Tally, during: &Tally, result: &mut RunResult) {
    for (name, told) in [
        ("ack", "beside_hot_ack"),
        ("delivery", "beside_hot_delivery"),
        ("hot_ack", "hot_ack"),
        ("hot_delivery", "hot_delivery"),
    ] {
        if let Some(times) = during.times.get(name) {
            result.latency(told, times);
        }
    }
    let p99 = |tally: &Tally| Latency::of(tally.times.get("ack")?).map(|ack| ack.p99_ms);
    if let Some((before, during)) = p99(before).zip(p99(during)) {
        let name = "beside_hot_p99_ratio";
        result.metric(name, during / before, "ratio", Better::Lower);
    }
}
