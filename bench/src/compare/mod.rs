//! Two results, or two series of them, side by side: what became better, worse, or stayed.
//!
//! Invariants: a figure is judged only by the direction that it declares; one that is missing on a
//! side, or a percentile that too few samples stand behind, is shown and not judged; with several runs
//! for each side a difference counts only when it shows in most pairs of runs, not in the medians
//! alone.
//!
//! Called by `bench compare`; [`text`] and `html::compare` show it.

pub mod text;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::result::{Better, Latency, RunResult};
use crate::stored::Stored;

/// Share of the pairs of runs (one of each side) that must agree that there is a difference: a large
/// effect by Vargha and Delaney, "A Critique and Improvement of the CL Common Language Effect Size
/// Statistics", 2000 (A of at least 0.71).
const PAIRS_AGREE_MIN: f64 = 0.71;
/// Samples beyond a percentile without which it is not judged.
const SAMPLES_BEYOND_MIN: f64 = 10.0;
/// Parameters that say where results go or how a server is found, not what is measured.
const PARAMETERS_ASIDE: [&str; 10] = [
    "json",
    "html",
    "budget",
    "quiet",
    "secret",
    "config",
    "server_pid",
    "data",
    "ws",
    "http",
];

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub before: Side,
    pub after: Side,
    /// Part of a figure by which it may change and count as the same.
    pub threshold: f64,
    pub rows: Vec<Row>,
    /// What differs between the runs and is not a figure.
    pub differences: Vec<Difference>,
    /// What a reader should know before believing the rows.
    pub warnings: Vec<String>,
}

/// The runs of one side.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub files: Vec<String>,
    pub scenario: String,
    pub git_revision: Option<String>,
    pub problems: usize,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub figure: String,
    pub unit: String,
    pub better: Better,
    pub before: Option<Spread>,
    pub after: Option<Spread>,
    /// Of the medians, after to before; `None` where that says nothing.
    pub ratio: Option<f64>,
    pub verdict: Verdict,
}

/// Some values of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Better,
    Worse,
    /// Within the threshold.
    Same,
    /// Beyond the threshold, but the runs of a side differ among themselves as much.
    Noise,
    /// Not judged: a fact, missing on a side, or too few samples.
    Shown,
}

/// A setting or a property of the machine that the two sides do not share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub what: String,
    pub before: String,
    pub after: String,
}

impl Comparison {
    /// Compares `after` with `before`; neither may be empty.
    pub fn of(before: &[Stored], after: &[Stored], threshold: f64) -> Self {
        let mut comparison = Self {
            before: Side::of(before),
            after: Side::of(after),
            threshold,
            rows: Vec::new(),
            differences: differences(before, after),
            warnings: Vec::new(),
        };
        comparison.warn(before, after);
        comparison.metrics(before, after);
        comparison.latencies(before, after);
        comparison
    }

