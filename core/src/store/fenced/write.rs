//! What a commit writes of one conversation, and in which order.
//!
//! Invariants:
//! 1. Rows are written above the committed head only, under the epoch of the conversation's fence,
//!    at most the deployment's tail of them at a time; a seq gets one content under an epoch.
//! 2. A bucket gets its first row after the conversation says that it may have rows.
//! 3. A change of members or settings is written after all messages before it are committed: its
//!    seqs (who sees what up to where) mean the messages that they meant to the engine.
//! 4. Conditional writes of a conversation follow one another, each on the revision that the last
//!    one left. One without an answer is looked for, and never overtakes a later one.

use std::sync::Arc;

use futures_util::future::join;
use trunkline_proto::client::Message;
use trunkline_proto::store::{ConversationRow, MemberRow, WatermarkRow};

use super::read::Scope;
use super::rows::{Cas, Change, Conversation, Fence, MessageRow, Rows, Window};
use super::rules::Rule;
use super::table::{Locked, State};
use super::{ATTEMPTS_MAX, BATCH_BYTES_MAX, FencedStore};
use crate::store::{ConversationWrites, Order, StoreError};

/// A conversation in a commit.
pub(super) struct Part<'a> {
    pub locked: Locked,
    pub writes: &'a ConversationWrites,
    /// Under which its partition was held when the commit began.
    pub epoch: u64,
    /// It has been entered into this window of the journal.
    pub entered: Option<Window>,
    /// All its seqs up to here are written.
    pub written: u64,
}

impl Part<'_> {
    fn fenced(&self) -> StoreError {
        StoreError::Fenced(vec![self.writes.id])
    }

    /// The commit is over for this conversation; or it is repeated, for the sake of others.
    pub fn ended(&mut self, is_over: bool) {
        let messages = &self.writes.messages;
        if let Some(state) = self.locked.state_mut() {
            state.unended.clear();
            if !is_over {
                let written = messages.iter().map(|m| (m.seq, m.message_id));
                state.unended.extend(written);
            }
        }
    }

    fn state(&self) -> Result<&State, StoreError> {
        self.locked.state().ok_or_else(|| self.fenced())
    }
}

impl<R: Rows> FencedStore<R> {
    /// Writes all of one conversation. Nothing of it is committed before the caller has asked whether
    /// the partition is still held.
    pub(super) async fn write(&self, part: &mut Part<'_>) -> Result<(), StoreError> {
        let writes = part.writes;
        let is_new = match (part.locked.state(), &writes.row) {
            (Some(state), _) if state.view.epoch != part.epoch => return Err(part.fenced()),
            (Some(_), _) => false,
            (None, Some(row)) => {
                self.create(part, row).await?;
                true
            }
            // Whoever sends this has it in mind as it was under an earlier epoch.
            (None, None) => return Err(part.fenced()),
        };
        if let (Some(window), Some(state)) = (part.entered, part.locked.state_mut()) {
            state.journaled = Some(window);
        }
        part.written = part.state()?.view.committed;
        let has_change = !is_new && (writes.row.is_some() || !writes.members.is_empty());
        if has_change && !self.rules.keeps(Rule::ChangeAfterMessages) {
            self.change(part).await?;
        }
        self.write_messages(part).await?;
        if has_change && self.rules.keeps(Rule::ChangeAfterMessages) {
            if !writes.messages.is_empty() {
                self.commit_so_far(part).await?;
            }
            self.change(part).await?;
        }
        self.write_watermarks(part).await
    }

    /// Makes a conversation, with its first fence.
    async fn create(&self, part: &mut Part<'_>, row: &ConversationRow) -> Result<(), StoreError> {
        let id = part.writes.id;
        let fence = Fence {
            epoch: part.epoch,
            first_seq: 1,
        };
        let change = Change {
            fence: Some(fence),
            row: Some(row.clone()),
            members: part.writes.members.clone(),
            ..Change::default()
        };
        match self.rows.change(id, None, &change).await {
            Ok(Cas::Applied) => {
                let made = Conversation {
                    revision: 1,
                    epoch: fence.epoch,
                    fences: vec![fence],
                    ..Conversation::default()
                };
                part.locked.set(State::new(&made, 0));
            }
            Ok(Cas::Refused) | Err(StoreError::Unavailable(_)) => {
                let Some(found) = self.rows.conversation(id).await? else {
                    let text = format!("conversation {id} has not been made yet");
                    return Err(StoreError::Unavailable(text));
                };
                if found.fences != [fence] {
                    // Made by an earlier owner, after this one had looked for it.
                    return Err(part.fenced());
                }
                // An earlier attempt at this very commit made it.
                let taken = self.take_up(id, part.epoch).await?;
                let (state, _) = taken.ok_or_else(|| part.fenced())?;
                part.locked.set(state);
            }
            Err(error) => return Err(error),
        }
        self.put_index(id, &part.writes.members).await
    }

