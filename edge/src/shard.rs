//! The loop of one shard: events of the driver and items of the inbox go into the state machine,
//! and what it wants done goes to the driver and the core. One thread, no locks, no busy ticks: an
//! idle shard sleeps until something comes or is due.

mod moving;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender};
use trunkline_proto::link::EdgeBatch;
use trunkline_proto::ports::CorePort;

use crate::admission::Admission;
use crate::handover::{Held, Order};
use crate::hub::ShardOp;
use crate::link::ToShard;
use crate::lull::{Lull, NAP};
use crate::observe::counters::{LoopStats, PUBLISH_INTERVAL_MS, Published};
use crate::ring::{Driver, Event, Hold, ListenerId, Waker};
use crate::session::{Actions, DrainCounts, Now, Shard, Transport};

/// The listener whose connections speak WebSocket.
pub const LISTENER_WS: ListenerId = 0;
/// The listener whose connections speak delimited protobuf.
pub const LISTENER_TCP: ListenerId = 1;

/// Items of the inbox taken in one turn: the sockets get theirs in between.
const INBOX_PER_TURN: usize = 256;
/// The longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// After a stop, close frames may take this long to leave.
const STOP_MAX: Duration = Duration::from_millis(500);

/// One shard and its thread's possessions.
pub struct ShardLoop {
    driver: Box<dyn Driver>,
    waker: Waker,
    shard: Shard,
    inbox: Receiver<ToShard>,
    published: Arc<Published>,
    /// The core of the present attachment.
    core: Option<(u64, Arc<dyn CorePort>)>,
    actions: Actions,
    /// Connections that came in this turn.
    accepted: u64,
    /// Events of the driver and of the core in this turn.
    events: u64,
    admission: Admission,
    /// As the driver told it when the last turn ended.
    idle_ns: u64,
    turns: u64,
    /// Time spent on the link, ns.
    link_ns: u64,
    lull: Lull,
    /// Time slept through in lulls, ns.
    nap_ns: u64,
    started: Instant,
    /// When the last turn ended: no time passes between turns.
    ended: Instant,
    /// Where the shard's clock began: in the first of the processes that this one follows.
    origin: Instant,
    published_at: Instant,
    /// Something happened since the numbers were published.
    dirty: bool,
    /// The loop ends then at the latest.
    ends_at: Option<Instant>,
    /// Told when the driver reads no more.
    held: Option<Sender<Held>>,
    /// To be followed after this turn.
    orders: Option<Receiver<Order>>,
    /// Reading begins when the core knows of all sessions, or then.
    reads_at: Option<Instant>,
    /// What `reads_at` becomes once a core is attached.
    announced_by: Option<Instant>,
    released: Option<Sender<()>>,
}

impl ShardLoop {
    /// To be made and run on the shard's own thread. `origin`: where its clock began.
    pub fn new(
        driver: Box<dyn Driver>,
        shard: Shard,
        inbox: Receiver<ToShard>,
        published: Arc<Published>,
        origin: Instant,
    ) -> Self {
        let started = Instant::now();
        Self {
            waker: driver.waker(),
            driver,
            inbox,
            published,
            core: None,
            actions: Actions::default(),
            accepted: 0,
            events: 0,
            admission: Admission::new(shard.arrival_rate()),
            idle_ns: 0,
            turns: 0,
            link_ns: 0,
            lull: Lull::new(started),
            nap_ns: 0,
            started,
            ended: started,
            origin,
            published_at: started,
            dirty: true,
            ends_at: None,
            held: None,
            orders: None,
            reads_at: None,
            announced_by: None,
            released: None,
            shard,
        }
    }

    /// Runs until the shard is drained or stopped, or its driver fails.
    pub fn run(mut self) -> io::Result<DrainCounts> {
        while !self.turn()? {}
        Ok(self.shard.drain_counts())
    }

