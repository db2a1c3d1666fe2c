//! The scenarios of `trunkline bench` on a small scale, against servers of their own: that they count
//! what they should, and find nothing wrong where nothing is. Timing is not looked at.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Runs a scenario; its result and what it said on stderr.
fn bench(args: &str) -> (Value, String) {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("run.json");
    let output = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .arg("bench")
        .args(words(args))
        .arg("--json")
        .arg(&json)
        .env_clear()
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args}: {said}");
    let run: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    (run, said)
}

/// Words, of which some hold spaces between apostrophes.
fn words(text: &str) -> Vec<String> {
    let parts = text.split('\'').enumerate().flat_map(|(i, part)| {
        if i % 2 == 1 {
            vec![part.to_owned()]
        } else {
            part.split_whitespace().map(str::to_owned).collect()
        }
    });
    parts.collect()
}

fn clean(args: &str) -> Value {
    let (run, said) = bench(args);
    let problems = run["problems"].as_array().unwrap();
    assert!(problems.is_empty(), "{args}: {problems:?}\n{said}");
    run
}

fn metric(run: &Value, name: &str) -> f64 {
    let value = run["metrics"][name]["value"].as_f64();
    value.unwrap_or_else(|| panic!("no metric {name} in {}", run["metrics"]))
}

fn samples(run: &Value, name: &str) -> u64 {
    run["latencies"][name]["count"].as_u64().unwrap_or(0)
}

#[test]
fn connect_counts_every_session_of_both_rounds() {
    for transport in ["ws-json", "tcp"] {
        let run = clean(&format!(
            "connect --spawn -n 200 --storm --threads 2 --transport {transport}"
        ));
        assert_eq!(run["scenario"], "connect");
        assert_eq!(metric(&run, "sessions"), 200.0);
        assert_eq!(samples(&run, "connect"), 200);
        assert_eq!(samples(&run, "storm_connect"), 200);
        assert!(metric(&run, "server_cpu_us_per_session") >= 0.0);
    }
}

#[test]
fn a_ramp_is_timed_from_when_each_connect_was_due() {
    let run = clean("connect --spawn-two -n 100 --ramp 200/s --token query");
    assert_eq!(samples(&run, "connect"), 100);
    // The last one is due half a second after the first.
    assert!(metric(&run, "seconds_to_all") > 0.49);
    assert_eq!(run["parameters"]["ramp"], 200.0);
    assert_eq!(run["parameters"]["spawn-two"], true);
}

#[test]
fn a_hot_conversation_runs_beside_the_others_and_is_told_apart() {
    let run = clean(
        "chat --spawn -n 20 --rate 200 --hot-members 5 --hot-senders 2 --hot-inflight 4 \
         --warmup 200ms --duration 1s --threads 2",
    );
    assert_eq!(samples(&run, "ack"), 200, "without the hot one");
    assert_eq!(samples(&run, "beside_hot_ack"), 200);
    assert_eq!(samples(&run, "beside_hot_delivery"), 200);
    assert!(samples(&run, "hot_ack") > 0);
    assert!(metric(&run, "hot_acked_rate") > 0.0);
    assert!(metric(&run, "beside_hot_p99_ratio") > 0.0);
    // Each of its messages goes to all members but the session that sent it.
    let deliveries = samples(&run, "hot_delivery");
    assert_eq!(deliveries, 4 * samples(&run, "hot_ack"));
    assert_eq!(metric(&run, "conversations"), 11.0);
    assert_eq!(run["parameters"]["hot-members"], 5);
}

#[test]
fn idle_sessions_stay_and_give_their_signs_of_life() {
    let run = clean("idle --spawn -n 200 --duration 2s --heartbeat-every 1s --heartbeat ping");
    assert_eq!(metric(&run, "sessions"), 200.0);
    let rate = metric(&run, "heartbeat_rate");
    assert!((150.0..=250.0).contains(&rate), "{rate} a second");
    assert!(metric(&run, "kernel_bytes_per_session").is_finite());
    let series = run["series"].as_array().unwrap();
    let connected = series.iter().find(|s| s["name"] == "connected").unwrap();
    let last = connected["points"].as_array().unwrap().last().unwrap();
    assert_eq!(last[1], 200.0);
}

