//! Contestants in turn, A B A B, so that what drifts on the machine meets them all; medians of what
//! each did, and medians of the ratios within a round.

use std::collections::BTreeMap;

use super::args::PairsArgs;
use super::measure::{Measured, measure};
use crate::BenchError;
use crate::args::parameters;
use crate::progress::Progress;
use crate::result::{Better, Metric, RunResult, Series};

/// Metrics that are compared with the first contestant's.
const COMPARED: [&str; 4] = [
    "rate",
    "delivery_rate",
    "server_cpu_per_message",
    "server_cpu_per_delivery",
];

/// The rounds of one contestant.
#[derive(Default)]
struct Rounds {
    /// By metric, in the order of the rounds.
    values: BTreeMap<String, Vec<f64>>,
    shape: BTreeMap<String, (String, Better)>,
}

/// `trunkline bench pairs`
pub fn run(args: &PairsArgs, progress: &dyn Progress) -> Result<RunResult, BenchError> {
    args.check()?;
    let mut result = RunResult::begin("pairs", parameters(&[&args.load]));
    result
        .parameters
        .insert("pairs".to_owned(), args.pairs.into());
    let mut all: Vec<Rounds> = args.contestants.iter().map(|_| Rounds::default()).collect();
    progress.phase("rounds", Some(args.pairs.into()));
    for round in 1..=args.pairs {
        for ((name, contestant), rounds) in args.contestants.iter().zip(&mut all) {
            progress.at(round.into(), name);
            let measured = measure(contestant, &args.load)
                .map_err(|e| BenchError::Server(format!("{name}, round {round}: {e}")))?;
            for problem in &measured.problems {
                result
                    .problems
                    .push(format!("{name}, round {round}: {problem}"));
            }
            rounds.add(measured);
        }
    }
    for ((name, _), rounds) in args.contestants.iter().zip(&all) {
        rounds.report(name, &mut result);
    }
    if let [first, others @ ..] = &all[..] {
        let base = &args.contestants[0].0;
        for ((name, _), rounds) in args.contestants[1..].iter().zip(others) {
            rounds.compare(first, &format!("{name}.to_{base}"), &mut result);
        }
    }
    Ok(result)
}

impl Rounds {
    fn add(&mut self, measured: Measured) {
        let mut metrics = measured.metrics;
        let quantiles = [("latency_p50", 0.5), ("latency_p99", 0.99)];
        for (name, quantile) in quantiles {
            if !measured.tally.answer.is_empty() {
                let ms = measured.tally.answer.value_at_quantile(quantile) as f64 / 1e6;
                metrics.insert(name.to_owned(), Metric::new(ms, "ms", Better::Lower));
            }
        }
        for (name, metric) in metrics {
            self.values
                .entry(name.clone())
                .or_default()
                .push(metric.value);
            self.shape.insert(name, (metric.unit, metric.better));
        }
    }

    /// Medians, and what came in each round.
    fn report(&self, contestant: &str, result: &mut RunResult) {
        for (name, values) in &self.values {
            let (unit, better) = &self.shape[name];
            let full = format!("{contestant}.{name}");
            result.metric(&full, median(values), unit, *better);
            let points = (1..).zip(values).map(|(round, &v)| [f64::from(round), v]);
            result.series.push(Series {
                name: full,
                unit: unit.clone(),
                points: points.collect(),
            });
        }
    }

    /// The median of the ratios within each round, and the least and greatest of them.
    fn compare(&self, base: &Self, prefix: &str, result: &mut RunResult) {
        for name in COMPARED {
            let (Some(ours), Some(theirs)) = (self.values.get(name), base.values.get(name)) else {
                continue;
            };
            let ratios: Vec<_> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
            let better = self.shape[name].1;
            let mut put = |what: &str, value: f64, better| {
                result.metric(&format!("{prefix}.{name}{what}"), value, "ratio", better);
            };
            put("", median(&ratios), better);
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let greatest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            put("_least", least, Better::Neither);
            put("_greatest", greatest, Better::Neither);
        }
    }
}

/// Of an even number the mean of the two in the middle; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(name: &str, values: &[f64]) -> Rounds {
        let mut rounds = Rounds::default();
        rounds.values.insert(name.to_owned(), values.to_vec());
        let shape = ("ns".to_owned(), Better::Lower);
        rounds.shape.insert(name.to_owned(), shape);
        rounds
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let name = "server_cpu_per_message";
        // The machine was twice as slow in the second round: for both.
        let base = rounds(name, &[100.0, 200.0, 100.0]);
        let other = rounds(name, &[110.0, 220.0, 121.0]);
        let mut result = RunResult::begin("pairs", BTreeMap::new());
        other.report("b", &mut result);
        other.compare(&base, "b.to_a", &mut result);
        let value = |name: &str| result.metrics[name].value;
        assert!((value("b.to_a.server_cpu_per_message") - 1.1).abs() < 1e-9);
        assert!((value("b.to_a.server_cpu_per_message_greatest") - 1.21).abs() < 1e-9);
        assert!((value("b.server_cpu_per_message") - 121.0).abs() < 1e-9);
        assert_eq!(
            result.series[0].points,
            [[1.0, 110.0], [2.0, 220.0], [3.0, 121.0]]
        );
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
