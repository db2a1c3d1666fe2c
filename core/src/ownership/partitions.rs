//! The partitions: what their rows say, what this core serves, and what it does about the difference.
//!
//! Invariants:
//! 1. Of a partition only the row of the highest epoch that was ever seen counts.
//! 2. A partition is served because a row names this core, whether or not the write that made it so
//!    was answered; and never again under an epoch at which it was let go.
//! 3. One thing is under way for each partition.
//! 4. A partition that was let go under an epoch is moved on to a higher one, if need be back to this
//!    core.
//!
//! # Layout
//! - this file: rows come in, partitions are gained and lost, polls
//! - [`writes`]: taking over, handing over, and what came of it
//! - [`catch_up`]: the journals of those who had a partition before

mod catch_up;
mod writes;

use std::collections::{BTreeSet, VecDeque};

use uuid::Uuid;

use self::catch_up::CatchUps;
use super::balance::{self, Candidate};
use super::control::PartitionRow;
use super::machine::{Ask, Effect, Input, Turn};
use super::map::PartitionMap;
use super::peers::{Known, Peers};
use super::settings::Rule;
use super::statement::{Answer, Statement};

/// What is under way for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// The engine settles it.
    Releasing,
    /// This row is being written, in place of that of `from`.
    Changing {
        row: PartitionRow,
        from: Option<Uuid>,
    },
    /// The row is being read, since a write was refused or not answered, or since a hint came.
    Reading,
}

struct Partition {
    owner: Option<Uuid>,
    /// 0: no row was seen.
    epoch: u64,
    pending: Vec<Uuid>,
    /// The epoch under which it is served; 0: it is not.
    held: u64,
    /// Epochs up to here are never served again.
    let_go: u64,
    /// The effects of what this core wrote under `let_go` are all durable.
    effects_done: bool,
    doing: Doing,
    /// Since when it may be taken; 0: it may not.
    open_since_ns: u64,
    /// When its row changed last, as seen from here.
    changed_ns: u64,
    /// It waits for a write of its own.
    queued: bool,
    catch_ups: CatchUps,
}

pub(super) struct Partitions {
    all: Vec<Partition>,
    held: usize,
    /// Conditional writes under way, and reads after them.
    writes: usize,
    /// Waiting for one of those.
    queue: VecDeque<u16>,
    /// Being settled by the engine: until when at most. In order of time.
    releasing: VecDeque<(u64, u16)>,
    /// A list has been read: what has no row was never anybody's.
    listed: bool,
    draining: bool,
    next_poll_ns: Option<u64>,
    polling: bool,
    unsettled_until_ns: u64,
    /// Owners that may be dead, being read.
    looking_for: BTreeSet<Uuid>,
    /// Rows that the map was not told of.
    untold: Vec<u16>,
}

impl Partitions {
    pub(super) fn new(partitions: u16) -> Self {
        let partition = || Partition {
            owner: None,
            epoch: 0,
            pending: Vec::new(),
            held: 0,
            let_go: 0,
            effects_done: true,
            doing: Doing::Nothing,
            open_since_ns: 0,
            changed_ns: 0,
            queued: false,
            catch_ups: CatchUps::default(),
        };
        Self {
            all: (0..partitions).map(|_| partition()).collect(),
            held: 0,
            writes: 0,
            queue: VecDeque::new(),
            releasing: VecDeque::new(),
            listed: false,
            draining: false,
            next_poll_ns: None,
            polling: false,
            unsettled_until_ns: 0,
            looking_for: BTreeSet::new(),
            untold: Vec::new(),
        }
    }

    /// Polls from now on.
    pub(super) fn begin(&mut self, now_ns: u64) {
        self.next_poll_ns = Some(now_ns);
    }

    pub(super) const fn held(&self) -> usize {
        self.held
    }

    pub(super) fn wake_at(&self) -> u64 {
        let release = self.releasing.front().map_or(u64::MAX, |(until, _)| *until);
        match self.next_poll_ns {
            Some(at) if !self.polling => release.min(at),
            _ => release,
        }
    }

