//! The server under load: one that runs already, or one of our own that ends with the run. Its
//! tokens, its groups, its CPU time and its memory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use trunkline_identity::{DevSecret, mint};

use crate::BenchError;
use crate::args::ChatArgs;

/// Where the server is and how to speak to it.
pub struct Target {
    pub ws: String,
    pub tcp: String,
    pub http: String,
    pub secret: String,
    pub pids: Vec<u32>,
    spawned: Option<Spawned>,
}

struct Spawned {
    child: Child,
    dir: tempfile::TempDir,
}

#[derive(Deserialize)]
struct Ports {
    ws: String,
    tcp: String,
    http: String,
    admin: String,
}

const READY_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(20);

impl Target {
    /// Finds the server, or starts it.
    pub fn open(args: &ChatArgs) -> Result<Self, BenchError> {
        if args.spawn {
            return Self::spawn(args);
        }
        let secret = match &args.secret {
            Some(secret) => secret.clone(),
            None => DevSecret::load_or_create(&args.data)?,
        };
        Ok(Self {
            ws: args.ws.clone(),
            tcp: args.tcp.clone(),
            http: args.http.clone(),
            secret,
            pids: args.server_pid.clone(),
            spawned: None,
        })
    }

    fn spawn(args: &ChatArgs) -> Result<Self, BenchError> {
        let dir = tempfile::tempdir()?;
        let secret = "of a server that lives as long as one measurement".to_owned();
        let ports_file = dir.path().join("ports.json");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve");
        for listener in ["--ws", "--tcp", "--http", "--admin"] {
            command.args([listener, "127.0.0.1:0"]);
        }
        command
            .args([
                "--jwt-secret",
                &secret,
                "--send-rate",
                "0",
                "--connect-rate",
                "0",
            ])
            .args([Path::new("--data"), &dir.path().join("data")])
            .args([Path::new("--ports-file"), &ports_file])
            .args(args.spawn_args.iter().flat_map(|s| s.split_whitespace()))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn()?;
        let pid = child.id();
        let mut spawned = Spawned { child, dir };
        let ports = spawned.wait_ready(&ports_file)?;
        Ok(Self {
            ws: ports.ws,
            tcp: ports.tcp,
            http: ports.http,
            secret,
            pids: vec![pid],
            spawned: Some(spawned),
        })
    }

    pub fn token(&self, user: &str) -> String {
        mint(&self.secret, user, Duration::from_secs(24 * 3600))
    }

    /// Creates a group; the first member owns it. Returns its conversation id.
    pub fn create_group(&self, title: &str, members: &[String]) -> Result<String, BenchError> {
        #[derive(Deserialize)]
        struct Created {
            conversation_id: String,
        }
        let owner = members
            .first()
            .ok_or_else(|| BenchError::Usage("a group of nobody".into()))?;
        let body = serde_json::json!({"kind": "group", "title": title, "members": members});
        let created: Created = ureq::post(format!("http://{}/v1/conversations", self.http))
            .header("Authorization", format!("Bearer {}", self.token(owner)))
            .send_json(body)
            .and_then(|mut answer| answer.body_mut().read_json())
            .map_err(|e| BenchError::Server(format!("creating a group: {e}")))?;
        Ok(created.conversation_id)
    }

    /// CPU time of all the server's processes so far; `None` if no process is known.
    pub fn cpu(&self) -> Option<Duration> {
        self.pids.iter().map(|&pid| cpu_of(pid)).sum()
    }

    /// Resident memory of all the server's processes in bytes.
    pub fn resident(&self) -> Option<u64> {
        self.pids.iter().map(|&pid| resident_of(pid)).sum()
    }

    /// Ends a server of our own.
    pub fn close(mut self) -> Result<(), BenchError> {
        match self.spawned.take() {
            Some(spawned) => spawned.stop(),
            None => Ok(()),
        }
    }
}

impl Spawned {
    fn wait_ready(&mut self, ports_file: &PathBuf) -> Result<Ports, BenchError> {
        let deadline = Instant::now() + READY_MAX;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Err(BenchError::Server(format!("ended at once: {status}")));
            }
            if let Ok(text) = std::fs::read(ports_file) {
                let ports: Ports = serde_json::from_slice(&text)
                    .map_err(|e| BenchError::Server(format!("its ports file: {e}")))?;
                if ureq::get(format!("http://{}/readyz", ports.admin))
                    .call()
                    .is_ok()
                {
                    return Ok(ports);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(BenchError::Server(format!(
            "not ready within {} s",
            READY_MAX.as_secs()
        )))
    }

    fn stop(mut self) -> Result<(), BenchError> {
        // SIGINT: stop at once, as the clients are gone already.
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status()?;
        let deadline = Instant::now() + STOP_MAX;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(BenchError::Server("did not stop".into()))
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // After a failed run; a server that has ended is not there to be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.dir;
    }
}

/// Clock ticks per second of `/proc/PID/stat`: fixed at 100 on Linux for user space.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a process, from `/proc/PID/stat` (proc(5), fields 14 and 15).
pub fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * 1000 / TICKS_PER_SECOND,
    ))
}

/// Resident set of a process in bytes, from `/proc/PID/status`.
pub fn resident_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}
