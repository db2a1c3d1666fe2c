//! One process: started, found again by its pid file, signalled, waited for. Called by `node`.
//!
//! A pid file holds the number and the start time (field 22 of `/proc/PID/stat`, clock ticks since boot),
//! so that after a reboot or a wrap-around no stranger is signalled.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{ClusterError, Context as _};

const PID_FILE: &str = "pid";
const LOG_FILE: &str = "log";
/// How often a process that should end is looked at.
const LOOK_MS: u64 = 20;
/// How much of a log an error shows.
const TAIL_LINES: usize = 25;

/// Becomes `$1 …` if `$0` is its parent.
const EXEC_IF_CHILD_OF: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;

/// How long a server lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the process that started it: the kernel kills it when that one ends.
    Bound,
    /// Until it is stopped.
    Detached,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// For people: `cassandra-1`.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Its own directory: current directory, pid file, log.
    pub dir: PathBuf,
    pub lifetime: Lifetime,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    /// By SIGSTOP.
    Paused,
    Ended,
}

/// A process that the rig started, now or in an earlier life.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    started_ticks: u64,
    /// Only when this process is its parent, who must collect it.
    child: Option<Child>,
}

impl Process {
    /// Starts it with its output appended to `DIR/log`, and writes `DIR/pid`.
    pub fn spawn(launch: &Launch) -> Result<Self, ClusterError> {
        let failed = |what: &str| format!("{}: {what}", launch.name);
        fs::create_dir_all(&launch.dir).context(|| failed("its directory"))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path(&launch.dir))
            .context(|| failed("its log"))?;
        let log_too = log.try_clone().context(|| failed("its log"))?;
        let mut command = match launch.lifetime {
            Lifetime::Detached => Command::new(&launch.program),
            Lifetime::Bound => {
                // It sets the parent death signal and becomes the program, under the same number. The shell
                // between refuses to go on when the parent was gone before that.
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--", "sh", "-c", EXEC_IF_CHILD_OF]);
                command.arg(std::process::id().to_string());
                command.arg(&launch.program);
                command
            }
        };
        command
            .args(&launch.args)
            .envs(launch.env.iter().map(|(k, v)| (k, v)))
            .current_dir(&launch.dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            // Ctrl-C in the terminal is for whoever asked, who then ends the servers in order.
            .process_group(0);
        let child = spawn_from_lasting_thread(command).context(|| {
            failed(&format!(
                "{} cannot be started",
                command_name(launch).display()
            ))
        })?;
        let pid = child.id();
        let (started_ticks, _) = stat(pid).context(|| failed("it ended at once"))?;
        fs::write(
            launch.dir.join(PID_FILE),
            format!("{pid} {started_ticks}\n"),
        )
        .context(|| failed("its pid file"))?;
        Ok(Self {
            pid,
            started_ticks,
            child: Some(child),
        })
    }

    /// The process that the pid file in `dir` names, if it runs still.
    pub fn find(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(PID_FILE)).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let found = Self {
            pid: pid.parse().ok()?,
            started_ticks: started.parse().ok()?,
            child: None,
        };
        (found.state() != State::Ended).then_some(found)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn state(&self) -> State {
        match stat(self.pid) {
            Ok((ticks, _)) if ticks != self.started_ticks => State::Ended,
            // A zombie has ended; its parent has not looked yet.
            Ok((_, 'Z' | 'X')) | Err(_) => State::Ended,
            Ok((_, 'T')) => State::Paused,
            Ok(_) => State::Running,
        }
    }

    /// Sends a signal to exactly this process. One that has ended is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), ClusterError> {
        if self.state() == State::Ended {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let sent = pid.map_or(Err(rustix::io::Errno::SRCH), |pid| {
            kill_process(pid, signal)
        });
        match sent {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other.context(|| format!("signal {signal:?} to process {}", self.pid)),
        }
    }

    /// Waits until it has ended; `false` when it runs on past `patience`.
    pub fn wait_ended(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(child) = &mut self.child {
                // Collects it; whether that worked shows in its state.
                let _ = child.try_wait();
            }
            if self.state() == State::Ended {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(LOOK_MS));
        }
    }

    /// Resident memory, bytes.
    pub fn rss_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    }
}

/// Where a server's output goes.
pub fn log_path(dir: &Path) -> PathBuf {
    dir.join(LOG_FILE)
}