    /// Whether some partition names a core as its owner, or waits for its journal to be read.
    pub(super) fn names(&self, core: Uuid) -> bool {
        self.all
            .iter()
            .any(|p| p.owner == Some(core) || p.pending.contains(&core))
    }

    /// Whether anything may be concluded from [`Partitions::names`].
    pub(super) const fn is_listed(&self) -> bool {
        self.listed
    }

    /// What is due by time: polls, and releases that the engine did not answer.
    pub(super) fn go_on(&mut self, peers: &Peers, turn: &mut Turn<'_>) {
        let now = turn.now_ns();
        while let Some((until, partition)) = self.releasing.front().copied() {
            if until > now {
                break;
            }
            self.releasing.pop_front();
            self.released(partition, None, false, peers, turn);
        }
        if self.next_poll_ns.is_some_and(|at| at <= now) && !self.polling {
            self.poll(turn);
        }
        self.write_queued(peers, turn);
    }

    fn poll(&mut self, turn: &mut Turn<'_>) {
        let every = if turn.now_ns() < self.unsettled_until_ns || !self.listed {
            turn.settings.poll_every_ns()
        } else {
            turn.settings.idle_poll_ns()
        };
        self.polling = true;
        self.next_poll_ns = Some(turn.now_ns() + every);
        turn.ask(Ask::PollPartitions, Statement::Partitions);
    }

    /// All rows were read.
    pub(super) fn polled(&mut self, answer: Answer, peers: &Peers, turn: &mut Turn<'_>) {
        self.polling = false;
        let Answer::Partitions(rows) = answer else {
            return;
        };
        self.listed = true;
        for row in rows {
            self.observe(row, turn);
        }
        self.review(peers, turn);
    }

    /// Looks at every partition: after a poll, or when it is known who else is there.
    pub(super) fn review(&mut self, peers: &Peers, turn: &mut Turn<'_>) {
        let fresh = peers.fresh(turn);
        for partition in 0..self.all.len() as u16 {
            self.look(partition, &fresh, peers, turn);
        }
        if !self.draining {
            self.rebalance(peers, turn);
        }
        self.repeat_catch_ups(turn);
        self.write_queued(peers, turn);
    }

    /// What somebody said who is neither a clock nor the control tables.
    pub(super) fn told(&mut self, input: Input, peers: &Peers, turn: &mut Turn<'_>) {
        match input {
            Input::Released {
                partition,
                epoch,
                effects_done,
            } => self.released(partition, Some(epoch), effects_done, peers, turn),
            Input::CaughtUp {
                partition,
                epoch,
                incarnation,
                done,
            } => self.catch_up_told(partition, epoch, incarnation, done, turn),
            Input::Hint { partition, epoch } => self.hint(partition, epoch, turn),
            Input::Tick | Input::Answer { .. } | Input::Drain => {}
        }
    }

    fn hint(&mut self, partition: u16, epoch: u64, turn: &mut Turn<'_>) {
        let Some(slot) = self.all.get_mut(usize::from(partition)) else {
            return;
        };
        if epoch > slot.epoch && slot.doing == Doing::Nothing {
            slot.doing = Doing::Reading;
            self.writes += 1;
            turn.ask(Ask::Read(partition), Statement::Partition(partition));
        }
    }

    /// A row was read or written. One of a lower epoch than was seen already says nothing. Says
    /// whether anything is new.
    fn observe(&mut self, row: PartitionRow, turn: &mut Turn<'_>) -> bool {
        let partition = row.partition;
        let Some(slot) = self.all.get_mut(usize::from(partition)) else {
            return false;
        };
        if row.epoch <= slot.epoch {
            // Only its owner takes incarnations off `pending`, and that is the news here.
            if row.epoch == slot.epoch && slot.held != slot.epoch {
                slot.pending = row.pending;
            }
            return false;
        }
        slot.owner = row.owner;
        slot.epoch = row.epoch;
        slot.pending = row.pending;
        slot.changed_ns = turn.now_ns();
        slot.open_since_ns = 0;
        if slot.held != 0 {
            // Nobody takes what a living core holds: others have declared this one dead.
            self.lose(partition, false, turn);
        }
        self.untold.push(partition);
        self.unsettled_until_ns = turn.now_ns() + turn.settings.unsettled_ns();
        true
    }

