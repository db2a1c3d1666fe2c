//! The generator: one thread, one driver, all connections. It must cost less than what it measures,
//! so messages are made once, a connection's messages of one turn leave in one send, and what comes
//! back is compared, counted and timed, nothing more.
//!
//! Invariants: a message's time runs from when it was due; in a closed loop that is when the reply
//! to the one before arrived. What is due is never left out because the server is slow. Replies of a
//! connection come in the order of its messages.
//!
//! Driven by `crate::echo::measure` through [`Shared`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use trunkline_edge::ring::{self, ConnId, Driver, DriverChoice, DriverConfig, Event, pin_to_core};

use super::args::Shape;
use super::cpu;
use super::payload::{DELIVERY, pattern};
use super::protocol::{Protocol, ProtocolError, Said, Session};
use crate::BenchError;
use crate::fleet::schedule::Schedule;
use crate::fleet::sources::Sources;
use crate::probe::port_range;

/// The longest wait in a turn: how late a change of phase is seen.
const TURN_MAX: Duration = Duration::from_millis(20);
/// Messages that may leave a connection in one turn; more wait for the next.
const MESSAGES_PER_SEND: u32 = 16;
/// The kernel's range of ports, if it does not tell.
const PORTS: (u32, u32) = (32_768, 60_999);

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

/// Between the measurement and its generator.
pub struct Shared {
    origin: Instant,
    phase: AtomicU8,
    /// ns since `origin`: messages due from the one to the other are timed.
    pub window_from: AtomicU64,
    pub window_to: AtomicU64,
    /// Connections that are up and subscribed.
    pub ready: AtomicU32,
    /// Connections that ended before they should.
    pub lost: AtomicU32,
    pub sent: AtomicU64,
    /// Messages whose answer came; of a fan-out, those that everybody has.
    pub answered: AtomicU64,
    /// What came beyond answers: to the partner, or to everybody.
    pub delivered: AtomicU64,
    /// The generator's thread; 0 before it runs.
    pub thread: AtomicU32,
    failure: Mutex<Option<String>>,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            phase: AtomicU8::new(Phase::Connect as u8),
            window_from: AtomicU64::new(u64::MAX),
            window_to: AtomicU64::new(u64::MAX),
            ready: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            thread: AtomicU32::new(0),
            failure: Mutex::new(None),
        }
    }

    pub fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Connect,
            1 => Phase::Idle,
            2 => Phase::Load,
            3 => Phase::Drain,
            _ => Phase::Stop,
        }
    }

    /// The first thing that went wrong.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().ok()?.clone()
    }

    fn fail(&self, what: String) {
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(what);
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// What the generator is to do.
pub struct Plan {
    pub server: SocketAddr,
    pub protocol: Protocol,
    pub shape: Shape,
    pub connections: u32,
    pub connect_inflight: u32,
    pub depth: u32,
    /// Messages per second; none: a closed loop.
    pub rate: Option<f64>,
    pub payload: u32,
    pub core: Option<usize>,
}

/// What the generator saw.
#[derive(Debug)]
pub struct Tally {
    /// From due to answered; of a fan-out, until the last has it.
    pub answer: Histogram<u64>,
    /// Of a fan-out: from due to each delivery.
    pub delivery: Histogram<u64>,
    /// Messages that came back and were not what was sent.
    pub mismatches: u64,
    /// Messages that came back and had not been sent.
    pub unasked: u64,
}

#[derive(Default)]
struct Client {
    conn: Option<ConnId>,
    session: Session,
    /// Messages, one behind the other.
    block: Bytes,
    /// When the messages under way were due, oldest first.
    due: VecDeque<u64>,
    /// Messages to send.
    owed: u32,
    /// Of a fan-out: messages that came.
    heard: u64,
    /// What else is to be sent, before any message.
    out: Vec<u8>,
    ready: bool,
    blocked: bool,
    dirty: bool,
}

/// A message on its way to everybody.
struct Publication {
    due: u64,
    left: u32,
}

struct Generator<'a> {
    shared: &'a Shared,
    plan: &'a Plan,
    expected: Vec<u8>,
    clients: Vec<Client>,
    /// Client by driver slot.
    by_slot: Vec<u32>,
    dirty: Vec<u32>,
    /// Connections whose server has sent its FIN.
    ended: Vec<ConnId>,
    publications: VecDeque<Publication>,
    /// The number of the first of them.
    first_publication: u64,
    dialled: u32,
    /// Dialled, and neither ready nor gone.
    under_way: u32,
    /// Now, read once a turn.
    now: Option<u64>,
    loading: bool,
    started: bool,
    schedule: Schedule,
    sources: Sources,
    sent: u64,
    answered: u64,
    delivered: u64,
    tally: Tally,
}

