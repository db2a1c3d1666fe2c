//! The fenced store keeps its promises over seeds, and each of its rules is there for something.

use trunkline_sim::fence::defects::Defect;
use trunkline_sim::fence::runs::{DEFECT_SEEDS, command, notice_all, run, run_all};

/// What has to happen in so many seeds, and how often at least.
const SEEDS: u64 = 1_500;
const MINIMUMS: [(&str, u64); 14] = [
    ("acks", 20_000),
    ("duplicates", 5_000),
    ("expirations", 5_000),
    ("fenced_commits", 500),
    ("fences", 5_000),
    ("freezes", 1_000),
    ("hand_overs", 1_000),
    ("kills", 2_000),
    ("lapses", 4_000),
    ("membership_changes", 1_000),
    ("pauses", 2_000),
    ("repeated_commits", 1_000),
    ("syncs", 10_000),
    ("take_overs", 10_000),
];

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Goal: no seed breaks a promise, and together they get to where it is interesting.
#[test]
fn seeds_keep_the_promises_and_reach_what_is_worth_reaching() {
    let summary = run_all(1..=SEEDS, None, threads());
    let failures: Vec<String> = summary
        .failures
        .iter()
        .map(|(seed, what)| format!("seed {seed}: {what}\n    again: {}", command(*seed, None)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(summary.seeds, SEEDS);
    for (what, least) in MINIMUMS {
        let count = summary.counts.get(what).copied().unwrap_or(0);
        assert!(count >= least, "{what}: {count}, at least {least} expected");
    }
}

/// Goal: a rule that is taken out breaks a promise, and the checker says so.
#[test]
fn every_rule_that_is_taken_out_is_missed() {
    let found = notice_all(threads());
    assert_eq!(found.len(), Defect::all().len());
    let missed: Vec<String> = found
        .iter()
        .filter(|(_, first)| first.is_none())
        .map(|(defect, _)| defect.name())
        .collect();
    assert!(
        missed.is_empty(),
        "not noticed within {DEFECT_SEEDS} seeds: {missed:?}"
    );
}

/// Goal: whatever a seed shows can be looked at again.
#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    for seed in [1, 3, 5965] {
        let first = run(seed, None, true);
        let second = std::thread::spawn(move || run(seed, None, true)).join();
        let second = second.expect("the second run ends like the first");
        assert_eq!(first.text, second.text, "seed {seed}");
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert!(first.lines > 20, "seed {seed} does little: {}", first.lines);
    }
}

#[test]
fn names_of_defects_lead_back_to_them() {
    for defect in Defect::all() {
        assert_eq!(Defect::parse(&defect.name()), Some(defect));
    }
    assert_eq!(Defect::parse("no-such-defect"), None);
}
