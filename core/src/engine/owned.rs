//! Which conversations the engine may touch, where several cores share them; and how it lets them go.
//!
//! Invariants:
//! 1. Nothing is done to a conversation whose partition is not the engine's, and nothing of it stays
//!    in memory but the place of a commit under way.
//! 2. What was loaded under one epoch is not used under another: a conversation that is being loaded
//!    or written when its partition goes keeps its slot, doomed, until the store has answered.
//! 3. A partition that is given back is answered by [`Effect::Released`] as soon as nothing of it is
//!    under way, or after [`RELEASE_MAX_NS`].

use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::cache::Slot;
use super::commit::notify_unknown;
use super::machine::Engine;
use super::reply::error_in;
use super::{Effect, Now};
use crate::ownership::{partition_of, partition_of_conversation};

/// How long a partition that is given back waits for its commits.
const RELEASE_MAX_NS: u64 = 200_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Foreign,
    Ours,
    /// On its way to another owner: nothing new is taken in.
    Leaving,
}

/// Partitions, by what they are to this engine.
pub(super) struct Owned {
    /// Empty: everything is ours, for ever.
    holds: Box<[Hold]>,
    leaving: Vec<Leaving>,
}

/// A partition that is given back.
struct Leaving {
    partition: u16,
    since_ns: u64,
    /// Slots with something under way, and whose they are.
    busy: Vec<(u32, ConversationId)>,
    heads: Vec<(ConversationId, u64)>,
}

impl Owned {
    /// Of so many partitions, none of them ours; `None`: everything is.
    pub fn new(partitions: Option<u16>) -> Self {
        Self {
            holds: vec![Hold::Foreign; usize::from(partitions.unwrap_or(0))].into(),
            leaving: Vec::new(),
        }
    }

    const fn partitions(&self) -> u16 {
        self.holds.len() as u16
    }

    /// The partition of a conversation, if it is another's.
    pub fn foreign(&self, id: ConversationId) -> Option<u16> {
        if self.holds.is_empty() {
            return None;
        }
        let partition = partition_of_conversation(id, self.partitions());
        (self.holds[usize::from(partition)] != Hold::Ours).then_some(partition)
    }

    /// Whether no conversation at all is ours.
    pub fn has_none(&self) -> bool {
        !self.holds.is_empty() && !self.holds.contains(&Hold::Ours)
    }

    /// Whether this core judges over a user's sessions.
    pub fn is_home_of(&self, user: &str) -> bool {
        self.holds.is_empty() || {
            let partition = partition_of(user.as_bytes(), self.partitions());
            self.holds[usize::from(partition)] == Hold::Ours
        }
    }

    fn set(&mut self, partition: u16, hold: Hold) {
        if let Some(slot) = self.holds.get_mut(usize::from(partition)) {
            *slot = hold;
        }
    }
}

impl Engine {
    /// These partitions are ours from now on. What others wrote to their conversations until now is
    /// to be taken for evicted just now.
    pub(super) fn own(&mut self, partitions: &[u16], now: Now) {
        let latest = &mut self.cache.evicted_latest_ms;
        *latest = now.unix_ms.max(*latest);
        for partition in partitions {
            self.owned.set(*partition, Hold::Ours);
        }
    }

    /// These partitions are another's already: nothing of them can be saved.
    pub(super) fn disown(&mut self, partitions: &[u16], out: &mut Vec<Effect>) {
        for partition in partitions {
            self.owned.set(*partition, Hold::Foreign);
        }
        let lost = &mut self.owned.leaving;
        lost.retain(|leaving| !partitions.contains(&leaving.partition));
        for at in self.slots_of(partitions) {
            // The store remembers what it loaded until it is told.
            if let Some(state) = self.cache.state(at) {
                out.push(Effect::Evicted {
                    conversation: state.id,
                    head: state.committed,
                });
            }
            self.forget(at, out);
        }
    }

