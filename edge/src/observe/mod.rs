//! What an operator sees of an edge: numbers in the Prometheus text format, and the admin pages.
//! Shards publish their numbers; nothing here takes a lock that a shard waits for.

pub mod admin;
pub mod counters;
pub mod memory;

use std::fmt::Write as _;

use counters::{DRIVER_NUMBERS, DRIVER_TIMES, Family, Kind, NUMBERS, Published, TABLE};

/// Before every name.
const PREFIX: &str = "trunkline_edge_";

/// Numbers of the process rather than of its shards.
#[derive(Clone, Copy, Debug)]
pub struct ProcessNumbers {
    pub link_up: bool,
    pub credit: u64,
    /// Kept for the core, and handles in them.
    pub rosters: u64,
    pub roster_handles: u64,
    pub draining: bool,
    pub failed_upgrades: u64,
    /// 0: this process took nothing over.
    pub upgrade_pause_us: u64,
}

/// Appends all numbers: sums over the shards, but for what the loops and their drivers did, which
/// bears a `shard` label.
pub fn encode(shards: &[&Published], process: ProcessNumbers, out: &mut String) {
    let mut last = "";
    for (index, (family, labels)) in TABLE.iter().enumerate().take(NUMBERS) {
        if family.name != last {
            head(out, family);
            last = family.name;
        }
        let sum: u64 = shards.iter().map(|shard| shard.at(index)).sum();
        sample(out, family, labels, &sum.to_string());
    }
    encode_drivers(shards, out);
    for (name, help, value) in [
        (
            "link_up",
            "Whether a core is attached.",
            u64::from(process.link_up),
        ),
        (
            "link_credit",
            "Operations that may still go up.",
            process.credit,
        ),
        (
            "rosters",
            "Lists of recipients that the core keeps here.",
            process.rosters,
        ),
        (
            "roster_handles",
            "Sessions in these, of 8 bytes each.",
            process.roster_handles,
        ),
        (
            "draining",
            "Whether new connections are refused.",
            u64::from(process.draining),
        ),
        ("shards", "Shards that run.", shards.len() as u64),
    ] {
        let family = Family {
            kind: Kind::Gauge,
            name,
            help,
        };
        head(out, &family);
        sample(out, &family, "", &value.to_string());
    }
    encode_upgrades(process, out);
}

fn encode_upgrades(process: ProcessNumbers, out: &mut String) {
    let failed = Family {
        kind: Kind::Counter,
        name: "upgrades_failed",
        help: "Successors that were refused or did not take over.",
    };
    head(out, &failed);
    sample(out, &failed, "", &process.failed_upgrades.to_string());
    let pause = Family {
        kind: Kind::Gauge,
        name: "upgrade_pause_seconds",
        help: "How long clients waited when this process took over; 0 if it did not.",
    };
    let us = process.upgrade_pause_us;
    let seconds = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    head(out, &pause);
    sample(out, &pause, "", &seconds);
}

fn encode_drivers(shards: &[&Published], out: &mut String) {
    let mut last = "";
    for (index, (kind, name, labels)) in DRIVER_NUMBERS.into_iter().enumerate() {
        let is_time = index < DRIVER_TIMES;
        let family = Family {
            kind,
            name,
            help: if is_time {
                "Time of the shard's loop."
            } else {
                "Counts of the shard's driver."
            },
        };
        if name != last {
            head(out, &family);
            last = name;
        }
        for (number, shard) in shards.iter().enumerate() {
            let value = shard.driver_at(index);
            let value = if is_time {
                format!("{}.{:09}", value / 1_000_000_000, value % 1_000_000_000)
            } else {
                value.to_string()
            };
            let comma = if labels.is_empty() { "" } else { "," };
            let labels = format!("{labels}{comma}shard=\"{number}\"");
            sample(out, &family, &labels, &value);
        }
    }
}

// Writing to a String cannot fail.
fn head(out: &mut String, family: &Family) {
    let (name, help) = (family.name, family.help);
    let (kind, total) = kind(family);
    let _ = writeln!(out, "# HELP {PREFIX}{name}{total} {help}");
    let _ = writeln!(out, "# TYPE {PREFIX}{name}{total} {kind}");
}

fn sample(out: &mut String, family: &Family, labels: &str, value: &str) {
    let (_, total) = kind(family);
    let name = family.name;
    let _ = if labels.is_empty() {
        writeln!(out, "{PREFIX}{name}{total} {value}")
    } else {
        writeln!(out, "{PREFIX}{name}{total}{{{labels}}} {value}")
    };
}

const fn kind(family: &Family) -> (&'static str, &'static str) {
    match family.kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge => ("gauge", ""),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::counters::{Counters, LoopStats, Number};
    use super::*;
    use crate::ring::DriverStats;

    #[test]
    fn every_family_has_one_head_and_shards_are_summed() {
        let shards = [Published::default(), Published::default()];
        let mut counters = Counters::default();
        counters.add(Number::BytesIn, 40);
        counters.add(Number::TcpLive, 1);
        let stats = LoopStats {
            driver: DriverStats {
                enters: 3,
                idle_ns: 1_500_000_000,
                ..DriverStats::default()
            },
            elapsed_ns: 2_000_000_000,
            link_ns: 200_000_000,
            held_ns: 400_000_000,
            turns: 9,
        };
        for shard in &shards {
            shard.publish(&counters, &stats);
        }
        let process = ProcessNumbers {
            link_up: true,
            credit: 7,
            rosters: 3,
            roster_handles: 90,
            draining: false,
            failed_upgrades: 2,
            upgrade_pause_us: 1_250_000,
        };
        let mut text = String::new();
        encode(&[&shards[0], &shards[1]], process, &mut text);
        for line in [
            "trunkline_edge_received_bytes_total 80",
            "trunkline_edge_sockets{state=\"live\",transport=\"tcp\"} 2",
            "trunkline_edge_loop_seconds_total{state=\"idle\",shard=\"1\"} 1.500000000",
            "trunkline_edge_loop_seconds_total{state=\"frames\",shard=\"0\"} 0.300000000",
            "trunkline_edge_loop_seconds_total{state=\"link\",shard=\"0\"} 0.200000000",
            "trunkline_edge_arrivals_held_seconds_total{shard=\"1\"} 0.400000000",
            "# TYPE trunkline_edge_ring_accepts_waiting gauge",
            "trunkline_edge_ring_enters_total{shard=\"0\"} 3",
            "trunkline_edge_loop_turns_total{shard=\"1\"} 9",
            "trunkline_edge_link_up 1",
            "trunkline_edge_upgrades_failed_total 2",
            "trunkline_edge_upgrade_pause_seconds 1.250000",
            "# TYPE trunkline_edge_closes_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let heads: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        assert_eq!(heads.len(), heads.iter().collect::<HashSet<_>>().len());
        let samples: Vec<&str> = text
            .lines()
            .filter(|l| !l.starts_with('#'))
            .map(|l| l.rsplit_once(' ').unwrap().0)
            .collect();
        assert_eq!(samples.len(), samples.iter().collect::<HashSet<_>>().len());
    }
}
