//! The open batch, the one commit under way, and what a commit's end lets out.
//!
//! Group commit forms by itself: all that arrives while a commit is under way lies in the open
//! batch, and becomes the next commit. A commit whose outcome is unknown is repeated unchanged;
//! those who wait for it are told so once, and the batch behind it waits.

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

impl Engine {
    /// Begins a commit or repeats one, if it is time for that.
    pub(super) fn advance_commit(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.failed {
            return;
        }
        if let Some(flight) = &mut self.flight {
            if flight.retry_at.is_some_and(|at| at <= now.mono_ns) {
                flight.retry_at = None;
                self.front.stats.commit_retries += 1;
                out.push(Effect::Commit {
                    commit: flight.number,
                    batch: flight.batch.clone(),
                });
            }
            return;
        }
        let flush = self.flush_watermarks
            || self
                .watermark_deadline()
                .is_some_and(|at| at <= now.mono_ns);
        if self.open.operations > 0 || flush && !self.dirty.queue.is_empty() {
            self.begin_commit(now, out);
        }
        self.flush_watermarks = false;
    }

    fn begin_commit(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.add_watermarks(now);
        let open = std::mem::take(&mut self.open);
        for part in &open.parts {
            self.cache.slots[part.at].open_at = NONE;
        }
        self.commits += 1;
        self.front.stats.commits += 1;
        let batch = Arc::new(WriteBatch {
            conversations: open.writes,
        });
        out.push(Effect::Commit {
            commit: self.commits,
            batch: batch.clone(),
        });
        self.flight = Some(Flight {
            number: self.commits,
            batch,
            parts: open.parts,
            failures: 0,
            retry_at: None,
        });
    }

    fn add_watermarks(&mut self, now: Now) {
        let count = self.dirty.queue.len().min(WATERMARKS_PER_COMMIT);
        for (at, user) in self.dirty.queue.drain(..count) {
            let slot = &mut self.cache.slots[at];
            let part = self.open.part(at, slot);
            slot.dirty -= 1;
            let member = slot.state.as_deref_mut().and_then(|s| s.member_mut(user));
            if let Some(member) = member {
                member.dirty = false;
                self.open.writes[part].watermarks.push((
                    self.front.registry.name(user).to_owned(),
                    member.watermark_row(),
                ));
            }
        }
        self.dirty.since = now.mono_ns;
    }

    /// When watermarks have to be written even if nothing else is.
    fn watermark_deadline(&self) -> Option<u64> {
        (!self.dirty.queue.is_empty())
            .then(|| self.dirty.since + self.config.watermark_flush_ms * 1_000_000)
    }

    /// When something is to be done without an input.
    pub(super) fn commit_deadline(&self) -> Option<u64> {
        match &self.flight {
            Some(flight) => flight.retry_at,
            None => self.watermark_deadline(),
        }
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
        let Some(mut flight) = self.flight.take_if(|f| with_store(f)) else {
            self.front.stats.stale += 1;
            return;
        };
        match result {
            Ok(()) => {
                for part in flight.parts {
                    self.part_committed(&part, now, out);
                }
            }
            Err(error) => {
                self.give_notice(&flight.parts, false, out);
                let for_good = !matches!(error, StoreError::Unavailable(_));
                if flight.failures > 0 || for_good {
                    // It takes longer: let go of those behind it too, and of their credit.
                    let open = std::mem::take(&mut self.open.parts);
                    self.give_notice(&open, true, out);
                    self.open.parts = open;
                }
                let wait = RETRY_FIRST_NS << flight.failures.min(8);
                flight.failures += 1;
                flight.retry_at = Some(now.mono_ns + wait.min(RETRY_MAX_NS));
                self.flight = Some(flight);
                self.stop_if_failed(&error, out);
            }
        }
    }

    /// After an error that no repetition mends: asks for the end, and commits nothing any more.
    pub(super) fn stop_if_failed(&mut self, error: &StoreError, out: &mut Vec<Effect>) {
        if let StoreError::Unavailable(_) = error {
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
        for part in parts {
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

fn notify_unknown(front: &mut Front, id: &str, pending: &mut Pending, out: &mut Vec<Effect>) {
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
