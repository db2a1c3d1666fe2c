//! The world: one core, two edges, some clients, the networks between them, one clock and one queue
//! of events. Everything real in it is a pure machine of the product; this module and its parts
//! stand for threads, sockets, gRPC, disks and people.
//!
//! # Layout
//! - `net`: sockets between clients and edges, byte by byte
//! - `edge`: an edge process: its shards, what their loop does, its side of the link
//! - `link`: the streams between edges and the core
//! - `core`: the core process: the engine, what its thread does, its side of the link
//! - `disk`: when what the engine writes and reads gets where it belongs
//! - `client`: a client process: connects, drives the machine, shows messages
//! - `app`: what people do; `faults`: what goes wrong; `end`: when all is quiet, and what then holds
//!
//! Invariant: everything that happens is an event of the queue, handled whole before the next one.

mod app;
mod client;
mod core;
mod disk;
mod edge;
mod end;
mod faults;
mod link;
mod net;

use trunkline_core::engine::Response;
use trunkline_proto::client::Error;

use crate::bugs::Bug;
use crate::check::Checker;
use crate::coverage::Coverage;
use crate::plan::{GROUPS_AT, Plan, START_UNIX_MS, TALK_AT};
use crate::queue::Queue;
use crate::rng::Streams;
use crate::trace::Trace;
use app::{Call, Chat};
use client::Client;
use core::Core;
use disk::{CommitStep, Read};
use edge::Edge;
use link::Stream;
use net::{Dir, Socket};

/// Events of one run, at most: one that does not end is a defect too.
const EVENTS_MAX: u64 = 4_000_000;

/// What can happen.
enum Event {
    /// The next packet of a socket arrives.
    Packet {
        socket: usize,
        dir: Dir,
    },
    EdgeTurn {
        edge: usize,
        shard: usize,
        epoch: u64,
    },
    EdgeAttach {
        edge: usize,
        epoch: u64,
    },
    EdgeCrash {
        edge: usize,
    },
    EdgeStart {
        edge: usize,
    },
    /// The next batch of a stream arrives.
    Batch {
        stream: usize,
        dir: Dir,
    },
    StreamBreaks {
        stream: usize,
        how: link::Break,
    },
    /// One side learns that the stream is over.
    StreamEnds {
        stream: usize,
        at_core: bool,
    },
    CoreTurn {
        epoch: u64,
    },
    CoreStart,
    Commit {
        epoch: u64,
        commit: u64,
        step: CommitStep,
    },
    Read {
        epoch: u64,
        read: Read,
    },
    Dial {
        client: usize,
    },
    DialOverdue {
        client: usize,
        socket: usize,
    },
    Wake {
        client: usize,
    },
    CallArrives {
        call: usize,
    },
    CallAnswered {
        call: usize,
        response: Box<Result<Response, Error>>,
    },
    CallOverdue {
        call: usize,
        tries: u32,
    },
    MakeGroups,
    Act {
        client: usize,
    },
    Fault,
    Heal,
    /// Whether all is quiet.
    Look,
}

/// How a run ended.
pub struct Outcome {
    pub seed: u64,
    pub violations: Vec<String>,
    pub coverage: Coverage,
    /// Of the trace.
    pub hash: u64,
    pub lines: u64,
    pub events: u64,
    /// Virtual time that passed.
    pub virtual_ns: u64,
    /// From the healing to quiet.
    pub quiet_after_ns: u64,
    /// The whole trace, if it was asked for.
    pub text: Option<String>,
}

/// The world of one seed.
pub struct World {
    plan: Plan,
    now: u64,
    queue: Queue<Event>,
    rng: Streams,
    trace: Trace,
    check: Checker,
    cover: Coverage,
    sockets: Vec<Socket>,
    edges: Vec<Edge>,
    streams: Vec<Stream>,
    core: Core,
    clients: Vec<Client>,
    calls: Vec<Call>,
    chat: Chat,
    /// Faults may happen.
    hostile: bool,
    quiet_after_ns: u64,
    /// The end of the run, by stages.
    stage: end::Stage,
}

