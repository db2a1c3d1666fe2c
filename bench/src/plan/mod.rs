//! From measured costs to a fleet: how many edge and core nodes hold so many sockets and take so many
//! messages, and what bounds each number.
//!
//! Invariants: the formulas that are shown are the ones that are computed; every input is a flag, a
//! constant with its origin, or a fact of a result that is named; what was not measured is refused.
//!
//! Called by `bench plan`.

pub mod args;
pub mod facts;
mod text;

use std::collections::BTreeMap;

use exmex::Express as _;
use serde::Serialize;
use trunkline_kernel_tuning::capacity;

use crate::stored::Stored;
use args::PlanArgs;
use facts::{Fact, Missing, facts};

/// A plan with everything that it follows from.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Flags and constants.
    pub given: Vec<Fact>,
    /// From results.
    pub measured: Vec<Fact>,
    pub steps: Vec<Step>,
    /// Kernel profile of an edge node.
    pub profile: &'static str,
    pub edge_bound: String,
    pub core_bound: String,
    /// What the numbers do not say.
    pub notes: Vec<String>,
}

/// One figure of the plan.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub name: &'static str,
    pub about: &'static str,
    /// Over inputs and earlier steps, by name.
    pub formula: &'static str,
    /// The formula with numbers.
    pub filled: String,
    pub value: f64,
    pub unit: &'static str,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    #[error("{}", lines(.0))]
    Missing(Vec<Missing>),
    #[error("a formula of the plan cannot be computed: {0}")]
    Formula(String),
}

fn lines(missing: &[Missing]) -> String {
    let all: Vec<_> = missing.iter().map(ToString::to_string).collect();
    all.join("\n")
}

/// Ethernet 14, IPv4 20, TCP with time stamps 32: what surrounds the bytes of one packet.
const PACKET_BYTES: f64 = 66.0;
/// A masked pong without content.
const PONG_BYTES: f64 = 6.0;

/// Name, unit, what it is, how it comes about. Order: inputs before what uses them.
const FORMULAS: &[(&str, &str, &str, &str)] = &[
    (
        "session_bytes",
        "bytes",
        "memory of a session, kernel and process",
        "kernel_bytes + user_bytes",
    ),
    (
        "edge_memory",
        "bytes",
        "memory of all edges",
        "sockets * session_bytes",
    ),
    (
        "heartbeat_cores",
        "cores",
        "cores for signs of life",
        "sockets / heartbeat * heartbeat_ns / 1000000000",
    ),
    (
        "edge_message_cores",
        "cores",
        "cores of edges for messages and their deliveries",
        "messages * edge_message_us / 1000000",
    ),
    (
        "edge_in",
        "bytes_per_second",
        "network into the edges",
        "messages * (payload + overhead) + sockets / heartbeat * (packet + pong)",
    ),
    (
        "edge_out",
        "bytes_per_second",
        "network out of the edges: deliveries, acks, TCP's acks of signs of life",
        "messages * fan_out * (payload + overhead) + messages * overhead + sockets / heartbeat * packet",
    ),
    (
        "nodes_by_memory",
        "nodes",
        "edge nodes by memory",
        "ceil(edge_memory / (memory_per_node * (1 - headroom)))",
    ),
    (
        "nodes_by_cpu",
        "nodes",
        "edge nodes by processors",
        "ceil((heartbeat_cores + edge_message_cores) / (cores_per_node * (1 - headroom)))",
    ),
    (
        "nodes_by_network",
        "nodes",
        "edge nodes by network",
        "ceil((edge_in max edge_out) * 8 / (network_per_node * (1 - headroom)))",
    ),
    (
        "nodes_by_rings",
        "nodes",
        "edge nodes by descriptors of the rings of one process",
        "ceil(sockets / (rings_max * files_max * ring_fill))",
    ),
    (
        "nodes_by_profile",
        "nodes",
        "edge nodes by sockets that one node is given",
        "ceil(sockets / sockets_per_node_max)",
    ),
    (
        "edge_nodes",
        "nodes",
        "edge nodes",
        "nodes_by_memory max nodes_by_cpu max nodes_by_network max nodes_by_rings max nodes_by_profile",
    ),
    (
        "sockets_per_node",
        "count",
        "sockets of an edge node",
        "ceil(sockets / edge_nodes)",
    ),
    (
        "memory_used",
        "bytes",
        "memory of an edge node in use",
        "sockets_per_node * session_bytes",
    ),
    (
        "cores_used",
        "cores",
        "cores of an edge node in use",
        "(heartbeat_cores + edge_message_cores) / edge_nodes",
    ),
    (
        "rings_per_node",
        "count",
        "rings of an edge node, at least one for each shard",
        "ceil(sockets_per_node / (files_max * ring_fill))",
    ),
    (
        "network_used",
        "bytes_per_second",
        "network of an edge node, the busier way",
        "(edge_in max edge_out) / edge_nodes",
    ),
    (
        "core_cores",
        "cores",
        "cores of all cores",
        "messages * core_message_us / 1000000",
    ),
    (
        "core_processes",
        "processes",
        "core processes: one engine thread each",
        "ceil(messages * engine_message_us / 1000000 / (1 - headroom))",
    ),
    (
        "core_nodes",
        "nodes",
        "core nodes by processors",
        "ceil(core_cores / (cores_per_node * (1 - headroom)))",
    ),
    (
        "storm_seconds",
        "s",
        "all sessions reconnect at once, with all cores of all edges",
        "sockets * connect_us / 1000000 / (edge_nodes * cores_per_node)",
    ),
    (
        "node_lost_seconds",
        "s",
        "the sessions of one lost edge node reconnect, with the headroom of the others",
        "sockets_per_node * connect_us / 1000000 / (((edge_nodes - 1) max 1) * cores_per_node * (headroom max 0.01))",
    ),
];

