//! The conditional writes of partitions: taking over from the dead, handing over to the living.

use uuid::Uuid;

use super::super::balance;
use super::super::control::PartitionRow;
use super::super::machine::{Ask, Effect, Turn};
use super::super::peers::Peers;
use super::super::statement::{Answer, Statement};
use super::{Doing, Partitions};
use crate::store::fenced::rows::Cas;

impl Partitions {
    /// The partition waits for its turn to be written.
    pub(super) fn enqueue(&mut self, partition: u16) {
        let slot = &mut self.all[usize::from(partition)];
        if !std::mem::replace(&mut slot.queued, true) {
            self.queue.push_back(partition);
        }
    }

    /// Writes what waits, as far as writes are allowed.
    pub(super) fn write_queued(&mut self, peers: &Peers, turn: &mut Turn<'_>) {
        if self.queue.is_empty() || self.writes >= turn.settings.writes_max {
            return;
        }
        let targets = self.targets(peers, turn);
        while self.writes < turn.settings.writes_max {
            let Some(partition) = self.queue.pop_front() else {
                break;
            };
            self.all[usize::from(partition)].queued = false;
            // Things may have changed while it waited.
            let Some(row) = self.next_row(partition, &targets, peers, turn) else {
                continue;
            };
            let slot = &mut self.all[usize::from(partition)];
            let expected = (slot.epoch > 0).then_some((slot.owner, slot.epoch));
            slot.doing = Doing::Changing {
                row: row.clone(),
                from: slot.owner,
            };
            self.writes += 1;
            turn.ask(
                Ask::Change(partition),
                Statement::ChangePartition { expected, row },
            );
        }
    }

    /// Who may be handed partitions. This core too, unless it is about to stop.
    fn targets(&self, peers: &Peers, turn: &Turn<'_>) -> Vec<balance::Candidate> {
        let mut targets = peers.steady(turn);
        if self.draining {
            let others = |c: &balance::Candidate| c.incarnation != turn.me.incarnation;
            targets.retain(others);
            if targets.is_empty() {
                targets = peers.fresh(turn);
                targets.retain(others);
            }
        }
        targets
    }

    /// The row that a partition should have next, if this core is to write it.
    fn next_row(
        &mut self,
        partition: u16,
        targets: &[balance::Candidate],
        peers: &Peers,
        turn: &mut Turn<'_>,
    ) -> Option<PartitionRow> {
        let me = turn.me.incarnation;
        let slot = &self.all[usize::from(partition)];
        if slot.doing != Doing::Nothing || slot.held != 0 {
            return None;
        }
        let mut pending = slot.pending.clone();
        let mut add = |core: Uuid| {
            if !pending.contains(&core) {
                pending.push(core);
            }
        };
        let owner = if slot.epoch > 0 && slot.owner == Some(me) {
            if slot.epoch > slot.let_go {
                return None;
            }
            if !slot.effects_done {
                add(me);
            }
            balance::desired(partition, targets)?
        } else {
            if self.draining || !self.is_open(partition, peers, turn) {
                return None;
            }
            if let Some(dead) = self.all[usize::from(partition)].owner {
                add(dead);
            }
            me
        };
        Some(PartitionRow {
            partition,
            owner: Some(owner),
            epoch: self.all[usize::from(partition)].epoch + 1,
            pending,
        })
    }

    /// What came of a write. If that is not known, or another was first, the row is read.
    pub(in super::super) fn changed(
        &mut self,
        partition: u16,
        answer: &Answer,
        peers: &Peers,
        turn: &mut Turn<'_>,
    ) {
        let slot = &mut self.all[usize::from(partition)];
        let Doing::Changing { row, from } = std::mem::replace(&mut slot.doing, Doing::Nothing)
        else {
            return;
        };
        if *answer == Answer::Cas(Cas::Applied) {
            self.writes -= 1;
            self.written(row, from, turn);
            self.write_queued(peers, turn);
        } else {
            slot.doing = Doing::Reading;
            turn.ask(Ask::Read(partition), Statement::Partition(partition));
        }
    }

    /// This core has written a row.
    fn written(&mut self, row: PartitionRow, from: Option<Uuid>, turn: &mut Turn<'_>) {
        let (partition, epoch) = (row.partition, row.epoch);
        let me = turn.me.incarnation;
        if let Some(to) = row.owner.filter(|to| *to != me) {
            turn.out.push(Effect::HandedOver { partition, to });
        }
        // A poll may have shown it already, or something newer.
        self.observe(row, turn);
        let slot = &self.all[usize::from(partition)];
        if slot.owner != Some(me) || slot.epoch != epoch || slot.held == epoch {
            return;
        }
        if self.draining {
            self.pass_on(partition);
        } else {
            self.gain(partition, from.filter(|core| *core != me), turn);
        }
    }

