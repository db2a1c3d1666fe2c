//! Facts and a target to findings. Pure, so every finding can be tried on an invented machine.

use crate::capacity::{Capacity, FILES_RESERVED, MEMORY_SHARE_PERCENT};
use crate::facts::Facts;
use crate::report::{Check, Report, Status, grouped};

/// First Linux with all that the io_uring driver uses (NO_SQARRAY, and its early bugs mended).
const KERNEL_MIN: (u32, u32) = (6, 7);
/// Connections that may wait to be accepted; a storm of reconnects needs about this many.
const BACKLOG_MIN: u64 = 4_096;
/// Half-open connections; defaults below this were never seen to be enough.
const SYN_BACKLOG_MIN: u64 = 1_024;
/// Locked memory that rings and their buffers may want on kernels that account it to the user.
const MEMLOCK_MIN_BYTES: u64 = 8 << 20;
/// Trunkline's own default ports.
const PORTS: (u64, u64) = (7_400, 7_431);

/// Looks at everything.
pub fn examine(facts: &Facts, target: u64) -> Report {
    let capacity = Capacity::of(facts);
    let checks = vec![
        kernel(facts),
        io_uring_disabled(facts),
        io_uring(facts),
        files_per_process(facts, &capacity, target),
        nr_open(facts, &capacity, target),
        file_max(facts, &capacity, target),
        memory(facts, &capacity, target),
        memory_locked(facts),
        backlog(facts),
        syn_backlog(facts),
        port_range(facts),
        conntrack(facts, target),
    ];
    Report {
        target,
        rings_needed: capacity.rings_for(target),
        capacity,
        checks,
        facts: facts.clone(),
    }
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        status: Status::Ok,
        found: found.into(),
        why: String::new(),
        cure: String::new(),
    }
}

fn finding(
    name: &'static str,
    status: Status,
    found: impl Into<String>,
    why: impl Into<String>,
    cure: impl Into<String>,
) -> Check {
    Check {
        name,
        status,
        found: found.into(),
        why: why.into(),
        cure: cure.into(),
    }
}

/// A fact that could not be read: said, but no reason to stop.
fn unknown(name: &'static str) -> Check {
    finding(
        name,
        Status::Warn,
        "unknown",
        "the kernel does not say (no procfs?)",
        "",
    )
}

fn kernel(facts: &Facts) -> Check {
    let shown = facts.kernel.clone().unwrap_or_default();
    match facts.kernel_version() {
        Some(version) if version >= KERNEL_MIN => ok("kernel", format!("Linux {shown}")),
        Some(_) => finding(
            "kernel",
            Status::Warn,
            format!("Linux {shown}"),
            "io_uring as used here needs 6.7; the edge falls back to epoll",
            "boot a kernel of the 6.7 series or newer",
        ),
        None => unknown("kernel"),
    }
}

fn io_uring_disabled(facts: &Facts) -> Check {
    let name = "kernel.io_uring_disabled";
    match facts.io_uring_disabled {
        None => ok(name, "no such switch: io_uring is not restricted by it"),
        Some(0) => ok(name, "0: everybody may"),
        Some(n) => finding(
            name,
            Status::Warn,
            format!(
                "{n}: {}",
                if n == 1 {
                    "only some may"
                } else {
                    "nobody may"
                }
            ),
            "the edge falls back to epoll where it may not",
            "sysctl -w kernel.io_uring_disabled=0",
        ),
    }
}

fn io_uring(facts: &Facts) -> Check {
    let name = "io_uring";
    let uring = &facts.uring;
    if uring.serves() {
        return ok(name, "usable, with all operations and direct descriptors");
    }
    let (found, cure) = if let Some(error) = &uring.error {
        let cure = if uring.forbidden {
            "sysctl -w kernel.io_uring_disabled=0, and in a container a seccomp profile that \
             allows io_uring_setup, io_uring_enter and io_uring_register\n\
             (Docker: --security-opt seccomp=FILE; Kubernetes: securityContext.seccompProfile)"
        } else {
            "a kernel of 6.7 or newer with CONFIG_IO_URING; ENOMEM: raise LimitMEMLOCK"
        };
        (format!("refused: {error}"), cure)
    } else if !uring.missing.is_empty() {
        let missing = format!("lacks {}", uring.missing.join(", "));
        (missing, "a kernel of 6.7 or newer")
    } else {
        (
            "no direct descriptors".to_owned(),
            "raise RLIMIT_NOFILE to 1024 at least",
        )
    };
    finding(
        name,
        Status::Warn,
        found,
        "the edge uses epoll: more CPU per message, and the file limit counts for the whole process",
        cure,
    )
}

