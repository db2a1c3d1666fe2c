//! The seccomp profile that we ship, in force: the server chats under it with io_uring, falls back to
//! epoll where the three calls of io_uring are taken out of it, and what is not on it is refused.
//!
//! The JSON is the one for container runtimes. Here it is compiled to the kernel's filter and put on
//! a thread, from which the server inherits it.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde_json::{Value, json};
use trunkline_client::{
    Client, ClientConfig, Encoding, Event, Events, Outgoing, TokenProvider, Transport,
};

const BINARY: &str = env!("CARGO_BIN_EXE_trunkline");
const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "a secret that is long enough to be one";
const ANY: &str = "127.0.0.1:0";
const RING_CALLS: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

/// The profile as it comes out of the binary.
fn shipped() -> Value {
    let output = Command::new(BINARY)
        .args(["doctor", "print", "seccomp"])
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The shipped profile without some of its calls.
fn without(calls: &[&str]) -> Value {
    let mut profile = shipped();
    for rule in profile["syscalls"].as_array_mut().unwrap() {
        let names = rule["names"].as_array_mut().unwrap();
        names.retain(|name| !calls.contains(&name.as_str().unwrap()));
    }
    profile
}

fn compile(filter: &Value) -> Option<BpfProgram> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().unwrap();
    let text = json!({ "main": filter }).to_string();
    let mut programs = compile_from_json(text.as_bytes(), arch).ok()?;
    programs.remove("main")
}

/// Condition of an argument, from the runtimes' form to the compiler's.
fn condition(arg: &Value) -> Value {
    assert_eq!(arg["op"], "SCMP_CMP_MASKED_EQ", "the only one in use");
    json!({ "index": arg["index"], "type": "dword", "op": { "masked_eq": arg["value"] }, "val": arg["valueTwo"] })
}

/// The profile as filters: one that allows what it allows, and one for each other answer.
fn filters(profile: &Value) -> Vec<BpfProgram> {
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let mut allowed = Vec::new();
    let mut answers = Vec::new();
    for rule in profile["syscalls"].as_array().unwrap() {
        for name in rule["names"].as_array().unwrap() {
            let mut entry = json!({ "syscall": name });
            if let Some(args) = rule["args"].as_array() {
                entry["args"] = args.iter().map(condition).collect();
            }
            let one = |action: Value, other: Value| json!({ "mismatch_action": other, "match_action": action, "filter": [entry] });
            // Names of another architecture, as libseccomp passes over them too.
            if compile(&one("allow".into(), json!({ "errno": 1 }))).is_none() {
                assert!(!RING_CALLS.contains(&name.as_str().unwrap()));
                continue;
            }
            match rule["action"].as_str().unwrap() {
                "SCMP_ACT_ALLOW" => {}
                "SCMP_ACT_ERRNO" => {
                    let filter = one(json!({ "errno": rule["errnoRet"] }), "allow".into());
                    answers.push(compile(&filter).unwrap());
                }
                action => panic!("{action} is not known here"),
            }
            allowed.push(entry);
        }
    }
    let errno = profile["defaultErrnoRet"].clone();
    let filter = json!({ "mismatch_action": { "errno": errno }, "match_action": "allow", "filter": allowed });
    answers.push(compile(&filter).unwrap());
    answers
}

/// Does something under a filter that holds for its thread, and for processes that it starts.
fn under<T: Send>(profile: &Value, work: impl FnOnce() -> T + Send) -> T {
    let filters = filters(profile);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            for filter in &filters {
                apply_filter(filter).unwrap();
            }
            work()
        });
        worker.join().unwrap()
    })
}

struct Server {
    child: Child,
    ports: HashMap<String, String>,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(profile: &Value, role: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = dir.path().join("ports.json");
        let mut command = Command::new(BINARY);
        command
            .args([role, "--jwt-secret", SECRET, "--admin", ANY])
            .args(args)
            .arg("--ports-file")
            .arg(&ports)
            .env_clear()
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(File::create(dir.path().join("out")).unwrap())
            .stderr(File::create(dir.path().join("err")).unwrap());
        let mut child = under(profile, || command.spawn().unwrap());
        let text = eventually("the ports file", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", said(dir.path()));
            std::fs::read(&ports).ok()
        });
        let ports = serde_json::from_slice(&text).unwrap();
        let server = Self { child, ports, dir };
        let path = format!("/proc/{}/status", server.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let filtered = status.lines().any(|l| l == "Seccomp:\t2");
        assert!(filtered, "the filter is inherited: {status}");
        server
    }

    fn serve(profile: &Value) -> Self {
        Self::start(
            profile,
            "serve",
            &["--ws", ANY, "--tcp", ANY, "--http", ANY],
        )
    }

