//! The task that drives the ownership machine: it asks what the machine wants asked, keeps [`Held`]
//! and the map up to date, and passes on between machine and runtime.
//!
//! Invariants:
//! 1. Effects are carried out in their order, so a partition is let go in `Held` before the statement
//!    that gives it away is sent.
//! 2. Every statement ends in one answer to the machine: its result, or "unknown" when it failed or
//!    took longer than a quarter of the ttl.
//! 3. Incarnations follow one another; what is under way for one is dropped with it.
//!
//! Called by the core's runtime, which starts and drains it and follows the events
//! (see [`super::events`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use super::control::Control;
use super::events::{MessageIds, OwnershipEvent, Settled};
use super::held::{BootClock, Held};
use super::machine::{Ask, Effect, End, Input, Machine, Now};
use super::map::PartitionMap;
use super::settings::Settings;
use super::statement::{Answer, Statement};
use super::stats::{OwnershipStats, count};

/// Hints that wait; further ones are dropped, since the same will be said again.
const HINTS_MAX: usize = 64;
/// Answers taken before the map is published once.
const ANSWERS_PER_TURN: usize = 64;

/// A running ownership task. Dropping it drains it too, with nobody to wait for that.
pub struct Ownership {
    handle: OwnershipHandle,
    drain: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// What the rest of the process may ask. Cheap to clone.
#[derive(Clone)]
pub struct OwnershipHandle {
    hints: mpsc::Sender<Input>,
    map: watch::Receiver<Arc<PartitionMap>>,
    stats: Arc<OwnershipStats>,
}

impl Ownership {
    /// Starts a core that others reach at `address`, on the current tokio runtime. The caller has
    /// compared `settings` with [`Control::deployment`].
    pub fn start(
        settings: Settings,
        address: String,
        control: Arc<dyn Control>,
        clock: Arc<dyn BootClock>,
    ) -> (Self, mpsc::UnboundedReceiver<OwnershipEvent>) {
        let (events, events_rx) = mpsc::unbounded_channel();
        let (hints, hints_rx) = mpsc::channel(HINTS_MAX);
        let (drain, drain_rx) = oneshot::channel();
        let known = PartitionMap::new(settings.partitions);
        let (publish, map) = watch::channel(Arc::new(known.clone()));
        let stats = Arc::new(OwnershipStats::new(Arc::clone(&clock)));
        let driver = Driver {
            settings,
            address,
            control,
            clock,
            events,
            hints: hints_rx,
            drain: Some(drain_rx),
            known,
            publish,
            stats: Arc::clone(&stats),
            answers: true,
        };
        let started = Self {
            handle: OwnershipHandle { hints, map, stats },
            drain,
            task: tokio::spawn(driver.run()),
        };
        (started, events_rx)
    }

    pub fn handle(&self) -> OwnershipHandle {
        self.handle.clone()
    }

    /// Ends the task on the spot, as a death would.
    #[cfg(test)]
    pub fn abort(self) {
        self.task.abort();
        // What dropping the sender asks for is no longer carried out.
    }