/// The last lines of a server's log, for errors.
pub fn log_tail(dir: &Path) -> String {
    let text = fs::read(log_path(dir)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    lines[first..].join("\n")
}

/// Start time in ticks, and the state's letter.
fn stat(pid: u32) -> io::Result<(u64, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let odd = || io::Error::other("an odd /proc/PID/stat");
    // The name in brackets may hold anything; what follows its last bracket may not.
    let after = text.rsplit_once(") ").ok_or_else(odd)?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let state = fields.first().and_then(|f| f.chars().next());
    let started = fields.get(19).and_then(|f| f.parse().ok());
    state.zip(started).map(|(s, t)| (t, s)).ok_or_else(odd)
}

fn command_name(launch: &Launch) -> PathBuf {
    match launch.lifetime {
        Lifetime::Bound => {
            format!("{} under setpriv (util-linux)", launch.program.display()).into()
        }
        Lifetime::Detached => launch.program.clone(),
    }
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// The parent death signal comes when the *thread* that forked ends, and a test's thread ends before the
/// next test: so one thread that lasts as long as the process forks for all.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    static JOBS: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                // Nobody waits for the answer only if its thread was killed.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (answer, answered) = mpsc::channel();
    {
        let jobs = jobs.lock().map_err(|_| gone())?;
        jobs.send((command, answer)).map_err(|_| gone())?;
    }
    answered.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path, lifetime: Lifetime) -> Launch {
        Launch {
            name: "sleeper".into(),
            program: "sleep".into(),
            args: vec!["600".into()],
            env: Vec::new(),
            dir: dir.to_owned(),
            lifetime,
        }
    }

    #[test]
    fn a_process_is_paused_resumed_found_again_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut ours = Process::spawn(&sleeper(dir.path(), Lifetime::Detached)).unwrap();
        ours.signal(Signal::STOP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while ours.state() != State::Paused && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(ours.state(), State::Paused);
        ours.signal(Signal::CONT).unwrap();
        let found = Process::find(dir.path()).expect("its pid file");
        assert_eq!(found.pid(), ours.pid());
        assert!(found.rss_bytes().unwrap() > 0);
        found.signal(Signal::KILL).unwrap();
        assert!(ours.wait_ended(Duration::from_secs(10)));
        assert!(Process::find(dir.path()).is_none());
    }

    #[test]
    fn a_stranger_who_got_the_number_is_not_signalled() {
        let dir = tempfile::tempdir().unwrap();
        let mut ours = Process::spawn(&sleeper(dir.path(), Lifetime::Bound)).unwrap();
        let stale = Process {
            pid: ours.pid(),
            started_ticks: ours.started_ticks - 1,
            child: None,
        };
        assert_eq!(stale.state(), State::Ended);
        stale.signal(Signal::KILL).unwrap();
        assert!(!ours.wait_ended(Duration::from_millis(200)));
        ours.signal(Signal::KILL).unwrap();
        assert!(ours.wait_ended(Duration::from_secs(10)));
    }

    #[test]
    fn a_bound_process_outlives_the_thread_that_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let launch = sleeper(dir.path(), Lifetime::Bound);
        let mut ours = std::thread::spawn(move || Process::spawn(&launch).unwrap())
            .join()
            .unwrap();
        assert!(!ours.wait_ended(Duration::from_millis(300)));
        ours.signal(Signal::KILL).unwrap();
        assert!(ours.wait_ended(Duration::from_secs(10)));
    }

    /// Names the directory to the process that this test starts to be killed.
    const OWNER_OF: &str = "CLUSTER_TEST_OWNER_OF";

    #[test]
    fn a_bound_process_ends_when_its_owner_is_killed() {
        let patience = Duration::from_secs(30);
        if let Some(dir) = std::env::var_os(OWNER_OF) {
            let _ours = Process::spawn(&sleeper(Path::new(&dir), Lifetime::Bound)).unwrap();
            // Killed long before.
            std::thread::sleep(patience * 4);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let name = "process::tests::a_bound_process_ends_when_its_owner_is_killed";
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(OWNER_OF, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sleeps = || {
            let found = Process::find(dir.path())?;
            let comm = fs::read_to_string(format!("/proc/{}/comm", found.pid())).ok()?;
            (comm.trim() == "sleep").then_some(found)
        };
        let deadline = Instant::now() + patience;
        let mut found = loop {
            if let Some(found) = sleeps() {
                break found;
            }
            assert!(Instant::now() < deadline, "{}", log_tail(dir.path()));
            std::thread::sleep(Duration::from_millis(10));
        };
        owner.kill().unwrap();
        owner.wait().unwrap();
        let has_ended = found.wait_ended(patience);
        // Not to be left behind where this fails.
        found.signal(Signal::KILL).unwrap();
        assert!(has_ended);
    }
}