/// Runs until [`Phase::Stop`] and returns what was seen.
pub fn run(plan: &Plan, shared: &Shared) -> Result<Tally, BenchError> {
    if let Some(core) = plan.core {
        pin_to_core(core).map_err(|e| BenchError::Usage(format!("--pin-generator {core}: {e}")))?;
    }
    let thread = cpu::this_thread().unwrap_or(0);
    shared.thread.store(thread, Ordering::Release);
    let ports = port_range().unwrap_or(PORTS);
    let sources = Sources::new(plan.server, plan.connections, None, ports)?;
    let config = DriverConfig::for_connections(plan.connections);
    let mut driver = ring::open(DriverChoice::Auto, &config)?;
    // ns, three digits, auto-sized: cannot fail with these constants.
    let histogram = || Histogram::new(3).unwrap_or_else(|_| unreachable!("a valid precision"));
    let mut generator = Generator {
        shared,
        expected: pattern(plan.payload as usize),
        clients: (0..plan.connections).map(|_| Client::default()).collect(),
        by_slot: vec![u32::MAX; driver.slots_max() as usize],
        dirty: Vec::new(),
        ended: Vec::new(),
        publications: VecDeque::new(),
        first_publication: 0,
        dialled: 0,
        under_way: 0,
        now: None,
        loading: false,
        started: false,
        schedule: Schedule::default(),
        sources,
        sent: 0,
        answered: 0,
        delivered: 0,
        tally: Tally {
            answer: histogram(),
            delivery: histogram(),
            mismatches: 0,
            unasked: 0,
        },
        plan,
    };
    generator.make_messages();
    generator.run(&mut *driver)?;
    Ok(generator.tally)
}

