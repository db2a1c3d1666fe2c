//! The clients of one worker: what each is doing, what it owes its socket, when it tries again. All
//! but the driver, which the worker holds beside it.
//!
//! Invariants: an idle client costs its entry in `clients` and one in `by_slot`, 28 bytes; whatever
//! few clients have at a time (half a frame, bytes to send, a time to try again) lies in tables that
//! name the client. A client is dialling or in some later state exactly as long as its driver slot is
//! its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use trunkline_edge::ring::ConnId;
use trunkline_proto::client::{ClientBody, ClientFrame, Heartbeat, Ping};

use super::people::People;
use super::tally::Tally;
use super::{Plan, Shared, wire};
use crate::args;
use crate::args::Transport;

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not begun, or waiting for its time to try again.
    Away,
    /// Due to dial, in the queue.
    Queued,
    Dialling,
    /// The request is out, the answer is not there.
    Upgrading,
    /// Waits for `connected`.
    Opening,
    Up,
    /// Its connection is being closed.
    Leaving,
    /// Will not come back.
    Gone,
}

pub(super) mod flag {
    /// Half a frame lies in `partials`.
    pub const PARTIAL: u16 = 1;
    /// Is in `dirty`: owes bytes to its socket.
    pub const DIRTY: u16 = 2;
    /// Its socket is full; the driver holds a tail.
    pub const BLOCKED: u16 = 4;
    /// Gives no sign of life, and answers none.
    pub const SILENT: u16 = 8;
    /// Does not come back when its connection is gone.
    pub const STAYS_AWAY: u16 = 16;
    /// An entry in `later` brings it back.
    pub const RETURNS: u16 = 32;
    /// An entry in `later` has it leave while it is up.
    pub const LEAVES: u16 = 64;
}

/// One client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub conn: ConnId,
    /// While it connects: when that was due. While it is silent: since when. ns since the origin.
    pub at_ns: u64,
    pub flags: u16,
    pub state: State,
    /// Which edge it goes to, an index.
    pub edge: u8,
    /// Connects in a row that failed.
    pub attempts: u8,
    /// How often it dialled: tells rounds of source addresses apart.
    pub round: u8,
}

const _: () = assert!(size_of::<Client>() == 24);

/// Bytes that a client may owe its blocked socket before what is due counts as not sent.
const OUT_BYTES_MAX: usize = 1 << 20;

/// The clients of one worker.
pub struct Crowd {
    pub shared: Arc<Shared>,
    pub people: People,
    pub tally: Tally,
    pub(super) plan: Plan,
    pub(super) clients: Vec<Client>,
    /// Client by driver slot.
    pub(super) by_slot: Vec<u32>,
    pub(super) partials: HashMap<u32, Vec<u8>>,
    pub(super) outs: HashMap<u32, Vec<u8>>,
    pub(super) dirty: Vec<u32>,
    /// Due to dial, in the order in which they became due.
    pub(super) queue: VecDeque<u32>,
    /// When clients that are away try again.
    pub(super) later: BinaryHeap<Reverse<(u64, u32)>>,
    /// With which code the server is closing whom.
    pub(super) codes: HashMap<u32, u16>,
    /// Connections to close after this turn.
    pub(super) closing: Vec<ConnId>,
    /// Dialling, upgrading or opening.
    pub(super) under_way: u32,
    random: u64,
}

impl Crowd {
    pub(super) fn new(plan: Plan, people: People, shared: Arc<Shared>, slots: u32) -> Self {
        let client = |index: u32| Client {
            conn: ConnId {
                slot: u32::MAX,
                generation: 0,
            },
            at_ns: 0,
            state: State::Away,
            flags: 0,
            edge: u8::from(plan.first_client + index >= plan.second_edge_from),
            attempts: 0,
            round: 0,
        };
        Self {
            shared,
            people,
            tally: Tally::default(),
            clients: (0..plan.count).map(client).collect(),
            by_slot: vec![u32::MAX; slots as usize],
            partials: HashMap::new(),
            outs: HashMap::new(),
            dirty: Vec::new(),
            queue: VecDeque::new(),
            later: BinaryHeap::new(),
            codes: HashMap::new(),
            closing: Vec::new(),
            under_way: 0,
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(plan.first_client),
            plan,
        }
    }