/// Sockets of a node, at most, and the kernel profile for it.
const PROFILES: [(f64, &str); 4] = [(10e3, "dev"), (100e3, "100k"), (1e6, "1m"), (2e6, "2m")];

impl Plan {
    /// The plan for what is asked, from what was measured.
    pub fn of(args: &PlanArgs, results: &[Stored]) -> Result<Self, PlanError> {
        let measured = facts(results, args.fan_out, args.files_max).map_err(PlanError::Missing)?;
        let given = given(args);
        let inputs = given.iter().chain(&measured);
        let mut values: BTreeMap<&str, (f64, &str)> =
            inputs.map(|f| (f.name, (f.value, f.unit))).collect();
        let mut steps = Vec::with_capacity(FORMULAS.len());
        for (name, unit, about, formula) in FORMULAS {
            let value = compute(formula, &values)?;
            steps.push(Step {
                name,
                about,
                formula,
                filled: text::filled(formula, &values),
                value,
                unit,
            });
            values.insert(name, (value, unit));
        }
        let value = |name: &str| values.get(name).map_or(f64::NAN, |v| v.0);
        let per_node = value("sockets_per_node");
        let profile = PROFILES.iter().find(|(most, _)| per_node <= *most);
        Ok(Self {
            profile: profile.map_or("beyond 2m: measure first", |(_, name)| name),
            edge_bound: edge_bound(&value),
            core_bound: match value("core_processes") > value("core_nodes") {
                true => "the engine's thread: several core processes share a node".to_owned(),
                false => "processors".to_owned(),
            },
            notes: notes(args, results, &measured, &value),
            given,
            measured,
            steps,
        })
    }

    /// A figure by its name.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.steps.iter().find(|s| s.name == name).map(|s| s.value)
    }
}