impl Generator<'_> {
    fn make_messages(&mut self) {
        let plan = self.plan;
        let repeat = |message: Vec<u8>| Bytes::from(message.repeat(MESSAGES_PER_SEND as usize));
        let first = repeat(plan.protocol.message(0, &self.expected));
        for (index, client) in (0..).zip(&mut self.clients) {
            let speaks = plan.shape != Shape::Fanout || index == 0;
            client.block = if !speaks || plan.protocol.shares_messages() {
                first.clone()
            } else {
                repeat(plan.protocol.message(index, &self.expected))
            };
        }
    }

    fn run(&mut self, driver: &mut dyn Driver) -> Result<(), BenchError> {
        loop {
            let phase = self.shared.phase();
            self.loading = phase == Phase::Load;
            let mut wait = TURN_MAX;
            match phase {
                Phase::Connect => self.dial(driver)?,
                Phase::Load => wait = self.load().min(wait),
                Phase::Idle | Phase::Drain => {}
                Phase::Stop => return Ok(()),
            }
            self.flush(driver);
            if !self.dirty.is_empty() {
                wait = Duration::ZERO;
            }
            self.now = None;
            driver.turn(wait, &mut |event| self.on_event(event))?;
            self.shared.sent.store(self.sent, Ordering::Relaxed);
            self.shared.answered.store(self.answered, Ordering::Relaxed);
            self.shared
                .delivered
                .store(self.delivered, Ordering::Relaxed);
        }
    }

    fn dial(&mut self, driver: &mut dyn Driver) -> Result<(), BenchError> {
        while self.under_way < self.plan.connect_inflight && self.dialled < self.plan.connections {
            let index = self.dialled;
            let conn = driver.connect(self.plan.server, self.sources.of(index, 0))?;
            self.by_slot[conn.slot as usize] = index;
            self.clients[index as usize].conn = Some(conn);
            self.dialled += 1;
            self.under_way += 1;
        }
        Ok(())
    }

    fn now(&mut self) -> u64 {
        *self.now.get_or_insert_with(|| self.shared.now())
    }

    /// Says what is due; returns how long nothing will be.
    fn load(&mut self) -> Duration {
        let now = self.shared.now();
        if let Some(rate) = self.plan.rate {
            let each = 1e9 / rate;
            while let Some((due, number)) = self.schedule.due(now, each) {
                self.say((number % u64::from(self.plan.connections)) as u32, due);
            }
            return self.schedule.wait(now);
        }
        if !std::mem::replace(&mut self.started, true) {
            let speakers = match self.plan.shape {
                Shape::Fanout => 1,
                Shape::Echo | Shape::Chat => self.plan.connections,
            };
            for index in 0..speakers {
                for _ in 0..self.plan.depth {
                    self.say(index, now);
                }
            }
        }
        TURN_MAX
    }

    /// One more message. A fan-out's all come from the first connection.
    fn say(&mut self, index: u32, due: u64) {
        let index = match self.plan.shape {
            Shape::Fanout => {
                let left = self.plan.connections;
                self.publications.push_back(Publication { due, left });
                0
            }
            Shape::Echo | Shape::Chat => {
                self.clients[index as usize].due.push_back(due);
                index
            }
        };
        self.clients[index as usize].owed += 1;
        self.sent += 1;
        self.mark_dirty(index);
    }

    fn mark_dirty(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        if !std::mem::replace(&mut client.dirty, true) {
            self.dirty.push(index);
        }
    }

    /// One send for each connection that owes something and is not blocked.
    fn flush(&mut self, driver: &mut dyn Driver) {
        for conn in self.ended.drain(..) {
            driver.close(conn);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&index| {
            let client = &mut self.clients[index as usize];
            client.send(driver);
            client.dirty = client.owed > 0 && client.conn.is_some() && !client.blocked;
            client.dirty
        });
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Connected { conn } => self.on_connected(self.by_slot[conn.slot as usize]),
            Event::Received { conn, data } => {
                let index = self.by_slot[conn.slot as usize];
                if let Err(error) = self.received(index, data) {
                    self.shared.fail(error.0);
                    self.ended.push(conn);
                }
            }
            Event::Blocked { conn, .. } => self.client_of(conn).blocked = true,
            Event::Drained { conn } => {
                self.client_of(conn).blocked = false;
                self.mark_dirty(self.by_slot[conn.slot as usize]);
            }
            Event::Eof { conn } => self.ended.push(conn),
            Event::Closed { conn, error } => self.on_closed(conn, error),
            Event::Accepted { .. } | Event::Woken => {}
        }
    }

    fn client_of(&mut self, conn: ConnId) -> &mut Client {
        &mut self.clients[self.by_slot[conn.slot as usize] as usize]
    }

    fn on_connected(&mut self, index: u32) {
        let opening = self.plan.protocol.opening();
        if opening.is_empty() {
            return self.on_ready(index);
        }
        self.clients[index as usize].out = opening;
        self.mark_dirty(index);
    }

    fn on_ready(&mut self, index: u32) {
        if !std::mem::replace(&mut self.clients[index as usize].ready, true) {
            self.under_way -= 1;
            self.shared.ready.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn on_closed(&mut self, conn: ConnId, error: Option<std::io::ErrorKind>) {
        let index = std::mem::replace(&mut self.by_slot[conn.slot as usize], u32::MAX);
        let client = &mut self.clients[index as usize];
        client.conn = None;
        if client.ready {
            self.shared.ready.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.under_way -= 1;
        }
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
        self.shared.fail(match error {
            Some(kind) => format!("a connection ended: {kind}"),
            None => "the server ended a connection".to_owned(),
        });
    }

    fn received(&mut self, index: u32, data: &[u8]) -> Result<(), ProtocolError> {
        let mut session = std::mem::take(&mut self.clients[index as usize].session);
        let protocol = &self.plan.protocol;
        let result = session.received(protocol, index, data, &mut |said| match said {
            Said::Message(payload) => self.on_message(index, payload),
            Said::Ready => self.on_ready(index),
            Said::Reply(bytes) => {
                self.clients[index as usize].out.extend_from_slice(&bytes);
                self.mark_dirty(index);
            }
            Said::Other => {}
        });
        self.clients[index as usize].session = session;
        result
    }

    fn on_message(&mut self, index: u32, payload: &[u8]) {
        let chat = self.plan.shape == Shape::Chat;
        let delivery = chat && payload.first() == Some(&DELIVERY);
        let skip = usize::from(delivery);
        if payload.get(skip..) != self.expected.get(skip..) {
            self.tally.mismatches += 1;
        }
        let now = self.now();
        if delivery {
            self.delivered += 1;
        } else if self.plan.shape == Shape::Fanout {
            self.on_delivery(index, now);
        } else if let Some(due) = self.clients[index as usize].due.pop_front() {
            self.answered += 1;
            if self.in_window(due) {
                record(&mut self.tally.answer, now.saturating_sub(due));
            }
            if self.loading && self.plan.rate.is_none() {
                self.say(index, now);
            }
        } else {
            self.tally.unasked += 1;
        }
    }

    /// A fan-out's message came to one of all.
    fn on_delivery(&mut self, index: u32, now: u64) {
        let client = &mut self.clients[index as usize];
        // Nothing is forgotten before everybody has it, so nobody has heard less.
        let at = (client.heard - self.first_publication) as usize;
        let Some(publication) = self.publications.get_mut(at) else {
            self.tally.unasked += 1;
            return;
        };
        client.heard += 1;
        publication.left -= 1;
        let due = publication.due;
        self.delivered += 1;
        if self.in_window(due) {
            record(&mut self.tally.delivery, now.saturating_sub(due));
        }
        while let Some(done) = self.publications.pop_front_if(|p| p.left == 0) {
            self.first_publication += 1;
            self.answered += 1;
            if self.in_window(done.due) {
                record(&mut self.tally.answer, now.saturating_sub(done.due));
            }
            if self.loading && self.plan.rate.is_none() {
                self.say(0, now);
            }
        }
    }

    fn in_window(&self, due: u64) -> bool {
        due >= self.shared.window_from.load(Ordering::Relaxed)
            && due < self.shared.window_to.load(Ordering::Relaxed)
    }
}

impl Client {
    /// Hands over what is to leave this turn.
    fn send(&mut self, driver: &mut dyn Driver) {
        let Some(conn) = self.conn.filter(|_| !self.blocked) else {
            return;
        };
        let count = self.owed.min(MESSAGES_PER_SEND);
        self.owed -= count;
        let length = self.block.len() / MESSAGES_PER_SEND as usize * count as usize;
        let mut bytes = self.block.slice(..length);
        if !self.out.is_empty() {
            let mut both = BytesMut::from(&std::mem::take(&mut self.out)[..]);
            both.extend_from_slice(&bytes);
            bytes = both.freeze();
        }
        if !bytes.is_empty() {
            driver.send(conn, bytes);
        }
    }
}

fn record(histogram: &mut Histogram<u64>, ns: u64) {
    // Auto-sized: it takes every value.
    let _ = histogram.record(ns);
}
