//! One incarnation of a core, from entering to its end: `(state, input, now)` → effects.
//!
//! # Phases
//! entering → active → draining → ending → ended. A lease that lapses, or a row that others declared
//! dead, leads from any of them to ending: whoever drives the machine starts another incarnation.
//!
//! Invariants:
//! 1. Nothing is served but under a valid lease, and nothing of an incarnation after it lapsed.
//! 2. Each [`Effect::Ask`] gets exactly one [`Input::Answer`]; there is no other I/O.
//! 3. Effects are carried out in their order; [`Effect::LetGo`] before the asks behind it are sent.
//!
//! Called by the driver and by the simulation of the tests.

use uuid::Uuid;

use super::balance::Candidate;
use super::enter::{Enter, Entering};
use super::forget::Forget;
use super::lease::{Lease, Standing};
use super::map::PartitionMap;
use super::partitions::Partitions;
use super::peers::Peers;
use super::settings::Settings;
use super::statement::{Answer, Statement};
use crate::store::fenced::rows::Cas;

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// See [`super::held::BootClock`]. Decides about leases.
    pub boot_ns: u64,
    /// Ms since the Unix epoch. Only for the floor of message ids.
    pub wall_ms: u64,
}

/// What an [`Effect::Ask`] is about; comes back with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Enter,
    Lease,
    PollCores,
    PollPartitions,
    /// Declaring this core dead, and reading what came of it.
    Declare(Uuid),
    /// A core that is named but not known.
    Owner(Uuid),
    Change(u16),
    Read(u16),
    CatchUp(u16, Uuid),
    Forget,
    End,
}

/// What happens to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// [`Machine::wake_at`] has come, or nothing in particular.
    Tick,
    Answer {
        ask: Ask,
        answer: Answer,
    },
    /// What [`Effect::Release`] asked for is done. `effects_done`: every effect of every message of
    /// the partition is durable, so that the next owner need not read this incarnation's journal.
    Released {
        partition: u16,
        epoch: u64,
        effects_done: bool,
    },
    /// What [`Effect::CatchUp`] asked for is done, or was given up and is to be asked for again.
    CaughtUp {
        partition: u16,
        epoch: u64,
        incarnation: Uuid,
        done: bool,
    },
    /// Somebody says that the partition has this epoch.
    Hint {
        partition: u16,
        epoch: u64,
    },
    /// Hand everything over and end.
    Drain,
}

/// Where message ids come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    pub id: u16,
    /// Ids of earlier holders lie below this time, ms since the Unix epoch: begin there.
    pub ids_from_ms: u64,
    /// What the own row says at present: ids stay below this time. [`Effect::Renewed`] raises it.
    pub ids_below_ms: u64,
}

/// Why an incarnation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to. Everything is handed over, or will be taken over from a dead core.
    Drained,
    /// Its lease was not renewed in time, or others declared it dead.
    Lapsed,
    /// Another core took the worker id first, or entering took longer than a lease.
    NotEntered,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Ask {
        ask: Ask,
        statement: Statement,
    },
    /// The lease is there; nothing is held yet.
    Entered {
        valid_until_ns: u64,
        worker: Worker,
    },
    Renewed {
        valid_until_ns: u64,
        ids_below_ms: u64,
    },
    /// The partition is held from now on. `taken_from`: the dead incarnation that had it, if this
    /// core took it from one.
    Gained {
        partition: u16,
        epoch: u64,
        taken_from: Option<Uuid>,
    },
    /// Read the journal of this incarnation, as far as the partition goes, and repeat its effects.
    CatchUp {
        partition: u16,
        epoch: u64,
        incarnation: Uuid,
    },
    /// Stop assigning, settle, store `settled`; then say [`Input::Released`]. The partition is still
    /// held meanwhile.
    Release {
        partition: u16,
        epoch: u64,
    },
    /// The partition is no longer held. `asked`: after an [`Effect::Release`].
    LetGo {
        partition: u16,
        epoch: u64,
        asked: bool,
    },
    /// A partition that was let go has its next owner.
    HandedOver {
        partition: u16,
        to: Uuid,
    },
    /// The lease is over, and with it everything that was held.
    Lapsed,
    /// All worker ids are held by living cores. Is looked at again.
    NoWorker,
    /// Nothing more comes of this machine.
    Ended(End),
}

/// What every part of the machine has at hand while it takes an input.
pub(super) struct Turn<'a> {
    pub(super) settings: &'a Settings,
    pub(super) me: Candidate,
    pub(super) now: Now,
    pub(super) out: &'a mut Vec<Effect>,
}