    fn said(&self) -> String {
        said(self.dir.path())
    }

    /// The value of `driver` in the banner.
    fn driver(&self) -> String {
        let said = self.said();
        let line = said.lines().find_map(|l| l.trim().strip_prefix("driver"));
        let driver = line.unwrap_or_else(|| panic!("no driver in {said}"));
        driver.trim().to_owned()
    }

    /// One message over each transport, and back.
    async fn chats(&self) {
        let ws = |encoding| Transport::WebSocket {
            url: format!("ws://{}", self.ports["ws"]),
            encoding,
        };
        let tcp = Transport::Tcp {
            address: self.ports["tcp"].clone(),
        };
        let (bob, mut events) = connect(ws(Encoding::Protobuf), "bob");
        for (n, transport) in [ws(Encoding::Json), tcp].into_iter().enumerate() {
            let (alice, _answers) = connect(transport, &format!("alice{n}"));
            let text = format!("under a filter {n}");
            let chat = async {
                let ack = alice.send(Outgoing::to_user("bob", text.clone())).await;
                assert_eq!(ack.unwrap().seq, 1);
                assert_eq!(message(&mut events).await, text);
                alice.close().await;
            };
            let in_time = tokio::time::timeout(PATIENCE, chat).await;
            in_time.unwrap_or_else(|_| panic!("no delivery: {}", self.said()));
        }
        bob.close().await;
    }

    /// Ends it as an operator does.
    fn drain(mut self) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(status.unwrap().success());
        let status = eventually("its end", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", self.said());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(dir: &Path) -> String {
    let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    text("out") + &text("err")
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

fn connect(transport: Transport, user: &str) -> (Client, Events) {
    let token = trunkline_identity::mint(SECRET, user, Duration::from_secs(600));
    Client::connect(ClientConfig::new(
        transport,
        "test",
        TokenProvider::fixed(token),
    ))
    .unwrap()
}

async fn message(events: &mut Events) -> String {
    loop {
        if let Event::Message(m) = events.recv().await.expect("the client has given up") {
            return m.content;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_chats_with_io_uring_under_the_shipped_profile() {
    let server = Server::serve(&shipped());
    assert_eq!(server.driver(), "uring", "{}", server.said());
    server.chats().await;
    server.drain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_calls_of_io_uring_it_chats_with_epoll() {
    let server = Server::serve(&without(&RING_CALLS));
    assert_eq!(server.driver(), "epoll", "{}", server.said());
    server.chats().await;
    server.drain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_and_a_core_of_their_own_chat_under_the_shipped_profile() {
    let profile = shipped();
    let core = Server::start(&profile, "core", &["--grpc", ANY, "--http", ANY]);
    let url = format!("http://{}", core.ports["grpc"]);
    let edge = Server::start(
        &profile,
        "edge",
        &["--ws", ANY, "--tcp", ANY, "--core", &url],
    );
    assert_eq!(edge.driver(), "uring", "{}", edge.said());
    edge.chats().await;
    edge.drain();
    core.drain();
}

#[test]
fn what_is_not_on_the_profile_is_refused() {
    let names: Vec<String> = shipped()["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|rule| rule["names"].as_array().unwrap())
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    for name in [
        "mount",
        "ptrace",
        "keyctl",
        "bpf",
        "unshare",
        "setns",
        "init_module",
        "userfaultfd",
        "perf_event_open",
        "add_key",
        "reboot",
        "process_vm_writev",
    ] {
        assert!(!names.iter().any(|n| n == name), "{name}");
    }
    let mut unique = names.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), names.len(), "each name stands there once");
    // A process with namespaces of its own, by clone, by clone3, by unshare: numbers of the calls are
    // perl's business, Debian has it always.
    let (clone, clone3) = if cfg!(target_arch = "aarch64") {
        (220, 435)
    } else {
        (56, 435)
    };
    let script = format!(
        "$! = 0; syscall({clone}, 0x10000000 | 17, 0, 0, 0, 0); print $! + 0, \" \";
         $! = 0; syscall({clone3}, 0, 0); print $! + 0"
    );
    let perl = || {
        Command::new("/usr/bin/perl")
            .args(["-e", &script])
            .output()
            .unwrap()
    };
    let output = under(&shipped(), perl);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "1 38",
        "EPERM, ENOSYS"
    );
    let unshare = || {
        Command::new("/usr/bin/unshare")
            .args(["--user", "/bin/true"])
            .output()
            .unwrap()
    };
    let said = String::from_utf8(under(&shipped(), unshare).stderr).unwrap();
    assert!(said.contains("Operation not permitted"), "{said}");
    assert!(unshare().status.success(), "without the filter it may");
}