    /// Whether something became worse by more than the threshold.
    pub fn has_worse(&self) -> bool {
        self.rows.iter().any(|r| r.verdict == Verdict::Worse)
    }

    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|r| r.verdict == verdict).count()
    }

    fn metrics(&mut self, before: &[Stored], after: &[Stored]) {
        let all = || before.iter().chain(after);
        let names: BTreeSet<_> = all().flat_map(|s| s.run.metrics.keys()).collect();
        for name in names {
            let Some(metric) = all().find_map(|s| s.run.metrics.get(name)) else {
                continue;
            };
            let units: BTreeSet<_> = all()
                .filter_map(|s| s.run.metrics.get(name))
                .map(|m| &m.unit)
                .collect();
            if units.len() > 1 {
                self.warnings
                    .push(format!("{name}: not in one unit, and not compared"));
                continue;
            }
            let values = |side: &[Stored]| -> Vec<f64> {
                let metrics = side.iter().filter_map(|s| s.run.metrics.get(name));
                metrics.map(|m| m.value).collect()
            };
            let (b, a) = (values(before), values(after));
            let row = row(name, &metric.unit, metric.better, &b, &a, self.threshold);
            self.rows.push(row);
        }
    }

    fn latencies(&mut self, before: &[Stored], after: &[Stored]) {
        let all = || before.iter().chain(after);
        let names: BTreeSet<_> = all().flat_map(|s| s.run.latencies.keys()).collect();
        for name in names {
            for (field, quantile, read) in FIELDS {
                let of = |side: &[Stored]| -> Vec<Latency> {
                    let all = side.iter().filter_map(|s| s.run.latencies.get(name));
                    all.cloned().collect()
                };
                let (b, a) = (of(before), of(after));
                let enough = quantile.is_some_and(|q| {
                    b.iter()
                        .chain(&a)
                        .all(|l| l.count as f64 * (1.0 - q) >= SAMPLES_BEYOND_MIN)
                });
                let better = match enough {
                    true => Better::Lower,
                    false => Better::Neither,
                };
                let (b, a): (Vec<_>, Vec<_>) =
                    (b.iter().map(read).collect(), a.iter().map(read).collect());
                let figure = format!("{name}.{field}");
                self.rows
                    .push(row(&figure, "ms", better, &b, &a, self.threshold));
            }
        }
    }

    fn warn(&mut self, before: &[Stored], after: &[Stored]) {
        if self.before.scenario != self.after.scenario {
            self.warnings.push(format!(
                "different scenarios: {} and {}",
                self.before.scenario, self.after.scenario
            ));
        }
        for (side, name) in [(before, "before"), (after, "after")] {
            let odd = side
                .iter()
                .skip(1)
                .flat_map(|s| different(&side[0].run, &s.run))
                .map(|d| d.what)
                .collect::<BTreeSet<_>>();
            if !odd.is_empty() {
                let odd = odd.into_iter().collect::<Vec<_>>().join(", ");
                self.warnings
                    .push(format!("the runs {name} are not alike: {odd}"));
            }
            for stored in side.iter().filter(|s| !s.run.problems.is_empty()) {
                self.warnings.push(format!(
                    "{}: {} problems, the first: {}",
                    stored.path.display(),
                    stored.run.problems.len(),
                    stored.run.problems[0]
                ));
            }
        }
        if !self.differences.is_empty() {
            let what: Vec<_> = self.differences.iter().map(|d| d.what.as_str()).collect();
            self.warnings
                .push(format!("not the same conditions: {}", what.join(", ")));
        }
    }
}

type Field = (&'static str, Option<f64>, fn(&Latency) -> f64);

/// Of a distribution, with the share of samples below it where that decides whether it can be judged.
/// A maximum is one sample, a mean hides the tail: both are shown only.
const FIELDS: [Field; 6] = [
    ("mean_ms", None, |l| l.mean_ms),
    ("p50_ms", Some(0.5), |l| l.p50_ms),
    ("p90_ms", Some(0.9), |l| l.p90_ms),
    ("p99_ms", Some(0.99), |l| l.p99_ms),
    ("p999_ms", Some(0.999), |l| l.p999_ms),
    ("max_ms", None, |l| l.max_ms),
];

impl Side {
    fn of(side: &[Stored]) -> Self {
        let names: BTreeSet<_> = side.iter().map(|s| s.run.scenario.as_str()).collect();
        let revisions: BTreeSet<_> = side.iter().map(|s| s.run.git_revision.clone()).collect();
        Self {
            files: side.iter().map(|s| s.path.display().to_string()).collect(),
            scenario: names.into_iter().collect::<Vec<_>>().join(", "),
            git_revision: match revisions.len() {
                1 => revisions.into_iter().next().flatten(),
                _ => None,
            },
            problems: side.iter().map(|s| s.run.problems.len()).sum(),
        }
    }
}

impl Spread {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            median,
            min,
            max,
            runs: sorted.len(),
        })
    }
}