    /// Compares a row with what is served, and acts on it.
    fn look(&mut self, partition: u16, fresh: &[Candidate], peers: &Peers, turn: &mut Turn<'_>) {
        let slot = &mut self.all[usize::from(partition)];
        if slot.doing != Doing::Nothing || slot.held != 0 && slot.held == slot.epoch {
            return;
        }
        if slot.epoch > 0 && slot.owner == Some(turn.me.incarnation) {
            if slot.epoch <= slot.let_go {
                self.enqueue(partition);
            } else if self.draining {
                self.pass_on(partition);
            } else if turn.settings.keeps(Rule::Reconcile) {
                self.gain(partition, None, turn);
            }
            return;
        }
        if self.is_open(partition, peers, turn) && !self.draining {
            let slot = &mut self.all[usize::from(partition)];
            if slot.open_since_ns == 0 {
                slot.open_since_ns = turn.now_ns().max(1);
            }
            self.unsettled_until_ns = turn.now_ns() + turn.settings.unsettled_ns();
            let waited = turn.now_ns() - slot.open_since_ns;
            let rank = balance::rank(partition, &turn.me, fresh) as u64;
            if waited >= rank * turn.settings.next_in_line_ns() {
                self.enqueue(partition);
            }
        }
    }

    /// Whether a partition may be taken: nobody had it yet, or its owner is dead.
    fn is_open(&mut self, partition: u16, peers: &Peers, turn: &mut Turn<'_>) -> bool {
        let slot = &self.all[usize::from(partition)];
        match slot.owner {
            None => slot.epoch > 0 || self.listed,
            Some(owner) if owner == turn.me.incarnation => false,
            Some(owner) => match peers.known(owner) {
                Known::Dead => true,
                Known::Alive => false,
                Known::Undecided => {
                    if self.looking_for.insert(owner) {
                        turn.ask(Ask::Owner(owner), Statement::Core(owner));
                    }
                    false
                }
            },
        }
    }

    /// An owner that may be dead was read.
    pub(super) fn looked_for(&mut self, core: Uuid) {
        self.looking_for.remove(&core);
    }

    fn gain(&mut self, partition: u16, taken_from: Option<Uuid>, turn: &mut Turn<'_>) {
        let slot = &mut self.all[usize::from(partition)];
        slot.held = slot.epoch;
        self.held += 1;
        let epoch = slot.epoch;
        turn.out.push(Effect::Gained {
            partition,
            epoch,
            taken_from,
        });
        slot.catch_ups = CatchUps::new(&slot.pending);
        for incarnation in slot.pending.iter().copied() {
            turn.out.push(Effect::CatchUp {
                partition,
                epoch,
                incarnation,
            });
        }
    }

    /// What was held is no longer.
    fn lose(&mut self, partition: u16, asked: bool, turn: &mut Turn<'_>) {
        let slot = &mut self.all[usize::from(partition)];
        let epoch = std::mem::take(&mut slot.held);
        slot.let_go = slot.let_go.max(epoch);
        slot.catch_ups = CatchUps::default();
        if slot.doing == Doing::Releasing {
            slot.doing = Doing::Nothing;
            self.releasing.retain(|(_, p)| *p != partition);
        }
        self.held -= 1;
        turn.out.push(Effect::LetGo {
            partition,
            epoch,
            asked,
        });
    }

    /// Tells the map what is new, or `all` there is. Says whether it changed.
    pub(super) fn tell(&mut self, all: bool, map: &mut PartitionMap) -> bool {
        if all {
            self.untold = (0..self.all.len() as u16).collect();
        }
        let mut changed = false;
        for partition in self.untold.drain(..) {
            let slot = &self.all[usize::from(partition)];
            changed |= slot.epoch > 0 && map.learn(partition, slot.owner, slot.epoch);
        }
        changed
    }
}
