//! The open batches, the commits under way, and what a commit's end lets out.
//!
//! Group commit forms by itself: all that arrives while a commit is under way lies in the open
//! batch, and becomes the next commit. A commit whose outcome is unknown is repeated unchanged;
//! those who wait for it are told so once, and the batch behind it waits.
//!
//! There are [`EngineConfig::lanes`](super::EngineConfig) of these pairs, and a conversation keeps to
//! the lane of its slot. A store with one log gets one lane: more would only make its batches smaller.
//! One that answers over a network gets several, so that a slow answer holds up few.

use std::collections::VecDeque;
use std::sync::Arc;

use trunkline_proto::client::Ack;
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::cache::Slot;
use super::conversation::{Conversation, Pending};
use super::machine::Engine;
use super::registry::UserRef;
use super::reply::{Front, error_in};
use super::slab::NONE;
use super::{Effect, Now};
use crate::store::{ConversationWrites, StoreError, WriteBatch};

/// Watermarks in one commit.
const WATERMARKS_PER_COMMIT: usize = 8_192;

const RETRY_FIRST_NS: u64 = 50_000_000;
const RETRY_MAX_NS: u64 = 2_000_000_000;

/// What one batch has of one conversation.
struct Part {
    at: u32,
    messages: u32,
    change: bool,
    /// The conversation was given up meanwhile: there is nothing left to write, and `at` may be
    /// another's by now.
    void: bool,
}

/// What the next commit will write.
#[derive(Default)]
pub(super) struct Batch {
    parts: Vec<Part>,
    writes: Vec<ConversationWrites>,
    /// Sends and changes in it.
    pub operations: usize,
}

impl Batch {
    fn part(&mut self, at: u32, slot: &mut Slot) -> usize {
        if slot.open_at == NONE {
            slot.open_at = self.parts.len() as u32;
            slot.batches += 1;
            self.parts.push(Part {
                at,
                messages: 0,
                change: false,
                void: false,
            });
            self.writes.push(ConversationWrites {
                id: slot.id,
                row: None,
                members: Vec::new(),
                messages: Vec::new(),
                watermarks: Vec::new(),
            });
        }
        slot.open_at as usize
    }

    /// Adds the newest pending message of a conversation.
    pub fn add_message(&mut self, at: u32, slot: &mut Slot) {
        let part = self.part(at, slot);
        let pending = slot.state.as_ref().and_then(|s| s.pending.back());
        if let Some(pending) = pending {
            self.parts[part].messages += 1;
            self.writes[part].messages.push(pending.message.clone());
            self.operations += 1;
        }
    }

    /// Adds a change: what it writes is put in by the caller.
    pub fn add_change(&mut self, at: u32, slot: &mut Slot) -> &mut ConversationWrites {
        let part = self.part(at, slot);
        self.parts[part].change = true;
        self.operations += 1;
        &mut self.writes[part]
    }

    /// Takes everything of a conversation out again.
    pub fn withdraw(&mut self, slot: &mut Slot) {
        let index = std::mem::replace(&mut slot.open_at, NONE) as usize;
        if index == NONE as usize {
            return;
        }
        slot.batches -= 1;
        let part = &mut self.parts[index];
        self.operations -= part.messages as usize + usize::from(part.change);
        part.void = true;
        let writes = &mut self.writes[index];
        writes.row = None;
        writes.members.clear();
        writes.messages.clear();
        writes.watermarks.clear();
    }
}

/// The commit under way.
pub(super) struct Flight {
    number: u64,
    batch: Arc<WriteBatch>,
    parts: Vec<Part>,
    failures: u32,
    /// When to repeat it; `None` while the store has it.
    retry_at: Option<u64>,
}

/// Watermarks that rose and are not yet written.
#[derive(Default)]
pub(super) struct Dirty {
    queue: VecDeque<(u32, UserRef)>,
    /// When the first of them came.
    since: u64,
}

impl Dirty {
    pub fn push(&mut self, at: u32, user: UserRef, now: Now) {
        if self.queue.is_empty() {
            self.since = now.mono_ns;
        }
        self.queue.push_back((at, user));
    }
}

/// An open batch, the commit before it, and the watermarks that will join.
#[derive(Default)]
pub(super) struct Lane {
    pub open: Batch,
    flight: Option<Flight>,
    pub dirty: Dirty,
}

impl Lane {
    /// When watermarks have to be written even if nothing else is.
    fn watermark_deadline(&self, flush_ms: u64) -> Option<u64> {
        (!self.dirty.queue.is_empty()).then(|| self.dirty.since + flush_ms * 1_000_000)
    }
}

/// All lanes.
pub(super) struct Lanes(Box<[Lane]>);

impl Lanes {
    pub fn new(count: usize) -> Self {
        Self((0..count.max(1)).map(|_| Lane::default()).collect())
    }

