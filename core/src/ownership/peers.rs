//! The other cores, as their rows show them: who lives, who is counted on, who is dead.
//!
//! A core is judged by the own boot clock alone: dead is whose counter did not change for 1.1 times
//! its ttl since the *return* of the first read that showed it. No time that another clock wrote is
//! compared. The verdict is written only if the counter is still that one, and counts when it is
//! decided: from then on no renewal can succeed.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::balance::Candidate;
use super::control::{CoreRow, Life};
use super::lease::{Lease, Standing};
use super::machine::{Ask, Turn};
use super::map::PartitionMap;
use super::settings::{Rule, Settings};
use super::statement::{Answer, Statement};
use crate::store::fenced::rows::Cas;

/// A core is given partitions once its counter was seen to rise so often.
const RISES_STEADY: u32 = 2;

/// What is known about the core that a row names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Alive,
    Dead,
    /// A quorum said that it is dead, or no row of it was seen yet: its row is to be read, decided.
    Undecided,
}

/// What is being done about a core that is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    None,
    Writing,
    /// Its row is being read, since the write was refused or not answered.
    Reading,
}

pub(super) struct Peer {
    pub(super) row: CoreRow,
    candidate: Candidate,
    /// When a read first returned with this counter, or showed it dead.
    pub(super) since_ns: u64,
    rises: u32,
    verdict: Verdict,
    /// The last read of all cores listed it.
    listed: bool,
    /// That it is dead was written by this core, or read decided: a quorum that shows a death may be
    /// followed by one that does not yet.
    decided: bool,
}

impl Peer {
    pub(super) fn is_dead(&self) -> bool {
        self.row.life == Life::Dead
    }

    fn is_fresh(&self, now_ns: u64) -> bool {
        !self.is_dead() && now_ns - self.since_ns <= Settings::fresh_ns(self.row.ttl_ms)
    }
}

#[derive(Default)]
pub(super) struct Peers {
    all: BTreeMap<Uuid, Peer>,
    next_poll_ns: Option<u64>,
    polling: bool,
    /// The map has not been told of all.
    untold: bool,
}

impl Peers {
    /// Polls from now on.
    pub(super) fn begin(&mut self, now_ns: u64) {
        self.next_poll_ns = Some(now_ns);
        self.untold = true;
    }

    pub(super) fn wake_at(&self) -> u64 {
        match self.next_poll_ns {
            Some(at) if !self.polling => at,
            _ => u64::MAX,
        }
    }

    pub(super) fn go_on(&mut self, turn: &mut Turn<'_>) {
        if self.wake_at() <= turn.now_ns() {
            self.polling = true;
            self.next_poll_ns = Some(turn.now_ns() + turn.settings.poll_every_ns());
            turn.ask(Ask::PollCores, Statement::Cores);
        }
    }

    /// All rows were read. Says what the own row says of this core.
    pub(super) fn polled(&mut self, answer: Answer, turn: &mut Turn<'_>) -> Standing {
        self.polling = false;
        let Answer::Cores(rows) = answer else {
            return Standing::Good;
        };
        let mut own = Standing::Good;
        let listed: BTreeSet<Uuid> = rows.iter().map(|row| row.incarnation).collect();
        for (core, peer) in &mut self.all {
            peer.listed = listed.contains(core);
        }
        for row in rows {
            if row.incarnation != turn.me.incarnation {
                let decided = !turn.settings.keeps(Rule::Decided);
                self.learn(row, decided, turn.now_ns());
            } else if row.life == Life::Dead {
                own = Standing::Over;
            }
        }
        self.judge(turn);
        own
    }

    /// A row was read; `decided`: at SERIAL.
    fn learn(&mut self, row: CoreRow, decided: bool, now_ns: u64) {
        let Some(peer) = self.all.get_mut(&row.incarnation) else {
            self.untold = true;
            let candidate = Candidate::new(row.incarnation, &row.address);
            let peer = Peer {
                row,
                candidate,
                since_ns: now_ns,
                rises: 0,
                verdict: Verdict::None,
                listed: true,
                decided,
            };
            self.all.insert(candidate.incarnation, peer);
            return;
        };
        if row.life == Life::Dead {
            peer.decided |= decided;
        }
        if peer.is_dead() {
            return;
        }
        if row.life == Life::Dead {
            self.untold = true;
        } else if row.counter > peer.row.counter {
            peer.rises += 1;
        } else {
            // The same, or a read that is older.
            return;
        }
        peer.since_ns = now_ns;
        peer.row = row;
    }

    /// Declares those dead who are.
    fn judge(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        for (core, peer) in &mut self.all {
            if peer.is_dead() || peer.verdict != Verdict::None {
                continue;
            }
            let ttl_ms = peer.row.ttl_ms;
            let silent = if turn.settings.keeps(Rule::OwnClock) {
                now.boot_ns - peer.since_ns >= Settings::dead_after_ns(ttl_ms)
            } else {
                // What the row says of when it was renewed, by another's wall clock.
                let renewed_ms = peer.row.id_floor_ms - turn.settings.id_horizon_ms();
                now.wall_ms >= renewed_ms + ttl_ms / 10 * 11
            };
            if silent {
                peer.verdict = Verdict::Writing;
                let statement = Statement::DeclareDead {
                    incarnation: *core,
                    counter: peer.row.counter,
                };
                turn.ask(Ask::Declare(*core), statement);
            }
        }
    }

