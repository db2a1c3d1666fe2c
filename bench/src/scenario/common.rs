//! What the scenarios share: the run's frame (server, fleet, series over time), CPU between two
//! moments, and the figures and problems that mean the same everywhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::BenchError;
use crate::args;
pub use crate::args::ErasedArgs;
use crate::fleet::{Fleet, Present, Shape, Tally};
use crate::probe;
use crate::result::{Better, RunResult, Series};
use crate::target::Target;

/// Between the last connection and the reading of memory.
pub const SETTLE: Duration = Duration::from_secs(1);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// A result that begins now.
pub fn begin(scenario: &str, args: &[&dyn ErasedArgs]) -> RunResult {
    RunResult::begin(scenario, args::parameters(args))
}

/// Runs `measure` against an opened target and ends the target in any case.
pub fn with_target<T>(
    target: Result<Target, BenchError>,
    measure: impl FnOnce(&mut Target) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let mut target = target?;
    let result = measure(&mut target);
    let closed = target.close();
    let value = result?;
    closed?;
    Ok(value)
}

/// Runs `measure` with a started fleet and ends the fleet in any case.
pub fn with_fleet<T>(
    fleet: Result<Fleet, BenchError>,
    measure: impl FnOnce(&Fleet) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let fleet = fleet?;
    let result = measure(&fleet);
    let stopped = fleet.stop();
    let value = result?;
    stopped?;
    Ok(value)
}

/// Runs `measure` with a server and a fleet of clients that do nothing but be there.
pub fn with_present<T>(
    fleet: &args::FleetArgs,
    target: &args::TargetArgs,
    measure: impl FnOnce(&Target, &Fleet) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    with_target(Target::open(target, 1), |target| {
        let people = Fleet::people(fleet, target)?;
        let mut present = |_| Box::new(Present) as _;
        let fleet = Fleet::start(fleet, target, &people, Shape::default(), &mut present);
        with_fleet(fleet, |fleet| measure(target, fleet))
    })
}

/// CPU time so far, of everybody.
pub struct Meter {
    at: Instant,
    server: Option<Duration>,
    processes: Vec<(String, u32, Option<Duration>)>,
    threads: Vec<(String, u32, BTreeMap<String, u64>)>,
    generator: Option<Duration>,
}

/// CPU time between two moments.
pub struct Usage {
    pub seconds: f64,
    /// Of all the server's processes, in seconds.
    pub server: Option<f64>,
    /// Of each, if there are several.
    pub processes: Vec<(String, f64)>,
    /// Of the server's threads by `process/thread` or, with one process, by `thread`.
    pub threads: Vec<(String, f64)>,
    pub generator: Option<f64>,
}

impl Meter {
    pub fn start(target: &Target) -> Self {
        let processes = target.processes.iter();
        Self {
            at: Instant::now(),
            server: target.cpu(),
            processes: processes
                .clone()
                .map(|p| (p.name.clone(), p.pid, probe::cpu_of(p.pid)))
                .collect(),
            threads: processes
                .map(|p| (p.name.clone(), p.pid, probe::threads_of(p.pid)))
                .collect(),
            generator: probe::cpu_of(std::process::id()),
        }
    }

    pub fn stop(&self, target: &Target) -> Usage {
        let between = |before: Option<Duration>, after: Option<Duration>| {
            let spent = before.zip(after)?;
            Some(spent.1.saturating_sub(spent.0).as_secs_f64())
        };
        let several = self.processes.len() > 1;
        let each = self.processes.iter().filter(|_| several);
        let mut threads = Vec::new();
        for (process, pid, before) in &self.threads {
            for (name, after) in probe::threads_of(*pid) {
                let spent = after.saturating_sub(before.get(&name).copied().unwrap_or(0));
                let name = if several {
                    format!("{process}/{name}")
                } else {
                    name
                };
                threads.push((name, spent as f64 / 1e9));
            }
        }
        Usage {
            seconds: self.at.elapsed().as_secs_f64(),
            server: between(self.server, target.cpu()),
            processes: each
                .filter_map(|(name, pid, before)| {
                    Some((name.clone(), between(*before, probe::cpu_of(*pid))?))
                })
                .collect(),
            threads,
            generator: between(self.generator, probe::cpu_of(std::process::id())),
        }
    }
}

