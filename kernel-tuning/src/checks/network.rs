//! What the network part of the kernel adds: tables of connections, ports, packets that were lost.

use super::{Wish, finding, ok, unknown};
use crate::facts::Facts;
use crate::report::{Check, Status, grouped};

/// Connections in a chain of the table from which on looking one up costs cache misses.
const CHAIN_MAX: u64 = 4;

/// Source addresses that a generator on loopback can be told to use without ado.
const SOURCES: u64 = 64;

/// The table of established connections is sized at boot.
pub(super) fn chains(facts: &Facts, wish: Wish) -> Check {
    let name = "net.ipv4.tcp_ehash_entries";
    let Some(chains) = facts.established_chains.filter(|n| *n > 0) else {
        // Before Linux 6.1 nothing says how large it is.
        return ok(name, "unknown");
    };
    let ends = wish
        .target
        .saturating_mul(if wish.generator { 2 } else { 1 });
    let found = format!(
        "{} chains, {} socket(s) in each at the target",
        grouped(chains),
        ends.div_ceil(chains)
    );
    if ends <= chains.saturating_mul(CHAIN_MAX) {
        return ok(name, found);
    }
    let wanted = ends.div_ceil(CHAIN_MAX).next_power_of_two();
    finding(
        name,
        Status::Warn,
        found,
        "every packet looks its connection up there; long chains cost a cache miss for each socket in them",
        format!("only at boot: thash_entries={wanted} on the kernel's command line; 8 bytes each: {} MiB", grouped((wanted * 8) >> 20)),
    )
    .wanting(grouped(wanted))
}

pub(super) fn conntrack(facts: &Facts, target: u64) -> Check {
    let name = "net.netfilter.nf_conntrack_max";
    let Some(conntrack) = facts.conntrack else {
        return ok(name, "connections are not tracked");
    };
    let max = grouped(conntrack.max);
    if !facts.tracks_connections() {
        return match facts.tcp_sockets {
            Some(1..) => ok(
                name,
                format!("{max}, not in use: no rule tracks connections"),
            ),
            _ => ok(
                name,
                format!("{max}, no connection is tracked at the moment"),
            ),
        };
    }
    let wanted = target.saturating_add(target / 5);
    let found = format!("{max}, {} in use", grouped(conntrack.count));
    if conntrack.max >= wanted {
        return ok(name, found);
    }
    finding(
        name,
        if conntrack.max < target {
            Status::Fail
        } else {
            Status::Warn
        },
        found,
        "a firewall rule tracks connections, and packets of those beyond this are dropped",
        format!(
            "do not track them: nft add table inet trunkline; \
             nft 'add chain inet trunkline pre {{ type filter hook prerouting priority raw; }}'; \
             nft 'add chain inet trunkline out {{ type filter hook output priority raw; }}'; \
             nft 'add rule inet trunkline pre tcp dport {{ 7400, 7401 }} notrack'; \
             nft 'add rule inet trunkline out tcp sport {{ 7400, 7401 }} notrack'\n\
             or pay for it: sysctl -w {name}={wanted}"
        ),
    )
    .wanting(grouped(wanted))
}

/// Packets between cores that the largest profile lets wait.
const BACKLOG: u64 = 16_384;

/// Whether bursts found a core's queue full since boot.
pub(super) fn backlog_drops(facts: &Facts) -> Check {
    let name = "packets dropped";
    let key = "net.core.netdev_max_backlog";
    let wanted = match facts.sysctls.get(key).map(|v| v.parse::<u64>()) {
        Some(Ok(now)) if now >= BACKLOG => now.saturating_mul(2),
        _ => BACKLOG,
    };
    match facts.backlog_drops {
        None => unknown(name),
        Some(0) => ok(name, format!("none since boot for want of {key}")),
        Some(n) => finding(
            name,
            Status::Warn,
            format!("{} since boot", grouped(n)),
            "a burst found the queue of a core full (second column of /proc/net/softnet_stat); \
             what was lost was sent again 200 ms later",
            format!("if the number rises: sysctl -w {key}={wanted}"),
        ),
    }
}

/// Ports are per pair of addresses, and connect() looks first at one half of the range.
pub(super) fn generator_ports(facts: &Facts, target: u64) -> Check {
    let name = "ports for a generator";
    let Some((low, high)) = facts.port_range else {
        return unknown(name);
    };
    let quick = (high + 1).saturating_sub(low) / 2;
    if quick == 0 {
        return finding(name, Status::Fail, format!("{low}-{high}"), "no ports", "");
    }
    let sources = target.div_ceil(quick);
    let found = format!(
        "{} quick ones for each source address: {} source(s), 127.0.0.1 and up",
        grouped(quick),
        grouped(sources)
    );
    if sources <= SOURCES {
        return ok(name, found);
    }
    finding(
        name,
        Status::Warn,
        found,
        format!(
            "connect() searches one half of the range first and slows down by orders of magnitude when that is used up: with {SOURCES} source addresses at {} connections",
            grouped(quick * SOURCES)
        ),
        "sysctl -w net.ipv4.ip_local_port_range='1024 65535', or more source addresses",
    )
    .wanting(format!("{SOURCES} sources at most"))
}