    /// Hands every partition to the core that should have it next, marks this core dead, and ends.
    /// Takes as long as the engine takes to settle, and at most
    /// [`super::settings::DRAIN_MS_MAX`] and a ttl. The events go on meanwhile.
    pub async fn drain(self) {
        let _ = self.drain.send(());
        if let Err(error) = self.task.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

impl OwnershipHandle {
    /// Somebody names a partition with a higher epoch than this core knows: looks now instead of
    /// with the next poll. Cheap to call for each such operation.
    pub fn hint(&self, partition: u16, epoch: u64) {
        let _ = self.hints.try_send(Input::Hint { partition, epoch });
    }

    /// Everybody's partitions, as far as this core knows, now and whenever that changes.
    pub fn map(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.map.clone()
    }

    pub fn stats(&self) -> Arc<OwnershipStats> {
        Arc::clone(&self.stats)
    }
}

/// What came of something that was under way.
enum Done {
    Input(Input),
    Asked {
        ask: Ask,
        result: Result<Answer, String>,
    },
}

struct Driver {
    settings: Settings,
    address: String,
    control: Arc<dyn Control>,
    clock: Arc<dyn BootClock>,
    events: mpsc::UnboundedSender<OwnershipEvent>,
    hints: mpsc::Receiver<Input>,
    /// `None`: it was asked for.
    drain: Option<oneshot::Receiver<()>>,
    /// Over all incarnations.
    known: PartitionMap,
    publish: watch::Sender<Arc<PartitionMap>>,
    stats: Arc<OwnershipStats>,
    /// Whether the control tables answered last time.
    answers: bool,
}

/// An incarnation while it lives.
struct Life {
    machine: Machine,
    incarnation: Uuid,
    under_way: JoinSet<Done>,
    held: Option<(Arc<Held>, Arc<MessageIds>)>,
    end: Option<End>,
    /// Version of the machine's map that was published.
    published: u64,
}

impl Driver {
    async fn run(mut self) {
        loop {
            match self.live().await {
                End::Drained => return,
                End::Lapsed => {}
                End::NotEntered => {
                    let wait = Duration::from_nanos(self.settings.statement_timeout_ns());
                    tokio::time::sleep(wait).await;
                }
            }
            if self.drain.is_none() {
                return;
            }
        }
    }

    /// One incarnation, from its start to its end.
    async fn live(&mut self) -> End {
        let incarnation = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let mut life = Life {
            machine: Machine::new(self.settings.clone(), incarnation, &self.address),
            incarnation,
            under_way: JoinSet::new(),
            held: None,
            end: None,
            published: 0,
        };
        let mut input = Input::Tick;
        loop {
            self.take(input, &mut life);
            for _ in 0..ANSWERS_PER_TURN {
                let Some(done) = life.under_way.try_join_next() else {
                    break;
                };
                let input = self.came_of(done);
                self.take(input, &mut life);
            }
            self.publish_map(&mut life);
            if let Some(end) = life.end {
                return end;
            }
            input = self.next_input(&mut life).await;
        }
    }

    async fn next_input(&mut self, life: &mut Life) -> Input {
        let wait = life
            .machine
            .wake_at()
            .saturating_sub(self.clock.now_ns())
            // A clock that jumped would otherwise be noticed late.
            .min(self.settings.ttl_ms * 1_000_000);
        tokio::select! {
            biased;
            Some(done) = life.under_way.join_next() => self.came_of(done),
            () = drained(&mut self.drain) => {
                self.drain = None;
                Input::Drain
            }
            Some(hint) = self.hints.recv() => hint,
            () = tokio::time::sleep(Duration::from_nanos(wait)) => Input::Tick,
        }
    }

    fn came_of(&mut self, done: Result<Done, tokio::task::JoinError>) -> Input {
        match done {
            Ok(Done::Input(input)) => input,
            Ok(Done::Asked { ask, result }) => {
                count(&self.stats.statements);
                let answered = result.is_ok();
                if !answered {
                    count(&self.stats.statements_unanswered);
                }
                let answer = result.unwrap_or_else(|error| {
                    if self.answers {
                        tracing::warn!(%error, "the control tables do not answer");
                    }
                    Answer::Unknown
                });
                if answered && !self.answers {
                    tracing::info!("the control tables answer again");
                }
                self.answers = answered;
                Input::Answer { ask, answer }
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Nobody cancels one of them.
            Err(_) => Input::Tick,
        }
    }

    fn take(&mut self, input: Input, life: &mut Life) {
        if life.end.is_some() {
            return;
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = Now {
            boot_ns: self.clock.now_ns(),
            wall_ms: wall.map_or(0, |since| since.as_millis() as u64),
        };
        let mut effects = Vec::new();
        life.machine.on(input, now, &mut effects);
        for effect in effects {
            self.carry_out(effect, life);
        }
        let held = life.held.as_ref().map_or(0, |_| life.machine.held());
        self.stats.held.store(held as u64, Ordering::Relaxed);
    }

    fn carry_out(&mut self, effect: Effect, life: &mut Life) {
        match effect {
            Effect::Ask { ask, statement } => self.ask(ask, statement, life),
            Effect::Entered {
                valid_until_ns,
                worker,
            } => {
                let held = Arc::new(Held::new(
                    life.incarnation,
                    self.settings.partitions,
                    Arc::clone(&self.clock),
                    valid_until_ns,
                ));
                let ids = Arc::new(MessageIds::new(worker));
                let incarnation = life.incarnation;
                tracing::info!(%incarnation, worker = worker.id, "entered as a core");
                self.lease_until(valid_until_ns);
                life.held = Some((Arc::clone(&held), Arc::clone(&ids)));
                self.tell(OwnershipEvent::Entered { held, ids });
            }
            Effect::Renewed {
                valid_until_ns,
                ids_below_ms,
            } => {
                if let Some((held, ids)) = &life.held {
                    ids.renewed(ids_below_ms);
                    held.renewed(valid_until_ns);
                }
                count(&self.stats.renewals);
                self.lease_until(valid_until_ns);
            }
            Effect::Lapsed => {
                if let Some((held, _)) = life.held.take() {
                    held.lapse();
                }
                count(&self.stats.lapses);
                self.lease_until(0);
                let incarnation = life.incarnation;
                tracing::warn!(%incarnation, "the lease lapsed: everything held is given up");
                self.tell(OwnershipEvent::Lapsed);
            }
            Effect::NoWorker => tracing::error!(
                "all worker ids are held by living cores: stop some of them, at most {} may live",
                self.settings.workers
            ),
            Effect::Ended(end) => {
                if let Some((held, _)) = life.held.take() {
                    held.lapse();
                }
                self.lease_until(0);
                life.end = Some(end);
            }
            effect => self.carry_out_for_partition(effect, life),
        }
    }

    fn carry_out_for_partition(&self, effect: Effect, life: &mut Life) {
        let Some((held, _)) = &life.held else {
            return;
        };
        match effect {
            Effect::Gained {
                partition,
                epoch,
                taken_from,
            } => {
                held.took(partition, epoch);
                count(&self.stats.gains);
                if taken_from.is_some() {
                    count(&self.stats.take_overs);
                }
                self.tell(OwnershipEvent::Gained { partition, epoch });
            }
            Effect::LetGo {
                partition,
                epoch,
                asked,
            } => {
                held.let_go(partition);
                if !asked {
                    count(&self.stats.losses);
                    self.tell(OwnershipEvent::Lost { partition, epoch });
                }
            }
            Effect::Release { partition, epoch } => {
                let (settled, answer) = oneshot::channel();
                life.under_way.spawn(async move {
                    let settled = answer.await.unwrap_or(Settled::Partly);
                    Done::Input(Input::Released {
                        partition,
                        epoch,
                        effects_done: settled == Settled::Entirely,
                    })
                });
                self.tell(OwnershipEvent::Release {
                    partition,
                    epoch,
                    settled,
                });
            }
            Effect::CatchUp {
                partition,
                epoch,
                incarnation,
            } => {
                count(&self.stats.catch_ups);
                let (done, answer) = oneshot::channel();
                life.under_way.spawn(async move {
                    Done::Input(Input::CaughtUp {
                        partition,
                        epoch,
                        incarnation,
                        done: answer.await.is_ok(),
                    })
                });
                self.tell(OwnershipEvent::CatchUp {
                    partition,
                    epoch,
                    incarnation,
                    done,
                });
            }
            Effect::HandedOver { partition, to } => {
                count(&self.stats.hand_overs);
                tracing::debug!(partition, %to, "handed over");
            }
            _ => {}
        }
    }

    fn ask(&self, ask: Ask, statement: Statement, life: &mut Life) {
        let control = Arc::clone(&self.control);
        let timeout = Duration::from_nanos(self.settings.statement_timeout_ns());
        life.under_way.spawn(async move {
            let answer = tokio::time::timeout(timeout, statement.ask(&*control)).await;
            let result = match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {timeout:?}")),
            };
            Done::Asked { ask, result }
        });
    }

    fn tell(&self, event: OwnershipEvent) {
        // A runtime that has gone needs no events; answers that it owed count as not given.
        let _ = self.events.send(event);
    }

    fn lease_until(&self, valid_until_ns: u64) {
        let stored = &self.stats.valid_until_ns;
        stored.store(valid_until_ns, Ordering::Relaxed);
    }

    fn publish_map(&mut self, life: &mut Life) {
        let version = life.machine.map().version;
        if std::mem::replace(&mut life.published, version) != version
            && self.known.merge(life.machine.map())
        {
            self.publish.send_replace(Arc::new(self.known.clone()));
        }
    }
}

/// Resolves when draining is asked for, or when the [`Ownership`] was dropped.
async fn drained(drain: &mut Option<oneshot::Receiver<()>>) {
    match drain {
        Some(asked) => {
            let _ = asked.await;
        }
        None => std::future::pending().await,
    }
}
