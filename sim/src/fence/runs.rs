//! Many seeds: run, gathered, reported.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::clients;
use super::defects::Defect;
use super::plan::Plan;
use super::world::World;

/// Seeds within which every planted defect has to be noticed.
pub const DEFECT_SEEDS: u64 = 1_000;

/// What is said of a run that does not end.
pub const NO_END: &str = "the run does not come to its end";

/// How a run ended.
pub struct Outcome {
    pub seed: u64,
    pub violations: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
    pub steps: u64,
    pub virtual_ns: u64,
    pub lines: u64,
    pub hash: u64,
    pub text: Option<String>,
}

/// Runs one seed.
pub fn run(seed: u64, defect: Option<Defect>, keep_trace: bool) -> Outcome {
    let world = World::new(Plan::new(seed, defect), keep_trace);
    let steps = clients::run(&world);
    let virtual_ns = world.now_ns();
    let mut check = world.check.lock();
    let trace = std::mem::replace(&mut check.trace, crate::trace::Trace::new(false));
    Outcome {
        seed,
        violations: std::mem::take(&mut check.violations),
        counts: check.counts().clone(),
        steps,
        virtual_ns,
        lines: trace.lines(),
        hash: trace.hash(),
        text: trace.text(),
    }
}

/// The command that runs a seed again.
pub fn command(seed: u64, defect: Option<Defect>) -> String {
    let defect = defect
        .map(|d| format!(" --defect {}", d.name()))
        .unwrap_or_default();
    format!("cargo run --release -p trunkline-sim -- fence --seed {seed} --trace{defect}")
}

/// What many seeds came to.
#[derive(Default)]
pub struct Summary {
    pub seeds: u64,
    /// Seed and first violation, by seed.
    pub failures: Vec<(u64, String)>,
    pub counts: BTreeMap<&'static str, u64>,
    pub steps: u64,
}

/// Runs these seeds on so many threads.
pub fn run_all(seeds: RangeInclusive<u64>, defect: Option<Defect>, threads: usize) -> Summary {
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
                    let outcome = run(seed, defect, false);
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
        self.steps += outcome.steps;
        for (what, count) in &outcome.counts {
            *self.counts.entry(what).or_default() += count;
        }
        if let Some(first) = outcome.violations.first() {
            self.failures.push((outcome.seed, first.clone()));
        }
    }
}

/// A defect, and what noticed it: seed and violation.
pub type Noticed = (Defect, Option<(u64, String)>);

/// All defects, each with the first seed that notices it.
pub fn notice_all(threads: usize) -> Vec<Noticed> {
    let all = Defect::all();
    let next = AtomicU64::new(0);
    let found: Mutex<Vec<(usize, Noticed)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(&defect) = all.get(index) else {
                        return;
                    };
                    let first = (1..=DEFECT_SEEDS).find_map(|seed| {
                        let outcome = run(seed, Some(defect), false);
                        let mut broken = outcome.violations.into_iter();
                        // That nothing goes on any more is no promise broken.
                        Some((seed, broken.find(|what| what != NO_END)?))
                    });
                    found.lock().push((index, (defect, first)));
                }
            });
        }
    });
    let mut found = found.into_inner();
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, noticed)| noticed).collect()
}
