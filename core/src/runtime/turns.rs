//! The engine's thread: it takes what has come, lets the engine decide, and carries out what the
//! engine wants. All effects of a turn happen in their order; what goes to an edge goes as one
//! batch for each turn.
//!
//! A turn takes all that has arrived, up to a bound, so batches form by themselves: small when idle,
//! large when busy. When turns begin says [`super::pace`]. With nothing to wait for the thread sleeps until something comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use trunkline_proto::link::{EdgeBatch, EdgeHello, edge_op};
use trunkline_proto::ports::EdgePort;

use super::cluster::{ClusterJob, ClusterLink, Forwarded};
use super::pace::Pace;
use super::queue::Receiver;
use super::store_threads::{CommitJob, ReadJob};
use super::streams::{Bounds, EdgeStream, Flushed};
use super::{EdgeReport, Event, FatalHook, Reply, Shared, Snapshot};
use crate::engine::{EdgeKey, Effect, Engine, EngineConfig, Input, Now, Request, Token};

/// Events of one turn. More wait for the next one.
const EVENTS_PER_TURN_MAX: usize = 1_024;
/// Operations of one turn, but for those that the last event brought.
const OPERATIONS_PER_TURN_MAX: usize = 16_384;
/// A tick comes at least this often while the engine waits for anything.
const TICK_MAX_NS: u64 = 200_000_000;
/// Figures for the admin pages are at most this old while anything changes.
const PUBLISH_NS: u64 = 250_000_000;
/// A stop waits for commits and loads under way, at most this long.
const DRAIN_MAX_NS: u64 = 10_000_000_000;
/// Beyond the engine's own flush of watermarks, for what is due last.
const DRAIN_MARGIN_NS: u64 = 50_000_000;

/// What an edge is told when the core's lease is over.
const LAPSED: &str = "the core is another from now on";
/// What an edge is told when the core stops.
const STOPPING: &str = "the core is stopping";

/// Reads both clocks.
pub(super) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Now {
            mono_ns: self.origin.elapsed().as_nanos() as u64,
            unix_ms: unix.as_millis() as u64,
        }
    }
}

/// What the thread needs beyond its own state.
pub(super) struct Wiring {
    pub(super) shared: Arc<Shared>,
    pub(super) events: Receiver<Event>,
    pub(super) commits: Sender<CommitJob>,
    pub(super) reads: Sender<(u32, ReadJob)>,
    pub(super) bounds: Bounds,
    pub(super) incarnation: u64,
    pub(super) watermark_flush_ms: u64,
    pub(super) on_fatal: FatalHook,
    /// For the engines of later incarnations.
    pub(super) engine: EngineConfig,
    pub(super) cluster: Option<ClusterLink>,
}

enum Stop {
    /// Since this time on the monotonic clock.
    Draining(u64),
    /// The store failed.
    Failed,
}

pub(super) struct Turns {
    wiring: Wiring,
    engine: Engine,
    /// The engine's number. What an earlier one asked for is nobody's.
    life: u32,
    /// The engine is of an incarnation whose lease was valid at the end of the last turn.
    is_born: bool,
    clock: Clock,
    effects: Vec<Effect>,
    streams: HashMap<EdgeKey, EdgeStream>,
    touched: Vec<EdgeKey>,
    /// Streams cut in this turn: the engine hears of it at the beginning of the next.
    cut: Vec<EdgeKey>,
    replies: HashMap<Token, Reply>,
    next_token: u64,
    pace: Pace,
    /// At the committer.
    commits_under_way: usize,
    reads_under_way: usize,
    last_tick_ns: u64,
    /// The next turn begins no earlier.
    next_turn_ns: u64,
    published_ns: u64,
    unpublished: bool,
    stop: Option<Stop>,
}