#[test]
fn everybody_in_a_chat_sees_everything() {
    let run = clean(
        "chat --spawn -n 60 --rate 400 --groups 3 --group-size 20 --group-share 0.5 \
         --warmup 500ms --duration 2s --threads 2",
    );
    let sent = metric(&run, "sent");
    assert_eq!(sent, 800.0);
    assert_eq!(samples(&run, "ack"), 800);
    assert!(samples(&run, "delivery") > 800, "groups multiply");
    assert_eq!(metric(&run, "wrong_deliveries"), 0.0);
    assert_eq!(metric(&run, "conversations"), 33.0);
    assert_eq!(metric(&run, "unanswered"), 0.0);
}

#[test]
fn a_closed_loop_goes_on_as_answers_come() {
    let run = clean("chat --spawn -n 11 --rate 0 --inflight 2 --warmup 0s --duration 1s");
    assert!(metric(&run, "acked_rate") > 22.0);
    // The eleventh writes to itself.
    assert_eq!(metric(&run, "conversations"), 6.0);
}

#[test]
fn a_group_gets_every_message_once() {
    let run = clean(
        "fanout --spawn --members 50 --conversations 2 --burst 4 --warmup 200ms --duration 1s",
    );
    let published = metric(&run, "published");
    assert!(published >= 8.0);
    assert_eq!(metric(&run, "delivered"), published * 49.0);
    assert_eq!(metric(&run, "wrong_deliveries"), 0.0);
    assert!(metric(&run, "server_cpu_ns_per_delivery") > 0.0);
    let run = clean("fanout --spawn --members 20 --rate 50/s --warmup 0s --duration 1s");
    assert_eq!(metric(&run, "delivered"), metric(&run, "published") * 19.0);
}

#[test]
fn whoever_loses_an_edge_comes_back_and_has_everything() {
    for backoff in ["full-jitter", "none"] {
        let run = clean(&format!(
            "storm --spawn-two -n 200 --calm 10 --calm-rate 100/s --missed 0.2 --before 1s \
             --backoff {backoff}"
        ));
        assert_eq!(metric(&run, "synced"), 200.0);
        assert_eq!(samples(&run, "storm_connect"), 200);
        assert_eq!(metric(&run, "missed_messages"), 40.0);
        assert_eq!(metric(&run, "missed_messages_seen"), 40.0);
        assert!(metric(&run, "calm_p99_ratio") > 0.0);
        assert_eq!(metric(&run, "wrong_deliveries"), 0.0);
    }
}

#[test]
fn slow_readers_are_ended_and_come_back_whole_and_silent_ones_are_found() {
    let run = clean(
        "slow --spawn -n 20 --share 0.2 --rate 300 --before 1s --duration 4s --half-open 5 \
         --spawn-args '--outbox-hard-bytes 65536 --outbox-soft-bytes 16384 --heartbeat 1s' \
         --heartbeat-every 500ms",
    );
    assert_eq!(metric(&run, "slow_clients_ended"), 4.0);
    assert!(metric(&run, "outboxes_max") > 0.0);
    // Four clients fetch what was said since the beginning.
    assert!(metric(&run, "fetched") >= 4.0 * 1_200.0);
    assert_eq!(metric(&run, "conversations_not_whole"), 0.0);
    assert_eq!(metric(&run, "half_open_found"), 5.0);
    assert!(metric(&run, "half_open_first") >= 2.0);
}

#[test]
fn clients_that_come_and_go_miss_nothing() {
    let run = clean(
        "soak --spawn -n 60 --rate 300 --groups 2 --group-size 30 --group-share 0.3 --churn 20 \
         --duration 4s",
    );
    assert!(metric(&run, "left") > 20.0);
    assert!(samples(&run, "reconnect") >= metric(&run, "left") as u64);
    assert_eq!(metric(&run, "wrong_deliveries"), 0.0);
    assert_eq!(metric(&run, "conversations_not_whole"), 0.0);
}

#[test]
fn a_drained_edge_sees_its_clients_off() {
    let run = clean("drain --spawn-two -n 200 --spawn-args '--drain-budget 3s'");
    assert_eq!(metric(&run, "told_to_leave"), 200.0);
    assert_eq!(metric(&run, "clean"), 200.0);
    assert_eq!(metric(&run, "sessions_after"), 200.0);
    assert_eq!(samples(&run, "moved"), 200);
    let run = clean("drain --spawn -n 50 --disobey 10 --spawn-args '--drain-budget 2s'");
    assert_eq!(metric(&run, "forced"), 10.0);
    assert_eq!(metric(&run, "clean"), 40.0);
    assert_eq!(metric(&run, "sessions_after"), 0.0);
}

