//! A fleet of clients: up to millions of real chat sessions, on the product's own ring, in few
//! threads. Scenarios start one, say when how many may dial and what shall happen to them, and give
//! each worker a [`Behaviour`]: what its clients do besides being there.
//!
//! # Layout
//! - [`people`]: who the clients are, all from their numbers
//! - [`sources`]: loopback addresses enough for all of them
//! - [`crowd`]: what each client of a worker is doing
//! - [`worker`]: a worker's loop: its driver's events, its clients' times
//! - [`wire`]: the frames of a client
//! - [`talk`]: clients that talk, and check with their [`ledger`] that they see everything
//! - [`sleeper`]: clients that do not read
//! - [`schedule`]: when things are due
//! - [`tally`]: what was seen
//! - [`again`]: requests that were refused for the moment
//! - [`backoff`]: when a client that lost its connection tries again

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trunkline_proto::client::ServerFrame;

use crate::BenchError;
use crate::args::{FleetArgs, Heartbeat, Transport};
use crate::probe;
use crate::progress::Progress;
use crate::target::Target;

pub mod again;
pub mod backoff;
pub mod crowd;
pub mod ledger;
pub mod people;
pub mod schedule;
pub mod sleeper;
pub mod sources;
pub mod talk;
pub mod tally;
pub mod wire;
mod worker;

pub use backoff::Backoff;
pub use crowd::Crowd;
pub use people::People;
pub use tally::Tally;

use sources::Sources;

/// What the clients of a worker do besides connecting and giving signs of life. All calls come from
/// the worker's thread; what they share with the scenario, they share by themselves.
pub trait Behaviour: Send {
    /// A client's session is up.
    fn up(&mut self, client: u32, crowd: &mut Crowd) {
        let _ = (client, crowd);
    }

    /// A client got a frame other than `connected` and `pong`.
    fn frame(&mut self, client: u32, frame: ServerFrame, crowd: &mut Crowd) {
        let _ = (client, frame, crowd);
    }

    /// A client that was up is so no more.
    fn down(&mut self, client: u32, crowd: &mut Crowd) {
        let _ = (client, crowd);
    }

    /// Do what is due by `now` (ns since the origin); returns how long nothing will be.
    fn tick(&mut self, now: u64, crowd: &mut Crowd) -> Duration {
        let _ = (now, crowd);
        Duration::MAX
    }
}

/// Clients that are there and do nothing.
pub struct Present;

impl Behaviour for Present {}

/// Between the scenario and its workers.
pub struct Shared {
    pub origin: Instant,
    /// Sessions that are up.
    pub up: AtomicU32,
    /// Sessions that came up since the beginning.
    pub sessions: AtomicU64,
    /// Connects that did not become sessions.
    pub failures: AtomicU64,
    /// The first of them, in words.
    first_failure: Mutex<Option<String>>,
}

impl Shared {
    fn new() -> Self {
        Self {
            origin: Instant::now(),
            up: AtomicU32::new(0),
            sessions: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            first_failure: Mutex::new(None),
        }
    }

    /// ns since the origin.
    pub fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    fn failed(&self, what: impl FnOnce() -> String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first_failure.lock() {
            first.get_or_insert_with(what);
        }
    }

    /// What went wrong first while connecting.
    pub fn first_failure(&self) -> Option<String> {
        self.first_failure.lock().ok()?.clone()
    }
}

/// What a scenario tells a worker.
enum Order {
    /// As many of the worker's clients may dial.
    Allow(u32),
    /// All leave and come back, as was due at this moment.
    Leave {
        back_at: u64,
    },
    /// The first so many fall silent.
    Silence(u32),
    /// Hand over the tally and begin another.
    Take(mpsc::Sender<Tally>),
    Stop,
}

/// What one worker is to do.
#[derive(Clone)]
pub(super) struct Plan {
    pub edges: Vec<SocketAddr>,
    /// Clients from this number on begin at the second edge.
    pub second_edge_from: u32,
    pub transport: Transport,
    pub first_client: u32,
    pub count: u32,
    pub connect_inflight: u32,
    /// ns between two connects of this worker; `None`: as fast as they go.
    pub connect_each_ns: Option<f64>,
    pub heartbeat: Heartbeat,
    pub heartbeat_every: Duration,
    pub backoff: Backoff,
    pub sources: Sources,
    pub receive: trunkline_edge::ring::ReceiveMode,
}