impl Turns {
    pub(super) fn new(engine: Engine, wiring: Wiring) -> Self {
        Self {
            wiring,
            engine,
            life: 0,
            is_born: false,
            clock: Clock::new(),
            effects: Vec::new(),
            streams: HashMap::new(),
            touched: Vec::new(),
            cut: Vec::new(),
            replies: HashMap::new(),
            next_token: 0,
            pace: Pace::default(),
            commits_under_way: 0,
            reads_under_way: 0,
            last_tick_ns: 0,
            next_turn_ns: 0,
            published_ns: 0,
            unpublished: true,
            stop: None,
        }
    }

    /// Turns until a stop has come to its end.
    pub(super) fn run(mut self) {
        while !self.is_over() {
            let first = self.wait();
            self.turn(first);
        }
        for stream in self.streams.values() {
            stream.port.cut(STOPPING);
        }
        self.streams.clear();
        while let Some(event) = self.wiring.events.try_recv() {
            if let Event::Attach { port, .. } = event {
                port.cut(STOPPING);
            }
        }
        self.publish(self.clock.now());
        // Callers whose reply is dropped here are told `unavailable` by their handle.
    }

    fn wait(&mut self) -> Option<Event> {
        let early = self.next_turn_ns.saturating_sub(self.clock.now().mono_ns);
        if early > 0 {
            // What comes meanwhile wakes nobody, but for a commit that is done: people wait for it,
            // and the next batch does.
            self.wiring.events.rest(Duration::from_nanos(early));
        }
        let left = self.wake_at().map(|at| {
            let now = self.clock.now().mono_ns;
            Duration::from_nanos(at.saturating_sub(now))
        });
        self.wiring.events.recv(left)
    }

    /// When the next turn is due though nothing comes.
    fn wake_at(&self) -> Option<u64> {
        if !self.cut.is_empty() {
            return Some(0);
        }
        let tick = self
            .engine
            .next_deadline()
            .map(|at| at.min(self.last_tick_ns.saturating_add(TICK_MAX_NS)));
        let publish = self
            .unpublished
            .then(|| self.published_ns.saturating_add(PUBLISH_NS));
        [tick, publish, self.drain_wake_at()]
            .into_iter()
            .flatten()
            .min()
    }

    fn drain_wake_at(&self) -> Option<u64> {
        let Some(Stop::Draining(since)) = self.stop else {
            return None;
        };
        let quiet = since.saturating_add(self.drain_quiet_ns());
        if self.clock.now().mono_ns < quiet {
            Some(quiet)
        } else {
            Some(since.saturating_add(DRAIN_MAX_NS))
        }
    }

    fn turn(&mut self, first: Option<Event>) {
        let now = self.now();
        for edge in std::mem::take(&mut self.cut) {
            self.feed(Input::EdgeDetached { edge }, now);
        }
        let mut events = 0;
        let mut operations = 0;
        let mut next = first;
        while let Some(event) = next {
            events += 1;
            operations += self.take(event, now);
            if events >= EVENTS_PER_TURN_MAX || operations >= OPERATIONS_PER_TURN_MAX {
                break;
            }
            next = self.wiring.events.try_recv();
        }
        let due = self.engine.next_deadline().is_some_and(|at| {
            at <= now.mono_ns || now.mono_ns >= self.last_tick_ns.saturating_add(TICK_MAX_NS)
        });
        if due {
            self.last_tick_ns = now.mono_ns;
            self.feed(Input::Tick, now);
        }
        self.end_turn(now);
        let is_full = events >= EVENTS_PER_TURN_MAX || operations >= OPERATIONS_PER_TURN_MAX;
        self.pace.turned(now.mono_ns, operations);
        self.next_turn_ns = if is_full {
            0
        } else {
            self.pace.next_turn_ns(now.mono_ns)
        };
        if events > 0 {
            self.wiring.shared.metrics.turned(events);
            self.unpublished = true;
        }
        if self.unpublished && now.mono_ns >= self.published_ns.saturating_add(PUBLISH_NS) {
            self.publish(now);
        }
    }

