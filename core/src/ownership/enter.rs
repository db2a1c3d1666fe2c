//! Entering: a worker id, a row of one's own, and the worker id made one's own.
//!
//! Invariants:
//! 1. Whoever holds a worker id has a row, which says from where on the next holder may count: the
//!    row is entered before the id is taken, with a floor above that of the id's last holder.
//! 2. The last holder was read as dead (SERIAL), so its floor does not rise any more.

use std::collections::BTreeSet;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::control::{CoreRow, Life};
use super::lease::Lease;
use super::machine::{Ask, Effect, Turn, Worker};
use super::peers::Peers;
use super::settings::Rule;
use super::statement::{Answer, Statement};
use crate::store::fenced::rows::Cas;

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entering {
    Goes,
    Active(Worker),
    /// This incarnation is of no use.
    Failed,
}

/// What is under way, or is done again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Which worker ids are taken?
    Cores,
    /// Who has this one?
    Holder,
    /// Is that one dead?
    HolderRow,
    Enter,
    ReadEntered,
    Take,
    ReadTaken,
}

pub(super) struct Enter {
    incarnation: Uuid,
    address: String,
    step: Step,
    /// `None`: an ask is under way.
    due_ns: Option<u64>,
    worker_id: u16,
    holder: Option<Uuid>,
    holder_floor_ms: u64,
    /// Worker ids that turned out to be somebody's.
    taken: BTreeSet<u16>,
    row: Option<CoreRow>,
    first_sent_ns: u64,
}

impl Enter {
    pub(super) fn new(incarnation: Uuid, address: &str) -> Self {
        Self {
            incarnation,
            address: address.to_owned(),
            step: Step::Cores,
            due_ns: Some(0),
            worker_id: 0,
            holder: None,
            holder_floor_ms: 0,
            taken: BTreeSet::new(),
            row: None,
            first_sent_ns: 0,
        }
    }

    pub(super) fn wake_at(&self) -> u64 {
        self.due_ns.unwrap_or(u64::MAX)
    }

    /// Asks what is due.
    pub(super) fn go_on(&mut self, lease: &Lease, turn: &mut Turn<'_>) -> Entering {
        if !lease.is_valid(turn.now_ns()) {
            return Entering::Failed;
        }
        if self.due_ns.is_some_and(|at| at <= turn.now_ns()) {
            self.due_ns = None;
            let statement = self.statement();
            turn.ask(Ask::Enter, statement);
        }
        Entering::Goes
    }

    fn statement(&self) -> Statement {
        match (self.step, &self.row) {
            (Step::Holder | Step::ReadTaken, _) => Statement::Worker(self.worker_id),
            (Step::HolderRow, _) => Statement::Core(self.holder.unwrap_or_default()),
            (Step::Enter, Some(row)) => Statement::Enter(row.clone()),
            (Step::ReadEntered, _) => Statement::Core(self.incarnation),
            (Step::Take, _) => Statement::TakeWorker {
                worker_id: self.worker_id,
                expected: self.holder,
                incarnation: self.incarnation,
            },
            (Step::Cores | Step::Enter, _) => Statement::Cores,
        }
    }

    fn next(&mut self, step: Step) {
        self.step = step;
        self.due_ns = Some(0);
    }

    fn again(&mut self, step: Step, turn: &Turn<'_>) {
        self.step = step;
        self.due_ns = Some(turn.now_ns() + turn.settings.retry_ns());
    }