fn given(args: &PlanArgs) -> Vec<Fact> {
    let flag = |name: &'static str, value: f64, unit: &'static str| Fact {
        name,
        value,
        unit,
        source: format!("--{}", name.replace('_', "-")),
    };
    let constant = |name: &'static str, value: f64, unit: &'static str, source: &str| Fact {
        name,
        value,
        unit,
        source: source.to_owned(),
    };
    vec![
        flag("sockets", args.sockets, "count"),
        flag("messages", args.messages, "per_second"),
        flag("fan_out", args.fan_out, "count"),
        flag("payload", args.payload, "bytes"),
        flag("overhead", args.overhead, "bytes"),
        flag("heartbeat", args.heartbeat.as_secs_f64(), "s"),
        flag("headroom", args.headroom, "ratio"),
        flag("memory_per_node", args.memory_per_node, "bytes"),
        flag("cores_per_node", f64::from(args.cores_per_node), "cores"),
        flag("network_per_node", args.network_per_node, "bits_per_second"),
        flag("sockets_per_node_max", args.sockets_per_node_max, "count"),
        constant(
            "packet",
            PACKET_BYTES,
            "bytes",
            "Ethernet, IPv4 and TCP around a packet's content",
        ),
        constant(
            "pong",
            PONG_BYTES,
            "bytes",
            "a sign of life: a masked pong without content",
        ),
        constant(
            "rings_max",
            capacity::RINGS_MAX as f64,
            "count",
            "io_uring instances that a process is given",
        ),
        constant(
            "ring_fill",
            capacity::RING_FILL_PERCENT as f64 / 100.0,
            "ratio",
            "part of a ring's table that is filled, because connections do not spread evenly",
        ),
    ]
}

fn compute(formula: &str, values: &BTreeMap<&str, (f64, &str)>) -> Result<f64, PlanError> {
    let failed = |e: String| PlanError::Formula(format!("{formula}: {e}"));
    let expression = exmex::parse::<f64>(formula).map_err(|e| failed(e.to_string()))?;
    let inputs = expression.var_names().iter().map(|name| {
        let known = values.get(name.as_str());
        known
            .map(|v| v.0)
            .ok_or_else(|| failed(format!("no {name}")))
    });
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    let value = expression
        .eval(&inputs)
        .map_err(|e| failed(e.to_string()))?;
    match value.is_finite() {
        true => Ok(value),
        false => Err(failed(format!("gives {value}"))),
    }
}

fn edge_bound(value: &dyn Fn(&str) -> f64) -> String {
    let bounds = [
        ("nodes_by_memory", "memory"),
        ("nodes_by_cpu", "processors"),
        ("nodes_by_network", "network"),
        ("nodes_by_rings", "descriptors of rings"),
        ("nodes_by_profile", "sockets that one node is given"),
    ];
    let most = value("edge_nodes");
    let all = bounds.iter().filter(|(name, _)| value(name) == most);
    all.map(|(_, words)| *words).collect::<Vec<_>>().join(", ")
}

fn notes(
    args: &PlanArgs,
    results: &[Stored],
    measured: &[Fact],
    value: &dyn Fn(&str) -> f64,
) -> Vec<String> {
    let mut notes = Vec::new();
    let used = results.iter().filter(|s| {
        measured
            .iter()
            .any(|f| f.source.contains(&*s.path.to_string_lossy()))
    });
    let mut hosts: Vec<String> = used
        .map(|s| {
            format!(
                "{} ({} cores, Linux {})",
                s.run.host.cpu, s.run.host.cores, s.run.host.kernel
            )
        })
        .collect();
    hosts.sort();
    hosts.dedup();
    notes.push(format!(
        "Costs are those of {}, taken to be the same on every core of a node and to grow with the number \
         of operations.",
        hosts.join(" and ")
    ));
    if hosts.len() > 1 {
        notes.push("The results come from machines that are not alike.".to_owned());
    }
    notes.push(
        "On loopback the kernel's work for the receiver is billed to the sender: a real network moves \
         some of it from the generator to the server, or away."
            .to_owned(),
    );
    if value("core_processes") > 1.0 {
        notes.push(
            "Conversations are not spread over several core processes yet: more than one is a plan for \
             when they are."
                .to_owned(),
        );
    }
    if value("edge_nodes") < 2.0 {
        notes.push("One edge node leaves nowhere to go when it is lost: run two.".to_owned());
    }
    if args.headroom < 0.01 {
        notes
            .push("Without headroom a lost node's sessions have no room on the others.".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests;