    /// The time of a turn. Message ids are made at it, so it keeps to what ownership allows these.
    fn now(&self) -> Now {
        let now = self.clock.now();
        match &self.wiring.cluster {
            Some(cluster) => Now {
                unix_ms: (cluster.id_time_ms)(now.unix_ms),
                ..now
            },
            None => now,
        }
    }

    fn end_turn(&mut self, now: Now) {
        self.engine.end_turn(now, &mut self.effects);
        if self.has_lapsed() {
            tracing::warn!("the lease is over: this core forgets everything and starts over");
            self.forget_everything(0);
        }
        self.carry_out(now);
        self.flush(now);
    }

    fn feed(&mut self, input: Input, now: Now) {
        self.engine.on(input, now, &mut self.effects);
    }

    /// Takes one event; returns how many operations it brought.
    fn take(&mut self, event: Event, now: Now) -> usize {
        match event {
            Event::Attach { edge, hello, port } => self.attach(edge, hello, port, now),
            Event::Batch { edge, batch } => return self.batch(edge, batch, now),
            Event::Detach { edge } => {
                if self.streams.remove(&edge).is_some() {
                    self.feed(Input::EdgeDetached { edge }, now);
                }
            }
            Event::Call {
                user,
                request,
                from_core,
                reply,
            } => self.call(user, request, from_core, reply, now),
            Event::Committed {
                life,
                commit,
                result,
            } => {
                self.commits_under_way -= 1;
                if life == self.life {
                    self.feed(Input::Committed { commit, result }, now);
                }
            }
            Event::Read { life, input } => {
                self.reads_under_way -= 1;
                if life == self.life {
                    self.feed(input, now);
                }
            }
            Event::Reborn(incarnation) => {
                self.wiring.engine.worker_id = incarnation.worker_id;
                self.forget_everything(incarnation.message_id_floor);
                self.is_born = true;
                self.wiring.shared.set_born(true);
            }
            Event::Told(input) => self.feed(input, now),
            Event::Stop => {
                if self.stop.is_none() {
                    self.stop = Some(Stop::Draining(now.mono_ns));
                }
            }
        }
        0
    }

    fn attach(&mut self, edge: EdgeKey, hello: EdgeHello, port: Arc<dyn EdgePort>, now: Now) {
        if self.stop.is_some() {
            port.cut(STOPPING);
            return;
        }
        // The engine takes an older stream of the same edge for dead as it hears of this one.
        let older = self
            .streams
            .iter()
            .find(|(_, s)| s.edge_id == hello.edge_id)
            .map(|(&key, _)| key);
        if let Some(stream) = older.and_then(|key| self.streams.remove(&key)) {
            self.wiring.shared.metrics.cut("superseded");
            stream.port.cut("a newer stream of this edge id came");
        }
        tracing::info!(edge = edge.0, edge_id = %hello.edge_id, "edge attached");
        let mut stream = EdgeStream::open(&hello, port, self.wiring.incarnation);
        stream.announces(now.unix_ms);
        self.streams.insert(edge, stream);
        let resumes_here = hello.resume_from_incarnation == self.wiring.incarnation;
        let attached = Input::EdgeAttached {
            edge,
            hello,
            resumes_here,
        };
        self.feed(attached, now);
    }