#[test]
fn what_cannot_be_is_refused_with_the_cure() {
    let refused = |args: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        let output = command.arg("bench").args(words(args)).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused("storm -n 10").contains("--spawn-two"));
    assert!(refused("connect --spawn -n 1").contains("--connections"));
    assert!(refused("connect --spawn --per-source 70000").contains("ip_local_port_range"));
    assert!(refused("chat --spawn --rate 0 --inflight 0").contains("bench idle"));
    assert!(refused("chat --spawn --rate 0 --hot-members 2").contains("--rate"));
}

/// A server for a proxy to stand before.
struct Server {
    child: std::process::Child,
    ports: Value,
    dir: tempfile::TempDir,
}

const SECRET: &str = "a secret that is long enough to be one";

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ports.json");
        let child = Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(words(
                "serve --ws 127.0.0.1:0 --tcp 127.0.0.1:0 --http 127.0.0.1:0",
            ))
            .args(words(
                "--admin 127.0.0.1:0 --send-rate 0 --log warn --data data",
            ))
            .args(["--jwt-secret", SECRET, "--ports-file", "ports.json"])
            .env_clear()
            .current_dir(dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let ports = loop {
            if let Ok(text) = std::fs::read(&file) {
                break serde_json::from_slice(&text).unwrap();
            }
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(5));
        };
        Self { child, ports, dir }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.dir;
    }
}

/// What a proxy does to one message on its way to a client.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Lose,
    Repeat,
}

/// The first byte of a `ServerFrame` that holds a `message`.
const MESSAGE: u8 = 4 << 3 | 2;
/// The message, of each connection, to which the fault happens.
const FAULTY: u32 = 3;

/// Stands before the server at `to`; frames of its WebSockets arrive whole.
fn proxy(to: String, fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&to).unwrap());
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || pass_on(up.0, up.1));
            std::thread::spawn(move || spoil(server, client, fault));
        }
    });
    address
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    // Ends when either side does.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn spoil(mut from: TcpStream, mut to: TcpStream, fault: Fault) {
    let mut head = [0; 1];
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        if from.read_exact(&mut head).is_err() {
            return;
        }
        seen.push(head[0]);
    }
    to.write_all(&seen).unwrap();
    let mut messages = 0;
    loop {
        let mut frame = vec![0; 2];
        if from.read_exact(&mut frame).is_err() {
            let _ = to.shutdown(std::net::Shutdown::Both);
            return;
        }
        let mut length = usize::from(frame[1]);
        if length == 126 {
            frame.resize(4, 0);
            from.read_exact(&mut frame[2..]).unwrap();
            length = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
        }
        assert!(length < 1 << 16, "no frame is as long in these tests");
        let body = frame.len();
        frame.resize(body + length, 0);
        from.read_exact(&mut frame[body..]).unwrap();
        let is_message = frame.get(body) == Some(&MESSAGE);
        messages += u32::from(is_message);
        let hit = is_message && messages == FAULTY;
        let times = match fault {
            Fault::Lose if hit => 0,
            Fault::Repeat if hit => 2,
            _ => 1,
        };
        for _ in 0..times {
            if to.write_all(&frame).is_err() {
                return;
            }
        }
    }
}

fn through_a_proxy(scenario: &str, fault: Fault) -> Value {
    let server = Server::start();
    let address = |name: &str| server.ports[name].as_str().unwrap().to_owned();
    let ws = proxy(address("ws"), fault);
    let http = address("http");
    let (run, _) = bench(&format!(
        "{scenario} --ws {ws} --http {http} --secret '{SECRET}'"
    ));
    run
}

#[test]
fn a_message_that_is_lost_or_comes_twice_on_the_way_is_told() {
    let chat = "chat -n 4 --rate 40 --warmup 0s --duration 1s";
    let run = through_a_proxy(chat, Fault::None);
    assert_eq!(run["problems"], serde_json::json!([]));
    for (fault, word) in [
        (Fault::Lose, "before the ones below it"),
        (Fault::Repeat, "twice"),
    ] {
        let run = through_a_proxy(chat, fault);
        assert!(metric(&run, "wrong_deliveries") >= 4.0);
        assert!(
            run["problems"].to_string().contains(word),
            "{}",
            run["problems"]
        );
    }
    let fanout = "fanout --members 5 --rate 20/s --warmup 0s --duration 1s";
    assert_eq!(
        through_a_proxy(fanout, Fault::None)["problems"],
        serde_json::json!([])
    );
    let run = through_a_proxy(fanout, Fault::Repeat);
    assert!(metric(&run, "wrong_deliveries") >= 4.0);
}