    /// Gives partitions back, each as soon as nothing of it is under way.
    pub(super) fn release(&mut self, partitions: &[u16], now: Now, out: &mut Vec<Effect>) {
        for &partition in partitions {
            self.owned.set(partition, Hold::Leaving);
            let mut leaving = Leaving {
                partition,
                since_ns: now.mono_ns,
                busy: Vec::new(),
                heads: Vec::new(),
            };
            for at in self.slots_of(&[partition]) {
                self.refuse_waiting(at, out);
                if self.cache.slots[at].has_writes() {
                    leaving.busy.push((at, self.cache.slots[at].id));
                } else {
                    self.leave(at, &mut leaving.heads, out);
                }
            }
            self.owned.leaving.push(leaving);
        }
        self.flush_watermarks = true;
    }

    /// Goes on with what is given back. Called when a turn ends.
    pub(super) fn advance_releases(&mut self, now: Now, out: &mut Vec<Effect>) {
        for mut leaving in std::mem::take(&mut self.owned.leaving) {
            let over = now.mono_ns >= leaving.since_ns + RELEASE_MAX_NS;
            for (at, id) in std::mem::take(&mut leaving.busy) {
                let slot = self.cache.slots.get(at).filter(|slot| slot.id == id);
                let Some(has_writes) = slot.map(Slot::has_writes) else {
                    continue;
                };
                if !has_writes {
                    self.leave(at, &mut leaving.heads, out);
                } else if over {
                    self.forget(at, out);
                } else {
                    leaving.busy.push((at, id));
                }
            }
            if leaving.busy.is_empty() {
                self.owned.set(leaving.partition, Hold::Foreign);
                out.push(Effect::Released {
                    partition: leaving.partition,
                    heads: leaving.heads,
                });
            } else {
                self.owned.leaving.push(leaving);
            }
        }
    }

    /// When a release has waited for long enough.
    pub(super) fn release_deadline(&self) -> Option<u64> {
        let leaving = self.owned.leaving.iter();
        leaving.map(|l| l.since_ns + RELEASE_MAX_NS).min()
    }

    fn slots_of(&self, partitions: &[u16]) -> Vec<u32> {
        let mut lost = vec![false; self.owned.holds.len()];
        for partition in partitions {
            if let Some(lost) = lost.get_mut(usize::from(*partition)) {
                *lost = true;
            }
        }
        let count = self.owned.partitions();
        let is_lost = |id| lost[usize::from(partition_of_conversation(id, count))];
        let slots = self.cache.slots.iter();
        slots
            .filter(|(_, slot)| is_lost(slot.id))
            .map(|(at, _)| at)
            .collect()
    }

    /// Notes the head of a conversation that is at rest, and lets it go.
    fn leave(&mut self, at: u32, heads: &mut Vec<(ConversationId, u64)>, out: &mut Vec<Effect>) {
        if let Some(state) = self.cache.state(at) {
            heads.push((state.id, state.committed));
        }
        self.forget(at, out);
    }

    /// Gives a conversation up: whoever waits for something of it is told that the outcome is not
    /// known, and its slot goes as soon as nobody refers to it.
    pub(super) fn forget(&mut self, at: u32, out: &mut Vec<Effect>) {
        self.refuse_waiting(at, out);
        let slot = &mut self.cache.slots[at];
        slot.doomed = true;
        let id = slot.id.to_string();
        self.lanes.of(at).open.withdraw(slot);
        if let Some(mut state) = slot.state.take() {
            for pending in &mut state.pending {
                notify_unknown(&mut self.front, &id, pending, out);
            }
            if let Some(ticket) = state.change.as_mut().and_then(|c| c.ticket.take()) {
                let error = error_in(Code::Unavailable, &id, "outcome unknown");
                self.front.fail(ticket, error, out);
            }
            self.let_members_go(&state);
        }
        self.drop_if_vacant(at);
    }
}
