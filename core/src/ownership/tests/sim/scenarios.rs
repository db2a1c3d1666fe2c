//! What operators plan with: how long partitions are away, how many move, what it costs. The network
//! is healthy, clocks differ by up to 5 % each way.

use super::faults::{Fault, Without};
use super::store::Network;
use super::world::{MS, Plan, SECOND, World};
use crate::ownership::balance::{Candidate, desired};
use crate::ownership::control::Life;
use crate::ownership::settings::Rule;

const SETTLED_S: u64 = 30;

/// So many cores that have shared the partitions, at [`SETTLED_S`].
fn settled(seed: u64, nodes: usize, spare: usize, partitions: u16, rule: Option<Rule>) -> World {
    let mut world = World::new(Plan {
        seed,
        nodes: nodes + spare,
        partitions,
        network: Network::HEALTHY,
        verify: false,
        without: rule.map(Without::Rule),
        trace: false,
    });
    for n in 0..nodes {
        world.fault_after(0, Fault::Start(n));
    }
    world.run_until(SETTLED_S * SECOND);
    assert_eq!(world.checks.violations, Vec::<String>::new(), "seed {seed}");
    world
}

fn percentile(of: &mut [u64], percent: usize) -> u64 {
    of.sort_unstable();
    of[(of.len() * percent / 100).min(of.len() - 1)] / MS
}

/// How long partitions are served by nobody after their core was killed, ms.
fn gaps_after_deaths(seeds: u64, rule: Option<Rule>) -> Vec<u64> {
    let mut gaps = Vec::new();
    for seed in 1..=seeds {
        let mut world = settled(seed, 4, 0, 64, rule);
        world.checks.death_gaps.clear();
        for death in 0..4 {
            let n = world.dice.below(4) as usize;
            let wait = world.dice.below(SECOND);
            world.fault_after(wait, Fault::Kill(n));
            world.fault_after(wait + 12 * SECOND, Fault::Start(n));
            world.run_until((SETTLED_S + (death + 1) * 40) * SECOND);
        }
        if rule.is_none() {
            world.check_end();
        }
        assert_eq!(world.checks.violations, Vec::<String>::new(), "seed {seed}");
        gaps.append(&mut world.checks.death_gaps);
    }
    gaps
}

#[test]
fn partitions_of_a_dead_core_are_served_again_within_six_seconds() {
    let mut gaps = gaps_after_deaths(10, None);
    let (p50, p99) = (percentile(&mut gaps, 50), percentile(&mut gaps, 99));
    let max = percentile(&mut gaps, 100);
    println!(
        "{} partitions: p50 {p50} ms, p99 {p99} ms, max {max} ms",
        gaps.len()
    );
    assert!(gaps.len() > 500);
    assert!(p99 <= 6_000, "p99 {p99} ms");
    let mut seldom = gaps_after_deaths(3, Some(Rule::PollOften));
    let p99 = percentile(&mut seldom, 99);
    assert!(p99 > 6_000, "looking at cores seldom makes it {p99} ms");
}

#[test]
fn a_new_core_gets_its_share_and_nobody_elses_partitions_move() {
    for nodes in [1, 3, 5] {
        let mut world = settled(nodes as u64, nodes, 1, 1_024, None);
        let before = world.store.tables.partitions.clone();
        world.checks.move_gaps.clear();
        world.strike(Fault::Start(nodes));
        world.run_until((SETTLED_S + 90) * SECOND);
        let new = world.nodes[nodes].incarnation;
        let after = &world.store.tables.partitions;
        let moved = after.iter().filter(|(p, row)| before[p] != **row);
        let moved: Vec<_> = moved.map(|(_, row)| row).collect();
        assert!(moved.iter().all(|row| row.owner == Some(new)));
        let share = 1_024.0 / (nodes + 1) as f64;
        let part = moved.len() as f64 / share;
        assert!(
            (0.75..1.25).contains(&part),
            "{} moved of {share}",
            moved.len()
        );
        let mut gaps = std::mem::take(&mut world.checks.move_gaps);
        let (p50, p99) = (percentile(&mut gaps, 50), percentile(&mut gaps, 99));
        println!(
            "{nodes} cores and one: {} moved, away for p50 {p50}, p99 {p99} ms",
            moved.len()
        );
        world.check_end();
        assert_eq!(world.checks.violations, Vec::<String>::new());
    }
}

#[test]
fn settled_cores_serve_what_they_should_and_write_leases_alone() {
    let mut world = settled(1, 4, 0, 256, None);
    let cores: Vec<Candidate> = world
        .nodes
        .iter()
        .map(|node| Candidate::new(node.incarnation, &node.address))
        .collect();
    for (p, row) in &world.store.tables.partitions {
        assert_eq!(row.owner, desired(*p, &cores));
    }
    let before = world.store.conditional_writes;
    world.run_until((SETTLED_S + 60) * SECOND);
    let writes = world.store.conditional_writes - before;
    // Four cores, four renewals in a ttl of 3 s, clocks up to 5 % fast.
    println!("{writes} conditional writes in 60 s");
    assert!((304..=340).contains(&writes), "{writes}");
}

#[test]
fn a_core_that_stops_is_gone_in_a_few_hundred_milliseconds() {
    let mut took = Vec::new();
    for seed in 1..=5 {
        let mut world = settled(seed, 3, 0, 1_024, None);
        world.network.slow = 0;
        world.checks.move_gaps.clear();
        let held = world.nodes[0].flags.len();
        world.strike(Fault::Drain(0));
        let begun_ns = world.now_ns;
        while world.nodes[0].machine.is_some() {
            let next = world.now_ns + 10 * MS;
            world.run_until(next);
            assert!(
                next < begun_ns + 60 * SECOND,
                "seed {seed}: it does not end"
            );
        }
        took.push((world.now_ns - begun_ns) / MS);
        world.run_until(world.now_ns + 20 * SECOND);
        world.check_end();
        assert_eq!(world.checks.violations, Vec::<String>::new(), "seed {seed}");
        assert_eq!(world.checks.move_gaps.len(), held, "all went by hand-over");
        assert!(world.checks.death_gaps.is_empty());
    }
    // Of these the engine takes up to 200 ms to settle.
    println!("drains took {took:?} ms");
    assert!(took.iter().all(|ms| *ms <= 400), "{took:?} ms");
}

#[test]
fn rows_of_dead_cores_are_forgotten_but_for_the_last_holders_of_worker_ids() {
    let mut world = settled(3, 3, 0, 16, None);
    for round in 1..=40 {
        world.strike(Fault::Kill(round as usize % 3));
        world.strike(Fault::Start(round as usize % 3));
        world.run_until((SETTLED_S + round * 8) * SECOND);
    }
    let end = world.now_ns + 200 * SECOND;
    world.run_until(end);
    world.check_end();
    assert_eq!(world.checks.violations, Vec::<String>::new());
    let rows = &world.store.tables.cores;
    let holders = &world.store.tables.workers;
    let dead = rows.values().filter(|row| row.life == Life::Dead);
    for row in dead {
        assert_eq!(holders[&row.worker_id], row.incarnation, "nothing names it");
    }
    // Of 43 that there have been.
    assert!(rows.len() <= 6, "{} rows", rows.len());
}
