//! Invented machines.

use super::*;
use crate::facts::{Conntrack, Permission};
use crate::uring::Uring;

const M: u64 = 1_000_000;

fn profile() -> Profile {
    Profile::find("1m").unwrap()
}

/// A machine on which the profile is applied.
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
        permission: Permission {
            disabled: Some(0),
            group: Some(-1),
            ..Permission::default()
        },
        files_per_process: Some((1_024, 1_100_000)),
        memory_locked_bytes: Some((8 << 20, 8 << 20)),
        nr_open: Some(1 << 21),
        file_max: Some(2_466_177),
        files_open: Some(600),
        port_range: Some((1_024, 65_535)),
        conntrack: None,
        tcp_sockets: Some(10),
        established_chains: Some(262_144),
        backlog_drops: Some(0),
        sysctls: profile()
            .settings
            .into_iter()
            .map(|s| (s.key, s.wanted))
            .collect(),
    }
}

fn report(facts: &Facts, target: u64) -> Report {
    let wish = Wish {
        target,
        generator: false,
    };
    examine(facts, wish, &profile())
}

fn check(facts: &Facts, target: u64, name: &str) -> Check {
    let report = report(facts, target);
    report.checks.into_iter().find(|c| c.name == name).unwrap()
}

fn status(facts: &Facts, target: u64, name: &str) -> Status {
    check(facts, target, name).status
}

#[test]
fn a_good_machine_passes_a_million_with_io_uring() {
    let report = report(&good(), M);
    assert!(report.passes(), "{}", report.to_text());
    assert_eq!(report.rings_needed, Some(2), "one for each shard");
    let not_ok: Vec<_> = report
        .checks
        .iter()
        .filter(|c| c.status != Status::Ok)
        .collect();
    assert_eq!(not_ok, Vec::<&Check>::new());
    assert!(!report.to_text().contains("doctor apply"));
}

#[test]
fn a_low_file_limit_is_no_failure_with_io_uring_but_takes_rings() {
    let mut facts = good();
    facts.files_per_process = Some((20_000, 20_000));
    let check = check(&facts, M, "RLIMIT_NOFILE");
    assert_eq!(check.status, Status::Warn);
    assert!(check.found.contains("68 ring(s)"), "{}", check.found);
    assert!(check.cure.contains("LimitNOFILE=1100000"), "{}", check.cure);
    assert_eq!(status(&facts, 10_000, "RLIMIT_NOFILE"), Status::Ok);
}

#[test]
fn without_io_uring_the_file_limit_fails_and_the_cure_names_a_number() {
    let mut facts = good();
    facts.files_per_process = Some((20_000, 20_000));
    facts.uring = Uring {
        error: Some("Operation not permitted".into()),
        forbidden: true,
        ..Uring::default()
    };
    facts.permission.seccomp = true;
    let report = report(&facts, 100_000);
    assert!(!report.passes());
    let text = report.to_text();
    assert!(text.contains("LimitNOFILE=100256"), "{text}");
    assert!(text.contains("doctor print seccomp"), "{text}");
    assert_eq!(status(&facts, 10_000, "RLIMIT_NOFILE"), Status::Ok);
}

#[test]
fn who_refused_the_ring_decides_the_cure() {
    let mut facts = good();
    facts.uring = Uring {
        error: Some("Operation not permitted".into()),
        forbidden: true,
        ..Uring::default()
    };
    let cure = |facts: &Facts| check(facts, 1, "io_uring").cure;
    assert!(cure(&facts).contains("security module"));
    facts.permission.seccomp = true;
    assert!(cure(&facts).contains("seccomp"));
    facts.permission.disabled = Some(2);
    assert!(cure(&facts).contains("kernel.io_uring_disabled"));
    let switch = "kernel.io_uring_disabled";
    assert_eq!(status(&facts, 1, switch), Status::Warn);
    facts.permission.disabled = Some(1);
    assert_eq!(status(&facts, 1, switch), Status::Warn);
    facts.permission.in_group = true;
    assert_eq!(status(&facts, 1, switch), Status::Ok);
}

