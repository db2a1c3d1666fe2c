//! The store of a single machine: a log-structured merge tree in a directory of its own.
//!
//! # How the port's promises are kept
//! - A commit is one batch of the engine: one checksummed record in its journal, applied as a whole
//!   or, after a crash, dropped as a whole. It is fsynced before `commit` returns.
//! - Every read runs in a snapshot, so it sees whole batches only, also across keyspaces.
//! - The highest message id is written in the same batch as the messages.
//! - After a failed write or fsync nobody knows what the disk holds: from then on every call
//!   answers [`StoreError::Failed`], and only a restart, which reads the journal, helps.
//!
//! Key layout in [`super::keys`], rows in [`super::rows`], the directory in [`super::open`].
//! Called by the runtime: one thread commits, several read. All futures block and never wait.

use std::fs::File;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use async_trait::async_trait;
use fjall::{Database, Keyspace, OwnedWriteBatch, PersistMode, Readable, Snapshot as View};
use parking_lot::Mutex;
use prost::Message as _;
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::ConversationRow;

use super::open::{self, META_MESSAGE_ID_FLOOR, Opened, Tables};
pub use super::open::{EmbeddedOptions, JOURNAL_BYTES_MIN, OpenError};
use super::stats::StoreStats;
use super::{
    ConversationWrites, MessageStore, Order, ReadRange, Snapshot, StoreError, WriteBatch, keys,
    rows,
};

/// A store in a directory; closed when dropped.
pub struct EmbeddedStore {
    database: Database,
    tables: Tables,
    /// What the committing side keeps; also makes commits follow one another.
    writer: Mutex<Writer>,
    /// Why the store failed for good, once it has.
    failed: OnceLock<String>,
    stats: Arc<StoreStats>,
    /// Held open for its lock. Last, because fields are dropped in order.
    _lock: File,
}

struct Writer {
    /// The highest message id committed.
    message_id_floor: u64,
    /// The row being encoded, kept for its allocation.
    row: Vec<u8>,
}

impl EmbeddedStore {
    /// Opens the store in `dir`, which it makes if there is none. One process at a time.
    pub fn open(dir: &Path, options: &EmbeddedOptions) -> Result<Self, OpenError> {
        let Opened {
            database,
            tables,
            message_id_floor,
            lock,
        } = open::open(dir, options)?;
        Ok(Self {
            database,
            tables,
            writer: Mutex::new(Writer {
                message_id_floor,
                row: Vec::new(),
            }),
            failed: OnceLock::new(),
            stats: Arc::default(),
            _lock: lock,
        })
    }

    /// What the store has done since it was opened.
    pub fn stats(&self) -> Arc<StoreStats> {
        Arc::clone(&self.stats)
    }