    fn batch(&mut self, edge: EdgeKey, batch: EdgeBatch, now: Now) -> usize {
        // Of a stream that was cut meanwhile, or while stopping: the edge learns from the cut that
        // nothing of this was taken in.
        let Some(stream) = self.streams.get_mut(&edge) else {
            return 0;
        };
        if batch.credit > 0 {
            stream.grant(batch.credit, self.wiring.bounds);
            touch(stream, edge, &mut self.touched);
        }
        if self.stop.is_some() || batch.ops.is_empty() {
            return 0;
        }
        // The engine settles frames, when they are answered. What opens or closes a session is dealt
        // with as soon as the engine has heard it, later in this turn.
        let mut heard = 0;
        for op in &batch.ops {
            match &op.op {
                Some(edge_op::Op::Frame(_)) => continue,
                Some(edge_op::Op::Opened(opened)) => {
                    stream.sessions += 1;
                    if opened.announced_again {
                        stream.announces(now.unix_ms);
                    }
                }
                Some(edge_op::Op::Closed(_)) => {
                    stream.sessions = stream.sessions.saturating_sub(1);
                }
                None => {}
            }
            heard += 1;
        }
        if heard > 0 {
            stream.settle(heard);
            touch(stream, edge, &mut self.touched);
        }
        let operations = batch.ops.len();
        stream.operations_in += operations as u64;
        self.wiring.shared.metrics.operations_in(operations);
        self.feed(
            Input::EdgeOps {
                edge,
                ops: batch.ops,
            },
            now,
        );
        self.wiring.shared.lists.give(self.engine.take_emptied());
        operations
    }

    fn call(&mut self, user: String, request: Request, from_core: bool, reply: Reply, now: Now) {
        if self.stop.is_some() {
            return;
        }
        let token = Token(self.next_token);
        self.next_token += 1;
        self.replies.insert(token, reply);
        self.feed(
            Input::Request {
                token,
                user,
                request,
                from_core,
            },
            now,
        );
    }

