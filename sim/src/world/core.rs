//! The core process: the engine, driven as its thread drives it, and each edge's stream as the
//! runtime keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message as _;
use trunkline_core::engine::{
    EdgeKey, Effect, Engine, EngineConfig, EngineStats, Input, Now, Request, Token,
};
use trunkline_core::runtime::streams::{Bounds, EdgeStream, Flushed};
use trunkline_core::runtime::{LINK_BUFFER_BYTES_MAX, LINK_BUFFER_OPS_MAX};
use trunkline_core::store::WriteBatch;
use trunkline_proto::client::ServerBody;
use trunkline_proto::link::{CoreBatch, CoreOp, EdgeBatch, EdgeHello, EdgeOp, core_op, edge_op};
use trunkline_proto::ports::EdgePort;

use super::client::Client;
use super::link::Break;
use super::net::Dir;
use super::{Event, World, trace};
use crate::bugs::Bug;
use crate::check::core::{CoreCheck, responded};
use crate::plan::{MS, Plan};
use crate::store::SimStore;

/// A batch that took longer was held back by the network.
const LATE: u64 = 5 * MS;
/// A tick comes at least this often while the engine waits for anything.
const TICK_MAX: u64 = 200 * MS;
const BOUNDS: Bounds = Bounds {
    ops_max: LINK_BUFFER_OPS_MAX,
    bytes_max: LINK_BUFFER_BYTES_MAX,
};

/// What comes to the engine's thread.
pub(super) enum CoreInput {
    Batch {
        stream: usize,
        sent_at: u64,
        bytes: Vec<u8>,
    },
    Detach {
        stream: usize,
    },
    Call {
        call: usize,
        user: String,
        request: Request,
    },
    Store(Input),
}

/// Keeps what the runtime hands over to the network.
#[derive(Default)]
struct Port(Mutex<Vec<CoreBatch>>);

impl EdgePort for Port {
    fn deliver(&self, batch: CoreBatch) {
        self.0.lock().push(batch);
    }

    // Cuts go through the world.
    fn cut(&self, _reason: &str) {}
}

struct Attached {
    stream: usize,
    port: Arc<Port>,
    runtime: EdgeStream,
}

impl Attached {
    /// As the engine's thread counts what is dealt with as soon as it is heard.
    fn hear(&mut self, ops: &[EdgeOp], now: Now) {
        let mut heard = 0;
        for op in ops {
            match &op.op {
                Some(edge_op::Op::Frame(_)) => continue,
                Some(edge_op::Op::Opened(opened)) if opened.announced_again => {
                    self.runtime.announces(now.unix_ms);
                }
                _ => {}
            }
            heard += 1;
        }
        self.runtime.settle(heard);
    }
}

/// The process and its disk.
pub(super) struct Core {
    pub(super) epoch: u64,
    engine: Option<Engine>,
    pub(super) store: SimStore,
    attached: BTreeMap<EdgeKey, Attached>,
    last_key: u32,
    pending: Vec<CoreInput>,
    turn_at: Option<u64>,
    last_tick: u64,
    started_at: u64,
    pub(super) clock_offset_ms: i64,
    calls: BTreeMap<Token, usize>,
    last_token: u64,
    /// Marks as last told, for the defect that does not merge them.
    pub(super) last_marks: BTreeMap<(String, String), u64>,
}

impl Core {
    /// A process that has just started, on an empty disk.
    pub(super) fn new(plan: &Plan) -> Self {
        let mut core = Self {
            epoch: 1,
            engine: None,
            store: SimStore::default(),
            attached: BTreeMap::new(),
            last_key: 0,
            pending: Vec::new(),
            turn_at: None,
            last_tick: 0,
            started_at: 0,
            clock_offset_ms: 0,
            calls: BTreeMap::new(),
            last_token: 0,
            last_marks: BTreeMap::new(),
        };
        core.start(plan, 0);
        core
    }

