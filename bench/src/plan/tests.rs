//! Plans from made-up results, computed by hand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Parser;

use super::facts::{DELIVERIES, MESSAGES};
use super::*;
use crate::result::{Better, RunResult};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    plan: PlanArgs,
}

fn args(line: &str) -> PlanArgs {
    let words = ["plan", "--sockets", "10M", "--messages", "100k/s"];
    let more = line.split_whitespace();
    Line::try_parse_from(words.into_iter().chain(more))
        .unwrap()
        .plan
}

fn stored(name: &str, figures: &[(&str, f64)]) -> Stored {
    let mut run = RunResult::begin(name, BTreeMap::new());
    run.host.files_max = Some(20_000);
    run.host.cpu = "a processor".to_owned();
    for (figure, value) in figures {
        run.metric(figure, *value, "us", Better::Lower);
    }
    Stored {
        path: PathBuf::from(format!("{name}.json")),
        run,
    }
}

fn chat(name: &str, fan_out: f64, edge_us: f64) -> Stored {
    stored(
        name,
        &[
            (MESSAGES, 10_000.0),
            (DELIVERIES, 10_000.0 * fan_out),
            ("edge_cpu_us_per_message", edge_us),
            ("core_cpu_us_per_message", 8.0),
            // 4 % of a core at 10,000 messages a second: 4 µs each.
            ("thread_cpu.core/engine", 4.0),
        ],
    )
}

fn results() -> Vec<Stored> {
    vec![
        stored(
            "idle",
            &[
                ("kernel_bytes_per_session", 4_700.0),
                ("user_bytes_per_session", 300.0),
                ("server_cpu_ns_per_heartbeat", 15_000.0),
            ],
        ),
        stored("connect", &[("edge_cpu_us_per_session", 50.0)]),
        chat("chat", 1.0, 10.0),
    ]
}

/// Asserts figures of a plan to one part in a million.
fn check(plan: &Plan, figures: &[(&str, f64)]) {
    for (name, value) in figures {
        let found = plan.value(name).unwrap();
        assert!(
            (found - value).abs() <= 1e-6 * value,
            "{name}: {found}, not {value}"
        );
    }
}

#[test]
fn a_plan_is_what_one_computes_by_hand() {
    let plan = Plan::of(&args(""), &results()).unwrap();
    check(
        &plan,
        &[
            ("session_bytes", 5_000.0),
            ("edge_memory", 50e9),
            // 333,333 a second of 15 µs.
            ("heartbeat_cores", 5.0),
            ("edge_message_cores", 1.0),
            // 100,000 × 328 B and 333,333 × 72 B.
            ("edge_in", 56.8e6),
            // 100,000 × (328 + 200) B and 333,333 × 66 B.
            ("edge_out", 74.8e6),
            // 50 GB of 192 GB, 6 of 44.8 cores, 0.6 of 17.5 Gbit/s, 10 M of 1024 × 17,000.
            ("nodes_by_memory", 1.0),
            ("nodes_by_cpu", 1.0),
            ("nodes_by_network", 1.0),
            ("nodes_by_rings", 1.0),
            ("nodes_by_profile", 5.0),
            ("edge_nodes", 5.0),
            ("sockets_per_node", 2e6),
            ("memory_used", 10e9),
            ("cores_used", 1.2),
            // 2,000,000 of 17,000: 117.6.
            ("rings_per_node", 118.0),
            ("core_cores", 0.8),
            ("core_processes", 1.0),
            ("core_nodes", 1.0),
            // 500 s of one core on 320 cores; 100 s on 30 % of 256.
            ("storm_seconds", 1.5625),
            ("node_lost_seconds", 1.302083333),
        ],
    );
    assert_eq!(plan.profile, "2m");
    assert_eq!(plan.edge_bound, "sockets that one node is given");
}

#[test]
fn the_scarcest_thing_bounds_the_plan() {
    let plan = |line: &str| Plan::of(&args(line), &results()).unwrap();
    let roomy = "--sockets-per-node-max 50M";
    // 50 GB of 16 GiB × 0.7 = 12.03 GB: 4.2.
    let memory = plan(&format!("{roomy} --memory-per-node 16GiB"));
    check(&memory, &[("nodes_by_memory", 5.0), ("edge_nodes", 5.0)]);
    assert_eq!(memory.edge_bound, "memory");
    // 6 cores of 2 × 0.7: 4.3; 0.8 core of 1.4.
    let cpu = plan(&format!("{roomy} --cores-per-node 2"));
    check(&cpu, &[("nodes_by_cpu", 5.0), ("core_nodes", 1.0)]);
    assert_eq!(cpu.edge_bound, "processors");
    // 598.4 Mbit/s of 140: 4.3.
    let network = plan(&format!("{roomy} --network-per-node 200Mbit"));
    check(&network, &[("nodes_by_network", 5.0), ("edge_nodes", 5.0)]);
    // 10 M of 1024 × 850: 11.5.
    let rings = plan(&format!("{roomy} --files-max 1000"));
    check(&rings, &[("nodes_by_rings", 12.0)]);
    assert_eq!(rings.edge_bound, "descriptors of rings");
    // 600,000 messages × 4 µs of 0.7 core.
    let mut busy = args(roomy);
    busy.messages = 600e3;
    let busy = Plan::of(&busy, &results()).unwrap();
    check(&busy, &[("core_processes", 4.0)]);
    assert!(busy.core_bound.starts_with("the engine's thread"));
}

