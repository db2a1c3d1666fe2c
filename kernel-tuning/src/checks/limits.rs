//! Files and memory: what bounds the number of connections.

use super::{ceiling, finding, ok, unknown};
use crate::capacity::{Capacity, FILES_RESERVED, MEMORY_SHARE_PERCENT};
use crate::facts::Facts;
use crate::profile::Profile;
use crate::report::{Check, Status, grouped};

/// Locked memory that rings and their buffers may want on kernels that account it to the user.
const MEMLOCK_MIN_BYTES: u64 = 8 << 20;

pub(super) fn files_per_process(
    facts: &Facts,
    capacity: &Capacity,
    target: u64,
    profile_wants: Option<u64>,
) -> Check {
    let name = "RLIMIT_NOFILE";
    let (Some((soft, hard)), Some(limit)) = (facts.files_per_process, facts.files_limit()) else {
        return unknown(name);
    };
    let found = format!(
        "{}{}",
        grouped(limit),
        if soft < hard {
            " (hard; the edge raises itself to it)"
        } else {
            ""
        }
    );
    let cure =
        |n: u64| format!("ulimit -n {n}; systemd: LimitNOFILE={n}; Docker: --ulimit nofile={n}");
    if let (Some(rings), Some(per_ring)) = (capacity.rings_for(target), capacity.per_ring) {
        let found = format!("{found}: {} a ring, {rings} ring(s)", grouped(per_ring));
        if capacity.usual().by_process_files.is_none_or(|n| n < target) {
            let why = "the limit counts for each ring, and more rings than that are not made";
            return finding(name, Status::Fail, found, why, cure(target));
        }
        return match profile_wants {
            Some(n) if n > limit && rings > facts.cpus.max(1) as u64 => finding(
                name,
                Status::Warn,
                found,
                "it works with several rings in each shard; one is simpler and somewhat quicker",
                cure(n),
            )
            .wanting(grouped(n)),
            _ => ok(name, found),
        };
    }
    let needed = target.saturating_add(FILES_RESERVED);
    if limit >= needed {
        return ok(name, found);
    }
    finding(
        name,
        Status::Fail,
        found,
        "with epoll each connection is a file of the process",
        cure(needed),
    )
    .wanting(grouped(needed))
}

pub(super) fn nr_open(facts: &Facts, capacity: &Capacity, target: u64, profile: &Profile) -> Check {
    let name = "fs.nr_open";
    let Some(max) = facts.nr_open else {
        return unknown(name);
    };
    let needed = target.saturating_add(FILES_RESERVED);
    let (status, wanted, why) = if capacity.driver == "epoll" && max < needed {
        let why = "no process can have a higher file limit than this, and with epoll each connection is a file";
        (Status::Fail, needed, why)
    } else {
        match ceiling(profile, name) {
            Some(wanted) if max < wanted => {
                let why =
                    "no process can have a higher file limit than this: the edge needs more rings";
                (Status::Warn, wanted, why)
            }
            _ => return ok(name, grouped(max)),
        }
    };
    finding(
        name,
        status,
        grouped(max),
        why,
        format!("sysctl -w {name}={wanted}"),
    )
    .wanting(grouped(wanted))
}

pub(super) fn file_max(
    facts: &Facts,
    capacity: &Capacity,
    target: u64,
    profile: &Profile,
) -> Check {
    let name = "fs.file-max";
    let (Some(max), Some(room)) = (facts.file_max, capacity.by_file_max) else {
        return unknown(name);
    };
    let found = format!("{} (room for {} connections)", grouped(max), grouped(room));
    let (status, wanted) = if room < target {
        let ends = target.saturating_mul(capacity.ends);
        let needed = ends
            .saturating_add(facts.files_open.unwrap_or(0))
            .saturating_add(ends / 10)
            .saturating_add(FILES_RESERVED);
        (
            Status::Fail,
            needed.max(ceiling(profile, name).unwrap_or(0)),
        )
    } else {
        match ceiling(profile, name) {
            Some(wanted) if max < wanted => (Status::Warn, wanted),
            _ => return ok(name, found),
        }
    };
    finding(
        name,
        status,
        found,
        "every connection is a file to the kernel, direct descriptors too, and so is its other end where that is on this machine",
        format!("sysctl -w {name}={wanted}"),
    )
    .wanting(grouped(wanted))
}

pub(super) fn memory(facts: &Facts, capacity: &Capacity, target: u64) -> Check {
    let name = "memory";
    let usual = capacity.usual();
    let (Some(available), Some(room)) = (facts.memory_available_bytes, usual.by_memory) else {
        return unknown(name);
    };
    let needed = capacity.memory_for(target);
    let found = format!("{} MiB available", grouped(available >> 20));
    let whole = grouped((needed / MEMORY_SHARE_PERCENT * 100) >> 20);
    if room >= target {
        return ok(
            name,
            format!("{found}, {} MiB needed", grouped(needed >> 20)),
        );
    }
    let mut cure = format!("{whole} MiB available, or more machines with fewer connections each");
    if let Some(low) = capacity.modes.get(1)
        && low.by_memory.is_some_and(|n| n >= target)
    {
        cure += &format!(", or {}, with which it fits", low.name);
    }
    finding(
        name,
        Status::Fail,
        found,
        format!(
            "{} connections x {} bytes = {} MiB, and idle connections are to leave {} % free",
            grouped(target),
            grouped(usual.bytes_per_connection),
            grouped(needed >> 20),
            100 - MEMORY_SHARE_PERCENT
        ),
        cure,
    )
    .wanting(format!("{whole} MiB"))
}

pub(super) fn memory_locked(facts: &Facts) -> Check {
    let name = "RLIMIT_MEMLOCK";
    match facts.memory_locked_bytes {
        None => unknown(name),
        Some((_, u64::MAX)) => ok(name, "unlimited"),
        Some((soft, _)) if soft >= MEMLOCK_MIN_BYTES => {
            ok(name, format!("{} KiB", grouped(soft >> 10)))
        }
        Some((soft, _)) => finding(
            name,
            Status::Warn,
            format!("{} KiB", grouped(soft >> 10)),
            "some kernels account rings and their buffers to it: ENOMEM when rings are made",
            "ulimit -l unlimited; systemd: LimitMEMLOCK=infinity; Docker: --ulimit memlock=-1",
        )
        .wanting("8,192 KiB"),
    }
}
