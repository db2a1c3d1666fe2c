//! The checker notices what it is for: each planted defect takes out one mechanism, and some seed
//! has to see the promise broken.

use trunkline_sim::bugs::Bug;
use trunkline_sim::runs::{BUG_SEEDS, notice_all};

#[test]
fn every_planted_defect_is_noticed() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = notice_all(threads);
    assert_eq!(found.len(), Bug::ALL.len());
    let missed: Vec<&str> = found
        .iter()
        .filter(|(_, first)| first.is_none())
        .map(|(bug, _)| bug.name())
        .collect();
    assert!(
        missed.is_empty(),
        "not noticed within {BUG_SEEDS} seeds: {missed:?}"
    );
}

#[test]
fn names_of_defects_lead_back_to_them() {
    for bug in Bug::ALL {
        assert_eq!(Bug::parse(bug.name()), Some(bug));
    }
    assert_eq!(Bug::parse("no-such-defect"), None);
}