fn row(
    figure: &str,
    unit: &str,
    better: Better,
    before: &[f64],
    after: &[f64],
    threshold: f64,
) -> Row {
    let (b, a) = (Spread::of(before), Spread::of(after));
    let ratio = b
        .zip(a)
        .filter(|(b, _)| b.median != 0.0)
        .map(|(b, a)| a.median / b.median);
    Row {
        figure: figure.to_owned(),
        unit: unit.to_owned(),
        better,
        before: b,
        after: a,
        ratio,
        verdict: verdict(better, before, after, threshold),
    }
}

fn verdict(better: Better, before: &[f64], after: &[f64], threshold: f64) -> Verdict {
    let (Some(b), Some(a)) = (Spread::of(before), Spread::of(after)) else {
        return Verdict::Shown;
    };
    let rose = match better {
        Better::Neither => return Verdict::Shown,
        Better::Higher => Verdict::Better,
        Better::Lower => Verdict::Worse,
    };
    let change = a.median - b.median;
    // A figure that was 0 has no part that it may change by.
    if change.abs() <= threshold * b.median.abs() {
        return Verdict::Same;
    }
    if pairs_agree(before, after, change > 0.0) < PAIRS_AGREE_MIN {
        return Verdict::Noise;
    }
    match (change > 0.0, rose) {
        (true, verdict) => verdict,
        (false, Verdict::Better) => Verdict::Worse,
        (false, _) => Verdict::Better,
    }
}

/// Share of the pairs in which `after` is above (or below) `before`; an equal pair is half a pair.
fn pairs_agree(before: &[f64], after: &[f64], above: bool) -> f64 {
    let mut agree = 0.0;
    for b in before {
        for a in after {
            agree += match a.total_cmp(b) {
                std::cmp::Ordering::Equal => 0.5,
                order if order.is_gt() == above => 1.0,
                _ => 0.0,
            };
        }
    }
    agree / (before.len() * after.len()) as f64
}

/// What the first runs of the sides do not share.
fn differences(before: &[Stored], after: &[Stored]) -> Vec<Difference> {
    match (before.first(), after.first()) {
        (Some(b), Some(a)) => different(&b.run, &a.run),
        _ => Vec::new(),
    }
}

/// Conditions that two runs do not share. The revision is not one: it is what one compares.
fn different(before: &RunResult, after: &RunResult) -> Vec<Difference> {
    let (b, a) = (conditions(before), conditions(after));
    let names: BTreeSet<_> = b.keys().chain(a.keys()).collect();
    let value = |of: &BTreeMap<String, String>, name: &str| {
        of.get(name).map_or("–", String::as_str).to_owned()
    };
    names
        .into_iter()
        .filter(|name| b.get(*name) != a.get(*name))
        .map(|name| Difference {
            what: name.clone(),
            before: value(&b, name),
            after: value(&a, name),
        })
        .collect()
}

fn conditions(run: &RunResult) -> BTreeMap<String, String> {
    let host = &run.host;
    let mut all = BTreeMap::from([
        ("scenario".to_owned(), run.scenario.clone()),
        ("host cpu".to_owned(), host.cpu.clone()),
        ("host cores".to_owned(), host.cores.to_string()),
        (
            "host memory".to_owned(),
            crate::units::show(host.memory_bytes as f64, "bytes"),
        ),
        ("host kernel".to_owned(), host.kernel.clone()),
    ]);
    if let Some(files) = host.files_max {
        all.insert("host files_max".to_owned(), files.to_string());
    }
    for (name, value) in &host.sysctls {
        all.insert(name.clone(), value.clone());
    }
    for (name, value) in &run.parameters {
        if !PARAMETERS_ASIDE.contains(&name.replace('-', "_").as_str()) {
            all.insert(format!("--{name}"), crate::html::parameter(value));
        }
    }
    all
}

/// `5%` or `0.05`: a part that a figure may change by.
pub fn parse_threshold(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text.trim(), 1.0),
    };
    let part = number.trim().parse::<f64>().map(|n| n / scale);
    match part {
        Ok(part) if (0.0..=10.0).contains(&part) => Ok(part),
        _ => Err(format!("{text:?}: a part of the figure, as in 5% or 0.05")),
    }
}

#[cfg(test)]
mod tests;
