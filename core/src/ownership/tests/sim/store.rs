//! Control tables behind a network: answers get lost, writes are applied late or never, and quorum
//! reads show of a write under way what they like until it is decided.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::dice::Dice;
use crate::ownership::control::{CoreRow, PartitionRow};
use crate::ownership::memory::Tables;
use crate::ownership::statement::{Answer, Statement};

const MS: u64 = 1_000_000;

/// How often what goes wrong, in thousandths.
#[derive(Clone, Copy)]
pub struct Network {
    /// The request never arrives.
    pub lost: u64,
    /// It arrives long after it was given up.
    pub late: u64,
    /// It is carried out, but nobody learns of it.
    pub unanswered: u64,
    /// It takes hundreds of milliseconds.
    pub slow: u64,
    pub late_ms_max: u64,
}

impl Network {
    pub const HEALTHY: Self = Self {
        lost: 0,
        late: 0,
        unanswered: 0,
        slow: 10,
        late_ms_max: 0,
    };
    pub const BAD: Self = Self {
        lost: 15,
        late: 15,
        unanswered: 25,
        slow: 60,
        late_ms_max: 9_000,
    };
}

/// When a request arrives and its answer is back, ns from now.
pub struct Fate {
    pub arrives_in: Option<u64>,
    /// After the arrival.
    pub answered_in: Option<u64>,
}

impl Network {
    pub fn fate(&self, reachable: bool, dice: &mut Dice) -> Fate {
        let ordinary = |dice: &mut Dice| dice.within(MS / 2, 5 * MS);
        let roll = dice.below(1_000);
        let (lost, late) = (self.lost, self.lost + self.late);
        let arrives_in = if !reachable {
            // What was sent before the cut may still come through.
            (self.late_ms_max > 0 && roll < 100).then(|| dice.within(0, self.late_ms_max * MS))
        } else if roll < lost {
            None
        } else if roll < late {
            Some(dice.within(0, self.late_ms_max * MS))
        } else if dice.chance(self.slow) {
            Some(dice.within(5 * MS, 400 * MS))
        } else {
            Some(ordinary(dice))
        };
        let answered_in = if !reachable || dice.chance(self.unanswered) {
            None
        } else if dice.chance(self.slow) {
            Some(dice.within(5 * MS, 400 * MS))
        } else {
            Some(ordinary(dice))
        };
        Fate {
            arrives_in,
            answered_in,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Core(Uuid),
    Partition(u16),
}

enum Old {
    Core(Option<CoreRow>),
    Partition(Option<PartitionRow>),
}

/// The tables, and what quorum reads may still show instead.
#[derive(Default)]
pub struct Replicas {
    pub tables: Tables,
    undecided: BTreeMap<Key, Old>,
    pub conditional_writes: u64,
}

impl Replicas {
    /// Carries a statement out at one instant.
    pub fn apply(&mut self, statement: &Statement, dice: &mut Dice) -> Answer {
        match statement {
            Statement::Cores => self.cores(dice),
            Statement::Partitions => self.partitions(dice),
            _ => {
                let key = Self::key(statement);
                if let Some(key) = key {
                    self.undecided.remove(&key);
                }
                let old = key.map(|key| self.row(key));
                let answer = self.tables.apply(statement);
                if let Answer::Cas(_) = answer {
                    self.conditional_writes += 1;
                    if let (Some(key), Some(old)) = (key, old) {
                        self.undecided.insert(key, old);
                    }
                }
                answer
            }
        }
    }

    /// The write was answered: every quorum shows it from now on.
    pub fn decide(&mut self, statement: &Statement) {
        if let Some(key) = Self::key(statement) {
            self.undecided.remove(&key);
        }
    }

    /// Whether a core is alive, to one quorum.
    pub fn core_at_quorum(&self, core: Uuid, dice: &mut Dice) -> Option<CoreRow> {
        match self.undecided.get(&Key::Core(core)) {
            Some(Old::Core(old)) if dice.chance(500) => old.clone(),
            _ => self.tables.cores.get(&core).cloned(),
        }
    }

    fn key(statement: &Statement) -> Option<Key> {
        Some(match statement {
            Statement::Core(core) | Statement::Forget(core) => Key::Core(*core),
            Statement::Enter(row) => Key::Core(row.incarnation),
            Statement::Renew { incarnation, .. } | Statement::DeclareDead { incarnation, .. } => {
                Key::Core(*incarnation)
            }
            Statement::Partition(partition) | Statement::CaughtUp { partition, .. } => {
                Key::Partition(*partition)
            }
            Statement::ChangePartition { row, .. } => Key::Partition(row.partition),
            _ => return None,
        })
    }

    fn row(&self, key: Key) -> Old {
        match key {
            Key::Core(core) => Old::Core(self.tables.cores.get(&core).cloned()),
            Key::Partition(p) => Old::Partition(self.tables.partitions.get(&p).cloned()),
        }
    }

    fn cores(&self, dice: &mut Dice) -> Answer {
        let mut rows = self.tables.cores.clone();
        for (key, old) in &self.undecided {
            if let (Key::Core(core), Old::Core(old)) = (key, old)
                && dice.chance(500)
            {
                match old {
                    Some(old) => rows.insert(*core, old.clone()),
                    None => rows.remove(core),
                };
            }
        }
        Answer::Cores(rows.into_values().collect())
    }

    fn partitions(&self, dice: &mut Dice) -> Answer {
        let mut rows = self.tables.partitions.clone();
        for (key, old) in &self.undecided {
            if let (Key::Partition(p), Old::Partition(old)) = (key, old)
                && dice.chance(500)
            {
                match old {
                    Some(old) => rows.insert(*p, old.clone()),
                    None => rows.remove(p),
                };
            }
        }
        Answer::Partitions(rows.into_values().collect())
    }
}
