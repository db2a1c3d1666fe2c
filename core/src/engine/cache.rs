//! The conversations in memory, the least recently used of them first to go, and the operations
//! that wait for one.
//!
//! Invariants:
//! 1. Operations on a conversation are carried out in the order in which they came. They wait while
//!    it is being loaded and while a change to it is not yet durable.
//! 2. A slot has a state, is loading, or has just lost its reason to be and is dropped at once: a
//!    conversation that does not exist is remembered by nobody.
//! 3. Only what the store has entirely, and nobody waits for, is evicted.

use std::collections::VecDeque;

use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::limits::DEDUP_WINDOW;

use super::conversation::Conversation;
use super::hash::{Map, Seeded};
use super::machine::Engine;
use super::reply::error_in;
use super::slab::{NONE, Slab};
use super::work::Work;
use super::{Effect, Now};
use crate::store::{Snapshot, StoreError};

/// Slots looked at for eviction in one turn.
const EVICTION_STEPS_MAX: usize = 1_024;

/// After how many ms one who was refused for lack of room should try again.
pub(super) const OVERLOADED_RETRY_MS: u32 = 200;

/// After how many ms one should try again whose conversation is not this core's.
const FOREIGN_RETRY_MS: u32 = 100;

/// A place for a conversation.
pub(super) struct Slot {
    pub id: ConversationId,
    pub state: Option<Box<Conversation>>,
    loading: bool,
    pub waiting: VecDeque<Work>,
    /// Batches, open or under way, that write to it.
    pub batches: u32,
    /// Its entry in the open batch, or [`NONE`].
    pub open_at: u32,
    /// Watermarks that are queued to be written.
    pub dirty: u32,
    /// Given up: takes nothing in, and goes as soon as nobody refers to it.
    pub doomed: bool,
    newer: u32,
    older: u32,
}

impl Slot {
    fn is_blocked(&self) -> bool {
        self.loading
            || !self.waiting.is_empty()
            || self.state.as_ref().is_some_and(|s| s.change.is_some())
    }

    fn is_idle(&self) -> bool {
        !self.is_blocked() && !self.has_writes()
    }

    /// Whether something of it is, or will be, under way to the store.
    pub fn has_writes(&self) -> bool {
        self.batches > 0 || self.dirty > 0
    }
}

/// All slots.
pub(super) struct Cache {
    by_id: Map<ConversationId, u32>,
    pub slots: Slab<Slot>,
    newest: u32,
    oldest: u32,
    /// Entries of all dedup windows.
    pub dedup_entries: usize,
    /// Bytes of all messages kept for pages, about.
    pub recent_bytes: usize,
    /// When the last of what was evicted was committed or changed, by the conversation's own time.
    pub evicted_latest_ms: u64,
    /// Operations that wait in slots.
    pub waiting: usize,
}

impl Cache {
    pub fn new(hash: Seeded) -> Self {
        Self {
            by_id: Map::with_hasher(hash),
            slots: Slab::new(),
            newest: NONE,
            oldest: NONE,
            dedup_entries: 0,
            recent_bytes: 0,
            evicted_latest_ms: 0,
            waiting: 0,
        }
    }

    pub fn find(&self, id: ConversationId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// The conversation in a slot whose index somebody keeps alive.
    pub fn state(&self, at: u32) -> Option<&Conversation> {
        self.slots.get(at)?.state.as_deref()
    }

    pub fn state_mut(&mut self, at: u32) -> Option<&mut Conversation> {
        self.slots.get_mut(at)?.state.as_deref_mut()
    }

    /// A new slot, the newest.
    pub fn insert(&mut self, id: ConversationId, loading: bool) -> u32 {
        let at = self.slots.insert(Slot {
            id,
            state: None,
            loading,
            waiting: VecDeque::new(),
            batches: 0,
            open_at: NONE,
            dirty: 0,
            doomed: false,
            newer: NONE,
            older: NONE,
        });
        self.by_id.insert(id, at);
        self.link(at);
        at
    }

    fn touch(&mut self, at: u32) {
        if self.newest != at {
            self.unlink(at);
            self.link(at);
        }
    }

    fn remove(&mut self, at: u32) -> Option<Slot> {
        self.unlink(at);
        let slot = self.slots.remove(at)?;
        self.by_id.remove(&slot.id);
        Some(slot)
    }

    fn link(&mut self, at: u32) {
        let newest = self.newest;
        self.slots[at].newer = NONE;
        self.slots[at].older = newest;
        match self.slots.get_mut(newest) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let (newer, older) = (self.slots[at].newer, self.slots[at].older);
        match self.slots.get_mut(newer) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }
}

impl Engine {
    /// Carries out an operation on a conversation, or has it wait until that can be done.
    pub(super) fn dispatch(
        &mut self,
        id: ConversationId,
        work: Work,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        if self.failed {
            let error = error_in(Code::Unavailable, &id.to_string(), "the store failed");
            return self.refuse(work, error, out);
        }
        if self.owned.foreign(id).is_some() {
            return self.refuse_foreign(id, work, out);
        }
        let Some(at) = self.cache.find(id) else {
            if self.has_room_to_wait(&work) {
                let at = self.cache.insert(id, true);
                self.enqueue(at, work);
                self.front.stats.loads += 1;
                out.push(Effect::Load {
                    conversation: id,
                    recent_max: DEDUP_WINDOW,
                });
            } else {
                self.refuse_overloaded(id, work, out);
            }
            return;
        };
        self.cache.touch(at);
        if self.cache.slots[at].doomed {
            // Ours again before the store has answered for the last time.
            self.refuse_foreign(id, work, out);
        } else if !self.cache.slots[at].is_blocked() {
            self.perform(at, work, now, out);
        } else if self.has_room_to_wait(&work) {
            self.enqueue(at, work);
        } else {
            self.refuse_overloaded(id, work, out);
        }
    }

