//! Deletes rows of cores that are dead and that nothing names any more, so that what every core
//! reads several times a second does not grow with the years.
//!
//! Kept are the rows of those who held a worker id last: the next holder counts from their floors.
//! One core does it for each row, one row at a time.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::balance;
use super::machine::{Ask, Turn};
use super::partitions::Partitions;
use super::peers::{Peer, Peers};
use super::statement::{Answer, Statement};

#[derive(Default)]
pub(super) struct Forget {
    next_at_ns: u64,
    /// Whose worker id is being looked up.
    candidate: Option<Uuid>,
    /// The row asked for last, so that one that has to stay does not keep the others.
    last: Option<Uuid>,
}

impl Forget {
    pub(super) fn go_on(&mut self, peers: &Peers, partitions: &Partitions, turn: &mut Turn<'_>) {
        let now_ns = turn.now_ns();
        if self.next_at_ns > now_ns || self.candidate.is_some() || !partitions.is_listed() {
            return;
        }
        self.next_at_ns = now_ns + turn.settings.ttl_ns();
        let fresh = peers.fresh(turn);
        let mine = |core: Uuid| {
            let place = xxh3_64(core.as_bytes()) as u16;
            balance::desired(place, &fresh) == Some(turn.me.incarnation)
        };
        let may_go = |peer: &&Peer| {
            let core = peer.row.incarnation;
            now_ns - peer.since_ns >= turn.settings.forget_after_ns()
                && peers.is_listed(core)
                && mine(core)
                && !partitions.names(core)
        };
        let next = |after: Option<Uuid>| {
            peers
                .dead()
                .filter(may_go)
                .find(|peer| Some(peer.row.incarnation) > after)
        };
        if let Some(peer) = next(self.last).or_else(|| next(None)) {
            let core = peer.row.incarnation;
            self.candidate = Some(core);
            self.last = Some(core);
            turn.ask(Ask::Forget, Statement::Worker(peer.row.worker_id));
        }
    }

    /// Who has the worker id, or what came of the deletion. Whatever it was, it is looked at again.
    pub(super) fn on(&mut self, answer: &Answer, turn: &mut Turn<'_>) {
        match (self.candidate, answer) {
            (Some(core), Answer::Worker(holder)) if *holder != Some(core) => {
                turn.ask(Ask::Forget, Statement::Forget(core));
            }
            _ => self.candidate = None,
        }
    }
}