    /// The lane of a slot.
    pub fn of(&mut self, at: u32) -> &mut Lane {
        let index = at as usize % self.0.len();
        &mut self.0[index]
    }

    /// Operations in all open batches.
    pub fn operations(&self) -> usize {
        self.0.iter().map(|lane| lane.open.operations).sum()
    }
}

impl Engine {
    /// Begins commits or repeats them, where it is time for that.
    pub(super) fn advance_commits(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.failed {
            return;
        }
        let flush_ms = self.config.watermark_flush_ms;
        for index in 0..self.lanes.0.len() {
            let lane = &mut self.lanes.0[index];
            if let Some(flight) = &mut lane.flight {
                if flight.retry_at.is_some_and(|at| at <= now.mono_ns) {
                    flight.retry_at = None;
                    self.front.stats.commit_retries += 1;
                    out.push(Effect::Commit {
                        commit: flight.number,
                        batch: flight.batch.clone(),
                    });
                }
                continue;
            }
            let due = lane.watermark_deadline(flush_ms);
            let flush = self.flush_watermarks || due.is_some_and(|at| at <= now.mono_ns);
            if lane.open.operations > 0 || flush && !lane.dirty.queue.is_empty() {
                self.begin_commit(index, now, out);
            }
        }
        self.flush_watermarks = false;
    }

    fn begin_commit(&mut self, index: usize, now: Now, out: &mut Vec<Effect>) {
        self.add_watermarks(index, now);
        let lane = &mut self.lanes.0[index];
        let open = std::mem::take(&mut lane.open);
        let mut parts = Vec::with_capacity(open.parts.len());
        let mut conversations = Vec::with_capacity(open.writes.len());
        for (part, writes) in open.parts.into_iter().zip(open.writes) {
            if part.void {
                continue;
            }
            self.cache.slots[part.at].open_at = NONE;
            parts.push(part);
            conversations.push(writes);
        }
        if parts.is_empty() {
            return;
        }
        self.commits += 1;
        self.front.stats.commits += 1;
        let batch = Arc::new(WriteBatch { conversations });
        out.push(Effect::Commit {
            commit: self.commits,
            batch: batch.clone(),
        });
        self.lanes.0[index].flight = Some(Flight {
            number: self.commits,
            batch,
            parts,
            failures: 0,
            retry_at: None,
        });
    }

    fn add_watermarks(&mut self, index: usize, now: Now) {
        let lane = &mut self.lanes.0[index];
        let count = lane.dirty.queue.len().min(WATERMARKS_PER_COMMIT);
        let mut vacant = Vec::new();
        for (at, user) in lane.dirty.queue.drain(..count) {
            let slot = &mut self.cache.slots[at];
            slot.dirty -= 1;
            let Some(state) = slot.state.as_deref_mut() else {
                vacant.push(at);
                continue;
            };
            let row = state.member_mut(user).map(|member| {
                member.dirty = false;
                member.watermark_row()
            });
            if let Some(row) = row {
                let part = lane.open.part(at, slot);
                let name = self.front.registry.name(user).to_owned();
                lane.open.writes[part].watermarks.push((name, row));
            }
        }
        lane.dirty.since = now.mono_ns;
        for at in vacant {
            self.drop_if_vacant(at);
        }
    }

    /// When something is to be done without an input.
    pub(super) fn commit_deadline(&self) -> Option<u64> {
        let flush_ms = self.config.watermark_flush_ms;
        let lanes = self.lanes.0.iter();
        let deadlines = lanes.filter_map(|lane| match &lane.flight {
            Some(flight) => flight.retry_at,
            None => lane.watermark_deadline(flush_ms),
        });
        deadlines.min()
    }

    /// A commit ended.
    pub(super) fn committed(
        &mut self,
        number: u64,
        result: Result<(), StoreError>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let with_store = |f: &Flight| f.number == number && f.retry_at.is_none();
        let mut lanes = self.lanes.0.iter_mut().enumerate();
        let found = lanes.find_map(|(index, lane)| {
            let flight = lane.flight.take_if(|f| with_store(f))?;
            Some((index, flight))
        });
        let Some((index, mut flight)) = found else {
            self.front.stats.stale += 1;
            return;
        };
        match result {
            Ok(()) => {
                for part in flight.parts {
                    self.part_committed(&part, now, out);
                }
            }
            Err(StoreError::Fenced(mut ids)) => {
                ids.sort_unstable();
                for part in flight.parts {
                    let id = self.cache.slots[part.at].id;
                    if ids.binary_search(&id).is_ok() {
                        self.cache.slots[part.at].batches -= 1;
                        self.front.stats.fenced += 1;
                        self.forget(part.at, out);
                    } else {
                        self.part_committed(&part, now, out);
                    }
                }
            }
            Err(error) => {
                self.give_notice(&flight.parts, false, out);
                let for_good = !matches!(error, StoreError::Unavailable(_));
                if flight.failures > 0 || for_good {
                    // It takes longer: let go of those behind it too, and of their credit.
                    let open = std::mem::take(&mut self.lanes.0[index].open.parts);
                    self.give_notice(&open, true, out);
                    self.lanes.0[index].open.parts = open;
                }
                let wait = RETRY_FIRST_NS << flight.failures.min(8);
                flight.failures += 1;
                flight.retry_at = Some(now.mono_ns + wait.min(RETRY_MAX_NS));
                self.lanes.0[index].flight = Some(flight);
                self.stop_if_failed(&error, out);
            }
        }
    }