impl Turn<'_> {
    pub(super) fn ask(&mut self, ask: Ask, statement: Statement) {
        self.out.push(Effect::Ask { ask, statement });
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.now.boot_ns
    }
}

enum Phase {
    Entering(Enter),
    Active,
    Draining { until_ns: u64 },
    Ending(Ending),
    Ended,
}

/// Marks the own row dead.
struct Ending {
    end: End,
    until_ns: u64,
    /// When to look at the row again; `None`: an ask is under way.
    retry_at_ns: Option<u64>,
}

/// See the module.
pub struct Machine {
    settings: Settings,
    me: Candidate,
    phase: Phase,
    lease: Lease,
    peers: Peers,
    partitions: Partitions,
    forget: Forget,
    map: PartitionMap,
}

impl Machine {
    /// A new incarnation, which nobody has used before, of the core at `address`. Needs a first
    /// [`Input::Tick`].
    pub fn new(settings: Settings, incarnation: Uuid, address: &str) -> Self {
        Self {
            me: Candidate::new(incarnation, address),
            phase: Phase::Entering(Enter::new(incarnation, address)),
            lease: Lease::new(incarnation),
            peers: Peers::default(),
            partitions: Partitions::new(settings.partitions),
            forget: Forget::default(),
            map: PartitionMap::new(settings.partitions),
            settings,
        }
    }

    /// What is known of everybody's partitions. Its version rises when it changes.
    pub const fn map(&self) -> &PartitionMap {
        &self.map
    }

    /// Partitions held, whether or not the lease is still valid.
    pub fn held(&self) -> usize {
        self.partitions.held()
    }

    /// When the machine wants an [`Input::Tick`], on the boot clock.
    pub fn wake_at(&self) -> u64 {
        let polls = self.peers.wake_at().min(self.partitions.wake_at());
        match &self.phase {
            Phase::Entering(enter) => enter.wake_at().min(self.lease.valid_until_ns()),
            Phase::Active => self.lease.wake_at().min(polls),
            Phase::Draining { until_ns } => self.lease.wake_at().min(polls).min(*until_ns),
            Phase::Ending(ending) => ending.until_ns.min(ending.retry_at_ns.unwrap_or(u64::MAX)),
            Phase::Ended => u64::MAX,
        }
    }

    /// Takes an input. Effects are appended to `out`.
    pub fn on(&mut self, input: Input, now: Now, out: &mut Vec<Effect>) {
        // Taken apart so that a turn borrows the settings and nothing else of the machine.
        let settings = self.settings.clone();
        let turn = &mut Turn {
            settings: &settings,
            me: self.me,
            now,
            out,
        };
        if self.is_serving() && !self.lease.is_valid(now.boot_ns) {
            self.lapse(turn);
        }
        match input {
            Input::Answer { ask, answer } => self.answered(ask, answer, turn),
            Input::Tick => {}
            Input::Drain => self.drain(turn),
            input if self.is_serving() => self.partitions.told(input, &self.peers, turn),
            _ => {}
        }
        self.go_on(turn);
    }