    /// Parts of gathers and catch-ups always may wait: so many of them are under way at most.
    fn has_room_to_wait(&self, work: &Work) -> bool {
        matches!(work, Work::Part { .. } | Work::Announce { .. })
            || self.cache.waiting < self.config.operations_open_max
    }

    fn enqueue(&mut self, at: u32, work: Work) {
        self.cache.waiting += 1;
        self.cache.slots[at].waiting.push_back(work);
    }

    fn refuse_foreign(&mut self, id: ConversationId, work: Work, out: &mut Vec<Effect>) {
        self.front.stats.foreign += 1;
        let mut error = error_in(
            Code::Unavailable,
            &id.to_string(),
            "the conversation changes its owner, or has another; retry with the same client_msg_id",
        );
        error.retry_after_ms = FOREIGN_RETRY_MS;
        self.refuse(work, error, out);
    }

    fn refuse_overloaded(&mut self, id: ConversationId, work: Work, out: &mut Vec<Effect>) {
        self.front.stats.overloaded += 1;
        let mut error = error_in(
            Code::Overloaded,
            &id.to_string(),
            "too many operations wait; nothing was done",
        );
        error.retry_after_ms = OVERLOADED_RETRY_MS;
        self.refuse(work, error, out);
    }

    /// A conversation was read, or was not.
    pub(super) fn loaded(
        &mut self,
        id: ConversationId,
        result: Result<Option<Box<Snapshot>>, StoreError>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let Some(at) = self
            .cache
            .find(id)
            .filter(|at| self.cache.slots[*at].loading)
        else {
            self.front.stats.stale += 1;
            return;
        };
        self.cache.slots[at].loading = false;
        if self.cache.slots[at].doomed {
            return self.drop_if_vacant(at);
        }
        let taken_up = match result {
            Ok(None) => Ok(None),
            Ok(Some(snapshot)) => {
                Conversation::take_up(&mut self.front.registry, self.hash, id, *snapshot)
                    .map(Some)
                    .map_err(|reason| StoreError::Corrupt(reason.to_owned()))
            }
            Err(error) => Err(error),
        };
        match taken_up {
            Ok(state) => {
                if let Some(state) = state {
                    self.cache.dedup_entries += state.window.len();
                    self.cache.recent_bytes += state.recent_bytes;
                    self.cache.slots[at].state = Some(Box::new(state));
                }
                self.drain(at, now, out);
            }
            Err(error) => {
                self.refuse_waiting(at, out);
                self.drop_if_vacant(at);
                self.front.stats.load_failures += 1;
                // A row that cannot be read is one conversation's trouble, not the process's.
                if let StoreError::Failed(_) = error {
                    self.stop_if_failed(&error, out);
                }
            }
        }
    }

    /// Carries out what waits, up to the next change.
    pub(super) fn drain(&mut self, at: u32, now: Now, out: &mut Vec<Effect>) {
        if self.failed {
            self.refuse_waiting(at, out);
        }
        loop {
            let slot = &mut self.cache.slots[at];
            if slot.state.as_ref().is_some_and(|s| s.change.is_some()) {
                return;
            }
            let Some(work) = slot.waiting.pop_front() else {
                break;
            };
            self.cache.waiting -= 1;
            self.perform(at, work, now, out);
        }
        self.drop_if_vacant(at);
    }

    /// Answers all that waits with `unavailable`.
    pub(super) fn refuse_waiting(&mut self, at: u32, out: &mut Vec<Effect>) {
        let slot = &mut self.cache.slots[at];
        let id = slot.id.to_string();
        let waiting = std::mem::take(&mut slot.waiting);
        self.cache.waiting -= waiting.len();
        for work in waiting {
            let error = error_in(Code::Unavailable, &id, "the store did not answer");
            self.refuse(work, error, out);
        }
    }

    pub(super) fn drop_if_vacant(&mut self, at: u32) {
        let slot = &self.cache.slots[at];
        let is_blank = slot.state.is_none() && !slot.is_blocked();
        if is_blank && !slot.has_writes() {
            self.cache.remove(at);
        }
    }

    /// What a conversation that leaves memory held of what all share.
    pub(super) fn let_members_go(&mut self, state: &Conversation) {
        self.cache.dedup_entries -= state.window.len();
        self.cache.recent_bytes -= state.recent_bytes;
        let latest = &mut self.cache.evicted_latest_ms;
        *latest = state.latest_ms().max(*latest);
        if let Some(roster) = state.roster {
            self.front.registry.rosters.forget(roster);
        }
        for member in &state.members {
            self.front.registry.release(member.user);
        }
    }

    /// Makes room, the least recently used first.
    pub(super) fn evict(&mut self, out: &mut Vec<Effect>) {
        for _ in 0..EVICTION_STEPS_MAX {
            let cache = &self.cache;
            if cache.slots.len() <= self.config.conversations_cached_max
                && cache.dedup_entries <= self.config.dedup_entries_max
                && cache.recent_bytes <= self.config.recent_bytes_max
            {
                return;
            }
            let at = cache.oldest;
            let Some(slot) = cache.slots.get(at) else {
                return;
            };
            if !slot.is_idle() {
                self.flush_watermarks |= slot.dirty > 0;
                self.cache.touch(at);
                continue;
            }
            if let Some(state) = self.cache.remove(at).and_then(|slot| slot.state) {
                self.let_members_go(&state);
                self.front.stats.evictions += 1;
                if self.config.partitions.is_some() {
                    out.push(Effect::Evicted {
                        conversation: state.id,
                        head: state.committed,
                    });
                }
            }
        }
    }
}