#[test]
fn less_headroom_is_fewer_nodes() {
    let nodes = |headroom: &str| {
        let line =
            format!("--memory-per-node 16GiB --sockets-per-node-max 50M --headroom {headroom}");
        let plan = Plan::of(&args(&line), &results()).unwrap();
        plan.value("edge_nodes").unwrap()
    };
    // 50 GB of 17.18, 8.59 and 12.03 GB.
    assert_eq!(nodes("0"), 3.0);
    assert_eq!(nodes("50%"), 6.0);
    assert_eq!(nodes("0.3"), 5.0);
}

#[test]
fn a_plan_without_its_measurements_is_refused_with_the_commands_for_them() {
    let told = |results: &[Stored]| Plan::of(&args(""), results).unwrap_err().to_string();
    let all = told(&[]);
    for name in [
        "kernel_bytes",
        "user_bytes",
        "heartbeat_ns",
        "connect_us",
        "edge_message_us",
        "core_message_us",
        "engine_message_us",
        "files_max",
    ] {
        assert!(
            all.contains(&format!("no result has {name}: ")),
            "{name} in {all}"
        );
    }
    assert!(all.contains("trunkline bench idle"));
    for (i, gone) in ["bench idle", "bench connect", "bench chat"]
        .iter()
        .enumerate()
    {
        let mut some = results();
        some.remove(i);
        assert!(told(&some).contains(gone), "{gone}");
    }
}

#[test]
fn a_fan_out_lies_between_runs_or_is_refused() {
    let edge_us = |results: &[Stored], fan_out: &str| {
        let line = format!("--fan-out {fan_out}");
        let plan = Plan::of(&args(&line), results)?;
        let fact = plan.measured.iter().find(|f| f.name == "edge_message_us");
        Ok::<_, PlanError>((fact.unwrap().value, fact.unwrap().source.clone()))
    };
    let mut some = results();
    let refused = edge_us(&some, "8").unwrap_err().to_string();
    assert!(
        refused.contains("at a fan-out of 8 (measured: 1.0)"),
        "{refused}"
    );
    some.push(chat("group", 11.0, 60.0));
    some.push(chat("large", 500.0, 2_000.0));
    // 10 µs at 1 and 60 µs at 11.
    let (value, source) = edge_us(&some, "8").unwrap();
    assert!((value - 45.0).abs() < 1e-9, "{value}");
    assert!(source.contains("chat.json (fan-out 1.0) and group.json (fan-out 11.0)"));
    assert_eq!(edge_us(&some, "10.8").unwrap().0, 60.0);
    assert!(edge_us(&some, "600").is_err());
    // Counted by deliveries: 600 of 5 µs.
    some.push(stored(
        "fanout",
        &[
            (MESSAGES, 10.0),
            (DELIVERIES, 6_000.0),
            ("edge_cpu_ns_per_delivery", 5_000.0),
            ("core_cpu_ns_per_delivery", 10.0),
            ("thread_cpu.core/engine", 1.0),
        ],
    ));
    assert_eq!(edge_us(&some, "600").unwrap().0, 3_000.0);
}

#[test]
fn of_several_results_the_dearest_counts_and_is_named() {
    let mut some = results();
    some.push(stored("other", &[("user_bytes_per_session", 900.0)]));
    some.push(stored("cheap", &[("user_bytes_per_session", 100.0)]));
    let plan = Plan::of(&args(""), &some).unwrap();
    let fact = plan
        .measured
        .iter()
        .find(|f| f.name == "user_bytes")
        .unwrap();
    assert_eq!(
        (fact.value, &fact.source[..]),
        (900.0, "other.json user_bytes_per_session")
    );
}

#[test]
fn every_formula_is_shown_with_its_numbers() {
    let plan = Plan::of(&args("--memory-per-node 16GiB"), &results()).unwrap();
    let text = plan.to_string();
    for line in [
        "5 edge nodes, bounded by memory, sockets that one node is given",
        "nodes_by_memory = ceil(edge_memory / (memory_per_node * (1 - headroom)))",
        "ceil(46.6 GiB ÷ (16 GiB × (1 - 0.3))) = 5",
        "idle.json kernel_bytes_per_session",
        "--memory-per-node",
        "NOTE  Costs are those of a processor",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    // What a reader with a calculator needs: no name without a value.
    for step in &plan.steps {
        assert!(!step.filled.contains('_'), "{}", step.filled);
    }
}

#[test]
fn the_profile_fits_the_sockets_of_a_node() {
    for (most, profile) in [
        ("5k", "dev"),
        ("100k", "100k"),
        ("1M", "1m"),
        ("3M", "beyond 2m: measure first"),
    ] {
        let line = format!("--sockets-per-node-max {most} --cores-per-node 64");
        let plan = Plan::of(&args(&line), &results()).unwrap();
        assert_eq!(plan.profile, profile, "{most}");
    }
}
