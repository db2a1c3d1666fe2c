//! Promises: an idle session costs a known number of bytes; and the load generator does not leave
//! out what a stalled server did not answer.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use trunkline_tests::eventually;
use trunkline_tests::process::{SECRET, Server, binary};

const IDLE: u32 = 10_000;
/// User memory of one idle session in an unoptimised build. The release's budget is 400 bytes at
/// 18,000 sessions, over which fixed costs spread further.
const BYTES_PER_CONNECTION: f64 = 600.0;

/// Of one session in the edge's tables, and of one user with one session in the core's registry, in
/// any build, with what the tables leave free.
const TABLE_BYTES_PER_SESSION: u64 = 128;

/// A command line of `bench` against `server`.
fn bench(server: &Server, scenario: &str, json: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["bench", scenario, "--secret", SECRET, "--server-pid"])
        .arg(server.pid().to_string())
        .args([
            "--ws",
            server.address("ws"),
            "--http",
            server.address("http"),
        ])
        .arg("--json")
        .arg(json)
        .args(args);
    command
}

fn report(output: &Output, json: &Path) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    println!("{text}");
    serde_json::from_slice(&std::fs::read(json).expect("the report")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_stays_within_its_budget() {
    let server = Server::serve(&["--connect-rate", "0", "--log", "warn"]);
    let json = server.dir().join("idle.json");
    let connections = IDLE.to_string();
    let args = ["--connections", &connections, "--duration", "3s"];
    let mut running = bench(&server, "idle", &json, &args)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the load generator runs");
    // What the tables say while all are there.
    let page = eventually("all are there, and counted", async || {
        let page = server.admin("/debug/memory");
        let all = page["connections"] == IDLE && page["core"]["sessions"] == IDLE;
        all.then_some(page)
    })
    .await;
    println!("{page}");
    for bytes in [
        &page["bytes_per_connection"],
        &page["core"]["registry_bytes_per_session"],
    ] {
        let bytes = bytes.as_u64().expect("a number");
        assert!(bytes <= TABLE_BYTES_PER_SESSION, "{page}");
        assert!(bytes >= TABLE_BYTES_PER_SESSION / 2, "{page}");
    }
    // And what the whole process grew by.
    tokio::task::block_in_place(|| running.wait()).expect("it ends");
    let output = running.wait_with_output().expect("its output");
    let report = report(&output, &json);
    assert_eq!(report["metrics"]["sessions"]["value"], f64::from(IDLE));
    let bytes = report["metrics"]["user_bytes_per_session"]["value"].as_f64();
    let bytes = bytes.expect("a measurement");
    println!("{bytes:.0} bytes a connection");
    assert!(bytes < BYTES_PER_CONNECTION, "{bytes} bytes");
}

/// How long the server stands still.
const STALL: Duration = Duration::from_millis(100);
/// Of 5 s of load every fiftieth message is due in the stall.
const LOAD: [&str; 8] = [
    "--connections",
    "100",
    "--rate",
    "1000",
    "--duration",
    "5s",
    "--warmup",
    "1s",
];

/// Runs the load; `stall`: the server is stopped once in the midst of it.
async fn ack_latency(server: &Server, name: &str, stall: bool) -> Value {
    let json = server.dir().join(name);
    let mut running = bench(server, "chat", &json, &LOAD)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the load generator runs");
    if stall {
        // After the warm-up and well before the end.
        let before = server.metric("trunkline_core_acks_total");
        eventually("the load is on its way", async || {
            (server.metric("trunkline_core_acks_total") > before + 3_000.0).then_some(())
        })
        .await;
        server.signal("STOP");
        tokio::time::sleep(STALL).await;
        server.signal("CONT");
    }
    tokio::task::block_in_place(|| running.wait()).expect("it ends");
    let output = running.wait_with_output().expect("its output");
    let report = report(&output, &json);
    assert_eq!(report["problems"], serde_json::json!([]));
    report["latencies"]["ack"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_counts_what_a_stall_delayed() {
    let server = Server::serve(&["--send-rate", "0", "--connect-rate", "0"]);
    let stalled = ack_latency(&server, "stalled.json", true).await;
    let calm = ack_latency(&server, "calm.json", false).await;
    let ms = |latency: &Value, key: &str| latency[key].as_f64().expect("a latency");
    assert!(ms(&stalled, "max_ms") >= 95.0, "{stalled}");
    // A generator that waits for answers before it goes on would see one slow message.
    assert!(ms(&stalled, "p99_ms") >= 20.0, "{stalled}");
    assert!(
        ms(&calm, "p99_ms") < ms(&stalled, "p99_ms"),
        "{calm} and {stalled}"
    );
}
