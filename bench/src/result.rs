//! The result of a run, the same type for every scenario: what was measured, where, with what
//! parameters. JSON for machines, text for people, and the input of the HTML report, of
//! `bench compare` and of `bench plan`.
//!
//! Invariants: a metric's name and unit never change their meaning between versions of this layout
//! ([`VERSION`]); names carry no unit where [`Metric::unit`] does; latencies run from the moment at
//! which an operation was due.
//!
//! Written by every scenario, read by everything that shows or judges a run.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

/// Version of this layout.
pub const VERSION: u32 = 2;

/// One run of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    pub version: u32,
    /// The scenario's name on the command line.
    pub scenario: String,
    /// The arguments after the program's name; secrets are left out.
    pub command: String,
    /// ms since the Unix epoch.
    pub started_at_ms: u64,
    pub finished_at_ms: u64,
    /// Of the working directory, if it is a checkout.
    pub git_revision: Option<String>,
    pub host: Host,
    /// The scenario's parameters, by the names of their flags.
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// Single figures by name, `connect_rate`, `server_cpu_per_message`, …
    pub metrics: BTreeMap<String, Metric>,
    /// Distributions by name, `ack`, `delivery`, …
    pub latencies: BTreeMap<String, Latency>,
    /// What was sampled while it ran.
    pub series: Vec<Series>,
    /// Limits that were asked for, and how they came out.
    #[serde(default)]
    pub budgets: Vec<BudgetOutcome>,
    /// What went wrong without ending the run, in words: lost connections, messages not answered.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    pub value: f64,
    /// `per_second`, `us`, `bytes`, `percent_of_core`, `count`, `ratio`, …
    pub unit: String,
    pub better: Better,
}

/// Which way a figure should go; `compare` judges by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Higher,
    Lower,
    /// A fact, not a quality.
    Neither,
}

/// Values over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub name: String,
    pub unit: String,
    /// Seconds since the start of the run, and the value then; ascending in time.
    pub points: Vec<[f64; 2]>,
}

/// One limit, as asked for, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetOutcome {
    pub budget: String,
    /// `None`: the run has no such figure, which counts as a miss.
    pub value: Option<f64>,
    pub kept: bool,
}

/// Where it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    /// Kernel settings that a run depends on, by name.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Soft limit of open files of the generator.
    #[serde(default)]
    pub files_max: Option<u64>,
}

/// A distribution of times.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// The whole histogram in ns: HdrHistogram's V2 deflate form in base64.
    #[serde(default)]
    pub histogram: String,
}

impl Metric {
    pub fn new(value: f64, unit: &str, better: Better) -> Self {
        Self {
            value,
            unit: unit.to_owned(),
            better,
        }
    }
}

impl RunResult {
    /// A run of `scenario` that begins now, on this machine.
    pub fn begin(scenario: &str, parameters: BTreeMap<String, serde_json::Value>) -> Self {
        Self {
            version: VERSION,
            scenario: scenario.to_owned(),
            command: command_line(),
            started_at_ms: unix_ms(),
            finished_at_ms: 0,
            git_revision: git_revision(),
            host: Host::here(),
            parameters,
            metrics: BTreeMap::new(),
            latencies: BTreeMap::new(),
            series: Vec::new(),
            budgets: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// To be called when the last figure is in.
    pub fn finish(&mut self) {
        self.finished_at_ms = unix_ms();
    }

    pub fn metric(&mut self, name: &str, value: f64, unit: &str, better: Better) {
        self.metrics
            .insert(name.to_owned(), Metric::new(value, unit, better));
    }

    /// Adds a distribution, unless nothing was recorded. The histogram counts ns.
    pub fn latency(&mut self, name: &str, histogram: &Histogram<u64>) {
        if let Some(latency) = Latency::of(histogram) {
            self.latencies.insert(name.to_owned(), latency);
        }
    }

    /// Whether every budget was kept.
    pub fn keeps_budgets(&self) -> bool {
        self.budgets.iter().all(|b| b.kept)
    }
}

impl Latency {
    /// `None` when nothing was recorded. The histogram counts ns.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let ms = |ns: u64| ns as f64 / 1e6;
        let at = |q: f64| ms(histogram.value_at_quantile(q));
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1e6,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(histogram.max()),
            histogram: encoded(histogram),
        })
    }
}

