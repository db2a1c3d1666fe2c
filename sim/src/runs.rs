//! Many seeds: run, gathered, reported.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::bugs::Bug;
use crate::coverage::Coverage;
use crate::plan::Plan;
use crate::world::{Outcome, World};

/// Seeds within which every planted defect has to be noticed.
pub const BUG_SEEDS: u64 = 200;

/// Runs one seed.
pub fn run(seed: u64, bug: Option<Bug>, keep_trace: bool) -> Outcome {
    World::new(Plan::new(seed, bug), keep_trace).run()
}

/// The command that runs a seed again.
pub fn command(seed: u64, bug: Option<Bug>) -> String {
    let bug = bug
        .map(|b| format!(" --bug {}", b.name()))
        .unwrap_or_default();
    format!("cargo run --release -p trunkline-sim -- --seed {seed} --trace{bug}")
}

/// What many seeds came to.
#[derive(Default)]
pub struct Summary {
    pub seeds: u64,
    /// Seed and first violation, by seed.
    pub failures: Vec<(u64, String)>,
    pub coverage: Coverage,
    pub events: u64,
    pub virtual_ns: u64,
    /// The longest that it took to get quiet.
    pub quiet_after_ns: u64,
}

/// Runs these seeds on so many threads; each seed by itself is run by one. `on_failure` hears of
/// failures as they come.
pub fn run_all(
    seeds: RangeInclusive<u64>,
    bug: Option<Bug>,
    threads: usize,
    on_failure: impl Fn(&Outcome) + Sync,
) -> Summary {
    let next = AtomicU64::new(*seeds.start());
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    let outcome = run(seed, bug, false);
                    if !outcome.violations.is_empty() {
                        on_failure(&outcome);
                    }
                    summary.lock().add(&outcome);
                }
            });
        }
    });
    let mut summary = summary.into_inner();
    summary.failures.sort();
    summary
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.coverage.add(&outcome.coverage);
        self.events += outcome.events;
        self.virtual_ns += outcome.virtual_ns;
        self.quiet_after_ns = self.quiet_after_ns.max(outcome.quiet_after_ns);
        if let Some(first) = outcome.violations.first() {
            self.failures.push((outcome.seed, first.clone()));
        }
    }
}

/// The first seed that notices a defect, and what it says.
pub fn first_seed_that_notices(bug: Bug) -> Option<(u64, String)> {
    (1..=BUG_SEEDS).find_map(|seed| {
        let outcome = run(seed, Some(bug), false);
        Some((seed, outcome.violations.into_iter().next()?))
    })
}

/// A defect, and what noticed it.
pub type Noticed = (Bug, Option<(u64, String)>);

/// All defects, each with the first seed that notices it.
pub fn notice_all(threads: usize) -> Vec<Noticed> {
    let next = AtomicU64::new(0);
    let found: Mutex<Vec<(usize, Noticed)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(&bug) = Bug::ALL.get(index) else {
                        return;
                    };
                    let first = first_seed_that_notices(bug);
                    found.lock().push((index, (bug, first)));
                }
            });
        }
    });
    let mut found = found.into_inner();
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, noticed)| noticed).collect()
}
