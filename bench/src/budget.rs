//! Limits on the figures of a run: `server_cpu_per_message<=10`, `ack.p99_ms<=25`.
//!
//! Invariants: a budget that names a figure which no scenario has is refused before the run, with the
//! nearest names; one whose figure this run did not bring is missed, not passed over.
//!
//! Parsed by the command line (`--budget`) and by scenario files, judged when a run ends.

use std::fmt;
use std::str::FromStr;

use crate::catalogue;
use crate::result::{BudgetOutcome, RunResult};

/// One limit on one figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// A metric's name, or a distribution's and a field's: `ack.p99_ms`.
    pub figure: String,
    pub comparison: Comparison,
    pub limit: f64,
}

/// How the figure stands to the limit when the budget is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    AtMost,
    Below,
    AtLeast,
    Above,
    Equal,
}

/// Fields of a distribution that a budget may name.
pub const LATENCY_FIELDS: [&str; 7] = [
    "count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms",
];

/// Two characters before those that they begin with.
const COMPARISONS: [(&str, Comparison); 6] = [
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("==", Comparison::Equal),
    ("<", Comparison::Below),
    (">", Comparison::Above),
    ("=", Comparison::Equal),
];

impl Comparison {
    fn sign(self) -> &'static str {
        match self {
            Self::AtMost => "<=",
            Self::Below => "<",
            Self::AtLeast => ">=",
            Self::Above => ">",
            Self::Equal => "==",
        }
    }

    fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Self::AtMost => value <= limit,
            Self::Below => value < limit,
            Self::AtLeast => value >= limit,
            Self::Above => value > limit,
            Self::Equal => value == limit,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.figure, self.comparison.sign(), self.limit)
    }
}

impl FromStr for Budget {
    type Err = String;

    /// The text of the error is the cure.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = text.find(['<', '>', '=']);
        let (figure, rest) = text.split_at(found.ok_or_else(|| {
            format!("{text:?}: a figure, <= or >=, and a number, as in ack.p99_ms<=25")
        })?);
        let (comparison, limit) = COMPARISONS
            .iter()
            .find_map(|(sign, c)| Some((*c, rest.strip_prefix(sign)?)))
            .ok_or_else(|| {
                format!("{text:?}: between figure and number stands <=, <, >=, > or ==")
            })?;
        let limit: f64 = limit
            .trim()
            .replace('_', "")
            .parse()
            .ok()
            .filter(|l: &f64| l.is_finite())
            .ok_or_else(|| {
                format!("{text:?}: {limit:?} is no number; the unit is the figure's own")
            })?;
        Ok(Self {
            figure: known(figure.trim())?,
            comparison,
            limit,
        })
    }
}

/// The figure's name, if some scenario has it.
fn known(figure: &str) -> Result<String, String> {
    if catalogue::is_metric(figure) {
        return Ok(figure.to_owned());
    }
    let distributions = catalogue::latencies();
    let (what, name, names) = match figure.split_once('.') {
        Some((distribution, field)) if distributions.contains(&distribution) => {
            if LATENCY_FIELDS.contains(&field) {
                return Ok(figure.to_owned());
            }
            let fields = LATENCY_FIELDS.map(str::to_owned).to_vec();
            ("field of a distribution", field, fields)
        }
        Some((distribution, _)) => {
            let names = distributions.iter().map(|d| (*d).to_owned());
            ("distribution", distribution, names.collect())
        }
        None => {
            let mut names = catalogue::metrics();
            let fields = |d: &&str| LATENCY_FIELDS.map(|f| format!("{d}.{f}"));
            names.extend(distributions.iter().flat_map(fields));
            ("figure", figure, names)
        }
    };
    let near = catalogue::nearest(name, names);
    let cure = match near.len() {
        0 => "`trunkline bench figures` lists them".to_owned(),
        _ => format!("did you mean {}?", near.join(" or ")),
    };
    Err(format!("no scenario has the {what} {name:?}: {cure}"))
}

/// Judges `run` by `budgets`; what came out stands in `run.budgets`.
pub fn judge(run: &mut RunResult, budgets: &[Budget]) {
    run.budgets = budgets
        .iter()
        .map(|budget| {
            let value = figure(run, &budget.figure);
            BudgetOutcome {
                budget: budget.to_string(),
                value,
                kept: value.is_some_and(|v| budget.comparison.holds(v, budget.limit)),
            }
        })
        .collect();
}

/// A figure of a run by the name that budgets use.
pub fn figure(run: &RunResult, name: &str) -> Option<f64> {
    if let Some(metric) = run.metrics.get(name) {
        return Some(metric.value);
    }
    let (distribution, field) = name.split_once('.')?;
    let l = run.latencies.get(distribution)?;
    Some(match field {
        "count" => l.count as f64,
        "mean_ms" => l.mean_ms,
        "p50_ms" => l.p50_ms,
        "p90_ms" => l.p90_ms,
        "p99_ms" => l.p99_ms,
        "p999_ms" => l.p999_ms,
        "max_ms" => l.max_ms,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hdrhistogram::Histogram;

    use super::*;
    use crate::result::Better;

    fn run() -> RunResult {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        histogram.record_n(20_000_000, 100).unwrap();
        let mut run = RunResult::begin("chat", BTreeMap::new());
        run.metric("server_cpu_per_message", 10.0, "us", Better::Lower);
        run.metric(
            "thread_cpu.core/engine",
            50.0,
            "percent_of_core",
            Better::Lower,
        );
        run.latency("ack", &histogram);
        run
    }

    fn kept(budget: &str) -> bool {
        let mut run = run();
        judge(&mut run, &[budget.parse().unwrap()]);
        assert_eq!(run.keeps_budgets(), run.budgets[0].kept);
        run.budgets[0].kept
    }

    #[test]
    fn a_budget_is_kept_or_missed() {
        for (budget, is_kept) in [
            ("server_cpu_per_message<=10", true),
            ("server_cpu_per_message<10", false),
            ("server_cpu_per_message > 9.5", true),
            ("server_cpu_per_message>=10.1", false),
            ("server_cpu_per_message==10", true),
            ("server_cpu_per_message=11", false),
            ("ack.p99_ms<=25", true),
            ("ack.max_ms<=19", false),
            ("ack.count>=1_00", true),
            ("thread_cpu.core/engine<=50", true),
        ] {
            assert_eq!(kept(budget), is_kept, "{budget}");
        }
    }

    #[test]
    fn a_figure_that_the_run_did_not_bring_is_missed() {
        let mut run = run();
        judge(&mut run, &["connect_rate>=1".parse().unwrap()]);
        assert_eq!(run.budgets[0].value, None);
        assert!(!run.keeps_budgets());
    }

    #[test]
    fn what_is_no_budget_says_what_would_be_one() {
        let error = |text: &str| text.parse::<Budget>().unwrap_err();
        assert!(error("ack").contains("as in ack.p99_ms<=25"));
        assert!(error("connect_rate<=fast").contains("is no number"));
        assert!(error("connect_rate<=").contains("is no number"));
        assert!(error("connect_rate<=inf").contains("is no number"));
        assert!(error("server_cpu_per_mesage<=1").contains("did you mean server_cpu_per_message"));
        assert!(error("ack.p99<=1").contains("did you mean p99"));
        assert!(error("akc.p99_ms<=1").contains("did you mean ack"));
        assert!(error("p<=1").contains("trunkline bench figures"));
    }
}
