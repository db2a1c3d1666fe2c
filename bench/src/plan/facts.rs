//! What results say that a plan is made from: each fact with the file that it comes from.
//!
//! Invariants: a fact is measured or it is missing, never assumed; of several results that bring a fact
//! the dearest counts; what a message costs at a fan-out lies between two that were measured.
//!
//! Called by [`super::Plan::of`] alone.

use serde::Serialize;

use crate::stored::Stored;

/// A number with its origin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact {
    /// As formulas call it.
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    /// The file, and the figure in it.
    pub source: String,
}

/// A fact that no result brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub name: &'static str,
    /// The command that measures it.
    pub cure: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no result has {}: {}", self.name, self.cure)
    }
}

/// Deliveries for each message are alike within this part.
const FAN_OUT_ALIKE: f64 = 0.05;

/// All facts in the order of the formulas, or all that are missing.
pub fn facts(
    results: &[Stored],
    fan_out: f64,
    files_max: Option<f64>,
) -> Result<Vec<Fact>, Vec<Missing>> {
    let figure = |name, unit, figures: &[&str], cure| dearest(results, name, unit, figures, cure);
    let message =
        |name, cost: &dyn Fn(&Stored) -> Option<f64>| per_message(results, name, fan_out, cost);
    let all = [
        figure("kernel_bytes", "bytes", &["kernel_bytes_per_session"], IDLE),
        figure("user_bytes", "bytes", &["user_bytes_per_session"], IDLE),
        figure(
            "heartbeat_ns",
            "ns",
            &["edge_cpu_ns_per_heartbeat", "server_cpu_ns_per_heartbeat"],
            IDLE,
        ),
        figure(
            "connect_us",
            "us",
            &["edge_cpu_us_per_session", "server_cpu_us_per_session"],
            CONNECT,
        ),
        message("edge_message_us", &|s| each_message(s, "edge")),
        message("core_message_us", &|s| each_message(s, "core")),
        // Percent of a core over messages a second.
        message("engine_message_us", &|s| {
            Some(metric(s, "thread_cpu.core/engine")? * 1e4 / metric(s, MESSAGES)?)
        }),
        files(results, files_max),
    ];
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for one in all {
        match one {
            Ok(fact) => found.push(fact),
            Err(lack) => missing.push(lack),
        }
    }
    match missing.is_empty() {
        true => Ok(found),
        false => Err(missing),
    }
}

const IDLE: &str = "trunkline bench idle --spawn --connections 15000 --json …";
const CONNECT: &str = "trunkline bench connect --spawn-two --connections 15000 --json …";
const CHAT: &str = "trunkline bench chat --spawn-two --connections 1000 --rate 30000 --json …";
/// Messages acknowledged in a second, by `chat`.
pub const MESSAGES: &str = "acked_rate";
/// Deliveries in a second, by `chat`.
pub const DELIVERIES: &str = "delivery_rate";

fn metric(stored: &Stored, name: &str) -> Option<f64> {
    let value = stored.run.metrics.get(name)?.value;
    value.is_finite().then_some(value)
}

/// CPU of a process for each message; where a scenario counts by deliveries, of all of a message's.
fn each_message(stored: &Stored, process: &str) -> Option<f64> {
    metric(stored, &format!("{process}_cpu_us_per_message")).or_else(|| {
        let ns = metric(stored, &format!("{process}_cpu_ns_per_delivery"))?;
        Some(ns / 1e3 * metric(stored, DELIVERIES)? / metric(stored, MESSAGES)?)
    })
}

/// The highest value of the first of `figures` that some result has.
fn dearest(
    results: &[Stored],
    name: &'static str,
    unit: &'static str,
    figures: &[&str],
    cure: &str,
) -> Result<Fact, Missing> {
    let highest = |figure: &&str| {
        let all = results.iter().filter_map(|s| Some((metric(s, figure)?, s)));
        let (value, stored) = all.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Fact {
            name,
            value,
            unit,
            source: format!("{} {figure}", stored.path.display()),
        })
    };
    figures.iter().find_map(highest).ok_or_else(|| Missing {
        name,
        cure: cure.to_owned(),
    })
}

/// What a message costs at `fan_out`: as measured there, or on the line between the nearest runs below
/// and above.
fn per_message(
    results: &[Stored],
    name: &'static str,
    fan_out: f64,
    cost: &dyn Fn(&Stored) -> Option<f64>,
) -> Result<Fact, Missing> {
    let mut runs: Vec<(f64, f64, &Stored)> = results
        .iter()
        .filter_map(|s| Some((metric(s, DELIVERIES)? / metric(s, MESSAGES)?, cost(s)?, s)))
        .filter(|(at, cost, _)| at.is_finite() && cost.is_finite())
        .collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let fact = |value: f64, source: String| Fact {
        name,
        value,
        unit: "us",
        source,
    };
    let alike = runs
        .iter()
        .filter(|(at, ..)| (at - fan_out).abs() <= FAN_OUT_ALIKE * fan_out)
        .max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((_, cost, stored)) = alike {
        return Ok(fact(*cost, stored.path.display().to_string()));
    }
    let below = runs.iter().rev().find(|(at, ..)| *at < fan_out);
    let above = runs.iter().find(|(at, ..)| *at > fan_out);
    if let (Some(b), Some(a)) = (below, above) {
        let part = (fan_out - b.0) / (a.0 - b.0);
        let source = format!(
            "between {} (fan-out {:.1}) and {} (fan-out {:.1})",
            b.2.path.display(),
            b.0,
            a.2.path.display(),
            a.0
        );
        return Ok(fact(b.1 + part * (a.1 - b.1), source));
    }
    let measured: Vec<_> = runs.iter().map(|(at, ..)| format!("{at:.1}")).collect();
    Err(Missing {
        name,
        cure: match measured.is_empty() {
            true => CHAT.to_owned(),
            false => format!(
                "at a fan-out of {fan_out} (measured: {}); runs below and above it, with groups: {CHAT}",
                measured.join(", ")
            ),
        },
    })
}

fn files(results: &[Stored], given: Option<f64>) -> Result<Fact, Missing> {
    let fact = |value: f64, source: String| Fact {
        name: "files_max",
        value,
        unit: "count",
        source,
    };
    if let Some(given) = given {
        return Ok(fact(given, "--files-max".to_owned()));
    }
    let all = results
        .iter()
        .filter_map(|s| Some((s.run.host.files_max?, s)));
    let lowest = all.min_by_key(|(files, _)| *files);
    match lowest {
        Some((files, stored)) => Ok(fact(
            files as f64,
            format!("{} host.files_max", stored.path.display()),
        )),
        None => Err(Missing {
            name: "files_max",
            cure: "say it with --files-max: `ulimit -n` of the edge".to_owned(),
        }),
    }
}
