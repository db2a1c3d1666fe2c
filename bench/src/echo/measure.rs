//! One measurement of one server: connect, settle, load, drain; and what it amounts to.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::args::{LoadArgs, Shape};
use super::contestant::{Contestant, Server, Wanted};
use super::cpu::{self, CpuSample};
use super::generator::{self, Phase, Plan, Shared, Tally};
use super::protocol::{Protocol, Subjects};
use crate::BenchError;
use crate::probe::resident_of;
use crate::result::{Better, Metric};

/// How long no further connection may come up before the run gives up.
const CONNECT_STALL_MAX: Duration = Duration::from_secs(20);
/// How long answers may take after the last message.
const DRAIN_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// What settles after the last handshake.
const SETTLE: Duration = Duration::from_millis(300);
/// Of a core: from here on a thread does nothing else.
const SATURATED_PERCENT: f64 = 95.0;
const IDLE_PERCENT: f64 = 90.0;

/// What one measurement gave.
pub struct Measured {
    pub metrics: BTreeMap<String, Metric>,
    pub problems: Vec<String>,
    pub tally: Tally,
}

/// Starts the contestant if it is to be started, and puts it under load.
pub fn measure(contestant: &Contestant, load: &LoadArgs) -> Result<Measured, BenchError> {
    load.check()?;
    let mut server = contestant.open(&Wanted {
        shape: load.shape,
        payload: load.payload,
        core: load.pin_server,
    })?;
    measure_server(&mut server, load)
}

/// Puts a server that listens under load.
pub fn measure_server(server: &mut Server, load: &LoadArgs) -> Result<Measured, BenchError> {
    let shared = Shared::new();
    let plan = plan(server, load);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("generator".into())
            .spawn_scoped(scope, || generator::run(&plan, &shared))?;
        let over = || thread.is_finished();
        let run = Run {
            shared: &shared,
            load,
        };
        let seen = run.steps(server, &over);
        shared.set_phase(Phase::Stop);
        let tally = thread
            .join()
            .map_err(|_| BenchError::Server("the generator panicked".into()))??;
        Ok(seen?.measured(load, &shared, tally))
    })
}

fn plan(server: &Server, load: &LoadArgs) -> Plan {
    let subjects = match load.shape {
        Shape::Fanout => Subjects::Common,
        Shape::Echo | Shape::Chat => Subjects::Own,
    };
    Plan {
        server: server.address,
        protocol: Protocol::new(
            server.url.scheme,
            subjects,
            load.payload as usize,
            &server.url.authority,
            &server.url.path,
        ),
        shape: load.shape,
        connections: load.connections,
        connect_inflight: load.connect_inflight,
        depth: load.depth,
        rate: (load.rate > 0).then(|| f64::from(load.rate)),
        payload: load.payload,
        core: load.pin_generator,
    }
}

/// Everything that counts up, at one moment.
struct Counts {
    at: Instant,
    answered: u64,
    delivered: u64,
    server: Option<Vec<CpuSample>>,
    generator_ns: Option<u64>,
    resident: Option<u64>,
}

struct Seen {
    before: Counts,
    connected: Counts,
    window: [Counts; 2],
    unanswered: u64,
}

struct Run<'a> {
    shared: &'a Shared,
    load: &'a LoadArgs,
}

impl Run<'_> {
    /// From the first connection to the last answer. `over`: the generator has ended by itself.
    fn steps(&self, server: &mut Server, over: &dyn Fn() -> bool) -> Result<Seen, BenchError> {
        let before = self.counts(server);
        let connected = self.connect(server, over)?;
        let (shared, load) = (self.shared, self.load);
        let active = load.depth > 0 || load.rate > 0;
        shared.set_phase(if active { Phase::Load } else { Phase::Idle });
        std::thread::sleep(load.warmup);
        let window_from = shared.now();
        shared.window_from.store(window_from, Ordering::Relaxed);
        let from = self.counts(server);
        std::thread::sleep(load.duration);
        let to = self.counts(server);
        shared.window_to.store(shared.now(), Ordering::Relaxed);
        shared.set_phase(Phase::Drain);
        server.check()?;
        let deadline = Instant::now() + DRAIN_MAX;
        while self.unanswered() > 0 && !over() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        Ok(Seen {
            before,
            connected,
            window: [from, to],
            unanswered: self.unanswered(),
        })
    }

    fn connect(&self, server: &mut Server, over: &dyn Fn() -> bool) -> Result<Counts, BenchError> {
        let wanted = self.load.connections;
        let begin = Instant::now();
        let mut progress = (0, begin);
        loop {
            let ready = self.shared.ready.load(Ordering::Relaxed);
            if ready == wanted {
                break;
            }
            if ready > progress.0 {
                progress = (ready, Instant::now());
            }
            let failure = self.shared.failure();
            if over() {
                // Its own error says more.
                return Err(BenchError::Server("the generator has ended".into()));
            }
            if failure.is_some() || progress.1.elapsed() > CONNECT_STALL_MAX {
                server.check()?;
                return Err(BenchError::Connect {
                    connected: ready,
                    wanted,
                    seconds: begin.elapsed().as_secs(),
                    failure: failure.unwrap_or_else(|| "no answer".into()),
                });
            }
            std::thread::sleep(POLL);
        }
        let at = Instant::now();
        std::thread::sleep(SETTLE);
        Ok(Counts {
            at,
            ..self.counts(server)
        })
    }

    fn counts(&self, server: &Server) -> Counts {
        let thread = self.shared.thread.load(Ordering::Acquire);
        let resident: Option<u64> = server.pids.iter().map(|&pid| resident_of(pid)).sum();
        Counts {
            answered: self.shared.answered.load(Ordering::Relaxed),
            delivered: self.shared.delivered.load(Ordering::Relaxed),
            server: cpu::sample(&server.pids),
            generator_ns: cpu::of_thread(std::process::id(), thread),
            at: Instant::now(),
            resident: resident.filter(|_| !server.pids.is_empty()),
        }
    }

    fn unanswered(&self) -> u64 {
        let answered = self.shared.answered.load(Ordering::Relaxed);
        self.shared.sent.load(Ordering::Relaxed) - answered
    }
}