    fn start(&mut self, plan: &Plan, now: u64) {
        let config = EngineConfig {
            worker_id: 7,
            send_rate: plan.send_rate,
            send_burst: plan.send_burst,
            conversations_cached_max: plan.conversations_cached_max,
            recent_bytes_max: plan.recent_bytes_max,
            operations_open_max: plan.operations_open_max,
            rosters: plan.rosters,
            ..EngineConfig::default()
        };
        let floor = match plan.bug {
            Some(Bug::FloorForgotten) => 0,
            _ => self.store.durable.message_id_floor(),
        };
        // Groups of one process never get the ids of another's.
        let uuid_seed = plan.seed.rotate_left(17) ^ self.epoch;
        self.engine = Some(Engine::new(config, floor, uuid_seed));
        self.started_at = now;
        self.last_tick = 0;
    }

    pub(super) const fn is_up(&self) -> bool {
        self.engine.is_some()
    }

    pub(super) fn stats(&self) -> EngineStats {
        self.engine.as_ref().map(Engine::stats).unwrap_or_default()
    }

    /// Credit that the edges hold out to the core, and operations that wait for it, by stream.
    pub(super) fn credits(&self) -> Vec<(usize, usize, usize)> {
        let all = self.attached.values();
        all.map(|a| (a.stream, a.runtime.credit(), a.runtime.waiting()))
            .collect()
    }
}

impl World {
    /// Something comes to the engine's thread.
    pub(super) fn core_input(&mut self, input: CoreInput) {
        if self.core.is_up() {
            self.core.pending.push(input);
            let delay = self.rng.turns.within(1_000, 300_000);
            self.plan_core_turn(self.now + delay);
        }
    }

    fn plan_core_turn(&mut self, at: u64) {
        if self.core.turn_at.is_none_or(|planned| at < planned) {
            self.core.turn_at = Some(at);
            let epoch = self.core.epoch;
            self.queue.push(at, Event::CoreTurn { epoch });
        }
    }

    fn core_now(&self) -> Now {
        Now {
            mono_ns: self.now - self.core.started_at,
            unix_ms: self.unix_ms(self.core.clock_offset_ms),
        }
    }

    /// One turn of the engine's thread.
    pub(super) fn core_turn(&mut self, epoch: u64) {
        if self.core.epoch != epoch || self.core.turn_at != Some(self.now) {
            return;
        }
        self.core.turn_at = None;
        let Some(mut engine) = self.core.engine.take() else {
            return;
        };
        let now = self.core_now();
        let mut effects = Vec::new();
        for input in std::mem::take(&mut self.core.pending) {
            for input in self.inputs(input, now) {
                trace!(self, "core: {}", summary(&input));
                engine.on(input, now, &mut effects);
            }
        }
        let tick_at = self.core.last_tick + TICK_MAX;
        let deadline = engine.next_deadline();
        if deadline.is_some_and(|at| at <= now.mono_ns || now.mono_ns >= tick_at) {
            self.core.last_tick = now.mono_ns;
            engine.on(Input::Tick, now, &mut effects);
        }
        engine.end_turn(now, &mut effects);
        let next = engine
            .next_deadline()
            .map(|at| at.min(self.core.last_tick + TICK_MAX));
        self.core.engine = Some(engine);
        for effect in effects {
            self.carry_out(effect, now);
        }
        self.flush(now);
        if let Some(at) = next {
            let at = (self.core.started_at + at).max(self.now + 50_000);
            self.plan_core_turn(at);
        }
    }

    // ---- in ----

    /// What an event means to the engine.
    fn inputs(&mut self, input: CoreInput, now: Now) -> Vec<Input> {
        match input {
            CoreInput::Batch {
                stream,
                sent_at,
                bytes,
            } => match EdgeBatch::decode(&bytes[..]) {
                Ok(batch) => {
                    let is_late = self.now - sent_at > LATE;
                    self.look_at_openings(is_late, &batch.ops);
                    self.edge_batch(stream, batch, now)
                }
                Err(error) => {
                    self.violation(format!("a batch of an edge: {error}"));
                    Vec::new()
                }
            },
            CoreInput::Detach { stream } => {
                let Some(edge) = self.streams[stream].key else {
                    return Vec::new();
                };
                if self.core.attached.remove(&edge).is_none() || self.has(Bug::DetachForgotten) {
                    return Vec::new();
                }
                vec![Input::EdgeDetached { edge }]
            }
            CoreInput::Call {
                call,
                user,
                request,
            } => {
                self.core.last_token += 1;
                let token = Token(self.core.last_token);
                self.core.calls.insert(token, call);
                vec![Input::Request {
                    token,
                    user,
                    request,
                    from_core: false,
                }]
            }
            CoreInput::Store(input) => vec![input],
        }
    }

