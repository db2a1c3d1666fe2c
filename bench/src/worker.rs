//! One generator thread: a driver, its clients, and the schedule of what they send.
//!
//! Invariants: a message carries the time at which it was due, in ns since [`Shared::origin`], in its
//! content and its `client_msg_id`, so that acks and deliveries are timed wherever they arrive;
//! only messages due within the measured window count; nothing that is due is left out because the
//! server is slow. Driven by [`crate::chat`] through [`Shared`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use trunkline_edge::ring::{self, ConnId, Driver, DriverChoice, DriverConfig, Event};
use trunkline_proto::client::{
    ClientBody, ClientFrame, Connect, Heartbeat, SendMessage, ServerBody, ServerFrame,
};

use crate::BenchError;
use crate::args::Transport;
use crate::wire::{self, FromServer, Reader, WireError};

/// What the run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    Connect,
    Idle,
    Load,
    Drain,
    Stop,
}

/// Between the scenario and its workers.
pub struct Shared {
    pub origin: Instant,
    phase: AtomicU8,
    pub connected: AtomicU32,
    /// Connections that each worker may open so far.
    pub dial_max: AtomicU32,
    /// The measured window, ns since `origin`.
    pub window_from: AtomicU64,
    pub window_to: AtomicU64,
    /// Messages sent and neither acked nor refused yet.
    pub outstanding: AtomicU64,
    pub failure: Mutex<Option<String>>,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            phase: AtomicU8::new(Phase::Connect as u8),
            connected: AtomicU32::new(0),
            dial_max: AtomicU32::new(0),
            window_from: AtomicU64::new(u64::MAX),
            window_to: AtomicU64::new(u64::MAX),
            outstanding: AtomicU64::new(0),
            failure: Mutex::new(None),
        }
    }

    pub fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Connect,
            1 => Phase::Idle,
            2 => Phase::Load,
            3 => Phase::Drain,
            _ => Phase::Stop,
        }
    }

    fn fail(&self, what: String) {
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(what);
        }
    }

    fn in_window(&self, ns: u64) -> bool {
        ns >= self.window_from.load(Ordering::Relaxed)
            && ns < self.window_to.load(Ordering::Relaxed)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// What one worker is to do.
pub struct Plan {
    pub server: SocketAddr,
    pub transport: Transport,
    pub first_client: u32,
    pub clients: Vec<ClientPlan>,
    pub connect_inflight: u32,
    /// Messages per second of this worker; `None`: closed loop.
    pub rate: Option<f64>,
    /// Closed loop: messages that each sender keeps under way.
    pub inflight: u32,
    pub payload: usize,
    pub group_share: f64,
}

/// One client.
pub struct ClientPlan {
    pub user: String,
    pub token: String,
    /// Direct messages go here.
    pub partner: String,
    pub direct_id: String,
    /// Indexes into `group_ids` of the groups that it is in.
    pub groups: Vec<String>,
    pub sends: bool,
}

/// What a worker saw in the measured window.
#[derive(Debug)]
pub struct Tally {
    pub sent: u64,
    /// Acks and deliveries that arrived within the window.
    pub acked: u64,
    pub delivered: u64,
    /// By code, over the whole run.
    pub errors: BTreeMap<String, u64>,
    /// Connections that ended before they should, over the whole run.
    pub disconnects: u64,
    /// Messages that were due and did not fit into the generator's own buffer.
    pub not_sent: u64,
    pub ack: Histogram<u64>,
    pub delivery: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        // ns, three digits, auto-sized: cannot fail with these constants.
        let histogram =
            || Histogram::new(3).unwrap_or_else(|_| unreachable!("3 is a valid precision"));
        Self {
            sent: 0,
            acked: 0,
            delivered: 0,
            errors: BTreeMap::new(),
            disconnects: 0,
            not_sent: 0,
            ack: histogram(),
            delivery: histogram(),
        }
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) -> Result<(), String> {
        self.sent += other.sent;
        self.acked += other.acked;
        self.delivered += other.delivered;
        self.disconnects += other.disconnects;
        self.not_sent += other.not_sent;
        for (code, n) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += n;
        }
        self.ack.add(&other.ack).map_err(|e| e.to_string())?;
        self.delivery
            .add(&other.delivery)
            .map_err(|e| e.to_string())
    }
}

/// Bytes that a client may owe its blocked socket before what is due counts as not sent.
const OUT_BYTES_MAX: usize = 1 << 20;
/// Clients send a sign of life this often.
const HEARTBEAT_NS: u64 = 20_000_000_000;
/// The longest wait in a turn: how late a change of phase is seen.
const TURN_MAX: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Client {
    conn: Option<ConnId>,
    reader: Reader,
    out: Vec<u8>,
    blocked: bool,
    dirty: bool,
    connected: bool,
    introduced: bool,
    sent: u32,
}

