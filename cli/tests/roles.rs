//! The roles as processes, with the real client: chat through `serve` and through `edge` and
//! `core`, signals and exit codes, the ports file, what survives a restart.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use trunkline_client::{
    Client, ClientConfig, Encoding, Event, Events, Outgoing, TokenProvider, Transport,
};

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "a secret that is long enough to be one";
const ANY: &str = "127.0.0.1:0";

struct Process {
    child: Child,
    ports: HashMap<String, String>,
    log: PathBuf,
}

impl Process {
    /// Starts it in `dir`; it has written its ports file when this returns.
    fn start(dir: &Path, name: &str, args: &[&str]) -> Self {
        let (ports, log) = (
            dir.join(format!("{name}.json")),
            dir.join(format!("{name}.log")),
        );
        let _ = std::fs::remove_file(&ports);
        let mut child = Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(args)
            .arg("--ports-file")
            .arg(&ports)
            .env_clear()
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.join(format!("{name}.out"))).unwrap())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let text = eventually(name, || {
            let ended = child.try_wait().unwrap();
            let tell = || std::fs::read_to_string(&log).unwrap();
            assert!(ended.is_none(), "{name} ended with {ended:?}: {}", tell());
            std::fs::read(&ports).ok()
        });
        let ports = serde_json::from_slice(&text).unwrap();
        Self { child, ports, log }
    }

    fn serve(dir: &Path, args: &[&str]) -> Self {
        let any = [
            "serve", "--ws", ANY, "--tcp", ANY, "--http", ANY, "--admin", ANY,
        ];
        Self::start(dir, "serve", &[&any[..], args].concat())
    }

    fn get(&self, listener: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.ports[listener]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    fn ready(&self) {
        eventually("readiness", || {
            (self.get("admin", "/readyz").0 == 200).then_some(())
        });
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([name, &pid]).status();
        assert!(status.unwrap().success());
    }

    fn end(&mut self) -> Option<i32> {
        let log = self.log.clone();
        let child = &mut self.child;
        let tell = || std::fs::read_to_string(&log).unwrap();
        let status = eventually(&format!("its end: {}", tell()), || {
            child.try_wait().unwrap()
        });
        status.code()
    }

    fn transports(&self) -> [Transport; 3] {
        let ws = |encoding| Transport::WebSocket {
            url: format!("ws://{}", self.ports["ws"]),
            encoding,
        };
        let address = self.ports["tcp"].clone();
        [
            ws(Encoding::Json),
            ws(Encoding::Protobuf),
            Transport::Tcp { address },
        ]
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn token(user: &str) -> TokenProvider {
    TokenProvider::fixed(trunkline_identity::mint(
        SECRET,
        user,
        Duration::from_secs(600),
    ))
}

fn connect(transport: Transport, user: &str) -> (Client, Events) {
    let mut config = ClientConfig::new(transport, "test", token(user));
    config.backoff_base = Duration::from_millis(10);
    config.backoff_max = Duration::from_millis(100);
    Client::connect(config).unwrap()
}

async fn until<T>(events: &mut Events, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    let waiting = async {
        loop {
            let event = events.recv().await.expect("the client has given up");
            if let Some(found) = pick(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("in time")
}

async fn message(events: &mut Events) -> String {
    until(events, |e| match e {
        Event::Message(m) => Some(m.content),
        _ => None,
    })
    .await
}

/// Chats over every pair of transports of `edge`.
async fn chat(edge: &Process) {
    for (n, transport) in edge.transports().into_iter().enumerate() {
        let (alice_id, bob_id) = (format!("alice{n}"), format!("bob{n}"));
        let (alice, mut alice_events) = connect(transport.clone(), &alice_id);
        let (bob, mut bob_events) = connect(transport, &bob_id);
        until(&mut bob_events, |e| {
            matches!(e, Event::Synced).then_some(())
        })
        .await;
        for i in 1..=30_u64 {
            let send = alice.send(Outgoing::to_user(&bob_id, i.to_string()));
            let ack = tokio::time::timeout(PATIENCE, send).await.unwrap().unwrap();
            assert_eq!(ack.seq, i);
        }
        for i in 1..=30 {
            assert_eq!(message(&mut bob_events).await, i.to_string());
        }
        let ack = bob
            .send(Outgoing::to_user(&alice_id, "back"))
            .await
            .unwrap();
        assert_eq!(message(&mut alice_events).await, "back");
        alice
            .mark_read(&ack.conversation_id, ack.seq)
            .await
            .unwrap();
        until(&mut bob_events, |e| match e {
            Event::Receipt(r) => (r.status == "read" && r.user_id == alice_id).then_some(()),
            _ => None,
        })
        .await;
        let page = bob
            .history(&ack.conversation_id, None, None, None)
            .await
            .unwrap();
        assert_eq!((page.messages.len(), page.head_seq), (31, 31));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_chat_through_serve_and_a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut serve = Process::serve(dir.path(), &["--jwt-secret", SECRET]);
    serve.ready();
    chat(&serve).await;
    let banner = std::fs::read_to_string(dir.path().join("serve.out")).unwrap();
    assert!(
        banner.contains(&format!("http://{}/", serve.ports["http"])),
        "{banner}"
    );
    assert_eq!(serve.get("http", "/").0, 200, "the page");
    assert_eq!(
        serve.get("http", "/v1/dev/token?user=a").0,
        404,
        "no development tokens"
    );
    let (_, metrics) = serve.get("admin", "/metrics");
    for tier in ["trunkline_edge_", "trunkline_core_"] {
        assert!(metrics.contains(tier), "{tier}");
    }
    serve.signal("-TERM");
    assert_eq!(serve.end(), Some(0), "a clean drain");
    drop(serve);

    // On the same data: clients that were away get what they missed.
    let mut serve = Process::serve(dir.path(), &["--jwt-secret", SECRET]);
    serve.ready();
    let [json, ..] = serve.transports();
    let (alice, _events) = connect(json.clone(), "alice0");
    let ack = alice
        .send(Outgoing::to_user("bob0", "again"))
        .await
        .unwrap();
    assert_eq!(ack.seq, 32);
    let (_bob, mut bob_events) = connect(json, "bob0");
    // His own last message, too: no device of his has said that it was delivered.
    assert_eq!(message(&mut bob_events).await, "back");
    assert_eq!(message(&mut bob_events).await, "again");
    // A client that stays holds the drain up; a second signal does not wait for it.
    serve.signal("-INT");
    assert_eq!(serve.end(), Some(130), "SIGINT stops at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_sends_clients_elsewhere_and_a_second_signal_cuts_it_short() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--jwt-secret", SECRET, "--drain-budget", "20s"];
    let mut serve = Process::serve(dir.path(), &args);
    serve.ready();
    let [_, proto, _] = serve.transports();
    let (_alice, mut events) = connect(proto, "alice");
    until(&mut events, |e| matches!(e, Event::Synced).then_some(())).await;
    // Speaks the protocol badly: connects and never leaves.
    let mut stubborn = TcpStream::connect(&serve.ports["tcp"]).unwrap();
    serve.signal("-TERM");
    let reason = until(&mut events, |e| match e {
        Event::Disconnected { reason, .. } => Some(reason.to_string()),
        _ => None,
    })
    .await;
    assert!(
        reason.contains("reconnect") || reason.contains("1001"),
        "{reason}"
    );
    if serve.child.try_wait().unwrap().is_none() {
        serve.signal("-TERM");
    }
    let code = serve.end();
    assert!(matches!(code, Some(0 | 143)), "{code:?}");
    let mut rest = Vec::new();
    stubborn.set_read_timeout(Some(PATIENCE)).unwrap();
    // Whether by FIN or by reset: it is closed.
    let _ = stubborn.read_to_end(&mut rest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_chat_through_an_edge_and_a_core_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let any = ["--http", ANY, "--grpc", ANY, "--admin", ANY];
    let core = [&["core", "--jwt-secret", SECRET][..], &any].concat();
    let mut core = Process::start(dir.path(), "core", &core);
    core.ready();
    let url = format!("http://{}", core.ports["grpc"]);
    let edge = |name: &str| {
        let any = ["--ws", ANY, "--tcp", ANY, "--admin", ANY];
        let args = [&["edge", "--jwt-secret", SECRET, "--core", &url][..], &any].concat();
        let edge = Process::start(dir.path(), name, &args);
        edge.ready();
        edge
    };
    let mut edges = [edge("edge1"), edge("edge2")];
    chat(&edges[0]).await;
    // Across edges.
    let (alice, _events) = connect(edges[0].transports()[0].clone(), "alice");
    let (_bob, mut bob_events) = connect(edges[1].transports()[2].clone(), "bob");
    until(&mut bob_events, |e| {
        matches!(e, Event::Synced).then_some(())
    })
    .await;
    alice
        .send(Outgoing::to_user("bob", "over there"))
        .await
        .unwrap();
    assert_eq!(message(&mut bob_events).await, "over there");
    alice.close().await;
    _bob.close().await;
    for process in edges.iter_mut().chain([&mut core]) {
        process.signal("-TERM");
        assert_eq!(process.end(), Some(0));
    }
}

#[test]
fn an_edge_can_echo_without_a_core() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["edge", "--echo", "--ws", ANY, "--tcp", ANY, "--admin", ANY];
    let mut echo = Process::start(dir.path(), "echo", &args);
    echo.ready();
    let mut stream = TcpStream::connect(&echo.ports["tcp"]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
    drop(stream);
    echo.signal("-TERM");
    assert_eq!(echo.end(), Some(0));
}

#[test]
fn an_echo_server_that_cannot_hold_its_sockets_says_so_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    // More slots in one ring than any file limit allows.
    let args = [
        "edge",
        "--echo",
        "--ws",
        ANY,
        "--tcp",
        ANY,
        "--admin",
        ANY,
        "--io-driver",
        "uring",
        "--connections-max",
        "16000000",
        "--rings-per-shard",
        "1",
        "--shards",
        "1",
    ];
    let run = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .args(args)
        .args(["--ports-file", "ports.json"])
        .env_clear()
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(!run.stderr.is_empty());
    assert!(!dir.path().join("ports.json").exists());
}

#[test]
fn serve_without_settings_lets_developers_in_and_only_them() {
    let dir = tempfile::tempdir().unwrap();
    let serve = Process::serve(dir.path(), &[]);
    serve.ready();
    let (status, body) = serve.get("http", "/v1/dev/token?user=alice");
    assert_eq!(status, 200, "{body}");
    // The command line finds the same secret, in ./data.
    let token = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .args(["token", "--user", "alice"])
        .env_clear()
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(token.status.success());
    let secret = std::fs::read_to_string(dir.path().join("data/jwt-secret")).unwrap();
    let verifier = trunkline_identity::Verifier::new(&trunkline_identity::KeySource::Secret(
        secret.trim().to_owned(),
    ));
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    for text in [
        body["token"].as_str().unwrap(),
        &String::from_utf8(token.stdout).unwrap(),
    ] {
        assert_eq!(verifier.verify(text.trim(), 0).unwrap().user, "alice");
    }
}

#[test]
fn a_taken_port_is_told_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind(ANY).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = [
        "serve", "--http", &address, "--ws", ANY, "--tcp", ANY, "--admin", ANY,
    ];
    let run = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .args(args)
        .args(["--ports-file", "ports.json"])
        .env_clear()
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8(run.stderr).unwrap().contains(&address));
    assert!(!dir.path().join("ports.json").exists());
}