    /// A partition that came while this core stops was never served: there is nothing to settle.
    pub(super) fn pass_on(&mut self, partition: u16) {
        let slot = &mut self.all[usize::from(partition)];
        slot.let_go = slot.epoch;
        slot.effects_done = true;
        self.enqueue(partition);
    }

    /// The row was read, decided.
    pub(in super::super) fn read(
        &mut self,
        partition: u16,
        answer: Answer,
        peers: &Peers,
        turn: &mut Turn<'_>,
    ) {
        self.writes -= 1;
        self.all[usize::from(partition)].doing = Doing::Nothing;
        // If it is unchanged, or was not answered, the next poll decides what to do.
        if let Answer::Partition(Some(row)) = answer
            && self.observe(row, turn)
        {
            let fresh = peers.fresh(turn);
            self.look(partition, &fresh, peers, turn);
        }
        self.write_queued(peers, turn);
    }

    /// Gives up partitions that others should have, a few at a time.
    pub(super) fn rebalance(&mut self, peers: &Peers, turn: &mut Turn<'_>) {
        let targets = peers.steady(turn);
        if targets.len() < 2 {
            return;
        }
        let moving = |p: &super::Partition| {
            p.doing == Doing::Releasing || p.held == 0 && p.let_go > 0 && p.let_go == p.epoch
        };
        let mut under_way = self.all.iter().filter(|p| moving(p)).count();
        for partition in 0..self.all.len() as u16 {
            if under_way >= turn.settings.handovers_max {
                break;
            }
            let slot = &self.all[usize::from(partition)];
            let rested = turn.now_ns() - slot.changed_ns >= turn.settings.rest_ns();
            if slot.held != 0
                && slot.doing == Doing::Nothing
                && rested
                && balance::desired(partition, &targets) != Some(turn.me.incarnation)
            {
                self.release(partition, turn);
                under_way += 1;
            }
        }
        self.unsettled_until_ns = if under_way > 0 {
            turn.now_ns() + turn.settings.unsettled_ns()
        } else {
            self.unsettled_until_ns
        };
    }

    fn release(&mut self, partition: u16, turn: &mut Turn<'_>) {
        let slot = &mut self.all[usize::from(partition)];
        slot.doing = Doing::Releasing;
        let until = turn.now_ns() + turn.settings.release_ns_max();
        self.releasing.push_back((until, partition));
        turn.out.push(Effect::Release {
            partition,
            epoch: slot.held,
        });
    }

    /// The engine has settled a partition, or had long enough for it. `epoch`: which it means; the
    /// flag is cleared before anybody is told.
    pub(super) fn released(
        &mut self,
        partition: u16,
        epoch: Option<u64>,
        effects_done: bool,
        peers: &Peers,
        turn: &mut Turn<'_>,
    ) {
        let Some(slot) = self.all.get_mut(usize::from(partition)) else {
            return;
        };
        if slot.doing != Doing::Releasing || epoch.is_some_and(|e| e != slot.held) {
            return;
        }
        slot.effects_done = effects_done;
        self.lose(partition, true, turn);
        self.enqueue(partition);
        self.write_queued(peers, turn);
    }

    /// Hands over everything, at once.
    pub(in super::super) fn drain(&mut self, peers: &Peers, turn: &mut Turn<'_>) {
        self.draining = true;
        for partition in 0..self.all.len() as u16 {
            let slot = &self.all[usize::from(partition)];
            if slot.held != 0 && slot.doing == Doing::Nothing {
                self.release(partition, turn);
            }
        }
        self.review(peers, turn);
    }

    /// Whether everything that can be handed over is. Without anybody to hand it to it is let go and
    /// left: the own row will say that it is there to be taken.
    pub(in super::super) fn is_drained(&self, peers: &Peers, turn: &Turn<'_>) -> bool {
        let alone = self.targets(peers, turn).is_empty();
        let me = Some(turn.me.incarnation);
        self.all.iter().all(|p| {
            p.held == 0 && p.doing == Doing::Nothing && (alone || p.owner != me || p.epoch == 0)
        })
    }

    /// Time is up: what is still held is let go.
    pub(in super::super) fn let_all_go(&mut self, turn: &mut Turn<'_>) {
        for partition in 0..self.all.len() as u16 {
            if self.all[usize::from(partition)].held != 0 {
                self.lose(partition, true, turn);
            }
        }
    }
}