    fn edge_batch(&mut self, stream: usize, mut batch: EdgeBatch, now: Now) -> Vec<Input> {
        let mut inputs = Vec::new();
        if let Some(hello) = batch.hello.take() {
            inputs.push(self.attach(stream, hello));
        }
        let Some(mut edge) = self.streams[stream].key else {
            self.violation("operations before the greeting");
            return inputs;
        };
        self.check.core.edge_grants(edge, batch.credit);
        let heard = self.check.core.heard(edge, &batch.ops);
        self.check.judge(self.now, heard);
        self.plant_in_ops(edge, &mut batch.ops);
        if let Some(at) = self.core.attached.get_mut(&edge) {
            at.runtime.grant(batch.credit, BOUNDS);
            at.hear(&batch.ops, now);
        } else if self.has(Bug::OldStreamAccepted) {
            let same = |a: &&Attached| self.streams[a.stream].edge == self.streams[stream].edge;
            if let Some(present) = self.core.attached.values().find(same) {
                edge = self.streams[present.stream].key.unwrap_or(edge);
            }
        }
        self.trace.detail(|| format!("{now:?} {:?}", batch.ops));
        if !batch.ops.is_empty() {
            let ops = batch.ops;
            inputs.push(Input::EdgeOps { edge, ops });
        }
        inputs
    }

    fn attach(&mut self, stream: usize, hello: EdgeHello) -> Input {
        self.core.last_key += 1;
        let edge = EdgeKey(self.core.last_key);
        self.streams[stream].key = Some(edge);
        self.check.core.attached(edge);
        // The engine takes an older stream of the same edge for dead as it hears of this one.
        let mut all = self.core.attached.iter();
        let older = all
            .find(|(_, a)| a.runtime.edge_id == hello.edge_id)
            .map(|(key, _)| *key);
        if let Some(old) = older.and_then(|key| self.core.attached.remove(&key)) {
            self.break_stream(old.stream, Break::ByCore);
        }
        let port = Arc::new(Port::default());
        let runtime = EdgeStream::open(&hello, port.clone(), self.core.epoch);
        self.core.attached.insert(
            edge,
            Attached {
                stream,
                port,
                runtime,
            },
        );
        Input::EdgeAttached {
            edge,
            resumes_here: hello.resume_from_incarnation == self.core.epoch,
            hello,
        }
    }

    fn plant_in_ops(&mut self, edge: EdgeKey, ops: &mut Vec<EdgeOp>) {
        match self.plan.bug {
            Some(Bug::AnnounceDropped) => ops
                .retain(|op| !matches!(&op.op, Some(edge_op::Op::Opened(o)) if o.announced_again)),
            Some(Bug::CloseDropped) => {
                ops.retain(|op| !matches!(op.op, Some(edge_op::Op::Closed(_))));
            }
            Some(Bug::WatermarkFalls) => self.note_marks(edge, ops),
            _ => {}
        }
    }

    /// An opening that the network held back is newer to the core than it is: what it displaces is
    /// a known limit (one edge cannot know of another's sessions, and clocks are not trusted).
    fn look_at_openings(&mut self, is_late: bool, ops: &[EdgeOp]) {
        for op in ops {
            let Some(edge_op::Op::Opened(opened)) = &op.op else {
                continue;
            };
            if opened.announced_again {
                self.cover.announced_again += 1;
            } else if is_late {
                let mut all = self.clients.iter_mut();
                let named =
                    |c: &&mut Client| c.user == opened.user_id && c.device == opened.device_id;
                if let Some(client) = all.find(named) {
                    client.may_be_displaced = true;
                }
            }
        }
    }