    /// Waits for something to happen and deals with it. True when the shard is drained or stopped,
    /// and not to be turned again.
    pub fn turn(&mut self) -> io::Result<bool> {
        let (began, openings) = (self.ended, self.shard.openings());
        let napped_ns = self.nap_ns;
        self.nap();
        self.admit();
        self.waker.going_to_sleep();
        let timeout = self.timeout();
        if timeout.is_zero() {
            self.waker.awake();
        }
        let any = self.turn_driver(timeout)?;
        self.turns += 1;
        let time = Instant::now();
        if !any {
            self.shard.begin(now(self.origin, time));
        }
        let heard = self.take_inbox();
        self.shard.end_turn(&mut self.actions);
        let quiet = heard == 0 && self.accepted == 0 && self.actions.is_empty();
        self.apply();
        if self.is_moving() && self.move_on()? {
            return Ok(true);
        }
        self.ended = Instant::now();
        self.charge(
            began,
            self.nap_ns - napped_ns,
            self.shard.openings() - openings,
        );
        self.lull.turned(self.ended, quiet);
        self.link_ns += nanos(self.ended.duration_since(time));
        self.publish_if_due();
        let over = self.is_over();
        if over {
            self.publish();
        }
        Ok(over)
    }

    /// Tells the driver whom to let in.
    fn admit(&mut self) {
        let now_ns = nanos(self.ended.duration_since(self.started));
        // Who is held back has slept until then.
        let now_ns = match self.admission.is_held() {
            true => nanos(self.started.elapsed()),
            false => now_ns,
        };
        self.driver.admit(self.admission.allowed(now_ns));
    }

    /// Accounts for what opening sessions has cost in the turn since `began`. The turn's work, the
    /// kernel's part in it too, is told apart by the number of its events.
    fn charge(&mut self, began: Instant, napped_ns: u64, openings: u64) {
        let idle_ns = self.driver.idle_ns();
        let slept_ns = idle_ns - std::mem::replace(&mut self.idle_ns, idle_ns) + napped_ns;
        if openings > 0 {
            let turn_ns = nanos(self.ended.duration_since(began)).saturating_sub(slept_ns);
            let events = self.events.max(openings);
            let work_ns = u128::from(turn_ns) * u128::from(openings) / u128::from(events);
            let now_ns = nanos(self.ended.duration_since(self.started));
            self.admission.charge(now_ns, self.accepted, work_ns as u64);
        }
    }

    fn is_over(&self) -> bool {
        self.shard.is_drained() || self.ends_at.is_some_and(|at| self.ended >= at)
    }

    /// How long the driver may wait. The waker has been told before this looks at the inbox.
    fn timeout(&self) -> Duration {
        if !self.inbox.is_empty() {
            return Duration::ZERO;
        }
        let time = self.ended;
        let publish = self.dirty.then(|| {
            let interval = Duration::from_millis(PUBLISH_INTERVAL_MS);
            (self.published_at + interval).saturating_duration_since(time)
        });
        let ends = [self.ends_at, self.reads_at].into_iter().flatten().min();
        let end = ends.map(|at| at.saturating_duration_since(time));
        let shard = self.shard.timeout();
        let opens = self.admission.is_held().then(|| {
            let at = self.started + Duration::from_nanos(self.admission.opens_at());
            at.saturating_duration_since(time)
        });
        let wanted = [publish, end, shard, opens].into_iter().flatten().min();
        wanted.unwrap_or(SLEEP_MAX).min(SLEEP_MAX)
    }

    /// Whether the driver had any events, and so the shard has the time.
    fn turn_driver(&mut self, timeout: Duration) -> io::Result<bool> {
        let origin = self.origin;
        let shard = &mut self.shard;
        let (mut events, mut accepted) = (0, 0);
        self.driver.turn(timeout, &mut |event| {
            // The clock is read when the wait is over, once for all that has come.
            if events == 0 {
                shard.begin(now(origin, Instant::now()));
            }
            events += 1;
            match event {
                Event::Accepted {
                    conn,
                    listener,
                    peer,
                } => {
                    let transport = match listener {
                        LISTENER_TCP => Transport::Tcp,
                        _ => Transport::WebSocket,
                    };
                    accepted += 1;
                    shard.accepted(conn, transport, peer);
                }
                Event::Received { conn, data } => shard.received(conn, data),
                Event::Eof { conn } => shard.eof(conn),
                Event::Blocked { conn, unsent } => shard.blocked(conn, unsent),
                Event::Drained { conn } => shard.drained(conn),
                Event::Closed { conn, .. } => shard.closed(conn),
                // This shard connects to nobody.
                Event::Connected { .. } | Event::Woken => {}
            }
        })?;
        self.accepted = accepted;
        self.events = events;
        self.dirty |= events > 0;
        Ok(events > 0)
    }

