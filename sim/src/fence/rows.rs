//! The statements of the fenced store over the replicas.

use std::sync::Arc;

use async_trait::async_trait;
use trunkline_core::ownership::held::Held;
use trunkline_core::ownership::partition_of_conversation;
use trunkline_core::store::StoreError;
use trunkline_core::store::fenced::rows::{
    Cas, Change, Conversation, JournalEntry, MessageRow, Rows, Window,
};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::WatermarkRow;
use uuid::Uuid;

use super::defects::Defect;
use super::net::Net;
use super::plan::PARTITIONS;
use super::replicas::{Log, Mutation, Replica, enter};

/// A machine's way to the tables.
pub struct SimRows {
    pub net: Arc<Net>,
    pub machine: usize,
    pub held: Arc<Held>,
}

impl SimRows {
    /// Rows of a conversation within these seqs, ascending.
    async fn messages(
        &self,
        id: ConversationId,
        from: u64,
        to: u64,
    ) -> Result<Vec<MessageRow>, StoreError> {
        let look = move |replica: &Replica| replica.logs.get(&id).cloned().unwrap_or_default();
        let mut merged = Log::default();
        for log in self.net.read(self.machine, look).await? {
            merged.merge(&log);
        }
        let within = merged.rows.into_values().map(|(row, _)| row);
        Ok(within
            .filter(|row| (from..=to).contains(&row.message.seq))
            .collect())
    }
}

#[async_trait]
impl Rows for SimRows {
    async fn conversation(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        let net = self.net.clone();
        self.net.decide(self.machine, move || net.decided(id)).await
    }

    async fn change(
        &self,
        id: ConversationId,
        expected: Option<u64>,
        change: &Change,
    ) -> Result<Cas, StoreError> {
        let (net, change) = (self.net.clone(), change.clone());
        self.net
            .decide(self.machine, move || net.change(id, expected, &change))
            .await
    }

    async fn messages_down(
        &self,
        id: ConversationId,
        _bucket: u64,
        from: u64,
        to: u64,
        limit: u32,
    ) -> Result<Vec<MessageRow>, StoreError> {
        let mut rows = self.messages(id, from, to).await?;
        rows.reverse();
        rows.truncate(limit as usize);
        Ok(rows)
    }

    async fn messages_up(
        &self,
        id: ConversationId,
        _bucket: u64,
        from: u64,
        to: u64,
        limit: u32,
    ) -> Result<Vec<MessageRow>, StoreError> {
        let mut rows = self.messages(id, from, to).await?;
        rows.truncate(limit as usize);
        Ok(rows)
    }

    async fn put_messages(
        &self,
        id: ConversationId,
        bucket: u64,
        rows: &[MessageRow],
    ) -> Result<(), StoreError> {
        let own = self.held.epoch(partition_of_conversation(id, PARTITIONS));
        let stamped = rows.iter().map(|row| {
            let mut row = row.clone();
            let at = row.message.ts;
            if self.net.defect == Some(Defect::ProjectedReads) && own != Some(row.epoch) {
                row.message.content.clear();
            }
            (row, at)
        });
        let mutation = Mutation::Messages(id, bucket, stamped.collect());
        self.net.write(self.machine, mutation).await
    }

    async fn put_journal(
        &self,
        incarnation: Uuid,
        window: Window,
        entries: &[JournalEntry],
    ) -> Result<(), StoreError> {
        let mutation = Mutation::Journal(incarnation.as_u128(), window, entries.to_vec());
        self.net.write(self.machine, mutation).await
    }

    async fn journal_windows(&self, incarnation: Uuid) -> Result<Vec<Window>, StoreError> {
        let number = incarnation.as_u128();
        let look = move |replica: &Replica| {
            let mut part = Replica::default();
            let own = replica.journal.iter().filter(|((i, _), _)| *i == number);
            part.journal.extend(own.map(|(k, v)| (*k, v.clone())));
            part
        };
        let merged = merged(self.net.read(self.machine, look).await?);
        let open = merged.journal.into_iter().filter(|(_, (_, done))| !done);
        Ok(open.map(|((_, window), _)| window).collect())
    }

    async fn journal(
        &self,
        incarnation: Uuid,
        window: Window,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let key = (incarnation.as_u128(), window);
        let look = move |replica: &Replica| replica.journal.get(&key).cloned();
        let mut entries = std::collections::BTreeMap::new();
        for (known, _) in self
            .net
            .read(self.machine, look)
            .await?
            .into_iter()
            .flatten()
        {
            for (id, first_seq) in known {
                enter(&mut entries, id, first_seq);
            }
        }
        let entry = |(conversation, first_seq)| JournalEntry {
            conversation,
            first_seq,
        };
        Ok(entries.into_iter().map(entry).collect())
    }

    async fn end_window(&self, incarnation: Uuid, window: Window) -> Result<(), StoreError> {
        let mutation = Mutation::EndWindow(incarnation.as_u128(), window);
        self.net.write(self.machine, mutation).await
    }

    async fn put_watermarks(
        &self,
        id: ConversationId,
        watermarks: &[(String, WatermarkRow)],
    ) -> Result<(), StoreError> {
        let mutation = Mutation::Watermarks(id, watermarks.to_vec());
        self.net.write(self.machine, mutation).await
    }

    async fn watermarks(
        &self,
        id: ConversationId,
    ) -> Result<Vec<(String, WatermarkRow)>, StoreError> {
        let look = move |replica: &Replica| {
            let mut part = Replica::default();
            let own = replica.watermarks.iter().filter(|((of, _), _)| *of == id);
            part.watermarks.extend(own.map(|(k, v)| (k.clone(), *v)));
            part
        };
        let merged = merged(self.net.read(self.machine, look).await?);
        let marks = merged.watermarks.into_iter();
        Ok(marks.map(|((_, user), mark)| (user, mark)).collect())
    }

    async fn put_index(&self, users: &[String], id: ConversationId) -> Result<(), StoreError> {
        let mutation = Mutation::Index(users.to_vec(), id);
        self.net.write(self.machine, mutation).await
    }

    async fn index(&self, user: &str) -> Result<Vec<ConversationId>, StoreError> {
        let user = user.to_owned();
        let look = move |replica: &Replica| replica.index.get(&user).cloned();
        let found = self.net.read(self.machine, look).await?;
        let all: std::collections::BTreeSet<ConversationId> =
            found.into_iter().flatten().flatten().collect();
        Ok(all.into_iter().collect())
    }
}

fn merged(parts: Vec<Replica>) -> Replica {
    let mut all = Replica::default();
    for part in &parts {
        all.merge(part);
    }
    all
}