fn encoded(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    // Into memory it fails only for want of memory; the figures stand without it.
    match V2DeflateSerializer::new().serialize(histogram, &mut bytes) {
        Ok(_) => STANDARD.encode(bytes),
        Err(_) => String::new(),
    }
}

/// Settings of the kernel that bound or colour what is measured.
const SYSCTLS: [&str; 14] = [
    "fs.file-max",
    "fs.nr_open",
    "kernel.io_uring_disabled",
    "net.core.netdev_max_backlog",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_wmem",
];

impl Host {
    /// This machine.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            text.lines()
                .find(|l| l.starts_with(key))
                .and_then(|l| l.split_once(':'))
                .map(|(_, v)| v.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory
            .split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        let sysctls = SYSCTLS.iter().filter_map(|name| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            let value = std::fs::read_to_string(path).ok()?;
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            Some(((*name).to_owned(), value))
        });
        let files_max = read("/proc/self/limits")
            .lines()
            .find_map(|l| l.strip_prefix("Max open files"))
            .and_then(|l| l.split_whitespace().next()?.parse().ok());
        Self {
            cpu: value(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kib * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            sysctls: sysctls.collect(),
            files_max,
        }
    }
}

/// The command line without the value of `--secret`.
fn command_line() -> String {
    let mut hide = false;
    let words = std::env::args().skip(1).filter(|a| !a.is_empty());
    let words = words.map(|word| {
        let hidden = std::mem::replace(&mut hide, word == "--secret");
        match word.split_once('=') {
            _ if hidden => "…".to_owned(),
            Some(("--secret", _)) => "--secret=…".to_owned(),
            _ => word,
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// ms since the Unix epoch.
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// The checkout's commit, if there is one.
pub fn git_revision() -> Option<String> {
    let out = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .output()
        .ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

impl fmt::Display for RunResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.metrics.keys().chain(self.latencies.keys());
        let width = names.map(String::len).max().unwrap_or(0);
        for (name, metric) in &self.metrics {
            let value = if metric.value.abs() >= 1_000.0 {
                format!("{:.0}", metric.value)
            } else {
                format!("{:.2}", metric.value)
            };
            writeln!(f, "{name:width$}  {value} {}", metric.unit)?;
        }
        for (name, l) in &self.latencies {
            writeln!(
                f,
                "{name:width$}  p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2} ms  ({})",
                l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms, l.max_ms, l.count
            )?;
        }
        for problem in &self.problems {
            writeln!(f, "PROBLEM  {problem}")?;
        }
        for b in &self.budgets {
            let verdict = if b.kept { "kept" } else { "MISSED" };
            let value = b.value.map_or("nothing".to_owned(), |v| format!("{v:.3}"));
            writeln!(f, "budget   {}: {value}, {verdict}", b.budget)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;

    use super::*;

    #[test]
    fn a_run_survives_json_with_its_histogram() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        for ms in 1..=100 {
            histogram.record(ms * 1_000_000).unwrap();
        }
        let mut run = RunResult::begin("echo", BTreeMap::new());
        run.metric("rate", 12.5, "per_second", Better::Higher);
        run.latency("echo", &histogram);
        run.latency("nothing", &Histogram::new(3).unwrap());
        run.finish();
        let text = serde_json::to_string(&run).unwrap();
        let back: RunResult = serde_json::from_str(&text).unwrap();
        assert_eq!(back.metrics["rate"], run.metrics["rate"]);
        assert!(!back.latencies.contains_key("nothing"));
        let bytes = STANDARD.decode(&back.latencies["echo"].histogram).unwrap();
        let again: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert_eq!(again, histogram);
    }

    #[test]
    fn a_missed_budget_shows() {
        let mut run = RunResult::begin("idle", BTreeMap::new());
        assert!(run.keeps_budgets());
        run.budgets.push(BudgetOutcome {
            budget: "bytes<=1".into(),
            value: None,
            kept: false,
        });
        assert!(!run.keeps_budgets());
        assert!(run.to_string().contains("bytes<=1: nothing, MISSED"));
    }
}
