//! `trunkline bench echo`, `floor` and `pairs` with servers in processes of their own, started by
//! the binary itself.

use std::process::Command;

use serde_json::Value;

const TRUNKLINE: &str = env!("CARGO_BIN_EXE_trunkline");

/// Runs a short scenario; its exit code, its JSON and what it said.
fn bench(args: &[&str]) -> (i32, Value, String) {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("result.json");
    let output = Command::new(TRUNKLINE)
        .arg("bench")
        .args(args)
        .args(["--connections", "20", "--duration", "300ms"])
        .args(["--warmup", "50ms", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let result = std::fs::read(&json).map_or(Value::Null, |text| {
        serde_json::from_slice(&text).expect("the result is JSON")
    });
    (output.status.code().unwrap_or(-1), result, said)
}

fn metric(result: &Value, name: &str) -> f64 {
    let value = &result["metrics"][name]["value"];
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no {name} in {result:#}"))
}

#[test]
fn our_edge_is_started_measured_and_stopped() {
    for args in [&["echo", "--spawn"][..], &["echo", "--spawn", "--tcp"]] {
        let (code, result, said) = bench(args);
        assert_eq!(code, 0, "{said}");
        assert_eq!(result["problems"], serde_json::json!([]));
        assert_eq!(metric(&result, "connections"), 20.0);
        assert!(metric(&result, "rate") > 0.0);
        assert!(metric(&result, "server_cpu_per_message") > 0.0);
        assert!(said.contains("server_cpu_per_message"), "{said}");
    }
}

#[test]
fn the_floor_has_three_shapes() {
    for (shape, figure) in [
        ("echo", "server_cpu_per_message"),
        ("fanout", "server_cpu_per_delivery"),
        ("chat", "server_cpu_per_message"),
    ] {
        let (code, result, said) = bench(&["floor", "--shape", shape]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(result["problems"], serde_json::json!([]), "{shape}");
        assert!(metric(&result, figure) > 0.0);
    }
}

#[test]
fn contestants_meet_in_turn() {
    let command = format!(
        "third=tcp://127.0.0.1:{{port}} {TRUNKLINE} edge --echo --tcp 127.0.0.1:{{port}} \
         --ws 127.0.0.1:0 --admin 127.0.0.1:0"
    );
    let contestants = [
        "pairs",
        "--pairs",
        "2",
        "--with",
        "floor=floor",
        "--with",
        "edge=edge",
        "--with",
        &command,
    ];
    let (code, result, said) = bench(&contestants);
    assert_eq!(code, 0, "{said}");
    assert_eq!(result["problems"], serde_json::json!([]));
    for name in ["floor", "edge", "third"] {
        assert!(metric(&result, &format!("{name}.server_cpu_per_message")) > 0.0);
    }
    for name in ["edge", "third"] {
        let ratio = metric(&result, &format!("{name}.to_floor.server_cpu_per_message"));
        let least = metric(
            &result,
            &format!("{name}.to_floor.server_cpu_per_message_least"),
        );
        assert!(least > 0.0 && least <= ratio, "{least} {ratio}");
    }
    let series = result["series"].as_array().unwrap();
    let rounds = series
        .iter()
        .find(|s| s["name"] == "edge.rate")
        .and_then(|s| s["points"].as_array());
    assert_eq!(rounds.map(Vec::len), Some(2));
}

#[test]
fn what_contradicts_itself_is_a_usage_error() {
    let (code, _, said) = bench(&["pairs", "--with", "floor=floor"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("two contestants"), "{said}");
    let (code, _, said) = bench(&["echo"]);
    assert_eq!(code, 64, "{said}");
    let (code, _, said) = bench(&["echo", "--spawn", "--shape", "fanout"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("bench chat"), "{said}");
}