struct Worker<'a> {
    shared: &'a Shared,
    plan: Plan,
    clients: Vec<Client>,
    /// Client index by driver slot.
    by_slot: Vec<u32>,
    dirty: Vec<u32>,
    /// Closed loop: senders that owe a message.
    owing: Vec<u32>,
    senders: Vec<u32>,
    random: u64,
    tally: Tally,
}

/// Runs until [`Phase::Stop`] and returns what was seen.
pub fn run(plan: Plan, shared: &Shared) -> Result<Tally, BenchError> {
    let config = DriverConfig::for_connections(plan.clients.len() as u32);
    let mut driver = ring::open(DriverChoice::Auto, &config)?;
    let senders = (0..plan.clients.len() as u32)
        .filter(|&i| plan.clients[i as usize].sends)
        .collect();
    let mut worker = Worker {
        shared,
        clients: plan.clients.iter().map(|_| Client::default()).collect(),
        by_slot: vec![u32::MAX; driver.slots_max() as usize],
        dirty: Vec::new(),
        owing: Vec::new(),
        senders,
        random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(plan.first_client),
        tally: Tally::new(),
        plan,
    };
    worker.run(&mut *driver)?;
    Ok(worker.tally)
}

impl Worker<'_> {
    fn run(&mut self, driver: &mut dyn Driver) -> Result<(), BenchError> {
        let mut dialled = 0;
        let mut under_way = 0u32;
        let mut schedule = Schedule::default();
        let mut heartbeat = Schedule::default();
        loop {
            let phase = self.shared.phase();
            let now = self.shared.now();
            let mut wait = TURN_MAX;
            match phase {
                Phase::Connect => {
                    let budget = self.plan.connect_inflight.saturating_sub(under_way);
                    let allowed = self.shared.dial_max.load(Ordering::Relaxed) as usize;
                    let left = allowed.min(self.clients.len()).saturating_sub(dialled);
                    for _ in 0..budget.min(left as u32) {
                        let client = self.plan.first_client + dialled as u32;
                        let source = source_for(self.plan.server, client);
                        let conn = driver.connect(self.plan.server, source)?;
                        self.by_slot[conn.slot as usize] = dialled as u32;
                        self.clients[dialled].conn = Some(conn);
                        dialled += 1;
                        under_way += 1;
                    }
                }
                Phase::Load => wait = self.load(now, &mut schedule).min(wait),
                Phase::Idle | Phase::Drain => {}
                Phase::Stop => return Ok(()),
            }
            if phase != Phase::Connect && !self.clients.is_empty() {
                let each = HEARTBEAT_NS as f64 / self.clients.len() as f64;
                while let Some((_, n)) = heartbeat.due(now, each) {
                    self.heartbeat((n % self.clients.len() as u64) as usize);
                }
                wait = wait.min(heartbeat.wait(now));
            }
            self.flush(driver);
            let before = self.shared.connected.load(Ordering::Relaxed);
            driver.turn(wait, &mut |event| self.on_event(event))?;
            let done = self.shared.connected.load(Ordering::Relaxed) - before;
            under_way = under_way.saturating_sub(done);
        }
    }

    /// Emits what is due; returns how long nothing will be.
    fn load(&mut self, now: u64, schedule: &mut Schedule) -> Duration {
        if self.senders.is_empty() {
            return TURN_MAX;
        }
        if let Some(rate) = self.plan.rate {
            let each = 1e9 / rate;
            while let Some((due, n)) = schedule.due(now, each) {
                let sender = self.senders[(n % self.senders.len() as u64) as usize];
                self.say(sender, due);
            }
            return schedule.wait(now);
        }
        if !schedule.started() && self.plan.inflight > 0 {
            schedule.due(now, 1.0);
            for _ in 0..self.plan.inflight {
                self.owing.extend_from_slice(&self.senders);
            }
        }
        for sender in std::mem::take(&mut self.owing) {
            self.say(sender, now);
        }
        TURN_MAX
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// One client sends one message, due at `due`.
    fn say(&mut self, index: u32, due: u64) {
        let random = self.random();
        let plan = &self.plan.clients[index as usize];
        let client = &mut self.clients[index as usize];
        if client.out.len() > OUT_BYTES_MAX || client.conn.is_none() {
            self.tally.not_sent += 1;
            return;
        }
        client.sent += 1;
        let mut message = SendMessage {
            client_msg_id: format!("{due:016x}-{index}-{}", client.sent),
            content: format!("{due:016x}-{:.<width$}", "", width = self.plan.payload - 17),
            ..SendMessage::default()
        };
        let to_group = !plan.groups.is_empty()
            && (random >> 11) as f64 / (1u64 << 53) as f64 <= self.plan.group_share;
        if to_group && self.plan.group_share > 0.0 {
            let at = (random >> 8) as usize % plan.groups.len();
            message.conversation_id.clone_from(&plan.groups[at]);
        } else if client.introduced {
            message.conversation_id.clone_from(&plan.direct_id);
        } else {
            client.introduced = true;
            message.to.clone_from(&plan.partner);
        }
        self.put(index, ClientBody::SendMessage(message), random as u32);
        self.shared.outstanding.fetch_add(1, Ordering::Relaxed);
        if self.shared.in_window(due) {
            self.tally.sent += 1;
        }
    }

    fn heartbeat(&mut self, index: usize) {
        if self.clients[index].connected {
            let mask = self.random() as u32;
            self.put(index as u32, ClientBody::Heartbeat(Heartbeat {}), mask);
        }
    }

    fn put(&mut self, index: u32, body: ClientBody, mask: u32) {
        let frame = ClientFrame {
            id: String::new(),
            frame: Some(body),
        };
        wire::put(
            &frame,
            self.plan.transport,
            mask,
            &mut self.clients[index as usize].out,
        );
        self.mark_dirty(index);
    }

    fn mark_dirty(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        if !client.dirty {
            client.dirty = true;
            self.dirty.push(index);
        }
    }

    /// One send for each client that owes something and is not blocked.
    fn flush(&mut self, driver: &mut dyn Driver) {
        for index in std::mem::take(&mut self.dirty) {
            let client = &mut self.clients[index as usize];
            client.dirty = false;
            if let (Some(conn), false, false) = (client.conn, client.blocked, client.out.is_empty())
            {
                driver.send(conn, Bytes::from(std::mem::take(&mut client.out)));
            }
        }
    }

    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Connected { conn } => self.greet(self.by_slot[conn.slot as usize]),
            Event::Received { conn, data } => {
                let index = self.by_slot[conn.slot as usize];
                if let Err(error) = self.receive(index, data) {
                    self.shared.fail(error.0);
                }
            }
            Event::Blocked { conn, .. } => {
                let index = self.by_slot[conn.slot as usize];
                self.clients[index as usize].blocked = true;
            }
            Event::Drained { conn } => {
                let index = self.by_slot[conn.slot as usize];
                self.clients[index as usize].blocked = false;
                self.mark_dirty(index);
            }
            Event::Closed { conn, error } => self.closed(conn, error),
            Event::Eof { .. } | Event::Accepted { .. } | Event::Woken => {}
        }
    }

    fn greet(&mut self, index: u32) {
        let plan = &self.plan.clients[index as usize];
        let token = plan.token.clone();
        match self.plan.transport {
            Transport::Tcp => {
                let connect = Connect {
                    token,
                    device_id: "bench".into(),
                    ..Connect::default()
                };
                self.put(index, ClientBody::Connect(connect), 0);
            }
            transport => {
                let key = u128::from(self.random) << 64 | u128::from(index);
                let host = self.plan.server.to_string();
                let request = wire::upgrade(&host, &token, "bench", transport, key);
                self.clients[index as usize].out.extend_from_slice(&request);
                self.mark_dirty(index);
            }
        }
    }

    fn closed(&mut self, conn: ConnId, error: Option<std::io::ErrorKind>) {
        let index = std::mem::replace(&mut self.by_slot[conn.slot as usize], u32::MAX);
        let Some(client) = self.clients.get_mut(index as usize) else {
            return;
        };
        client.conn = None;
        if self.shared.phase() < Phase::Stop {
            self.tally.disconnects += 1;
            self.shared.fail(match error {
                Some(kind) => format!("a connection ended: {kind}"),
                None => "the server ended a connection".to_owned(),
            });
        }
    }

    fn receive(&mut self, index: u32, data: &[u8]) -> Result<(), WireError> {
        let mut reader = std::mem::take(&mut self.clients[index as usize].reader);
        let result = reader.read(self.plan.transport, data, &mut |what| match what {
            FromServer::Frame(frame) => self.on_frame(index, *frame),
            FromServer::Ping(payload) => {
                let mask = self.random() as u32;
                wire::put_masked(10, &payload, mask, &mut self.clients[index as usize].out);
                self.mark_dirty(index);
            }
            FromServer::Close(code) => self.shared.fail(format!("the server closes with {code}")),
        });
        self.clients[index as usize].reader = reader;
        result
    }

    fn on_frame(&mut self, index: u32, frame: ServerFrame) {
        match frame.frame {
            Some(ServerBody::Connected(_)) => {
                self.clients[index as usize].connected = true;
                self.shared.connected.fetch_add(1, Ordering::Relaxed);
            }
            Some(ServerBody::Ack(ack)) => {
                let now = self.shared.now();
                self.settle(index);
                if self.shared.in_window(now) {
                    self.tally.acked += 1;
                }
                if let Some(due) = due_of(&ack.client_msg_id).filter(|&d| self.shared.in_window(d))
                {
                    record(&mut self.tally.ack, now.saturating_sub(due));
                }
            }
            Some(ServerBody::Message(message)) => {
                let now = self.shared.now();
                if self.shared.in_window(now) {
                    self.tally.delivered += 1;
                }
                if let Some(due) = due_of(&message.content).filter(|&d| self.shared.in_window(d)) {
                    record(&mut self.tally.delivery, now.saturating_sub(due));
                }
            }
            Some(ServerBody::Error(error)) => {
                if error.client_msg_id.is_empty() {
                    self.shared
                        .fail(format!("{}: {}", error.code, error.message));
                } else {
                    self.settle(index);
                }
                *self.tally.errors.entry(error.code).or_default() += 1;
            }
            _ => {}
        }
    }

    /// A message of this client was answered.
    fn settle(&mut self, index: u32) {
        self.shared.outstanding.fetch_sub(1, Ordering::Relaxed);
        if self.plan.rate.is_none() && self.shared.phase() == Phase::Load {
            self.owing.push(index);
        }
    }
}