    /// A verdict was written, or the row was read after one of which that is not known. Says whether
    /// somebody is dead that was not.
    pub(super) fn declared(&mut self, core: Uuid, answer: &Answer, turn: &mut Turn<'_>) -> bool {
        let now_ns = turn.now_ns();
        let Some(peer) = self.all.get_mut(&core) else {
            return false;
        };
        if peer.is_dead() {
            return false;
        }
        match answer {
            Answer::Cas(Cas::Applied) | Answer::Core(None) => {}
            Answer::Cas(Cas::Refused) if !turn.settings.keeps(Rule::OnlyThatCounter) => {}
            Answer::Core(Some(row)) => {
                peer.verdict = Verdict::None;
                let row = row.clone();
                let died = row.life == Life::Dead;
                self.learn(row, true, now_ns);
                return died;
            }
            // It has renewed after all, or another core was first, or nobody knows.
            _ if peer.verdict == Verdict::Writing => {
                peer.verdict = Verdict::Reading;
                turn.ask(Ask::Declare(core), Statement::Core(core));
                return false;
            }
            // The next poll judges again.
            _ => {
                peer.verdict = Verdict::None;
                return false;
            }
        }
        peer.verdict = Verdict::None;
        peer.row.life = Life::Dead;
        peer.decided = true;
        peer.since_ns = now_ns;
        self.untold = true;
        true
    }

    pub(super) fn known(&self, core: Uuid) -> Known {
        match self.all.get(&core) {
            Some(peer) if peer.is_dead() && !peer.decided => Known::Undecided,
            Some(peer) if peer.is_dead() => Known::Dead,
            Some(_) => Known::Alive,
            None => Known::Undecided,
        }
    }

    pub(super) fn dead(&self) -> impl Iterator<Item = &Peer> {
        self.all.values().filter(|peer| peer.is_dead())
    }

    /// Whether the last read of all cores showed it.
    pub(super) fn is_listed(&self, core: Uuid) -> bool {
        self.all.get(&core).is_some_and(|peer| peer.listed)
    }

    /// This core and all others that have renewed lately.
    pub(super) fn fresh(&self, turn: &Turn<'_>) -> Vec<Candidate> {
        self.candidates(turn, 0)
    }

    /// This core and all others that are counted on: renewed lately, and not for the first time.
    pub(super) fn steady(&self, turn: &Turn<'_>) -> Vec<Candidate> {
        self.candidates(turn, RISES_STEADY)
    }

    fn candidates(&self, turn: &Turn<'_>, rises: u32) -> Vec<Candidate> {
        let now_ns = turn.now_ns();
        let others = self.all.values();
        let others = others.filter(|p| p.is_fresh(now_ns) && p.rises >= rises);
        std::iter::once(turn.me)
            .chain(others.map(|p| p.candidate))
            .collect()
    }

    /// The row of a core that a partition names was read, decided. A core without one was declared dead, and forgotten.
    pub(super) fn found(&mut self, core: Uuid, answer: Answer, turn: &Turn<'_>) {
        match answer {
            Answer::Core(Some(row)) => self.learn(row, true, turn.now_ns()),
            Answer::Core(None) => {
                let row = CoreRow {
                    incarnation: core,
                    counter: 0,
                    ttl_ms: turn.settings.ttl_ms,
                    life: Life::Dead,
                    worker_id: u16::MAX,
                    id_floor_ms: 0,
                    address: String::new(),
                };
                self.learn(row, true, turn.now_ns());
            }
            _ => {}
        }
    }

    /// Drops the dead whose rows are gone and that no partition names.
    pub(super) fn drop_forgotten(&mut self, named: impl Fn(Uuid) -> bool) {
        let before = self.all.len();
        self.all
            .retain(|core, peer| peer.listed || !peer.is_dead() || named(*core));
        self.untold |= self.all.len() < before;
    }

    /// Whether nothing is known of a core.
    pub(super) fn is_strange(&self, core: Uuid) -> bool {
        !self.all.contains_key(&core)
    }

    /// Tells the map of cores. Says whether it changed.
    pub(super) fn tell(&mut self, map: &mut PartitionMap, lease: &Lease, me: &Candidate) -> bool {
        if !std::mem::take(&mut self.untold) {
            return false;
        }
        let mut changed = false;
        if self.next_poll_ns.is_some() {
            changed |= map.learn_core(me.incarnation, lease.address(), true);
        }
        for (core, peer) in &self.all {
            changed |= map.learn_core(*core, &peer.row.address, !peer.is_dead());
        }
        changed
    }
}
