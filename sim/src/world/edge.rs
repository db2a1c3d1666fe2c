//! An edge process: shards as their loop drives them, turn by turn, and the edge's side of the link
//! as its manager keeps it.

use std::sync::Arc;

use prost::Message as _;
use trunkline_edge::hub::ShardOp;
use trunkline_edge::link::Resume;
use trunkline_edge::link::rosters::Rosters;
use trunkline_edge::link::router::split;
use trunkline_edge::link::uplink::Credit;
use trunkline_edge::observe::counters::Number;
use trunkline_edge::ring::ConnId;
use trunkline_edge::session::{Actions, Bounds, Now, Settings, Shard, Transport};
use trunkline_identity::{KeySource, Verifier};
use trunkline_proto::link::{CoreBatch, EdgeBatch, EdgeHello, VERSION};

use super::net::{Cut, Dir};
use super::{Event, World, trace};
use crate::bugs::Bug;
use crate::plan::{MS, Plan};
use crate::wire::Kind;

/// What tokens are signed with.
pub(super) const SECRET: &str = "a secret of the simulator's own";
/// The first wait before attaching anew, and the longest.
const BACKOFF_MIN: u64 = 100 * MS;
const BACKOFF_MAX: u64 = 5_000 * MS;
/// An attempt to attach is given up after this.
pub(super) const ATTACH_MAX: u64 = 5_000 * MS;

/// What the driver tells a shard.
pub(super) enum SocketInput {
    Accepted(ConnId, Transport),
    Received(ConnId, Vec<u8>),
    Eof(ConnId),
    Blocked(ConnId, usize),
    Drained(ConnId),
    Closed(ConnId),
}

/// What the rest of the process tells a shard.
enum Item {
    LinkUp {
        stream: usize,
        credit: Arc<Credit>,
    },
    LinkDown {
        stream: usize,
    },
    Core {
        stream: usize,
        ops: Vec<ShardOp>,
        settles: u32,
    },
    Drain {
        budget_ms: u64,
    },
}

/// A place in the driver's table.
struct Slot {
    generation: u32,
    socket: Option<usize>,
}

pub(super) struct ShardNode {
    machine: Shard,
    sockets: Vec<SocketInput>,
    inbox: Vec<Item>,
    slots: Vec<Slot>,
    /// The attachment that the shard knows.
    stream: Option<usize>,
    /// The next turn.
    turn_at: Option<u64>,
}

/// Where the link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Down,
    /// Greeted, no welcome yet.
    Attaching(usize),
    Up(usize),
}

pub(super) struct Edge {
    pub(super) id: String,
    pub(super) is_up: bool,
    /// Rises with each start of the process.
    pub(super) epoch: u64,
    pub(super) shards: Vec<ShardNode>,
    pub(super) clock_offset_ms: i64,
    started_at: u64,
    pub(super) link: Link,
    attached_at: u64,
    backoff: u64,
    resume: Resume,
    pub(super) credit: Option<Arc<Credit>>,
    /// Of the present attachment.
    rosters: Rosters,
    /// A drain ends then, and the process starts anew.
    pub(super) drains: bool,
}

impl Edge {
    /// A process that has just started.
    pub(super) fn new(index: usize, plan: &Plan) -> Self {
        let mut edge = Self {
            id: format!("edge-{index}"),
            is_up: true,
            epoch: 1,
            shards: Vec::new(),
            clock_offset_ms: 0,
            started_at: 0,
            link: Link::Down,
            attached_at: 0,
            backoff: BACKOFF_MIN,
            resume: Resume::default(),
            credit: None,
            rosters: Rosters::new(plan.shards),
            drains: false,
        };
        edge.start(index, plan, 0);
        edge
    }