/// A running fleet.
pub struct Fleet {
    pub shared: Arc<Shared>,
    pub people: People,
    workers: Vec<Worker>,
    stall_max: Duration,
    count: u32,
}

struct Worker {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<Result<(), BenchError>>,
    count: u32,
}

/// What a scenario wants of its fleet beyond the common flags.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// When clients that were refused or lost their connection try again.
    pub backoff: Backoff,
    /// Clients from this number on begin at the second edge, and have a thread of their own beside
    /// those of the flags: what the others cost the generator does not stand in their latency.
    pub second_edge_from: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            second_edge_from: u32::MAX,
        }
    }
}

/// The clients of each worker: even numbers of those below `apart` for each of `threads`, and one
/// worker for the rest, if there is any.
fn shares(clients: u32, threads: u32, apart: u32) -> Vec<std::ops::Range<u32>> {
    let together = apart.min(clients);
    let share = together.div_ceil(threads.max(1)).next_multiple_of(2).max(2);
    let starts = (0..together).step_by(share as usize);
    let mut all: Vec<_> = starts
        .map(|first| first..together.min(first + share))
        .collect();
    if together < clients {
        all.push(together..clients);
    }
    all
}

/// For an order to reach all workers and the answer to come back.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

impl Fleet {
    /// Users for a fleet against `target`: to be made before it, for groups and behaviours.
    pub fn people(args: &FleetArgs, target: &Target) -> Result<People, BenchError> {
        args.check()?;
        let host = target.addresses(args.transport)?[0].to_string();
        Ok(People::new(args, &target.secret, &host))
    }

    /// Starts the workers; nobody dials before [`Fleet::allow`]. `behaviour` is asked once for each
    /// worker, with the numbers of its clients.
    pub fn start(
        args: &FleetArgs,
        target: &Target,
        people: &People,
        shape: Shape,
        behaviour: &mut dyn FnMut(std::ops::Range<u32>) -> Box<dyn Behaviour>,
    ) -> Result<Self, BenchError> {
        args.check()?;
        let edges = target.addresses(args.transport)?;
        let ports = probe::port_range()
            .ok_or_else(|| BenchError::Usage("cannot read ip_local_port_range".into()))?;
        let sources = Sources::new(edges[0], args.connections, args.per_source, ports)?;
        let shared = Arc::new(Shared::new());
        let mut workers = Vec::new();
        for numbers in shares(args.connections, args.threads, shape.second_edge_from) {
            let (first, count) = (numbers.start, numbers.end - numbers.start);
            let part = f64::from(count) / f64::from(args.connections);
            let plan = Plan {
                edges: edges.clone(),
                second_edge_from: shape.second_edge_from,
                transport: args.transport,
                first_client: first,
                count,
                connect_inflight: (args.connect_inflight / args.threads).max(1),
                connect_each_ns: args.ramp.map(|rate| 1e9 / (rate * part)),
                heartbeat: args.heartbeat,
                heartbeat_every: args.heartbeat_every,
                backoff: shape.backoff,
                sources,
                receive: args.recv.mode(),
            };
            let (orders, inbox) = mpsc::channel();
            let does = behaviour(first..first + count);
            let (people, shared) = (people.clone(), Arc::clone(&shared));
            let thread = std::thread::Builder::new()
                .name(format!("fleet-{}", workers.len()))
                .spawn(move || worker::run(plan, people, shared, does, &inbox))?;
            workers.push(Worker {
                orders,
                thread,
                count,
            });
        }
        Ok(Self {
            shared,
            people: people.clone(),
            workers,
            stall_max: args.stall_max,
            count: args.connections,
        })
    }

    /// Clients in all.
    pub fn len(&self) -> u32 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sessions that are up.
    pub fn up(&self) -> u32 {
        self.shared.up.load(Ordering::Relaxed)
    }

    /// Lets about `total` clients dial, each worker its share; returns how many these are.
    pub fn allow(&self, total: u32) -> Result<u32, BenchError> {
        let mut allowed = 0;
        for worker in &self.workers {
            let part = u64::from(total) * u64::from(worker.count);
            let share = part.div_ceil(u64::from(self.count.max(1))) as u32;
            let share = share.min(worker.count);
            self.order(worker, Order::Allow(share))?;
            allowed += share;
        }
        Ok(allowed)
    }