fn files_per_process(facts: &Facts, capacity: &Capacity, target: u64) -> Check {
    let name = "RLIMIT_NOFILE";
    let Some((soft, hard)) = facts.files_per_process else {
        return unknown(name);
    };
    let found = format!("{} (hard {})", grouped(soft), grouped(hard));
    if let (Some(rings), Some(per_ring)) = (capacity.rings_for(target), capacity.per_ring) {
        let found = format!("{found}: {} per ring, {rings} ring(s)", grouped(per_ring));
        if capacity.by_process_files.is_some_and(|n| n >= target) {
            return ok(name, found);
        }
        return finding(
            name,
            Status::Fail,
            found,
            "the limit counts for each ring, and more rings than that are not made",
            format!("ulimit -n {target}; systemd: LimitNOFILE={target}"),
        );
    }
    let needed = target.saturating_add(FILES_RESERVED);
    if soft >= needed {
        return ok(name, found);
    }
    finding(
        name,
        Status::Fail,
        found,
        format!(
            "with epoll each connection is a file: {} needed",
            grouped(needed)
        ),
        format!(
            "ulimit -n {needed}; systemd: LimitNOFILE={needed}; Docker: --ulimit nofile={needed}"
        ),
    )
}

fn nr_open(facts: &Facts, capacity: &Capacity, target: u64) -> Check {
    let name = "fs.nr_open";
    let Some(max) = facts.nr_open else {
        return unknown(name);
    };
    let needed = target.saturating_add(FILES_RESERVED);
    if capacity.driver == "uring" || max >= needed {
        return ok(name, grouped(max));
    }
    finding(
        name,
        Status::Fail,
        grouped(max),
        "no process can have a higher file limit than this",
        format!("sysctl -w fs.nr_open={needed}"),
    )
}

fn file_max(facts: &Facts, capacity: &Capacity, target: u64) -> Check {
    let name = "fs.file-max";
    let (Some(max), Some(room)) = (facts.file_max, capacity.by_file_max) else {
        return unknown(name);
    };
    let found = format!("{} ({} free)", grouped(max), grouped(room));
    if room >= target {
        return ok(name, found);
    }
    let needed = target
        .saturating_add(facts.files_open.unwrap_or(0))
        .saturating_add(target / 10);
    finding(
        name,
        Status::Fail,
        found,
        "every connection is a file to the kernel, direct descriptors too",
        format!("sysctl -w fs.file-max={needed}"),
    )
}

fn memory(facts: &Facts, capacity: &Capacity, target: u64) -> Check {
    let name = "memory";
    let (Some(available), Some(room)) = (facts.memory_available_bytes, capacity.by_memory) else {
        return unknown(name);
    };
    let needed = capacity.memory_for(target);
    let found = format!(
        "{} MiB available, {} MiB needed",
        grouped(available >> 20),
        grouped(needed >> 20)
    );
    if room >= target {
        return ok(name, found);
    }
    let whole = needed / MEMORY_SHARE_PERCENT * 100;
    finding(
        name,
        Status::Fail,
        found,
        format!(
            "idle connections are to leave {}% free",
            100 - MEMORY_SHARE_PERCENT
        ),
        format!(
            "{} MiB available, or more machines with fewer connections each",
            grouped(whole >> 20)
        ),
    )
}

fn memory_locked(facts: &Facts) -> Check {
    let name = "RLIMIT_MEMLOCK";
    match facts.memory_locked_bytes {
        None => unknown(name),
        Some((u64::MAX, _)) => ok(name, "unlimited"),
        Some((soft, _)) if soft >= MEMLOCK_MIN_BYTES => {
            ok(name, format!("{} KiB", grouped(soft >> 10)))
        }
        Some((soft, _)) => finding(
            name,
            Status::Warn,
            format!("{} KiB", grouped(soft >> 10)),
            "some kernels account rings and their buffers to it: ENOMEM when rings are made",
            "ulimit -l unlimited; systemd: LimitMEMLOCK=infinity; Docker: --ulimit memlock=-1",
        ),
    }
}

fn backlog(facts: &Facts) -> Check {
    let name = "net.core.somaxconn";
    match facts.somaxconn {
        None => unknown(name),
        Some(n) if n >= BACKLOG_MIN => ok(name, grouped(n)),
        Some(n) => finding(
            name,
            Status::Warn,
            grouped(n),
            "when all clients reconnect at once, those beyond the queue wait for a retransmission",
            format!("sysctl -w net.core.somaxconn={BACKLOG_MIN}"),
        ),
    }
}

fn syn_backlog(facts: &Facts) -> Check {
    let name = "net.ipv4.tcp_max_syn_backlog";
    match facts.syn_backlog {
        None => unknown(name),
        Some(n) if n >= SYN_BACKLOG_MIN => ok(name, grouped(n)),
        Some(n) => finding(
            name,
            Status::Warn,
            grouped(n),
            "half-open connections beyond this need SYN cookies, which forget TCP options",
            format!("sysctl -w net.ipv4.tcp_max_syn_backlog={BACKLOG_MIN}"),
        ),
    }
}