    const fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Draining { .. })
    }

    fn answered(&mut self, ask: Ask, answer: Answer, turn: &mut Turn<'_>) {
        match ask {
            Ask::Enter => {
                let Phase::Entering(enter) = &mut self.phase else {
                    return;
                };
                let entering = enter.on(answer, &mut self.lease, &mut self.peers, turn);
                self.entering(entering, turn);
            }
            Ask::End => self.end_answered(&answer, turn),
            _ if !self.is_serving() => {}
            Ask::Lease => {
                if self.lease.on(answer, turn) == Standing::Over {
                    self.lapse(turn);
                }
            }
            Ask::PollCores => {
                let own = self.peers.polled(answer, turn);
                if own == Standing::Over {
                    self.lapse(turn);
                } else {
                    let named = |core| self.partitions.names(core);
                    self.peers.drop_forgotten(named);
                    self.partitions.review(&self.peers, turn);
                }
            }
            Ask::PollPartitions => self.partitions.polled(answer, &self.peers, turn),
            Ask::Declare(core) => {
                if self.peers.declared(core, &answer, turn) {
                    self.partitions.review(&self.peers, turn);
                }
            }
            Ask::Owner(core) => {
                self.peers.found(core, answer, turn);
                self.partitions.looked_for(core);
                self.partitions.review(&self.peers, turn);
            }
            Ask::Change(partition) => {
                self.partitions
                    .changed(partition, &answer, &self.peers, turn);
            }
            Ask::Read(partition) => self.partitions.read(partition, answer, &self.peers, turn),
            Ask::CatchUp(partition, core) => {
                self.partitions.caught_up(partition, core, &answer, turn);
            }
            Ask::Forget => self.forget.on(&answer, turn),
        }
    }

    fn entering(&mut self, entering: Entering, turn: &mut Turn<'_>) {
        match entering {
            Entering::Goes => {}
            Entering::Active(worker) => {
                turn.out.push(Effect::Entered {
                    valid_until_ns: self.lease.valid_until_ns(),
                    worker,
                });
                self.phase = Phase::Active;
                self.peers.begin(turn.now_ns());
                self.partitions.begin(turn.now_ns());
            }
            Entering::Failed => self.end(End::NotEntered, turn),
        }
    }

    fn drain(&mut self, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::Entering(_) => self.end(End::Drained, turn),
            Phase::Active => {
                let until_ns = turn.now_ns() + turn.settings.drain_ns_max();
                self.phase = Phase::Draining { until_ns };
                self.partitions.drain(&self.peers, turn);
            }
            _ => {}
        }
    }

    fn lapse(&mut self, turn: &mut Turn<'_>) {
        turn.out.push(Effect::Lapsed);
        self.end(End::Lapsed, turn);
    }

    fn end(&mut self, end: End, turn: &mut Turn<'_>) {
        self.partitions = Partitions::new(turn.settings.partitions);
        if !self.lease.was_entered() {
            self.phase = Phase::Ended;
            turn.out.push(Effect::Ended(end));
            return;
        }
        self.phase = Phase::Ending(Ending {
            end,
            until_ns: turn.now_ns() + turn.settings.ttl_ns(),
            retry_at_ns: None,
        });
        self.lease.declare_own_death(turn);
    }

    /// The own row was declared dead, or looked at. Others declare it if this does not succeed.
    fn end_answered(&mut self, answer: &Answer, turn: &mut Turn<'_>) {
        let Phase::Ending(ending) = &mut self.phase else {
            return;
        };
        match answer {
            Answer::Cas(Cas::Applied) | Answer::Core(None) => ending.until_ns = 0,
            Answer::Core(Some(row)) => {
                if self.lease.adopt_for_death(row) {
                    self.lease.declare_own_death(turn);
                } else {
                    ending.until_ns = 0;
                }
            }
            Answer::Cas(Cas::Refused) => self.lease.read_own_row(Ask::End, turn),
            _ => ending.retry_at_ns = Some(turn.now_ns() + turn.settings.retry_ns()),
        }
    }

    /// What is due.
    fn go_on(&mut self, turn: &mut Turn<'_>) {
        match &mut self.phase {
            Phase::Entering(enter) => {
                let entering = enter.go_on(&self.lease, turn);
                self.entering(entering, turn);
            }
            Phase::Active => {
                self.lease.go_on(turn);
                self.peers.go_on(turn);
                self.partitions.go_on(&self.peers, turn);
                self.forget.go_on(&self.peers, &self.partitions, turn);
            }
            Phase::Draining { until_ns } => {
                let overdue = *until_ns <= turn.now_ns();
                self.lease.go_on(turn);
                self.peers.go_on(turn);
                self.partitions.go_on(&self.peers, turn);
                if overdue || self.partitions.is_drained(&self.peers, turn) {
                    self.partitions.let_all_go(turn);
                    self.update_map();
                    self.end(End::Drained, turn);
                }
            }
            Phase::Ending(ending) => {
                if ending.until_ns <= turn.now_ns() {
                    turn.out.push(Effect::Ended(ending.end));
                    self.phase = Phase::Ended;
                } else if ending.retry_at_ns.is_some_and(|at| at <= turn.now_ns()) {
                    ending.retry_at_ns = None;
                    self.lease.read_own_row(Ask::End, turn);
                }
            }
            Phase::Ended => {}
        }
        self.update_map();
    }

    fn update_map(&mut self) {
        let mut changed = self.peers.tell(&mut self.map, &self.lease, &self.me);
        // An owner may have been named before its row was seen.
        changed |= self.partitions.tell(changed, &mut self.map);
        if changed {
            let peers = &self.peers;
            self.map.drop_dead(|core| peers.is_strange(core));
            self.map.version += 1;
        }
    }
}