    fn start(&mut self, index: usize, plan: &Plan, now: u64) {
        self.started_at = now;
        self.link = Link::Down;
        self.backoff = BACKOFF_MIN;
        self.resume = Resume::default();
        self.credit = None;
        self.drains = false;
        let verifier = Verifier::new(&KeySource::Secret(SECRET.into()));
        self.shards = (0..plan.shards)
            .map(|shard| {
                let settings = Settings {
                    shard: shard as u8,
                    incarnation: self.epoch,
                    seed: plan.seed ^ (self.epoch << 8 | (index as u64) << 4 | shard as u64),
                    heartbeat_ms: plan.heartbeat_ms,
                    send_rate: plan.send_rate,
                    send_burst: plan.send_burst,
                    outbox: Bounds {
                        soft: plan.outbox_soft,
                        hard: plan.outbox_hard,
                    },
                    ..Settings::default()
                };
                ShardNode {
                    machine: Shard::new(settings, verifier.clone()),
                    sockets: Vec::new(),
                    inbox: Vec::new(),
                    slots: Vec::new(),
                    stream: None,
                    turn_at: None,
                }
            })
            .collect();
    }
}

impl World {
    // ---- turns ----

    /// Sees to it that a shard has a turn by then.
    fn plan_edge_turn(&mut self, edge: usize, shard: usize, at: u64) {
        let node = &mut self.edges[edge].shards[shard];
        if node.turn_at.is_none_or(|planned| at < planned) {
            node.turn_at = Some(at);
            let epoch = self.edges[edge].epoch;
            self.queue.push(at, Event::EdgeTurn { edge, shard, epoch });
        }
    }

    fn wake_shard(&mut self, edge: usize, shard: usize) {
        let delay = self.rng.turns.within(1_000, 300_000);
        self.plan_edge_turn(edge, shard, self.now + delay);
    }

    /// The driver has something for the shard of a socket.
    pub(super) fn socket_input(&mut self, socket: usize, input: SocketInput) {
        let at = &self.sockets[socket];
        let (edge, shard) = (at.edge, at.shard);
        if self.edges[edge].epoch != at.epoch || !self.edges[edge].is_up {
            return;
        }
        self.edges[edge].shards[shard].sockets.push(input);
        self.wake_shard(edge, shard);
    }

    fn tell_shards(&mut self, edge: usize, item: impl Fn() -> Item) {
        for shard in 0..self.edges[edge].shards.len() {
            self.edges[edge].shards[shard].inbox.push(item());
            self.wake_shard(edge, shard);
        }
    }

    /// A connection comes in.
    pub(super) fn accept(&mut self, socket: usize) {
        let (edge, shard) = (self.sockets[socket].edge, self.sockets[socket].shard);
        let slots = &mut self.edges[edge].shards[shard].slots;
        let slot = slots
            .iter()
            .position(|s| s.socket.is_none())
            .unwrap_or_else(|| {
                slots.push(Slot {
                    generation: 0,
                    socket: None,
                });
                slots.len() - 1
            });
        slots[slot].socket = Some(socket);
        slots[slot].generation += 1;
        let conn = ConnId {
            slot: slot as u32,
            generation: slots[slot].generation,
        };
        self.sockets[socket].conn = Some(conn);
        let transport = match self.clients[self.sockets[socket].client].kind {
            Kind::Tcp => Transport::Tcp,
            Kind::WsProto | Kind::WsJson => Transport::WebSocket,
        };
        self.socket_input(socket, SocketInput::Accepted(conn, transport));
    }

    pub(super) fn free_slot(&mut self, socket: usize) {
        let at = &self.sockets[socket];
        let edge = &mut self.edges[at.edge];
        if let Some(conn) = at.conn.filter(|_| edge.epoch == at.epoch) {
            edge.shards[at.shard].slots[conn.slot as usize].socket = None;
        }
    }