impl World {
    /// The world of a plan. `keep_trace`: the whole text.
    pub fn new(plan: Plan, keep_trace: bool) -> Self {
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            rng: Streams::new(plan.seed),
            trace: Trace::new(keep_trace),
            check: Checker::default(),
            cover: Coverage::default(),
            sockets: Vec::new(),
            edges: (0..2).map(|index| Edge::new(index, &plan)).collect(),
            streams: Vec::new(),
            core: Core::new(&plan),
            clients: Vec::new(),
            calls: Vec::new(),
            chat: Chat::default(),
            hostile: false,
            quiet_after_ns: 0,
            stage: end::Stage::Talking,
            plan,
        };
        world.add_clients();
        for edge in 0..world.edges.len() {
            world.queue.push(0, Event::EdgeAttach { edge, epoch: 1 });
        }
        for client in 0..world.clients.len() {
            let at = world.rng.app.within(10, 500) * crate::plan::MS;
            world.queue.push(at, Event::Dial { client });
            let at = TALK_AT + world.rng.app.below(world.plan.act_every_ns);
            world.queue.push(at, Event::Act { client });
        }
        world.queue.push(GROUPS_AT, Event::MakeGroups);
        world.queue.push(TALK_AT, Event::Fault);
        world.queue.push(world.plan.heal_at, Event::Heal);
        world
    }

    /// Runs to the end, or to the first broken promise.
    pub fn run(mut self) -> Outcome {
        let mut events = 0;
        while self.check.violations.is_empty() && self.stage != end::Stage::Over {
            let Some((at, event)) = self.queue.pop() else {
                self.violation("nothing is going to happen any more");
                break;
            };
            debug_assert!(at >= self.now, "time goes forward");
            self.now = at;
            events += 1;
            if events > EVENTS_MAX {
                self.violation("the run does not end");
            }
            self.handle(event);
        }
        self.cover_rest();
        Outcome {
            seed: self.plan.seed,
            violations: self.check.violations,
            coverage: self.cover,
            hash: self.trace.hash(),
            lines: self.trace.lines(),
            events,
            virtual_ns: self.now,
            quiet_after_ns: self.quiet_after_ns,
            text: self.trace.text(),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Packet { socket, dir } => self.packet(socket, dir),
            Event::EdgeTurn { edge, shard, epoch } => self.edge_turn(edge, shard, epoch),
            Event::EdgeAttach { edge, epoch } => self.edge_attach(edge, epoch),
            Event::EdgeCrash { edge } => self.crash_edge_now(edge),
            Event::EdgeStart { edge } => self.edge_start(edge),
            Event::StreamBreaks { stream, how } => self.break_stream(stream, how),
            Event::Batch { stream, dir } => self.batch(stream, dir),
            Event::StreamEnds { stream, at_core } => self.stream_ends(stream, at_core),
            Event::CoreTurn { epoch } => self.core_turn(epoch),
            Event::CoreStart => self.core_start(),
            Event::Commit {
                epoch,
                commit,
                step,
            } => self.commit_step(epoch, commit, step),
            Event::Read { epoch, read } => self.read(epoch, read),
            Event::Dial { client } => self.dial(client),
            Event::DialOverdue { client, socket } => self.dial_overdue(client, socket),
            Event::Wake { client } => self.wake(client),
            Event::CallArrives { call } => self.call_arrives(call),
            Event::CallAnswered { call, response } => self.call_answered(call, *response),
            Event::CallOverdue { call, tries } => self.call_overdue(call, tries),
            Event::MakeGroups => self.make_groups(),
            Event::Act { client } => self.act(client),
            Event::Fault => self.fault(),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    fn after(&mut self, ns: u64, event: Event) {
        self.queue.push(self.now + ns, event);
    }

    fn has(&self, bug: Bug) -> bool {
        self.plan.bug == Some(bug)
    }

    fn violation(&mut self, what: impl Into<String>) {
        self.check.judge(self.now, Err(what.into()));
    }

    /// A process's clock.
    fn unix_ms(&self, offset_ms: i64) -> u64 {
        (START_UNIX_MS + self.now / crate::plan::MS).saturating_add_signed(offset_ms)
    }
}

/// Adds a line to the trace.
macro_rules! trace {
    ($world:expr, $($what:tt)*) => {
        $world.trace.line($world.now, format_args!($($what)*))
    };
}
use trace;
