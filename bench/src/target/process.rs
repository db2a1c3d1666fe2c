//! A server process of our own: started on free ports with a data directory of its own, waited for,
//! and ended with the run, whatever happens to the run.

use std::collections::BTreeMap;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::BenchError;

use super::under;

/// A process that ends with this value.
pub struct Spawned {
    child: Child,
    ports: BTreeMap<String, String>,
    /// Removed with its contents when the process is gone.
    _dir: tempfile::TempDir,
}

const READY_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
const ANY: &str = "127.0.0.1:0";
/// Connects of an address are limited as on a public listener, except for the generator, of which a
/// few addresses stand for all clients, like a load balancer's.
const CONNECTS: [&str; 4] = [
    "--connect-rate",
    "100",
    "--connect-rate-exempt",
    "127.0.0.0/8,::1",
];

impl Spawned {
    /// Both tiers in one process.
    pub fn serve(secret: &str, more: &[String]) -> Result<Self, BenchError> {
        let listeners = ["--ws", "--tcp", "--http", "--admin"];
        let limits = [&CONNECTS[..], &["--send-rate", "0"]].concat();
        Self::start("serve", secret, &listeners, &limits, more)
    }

    /// A core alone.
    pub fn core(secret: &str, more: &[String]) -> Result<Self, BenchError> {
        let listeners = ["--http", "--grpc", "--admin"];
        Self::start("core", secret, &listeners, &["--send-rate", "0"], more)
    }

    /// An edge of the core at `grpc`.
    pub fn edge(secret: &str, grpc: &str, more: &[String]) -> Result<Self, BenchError> {
        let core = format!("http://{grpc}");
        let listeners = ["--ws", "--tcp", "--admin"];
        let limits = [&CONNECTS[..], &["--send-rate", "0", "--core", &core]].concat();
        Self::start("edge", secret, &listeners, &limits, more)
    }

    fn start(
        role: &str,
        secret: &str,
        listeners: &[&str],
        limits: &[&str],
        more: &[String],
    ) -> Result<Self, BenchError> {
        let dir = tempfile::tempdir()?;
        let ports_file = under(dir.path(), "ports.json");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role);
        for listener in listeners {
            command.args([listener, ANY]);
        }
        if role != "edge" {
            command.args(["--data", &under(dir.path(), "data")]);
        }
        let child = command
            .args(["--jwt-secret", secret, "--ports-file", &ports_file])
            .args(limits)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut spawned = Self {
            child,
            ports: BTreeMap::new(),
            _dir: dir,
        };
        spawned.wait_ready(role, &ports_file)?;
        Ok(spawned)
    }

    fn wait_ready(&mut self, role: &str, ports_file: &str) -> Result<(), BenchError> {
        let deadline = Instant::now() + READY_MAX;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                let message = format!("{role} ended at once: {status}; its log is above");
                return Err(BenchError::Server(message));
            }
            if let Ok(text) = std::fs::read(ports_file) {
                self.ports = serde_json::from_slice(&text)
                    .map_err(|e| BenchError::Server(format!("its ports file: {e}")))?;
                let ready = format!("http://{}/readyz", self.port("admin")?);
                if ureq::get(ready).call().is_ok() {
                    return Ok(());
                }
            }
            std::thread::sleep(POLL);
        }
        let seconds = READY_MAX.as_secs();
        let message = format!("{role} was not ready within {seconds} s; its log is above");
        Err(BenchError::Server(message))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn port(&self, listener: &str) -> Result<&str, BenchError> {
        self.ports
            .get(listener)
            .map(String::as_str)
            .ok_or_else(|| BenchError::Server(format!("no listener {listener}")))
    }

    /// Sends it a signal by its name without `SIG`.
    pub fn signal(&self, name: &str) -> Result<(), BenchError> {
        let pid = self.pid().to_string();
        Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status()?;
        Ok(())
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, BenchError> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    pub fn wait_end(&mut self, patience: Duration) -> Result<(), BenchError> {
        let deadline = Instant::now() + patience;
        while self.ended()?.is_none() {
            if Instant::now() > deadline {
                let message = format!("process {} does not end", self.pid());
                return Err(BenchError::Server(message));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Ends it with SIGINT: at once, as the clients are gone already.
    pub fn stop(mut self) -> Result<(), BenchError> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        self.signal("INT")?;
        self.wait_end(STOP_MAX)
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // After a failed run; a server that has ended is not there to be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