    /// One turn of a shard's loop.
    pub(super) fn edge_turn(&mut self, edge: usize, shard: usize, epoch: u64) {
        let unix_ms = self.unix_ms(self.edges[edge].clock_offset_ms);
        let at = &mut self.edges[edge];
        if at.epoch != epoch || !at.is_up || at.shards[shard].turn_at != Some(self.now) {
            return;
        }
        let started_at = at.started_at;
        let node = &mut at.shards[shard];
        node.turn_at = None;
        let mut inputs = std::mem::take(&mut node.sockets);
        let inbox = std::mem::take(&mut node.inbox);
        node.machine.begin(Now {
            mono_ns: self.now - started_at,
            unix_ms,
        });
        // What the kernel did not take is told some time in the turn, not first.
        delay_blocked(&mut inputs, &mut self.rng.turns);
        for input in inputs {
            feed(&mut node.machine, input);
        }
        for item in inbox {
            node.take(item);
        }
        let mut actions = Actions::default();
        node.machine.end_turn(&mut actions);
        let stream = node.stream;
        self.apply(edge, shard, actions, stream);
        let node = &self.edges[edge].shards[shard];
        if let Some(timeout) = node.machine.timeout() {
            let wait = timeout.as_nanos() as u64;
            self.plan_edge_turn(edge, shard, self.now + wait.max(50_000));
        }
    }

    fn apply(&mut self, edge: usize, shard: usize, actions: Actions, stream: Option<usize>) {
        let mut sent: Vec<ConnId> = Vec::new();
        for (conn, bytes) in actions.sends {
            if sent.contains(&conn) {
                self.violation("two sends for one connection in a turn");
            }
            sent.push(conn);
            if let Some(socket) = self.socket_of(edge, shard, conn) {
                self.edge_sends(socket, bytes);
            }
        }
        for conn in actions.shutdowns {
            if let Some(socket) = self.socket_of(edge, shard, conn) {
                self.edge_shuts(socket);
            }
        }
        for conn in actions.closes {
            if let Some(socket) = self.socket_of(edge, shard, conn) {
                self.edge_drops(socket);
            }
        }
        if let Some(stream) = stream
            && (!actions.ops.is_empty() || actions.settled > 0)
        {
            let batch = EdgeBatch {
                hello: None,
                ops: actions.ops,
                credit: actions.settled,
            };
            trace!(
                self,
                "e{edge}.{shard} > stream {stream}: {} operations, credit {}",
                batch.ops.len(),
                batch.credit
            );
            self.trace.detail(|| format!("{:?}", batch.ops));
            self.push_batch(stream, Dir::Up, &batch.encode_to_vec());
        }
    }

    fn socket_of(&self, edge: usize, shard: usize, conn: ConnId) -> Option<usize> {
        let slot = self.edges[edge].shards[shard]
            .slots
            .get(conn.slot as usize)?;
        slot.socket.filter(|_| slot.generation == conn.generation)
    }

    // ---- the link ----

    /// The edge tries to attach.
    pub(super) fn edge_attach(&mut self, edge: usize, epoch: u64) {
        let at = &self.edges[edge];
        if !at.is_up || at.epoch != epoch || at.link != Link::Down {
            return;
        }
        let stream = self.open_stream(edge);
        let at = &mut self.edges[edge];
        at.link = Link::Attaching(stream);
        at.attached_at = self.now;
        let mut hello = EdgeHello {
            edge_id: at.id.clone(),
            incarnation: at.epoch,
            resume_from_ms: at.resume.from_ms,
            resume_from_incarnation: at.resume.core_incarnation,
            send_rate: self.plan.send_rate,
            send_burst: self.plan.send_burst,
            sessions_per_user_max: trunkline_proto::limits::SESSIONS_PER_USER_MAX,
            version: VERSION,
        };
        if self.has(Bug::DetachForgotten) {
            // So that the next attachment does not tell the core either.
            hello.edge_id = format!("{}-{stream}", hello.edge_id);
        }
        let greeting = EdgeBatch {
            hello: Some(hello),
            ops: Vec::new(),
            credit: self.plan.credit,
        };
        trace!(self, "e{edge} greets the core on stream {stream}");
        self.push_batch(stream, Dir::Up, &greeting.encode_to_vec());
        // Given up if there is no welcome by then.
        self.after(
            ATTACH_MAX,
            Event::StreamEnds {
                stream,
                at_core: false,
            },
        );
    }

