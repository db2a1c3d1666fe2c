//! A plan as text: what comes out first, then how, then from what.

use std::collections::BTreeMap;
use std::fmt;

use super::{Fact, Plan, Step};
use crate::units::{number, show, trimmed};

/// A formula with the values of its names.
pub(super) fn filled(formula: &str, values: &BTreeMap<&str, (f64, &str)>) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = formula;
    while let Some(c) = rest.chars().next() {
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(if end == 0 { c.len_utf8() } else { end });
        match values.get(word) {
            Some((value, unit)) => out.push_str(&figure(*value, unit)),
            None if word == "*" => out.push('×'),
            None if word == "/" => out.push('÷'),
            None => match word.parse::<f64>() {
                Ok(constant) => out.push_str(&number(constant)),
                Err(_) => out.push_str(word),
            },
        }
        rest = tail;
    }
    out
}

fn figure(value: f64, unit: &str) -> String {
    match unit {
        "cores" | "nodes" | "processes" => number(value),
        "ratio" => trimmed(value, 4),
        "bits_per_second" => format!("{} Gbit/s", number(value / 1e9)),
        _ => show(value, unit),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |name: &str| {
            let step = self.steps.iter().find(|s| s.name == name);
            step.map_or_else(String::new, |s| figure(s.value, s.unit))
        };
        writeln!(
            f,
            "{} edge nodes, bounded by {}",
            value("edge_nodes"),
            self.edge_bound
        )?;
        writeln!(
            f,
            "   each: {} sockets, {} of memory, {} cores, {} rings, {} of network, kernel profile {}",
            value("sockets_per_node"),
            value("memory_used"),
            value("cores_used"),
            value("rings_per_node"),
            value("network_used"),
            self.profile
        )?;
        writeln!(
            f,
            "{} core nodes with {} core processes and {} busy cores in all, bounded by {}",
            value("core_nodes"),
            value("core_processes"),
            value("core_cores"),
            self.core_bound
        )?;
        writeln!(
            f,
            "all reconnect at once: {}; one edge node lost: {}",
            value("storm_seconds"),
            value("node_lost_seconds")
        )?;
        writeln!(f, "\nHow")?;
        for step in &self.steps {
            shown(f, step)?;
        }
        writeln!(f, "\nMeasured")?;
        inputs(f, &self.measured)?;
        writeln!(f, "\nGiven")?;
        inputs(f, &self.given)?;
        writeln!(f)?;
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "NOTE  {note}"))
    }
}

fn shown(f: &mut fmt::Formatter<'_>, step: &Step) -> fmt::Result {
    writeln!(f, "  {}", step.about)?;
    writeln!(f, "    {} = {}", step.name, step.formula)?;
    writeln!(f, "    {} = {}", step.filled, figure(step.value, step.unit))
}

fn inputs(f: &mut fmt::Formatter<'_>, all: &[Fact]) -> fmt::Result {
    for fact in all {
        let value = figure(fact.value, fact.unit);
        writeln!(f, "  {:<20} {value:>14}  {}", fact.name, fact.source)?;
    }
    Ok(())
}