    /// Writes members and settings, then the index.
    async fn change(&self, part: &mut Part<'_>) -> Result<(), StoreError> {
        let change = Change {
            row: part.writes.row.clone(),
            members: part.writes.members.clone(),
            ..Change::default()
        };
        self.change_if_owner(&mut part.locked, &change).await?;
        self.put_index(part.writes.id, &part.writes.members).await
    }

    /// A conditional write to a conversation that has been taken up. [`StoreError::Fenced`]: another
    /// owner has taken it up since.
    pub(super) async fn change_if_owner(
        &self,
        locked: &mut Locked,
        change: &Change,
    ) -> Result<(), StoreError> {
        let id = locked.id;
        for _ in 0..ATTEMPTS_MAX {
            let Some(state) = locked.state_mut() else {
                return Err(StoreError::Fenced(vec![id]));
            };
            let sent = self.rows.change(id, Some(state.revision), change).await;
            let unanswered = match sent {
                Ok(Cas::Applied) => {
                    state.revision += 1;
                    state.settled = change.settled.unwrap_or(state.settled);
                    state.top_bucket = change.top_bucket.unwrap_or(state.top_bucket);
                    return Ok(());
                }
                Ok(Cas::Refused) => None,
                Err(StoreError::Unavailable(text)) if self.rules.keeps(Rule::UnknownIsRead) => {
                    Some(text)
                }
                Err(StoreError::Unavailable(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            let found = self.rows.conversation(id).await?.unwrap_or_default();
            if found.epoch != state.view.epoch {
                return Err(StoreError::Fenced(vec![id]));
            }
            let is_unchanged = found.revision == state.revision;
            state.refresh(&found);
            if holds(&found, change) {
                return Ok(());
            }
            if let Some(text) = unanswered.filter(|_| is_unchanged) {
                // It may still come. Then the repetition is refused, and finds it.
                return Err(StoreError::Unavailable(text));
            }
        }
        let text = format!("conversation {id} did not change in {ATTEMPTS_MAX} attempts");
        Err(StoreError::Unavailable(text))
    }

    /// Writes the messages above the committed head, a tail at a time.
    async fn write_messages(&self, part: &mut Part<'_>) -> Result<(), StoreError> {
        let mut rest = self.unwritten(part).await?;
        let tail_max = if self.rules.keeps(Rule::TailBound) {
            self.deployment.tail_max as usize
        } else {
            usize::MAX
        };
        while !rest.is_empty() {
            let (tail, more) = rest.split_at(rest.len().min(tail_max));
            self.write_tail(part, tail).await?;
            rest = more;
            if !rest.is_empty() {
                self.commit_so_far(part).await?;
            }
        }
        Ok(())
    }

    /// The messages that are above the committed head; those below must be there already.
    async fn unwritten<'a>(&self, part: &Part<'a>) -> Result<&'a [Arc<Message>], StoreError> {
        let messages = &part.writes.messages[..];
        let committed = part.state()?.view.committed;
        let (known, new) = messages.split_at(messages.partition_point(|m| m.seq <= committed));
        if !known.is_empty() && !self.are_there(part, known).await? {
            return Err(part.fenced());
        }
        match new.first() {
            Some(first) if first.seq > committed + 1 => {
                let (id, seq) = (part.writes.id, first.seq);
                let text = format!("message {seq} of {id} does not follow {committed}");
                return Err(StoreError::Failed(text));
            }
            _ => {}
        }
        if let Some(pair) = new.windows(2).find(|pair| pair[1].seq != pair[0].seq + 1) {
            let (id, seq, before) = (part.writes.id, pair[1].seq, pair[0].seq);
            let text = format!("message {seq} of {id} does not follow {before}");
            return Err(StoreError::Failed(text));
        }
        Ok(new)
    }

    /// Whether these messages, at or below the committed head, are the ones that are stored: a commit
    /// is repeated. Otherwise its sender knows an older state of the conversation.
    async fn are_there(
        &self,
        part: &Part<'_>,
        messages: &[Arc<Message>],
    ) -> Result<bool, StoreError> {
        let state = part.state()?;
        let is_unended = |m: &Arc<Message>| {
            let at = state.unended.binary_search(&(m.seq, m.message_id));
            at.is_ok()
        };
        if messages.iter().all(is_unended) {
            return Ok(true);
        }
        let view = &state.view;
        let (Some(first), Some(last)) = (messages.first(), messages.last()) else {
            return Ok(true);
        };
        let scope = Scope {
            id: part.writes.id,
            fences: &view.fences,
            first: first.seq,
            last: last.seq,
        };
        let stored = self.walk(scope, Order::OldestFirst, usize::MAX).await?;
        Ok(stored.len() == messages.len()
            && stored.iter().zip(messages).all(|(s, m)| s.message == **m))
    }

    /// Writes at most a tail of messages, and raises `top_bucket` in time.
    async fn write_tail(
        &self,
        part: &mut Part<'_>,
        messages: &[Arc<Message>],
    ) -> Result<(), StoreError> {
        let Some(last) = messages.last().map(|m| m.seq) else {
            return Ok(());
        };
        let state = part.state()?;
        let (top, settled) = (state.top_bucket, state.view.committed);
        let raise = |bucket| Change {
            top_bucket: Some(bucket),
            settled: Some(settled),
            ..Change::default()
        };
        let epoch = part.epoch;
        let row = |message: &Arc<Message>| MessageRow {
            epoch,
            message: Message::clone(message),
        };
        let rows: Vec<MessageRow> = messages.iter().map(row).collect();
        let soon = self.bucket(last.saturating_add(self.deployment.bucket_size / 10));
        let id = part.writes.id;
        if self.bucket(last) > top && self.rules.keeps(Rule::TopBucket) {
            let change = raise(soon);
            self.change_if_owner(&mut part.locked, &change).await?;
            self.put_rows(id, &rows).await?;
        } else if soon > top && self.rules.keeps(Rule::TopBucket) {
            let change = raise(soon);
            let raised = self.change_if_owner(&mut part.locked, &change);
            let (raised, written) = join(raised, self.put_rows(id, &rows)).await;
            written?;
            match raised {
                // There is time to try again.
                Ok(()) | Err(StoreError::Unavailable(_)) => {}
                Err(error) => return Err(error),
            }
        } else {
            self.put_rows(id, &rows).await?;
        }
        part.written = last;
        Ok(())
    }

    /// Asks whether what has been written so far is committed, so that more can be built on it.
    async fn commit_so_far(&self, part: &mut Part<'_>) -> Result<(), StoreError> {
        if !(self.is_alive().await? && self.holds(part)) {
            return Err(part.fenced());
        }
        part.locked.committed(part.written);
        Ok(())
    }

    async fn write_watermarks(&self, part: &Part<'_>) -> Result<(), StoreError> {
        if part.writes.watermarks.is_empty() {
            return Ok(());
        }
        // A cell's time is its seq: one that is too great could never be written over.
        let most = if self.rules.keeps(Rule::WatermarkClamp) {
            part.written
        } else {
            u64::MAX
        };
        let clamped = part.writes.watermarks.iter().map(|(user, mark)| {
            let mark = WatermarkRow {
                delivered_seq: mark.delivered_seq.min(most),
                read_seq: mark.read_seq.min(most),
            };
            (user.clone(), mark)
        });
        let marks: Vec<(String, WatermarkRow)> = clamped.collect();
        self.rows.put_watermarks(part.writes.id, &marks).await
    }

    /// Cuts rows by buckets, and into batches.
    pub(super) fn cut<'a>(&self, rows: &'a [MessageRow]) -> Vec<(u64, &'a [MessageRow])> {
        let mut parts = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (at, row) in rows.iter().enumerate() {
            let size = row_bytes(row);
            let is_other = self.bucket(rows[start].message.seq) != self.bucket(row.message.seq);
            let is_full = at - start >= self.batch_rows_max || bytes + size > BATCH_BYTES_MAX;
            if at > start && (is_other || is_full) {
                parts.push((self.bucket(rows[start].message.seq), &rows[start..at]));
                (start, bytes) = (at, 0);
            }
            bytes += size;
        }
        if let Some(row) = rows.get(start) {
            parts.push((self.bucket(row.message.seq), &rows[start..]));
        }
        parts
    }
}

/// About what a row takes in a batch.
fn row_bytes(row: &MessageRow) -> usize {
    const FIXED: usize = 64;
    let message = &row.message;
    let media = message.media.as_ref().map_or(0, |media| {
        media.media_id.len() + media.url.len() + media.content_type.len() + media.name.len()
    });
    FIXED
        + message.content.len()
        + message.content_type.len()
        + message.sender_id.len()
        + message.client_msg_id.len()
        + media
}

/// Whether a conversation says all of what a change was to make it say.
fn holds(found: &Conversation, change: &Change) -> bool {
    let has = |(user, row): &(String, MemberRow)| {
        let at = found.members.binary_search_by(|(u, _)| u.cmp(user));
        at.is_ok_and(|at| found.members[at].1 == *row)
    };
    change.settled.is_none_or(|s| found.settled >= s)
        && change.top_bucket.is_none_or(|b| found.top_bucket >= b)
        && change.row.as_ref().is_none_or(|row| found.row == *row)
        && change.members.iter().all(has)
}