    /// A batch of the core comes to the edge.
    pub(super) fn edge_hears(&mut self, stream: usize, bytes: &[u8]) {
        let edge = self.streams[stream].edge;
        let batch = match CoreBatch::decode(bytes) {
            Ok(batch) => batch,
            Err(error) => return self.violation(format!("a batch of the core: {error}")),
        };
        trace!(
            self,
            "e{edge} < stream {stream}: {} operations, credit {}",
            batch.ops.len(),
            batch.credit
        );
        match self.edges[edge].link {
            Link::Attaching(at) if at == stream && batch.welcome.is_some() => {
                let credit = Arc::new(Credit::new(0));
                self.edges[edge].link = Link::Up(stream);
                self.edges[edge].credit = Some(credit.clone());
                self.edges[edge].rosters = Rosters::new(self.edges[edge].shards.len());
                self.tell_shards(edge, || Item::LinkUp {
                    stream,
                    credit: credit.clone(),
                });
            }
            Link::Up(at) if at == stream => {}
            _ => return,
        }
        let parts = match split(batch.ops, &mut self.edges[edge].rosters) {
            Ok(parts) => parts,
            Err(error) => return self.violation(format!("e{edge}: {error}")),
        };
        for (shard, part) in parts.into_iter().enumerate() {
            if !part.ops.is_empty() || part.settles > 0 {
                self.edges[edge].shards[shard].inbox.push(Item::Core {
                    stream,
                    ops: part.ops,
                    settles: part.settles,
                });
                self.wake_shard(edge, shard);
            }
        }
        let core_epoch = self.streams[stream].core_epoch;
        let at = &mut self.edges[edge];
        at.resume.told_until(batch.core_time_ms, core_epoch);
        let is_awaited = at.credit.as_ref().is_some_and(|c| c.grant(batch.credit));
        if is_awaited {
            for shard in 0..self.edges[edge].shards.len() {
                self.wake_shard(edge, shard);
            }
        }
    }

    /// The edge learns that its stream is over.
    pub(super) fn edge_loses(&mut self, stream: usize) {
        let edge = self.streams[stream].edge;
        match self.edges[edge].link {
            Link::Up(at) if at == stream => {
                self.edges[edge].credit = None;
                self.tell_shards(edge, || Item::LinkDown { stream });
            }
            Link::Attaching(at) if at == stream => {}
            _ => return,
        }
        trace!(self, "e{edge} loses stream {stream}");
        let now = self.now;
        let jitter = self.rng.link.within(500, 1_000);
        let at = &mut self.edges[edge];
        at.link = Link::Down;
        if now - at.attached_at >= BACKOFF_MAX {
            at.backoff = BACKOFF_MIN;
        }
        let wait = at.backoff * jitter / 1_000;
        at.backoff = (at.backoff * 2).min(BACKOFF_MAX);
        let epoch = at.epoch;
        self.after(wait, Event::EdgeAttach { edge, epoch });
    }

    // ---- the process ----

    /// The process dies: every socket and the stream with it.
    pub(super) fn edge_crash(&mut self, edge: usize) {
        trace!(self, "e{edge} crashes");
        self.edge_leaves(edge);
        self.edges[edge].is_up = false;
        for socket in 0..self.sockets.len() {
            let at = &self.sockets[socket];
            if at.edge == edge && at.epoch == self.edges[edge].epoch && at.edge_open {
                self.cut(socket, Cut::ByEdge);
            }
        }
        if let Link::Up(stream) | Link::Attaching(stream) = self.edges[edge].link {
            self.break_stream(stream, super::link::Break::EdgeDied);
        }
        self.edges[edge].link = Link::Down;
    }

    pub(super) fn edge_start(&mut self, edge: usize) {
        if self.edges[edge].drains {
            // It ends when its time is up, whoever is still there.
            self.edge_crash(edge);
        }
        if self.edges[edge].is_up {
            return;
        }
        let now = self.now;
        let plan = self.plan.clone();
        let at = &mut self.edges[edge];
        at.is_up = true;
        at.epoch += 1;
        at.start(edge, &plan, now);
        let epoch = at.epoch;
        trace!(self, "e{edge} starts, epoch {epoch}");
        self.after(0, Event::EdgeAttach { edge, epoch });
    }

