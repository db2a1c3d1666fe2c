//! The statements of [`Rows`] over tables in memory: one replica that never fails. What every
//! implementation does when nothing goes wrong; the simulator's replicas build on it.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use parking_lot::Mutex;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::WatermarkRow;
use uuid::Uuid;

use super::rows::{Cas, Change, Conversation, JournalEntry, MessageRow, Rows, Window};
use crate::store::StoreError;

/// Message rows of one bucket, by (seq, epoch).
pub type Bucket = BTreeMap<(u64, u64), MessageRow>;

/// A window of an incarnation's journal: the first seqs by conversation, and whether it is done.
pub type JournalWindow = (BTreeMap<ConversationId, u64>, bool);

/// All tables.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub conversations: BTreeMap<ConversationId, Conversation>,
    pub messages: BTreeMap<(ConversationId, u64), Bucket>,
    pub journal: BTreeMap<(Uuid, Window), JournalWindow>,
    pub watermarks: BTreeMap<(ConversationId, String), WatermarkRow>,
    pub index: BTreeMap<String, BTreeSet<ConversationId>>,
}

impl Conversation {
    /// The conversation after a conditional write.
    pub fn changed(mut self, change: &Change) -> Self {
        self.revision += 1;
        if let Some(fence) = change.fence {
            self.epoch = fence.epoch;
            self.fences.push(fence);
            self.fences.sort_unstable_by_key(|fence| fence.epoch);
        }
        self.settled = change.settled.unwrap_or(self.settled);
        self.top_bucket = change.top_bucket.unwrap_or(self.top_bucket);
        if let Some(row) = &change.row {
            self.row = row.clone();
        }
        for (user, row) in &change.members {
            match self.members.binary_search_by(|(u, _)| u.cmp(user)) {
                Ok(at) => self.members[at].1 = row.clone(),
                Err(at) => self.members.insert(at, (user.clone(), row.clone())),
            }
        }
        self
    }
}

impl Tables {
    pub fn change(&mut self, id: ConversationId, expected: Option<u64>, change: &Change) -> Cas {
        let known = self.conversations.get(&id);
        if known.map(|c| c.revision) != expected {
            return Cas::Refused;
        }
        let changed = known.cloned().unwrap_or_default().changed(change);
        self.conversations.insert(id, changed);
        Cas::Applied
    }

    /// Rows of a bucket, `from <= seq <= to`, ascending by (seq, epoch).
    pub fn bucket(
        &self,
        id: ConversationId,
        bucket: u64,
        from: u64,
        to: u64,
    ) -> impl DoubleEndedIterator<Item = &MessageRow> {
        let rows = self.messages.get(&(id, bucket)).filter(|_| from <= to);
        let within = rows.map(|rows| rows.range((from, 0)..=(to, u64::MAX)));
        within.into_iter().flatten().map(|(_, row)| row)
    }

    pub fn put_message(&mut self, id: ConversationId, bucket: u64, row: &MessageRow) {
        let rows = self.messages.entry((id, bucket)).or_default();
        rows.insert((row.message.seq, row.epoch), row.clone());
    }

    pub fn put_journal(&mut self, incarnation: Uuid, window: Window, entry: JournalEntry) {
        let (entries, _) = self.journal.entry((incarnation, window)).or_default();
        let first = entries.entry(entry.conversation).or_insert(entry.first_seq);
        *first = entry.first_seq.min(*first);
    }

    /// Each cell is as new as its seq is high.
    pub fn put_watermark(&mut self, id: ConversationId, user: &str, mark: WatermarkRow) {
        let known = self.watermarks.entry((id, user.to_owned())).or_default();
        known.delivered_seq = known.delivered_seq.max(mark.delivered_seq);
        known.read_seq = known.read_seq.max(mark.read_seq);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct MemoryRows {
    pub tables: Mutex<Tables>,
}

#[async_trait]
impl Rows for MemoryRows {
    async fn conversation(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        Ok(self.tables.lock().conversations.get(&id).cloned())
    }

    async fn change(
        &self,
        id: ConversationId,
        expected: Option<u64>,
        change: &Change,
    ) -> Result<Cas, StoreError> {
        Ok(self.tables.lock().change(id, expected, change))
    }

    async fn messages_down(
        &self,
        id: ConversationId,
        bucket: u64,
        from: u64,
        to: u64,
        limit: u32,
    ) -> Result<Vec<MessageRow>, StoreError> {
        let tables = self.tables.lock();
        let rows = tables.bucket(id, bucket, from, to).rev();
        Ok(rows.take(limit as usize).cloned().collect())
    }

    async fn messages_up(
        &self,
        id: ConversationId,
        bucket: u64,
        from: u64,
        to: u64,
        limit: u32,
    ) -> Result<Vec<MessageRow>, StoreError> {
        let tables = self.tables.lock();
        let rows = tables.bucket(id, bucket, from, to);
        Ok(rows.take(limit as usize).cloned().collect())
    }

    async fn put_messages(
        &self,
        id: ConversationId,
        bucket: u64,
        rows: &[MessageRow],
    ) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        for row in rows {
            tables.put_message(id, bucket, row);
        }
        Ok(())
    }

    async fn put_journal(
        &self,
        incarnation: Uuid,
        window: Window,
        entries: &[JournalEntry],
    ) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        for entry in entries {
            tables.put_journal(incarnation, window, *entry);
        }
        Ok(())
    }

    async fn journal_windows(&self, incarnation: Uuid) -> Result<Vec<Window>, StoreError> {
        let tables = self.tables.lock();
        let all = (incarnation, Window(0))..=(incarnation, Window(u64::MAX));
        let open = tables.journal.range(all).filter(|(_, (_, done))| !done);
        Ok(open.map(|((_, window), _)| *window).collect())
    }

    async fn journal(
        &self,
        incarnation: Uuid,
        window: Window,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let tables = self.tables.lock();
        let entries = tables.journal.get(&(incarnation, window));
        let entries = entries.into_iter().flat_map(|(entries, _)| entries);
        let entry = |(conversation, first_seq): (&ConversationId, &u64)| JournalEntry {
            conversation: *conversation,
            first_seq: *first_seq,
        };
        Ok(entries.map(entry).collect())
    }

    async fn end_window(&self, incarnation: Uuid, window: Window) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        tables.journal.entry((incarnation, window)).or_default().1 = true;
        Ok(())
    }

    async fn put_watermarks(
        &self,
        id: ConversationId,
        watermarks: &[(String, WatermarkRow)],
    ) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        for (user, mark) in watermarks {
            tables.put_watermark(id, user, *mark);
        }
        Ok(())
    }

    async fn watermarks(
        &self,
        id: ConversationId,
    ) -> Result<Vec<(String, WatermarkRow)>, StoreError> {
        let tables = self.tables.lock();
        let from = tables.watermarks.range((id, String::new())..);
        let own = from.take_while(|((of, _), _)| *of == id);
        Ok(own.map(|((_, user), mark)| (user.clone(), *mark)).collect())
    }

    async fn put_index(&self, users: &[String], id: ConversationId) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        for user in users {
            tables.index.entry(user.clone()).or_default().insert(id);
        }
        Ok(())
    }

    async fn index(&self, user: &str) -> Result<Vec<ConversationId>, StoreError> {
        let tables = self.tables.lock();
        let ids = tables.index.get(user).into_iter().flatten();
        Ok(ids.copied().collect())
    }
}