    /// Takes what the link and others have left for this shard; how many items.
    fn take_inbox(&mut self) -> usize {
        for taken in 0..INBOX_PER_TURN {
            let Ok(item) = self.inbox.try_recv() else {
                return taken;
            };
            self.dirty = true;
            self.take(item);
        }
        INBOX_PER_TURN
    }

    /// In a lull, lets some time pass before the next look. Whoever leaves something in the inbox
    /// meanwhile need not wake anybody: it is looked at right after.
    fn nap(&mut self) {
        if self.lull.naps() && !self.timeout().is_zero() {
            std::thread::sleep(NAP);
            self.nap_ns += nanos(self.ended.elapsed());
        }
    }

    fn take(&mut self, item: ToShard) {
        match item {
            ToShard::LinkUp {
                attachment,
                credit,
                port,
            } => {
                self.core = Some((attachment, port));
                self.shard.link_up(credit);
            }
            ToShard::LinkDown { attachment } if self.is_attached(attachment) => {
                self.core = None;
                self.shard.link_down();
            }
            ToShard::LinkDown { .. } => {}
            ToShard::Core {
                attachment,
                ops,
                settles,
            } => {
                self.events += ops.len() as u64;
                if self.is_attached(attachment) {
                    self.shard.core_ops(ops, settles);
                } else {
                    // What was said on an earlier attachment is still true, except about who is
                    // registered now.
                    let still = |op: &ShardOp| !matches!(op, ShardOp::Registered { .. });
                    self.shard.core_ops(ops.into_iter().filter(still), 0);
                }
            }
            ToShard::Hold { held } => {
                self.driver.hold(Hold::Reading);
                self.held = Some(held);
            }
            ToShard::LetGo => self.let_go(),
            ToShard::Depart { orders } => self.orders = Some(orders),
            ToShard::Drain { budget_ms } => {
                self.shard.drain(budget_ms);
                let budget = Duration::from_millis(budget_ms);
                self.end_within(budget + 2 * STOP_MAX + Duration::from_secs(2));
            }
            ToShard::Stop => {
                self.driver.close_listeners();
                self.shard.close_all();
                self.end_within(STOP_MAX);
            }
            // Whoever asked may have given up waiting.
            ToShard::Conns {
                state,
                limit,
                answer,
            } => drop(answer.send(self.shard.list(state, limit))),
            ToShard::Closed { limit, answer } => {
                drop(answer.send(self.shard.list_closed(limit)));
            }
        }
    }

    fn is_attached(&self, attachment: u64) -> bool {
        self.core.as_ref().is_some_and(|(at, _)| *at == attachment)
    }

    fn end_within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.ends_at = Some(self.ends_at.map_or(at, |before| before.min(at)));
    }

    fn apply(&mut self) {
        for (conn, bytes) in self.actions.sends.drain(..) {
            self.driver.send(conn, bytes);
        }
        for conn in self.actions.shutdowns.drain(..) {
            self.driver.shutdown(conn);
        }
        for conn in self.actions.closes.drain(..) {
            self.driver.close(conn);
        }
        let credit = std::mem::take(&mut self.actions.settled);
        let Some((_, core)) = &self.core else {
            return self.actions.ops.clear();
        };
        let ops = match self.actions.ops.is_empty() {
            true if credit == 0 => return,
            true => Vec::new(),
            false => std::mem::replace(&mut self.actions.ops, core.list()),
        };
        core.submit(EdgeBatch {
            hello: None,
            ops,
            credit,
        });
    }

    fn publish_if_due(&mut self) {
        let interval = Duration::from_millis(PUBLISH_INTERVAL_MS);
        if self.dirty && self.ended.duration_since(self.published_at) >= interval {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let mut driver = self.driver.stats();
        driver.idle_ns += self.nap_ns;
        let stats = LoopStats {
            driver,
            elapsed_ns: nanos(self.ended.duration_since(self.started)),
            link_ns: self.link_ns,
            held_ns: self.admission.held_ns(),
            turns: self.turns,
        };
        self.shard.note_driver_memory(self.driver.memory());
        self.published.publish(self.shard.counters(), &stats);
        self.published_at = self.ended;
        self.dirty = false;
    }
}

fn now(origin: Instant, time: Instant) -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Now {
        mono_ns: nanos(time.duration_since(origin)),
        unix_ms: unix.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