    pub(super) fn on(
        &mut self,
        answer: Answer,
        lease: &mut Lease,
        peers: &mut Peers,
        turn: &mut Turn<'_>,
    ) -> Entering {
        match (self.step, answer) {
            (Step::Cores, Answer::Cores(rows)) => {
                self.choose(&rows, turn);
                peers.polled(Answer::Cores(rows), turn);
            }
            (Step::Holder, Answer::Worker(None)) => self.prepare(None, 0, lease, turn),
            (Step::Holder, Answer::Worker(Some(holder))) => {
                self.holder = Some(holder);
                self.next(Step::HolderRow);
            }
            (Step::HolderRow, Answer::Core(Some(row))) if row.life == Life::Dead => {
                self.prepare(Some(row.incarnation), row.id_floor_ms, lease, turn);
            }
            (Step::HolderRow, Answer::Core(_)) => {
                self.taken.insert(self.worker_id);
                self.next(Step::Cores);
            }
            (Step::Enter, Answer::Cas(Cas::Applied)) => self.entered(lease, turn),
            (Step::Enter, _) => self.next(Step::ReadEntered),
            (Step::ReadEntered, Answer::Core(row)) => return self.read_entered(row, lease, turn),
            (Step::Take, Answer::Cas(Cas::Applied)) => return self.active(),
            (Step::Take, _) => self.next(Step::ReadTaken),
            (Step::ReadTaken, Answer::Worker(holder)) => {
                if holder == Some(self.incarnation) {
                    return self.active();
                }
                if holder != self.holder {
                    return Entering::Failed;
                }
                self.again(Step::Take, turn);
            }
            (step, _) => self.again(step, turn),
        }
        Entering::Goes
    }

    /// A worker id that no row has; else that of a dead core whose ids ended earliest.
    fn choose(&mut self, rows: &[CoreRow], turn: &mut Turn<'_>) {
        let workers = turn.settings.workers;
        let named: BTreeSet<u16> = rows.iter().map(|row| row.worker_id).collect();
        // Cores that start together begin at different places.
        let first = xxh3_64(self.incarnation.as_bytes()) % u64::from(workers.max(1));
        let free = (0..workers)
            .map(|i| ((first + u64::from(i)) % u64::from(workers)) as u16)
            .find(|w| !named.contains(w) && !self.taken.contains(w));
        let of_dead = || {
            rows.iter()
                .filter(|row| row.life == Life::Dead && row.worker_id < workers)
                .filter(|row| !self.taken.contains(&row.worker_id))
                .min_by_key(|row| row.id_floor_ms)
                .map(|row| row.worker_id)
        };
        match free.or_else(of_dead) {
            Some(worker_id) => {
                self.worker_id = worker_id;
                self.next(Step::Holder);
            }
            None => {
                turn.out.push(Effect::NoWorker);
                self.taken.clear();
                self.step = Step::Cores;
                self.due_ns = Some(turn.now_ns() + turn.settings.ttl_ns());
            }
        }
    }

    fn prepare(
        &mut self,
        holder: Option<Uuid>,
        floor_ms: u64,
        lease: &mut Lease,
        turn: &mut Turn<'_>,
    ) {
        self.holder = holder;
        let keeps = turn.settings.keeps(Rule::WorkerFloor);
        self.holder_floor_ms = if keeps { floor_ms } else { 0 };
        let row = CoreRow {
            incarnation: self.incarnation,
            counter: 1,
            ttl_ms: turn.settings.ttl_ms,
            life: Life::Alive,
            worker_id: self.worker_id,
            id_floor_ms: self.holder_floor_ms.max(turn.now.wall_ms) + turn.settings.id_horizon_ms(),
            address: self.address.clone(),
        };
        lease.entering(&row);
        self.row = Some(row);
        self.first_sent_ns = turn.now_ns();
        self.next(Step::Enter);
    }

    fn read_entered(
        &mut self,
        row: Option<CoreRow>,
        lease: &mut Lease,
        turn: &mut Turn<'_>,
    ) -> Entering {
        let adopts = !turn.settings.keeps(Rule::NewIncarnation);
        match row {
            // The attempt was applied.
            Some(row) if Some(&row) == self.row.as_ref() => self.entered(lease, turn),
            Some(row) if adopts && row.life == Life::Alive => {
                self.worker_id = row.worker_id;
                self.row = Some(row);
                self.entered(lease, turn);
                return self.active();
            }
            // Somebody else's row under the same incarnation, or declared dead already.
            Some(_) => return Entering::Failed,
            None => self.again(Step::Enter, turn),
        }
        Entering::Goes
    }

    fn entered(&mut self, lease: &mut Lease, turn: &Turn<'_>) {
        if let Some(row) = &self.row {
            lease.entered(row, self.first_sent_ns, turn);
        }
        self.next(Step::Take);
    }

    fn active(&self) -> Entering {
        Entering::Active(Worker {
            id: self.worker_id,
            ids_from_ms: self.holder_floor_ms,
            ids_below_ms: self.row.as_ref().map_or(0, |row| row.id_floor_ms),
        })
    }
}