    // ---- out ----

    fn carry_out(&mut self, effect: Effect, now: Now) {
        match effect {
            Effect::ToEdge { edge, op } => self.tell_edge(edge, op, now),
            Effect::Settled { edge, operations } => {
                let leaks = self.has(Bug::CreditLeaked) && self.now.is_multiple_of(7);
                if let Some(at) = self.core.attached.get_mut(&edge).filter(|_| !leaks) {
                    at.runtime.settle(operations);
                }
            }
            Effect::CutEdge { edge, reason } => {
                self.violation(format!("the core cuts {edge:?}: {reason}"));
            }
            Effect::Commit { commit, batch } => {
                self.begin_commit(commit, WriteBatch::clone(&batch));
            }
            Effect::Load {
                conversation,
                recent_max,
            } => self.begin_load(conversation, recent_max),
            Effect::ReadPage {
                token,
                conversation,
                range,
            } => self.begin_page(token, conversation, range),
            Effect::ReadIndex { token, user } => self.begin_index(token, user),
            Effect::Respond { token, response } => {
                let Some(call) = self.core.calls.remove(&token) else {
                    return self.violation("an answer to no call");
                };
                trace!(
                    self,
                    "core > call {call}: {}",
                    if response.is_ok() { "ok" } else { "error" }
                );
                let verdict = responded(&self.check.truth, &self.calls[call].user, &response);
                self.check.judge(self.now, verdict);
                let delay = self.rng.net.within(50_000, 5 * MS);
                let response = Box::new(response);
                self.after(delay, Event::CallAnswered { call, response });
            }
            other @ (Effect::Released { .. }
            | Effect::Evicted { .. }
            | Effect::CaughtUp { .. }
            | Effect::Forward { .. }
            | Effect::Ask { .. }) => {
                self.violation(format!(
                    "wanted of a cluster where there is none: {other:?}"
                ));
            }
            Effect::Fatal { reason } => self.violation(format!("the store failed: {reason}")),
        }
    }

    fn tell_edge(&mut self, edge: EdgeKey, mut op: CoreOp, now: Now) {
        self.look_at_roster(&mut op);
        if self.has(Bug::HintOmitted) && is_hint(&op) {
            return;
        }
        if let Some(core_op::Op::Deliver(deliver)) = &op.op
            && let Some(ServerBody::Error(error)) =
                deliver.frame.as_ref().and_then(|f| f.frame.as_ref())
        {
            self.cover.unavailable += u64::from(error.code == "unavailable");
        }
        if let Some(at) = self.core.attached.get_mut(&edge) {
            at.runtime.push(op, now.unix_ms);
        }
    }

    /// Counts what rosters do, and plants what is wrong with them.
    fn look_at_roster(&mut self, op: &mut CoreOp) {
        let (keeps, misses) = (
            self.has(Bug::RosterKeepsRemoved),
            self.has(Bug::RosterMissesJoined),
        );
        match &mut op.op {
            Some(core_op::Op::Roster(roster)) if roster.version > 1 => {
                self.cover.roster_changes += 1;
                if keeps {
                    roster.left.clear();
                }
                if misses {
                    roster.joined.clear();
                }
            }
            Some(core_op::Op::DeliverToRoster(_)) => self.cover.roster_deliveries += 1,
            _ => {}
        }
    }

    fn flush(&mut self, now: Now) {
        let keys: Vec<EdgeKey> = self.core.attached.keys().copied().collect();
        for edge in keys {
            let Some(at) = self.core.attached.get_mut(&edge) else {
                continue;
            };
            let flushed = at.runtime.flush(now.unix_ms, BOUNDS);
            let stream = at.stream;
            let batches = std::mem::take(&mut *at.port.0.lock());
            for batch in batches {
                self.core_says(edge, stream, batch);
            }
            if flushed == Flushed::OverBounds {
                self.violation("a stream over its bounds");
            }
        }
    }