/// Into a histogram that grows: any number of ns fits.
fn record(histogram: &mut Histogram<u64>, ns: u64) {
    let recorded = histogram.record(ns);
    debug_assert!(
        recorded.is_ok(),
        "an auto-sized histogram takes every value"
    );
}

/// Clients that share one source address: further ones make the kernel search long for a free port.
const CLIENTS_PER_SOURCE: u32 = 10_000;

/// A loopback address for each [`CLIENTS_PER_SOURCE`] clients; elsewhere the kernel chooses.
fn source_for(server: SocketAddr, client: u32) -> Option<SocketAddr> {
    let number = client / CLIENTS_PER_SOURCE;
    match server {
        SocketAddr::V4(to) if to.ip().is_loopback() && number > 0 => {
            let first = u32::from(std::net::Ipv4Addr::LOCALHOST);
            Some(SocketAddr::new(
                std::net::Ipv4Addr::from(first + number).into(),
                0,
            ))
        }
        _ => None,
    }
}

/// The time at which a message was due, from the head of its content or its `client_msg_id`.
fn due_of(text: &str) -> Option<u64> {
    u64::from_str_radix(text.get(..16)?, 16).ok()
}

/// Evenly spaced moments; the n-th does not move when the ones before it were late.
#[derive(Default)]
struct Schedule {
    start: Option<u64>,
    emitted: u64,
    next: u64,
}