impl Seen {
    fn measured(self, load: &LoadArgs, shared: &Shared, tally: Tally) -> Measured {
        let mut metrics = Metrics::default();
        self.connecting(load, &mut metrics);
        let (server, generator) = self.loading(load, &mut metrics);
        let mut problems = Vec::new();
        for (count, what) in [
            (tally.mismatches, "messages came back changed"),
            (tally.unasked, "messages came that were not sent"),
            (self.unanswered, "messages unanswered"),
            (
                u64::from(shared.lost.load(Ordering::Relaxed)),
                "connections lost",
            ),
        ] {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        }
        if let Some(failure) = shared.failure() {
            problems.push(failure);
        }
        if let (Some(server), Some(generator)) = (server, generator)
            && generator > SATURATED_PERCENT
            && server < IDLE_PERCENT
        {
            problems.push(format!(
                "the generator used {generator:.0} % of its core and the server {server:.0} %: \
                 the rate is the generator's limit, not the server's"
            ));
        }
        Measured {
            metrics: metrics.0,
            problems,
            tally,
        }
    }

    fn connecting(&self, load: &LoadArgs, metrics: &mut Metrics) {
        let connections = f64::from(load.connections);
        let seconds = (self.connected.at - self.before.at).as_secs_f64();
        metrics.put("connections", connections, "count", Better::Neither);
        let rate = connections / seconds;
        metrics.put("connect_rate", rate, "per_second", Better::Higher);
        if let Some(cpu) = cpu::between(&self.before.server, &self.connected.server) {
            let each = cpu.as_secs_f64() * 1e6 / connections;
            metrics.put("server_cpu_per_handshake", each, "us", Better::Lower);
        }
        if let (Some(before), Some(after)) = (self.before.resident, self.connected.resident) {
            let each = after.saturating_sub(before) as f64 / connections;
            metrics.put("server_memory_per_connection", each, "bytes", Better::Lower);
        }
    }

    /// The measured window; returns what server and generator used of a core, in percent.
    fn loading(&self, load: &LoadArgs, metrics: &mut Metrics) -> (Option<f64>, Option<f64>) {
        let [from, to] = &self.window;
        let seconds = (to.at - from.at).as_secs_f64();
        let answered = (to.answered - from.answered) as f64;
        let delivered = (to.delivered - from.delivered) as f64;
        let server = cpu::between(&from.server, &to.server).map(|cpu| cpu.as_secs_f64());
        let generator = match (from.generator_ns, to.generator_ns) {
            (Some(from), Some(to)) => Some(to.saturating_sub(from) as f64 / 1e9),
            _ => None,
        };
        let percent = |cpu: f64| cpu / seconds * 100.0;
        for (name, cpu) in [("server_cpu", server), ("generator_cpu", generator)] {
            if let Some(cpu) = cpu {
                metrics.put(name, percent(cpu), "percent_of_core", Better::Neither);
            }
        }
        metrics.put("rate", answered / seconds, "per_second", Better::Higher);
        let (count, what) = match load.shape {
            Shape::Echo | Shape::Chat => (answered, "message"),
            Shape::Fanout => (delivered, "delivery"),
        };
        if load.shape != Shape::Echo {
            let rate = delivered / seconds;
            metrics.put("delivery_rate", rate, "per_second", Better::Higher);
        }
        if count > 0.0 {
            for (whose, cpu, better) in [
                ("server", server, Better::Lower),
                ("generator", generator, Better::Neither),
            ] {
                if let Some(cpu) = cpu {
                    metrics.put(
                        &format!("{whose}_cpu_per_{what}"),
                        cpu * 1e9 / count,
                        "ns",
                        better,
                    );
                }
            }
        }
        (server.map(percent), generator.map(percent))
    }
}

#[derive(Default)]
struct Metrics(BTreeMap<String, Metric>);

impl Metrics {
    fn put(&mut self, name: &str, value: f64, unit: &str, better: Better) {
        self.0
            .insert(name.to_owned(), Metric::new(value, unit, better));
    }
}
