//! Facts and a target to findings. Pure, so every finding can be tried on an invented machine.

use crate::capacity::Capacity;
use crate::facts::Facts;
use crate::profile::Profile;
use crate::report::{Check, Report, Status};
use crate::sysctl::Setting;

mod limits;
mod network;
mod rings;
#[cfg(test)]
mod tests;

/// What the machine is to be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Connections that it is to hold.
    pub target: u64,
    /// The load generator, with the other ends of all connections, runs on it too.
    pub generator: bool,
}

/// Keys of profiles that a check of its own looks at, with the target in mind.
const LOOKED_AT: [&str; 4] = [
    "kernel.io_uring_disabled",
    "fs.nr_open",
    "fs.file-max",
    "net.netfilter.nf_conntrack_max",
];

/// Looks at everything.
pub fn examine(facts: &Facts, wish: Wish, profile: &Profile) -> Report {
    let capacity = Capacity::of(facts, wish.generator);
    let target = wish.target;
    let mut checks = vec![
        rings::kernel(facts),
        rings::permission(facts),
        rings::io_uring(facts),
        limits::files_per_process(facts, &capacity, target, profile.nofile),
        limits::nr_open(facts, &capacity, target, profile),
        limits::file_max(facts, &capacity, target, profile),
        limits::memory(facts, &capacity, target),
        limits::memory_locked(facts),
    ];
    let others = profile.settings.iter().filter(|s| {
        let counted = s.key == "net.netfilter.nf_conntrack_buckets";
        !LOOKED_AT.contains(&s.key.as_str()) && (!counted || facts.tracks_connections())
    });
    checks.extend(others.map(|setting| line(facts, setting)));
    checks.extend([
        network::chains(facts, wish),
        network::conntrack(facts, target),
        network::backlog_drops(facts),
    ]);
    if wish.generator {
        checks.push(network::generator_ports(facts, target));
    }
    Report {
        target,
        profile: profile.name.clone(),
        rings_needed: capacity.rings_for(target),
        capacity,
        checks,
        facts: facts.clone(),
    }
}

/// One line of the profile.
fn line(facts: &Facts, setting: &Setting) -> Check {
    let name = setting.key.clone();
    let Some(found) = facts.sysctls.get(&setting.key) else {
        if setting.optional {
            return ok(name, "not in this kernel, and not needed");
        }
        return finding(
            name,
            Status::Warn,
            "not here",
            "not in this kernel, or only in the host's network namespace",
            "run trunkline doctor on the host",
        );
    };
    let shown = match found.as_str() {
        "" => "(nothing)",
        found => found,
    };
    if setting.satisfied_by(found) {
        return ok(name, shown);
    }
    let wanted = setting.effective(found);
    let cure = format!("sysctl -w {}='{wanted}'", setting.key);
    finding(name, Status::Warn, shown, &setting.why, cure).wanting(wanted)
}

/// What the profile wants of a ceiling, where it says so.
fn ceiling(profile: &Profile, key: &str) -> Option<u64> {
    let setting = profile.settings.iter().find(|s| s.key == key)?;
    setting.wanted.parse().ok()
}

fn ok(name: impl Into<String>, found: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        status: Status::Ok,
        found: found.into(),
        wanted: String::new(),
        why: String::new(),
        cure: String::new(),
    }
}

fn finding(
    name: impl Into<String>,
    status: Status,
    found: impl Into<String>,
    why: impl Into<String>,
    cure: impl Into<String>,
) -> Check {
    Check {
        status,
        why: why.into(),
        cure: cure.into(),
        ..ok(name, found)
    }
}

/// A fact that could not be read: said, but no reason to stop.
fn unknown(name: &str) -> Check {
    finding(
        name,
        Status::Warn,
        "unknown",
        "the kernel does not say (no procfs?)",
        "",
    )
}