    /// Clients of this worker; they are named by their indexes below.
    pub fn len(&self) -> u32 {
        self.clients.len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// The number of a client in the whole fleet.
    pub fn number(&self, client: u32) -> u32 {
        self.plan.first_client + client
    }

    /// The client with this number, if it is one of ours.
    pub fn index_of(&self, number: u32) -> Option<u32> {
        let index = number.checked_sub(self.plan.first_client)?;
        (index < self.len()).then_some(index)
    }

    pub fn is_up(&self, client: u32) -> bool {
        self.clients[client as usize].state == State::Up
    }

    /// xorshift64: even enough to spread load.
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Has a client that is up send a frame; false, and counted as not sent, if it is not up or owes
    /// its socket too much.
    pub fn send(&mut self, client: u32, body: ClientBody) -> bool {
        let owes_much = |crowd: &Self| {
            let out = crowd.outs.get(&client);
            out.is_some_and(|out| out.len() > OUT_BYTES_MAX)
        };
        if !self.is_up(client) || owes_much(self) {
            self.tally.not_sent += 1;
            return false;
        }
        self.put(client, body);
        true
    }

    pub(super) fn put(&mut self, client: u32, body: ClientBody) {
        let frame = ClientFrame {
            id: String::new(),
            frame: Some(body),
        };
        let (mask, transport) = (self.random() as u32, self.plan.transport);
        wire::put(&frame, transport, mask, self.out(client));
    }

    /// What a client owes its socket, to add to.
    pub(super) fn out(&mut self, client: u32) -> &mut Vec<u8> {
        let it = &mut self.clients[client as usize];
        if it.flags & flag::DIRTY == 0 {
            it.flags |= flag::DIRTY;
            self.dirty.push(client);
        }
        self.outs.entry(client).or_default()
    }

    /// Has a client leave, to come back at `back_at` (ns since the origin).
    pub fn leave(&mut self, client: u32, back_at: u64) {
        match self.clients[client as usize].state {
            State::Dialling | State::Upgrading | State::Opening | State::Up => self.end(client),
            State::Leaving => {}
            // One that is away or about to be back has its time already.
            State::Away | State::Queued | State::Gone => return,
        }
        let it = &mut self.clients[client as usize];
        if it.flags & flag::RETURNS == 0 {
            it.at_ns = back_at;
            self.return_at(client, back_at);
        }
    }

    /// Has a client not come back once its connection ends.
    pub fn stay_away(&mut self, client: u32) {
        self.clients[client as usize].flags |= flag::STAYS_AWAY;
    }

    /// Has a client that is up leave at `at`, and come back at once.
    pub fn move_at(&mut self, client: u32, at: u64) {
        self.clients[client as usize].flags |= flag::LEAVES;
        self.later.push(Reverse((at, client)));
    }

    pub(super) fn return_at(&mut self, client: u32, at: u64) {
        self.clients[client as usize].flags |= flag::RETURNS;
        self.later.push(Reverse((at, client)));
    }

    /// Has a client's next connect go to another edge.
    pub fn send_to_edge(&mut self, client: u32, edge: u8) {
        self.clients[client as usize].edge = edge;
    }

    /// Edges that clients may go to.
    pub fn edges(&self) -> u8 {
        self.plan.edges.len() as u8
    }

    /// Has a client fall silent: no sign of life, no answer to probes, and no FIN.
    pub fn fall_silent(&mut self, client: u32) {
        let now = self.shared.now();
        let it = &mut self.clients[client as usize];
        it.flags |= flag::SILENT | flag::STAYS_AWAY;
        it.at_ns = now;
    }

    /// Closes a client's connection; `Closed` follows.
    pub(super) fn end(&mut self, client: u32) {
        self.now_leaving(client);
        self.closing.push(self.clients[client as usize].conn);
    }

    /// From whatever a client with a connection was doing to [`State::Leaving`].
    pub(super) fn now_leaving(&mut self, client: u32) {
        let it = &mut self.clients[client as usize];
        match it.state {
            State::Dialling | State::Upgrading | State::Opening => self.under_way -= 1,
            State::Up => {
                self.shared.up.fetch_sub(1, Ordering::Relaxed);
            }
            State::Away | State::Queued | State::Leaving | State::Gone => {}
        }
        it.state = State::Leaving;
    }

    /// One sign of life of a client that is up and not silent.
    pub(super) fn heartbeat(&mut self, client: u32) {
        let it = &self.clients[client as usize];
        if it.state != State::Up || it.flags & flag::SILENT != 0 {
            return;
        }
        self.tally.heartbeats += 1;
        match self.plan.heartbeat {
            args::Heartbeat::Pong if self.plan.transport != Transport::Tcp => {
                let mask = self.random() as u32;
                wire::put_masked(10, b"", mask, self.out(client));
            }
            args::Heartbeat::Pong | args::Heartbeat::Frame => {
                self.put(client, ClientBody::Heartbeat(Heartbeat {}));
            }
            args::Heartbeat::Ping => self.put(client, ClientBody::Ping(Ping::default())),
            args::Heartbeat::None => {}
        }
    }

    /// A client whose connection is gone tries again after its back-off, elsewhere if it can; or
    /// never.
    pub(super) fn come_back(&mut self, client: u32) {
        let it = &mut self.clients[client as usize];
        it.state = State::Away;
        if it.flags & flag::STAYS_AWAY != 0 {
            it.state = State::Gone;
        } else if it.flags & flag::RETURNS == 0 {
            it.edge = (it.edge + 1) % self.plan.edges.len() as u8;
            self.retry(client, 0);
        }
    }

    /// A client will try again after its back-off and not before `not_before`.
    pub(super) fn retry(&mut self, client: u32, not_before: u64) {
        let random = self.random();
        let it = &mut self.clients[client as usize];
        let wait = self.plan.backoff.wait_ns(it.attempts, random);
        it.attempts = it.attempts.saturating_add(1);
        self.return_at(client, (self.shared.now() + wait).max(not_before));
    }
}
