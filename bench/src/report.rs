//! The result of a run: typed, as JSON for machines and as text for people. Field names carry their
//! units.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Version of this layout.
pub const VERSION: u32 = 1;

/// One run of `bench chat`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChatReport {
    pub version: u32,
    pub command: String,
    /// ms since the Unix epoch.
    pub finished_at_ms: u64,
    /// Of the working directory, if it is a checkout.
    pub git_revision: Option<String>,
    pub host: Host,
    pub connect: ConnectPart,
    pub memory: Option<MemoryPart>,
    pub load: Option<LoadPart>,
    pub ack_latency: Option<Latency>,
    pub delivery_latency: Option<Latency>,
}

/// Where it ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectPart {
    pub connections: u32,
    pub seconds: f64,
    pub per_second: f64,
}

/// User memory of the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemoryPart {
    pub resident_before_bytes: u64,
    /// With the first sessions up: what they cost once is in it.
    pub resident_first_bytes: u64,
    pub resident_connected_bytes: u64,
    /// Of each further session.
    pub bytes_per_connection: f64,
}

/// The measured window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadPart {
    pub window_seconds: f64,
    /// Messages due in the window that were sent.
    pub sent: u64,
    pub acked_per_second: f64,
    pub deliveries_per_second: f64,
    pub acked: u64,
    pub deliveries: u64,
    pub errors: BTreeMap<String, u64>,
    pub unanswered: u64,
    pub not_sent: u64,
    pub disconnects: u64,
    /// Of one core.
    pub server_cpu_percent: Option<f64>,
    pub server_cpu_us_per_message: Option<f64>,
    pub generator_cpu_percent: Option<f64>,
}

/// From the moment a message was due.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
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
        })
    }
}

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
        Self {
            cpu: value(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kib * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
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

impl fmt::Display for ChatReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.connect;
        writeln!(
            f,
            "connect    {} in {:.2} s: {:.0}/s",
            c.connections, c.seconds, c.per_second
        )?;
        if let Some(m) = &self.memory {
            writeln!(
                f,
                "memory     {:.1} MiB, {:.0} bytes per connection",
                m.resident_connected_bytes as f64 / 1048576.0,
                m.bytes_per_connection
            )?;
        }
        if let Some(l) = &self.load {
            writeln!(
                f,
                "acked      {:.0} msg/s ({} in {:.1} s)",
                l.acked_per_second, l.acked, l.window_seconds
            )?;
            writeln!(f, "delivered  {:.0}/s", l.deliveries_per_second)?;
            if let (Some(percent), Some(us)) = (l.server_cpu_percent, l.server_cpu_us_per_message) {
                writeln!(
                    f,
                    "server     {percent:.0} % of a core, {us:.1} µs of CPU per message"
                )?;
            }
            if let Some(percent) = l.generator_cpu_percent {
                writeln!(f, "generator  {percent:.0} % of a core")?;
            }
            for (code, n) in &l.errors {
                writeln!(f, "refused    {n} × {code}")?;
            }
            for (n, what) in [
                (l.unanswered, "messages unanswered"),
                (
                    l.not_sent,
                    "messages due and not sent: the socket did not take them",
                ),
                (l.disconnects, "connections lost"),
            ] {
                if n > 0 {
                    writeln!(f, "PROBLEM    {n} {what}")?;
                }
            }
        }
        for (name, latency) in [
            ("ack", &self.ack_latency),
            ("delivery", &self.delivery_latency),
        ] {
            if let Some(l) = latency {
                writeln!(
                    f,
                    "{name:<10} p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2} ms",
                    l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms, l.max_ms
                )?;
            }
        }
        Ok(())
    }
}
