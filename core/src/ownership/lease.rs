//! The own lease: a counter that is raised every quarter of the ttl.
//!
//! Invariants:
//! 1. At most one renewal is under way, and it goes on until its outcome is known.
//! 2. Validity counts from when its *first* attempt was sent, whichever attempt was answered.
//! 3. Each attempt of a renewal writes the same row.

use uuid::Uuid;

use super::control::{CoreRow, Life};
use super::machine::{Ask, Effect, Turn};
use super::settings::Rule;
use super::statement::{Answer, Statement};
use crate::store::fenced::rows::Cas;

/// Whether the own row still says that this core lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    Over,
}

struct Renewal {
    to: u64,
    id_floor_ms: u64,
    first_sent_ns: u64,
    /// When to read the row again; `None`: an ask is under way.
    retry_at_ns: Option<u64>,
}

pub(super) struct Lease {
    incarnation: Uuid,
    /// 0: not entered.
    counter: u64,
    valid_until_ns: u64,
    id_floor_ms: u64,
    next_at_ns: u64,
    renewal: Option<Renewal>,
    /// An entry was sent: a row may exist, now or later.
    sent: bool,
    address: String,
}

impl Lease {
    pub(super) const fn new(incarnation: Uuid) -> Self {
        Self {
            incarnation,
            counter: 0,
            valid_until_ns: u64::MAX,
            id_floor_ms: 0,
            next_at_ns: u64::MAX,
            renewal: None,
            sent: false,
            address: String::new(),
        }
    }

    /// The row is about to be entered.
    pub(super) fn entering(&mut self, row: &CoreRow) {
        self.sent = true;
        self.counter = row.counter;
        self.address.clone_from(&row.address);
    }

    /// The row was entered by an attempt that was first sent then.
    pub(super) fn entered(&mut self, row: &CoreRow, first_sent_ns: u64, turn: &Turn<'_>) {
        self.counter = row.counter;
        self.id_floor_ms = row.id_floor_ms;
        self.valid_until_ns = first_sent_ns + turn.settings.valid_ns();
        self.next_at_ns = first_sent_ns + turn.settings.renew_every_ns();
    }

    pub(super) const fn was_entered(&self) -> bool {
        self.sent
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) const fn valid_until_ns(&self) -> u64 {
        self.valid_until_ns
    }

    pub(super) const fn is_valid(&self, now_ns: u64) -> bool {
        now_ns < self.valid_until_ns
    }

    pub(super) fn wake_at(&self) -> u64 {
        let due = match &self.renewal {
            Some(renewal) => renewal.retry_at_ns.unwrap_or(u64::MAX),
            None => self.next_at_ns,
        };
        due.min(self.valid_until_ns)
    }

    /// Renews when it is time to.
    pub(super) fn go_on(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now_ns();
        match &mut self.renewal {
            None if self.next_at_ns <= now => {
                let floor = turn.now.wall_ms + turn.settings.id_horizon_ms();
                self.renewal = Some(Renewal {
                    to: self.counter + 1,
                    id_floor_ms: self.id_floor_ms.max(floor),
                    first_sent_ns: now,
                    retry_at_ns: None,
                });
                self.send(turn);
            }
            Some(renewal) if renewal.retry_at_ns.is_some_and(|at| at <= now) => {
                renewal.retry_at_ns = None;
                self.read_own_row(Ask::Lease, turn);
            }
            _ => {}
        }
    }

    fn send(&self, turn: &mut Turn<'_>) {
        if let Some(renewal) = &self.renewal {
            let statement = Statement::Renew {
                incarnation: self.incarnation,
                from: self.counter,
                to: renewal.to,
                id_floor_ms: renewal.id_floor_ms,
            };
            turn.ask(Ask::Lease, statement);
        }
    }

    pub(super) fn read_own_row(&self, ask: Ask, turn: &mut Turn<'_>) {
        turn.ask(ask, Statement::Core(self.incarnation));
    }

    /// An attempt was answered, or the row was read after one that was not.
    pub(super) fn on(&mut self, answer: Answer, turn: &mut Turn<'_>) -> Standing {
        let Some(renewal) = &mut self.renewal else {
            return Standing::Good;
        };
        match answer {
            Answer::Cas(Cas::Applied) => self.renewed(turn),
            // Refused: an earlier attempt of this renewal was applied, or the core is dead.
            Answer::Cas(Cas::Refused) => self.read_own_row(Ask::Lease, turn),
            Answer::Core(Some(row)) if row.life == Life::Alive => {
                if row.counter == renewal.to {
                    self.renewed(turn);
                } else {
                    self.send(turn);
                }
            }
            Answer::Core(_) => return Standing::Over,
            _ => renewal.retry_at_ns = Some(turn.now_ns() + turn.settings.retry_ns()),
        }
        Standing::Good
    }

    fn renewed(&mut self, turn: &mut Turn<'_>) {
        let Some(renewal) = self.renewal.take() else {
            return;
        };
        let since = if turn.settings.keeps(Rule::FirstSend) {
            renewal.first_sent_ns
        } else {
            turn.now_ns()
        };
        self.counter = renewal.to;
        self.id_floor_ms = renewal.id_floor_ms;
        self.next_at_ns = renewal.first_sent_ns + turn.settings.renew_every_ns();
        let valid_until_ns = since + turn.settings.valid_ns();
        self.valid_until_ns = self.valid_until_ns.max(valid_until_ns);
        turn.out.push(Effect::Renewed {
            valid_until_ns,
            ids_below_ms: renewal.id_floor_ms,
        });
    }

    /// Asks that the own row be marked dead, as far as its counter is known.
    pub(super) fn declare_own_death(&self, turn: &mut Turn<'_>) {
        let statement = Statement::DeclareDead {
            incarnation: self.incarnation,
            counter: self.counter,
        };
        turn.ask(Ask::End, statement);
    }

    /// The own row was read at the end: whether there is still something to mark dead.
    pub(super) fn adopt_for_death(&mut self, row: &CoreRow) -> bool {
        self.counter = row.counter;
        row.life == Life::Alive
    }
}
