//! Verdicts on made-up runs.

use std::path::PathBuf;

use hdrhistogram::Histogram;

use super::*;

fn run(name: &str, figures: &[(&str, f64, Better)]) -> Stored {
    let mut run = RunResult::begin("chat", BTreeMap::new());
    for (name, value, better) in figures {
        run.metric(name, *value, "us", *better);
    }
    Stored {
        path: PathBuf::from(format!("{name}.json")),
        run,
    }
}

/// One run a side of the figure `x`.
fn single(better: Better, before: f64, after: f64) -> Verdict {
    let side = |value| [run("r", &[("x", value, better)])];
    let comparison = Comparison::of(&side(before), &side(after), 0.05);
    comparison.rows[0].verdict
}

#[test]
fn a_verdict_knows_which_way_is_up() {
    assert_eq!(single(Better::Higher, 100.0, 106.0), Verdict::Better);
    assert_eq!(single(Better::Higher, 100.0, 94.0), Verdict::Worse);
    assert_eq!(single(Better::Lower, 100.0, 106.0), Verdict::Worse);
    assert_eq!(single(Better::Lower, 100.0, 94.0), Verdict::Better);
    assert_eq!(single(Better::Neither, 100.0, 900.0), Verdict::Shown);
}

#[test]
fn the_threshold_itself_is_the_same() {
    assert_eq!(single(Better::Lower, 100.0, 105.0), Verdict::Same);
    assert_eq!(single(Better::Lower, 100.0, 95.0), Verdict::Same);
    assert_eq!(single(Better::Lower, 0.0, 0.0), Verdict::Same);
    assert_eq!(single(Better::Lower, 0.0, 3.0), Verdict::Worse);
}

#[test]
fn a_figure_of_one_side_is_shown_and_not_judged() {
    let before = [run("a", &[("gone", 1.0, Better::Lower)])];
    let after = [run("b", &[("new", 1.0, Better::Lower)])];
    let comparison = Comparison::of(&before, &after, 0.05);
    assert_eq!(comparison.count(Verdict::Shown), 2);
    assert!(!comparison.has_worse());
    assert!(comparison.to_string().contains("gone"));
}

fn several(before: &[f64], after: &[f64]) -> Verdict {
    let side = |values: &[f64]| -> Vec<Stored> {
        let runs = values.iter().map(|v| run("r", &[("x", *v, Better::Lower)]));
        runs.collect()
    };
    let comparison = Comparison::of(&side(before), &side(after), 0.05);
    comparison.rows[0].verdict
}

#[test]
fn several_runs_are_judged_by_their_pairs_and_not_by_their_medians_alone() {
    let quiet = [100.0, 101.0, 102.0];
    assert_eq!(several(&quiet, &[110.0, 111.0, 112.0]), Verdict::Worse);
    assert_eq!(several(&quiet, &[90.0, 91.0, 92.0]), Verdict::Better);
    // The medians are 10 % apart, and five of nine pairs say so.
    assert_eq!(
        several(&[80.0, 100.0, 130.0], &[85.0, 110.0, 125.0]),
        Verdict::Noise
    );
}

#[test]
fn a_spread_is_median_and_range() {
    let spread = Spread::of(&[3.0, 1.0, 2.0, 10.0]).unwrap();
    assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 10.0));
    assert_eq!(Spread::of(&[]), None);
}

fn with_latency(samples: u64, ms: u64) -> Stored {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    histogram.record_n(ms * 1_000_000, samples).unwrap();
    let mut stored = run("l", &[]);
    stored.run.latency("ack", &histogram);
    stored
}

#[test]
fn a_percentile_is_judged_when_enough_samples_lie_beyond_it() {
    let verdict = |samples, field: &str| {
        let comparison = Comparison::of(
            &[with_latency(samples, 10)],
            &[with_latency(samples, 20)],
            0.05,
        );
        let row = comparison.rows.into_iter().find(|r| r.figure == field);
        row.unwrap().verdict
    };
    assert_eq!(verdict(1_000, "ack.p99_ms"), Verdict::Worse);
    assert_eq!(verdict(999, "ack.p99_ms"), Verdict::Shown);
    assert_eq!(verdict(1_000, "ack.p999_ms"), Verdict::Shown);
    assert_eq!(verdict(1_000, "ack.max_ms"), Verdict::Shown);
}

#[test]
fn conditions_that_differ_are_listed_and_warned_of() {
    let before = run("a", &[]);
    let mut after = run("b", &[]);
    let alike = Comparison::of(
        std::slice::from_ref(&before),
        std::slice::from_ref(&after),
        0.05,
    );
    assert_eq!(alike.differences, []);
    assert_eq!(alike.warnings, Vec::<String>::new());
    after.run.host.cores += 1;
    after.run.parameters.insert("rate".into(), 5.into());
    after.run.parameters.insert("json".into(), "b.json".into());
    after.run.problems.push("3 connections lost".into());
    let comparison = Comparison::of(&[before], &[after], 0.05);
    let what: Vec<_> = comparison.differences.iter().map(|d| &d.what[..]).collect();
    assert_eq!(what, ["--rate", "host cores"]);
    assert_eq!(comparison.differences[0].before, "–");
    let text = comparison.to_string();
    assert!(text.contains("WARNING  b.json: 1 problems"), "{text}");
    assert!(text.contains("not the same conditions: --rate, host cores"));
}

#[test]
fn a_threshold_is_a_part() {
    assert_eq!(parse_threshold("5%"), Ok(0.05));
    assert_eq!(parse_threshold("0.1"), Ok(0.1));
    assert!(parse_threshold("-1%").is_err());
    assert!(parse_threshold("five").is_err());
}
