//! Real `trunkline` processes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Signs the tokens of all test servers.
pub const SECRET: &str = "a secret that only the tests know, of some length";

/// The binary under test: `TRUNKLINE_BIN`, or the one beside the test's own executable.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TRUNKLINE_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test has an executable");
    let path = test
        .ancestors()
        .nth(2)
        .expect("target/PROFILE/deps/TEST")
        .join("trunkline");
    assert!(
        path.exists(),
        "no server at {}: cargo build -p trunkline-cli",
        path.display()
    );
    path
}

/// A process, where it listens, and what is needed to start it again in the same place.
pub struct Server {
    command: &'static str,
    args: Vec<String>,
    dir: tempfile::TempDir,
    child: Option<Child>,
    ports: HashMap<String, String>,
    env: Vec<(String, String)>,
    launcher: Option<PathBuf>,
}

impl Server {
    /// `trunkline serve` on a new data directory.
    pub fn serve(args: &[&str]) -> Self {
        let mut server = Self::serve_unstarted(args);
        server.start();
        server
    }

    /// The same, to be started when its environment is complete.
    pub fn serve_unstarted(args: &[&str]) -> Self {
        Self::new("serve", &["ws", "tcp", "http", "admin"], args)
    }

    /// `trunkline core` on a new data directory.
    pub fn core(args: &[&str]) -> Self {
        let mut core = Self::new("core", &["http", "grpc", "admin"], args);
        core.start();
        core
    }

    /// `trunkline edge` for the core at `core`, an address.
    pub fn edge(core: &str, args: &[&str]) -> Self {
        let url = format!("http://{core}");
        let args: Vec<_> = ["--core", &url]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let mut edge = Self::new("edge", &["ws", "tcp", "admin"], &args);
        edge.start();
        edge
    }

    fn new(command: &'static str, listeners: &[&str], args: &[&str]) -> Self {
        Self {
            command,
            args: args.iter().map(|&a| a.to_owned()).collect(),
            dir: tempfile::tempdir().expect("a temporary directory"),
            child: None,
            ports: listeners
                .iter()
                .map(|&l| (l.to_owned(), "127.0.0.1:0".to_owned()))
                .collect(),
            env: Vec::new(),
            launcher: None,
        }
    }

    /// Starts it (again), on the addresses that it had, and waits until it is ready to be used; an
    /// edge is ready when its core is.
    pub fn start(&mut self) {
        self.spawn();
        self.until_ready();
    }

    fn until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let status = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().expect("a child of ours"));
            assert!(
                status.is_none(),
                "{} ended: {status:?}\n{}",
                self.command,
                self.log()
            );
            if let Ok(text) = std::fs::read(self.ports_file()) {
                self.ports = serde_json::from_slice(&text).expect("the ports file is JSON");
                if self.is_ready() {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!(
            "{} is not ready within {PATIENCE:?}\n{}",
            self.command,
            self.log()
        );
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some(self.spawn_with(&[]));
    }

    /// A new process with further flags, in the same place.
    fn spawn_with(&self, flags: &[&str]) -> Child {
        // It may not have been written in the life before.
        let _ = std::fs::remove_file(self.ports_file());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("a log");
        let mut command = match &self.launcher {
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.arg(binary());
                command
            }
            None => Command::new(binary()),
        };
        command
            .arg(self.command)
            .args(&self.args)
            .args(["--jwt-secret", SECRET]);
        if self.command != "edge" {
            command.arg("--data").arg(self.data());
        }
        for (name, address) in &self.ports {
            command.args([format!("--{name}"), address.clone()]);
        }
        command
            .arg("--ports-file")
            .arg(self.ports_file())
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .args(flags)
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        command.spawn().expect("the server starts")
    }

    /// Starts a process that is to take everything over from this one.
    pub fn spawn_successor(&self) -> Child {
        self.spawn_with(&["--upgrade"])
    }

    /// Waits until `successor` has taken over and is ready; how this process has ended.
    pub fn succeeded_by(&mut self, successor: Child) -> ExitStatus {
        let status = self.wait();
        self.child = Some(successor);
        self.until_ready();
        status
    }

    /// An environment variable for the next start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// A program for the next start that executes the server, given as its arguments.
    pub fn set_launcher(&mut self, launcher: &Path) {
        self.launcher = Some(launcher.to_owned());
    }

    fn ports_file(&self) -> PathBuf {
        self.dir.path().join("ports.json")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Where its data lies.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A directory that lives as long as the server.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All that it has logged, in all its lives.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(self.log_file()) {
            file.read_to_end(&mut text).expect("a readable log");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// `host:port` of one of its listeners.
    pub fn address(&self, listener: &str) -> &str {
        &self.ports[listener]
    }

    pub fn ws_url(&self) -> String {
        format!("ws://{}/v1/connect", self.address("ws"))
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        let child = self.child.as_mut().expect("it was started");
        child.try_wait().expect("a child of ours").is_none()
    }

    pub fn is_ready(&self) -> bool {
        let url = format!("http://{}/readyz", self.address("admin"));
        crate::rest::agent()
            .get(url)
            .call()
            .is_ok_and(|answer| answer.status() == 200)
    }

    /// The sum over all labels of a metric; 0 when it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.address("admin"));
        let text = crate::rest::agent()
            .get(url)
            .call()
            .and_then(|mut answer| answer.body_mut().read_to_string())
            .expect("metrics");
        text.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Private memory in bytes: what the process has written and holds.
    pub fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let kib = status
            .expect("the process's status")
            .lines()
            .find_map(|line| {
                let rest = line.strip_prefix("RssAnon:")?;
                rest.split_whitespace().next()?.parse::<u64>().ok()
            });
        kib.expect("RssAnon in kB") * 1024
    }

    /// A page of the admin address as JSON.
    pub fn admin(&self, path: &str) -> serde_json::Value {
        let url = format!("http://{}{path}", self.address("admin"));
        let text = crate::rest::agent()
            .get(url)
            .call()
            .and_then(|mut answer| answer.body_mut().read_to_string())
            .expect("an admin page");
        serde_json::from_str(&text).expect("JSON")
    }

    /// kill -9, and waits for its end.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("our child can be killed");
        child.wait().expect("our child can be waited for");
    }

    /// Waits until nobody answers on the ports of the process that was killed. The kernel takes a
    /// ring apart after its process has ended; until then the ring's listeners take connections,
    /// and reset them, beside those of a process that was started in the same place meanwhile.
    /// Clients come back from that; a test that looks at one connection has to wait.
    pub fn until_silent(&self) {
        assert!(self.child.is_none(), "it runs");
        let deadline = Instant::now() + PATIENCE;
        for (name, address) in &self.ports {
            while std::net::TcpStream::connect(address).is_ok() {
                assert!(Instant::now() < deadline, "{name} still listens");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Sends a signal by name: TERM, INT, STOP, CONT.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status()
            .expect("kill(1)");
        assert!(status.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let mut child = self.child.take().expect("it runs");
        loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!(
                    "{} did not end within {PATIENCE:?}\n{}",
                    self.command,
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and its orderly end.
    pub fn drain(&mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert_eq!(
            status.code(),
            Some(0),
            "a clean drain ends with 0\n{}",
            self.log()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("-- end of the log of {}:", self.command);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