    /// Has all clients leave, and come back at once.
    pub fn leave(&self) -> Result<(), BenchError> {
        let back_at = self.shared.now();
        for worker in &self.workers {
            self.order(worker, Order::Leave { back_at })?;
        }
        Ok(())
    }

    /// Has the first `clients` of a fleet with one worker fall silent: no FIN, no sign of life.
    pub fn silence(&self, clients: u32) -> Result<(), BenchError> {
        for worker in self.workers.iter().take(1) {
            self.order(worker, Order::Silence(clients))?;
        }
        Ok(())
    }

    /// What all workers saw since the last call.
    pub fn take(&self) -> Result<Tally, BenchError> {
        let (sender, tallies) = mpsc::channel();
        for worker in &self.workers {
            self.order(worker, Order::Take(sender.clone()))?;
        }
        drop(sender);
        let mut all = Tally::default();
        for _ in &self.workers {
            let tally = tallies.recv_timeout(ANSWER_MAX).map_err(|_| self.dead())?;
            all.add(&tally)?;
        }
        Ok(all)
    }

    fn order(&self, worker: &Worker, order: Order) -> Result<(), BenchError> {
        worker.orders.send(order).map_err(|_| self.dead())
    }

    fn dead(&self) -> BenchError {
        let why = self.shared.first_failure();
        let why = why.unwrap_or_else(|| "its error follows when the run ends".to_owned());
        BenchError::Server(format!("a generator thread ended: {why}"))
    }

    /// Generator threads.
    pub fn workers(&self) -> u32 {
        self.workers.len() as u32
    }

    /// Waits until `done` says so. It is asked some hundred times a second, at most `patience`.
    /// Whether it was so in time.
    pub fn wait_until(
        &self,
        patience: Duration,
        mut done: impl FnMut() -> bool,
    ) -> Result<bool, BenchError> {
        let deadline = Instant::now() + patience;
        while !done() {
            if self.workers.iter().any(|w| w.thread.is_finished()) {
                return Err(self.dead());
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
        Ok(true)
    }

    /// Waits until `wanted` sessions came up since the beginning; fails when none does for long.
    /// `watch` is called in between, with the number so far.
    pub fn wait_sessions(
        &self,
        wanted: u64,
        progress: &dyn Progress,
        watch: &mut dyn FnMut(u64),
    ) -> Result<(), BenchError> {
        let began = Instant::now();
        let (mut last, mut last_change) = (0, began);
        loop {
            let sessions = self.shared.sessions.load(Ordering::Relaxed);
            watch(sessions);
            if sessions >= wanted {
                return Ok(());
            }
            if sessions != last {
                (last, last_change) = (sessions, Instant::now());
                let failures = self.shared.failures.load(Ordering::Relaxed);
                let note = match failures {
                    0 => "sessions".to_owned(),
                    n => format!("sessions, after {n} failures"),
                };
                progress.at(sessions, &note);
            }
            let dead = self.workers.iter().any(|w| w.thread.is_finished());
            if dead || last_change.elapsed() > self.stall_max {
                return Err(BenchError::Connect {
                    connected: u32::try_from(sessions).unwrap_or(u32::MAX),
                    wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
                    seconds: began.elapsed().as_secs(),
                    failure: self
                        .shared
                        .first_failure()
                        .unwrap_or_else(|| "no answer".to_owned()),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends the workers; their connections go with them.
    pub fn stop(self) -> Result<(), BenchError> {
        for worker in &self.workers {
            // One that has ended tells why when it is joined.
            let _ = worker.orders.send(Order::Stop);
        }
        for worker in self.workers {
            let ended = worker.thread.join();
            ended.map_err(|_| BenchError::Server("a generator thread panicked".into()))??;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_the_second_edge_have_a_worker_of_their_own() {
        assert_eq!(
            shares(65_200, 2, 65_000),
            [0..32_500, 32_500..65_000, 65_000..65_200]
        );
        assert_eq!(shares(9, 2, u32::MAX), [0..6, 6..9]);
        assert_eq!(shares(3, 4, u32::MAX), [0..2, 2..3]);
        assert_eq!(shares(5, 1, 0), vec![0..5; 1]);
    }
}