#[test]
fn each_shortage_is_found() {
    let short = |change: fn(&mut Facts)| {
        let mut facts = good();
        change(&mut facts);
        facts
    };
    let facts = short(|f| f.memory_available_bytes = Some(2 << 30));
    assert_eq!(status(&facts, M, "memory"), Status::Fail);
    let facts = short(|f| f.file_max = Some(500_000));
    assert_eq!(status(&facts, M, "fs.file-max"), Status::Fail);
    assert!(check(&facts, M, "fs.file-max").cure.contains("2200000"));
    assert_eq!(status(&facts, 400_000, "fs.file-max"), Status::Warn);
    let facts = short(|f| f.nr_open = Some(1 << 20));
    assert_eq!(status(&facts, M, "fs.nr_open"), Status::Warn);
    let facts = short(|f| {
        f.nr_open = Some(1 << 19);
        f.uring.missing = vec!["SOCKET (5.19)"];
    });
    assert_eq!(status(&facts, M, "fs.nr_open"), Status::Fail);
    let facts = short(|f| f.kernel = Some("5.15.0".into()));
    assert_eq!(status(&facts, M, "kernel"), Status::Warn);
    let facts = short(|f| f.memory_locked_bytes = Some((65_536, 65_536)));
    assert_eq!(status(&facts, M, "RLIMIT_MEMLOCK"), Status::Warn);
    let facts = short(|f| f.uring.lacking = vec![("BIND (6.11)", "something")]);
    assert_eq!(status(&facts, M, "io_uring"), Status::Warn);
    let facts = short(|f| f.backlog_drops = Some(3));
    assert_eq!(status(&facts, M, "packets dropped"), Status::Warn);
    let facts = short(|f| f.established_chains = Some(65_536));
    let chains = check(&facts, M, "net.ipv4.tcp_ehash_entries");
    assert_eq!(chains.status, Status::Warn);
    assert!(
        chains.cure.contains("thash_entries=262144"),
        "{}",
        chains.cure
    );
}

#[test]
fn every_line_of_the_profile_is_held_against_the_machine() {
    for setting in profile().settings {
        if LOOKED_AT.contains(&setting.key.as_str()) || setting.optional {
            continue;
        }
        let mut facts = good();
        facts.sysctls.insert(setting.key.clone(), "0".into());
        let changed = check(&facts, M, &setting.key);
        assert_eq!(changed.status, Status::Warn, "{}", setting.key);
        assert!(changed.cure.contains(&setting.wanted), "{}", changed.cure);
        assert!(!changed.why.is_empty() && !changed.wanted.is_empty());
        facts.sysctls.remove(&setting.key);
        assert_eq!(check(&facts, M, &setting.key).found, "not here");
    }
}

#[test]
fn conntrack_matters_where_a_rule_tracks() {
    let name = "net.netfilter.nf_conntrack_max";
    let mut facts = good();
    facts.conntrack = Some(Conntrack {
        max: 262_144,
        count: 0,
    });
    let idle = check(&facts, M, name);
    assert_eq!(idle.status, Status::Ok);
    assert!(idle.found.contains("no rule"), "{}", idle.found);
    facts.conntrack = Some(Conntrack {
        max: 262_144,
        count: 9,
    });
    let active = check(&facts, M, name);
    assert_eq!(active.status, Status::Fail);
    assert!(active.cure.contains("notrack"), "{}", active.cure);
    assert_eq!(status(&facts, 250_000, name), Status::Warn);
    assert_eq!(status(&facts, 200_000, name), Status::Ok);
}

#[test]
fn a_generator_here_needs_ports_and_counts_twice() {
    let wish = Wish {
        target: M,
        generator: true,
    };
    let mut facts = good();
    let found = |facts: &Facts| {
        let report = examine(facts, wish, &profile());
        let mut checks = report.checks.iter();
        let ports = checks.find(|c| c.name == "ports for a generator").unwrap();
        (ports.status, ports.found.clone())
    };
    // 64,512 ports, of which one half is quick: 1,000,000 / 32,256.
    let wide = found(&facts);
    assert_eq!(wide.0, Status::Ok);
    assert!(wide.1.contains("32 source(s)"), "{}", wide.1);
    // 28,232 ports: 64 addresses end at 903,424.
    facts.port_range = Some((32_768, 60_999));
    let narrow = found(&facts);
    assert_eq!(narrow.0, Status::Warn);
    assert!(narrow.1.contains("71 source(s)"), "{}", narrow.1);
    let text = examine(&facts, wish, &profile()).to_text();
    assert!(text.contains("903,424"), "{text}");
}

#[test]
fn the_bound_that_decides_is_named() {
    let mut facts = good();
    facts.file_max = Some(700_000);
    let text = report(&facts, M).to_text();
    assert!(text.contains("limited by fs.file-max"), "{text}");
    assert!(text.contains("multishot poll") && text.contains("Not ready."));
    assert!(
        text.contains("trunkline doctor apply --profile 1m"),
        "{text}"
    );
}