    fn core_says(&mut self, edge: EdgeKey, stream: usize, mut batch: CoreBatch) {
        if batch.welcome.is_some() {
            batch.credit = self.plan.credit;
        }
        if self.has(Bug::DeliveriesReordered) {
            batch.ops.reverse();
        }
        let said = self.check.core.said(&self.check.truth, edge, &batch.ops);
        self.check.judge(self.now, said);
        self.check.core.core_grants(edge, batch.credit);
        let bytes = batch.encode_to_vec();
        trace!(
            self,
            "core > stream {stream}: {} operations, credit {}, {:08x}",
            batch.ops.len(),
            batch.credit,
            crate::trace::print(&bytes)
        );
        self.trace.detail(|| format!("{:?}", batch.ops));
        self.push_batch(stream, Dir::Down, &bytes);
    }

    // ---- the process ----

    /// The core learns that a stream is over.
    pub(super) fn core_loses(&mut self, stream: usize) {
        if self.streams[stream].core_epoch == self.core.epoch {
            self.core_input(CoreInput::Detach { stream });
        }
    }

    /// The process dies, with all that is not on stable storage.
    pub(super) fn core_crash(&mut self) {
        trace!(self, "core crashes");
        self.cover_engine();
        self.core.engine = None;
        self.core.epoch += 1;
        self.core.pending.clear();
        self.core.turn_at = None;
        self.core.calls.clear();
        self.disk_crash();
        for at in std::mem::take(&mut self.core.attached).into_values() {
            self.break_stream(at.stream, Break::CoreDied);
        }
    }

    pub(super) fn core_start(&mut self) {
        if self.core.is_up() {
            return;
        }
        trace!(self, "core starts, epoch {}", self.core.epoch);
        self.cover.clock_set_back_at_start += u64::from(self.core.clock_offset_ms < 0);
        self.check.core = CoreCheck::default();
        let plan = self.plan.clone();
        self.core.start(&plan, self.now);
    }

    /// Counts what the engine saw, before it is gone.
    pub(super) fn cover_engine(&mut self) {
        let stats = self.core.stats();
        let cover = &mut self.cover;
        cover.commit_retries += stats.commit_retries;
        cover.reads_from_store += stats.reads;
        cover.evictions += stats.evictions;
        cover.roster_evictions += stats.roster_evictions;
        cover.hints += stats.hints;
        cover.hints_spared += stats.hints_spared;
        cover.replaced += stats.replaced;
        cover.duplicates += stats.duplicates;
        cover.rate_limited += stats.rate_limited;
        cover.overloaded += stats.overloaded;
        cover.receipts += stats.receipts;
    }
}

/// A `conversation` that tells of no change.
fn is_hint(op: &CoreOp) -> bool {
    let Some(core_op::Op::Deliver(deliver)) = &op.op else {
        return false;
    };
    match deliver.frame.as_ref().and_then(|f| f.frame.as_ref()) {
        Some(ServerBody::Conversation(c)) => {
            c.members_added.is_empty() && c.members_removed.is_empty()
        }
        _ => false,
    }
}

fn summary(input: &Input) -> String {
    match input {
        Input::EdgeAttached { edge, hello, .. } => {
            format!(
                "{} attaches as {}, from {}",
                hello.edge_id, edge.0, hello.resume_from_ms
            )
        }
        Input::EdgeDetached { edge } => format!("{} detaches", edge.0),
        Input::EdgeOps { edge, ops } => format!("{} operations of {}", ops.len(), edge.0),
        Input::Request {
            token,
            user,
            request,
            ..
        } => format!("{} of {user}: {request:?}", token.0),
        Input::Committed { commit, result } => format!("commit {commit} ended: {result:?}"),
        Input::Loaded {
            conversation,
            result,
        } => {
            let head = result.as_ref().map(|s| s.as_ref().map(|s| s.head));
            format!("loaded {conversation}: {head:?}")
        }
        Input::PageRead { token, result } => {
            format!("page {}: {:?}", token.0, result.as_ref().map(Vec::len))
        }
        Input::IndexRead { token, result } => {
            format!("index {}: {:?}", token.0, result.as_ref().map(Vec::len))
        }
        Input::Tick => "tick".to_owned(),
        other => format!("{other:?}"),
    }
}
