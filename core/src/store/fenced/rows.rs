//! The statements that the fenced store is made of: what it asks of a replicated table store, and no
//! more. Cassandra implements them, and so do the simulator's replicas.
//!
//! Invariants, of every implementation:
//! 1. Reads and writes are of a quorum of the home data centre; conditional writes and
//!    [`Rows::conversation`] are linearizable for each conversation.
//! 2. [`StoreError::Unavailable`] of a write says that its outcome is unknown: it may have happened,
//!    may happen later, or never. Nothing is repeated on the caller's behalf unless it is the same
//!    plain insert of the same cells.
//! 3. A plain insert that was repeated with the same content leaves the same cells: messages carry
//!    their own time as the write's timestamp, watermarks their seq.
//! 4. Rows of messages are read with all their columns, and no read repairs anything.

use async_trait::async_trait;
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::{ConversationRow, MemberRow, WatermarkRow};
use uuid::Uuid;

use crate::store::StoreError;

/// From which seq on the rows of an epoch count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    pub epoch: u64,
    pub first_seq: u64,
}

/// What the conditional writes of a conversation have made of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// How many conditional writes it took: 1 when it was made, one more with each change. What a
    /// write is conditional on, so that one that is carried out late, when its sender has long gone
    /// on, cannot undo what came after it.
    pub revision: u64,
    /// The greatest epoch that recorded a fence.
    pub epoch: u64,
    /// All seqs up to here are committed for ever; may lag behind the truth.
    pub settled: u64,
    /// No bucket above this one has a row that counts.
    pub top_bucket: u64,
    /// Ascending by epoch.
    pub fences: Vec<Fence>,
    pub row: ConversationRow,
    /// Present and former, in bytewise order of their ids.
    pub members: Vec<(String, MemberRow)>,
}

/// What a conditional write changes. What is `None` or empty stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Sets the epoch and adds its fence.
    pub fence: Option<Fence>,
    pub settled: Option<u64>,
    pub top_bucket: Option<u64>,
    pub row: Option<ConversationRow>,
    pub members: Vec<(String, MemberRow)>,
}

/// How a conditional write ended, where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cas {
    Applied,
    /// The condition did not hold, and nothing was written.
    Refused,
}

/// A message as some epoch wrote it. Whether it counts is for the fences to say.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageRow {
    pub epoch: u64,
    /// With its `conversation_id` and `seq`.
    pub message: Message,
}

/// That an owner wrote to a conversation within a window of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    pub conversation: ConversationId,
    /// The first seq that it wrote within the window.
    pub first_seq: u64,
}

/// A window of an incarnation's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window(pub u64);

/// See the module.
#[async_trait]
pub trait Rows: Send + Sync + 'static {
    /// Reads a conversation, with whatever conditional write was under way decided (SERIAL).
    async fn conversation(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError>;

    /// Writes a conversation if its revision is `expected`, and raises the revision by one; `None`:
    /// if it does not exist, as revision 1. All of `change` or nothing.
    async fn change(
        &self,
        id: ConversationId,
        expected: Option<u64>,
        change: &Change,
    ) -> Result<Cas, StoreError>;

    /// Rows of one bucket with `from <= seq <= to`, descending by (seq, epoch), at most `limit`.
    async fn messages_down(
        &self,
        id: ConversationId,
        bucket: u64,
        from: u64,
        to: u64,
        limit: u32,
    ) -> Result<Vec<MessageRow>, StoreError>;

    /// As [`Rows::messages_down`], ascending.
    async fn messages_up(
        &self,
        id: ConversationId,
        bucket: u64,
        from: u64,
        to: u64,
        limit: u32,
    ) -> Result<Vec<MessageRow>, StoreError>;

    /// Inserts rows of one bucket, as one write. The caller bounds their number and size.
    async fn put_messages(
        &self,
        id: ConversationId,
        bucket: u64,
        rows: &[MessageRow],
    ) -> Result<(), StoreError>;

    /// Enters conversations into a window of the own journal. One that is there already with another
    /// first seq stays there too, or the lower of both does.
    async fn put_journal(
        &self,
        incarnation: Uuid,
        window: Window,
        entries: &[JournalEntry],
    ) -> Result<(), StoreError>;

    /// The windows of an incarnation that were begun and are not marked done, ascending.
    async fn journal_windows(&self, incarnation: Uuid) -> Result<Vec<Window>, StoreError>;

    /// Everything in a window, in no certain order; a conversation may come more than once.
    async fn journal(
        &self,
        incarnation: Uuid,
        window: Window,
    ) -> Result<Vec<JournalEntry>, StoreError>;

    /// Marks a window done: every effect of every message in it is durable.
    async fn end_window(&self, incarnation: Uuid, window: Window) -> Result<(), StoreError>;

    /// Writes watermarks, each cell with its seq as the timestamp, so that the greater one stays.
    async fn put_watermarks(
        &self,
        id: ConversationId,
        watermarks: &[(String, WatermarkRow)],
    ) -> Result<(), StoreError>;

    /// The watermarks of a conversation, in no certain order.
    async fn watermarks(
        &self,
        id: ConversationId,
    ) -> Result<Vec<(String, WatermarkRow)>, StoreError>;

    /// Enters a conversation into the indexes of these users.
    async fn put_index(&self, users: &[String], id: ConversationId) -> Result<(), StoreError>;

    /// The conversations in a user's index, in no certain order.
    async fn index(&self, user: &str) -> Result<Vec<ConversationId>, StoreError>;
}