fn port_range(facts: &Facts) -> Check {
    let name = "net.ipv4.ip_local_port_range";
    let Some((low, high)) = facts.port_range else {
        return unknown(name);
    };
    let count = (high + 1).saturating_sub(low);
    let found = format!(
        "{low}-{high}: {} outgoing connections per pair of addresses",
        grouped(count)
    );
    let ours_are_inside = low <= PORTS.1 && high >= PORTS.0;
    if !ours_are_inside || reserved(&facts.ports_reserved, PORTS) {
        return ok(name, found);
    }
    finding(
        name,
        Status::Warn,
        found,
        format!(
            "an outgoing connection may take one of Trunkline's ports {}-{}",
            PORTS.0, PORTS.1
        ),
        format!(
            "sysctl -w net.ipv4.ip_local_reserved_ports={}-{}",
            PORTS.0, PORTS.1
        ),
    )
}

/// Whether one of the ranges in `list` covers `ports` whole.
fn reserved(list: &str, ports: (u64, u64)) -> bool {
    list.split(',').any(|range| {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        matches!((low.parse::<u64>(), high.parse::<u64>()),
                 (Ok(low), Ok(high)) if low <= ports.0 && ports.1 <= high)
    })
}

fn conntrack(facts: &Facts, target: u64) -> Check {
    let name = "nf_conntrack_max";
    match facts.conntrack_max {
        None => ok(name, "connections are not tracked"),
        Some(max) if max >= target.saturating_add(target / 5) => ok(name, grouped(max)),
        Some(max) => finding(
            name,
            Status::Warn,
            grouped(max),
            "where a firewall rule tracks connections, those beyond this are dropped",
            format!(
                "sysctl -w net.netfilter.nf_conntrack_max={}, or a NOTRACK rule for the ports",
                target.saturating_add(target / 5)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Uring;

    fn good() -> Facts {
        Facts {
            kernel: Some("6.18.1".into()),
            cpus: 2,
            memory_total_bytes: Some(24 << 30),
            memory_available_bytes: Some(20 << 30),
            uring: Uring {
                usable: true,
                direct_descriptors: true,
                ..Uring::default()
            },
            io_uring_disabled: Some(0),
            files_per_process: Some((20_000, 20_000)),
            memory_locked_bytes: Some((8 << 20, 8 << 20)),
            nr_open: Some(1 << 20),
            file_max: Some(2_466_177),
            files_open: Some(600),
            port_range: Some((32_768, 60_999)),
            ports_reserved: String::new(),
            somaxconn: Some(4_096),
            syn_backlog: Some(2_048),
            conntrack_max: None,
        }
    }

    fn status(facts: &Facts, target: u64, name: &str) -> Status {
        let report = examine(facts, target);
        report
            .checks
            .iter()
            .find(|c| c.name == name)
            .unwrap()
            .status
    }

    #[test]
    fn a_good_machine_passes_a_million_with_io_uring() {
        let report = examine(&good(), 1_000_000);
        assert!(report.passes(), "{}", report.to_text());
        assert_eq!(report.rings_needed, Some(59));
        assert!(report.checks.iter().all(|c| c.status == Status::Ok));
    }

    #[test]
    fn without_io_uring_the_file_limit_fails_and_the_cure_names_a_number() {
        let mut facts = good();
        facts.uring = Uring {
            error: Some("Operation not permitted".into()),
            forbidden: true,
            ..Uring::default()
        };
        let report = examine(&facts, 100_000);
        assert!(!report.passes());
        let text = report.to_text();
        assert!(text.contains("LimitNOFILE=100256"), "{text}");
        assert!(text.contains("seccomp"), "{text}");
        assert_eq!(status(&facts, 10_000, "RLIMIT_NOFILE"), Status::Ok);
    }

    #[test]
    fn each_shortage_is_found() {
        let short = |change: fn(&mut Facts)| {
            let mut facts = good();
            change(&mut facts);
            facts
        };
        let m = 1_000_000;
        let facts = short(|f| f.memory_available_bytes = Some(2 << 30));
        assert_eq!(status(&facts, m, "memory"), Status::Fail);
        let facts = short(|f| f.file_max = Some(500_000));
        assert_eq!(status(&facts, m, "fs.file-max"), Status::Fail);
        let facts = short(|f| f.kernel = Some("5.15.0".into()));
        assert_eq!(status(&facts, m, "kernel"), Status::Warn);
        let facts = short(|f| f.io_uring_disabled = Some(2));
        assert_eq!(status(&facts, m, "kernel.io_uring_disabled"), Status::Warn);
        let facts = short(|f| f.somaxconn = Some(128));
        assert_eq!(status(&facts, m, "net.core.somaxconn"), Status::Warn);
        let facts = short(|f| f.conntrack_max = Some(262_144));
        assert_eq!(status(&facts, m, "nf_conntrack_max"), Status::Warn);
        let facts = short(|f| f.memory_locked_bytes = Some((65_536, 65_536)));
        assert_eq!(status(&facts, m, "RLIMIT_MEMLOCK"), Status::Warn);
    }

    #[test]
    fn a_wide_port_range_asks_for_our_ports_to_be_reserved() {
        let mut facts = good();
        facts.port_range = Some((1_024, 65_535));
        let name = "net.ipv4.ip_local_port_range";
        assert_eq!(status(&facts, 1, name), Status::Warn);
        facts.ports_reserved = "9042,7000-7500".into();
        assert_eq!(status(&facts, 1, name), Status::Ok);
    }
}
