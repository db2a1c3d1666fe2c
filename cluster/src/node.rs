//! What every server of the rig can do, whatever it is. `cassandra`, `redis`, `kafka` and `platform` say
//! how theirs is started and asked whether it is ready.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::ClusterError;
use crate::process::{Launch, Lifetime, Process, State, log_path, log_tail};

/// How long a server may take to end after SIGTERM: Cassandra flushes everything first.
const STOP_MS: u64 = 60_000;
/// A killed process is gone as soon as the kernel has freed its memory.
const KILL_MS: u64 = 30_000;
/// How often a starting server is asked.
const ASK_MS: u64 = 100;

/// A server's process and how it is started again.
#[derive(Debug)]
pub struct Server {
    launch: Launch,
    process: Option<Process>,
}

impl Server {
    /// Starts it. It is not ready yet.
    pub fn start(launch: Launch) -> Result<Self, ClusterError> {
        let mut server = Self {
            launch,
            process: None,
        };
        server.start_again()?;
        Ok(server)
    }

    fn start_again(&mut self) -> Result<(), ClusterError> {
        if let Some(running) = Process::find(&self.launch.dir) {
            return Err(ClusterError::Usage(format!(
                "{} runs already as process {}: stop it first",
                self.launch.name,
                running.pid()
            )));
        }
        self.process = Some(Process::spawn(&self.launch)?);
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.launch.name
    }

    pub fn dir(&self) -> &Path {
        &self.launch.dir
    }

    pub fn state(&self) -> State {
        self.process.as_ref().map_or(State::Ended, Process::state)
    }

    fn signal(&self, signal: Signal) -> Result<(), ClusterError> {
        match &self.process {
            Some(process) => process.signal(signal),
            None => Ok(()),
        }
    }

    fn until_ended(&mut self, patience: Duration) -> Result<(), ClusterError> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        if !process.wait_ended(patience) {
            return Err(ClusterError::Stuck {
                name: self.launch.name.clone(),
                pid: process.pid(),
                waited: patience,
            });
        }
        self.process = None;
        Ok(())
    }

    /// Asks until `is_ready` says so; `is_ready` tells what is still missing.
    pub fn wait_until(
        &self,
        patience: Duration,
        mut is_ready: impl FnMut() -> Result<(), String>,
    ) -> Result<(), ClusterError> {
        let begun = Instant::now();
        loop {
            let doing = match is_ready() {
                Ok(()) => return Ok(()),
                Err(doing) => doing,
            };
            let (name, log) = (self.launch.name.clone(), log_path(&self.launch.dir));
            let tail = || log_tail(&self.launch.dir);
            if self.state() == State::Ended {
                return Err(ClusterError::Died {
                    name,
                    log,
                    tail: tail(),
                });
            }
            if begun.elapsed() >= patience {
                return Err(ClusterError::NotReady {
                    name,
                    waited: patience,
                    doing,
                    log,
                    tail: tail(),
                });
            }
            std::thread::sleep(Duration::from_millis(ASK_MS));
        }
    }
}

impl Drop for Server {
    /// A bound server ends with its owner; the files stay.
    fn drop(&mut self) {
        if self.launch.lifetime == Lifetime::Bound {
            // There is nobody to tell, and the kernel kills it at the latest when this process ends.
            let _ = self.signal(Signal::KILL);
            let _ = self.until_ended(Duration::from_millis(KILL_MS));
        }
    }
}

/// A server's life.
pub trait Node {
    fn server(&self) -> &Server;
    fn server_mut(&mut self) -> &mut Server;

    /// Waits until clients are served.
    fn wait_ready(&self, patience: Duration) -> Result<(), ClusterError>;

    /// A crash: SIGKILL, and nothing is saved.
    fn kill9(&mut self) -> Result<(), ClusterError> {
        self.server().signal(Signal::KILL)?;
        self.server_mut()
            .until_ended(Duration::from_millis(KILL_MS))
    }

    /// Freezes it: its sockets stay open and silent.
    fn pause(&self) -> Result<(), ClusterError> {
        self.server().signal(Signal::STOP)
    }

    /// Ends a pause.
    fn resume(&self) -> Result<(), ClusterError> {
        self.server().signal(Signal::CONT)
    }

    /// An orderly end: SIGTERM, on which Cassandra drains, Redis saves and Kafka closes its logs.
    fn stop(&mut self) -> Result<(), ClusterError> {
        self.server().signal(Signal::TERM)?;
        // Who is paused does not see the request.
        self.resume()?;
        self.server_mut()
            .until_ended(Duration::from_millis(STOP_MS))
    }

    /// Starts it again on the same data after [`kill9`](Self::kill9) or [`stop`](Self::stop); not ready yet.
    fn restart(&mut self) -> Result<(), ClusterError> {
        self.server_mut().start_again()
    }

    fn state(&self) -> State {
        self.server().state()
    }

    fn pid(&self) -> Option<u32> {
        self.server().process.as_ref().map(Process::pid)
    }

    /// Resident memory, bytes.
    fn rss_bytes(&self) -> Option<u64> {
        self.server().process.as_ref()?.rss_bytes()
    }
}
