//! The command line of `bench plan`: what is asked for, and what is assumed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::args::parse_duration;

/// `trunkline bench plan`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PlanArgs {
    /// Sockets that are to be held: 1000000, 50M
    #[arg(long, value_name = "N", value_parser = parse_amount)]
    pub sockets: f64,
    /// Messages that are to be taken: 700000, 700k/s
    #[arg(long, value_name = "N/s", value_parser = parse_amount)]
    pub messages: f64,
    /// Results to plan from: files, or directories with them
    #[arg(
        long,
        value_name = "PATH",
        value_delimiter = ',',
        default_value = "bench/results"
    )]
    pub from: Vec<PathBuf>,
    /// Part of memory, processors and network that stays free
    #[arg(long, value_name = "PART", default_value = "30%", value_parser = parse_headroom)]
    pub headroom: f64,
    /// Memory of an edge node
    #[arg(long, value_name = "BYTES", default_value = "256GiB", value_parser = parse_bytes)]
    pub memory_per_node: f64,
    /// Cores of a node, edge or core alike, as fast as those that were measured
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub cores_per_node: u32,
    /// Network of a node, each way: 25Gbit
    #[arg(long, value_name = "BITS/s", default_value = "25Gbit", value_parser = parse_bits)]
    pub network_per_node: f64,
    /// Sockets that one node is given at most: what the largest kernel profile is for
    #[arg(long, value_name = "N", default_value = "2M", value_parser = parse_amount)]
    pub sockets_per_node_max: f64,
    /// Deliveries of a message, over all the sessions that get it: 1 for direct messages, near the
    /// average size of a group times its share for others
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = parse_amount)]
    pub fan_out: f64,
    /// Bytes of a message's content
    #[arg(long, value_name = "BYTES", default_value = "128", value_parser = parse_bytes)]
    pub payload: f64,
    /// Bytes around the content on the wire: Ethernet, IP and TCP 66, frame and fields the rest
    #[arg(long, value_name = "BYTES", default_value = "200", value_parser = parse_bytes)]
    pub overhead: f64,
    /// How often each session gives a sign of life
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub heartbeat: Duration,
    /// Open files of a process, which bound a ring; default: as where it was measured
    #[arg(long, value_name = "N", value_parser = parse_amount)]
    pub files_max: Option<f64>,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Measure first, on the kind of machine that is planned for:
  trunkline bench idle --spawn --connections 15000 --json results/idle.json
  trunkline bench connect --spawn-two --connections 15000 --json results/connect.json
  trunkline bench chat --spawn-two --connections 1000 --rate 30000 --json results/direct.json

Then:
  trunkline bench plan --sockets 50M --messages 700k/s --from results

A fan-out that no run had needs runs on both sides of it:
  trunkline bench plan --sockets 50M --messages 700k/s --fan-out 8 --from results";

/// `50M`, `700k/s`, `1e6`: above 0.
pub fn parse_amount(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    let (number, scale) = scaled(number, &[("k", 1e3), ("M", 1e6), ("G", 1e9)]);
    positive(number, scale)
        .ok_or_else(|| format!("{text:?}: a number above 0, as in 50M or 700k/s"))
}

/// `128`, `256GiB`: bytes, above 0.
pub fn parse_bytes(text: &str) -> Result<f64, String> {
    let units = [
        ("KiB", 1024.0),
        ("MiB", 1048576.0),
        ("GiB", 1073741824.0),
        ("TiB", 1099511627776.0),
        ("B", 1.0),
    ];
    let (number, scale) = scaled(text, &units);
    positive(number, scale).ok_or_else(|| format!("{text:?}: bytes, as in 128 or 256GiB"))
}

/// `25Gbit`: bits in a second, above 0.
pub fn parse_bits(text: &str) -> Result<f64, String> {
    let (number, scale) = scaled(text, &[("Mbit", 1e6), ("Gbit", 1e9)]);
    positive(number, scale)
        .filter(|_| text.ends_with("bit"))
        .ok_or_else(|| format!("{text:?}: bits in a second, as in 25Gbit"))
}

/// `30%` or `0.3`: below 1.
pub fn parse_headroom(text: &str) -> Result<f64, String> {
    let (number, scale) = scaled(text, &[("%", 0.01)]);
    let part = number.trim().parse::<f64>().map(|n| n * scale);
    part.ok()
        .filter(|p| (0.0..1.0).contains(p))
        .ok_or_else(|| format!("{text:?}: a part below 1, as in 30% or 0.3"))
}

fn scaled<'a>(text: &'a str, units: &[(&str, f64)]) -> (&'a str, f64) {
    let found = units
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)));
    found.unwrap_or((text, 1.0))
}

fn positive(number: &str, scale: f64) -> Option<f64> {
    let value = number.trim().replace('_', "").parse::<f64>().ok()? * scale;
    (value > 0.0 && value.is_finite()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_their_units() {
        assert_eq!(parse_amount("50M"), Ok(50e6));
        assert_eq!(parse_amount("700k/s"), Ok(700e3));
        assert_eq!(parse_amount("1_000"), Ok(1e3));
        assert_eq!(parse_bytes("256GiB"), Ok(256.0 * 1073741824.0));
        assert_eq!(parse_bytes("128"), Ok(128.0));
        assert_eq!(parse_bits("25Gbit"), Ok(25e9));
        assert_eq!(parse_headroom("30%"), Ok(0.3));
        for wrong in ["0", "-1", "x", ""] {
            assert!(parse_amount(wrong).is_err(), "{wrong}");
        }
        assert!(parse_bits("25").is_err());
        assert!(parse_headroom("100%").is_err());
    }
}
