//! The store as rows in memory: what is applied (readers see it) and what is on stable storage (a
//! crash leaves it). When a batch gets from the one to the other is for the world to say.

use std::collections::BTreeMap;

use trunkline_core::store::{Order, ReadRange, Snapshot, WriteBatch};
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::{ConversationRow, MemberRow, WatermarkRow};

/// One conversation's rows.
#[derive(Clone, Debug, Default)]
struct Stored {
    row: ConversationRow,
    members: BTreeMap<String, MemberRow>,
    messages: BTreeMap<u64, Message>,
    watermarks: BTreeMap<String, WatermarkRow>,
}

/// All rows.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    conversations: BTreeMap<ConversationId, Stored>,
}

impl Rows {
    pub fn apply(&mut self, batch: &WriteBatch) {
        for writes in &batch.conversations {
            let stored = self.conversations.entry(writes.id).or_default();
            if let Some(row) = &writes.row {
                stored.row = row.clone();
            }
            stored.members.extend(writes.members.iter().cloned());
            stored.watermarks.extend(writes.watermarks.iter().cloned());
            for message in &writes.messages {
                stored.messages.insert(message.seq, Message::clone(message));
            }
        }
    }

    pub fn load(&self, id: ConversationId, recent_max: u64) -> Option<Snapshot> {
        let stored = self.conversations.get(&id)?;
        let head = stored.messages.keys().next_back().copied().unwrap_or(0);
        let from = head.saturating_sub(recent_max) + 1;
        Some(Snapshot {
            row: stored.row.clone(),
            members: stored.members.clone().into_iter().collect(),
            watermarks: stored.watermarks.clone().into_iter().collect(),
            head,
            recent: stored
                .messages
                .range(from..)
                .map(|(_, m)| m.clone())
                .collect(),
        })
    }

    pub fn read(&self, id: ConversationId, range: ReadRange) -> Vec<Message> {
        let Some(stored) = self.conversations.get(&id) else {
            return Vec::new();
        };
        let between = stored.messages.range(range.after + 1..range.before);
        let mut found: Vec<Message> = between.map(|(_, m)| m.clone()).collect();
        let limit = range.limit as usize;
        match range.order {
            Order::OldestFirst => found.truncate(limit),
            Order::NewestFirst => found = found.split_off(found.len().saturating_sub(limit)),
        }
        found
    }

    pub fn conversations_of(&self, user: &str) -> Vec<ConversationId> {
        let holds = |stored: &Stored| stored.members.contains_key(user);
        let all = self
            .conversations
            .iter()
            .filter(|(_, stored)| holds(stored));
        all.map(|(id, _)| *id).collect()
    }

    /// The highest message id.
    pub fn message_id_floor(&self) -> u64 {
        let messages = self
            .conversations
            .values()
            .flat_map(|c| c.messages.values());
        messages.map(|m| m.message_id).max().unwrap_or(0)
    }
}

/// The store of one core.
#[derive(Debug, Default)]
pub struct SimStore {
    pub applied: Rows,
    pub durable: Rows,
    /// Handed over, not yet on stable storage.
    pub under_way: BTreeMap<u64, WriteBatch>,
    /// No batch gets there before an earlier one.
    pub last_sync_ns: u64,
}

impl SimStore {
    /// A batch gets to stable storage.
    pub fn sync(&mut self, commit: u64) -> Option<WriteBatch> {
        let batch = self.under_way.remove(&commit)?;
        self.durable.apply(&batch);
        self.applied.apply(&batch);
        Some(batch)
    }

    /// The process dies: what is only applied is gone.
    pub fn crash(&mut self) {
        self.under_way.clear();
        self.applied = self.durable.clone();
    }
}