    fn carry_out(&mut self, now: Now) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::ToEdge { edge, op } => {
                    if let Some(stream) = self.streams.get_mut(&edge) {
                        stream.push(op, now.unix_ms);
                        touch(stream, edge, &mut self.touched);
                    }
                }
                Effect::Settled { edge, operations } => {
                    if let Some(stream) = self.streams.get_mut(&edge) {
                        stream.settle(operations);
                        touch(stream, edge, &mut self.touched);
                    }
                }
                Effect::CutEdge { edge, reason } => self.cut(edge, reason),
                Effect::Commit { commit, batch } => self.commit(CommitJob {
                    life: self.life,
                    commit,
                    batch,
                }),
                Effect::Load {
                    conversation,
                    recent_max,
                } => self.read(ReadJob::Load {
                    conversation,
                    recent_max,
                }),
                Effect::ReadPage {
                    token,
                    conversation,
                    range,
                } => self.read(ReadJob::Page {
                    token,
                    conversation,
                    range,
                }),
                Effect::ReadIndex { token, user } => self.read(ReadJob::Index { token, user }),
                Effect::Respond { token, response } => {
                    if let Some(reply) = self.replies.remove(&token) {
                        reply.send(response);
                    }
                }
                Effect::Released { partition, heads } => {
                    self.hand_out(ClusterJob::Released { partition, heads });
                }
                Effect::Evicted { conversation, head } => {
                    self.hand_out(ClusterJob::Evicted { conversation, head });
                }
                Effect::CaughtUp { token } => self.hand_out(ClusterJob::CaughtUp { token }),
                Effect::Forward {
                    token,
                    partition,
                    user,
                    request,
                } => {
                    if let Some(reply) = self.replies.remove(&token) {
                        self.hand_out(ClusterJob::Forward {
                            partition,
                            user,
                            request,
                            reply: Forwarded(reply),
                        });
                    }
                }
                Effect::Ask {
                    token,
                    partition,
                    user,
                    request,
                } => self.hand_out(ClusterJob::Ask {
                    token,
                    partition,
                    user,
                    request,
                }),
                Effect::Fatal { reason } => self.fail(&reason),
            }
        }
        // Keeps the allocation.
        self.effects = effects;
    }

    /// The engine asks for these only where there is a cluster, and its task outlives this thread.
    fn hand_out(&self, job: ClusterJob) {
        if let Some(cluster) = &self.wiring.cluster {
            let _ = cluster.jobs.send(job);
        }
    }

    fn has_lapsed(&self) -> bool {
        let cluster = self.wiring.cluster.as_ref();
        self.is_born && cluster.is_some_and(|cluster| !(cluster.is_valid)())
    }

    /// Says nothing of what this turn found, since another core may know better already; ends all
    /// streams, so that edges announce their sessions to the next engine; and begins that.
    fn forget_everything(&mut self, message_id_floor: u64) {
        self.effects.clear();
        // Callers whose reply is dropped are told `unavailable` by their handle.
        self.replies.clear();
        for (_, stream) in self.streams.drain() {
            self.wiring.shared.metrics.cut(LAPSED);
            stream.port.cut(LAPSED);
        }
        self.touched.clear();
        self.cut.clear();
        self.is_born = false;
        self.wiring.shared.set_born(false);
        self.life += 1;
        let config = self.wiring.engine.clone();
        self.engine = Engine::new(config, message_id_floor, rand::random());
    }

    fn commit(&mut self, job: CommitJob) {
        self.commits_under_way += 1;
        // The committer lives as long as this sender does.
        let _ = self.wiring.commits.send(job);
    }

    fn read(&mut self, job: ReadJob) {
        self.reads_under_way += 1;
        // The readers live as long as this sender does.
        let _ = self.wiring.reads.send((self.life, job));
    }

    fn flush(&mut self, now: Now) {
        for edge in std::mem::take(&mut self.touched) {
            let Some(stream) = self.streams.get_mut(&edge) else {
                continue;
            };
            stream.touched = false;
            match stream.flush(now.unix_ms, self.wiring.bounds) {
                Flushed::Nothing => {}
                Flushed::Batch { operations } => {
                    self.wiring.shared.metrics.operations_out(operations);
                }
                Flushed::OverBounds => self.cut(edge, "the edge grants no credit"),
            }
        }
    }

    fn cut(&mut self, edge: EdgeKey, reason: &str) {
        if let Some(stream) = self.streams.remove(&edge) {
            tracing::warn!(edge = edge.0, edge_id = %stream.edge_id, reason, "edge stream cut");
            self.wiring.shared.metrics.cut(reason);
            stream.port.cut(reason);
            self.cut.push(edge);
        }
    }

    fn fail(&mut self, reason: &str) {
        tracing::error!(reason, "the store failed for good: stopping");
        self.stop = Some(Stop::Failed);
        self.wiring.shared.fail();
        (self.wiring.on_fatal)(reason);
    }

    /// How long a stop waits at least for what the engine still has in mind (watermarks).
    fn drain_quiet_ns(&self) -> u64 {
        self.wiring.watermark_flush_ms * 1_000_000 + DRAIN_MARGIN_NS
    }

    fn is_over(&self) -> bool {
        match self.stop {
            None => false,
            Some(Stop::Failed) => true,
            Some(Stop::Draining(since)) => {
                let waited = self.clock.now().mono_ns.saturating_sub(since);
                let busy = self.commits_under_way + self.reads_under_way > 0;
                let quiet =
                    self.engine.next_deadline().is_none() || waited >= self.drain_quiet_ns();
                (!busy && quiet && self.cut.is_empty()) || waited >= DRAIN_MAX_NS
            }
        }
    }

    fn publish(&mut self, now: Now) {
        self.published_ns = now.mono_ns;
        self.unpublished = false;
        let edges = self
            .streams
            .iter()
            .map(|(key, s)| EdgeReport {
                stream: key.0,
                edge_id: s.edge_id.clone(),
                incarnation: s.incarnation,
                sessions: s.sessions,
                credit: s.credit(),
                waiting: s.waiting(),
                operations_in: s.operations_in,
                operations_out: s.operations_out,
            })
            .collect();
        self.wiring.shared.publish(Snapshot {
            engine: self.engine.stats(),
            edges,
        });
    }
}

/// Puts the stream on the list of those to flush, once.
fn touch(stream: &mut EdgeStream, edge: EdgeKey, touched: &mut Vec<EdgeKey>) {
    if !stream.touched {
        stream.touched = true;
        touched.push(edge);
    }
}
