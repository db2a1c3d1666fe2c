//! A worker's loop: orders of the scenario, what is due, the driver's events.
//!
//! Invariants: every connect is timed from the moment it was due, also when it is late because too
//! many are under way; a client whose connection ends is counted by its close code or error and comes
//! back or is gone, never forgotten; at most one send for each client and turn.
//!
//! Started by [`super::Fleet`].

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use bytes::Bytes;
use trunkline_edge::ring::{self, ConnId, Driver, DriverChoice, DriverConfig, Event};
use trunkline_proto::client::{ClientBody, Connect, ServerBody, ServerFrame};
use trunkline_proto::codes::Close;

use super::crowd::{Crowd, State, flag};
use super::people::People;
use super::schedule::Schedule;
use super::tally::record;
use super::wire::{self, FromServer, Upgraded};
use super::{Behaviour, Order, Plan, Shared};
use crate::BenchError;
use crate::args::Transport;

/// The longest wait in a turn: how late an order is seen.
const TURN_MAX: Duration = Duration::from_millis(20);
/// Clients that an order to leave reaches in one turn.
const LEAVING_PER_TURN: u32 = 2_048;
/// A client that is due to come back while its connection is still closing: look again then.
const CLOSING_RETRY_NS: u64 = 5_000_000;
/// Signs of life are due at no exact moment: those of so long leave together, which spares both ends
/// a wake for each.
const SIGNS_EVERY: Duration = Duration::from_millis(1);
/// Close code of a connection that ended without one.
const NO_CODE: u16 = 0;

struct Worker<'a> {
    crowd: Crowd,
    does: Box<dyn Behaviour>,
    inbox: &'a Receiver<Order>,
    /// Clients from here on have not dialled yet; those below `allowed` may.
    next_new: u32,
    allowed: u32,
    ramp: Schedule,
    heartbeats: Schedule,
    /// Where an order to leave has come to, and when those who left shall be back.
    leaving: Option<(u32, u64)>,
}

/// Runs until it is told to stop.
pub(super) fn run(
    plan: Plan,
    people: People,
    shared: Arc<Shared>,
    does: Box<dyn Behaviour>,
    inbox: &Receiver<Order>,
) -> Result<(), BenchError> {
    let config = DriverConfig {
        receive: plan.receive,
        ..DriverConfig::for_connections(plan.count)
    };
    let mut driver = ring::open(DriverChoice::Auto, &config)?;
    if driver.slots_max() < plan.count {
        return Err(BenchError::Usage(format!(
            "the {} driver holds {} connections, not {}: raise the limit on open files",
            driver.name(),
            driver.slots_max(),
            plan.count
        )));
    }
    let crowd = Crowd::new(plan, people, shared, driver.slots_max());
    let mut worker = Worker {
        crowd,
        does,
        inbox,
        next_new: 0,
        allowed: 0,
        ramp: Schedule::default(),
        heartbeats: Schedule::default(),
        leaving: None,
    };
    while worker.take_orders() {
        worker.turn(&mut *driver)?;
    }
    Ok(())
}

