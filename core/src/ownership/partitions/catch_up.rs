//! Catching up with the journals of those who had a partition before.

use uuid::Uuid;

use super::super::machine::{Ask, Effect, Turn};
use super::super::statement::{Answer, Statement};
use super::Partitions;
use crate::store::fenced::rows::Cas;

/// How far it is with one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The runtime reads the journal.
    Asked,
    /// It gave up, or the write was not answered: to be asked for, or written, again.
    GivenUp,
    Done,
    /// It is being taken off `pending`.
    Writing,
}

/// The incarnations that a held partition still has to catch up with.
#[derive(Default)]
pub(super) struct CatchUps(Vec<(Uuid, State)>);

impl CatchUps {
    pub(super) fn new(pending: &[Uuid]) -> Self {
        Self(pending.iter().map(|core| (*core, State::Asked)).collect())
    }

    fn state(&mut self, core: Uuid) -> Option<&mut State> {
        let mut all = self.0.iter_mut();
        all.find(|(c, _)| *c == core).map(|(_, state)| state)
    }
}

impl Partitions {
    /// The runtime has read a journal, or gave up.
    pub(super) fn catch_up_told(
        &mut self,
        partition: u16,
        epoch: u64,
        core: Uuid,
        done: bool,
        turn: &mut Turn<'_>,
    ) {
        let Some(slot) = self.all.get_mut(usize::from(partition)) else {
            return;
        };
        if slot.held != epoch {
            return;
        }
        if let Some(state @ State::Asked) = slot.catch_ups.state(core) {
            *state = if done { State::Done } else { State::GivenUp };
        }
        self.write_caught_up(partition, turn);
    }

    /// Writes what is done, as far as writes are allowed.
    fn write_caught_up(&mut self, partition: u16, turn: &mut Turn<'_>) {
        let slot = &mut self.all[usize::from(partition)];
        for (core, state) in &mut slot.catch_ups.0 {
            if *state == State::Done && self.writes < turn.settings.writes_max {
                *state = State::Writing;
                self.writes += 1;
                let statement = Statement::CaughtUp {
                    partition,
                    owner: turn.me.incarnation,
                    epoch: slot.held,
                    incarnation: *core,
                };
                turn.ask(Ask::CatchUp(partition, *core), statement);
            }
        }
    }

    /// What came of taking an incarnation off `pending`. A write that was not answered is written
    /// again with the next poll; one that was refused met another epoch, which the poll shows.
    pub(in super::super) fn caught_up(
        &mut self,
        partition: u16,
        core: Uuid,
        answer: &Answer,
        turn: &mut Turn<'_>,
    ) {
        self.writes -= 1;
        let slot = &mut self.all[usize::from(partition)];
        let Some(state @ State::Writing) = slot.catch_ups.state(core) else {
            return;
        };
        if *answer == Answer::Cas(Cas::Applied) {
            slot.catch_ups.0.retain(|(c, _)| *c != core);
            slot.pending.retain(|c| *c != core);
        } else {
            *state = State::Done;
            return;
        }
        self.write_caught_up(partition, turn);
    }

    /// Asks again for what was given up, and writes again what was not answered.
    pub(super) fn repeat_catch_ups(&mut self, turn: &mut Turn<'_>) {
        for partition in 0..self.all.len() as u16 {
            let slot = &mut self.all[usize::from(partition)];
            for (incarnation, state) in &mut slot.catch_ups.0 {
                if *state == State::GivenUp {
                    *state = State::Asked;
                    turn.out.push(Effect::CatchUp {
                        partition,
                        epoch: slot.held,
                        incarnation: *incarnation,
                    });
                }
            }
            if !slot.catch_ups.0.is_empty() {
                self.write_caught_up(partition, turn);
            }
        }
    }
}
