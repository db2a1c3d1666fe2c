//! The machine in virtual time: several cores over control tables that lose, delay and repeat
//! nothing but say so late; processes that are killed, stopped, frozen, cut off, drained; clocks that
//! differ and jump. Deterministic: a seed gives the same world each time.

mod checks;
mod dice;
mod faults;
mod node;
mod scenarios;
mod store;
mod world;

use self::faults::{Fault, Without};
use self::store::Network;
use self::world::{Plan, SECOND, World};
use crate::ownership::settings::Rule;

/// Faults of each seed end after this.
const FAULTS_S: u64 = 60;
/// Everything is as it should be so long after the last fault.
const MENDED_S: u64 = 45;
const SEEDS: u64 = 100;
/// A rule that is left out has to show within so many.
const SEEDS_WITHOUT: u64 = 200;

fn plan(seed: u64, without: Option<Without>) -> Plan {
    Plan {
        seed,
        nodes: 2 + (seed % 4) as usize,
        partitions: 24,
        network: Network::BAD,
        verify: seed.is_multiple_of(2),
        without,
        trace: false,
    }
}

/// A world under all faults, mended in the end.
fn chaos(plan: Plan) -> World {
    let mut world = World::new(plan);
    for n in 0..world.nodes.len() {
        world.fault_after(n as u64 * SECOND / 4, Fault::Start(n));
    }
    world.fault_after(2 * SECOND, Fault::Any);
    world.run_until(FAULTS_S * SECOND);
    world.stop_faults();
    world.strike(Fault::Heal);
    world.run_until((FAULTS_S + MENDED_S) * SECOND);
    if world.checks.violations.is_empty() {
        world.check_end();
    }
    world
}

/// How many seeds: more than by default if `TRUNKLINE_SEEDS` says so.
fn seeds(default: u64) -> std::ops::RangeInclusive<u64> {
    1..=std::env::var("TRUNKLINE_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

#[test]
fn one_epoch_commits_and_nothing_is_stranded_whatever_fails() {
    let (mut commits, mut refused, mut take_overs, mut hand_overs, mut lapses) = (0, 0, 0, 0, 0);
    for seed in seeds(SEEDS) {
        let world = chaos(plan(seed, None));
        let checks = &world.checks;
        assert!(
            checks.violations.is_empty(),
            "seed {seed}: {:#?}",
            checks.violations
        );
        commits += checks.commits;
        refused += checks.refused;
        take_overs += checks.take_overs;
        hand_overs += checks.hand_overs;
        lapses += checks.lapses;
    }
    println!(
        "{commits} commits, {refused} refused, {take_overs} take-overs, {hand_overs} hand-overs, \
         {lapses} lapses"
    );
    // What the runs are about has happened, often.
    assert!(commits > 100_000 && refused > 1_000);
    assert!(take_overs > 1_000 && hand_overs > 1_000 && lapses > 100);
}

#[test]
fn each_rule_is_seen_failing_when_it_is_left_out() {
    let all = [
        Without::NewIncarnation,
        Without::Rule(Rule::OwnClock),
        Without::Verify,
        Without::CheckAfter,
        Without::Rule(Rule::FirstSend),
        Without::Rule(Rule::Reconcile),
        Without::ClearFirst,
        Without::Rule(Rule::WorkerFloor),
        Without::LapsedIsDead,
    ];
    let mut missed = Vec::new();
    for without in all {
        let first = (1..=SEEDS_WITHOUT).find_map(|seed| {
            let world = chaos(plan(seed, Some(without)));
            let first = world.checks.violations.first()?;
            Some((seed, first.clone()))
        });
        match first {
            Some((seed, what)) => println!("{without:?}: seed {seed}: {what}"),
            None => missed.push(without),
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

#[test]
fn the_same_seed_is_the_same_world() {
    let run = |seed| {
        let world = chaos(plan(seed, None));
        let checks = world.checks;
        (
            checks.commits,
            checks.refused,
            checks.death_gaps,
            world.store.tables,
        )
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
