//! Where messages become durable: the port that every store implements, and what it promises.
//!
//! Invariants, of every store (the contract suite in [`contract`] tries them all):
//! 1. [`MessageStore::commit`] is atomic, and when it has returned `Ok` the batch is on stable
//!    storage: the loss of power loses nothing of it.
//! 2. A batch that was committed twice with the same content leaves what one commit leaves: the
//!    engine repeats a commit whose outcome it does not know.
//! 3. Reads see every committed batch, and either all or nothing of a batch under way.
//! 4. A conversation is loaded before it is written to, or made by a write that brings its row; its
//!    messages follow the head without a gap.
//! 5. Of a store with one writer at a time for each conversation ([`fenced`]): each conversation of a
//!    batch is carried out by itself, a crash leaves a beginning of it (messages in their order, then
//!    row and members), and what another core has taken is answered by [`StoreError::Fenced`].
//! 6. The user index holds a conversation for each user who has, or ever had, a member row in it.
//!
//! Called by the core's runtime: one thread commits, several read.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod embedded;
pub mod fenced;
mod journal;
mod keys;
pub mod open;
mod rows;
pub mod stats;

use std::sync::Arc;

use async_trait::async_trait;
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::{ConversationRow, MemberRow, WatermarkRow};

/// What one commit writes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WriteBatch {
    pub conversations: Vec<ConversationWrites>,
}

/// What one commit writes of one conversation; at most one of these for each conversation and batch.
#[derive(Clone, Debug, PartialEq)]
pub struct ConversationWrites {
    pub id: ConversationId,
    /// Put, if given.
    pub row: Option<ConversationRow>,
    /// Put. The user index follows from these.
    pub members: Vec<(String, MemberRow)>,
    /// Put under their seqs, ascending. `conversation_id` equals `id`.
    pub messages: Vec<Arc<Message>>,
    /// Put: the engine has merged them already.
    pub watermarks: Vec<(String, WatermarkRow)>,
}

/// A conversation as the engine takes it up.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub row: ConversationRow,
    /// Present and former, in bytewise order of their ids.
    pub members: Vec<(String, MemberRow)>,
    pub watermarks: Vec<(String, WatermarkRow)>,
    /// The highest seq; 0 while there is no message.
    pub head: u64,
    /// The newest messages, ascending, at most as many as were asked for.
    pub recent: Vec<Message>,
}

/// Which messages of a conversation: `after < seq < before`, the `limit` first in `order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRange {
    pub after: u64,
    pub before: u64,
    pub limit: u32,
    pub order: Order,
}

/// From which end a range is read. The answer is ascending by seq either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

/// Why a store did not do it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The write may or may not have happened: repeat it with the same content.
    #[error("store unavailable, outcome unknown: {0}")]
    Unavailable(String),
    /// The store cannot be trusted further (a failed fsync, a corrupt file): stop the process,
    /// mend the disk or restore a backup, start again.
    #[error("store failed for good: {0}")]
    Failed(String),
    /// These conversations are no longer this core's to write. Nothing of them in this batch may ever
    /// be called committed; everything else in it is. Answered by stores with several writers only.
    #[error("another core owns {} of these conversations", .0.len())]
    Fenced(Vec<ConversationId>),
    /// A row that this build cannot read.
    #[error("unreadable row: {0}")]
    Corrupt(String),
}

/// A durable store of conversations. Implementations may block inside the futures: the runtime
/// polls them on threads of their own.
#[async_trait]
pub trait MessageStore: Send + Sync + 'static {
    /// Writes the batch; see the module's invariants 1 and 2.
    async fn commit(&self, batch: &WriteBatch) -> Result<(), StoreError>;

    /// Takes up a conversation with its newest `recent_max` messages. `None`: it does not exist.
    async fn load(
        &self,
        id: ConversationId,
        recent_max: u64,
    ) -> Result<Option<Snapshot>, StoreError>;

    /// Reads messages, ascending by seq.
    async fn read(&self, id: ConversationId, range: ReadRange) -> Result<Vec<Message>, StoreError>;

    /// The conversations in which `user` has or had a member row, in no certain order.
    async fn conversations_of(&self, user: &str) -> Result<Vec<ConversationId>, StoreError>;

    /// The highest message id ever committed, or at least one above which nobody has given any; 0
    /// when there is none.
    async fn message_id_floor(&self) -> Result<u64, StoreError>;

    /// The engine has let a conversation go whose committed head is `head`, with nothing under way:
    /// what the store remembers of it may go too. It may be loaded again at any time. Called for
    /// each conversation that was loaded or made, also where its partition was lost, but for those
    /// that a commit or a load answered with [`StoreError::Fenced`].
    async fn release(&self, _id: ConversationId, _head: u64) -> Result<(), StoreError> {
        Ok(())
    }
}
