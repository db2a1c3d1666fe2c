//! A simulated core process: its clocks, its machine, and what a runtime would do with its effects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use crate::ownership::events::MessageIds;
use crate::ownership::held::{BootClock, Held};
use crate::ownership::machine::{Input, Machine, Now};

/// A boot clock that runs at a rate of its own, and stops when its machine is frozen.
pub struct Clock {
    shown_ns: Arc<Shown>,
    /// Parts of a thousand.
    rate: u64,
    from_ns: u64,
    at_ns: u64,
    pub frozen: bool,
    /// The wall clock is off by this.
    pub wall_off_ms: i64,
}

#[derive(Debug, Default)]
pub struct Shown(AtomicU64);

impl BootClock for Shown {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Clock {
    pub fn new(rate: u64, from_ns: u64) -> Self {
        Self {
            shown_ns: Arc::default(),
            rate,
            from_ns,
            at_ns: 0,
            frozen: false,
            wall_off_ms: 0,
        }
    }

    /// Brings the clock to `now_ns` of true time.
    pub fn advance(&mut self, now_ns: u64) {
        if !self.frozen {
            self.from_ns += (now_ns - self.at_ns) * self.rate / 1_000;
        }
        self.at_ns = now_ns;
        self.shown_ns.0.store(self.from_ns, Ordering::SeqCst);
    }

    pub fn now(&self) -> Now {
        Now {
            boot_ns: self.from_ns,
            wall_ms: self.wall_ms(),
        }
    }

    pub fn wall_ms(&self) -> u64 {
        (1_800_000_000_000 + self.at_ns as i64 / 1_000_000 + self.wall_off_ms) as u64
    }

    /// How long true time takes until the clock shows `at_ns`.
    pub fn until(&self, at_ns: u64) -> u64 {
        at_ns.saturating_sub(self.from_ns).div_ceil(self.rate) * 1_000
    }

    pub fn source(&self) -> Arc<dyn BootClock> {
        self.shown_ns.clone()
    }
}

/// A write of the message path under way.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub partition: u16,
    pub epoch: u64,
    /// Whether the lease was good when it was sent.
    pub held_when_sent: bool,
}

pub struct Node {
    pub address: String,
    pub clock: Clock,
    /// `None`: the process is down.
    pub machine: Option<Machine>,
    pub incarnation: Uuid,
    /// Number of the machine, over all nodes; what is under way for an earlier one is void.
    pub life: u64,
    pub held: Option<Arc<Held>>,
    pub ids: Option<Arc<MessageIds>>,
    pub last_id_ms: u64,
    /// Epochs by partition, whatever the clock says: the flag alone.
    pub flags: BTreeMap<u16, u64>,
    pub reachable: bool,
    /// It does not run (SIGSTOP, or frozen with its clock); what happens meanwhile waits.
    pub paused: bool,
    pub waiting: Vec<Happens>,
    /// It is to stay down after it has drained.
    pub stopping: bool,
    pub wake_at_ns: u64,
    /// It stops for so long when it has sent its next renewal.
    pub stall: Option<u64>,
}

/// What can happen to a process.
#[derive(Clone, Debug)]
pub enum Happens {
    Input(Input),
    Wake,
    Writes,
    Written(Write),
    /// The own row was read at quorum after a write returned, to see whether it may be committed.
    Verified {
        write: Write,
        begun_ns: u64,
        alive: bool,
    },
}

impl Node {
    pub fn new(n: usize, rate: u64, from_ns: u64) -> Self {
        Self {
            address: format!("http://10.0.0.{n}:7420"),
            clock: Clock::new(rate, from_ns),
            machine: None,
            incarnation: Uuid::nil(),
            life: 0,
            held: None,
            ids: None,
            last_id_ms: 0,
            flags: BTreeMap::new(),
            reachable: true,
            paused: false,
            waiting: Vec::new(),
            stopping: false,
            wake_at_ns: u64::MAX,
            stall: None,
        }
    }

    /// The process is gone, with all that it knew.
    pub fn die(&mut self) {
        self.machine = None;
        self.held = None;
        self.ids = None;
        self.flags.clear();
        self.waiting.clear();
        self.paused = false;
        self.clock.frozen = false;
    }
}