    /// Bytes that journal and tables take on disk, as the engine counts them.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.database.disk_space().map_err(read_error)
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.failed.get() {
            Some(reason) => Err(StoreError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    /// A view of all that is committed.
    fn view(&self) -> Result<View, StoreError> {
        self.check()?;
        Ok(self.database.snapshot())
    }

    fn commit_batch(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.check()?;
        let start = Instant::now();
        let mut writer = self.writer.lock();
        let mut build = BatchBuilder::new(&self.database, &self.tables, batch);
        for writes in &batch.conversations {
            build.put_conversation(writes, &mut writer.row);
        }
        let floor = writer.message_id_floor.max(build.message_id_max);
        if build.messages > 0 {
            build.put(
                &self.tables.meta,
                META_MESSAGE_ID_FLOOR,
                &floor.to_be_bytes(),
            );
        }
        let (messages, bytes) = (build.messages, build.bytes);
        if let Err(error) = build.batch.commit() {
            self.stats.commit_failed();
            let reason = self.failed.get_or_init(|| format!("commit: {error:?}"));
            return Err(StoreError::Failed(reason.clone()));
        }
        writer.message_id_floor = floor;
        self.stats.committed(messages, bytes, start.elapsed());
        Ok(())
    }

    fn load_snapshot(
        &self,
        id: ConversationId,
        recent_max: u64,
    ) -> Result<Option<Snapshot>, StoreError> {
        let view = self.view()?;
        let key = id.as_bytes();
        let row = view.get(&self.tables.conversations, key);
        let Some(row) = row.map_err(read_error)? else {
            self.stats.read(0);
            return Ok(None);
        };
        let row: ConversationRow = rows::decode("conversation", key, &row)?;
        // One at least, because the newest message tells the head.
        let span = keys::message(id, 0)..=keys::message(id, u64::MAX);
        let limit = usize::try_from(recent_max.max(1)).unwrap_or(usize::MAX);
        let mut recent = self.messages(&view, id, span, limit, Order::NewestFirst)?;
        let head = recent.last().map_or(0, |message| message.seq);
        if recent_max == 0 {
            recent.clear();
        }
        let snapshot = Snapshot {
            row,
            members: rows_of_users(&view, &self.tables.members, "member", id)?,
            watermarks: rows_of_users(&view, &self.tables.watermarks, "watermark", id)?,
            head,
            recent,
        };
        self.stats.read(snapshot.recent.len());
        Ok(Some(snapshot))
    }

    fn read_messages(
        &self,
        id: ConversationId,
        range: ReadRange,
    ) -> Result<Vec<Message>, StoreError> {
        let view = self.view()?;
        let messages = match seqs(range) {
            Some(seqs) => {
                let span = keys::message(id, *seqs.start())..=keys::message(id, *seqs.end());
                let limit = usize::try_from(range.limit).unwrap_or(usize::MAX);
                self.messages(&view, id, span, limit, range.order)?
            }
            None => Vec::new(),
        };
        self.stats.read(messages.len());
        Ok(messages)
    }

    /// The first `limit` messages in `order` of those under `span`, ascending.
    fn messages(
        &self,
        view: &View,
        id: ConversationId,
        span: RangeInclusive<[u8; keys::MESSAGE_BYTES]>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Message>, StoreError> {
        let conversation = id.to_string();
        let decode = |guard: fjall::Guard| {
            let (key, row) = guard.into_inner().map_err(read_error)?;
            rows::decode_message(&conversation, keys::seq_of(&key)?, &row)
        };
        let found = view.range(&self.tables.messages, span);
        match order {
            Order::OldestFirst => found.take(limit).map(decode).collect(),
            Order::NewestFirst => {
                let newest = found.rev().take(limit).map(decode);
                let mut messages = newest.collect::<Result<Vec<_>, _>>()?;
                messages.reverse();
                Ok(messages)
            }
        }
    }

    fn index_of(&self, user: &str) -> Result<Vec<ConversationId>, StoreError> {
        let view = self.view()?;
        let prefix = keys::user_prefix(user);
        let found = view.prefix(&self.tables.user_conversations, &prefix);
        let ids = found
            .map(|guard| keys::conversation_of(&guard.key().map_err(read_error)?, &prefix))
            .collect::<Result<Vec<_>, _>>()?;
        self.stats.read(0);
        Ok(ids)
    }
}

#[async_trait]
impl MessageStore for EmbeddedStore {
    async fn commit(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.commit_batch(batch)
    }

    async fn load(
        &self,
        id: ConversationId,
        recent_max: u64,
    ) -> Result<Option<Snapshot>, StoreError> {
        self.load_snapshot(id, recent_max)
    }

    async fn read(&self, id: ConversationId, range: ReadRange) -> Result<Vec<Message>, StoreError> {
        self.read_messages(id, range)
    }

    async fn conversations_of(&self, user: &str) -> Result<Vec<ConversationId>, StoreError> {
        self.index_of(user)
    }

    async fn message_id_floor(&self) -> Result<u64, StoreError> {
        self.check()?;
        Ok(self.writer.lock().message_id_floor)
    }
}

/// Turns a [`WriteBatch`] into the engine's, and counts what goes in.
struct BatchBuilder<'a> {
    tables: &'a Tables,
    batch: OwnedWriteBatch,
    messages: u64,
    message_id_max: u64,
    bytes: u64,
}

impl<'a> BatchBuilder<'a> {
    fn new(database: &Database, tables: &'a Tables, batch: &WriteBatch) -> Self {
        let rows = |writes: &ConversationWrites| {
            1 + 2 * writes.members.len() + writes.messages.len() + writes.watermarks.len()
        };
        let rows = 1 + batch.conversations.iter().map(rows).sum::<usize>();
        Self {
            tables,
            // Without this the engine leaves the batch to the page cache.
            batch: OwnedWriteBatch::with_capacity(database.clone(), rows)
                .durability(Some(PersistMode::SyncData)),
            messages: 0,
            message_id_max: 0,
            bytes: 0,
        }
    }

    fn put_conversation(&mut self, writes: &ConversationWrites, row: &mut Vec<u8>) {
        let (id, tables) = (writes.id, self.tables);
        if let Some(conversation) = &writes.row {
            let row = conversation.encode_to_vec();
            self.put(&tables.conversations, id.as_bytes(), &row);
        }
        for (user, member) in &writes.members {
            let key = keys::conversation_user(id, user);
            self.put(&tables.members, &key, &member.encode_to_vec());
            let key = keys::user_conversation(user, id);
            self.put(&tables.user_conversations, &key, &[]);
        }
        for message in &writes.messages {
            rows::encode_message(message, row);
            self.put(&tables.messages, &keys::message(id, message.seq), row);
            self.message_id_max = self.message_id_max.max(message.message_id);
        }
        self.messages += writes.messages.len() as u64;
        for (user, watermark) in &writes.watermarks {
            let key = keys::conversation_user(id, user);
            self.put(&tables.watermarks, &key, &watermark.encode_to_vec());
        }
    }

    fn put(&mut self, keyspace: &Keyspace, key: &[u8], row: &[u8]) {
        self.bytes += (key.len() + row.len()) as u64;
        self.batch.insert(keyspace, key, row);
    }
}

/// The seqs strictly between the bounds; `None` if there is none.
fn seqs(range: ReadRange) -> Option<RangeInclusive<u64>> {
    let first = range.after.checked_add(1)?;
    let last = range.before.checked_sub(1)?;
    (first <= last && range.limit > 0).then_some(first..=last)
}

/// The rows of a conversation's users, in bytewise order of their ids.
fn rows_of_users<R: prost::Message + Default>(
    view: &View,
    keyspace: &Keyspace,
    what: &str,
    id: ConversationId,
) -> Result<Vec<(String, R)>, StoreError> {
    let found = view.prefix(keyspace, id.as_bytes());
    found
        .map(|guard| {
            let (key, row) = guard.into_inner().map_err(read_error)?;
            Ok((keys::user_of(&key)?, rows::decode(what, &key, &row)?))
        })
        .collect()
}

/// A read changes nothing, so it never makes the store fail for good.
fn read_error(error: fjall::Error) -> StoreError {
    match error {
        fjall::Error::Poisoned => StoreError::Failed("an earlier write failed".to_owned()),
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            StoreError::Unavailable(format!("read: {error}"))
        }
        other => StoreError::Corrupt(format!("table file: {other:?}")),
    }
}

#[cfg(test)]
mod tests;