impl Worker<'_> {
    /// False when it is time to stop.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Allow(clients)) => {
                    self.allowed = clients.min(self.crowd.len());
                    self.ramp = Schedule::default();
                }
                Ok(Order::Leave { back_at }) => self.leaving = Some((0, back_at)),
                Ok(Order::Silence(clients)) => {
                    for client in 0..clients.min(self.crowd.len()) {
                        self.crowd.fall_silent(client);
                    }
                }
                Ok(Order::Take(sender)) => {
                    // Nobody to take it is nobody to miss it.
                    let _ = sender.send(std::mem::take(&mut self.crowd.tally));
                }
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn turn(&mut self, driver: &mut dyn Driver) -> Result<(), BenchError> {
        let now = self.crowd.shared.now();
        self.have_leave();
        self.awake_later(now);
        let mut wait = self.dial(now, driver)?;
        wait = wait.min(self.give_signs(now));
        wait = wait.min(self.does.tick(now, &mut self.crowd));
        if let Some(Reverse((at, _))) = self.crowd.later.peek() {
            wait = wait.min(Duration::from_nanos(at.saturating_sub(now)));
        }
        if self.leaving.is_some() {
            wait = Duration::ZERO;
        }
        self.close(driver);
        self.flush(driver);
        driver.turn(wait.min(TURN_MAX), &mut |event| self.on_event(event))?;
        Ok(())
    }

    fn have_leave(&mut self) {
        let Some((from, back_at)) = self.leaving else {
            return;
        };
        let to = (from + LEAVING_PER_TURN).min(self.crowd.len());
        for client in from..to {
            self.crowd.leave(client, back_at);
        }
        self.leaving = (to < self.crowd.len()).then_some((to, back_at));
    }

    /// Clients whose time has come.
    fn awake_later(&mut self, now: u64) {
        while let Some(&Reverse((at, client))) = self.crowd.later.peek() {
            if at > now {
                return;
            }
            self.crowd.later.pop();
            let it = &mut self.crowd.clients[client as usize];
            match it.state {
                State::Away if it.flags & flag::RETURNS != 0 => {
                    it.flags &= !flag::RETURNS;
                    it.state = State::Queued;
                    self.crowd.queue.push_back(client);
                }
                State::Leaving if it.flags & flag::RETURNS != 0 => {
                    let again = now + CLOSING_RETRY_NS;
                    self.crowd.later.push(Reverse((again, client)));
                }
                State::Up if it.flags & flag::LEAVES != 0 => {
                    it.flags &= !flag::LEAVES;
                    self.crowd.leave(client, at);
                }
                _ => {}
            }
        }
    }

    /// Dials as many as may be under way; how long nobody else is due.
    fn dial(&mut self, now: u64, driver: &mut dyn Driver) -> Result<Duration, BenchError> {
        while self.crowd.under_way < self.crowd.plan.connect_inflight {
            if let Some(client) = self.crowd.queue.pop_front() {
                let it = &mut self.crowd.clients[client as usize];
                if it.flags & flag::STAYS_AWAY != 0 {
                    it.state = State::Gone;
                } else if !self.dial_one(client, driver)? {
                    self.crowd.queue.push_front(client);
                    break;
                }
                continue;
            }
            if self.next_new >= self.allowed {
                break;
            }
            let due = match self.crowd.plan.connect_each_ns {
                Some(each) => match self.ramp.due(now, each) {
                    Some((due, _)) => due,
                    None => return Ok(self.ramp.wait(now)),
                },
                None => now,
            };
            let client = self.next_new;
            self.next_new += 1;
            self.crowd.clients[client as usize].at_ns = due;
            if !self.dial_one(client, driver)? {
                self.crowd.clients[client as usize].state = State::Queued;
                self.crowd.queue.push_back(client);
                break;
            }
        }
        Ok(TURN_MAX)
    }

    /// False: the driver's table is full for the moment, with connections that are still closing.
    fn dial_one(&mut self, client: u32, driver: &mut dyn Driver) -> Result<bool, BenchError> {
        let number = self.crowd.number(client);
        let it = &mut self.crowd.clients[client as usize];
        let peer = self.crowd.plan.edges[usize::from(it.edge)];
        let source = self.crowd.plan.sources.of(number, it.round);
        let conn = match driver.connect(peer, source) {
            Ok(conn) => conn,
            Err(e) if e.raw_os_error() == Some(libc::ENFILE) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        it.conn = conn;
        it.round = it.round.wrapping_add(1);
        it.state = State::Dialling;
        self.crowd.by_slot[conn.slot as usize] = client;
        self.crowd.under_way += 1;
        Ok(true)
    }

    fn give_signs(&mut self, now: u64) -> Duration {
        if self.crowd.plan.heartbeat == crate::args::Heartbeat::None || self.next_new == 0 {
            return TURN_MAX;
        }
        let clients = u64::from(self.crowd.len());
        let each = self.crowd.plan.heartbeat_every.as_nanos() as f64 / clients as f64;
        while let Some((_, n)) = self.heartbeats.due(now, each) {
            self.crowd.heartbeat((n % clients) as u32);
        }
        self.heartbeats.wait(now).max(SIGNS_EVERY)
    }

    /// One send for each client that owes something and is not blocked.
    fn flush(&mut self, driver: &mut dyn Driver) {
        let mut dirty = std::mem::take(&mut self.crowd.dirty);
        for client in dirty.drain(..) {
            let it = &mut self.crowd.clients[client as usize];
            it.flags &= !flag::DIRTY;
            if it.flags & flag::BLOCKED == 0
                && let Some(out) = self.crowd.outs.remove(&client)
                && !out.is_empty()
            {
                driver.send(it.conn, Bytes::from(out));
            }
        }
        // The allocation is kept; nothing was added meanwhile.
        self.crowd.dirty = dirty;
    }

    fn close(&mut self, driver: &mut dyn Driver) {
        for conn in std::mem::take(&mut self.crowd.closing) {
            driver.close(conn);
        }
    }

    fn client_of(&self, conn: ConnId) -> Option<u32> {
        let client = *self.crowd.by_slot.get(conn.slot as usize)?;
        (client != u32::MAX).then_some(client)
    }

    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Connected { conn } => {
                if let Some(client) = self.client_of(conn) {
                    self.greet(client);
                }
            }
            Event::Received { conn, data } => {
                if let Some(client) = self.client_of(conn) {
                    self.receive(client, data);
                }
            }
            Event::Eof { conn } => self.crowd.closing.push(conn),
            Event::Blocked { conn, .. } => {
                if let Some(client) = self.client_of(conn) {
                    self.crowd.clients[client as usize].flags |= flag::BLOCKED;
                }
            }
            Event::Drained { conn } => {
                if let Some(client) = self.client_of(conn) {
                    self.crowd.clients[client as usize].flags &= !flag::BLOCKED;
                    if self.crowd.outs.contains_key(&client) {
                        self.crowd.out(client);
                    }
                }
            }
            Event::Closed { conn, error } => {
                if let Some(client) = self.client_of(conn) {
                    self.crowd.by_slot[conn.slot as usize] = u32::MAX;
                    self.closed(client, error);
                }
            }
            Event::Accepted { .. } | Event::Woken => {}
        }
    }

    fn greet(&mut self, client: u32) {
        let crowd = &mut self.crowd;
        let number = crowd.number(client);
        if crowd.clients[client as usize].state != State::Dialling {
            return;
        }
        if crowd.plan.transport == Transport::Tcp {
            crowd.clients[client as usize].state = State::Opening;
            let connect = Connect {
                token: crowd.people.token(number),
                device_id: crowd.people.device().to_owned(),
                ..Connect::default()
            };
            return crowd.put(client, ClientBody::Connect(connect));
        }
        crowd.clients[client as usize].state = State::Upgrading;
        let key = u128::from(crowd.random()) << 64 | u128::from(number);
        let mut request = Vec::with_capacity(512);
        crowd.people.put_request(number, key, &mut request);
        crowd.out(client).extend_from_slice(&request);
    }

    /// Takes the frames out of what came, and keeps what is left of the last.
    fn receive(&mut self, client: u32, data: &[u8]) {
        let it = &mut self.crowd.clients[client as usize];
        let held = if it.flags & flag::PARTIAL != 0 {
            it.flags &= !flag::PARTIAL;
            self.crowd.partials.remove(&client)
        } else {
            None
        };
        let whole = held.map(|mut held| {
            held.extend_from_slice(data);
            held
        });
        let bytes = whole.as_deref().unwrap_or(data);
        match self.read(client, bytes) {
            Ok(used) if used < bytes.len() => {
                let it = &mut self.crowd.clients[client as usize];
                if it.state != State::Leaving {
                    it.flags |= flag::PARTIAL;
                    self.crowd.partials.insert(client, bytes[used..].to_vec());
                }
            }
            Ok(_) => {}
            Err(error) => {
                self.crowd.tally.count("unreadable");
                self.crowd.shared.failed(|| error.0);
                self.crowd.end(client);
            }
        }
    }

    /// How many of the bytes were whole frames.
    fn read(&mut self, client: u32, bytes: &[u8]) -> Result<usize, wire::WireError> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            match self.crowd.clients[client as usize].state {
                State::Upgrading => match wire::upgraded(rest)? {
                    None => return Ok(used),
                    Some(Upgraded::Yes(length)) => {
                        used += length;
                        self.crowd.clients[client as usize].state = State::Opening;
                    }
                    Some(Upgraded::No(status, retry_after)) => {
                        self.refused(client, status, retry_after);
                        return Ok(bytes.len());
                    }
                },
                State::Opening | State::Up => match wire::split(self.crowd.plan.transport, rest)? {
                    None => return Ok(used),
                    Some((length, frame)) => {
                        used += length;
                        self.take(client, frame);
                    }
                },
                // What a connection says after its end concerns nobody.
                State::Away | State::Queued | State::Dialling | State::Leaving | State::Gone => {
                    return Ok(bytes.len());
                }
            }
        }
    }

    fn refused(&mut self, client: u32, status: u16, retry_after: Option<u32>) {
        let crowd = &mut self.crowd;
        *crowd.tally.refused.entry(status).or_default() += 1;
        crowd.shared.failed(|| format!("HTTP {status}"));
        crowd.end(client);
        // A token that is refused will be refused again.
        if status == 401 {
            crowd.clients[client as usize].flags |= flag::STAYS_AWAY;
            return;
        }
        let wait = u64::from(retry_after.unwrap_or(0)) * 1_000_000_000;
        let not_before = crowd.shared.now() + wait;
        crowd.retry(client, not_before);
    }

    fn take(&mut self, client: u32, frame: FromServer<'_>) {
        let silent = self.crowd.clients[client as usize].flags & flag::SILENT != 0;
        match frame {
            FromServer::Connected => self.up(client),
            FromServer::Pong => {}
            FromServer::Ping(payload) => {
                if !silent {
                    let mask = self.crowd.random() as u32;
                    wire::put_masked(10, payload, mask, self.crowd.out(client));
                }
            }
            FromServer::Close(code) => {
                if !silent {
                    let (mask, code) = (self.crowd.random() as u32, code.to_be_bytes());
                    wire::put_masked(8, &code, mask, self.crowd.out(client));
                }
                self.close_told(client, code);
            }
            FromServer::Frame(frame) => self.on_frame(client, *frame),
        }
    }

    fn on_frame(&mut self, client: u32, frame: ServerFrame) {
        if let Some(ServerBody::Error(error)) = &frame.frame {
            let code = error.code.clone();
            *self.crowd.tally.errors.entry(code).or_default() += 1;
            if error.close_code != 0 {
                let code = u16::try_from(error.close_code).unwrap_or(NO_CODE);
                // On WebSockets the close frame that follows says the same.
                if self.crowd.plan.transport == Transport::Tcp {
                    return self.close_told(client, code);
                }
            }
        }
        self.does.frame(client, frame, &mut self.crowd);
    }

    fn up(&mut self, client: u32) {
        let crowd = &mut self.crowd;
        let now = crowd.shared.now();
        let it = &mut crowd.clients[client as usize];
        if it.state != State::Opening {
            return;
        }
        it.state = State::Up;
        it.attempts = 0;
        record(&mut crowd.tally.connect, now.saturating_sub(it.at_ns));
        crowd.under_way -= 1;
        crowd.tally.sessions += 1;
        crowd.shared.up.fetch_add(1, Ordering::Relaxed);
        crowd.shared.sessions.fetch_add(1, Ordering::Relaxed);
        self.does.up(client, crowd);
    }

    /// The server says that it closes this connection, and why.
    fn close_told(&mut self, client: u32, code: u16) {
        let crowd = &mut self.crowd;
        if Close::from_code(code).is_some_and(Close::is_terminal) {
            crowd.clients[client as usize].flags |= flag::STAYS_AWAY;
        }
        crowd.codes.insert(client, code);
        self.lost(client);
    }

    /// A connection that the server ends: from here on it is closing.
    fn lost(&mut self, client: u32) {
        let crowd = &mut self.crowd;
        let now = crowd.shared.now();
        let was = crowd.clients[client as usize].state;
        crowd.now_leaving(client);
        let code = crowd.codes.get(&client).copied().unwrap_or(NO_CODE);
        if was != State::Up {
            return crowd.shared.failed(|| format!("closed with {code}"));
        }
        *crowd.tally.closes.entry(code).or_default() += 1;
        let it = &mut crowd.clients[client as usize];
        let since = std::mem::replace(&mut it.at_ns, now);
        if it.flags & flag::SILENT != 0 {
            crowd.tally.time("reaped", now.saturating_sub(since));
        }
        self.does.down(client, crowd);
    }

    fn closed(&mut self, client: u32, error: Option<io::ErrorKind>) {
        let crowd = &mut self.crowd;
        let it = &mut crowd.clients[client as usize];
        if it.flags & flag::PARTIAL != 0 {
            crowd.partials.remove(&client);
        }
        if it.flags & (flag::DIRTY | flag::BLOCKED) != 0 {
            crowd.outs.remove(&client);
        }
        it.flags &= !(flag::PARTIAL | flag::BLOCKED | flag::LEAVES);
        match it.state {
            State::Dialling | State::Upgrading | State::Opening => {
                let what = error.map_or("closed".to_owned(), |kind| kind.to_string());
                if error == Some(io::ErrorKind::AddrNotAvailable) {
                    let cure = "no free port: lower --per-source or widen ip_local_port_range";
                    crowd.shared.failed(|| cure.to_owned());
                }
                crowd.shared.failed(|| format!("connecting: {what}"));
                *crowd.tally.connect_errors.entry(what).or_default() += 1;
                crowd.now_leaving(client);
            }
            State::Up => self.lost(client),
            State::Away | State::Queued | State::Leaving | State::Gone => {}
        }
        self.crowd.codes.remove(&client);
        self.crowd.come_back(client);
    }
}
