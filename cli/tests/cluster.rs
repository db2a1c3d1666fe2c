//! `trunkline cluster` with parts of Trunkline alone: real processes, started and ended by the command.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};

/// An address that nobody else uses, in a network of 127.0.0.0/8 that belongs to this process.
fn base() -> Ipv4Addr {
    let pid = std::process::id();
    for attempt in 0..1_000_u32 {
        let number = pid.wrapping_mul(17).wrapping_add(attempt) % (32 * 256);
        let base = Ipv4Addr::new(127, 128 + (number / 256) as u8, (number % 256) as u8, 1);
        if TcpListener::bind((base, 7_400)).is_ok() {
            return base;
        }
    }
    panic!("no free network in 127.128.0.0/11");
}

fn cluster(dir: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .arg("cluster")
        .args(words)
        .arg("--dir")
        .arg(dir)
        .output()
        .unwrap()
}

fn succeeded(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_cluster_comes_up_is_looked_at_and_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("cluster");
    let base = base().to_string();
    let up = ["up", "--edges", "2", "--cores", "1", "--base", &base];
    let said = succeeded(cluster(&dir, &up));
    let rows = |text: &str| text.lines().filter(|l| l.contains(" running ")).count();
    assert_eq!(rows(&said), 3, "{said}");

    let again = cluster(&dir, &up);
    assert_eq!(again.status.code(), Some(64));
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("already"),
        "{again:?}"
    );

    let json = succeeded(cluster(&dir, &["status", "--json"]));
    let reports: serde_json::Value = serde_json::from_str(&json).unwrap();
    let pids: Vec<u64> = reports
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["pid"].as_u64().unwrap())
        .collect();
    assert_eq!(pids.len(), 3);

    succeeded(cluster(&dir, &["down", "--keep"]));
    let is_there = |pid: &u64| Path::new(&format!("/proc/{pid}")).exists();
    // Whoever adopted them collects them; a dead entry has no executable.
    let runs = |pid: &u64| is_there(pid) && Path::new(&format!("/proc/{pid}/exe")).exists();
    assert!(!pids.iter().any(runs), "{pids:?}");
    assert!(dir.join("core-1/data").exists());
    assert_eq!(cluster(&dir, &["status"]).status.code(), Some(1));

    // On the same data.
    succeeded(cluster(&dir, &up));
    succeeded(cluster(&dir, &["down"]));
    assert!(!dir.exists());
    assert_eq!(cluster(&dir, &["status"]).status.code(), Some(64));
}

#[test]
fn what_the_parts_cannot_do_is_said_before_anything_starts() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("cluster");
    let base = base().to_string();
    let output = cluster(
        &dir,
        &["up", "--cores", "2", "--edges", "2", "--base", &base],
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{errors}");
    assert!(errors.contains("--cassandra"), "{errors}");
    assert!(!dir.exists());
}
