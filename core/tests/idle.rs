//! An idle core costs nothing. Alone in its process: it looks at the processor time of threads.

mod support;

use std::time::Duration;

use serde_json::json;
use support::TestCore;
use support::edge::{Edge, hello};
use support::http::User;

/// Ticks of the kernel that the threads named `name` of this process have used.
fn cpu_ticks(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter_map(|stat| {
            let (head, rest) = stat.rsplit_once(')')?;
            head.ends_with(&format!("({name}")).then(|| {
                let fields: Vec<u64> = rest.split(' ').filter_map(|f| f.parse().ok()).collect();
                // After the name and the state, which is no number: utime and stime are the
                // eleventh and twelfth.
                fields[10] + fields[11]
            })
        })
        .sum()
}

#[tokio::test]
async fn an_idle_engine_sleeps() {
    let core = TestCore::start().await;
    let mut edge = Edge::attach(core.grpc, hello("e1")).await;
    edge.open(1, "bob", "d").await;
    let alice = User::new(core.http, "alice");
    let body = json!({"to": "bob", "client_msg_id": "m", "content": "x"});
    assert_eq!(alice.json("POST", "/v1/messages", body).await.status, 201);
    let turns = || {
        let mut text = String::new();
        core.handle.encode_metrics(&mut text);
        text
    };
    let figure = |text: &str, name: &str| -> f64 {
        let line = text
            .lines()
            .find(|l| l.starts_with(name))
            .unwrap()
            .to_owned();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    // A second in which nothing is asked of it: this is what is measured, not a wait for something.
    let (before, ticks) = (turns(), cpu_ticks("engine"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (after, ticks) = (turns(), cpu_ticks("engine") - ticks);
    let name = "trunkline_core_turn_events_count";
    assert!(figure(&after, name) - figure(&before, name) <= 10.0);
    assert!(ticks <= 5, "{ticks} ticks of 10 ms in an idle second");
    core.shutdown().await;
}