impl Schedule {
    fn started(&self) -> bool {
        self.start.is_some()
    }

    /// The next moment that is due by `now`, with its number. `each`: ns between two.
    fn due(&mut self, now: u64, each: f64) -> Option<(u64, u64)> {
        let start = *self.start.get_or_insert(now);
        self.next = start + (self.emitted as f64 * each) as u64;
        if self.next > now {
            return None;
        }
        let due = (self.next, self.emitted);
        self.emitted += 1;
        Some(due)
    }

    fn wait(&self, now: u64) -> Duration {
        Duration::from_nanos(self.next.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_due_during_a_stall_keeps_its_time() {
        let mut schedule = Schedule::default();
        let each = 1_000.0;
        assert_eq!(schedule.due(500, each), Some((500, 0)));
        assert_eq!(schedule.due(500, each), None);
        assert_eq!(schedule.wait(500), Duration::from_nanos(1_000));
        let late: Vec<_> = std::iter::from_fn(|| schedule.due(3_600, each)).collect();
        assert_eq!(late, [(1_500, 1), (2_500, 2), (3_500, 3)]);
    }

    #[test]
    fn what_is_recorded_is_found_again() {
        let mut tally = Tally::new();
        for ms in 1..=1_000 {
            record(&mut tally.ack, ms * 1_000_000);
        }
        let latency = crate::report::Latency::of(&tally.ack).unwrap();
        assert!((495.0..=505.0).contains(&latency.p50_ms), "{latency:?}");
        assert!((999.0..=1_001.0).contains(&latency.max_ms), "{latency:?}");
    }

    #[test]
    fn the_time_is_read_back() {
        assert_eq!(
            due_of(&format!("{:016x}-7-1", 123_456_789u64)),
            Some(123_456_789)
        );
        assert_eq!(due_of("short"), None);
    }
}