    /// Everybody is sent elsewhere.
    pub(super) fn edge_drain(&mut self, edge: usize, budget_ms: u64) {
        trace!(self, "e{edge} drains within {budget_ms} ms");
        self.edges[edge].drains = true;
        self.tell_shards(edge, || Item::Drain { budget_ms });
    }

    /// Counts what its shards saw, before they are gone.
    pub(super) fn edge_leaves(&mut self, edge: usize) {
        for node in &mut self.edges[edge].shards {
            let numbers = node.machine.counters();
            let cover = &mut self.cover;
            cover.sessions += numbers.get(Number::SessionsOpened);
            cover.overloaded += numbers.get(Number::FramesOverloaded);
            cover.rate_limited += numbers.get(Number::FramesRateLimited);
            for closed in node.machine.list_closed(usize::MAX) {
                match closed.code {
                    4410 => cover.slow_closes += 1,
                    4411 => cover.silent_closes += 1,
                    _ => {}
                }
            }
        }
    }

    /// What of an edge's gauges is not as in an idle process.
    pub(super) fn edge_residue(&mut self, edge: usize) -> Option<String> {
        let gauges = [
            Number::OutboxBytes,
            Number::OutboxSockets,
            Number::LinkBacklog,
            Number::WsLive,
            Number::TcpLive,
            Number::WsClosing,
            Number::TcpClosing,
        ];
        for node in &mut self.edges[edge].shards {
            let numbers = node.machine.counters();
            if let Some(left) = gauges.iter().find(|g| numbers.get(**g) != 0) {
                return Some(format!("{left:?} {}", numbers.get(*left)));
            }
            let kept = node.machine.texts_kept();
            if kept > 0 {
                return Some(format!("{kept} ids"));
            }
            if node.machine.connections() > 0 {
                return Some(format!("connections {:?}", node.machine.list(None, 8)));
            }
        }
        None
    }
}

impl ShardNode {
    /// As the shard's loop takes an item of its inbox.
    fn take(&mut self, item: Item) {
        match item {
            Item::LinkUp { stream, credit } => {
                self.stream = Some(stream);
                self.machine.link_up(credit);
            }
            Item::LinkDown { stream } if self.stream == Some(stream) => {
                self.stream = None;
                self.machine.link_down();
            }
            Item::LinkDown { .. } => {}
            Item::Core {
                stream,
                ops,
                settles,
            } => {
                if self.stream == Some(stream) {
                    self.machine.core_ops(ops, settles);
                } else {
                    let still = |op: &ShardOp| !matches!(op, ShardOp::Registered { .. });
                    self.machine.core_ops(ops.into_iter().filter(still), 0);
                }
            }
            Item::Drain { budget_ms } => self.machine.drain(budget_ms),
        }
    }
}

fn feed(machine: &mut Shard, input: SocketInput) {
    match input {
        SocketInput::Accepted(conn, transport) => {
            let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 40_000));
            machine.accepted(conn, transport, peer);
        }
        SocketInput::Received(conn, mut data) => machine.received(conn, &mut data),
        SocketInput::Eof(conn) => machine.eof(conn),
        SocketInput::Blocked(conn, unsent) => machine.blocked(conn, unsent),
        SocketInput::Drained(conn) => machine.drained(conn),
        SocketInput::Closed(conn) => machine.closed(conn),
    }
}

/// Moves each `Blocked` somewhere behind, but not behind what follows from it.
fn delay_blocked(inputs: &mut [SocketInput], rng: &mut crate::rng::Rng) {
    for index in (0..inputs.len()).rev() {
        let SocketInput::Blocked(conn, _) = inputs[index] else {
            continue;
        };
        let mut at = index;
        while at + 1 < inputs.len() && rng.chance(600) {
            let follows = match &inputs[at + 1] {
                SocketInput::Drained(next) | SocketInput::Closed(next) => *next == conn,
                SocketInput::Accepted(..) | SocketInput::Blocked(..) => true,
                SocketInput::Received(..) | SocketInput::Eof(_) => false,
            };
            if follows {
                break;
            }
            inputs.swap(at, at + 1);
            at += 1;
        }
    }
}