/// Part of a core that a thread must use to be told of, in percent.
const THREAD_TOLD_PERCENT: f64 = 0.01;

impl Usage {
    /// CPU as percent of one core, in all, for each process and each thread.
    pub fn percent(&self, result: &mut RunResult) {
        let of = |seconds: f64| 100.0 * seconds / self.seconds;
        let unit = "percent_of_core";
        if let Some(server) = self.server {
            result.metric("server_cpu", of(server), unit, Better::Lower);
        }
        for (name, seconds) in &self.processes {
            let name = format!("{name}_cpu");
            result.metric(&name, of(*seconds), unit, Better::Lower);
        }
        for (name, seconds) in &self.threads {
            if of(*seconds) >= THREAD_TOLD_PERCENT {
                let name = format!("thread_cpu.{name}");
                result.metric(&name, of(*seconds), unit, Better::Lower);
            }
        }
        if let Some(generator) = self.generator {
            result.metric("generator_cpu", of(generator), unit, Better::Neither);
        }
    }

    /// CPU for each of `count` things, in all and for each process.
    pub fn each(&self, what: &str, count: u64, unit: &str, result: &mut RunResult) {
        let scale = if unit == "ns" { 1e9 } else { 1e6 };
        let of = |seconds: f64| scale * seconds / count.max(1) as f64;
        if let Some(server) = self.server {
            let name = format!("server_cpu_{unit}_per_{what}");
            result.metric(&name, of(server), unit, Better::Lower);
        }
        for (process, seconds) in &self.processes {
            let name = format!("{process}_cpu_{unit}_per_{what}");
            result.metric(&name, of(*seconds), unit, Better::Lower);
        }
        if let Some(generator) = self.generator {
            let name = format!("generator_cpu_{unit}_per_{what}");
            result.metric(&name, of(generator), unit, Better::Neither);
        }
    }
}

/// Series over time, a point a second.
pub struct Sampler {
    origin: Instant,
    next: Instant,
    last: Option<Sample>,
    series: BTreeMap<String, Series>,
}

struct Sample {
    at: Instant,
    sessions: u64,
    server: Option<Duration>,
    processes: Vec<Option<Duration>>,
}

