//! The platform keeps its promises over seeds, and the seeds reach what they are meant to.

use trunkline_sim::coverage::SEEDS_FOR_MINIMUM;
use trunkline_sim::runs::{command, run_all};

/// Goal: no seed breaks a promise, and together they reach every interesting state often enough.
/// Method: 200 seeds, each a world of its own with faults, checked at every boundary.
#[test]
fn seeds_keep_the_promises_and_reach_what_is_worth_reaching() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let summary = run_all(1..=SEEDS_FOR_MINIMUM, None, threads, |_| ());
    let failures: Vec<String> = summary
        .failures
        .iter()
        .map(|(seed, what)| format!("seed {seed}: {what}\n    again: {}", command(*seed, None)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(summary.seeds, SEEDS_FOR_MINIMUM);
    let missing = summary.coverage.missing(summary.seeds);
    assert!(missing.is_empty(), "too rare: {}", missing.join("; "));
}
