//! What shows and judges results of `trunkline bench`, as a script meets it: exit codes, files, and what
//! is said about mistakes. The runs are as small as a scenario allows.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use trunkline_bench::catalogue;
use trunkline_bench::result::{Better, RunResult};

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn bench(dir: &Path, line: &str) -> Run {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .arg("bench")
        .args(line.split_whitespace())
        .env_remove("TRUNKLINE_CONFIG")
        .current_dir(dir)
        .output()
        .unwrap();
    Run {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

/// Writes a result with these figures, of which less is better.
fn result(dir: &Path, name: &str, figures: &[(&str, f64)]) {
    let mut run = RunResult::begin("chat", BTreeMap::new());
    run.host.files_max = Some(20_000);
    for (figure, value) in figures {
        run.metric(figure, *value, "us", Better::Lower);
    }
    std::fs::write(dir.join(name), serde_json::to_vec(&run).unwrap()).unwrap();
}

fn read(dir: &Path, name: &str) -> RunResult {
    serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
}

#[test]
fn a_comparison_fails_when_something_is_worse() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, us) in [("a.json", 10.0), ("b.json", 10.4), ("c.json", 12.0)] {
        result(dir, name, &[("server_cpu_us_per_message", us)]);
    }
    let same = bench(dir, "compare a.json b.json");
    assert_eq!(same.code, 0, "{}", same.err);
    let worse = bench(dir, "compare a.json c.json --html c.html --json c2.json");
    assert_eq!(worse.code, 1);
    assert!(worse.out.contains("1 worse"), "{}", worse.out);
    assert!(
        std::fs::read_to_string(dir.join("c.html"))
            .unwrap()
            .contains("1 worse")
    );
    assert!(dir.join("c2.json").exists());
    assert_eq!(bench(dir, "compare a.json c.json --threshold 25%").code, 0);
    assert_eq!(bench(dir, "compare c.json a.json").code, 0);
    assert_eq!(bench(dir, "compare a.json,b.json c.json,c.json").code, 1);
    let gone = bench(dir, "compare a.json none.json");
    assert_eq!(gone.code, 64);
    assert!(gone.err.contains("none.json"), "{}", gone.err);
}

#[test]
fn a_stored_result_becomes_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    result(dir, "a.json", &[("server_cpu_us_per_message", 10.0)]);
    assert_eq!(bench(dir, "report a.json").out, "a.html\n");
    assert_eq!(bench(dir, "report a.json -o b.html").code, 0);
    let page = std::fs::read_to_string(dir.join("b.html")).unwrap();
    assert!(page.contains("server cpu us per message"));
    std::fs::write(dir.join("old.json"), "{\"version\": 1}").unwrap();
    let old = bench(dir, "report old.json");
    assert_eq!(old.code, 64);
    assert!(old.err.contains("layout 1"), "{}", old.err);
}

#[test]
fn a_plan_needs_its_measurements() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let line = "plan --sockets 10M --messages 100k/s --from .";
    std::fs::write(dir.join("old.json"), "{\"version\": 1}").unwrap();
    let refused = bench(dir, line);
    assert_eq!(refused.code, 64);
    for told in [
        "no result has kernel_bytes: trunkline bench idle",
        "./old.json",
    ] {
        assert!(refused.err.contains(told), "{told} in {}", refused.err);
    }
    let all = [
        ("kernel_bytes_per_session", 4_700.0),
        ("user_bytes_per_session", 300.0),
        ("server_cpu_ns_per_heartbeat", 15_000.0),
        ("edge_cpu_us_per_session", 50.0),
        ("acked_rate", 10_000.0),
        ("delivery_rate", 10_000.0),
        ("edge_cpu_us_per_message", 10.0),
        ("core_cpu_us_per_message", 8.0),
        ("thread_cpu.core/engine", 4.0),
    ];
    result(dir, "all.json", &all);
    let planned = bench(dir, line);
    assert_eq!(planned.code, 0, "{}", planned.err);
    assert!(
        planned.out.starts_with("5 edge nodes, bounded by sockets"),
        "{}",
        planned.out
    );
    let json = bench(dir, &format!("{line} --json")).out;
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["profile"], "2m");
}

#[test]
fn a_budget_that_no_run_could_keep_is_refused_before_one() {
    let dir = tempfile::tempdir().unwrap();
    // No server is started, and none is there: the refusal comes first.
    let line = "idle --budget user_bytes_per_sesion<=1";
    let refused = bench(dir.path(), line);
    assert_eq!(refused.code, 64);
    let told = "did you mean user_bytes_per_session";
    assert!(refused.err.contains(told), "{}", refused.err);
    let refused = bench(dir.path(), "idle --json none/a.json");
    assert_eq!(refused.code, 64);
    assert!(
        refused.err.contains("--json none/a.json"),
        "{}",
        refused.err
    );
}

#[test]
fn a_missed_budget_fails_the_run_after_all_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let line = "idle --spawn -n 20 --duration 300ms --quiet --json a.json --html a.html";
    let missed = bench(
        dir,
        &format!("{line} --budget sessions>=20 --budget server_memory<=1"),
    );
    assert_eq!(missed.code, 1, "{}", missed.err);
    assert!(
        missed.out.contains("sessions>=20: 20.000, kept"),
        "{}",
        missed.out
    );
    assert!(missed.out.contains("server_memory<=1"), "{}", missed.out);
    assert!(!missed.err.contains("connecting"), "{}", missed.err);
    let run = read(dir, "a.json");
    assert_eq!(run.budgets.iter().filter(|b| b.kept).count(), 1);
    let page = std::fs::read_to_string(dir.join("a.html")).unwrap();
    assert!(page.contains("1 of 2 budgets missed"));
    known(&run);
    let kept = bench(
        dir,
        "idle --spawn -n 20 --duration 300ms --budget sessions>=20",
    );
    assert_eq!(kept.code, 0, "{}", kept.err);
    assert!(kept.err.contains("connecting"), "{}", kept.err);
}

/// Every figure of a run is one that budgets know.
fn known(run: &RunResult) {
    for name in run.metrics.keys() {
        assert!(catalogue::is_metric(name), "{} has {name}", run.scenario);
    }
    for name in run.latencies.keys() {
        let all = catalogue::latencies();
        assert!(all.contains(&&name[..]), "{} has {name}", run.scenario);
    }
}

#[test]
fn a_scenario_file_runs_with_what_is_typed_instead() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = "scenario = \"connect\"\nspawn-two = true\nstorm = true\nconnections = 50\n\
        [budgets]\nsessions = \">=31\"\n";
    std::fs::write(dir.join("s.toml"), text).unwrap();
    let run = bench(dir, "run s.toml --connections 30 --json a.json");
    assert_eq!(
        run.code, 1,
        "30 sessions are not 31: {} {}",
        run.out, run.err
    );
    let kept = read(dir, "a.json");
    assert_eq!(kept.parameters["connections"], 30);
    assert_eq!(kept.parameters["storm"], true);
    known(&kept);
    std::fs::write(dir.join("t.toml"), text.replace("storm", "strom")).unwrap();
    for line in ["run t.toml", "connect --config t.toml"] {
        let refused = bench(dir, line);
        assert_eq!(refused.code, 64);
        assert!(
            refused
                .err
                .contains("t.toml: no parameter \"strom\": did you mean storm")
        );
    }
    let example = bench(dir, "example connect");
    assert!(
        example.out.contains("scenario = \"connect\""),
        "{}",
        example.err
    );
    assert_eq!(bench(dir, "example conect").code, 64);
}