    /// After an error that no repetition mends: asks for the end, and commits nothing any more.
    pub(super) fn stop_if_failed(&mut self, error: &StoreError, out: &mut Vec<Effect>) {
        if let StoreError::Unavailable(_) | StoreError::Fenced(_) = error {
            return;
        }
        if !self.failed {
            self.failed = true;
            out.push(Effect::Fatal {
                reason: error.to_string(),
            });
        }
    }

    /// Lets out what a batch made durable of one conversation, in the order of its seqs.
    fn part_committed(&mut self, part: &Part, now: Now, out: &mut Vec<Effect>) {
        let slot = &mut self.cache.slots[part.at];
        slot.batches -= 1;
        if let Some(state) = slot.state.as_deref_mut() {
            let (entries, bytes) = (state.window.len(), state.recent_bytes);
            let id = id_text(state.id);
            let mut change = part.change;
            for _ in 0..part.messages {
                if change
                    && state
                        .change
                        .as_ref()
                        .is_some_and(|c| c.at_seq == state.committed)
                {
                    change = false;
                    state.apply_change(&mut self.front, out);
                }
                if let Some(pending) = state.pending.pop_front() {
                    self.front.message_committed(state, &id, pending, out);
                }
            }
            if change {
                state.apply_change(&mut self.front, out);
            }
            let trimmed = state.window.trim(state.committed);
            debug_assert_eq!(entries - trimmed, state.window.len());
            self.cache.dedup_entries -= trimmed;
            self.cache.recent_bytes = self.cache.recent_bytes + state.recent_bytes - bytes;
        }
        self.drain(part.at, now, out);
    }

    /// Tells those who wait for these parts that their outcome is unknown. `queued`: of the open
    /// batch, whose messages lie behind those under way.
    fn give_notice(&mut self, parts: &[Part], queued: bool, out: &mut Vec<Effect>) {
        for part in parts.iter().filter(|part| !part.void) {
            let slot = &mut self.cache.slots[part.at];
            let id = slot.id.to_string();
            if let Some(state) = slot.state.as_deref_mut() {
                let count = part.messages as usize;
                let from = if queued {
                    state.pending.len() - count
                } else {
                    0
                };
                for pending in state.pending.range_mut(from..from + count) {
                    notify_unknown(&mut self.front, &id, pending, out);
                }
                if let Some(change) = state.change.as_mut().filter(|_| part.change)
                    && let Some(ticket) = change.ticket.take()
                {
                    let error = error_in(Code::Unavailable, &id, "outcome unknown");
                    self.front.fail(ticket, error, out);
                }
            }
            self.refuse_waiting(part.at, out);
        }
    }
}

pub(super) fn notify_unknown(
    front: &mut Front,
    id: &str,
    pending: &mut Pending,
    out: &mut Vec<Effect>,
) {
    for waiter in pending.waiters.drain(..) {
        let mut error = error_in(
            Code::Unavailable,
            id,
            "outcome unknown: retry with the same client_msg_id",
        );
        error
            .client_msg_id
            .clone_from(&pending.message.client_msg_id);
        front.fail(waiter.ticket, error, out);
    }
}

impl Front {
    /// Acks, then delivers one message.
    fn message_committed(
        &mut self,
        state: &mut Conversation,
        id: &str,
        pending: Pending,
        out: &mut Vec<Effect>,
    ) {
        let message = pending.message;
        state.committed = message.seq;
        state.committed_ts = message.ts;
        self.stats.committed += 1;
        for waiter in pending.waiters {
            let ack = Ack {
                client_msg_id: message.client_msg_id.clone(),
                conversation_id: id.to_owned(),
                message_id: message.message_id,
                seq: message.seq,
                ts: message.ts,
                status: "sent".to_owned(),
                duplicate: waiter.duplicate,
            };
            self.ack(waiter.ticket, ack, out);
        }
        self.push_message(state, &message, pending.from, out);
        state.remember(message);
    }
}

/// The hyphenated text of an id, without the formatting machinery.
pub(super) fn id_text(id: ConversationId) -> String {
    let mut buffer = [0; 36];
    id.0.hyphenated().encode_lower(&mut buffer).to_owned()
}