impl Sampler {
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            next: Instant::now(),
            last: None,
            series: BTreeMap::new(),
        }
    }

    /// To be called often; takes a point when a second is over.
    pub fn look(&mut self, target: &Target, fleet: &Fleet) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + SAMPLE_EVERY;
        let sessions = fleet
            .shared
            .sessions
            .load(std::sync::atomic::Ordering::Relaxed);
        let here = Sample {
            at: now,
            sessions,
            server: target.cpu(),
            processes: target
                .processes
                .iter()
                .map(|p| probe::cpu_of(p.pid))
                .collect(),
        };
        self.point("connected", "count", f64::from(fleet.up()));
        if let Some(last) = self.last.replace(here) {
            self.rates(target, &last);
        }
        self.memory(target);
    }

    fn rates(&mut self, target: &Target, last: &Sample) {
        let Some(here) = self.last.take() else { return };
        let seconds = (here.at - last.at).as_secs_f64();
        let sessions = (here.sessions - last.sessions) as f64 / seconds;
        self.point("connect_rate", "per_second", sessions);
        let percent = |before: Option<Duration>, after: Option<Duration>| {
            let spent = before.zip(after)?;
            Some(100.0 * spent.1.saturating_sub(spent.0).as_secs_f64() / seconds)
        };
        if let Some(percent) = percent(last.server, here.server) {
            self.point("server_cpu", "percent_of_core", percent);
        }
        if target.processes.len() > 1 {
            let each = target.processes.iter().zip(&last.processes);
            for ((process, before), after) in each.zip(&here.processes) {
                if let Some(percent) = percent(*before, *after) {
                    let name = format!("{}_cpu", process.name);
                    self.point(&name, "percent_of_core", percent);
                }
            }
        }
        self.last = Some(here);
    }

    fn memory(&mut self, target: &Target) {
        if let Some(resident) = target.resident() {
            self.point("server_memory", "bytes", resident as f64);
        }
        if let Some(resident) = probe::resident_of(std::process::id()) {
            self.point("generator_memory", "bytes", resident as f64);
        }
        if let Some(kernel) = probe::kernel_memory() {
            self.point("kernel_slab", "bytes", kernel.slab_bytes as f64);
            let buffers = kernel.socket_buffer_bytes as f64;
            self.point("socket_buffers", "bytes", buffers);
        }
    }

    /// A point of a scenario's own.
    pub fn point(&mut self, name: &str, unit: &str, value: f64) {
        let at = self.origin.elapsed().as_secs_f64();
        let series = self.series.entry(name.to_owned());
        let series = series.or_insert_with(|| Series {
            name: name.to_owned(),
            unit: unit.to_owned(),
            points: Vec::new(),
        });
        series.points.push([at, value]);
    }

    pub fn get(&self, name: &str) -> Option<&Series> {
        self.series.get(name)
    }

    pub fn into_result(self, result: &mut RunResult) {
        result.series.extend(self.series.into_values());
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits, and takes points meanwhile.
pub fn hold(
    duration: Duration,
    target: &Target,
    fleet: &Fleet,
    sampler: &mut Sampler,
) -> Result<(), BenchError> {
    let until = Instant::now() + duration;
    fleet.wait_until(Duration::MAX / 4, || {
        sampler.look(target, fleet);
        Instant::now() >= until
    })?;
    Ok(())
}

/// Connects that did not go as they should, in words.
pub fn connect_problems(tally: &Tally, result: &mut RunResult) {
    for (status, n) in &tally.refused {
        let problem = format!("{n} connects were refused with HTTP {status}");
        result.problems.push(problem);
    }
    for (error, n) in &tally.connect_errors {
        let problem = format!("{n} connects failed: {error}");
        result.problems.push(problem);
    }
}

/// Sessions that the server ended, errors and messages that could not be sent, in words.
pub fn session_problems(tally: &Tally, result: &mut RunResult) {
    for (code, n) in &tally.closes {
        let how = match code {
            0 => "without a close code".to_owned(),
            code => format!("with {code}"),
        };
        let problem = format!("{n} sessions were ended by the server {how}");
        result.problems.push(problem);
    }
    for (code, n) in &tally.errors {
        result.problems.push(format!("{n} errors {code}"));
    }
    if tally.not_sent > 0 {
        let n = tally.not_sent;
        let problem = format!("{n} messages were due and could not be sent");
        result.problems.push(problem);
    }
}

/// Memory of everybody at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub resident: Option<u64>,
    pub anonymous: Option<u64>,
    pub generator: Option<u64>,
    pub kernel: Option<probe::KernelMemory>,
}

impl Memory {
    pub fn now(target: &Target) -> Self {
        Self {
            resident: target.resident(),
            anonymous: target.anonymous(),
            generator: probe::resident_of(std::process::id()),
            kernel: probe::kernel_memory(),
        }
    }

    /// What each of `further` sessions more than at `first` costs, of each kind of memory; of the
    /// generator's, what each of `all` does.
    pub fn slope(&self, first: &Self, further: u32, all: u32, result: &mut RunResult) {
        let further = f64::from(further.max(1));
        let each = |before: Option<u64>, after: Option<u64>| {
            Some((after? as f64 - before? as f64) / further)
        };
        let kernel = |memory: &Self| {
            let kernel = memory.kernel?;
            Some(kernel.slab_bytes + kernel.socket_buffer_bytes)
        };
        // On loopback this machine holds both ends, which are alike: half for each.
        let kernel = each(kernel(first), kernel(self)).map(|bytes| bytes / 2.0);
        let figures = [
            (
                "user_bytes_per_session",
                each(first.resident, self.resident),
                Better::Lower,
            ),
            (
                "anonymous_bytes_per_session",
                each(first.anonymous, self.anonymous),
                Better::Lower,
            ),
            ("kernel_bytes_per_session", kernel, Better::Lower),
            // Its tables are there before the first client is.
            (
                "generator_bytes_per_client",
                self.generator.map(|bytes| bytes as f64 / f64::from(all)),
                Better::Neither,
            ),
        ];
        for (name, value, better) in figures {
            if let Some(value) = value {
                result.metric(name, value, "bytes", better);
            }
        }
        if let Some(resident) = self.resident {
            result.metric("server_memory", resident as f64, "bytes", Better::Lower);
        }
    }
}
