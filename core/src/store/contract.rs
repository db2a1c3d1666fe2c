//! What every [`MessageStore`] must do, as tests that any backend can run.
//!
//! A backend implements [`Factory`] and names it in [`store_contract!`](crate::store_contract),
//! which makes a test of each case. Each case gets a factory of its own.
//! Called by the tests of the stores, of this crate and of others (feature `contract`).

mod commits;
mod reads;
mod restarts;

use std::sync::Arc;

use async_trait::async_trait;
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::{ConversationRow, Interval, MemberRow, WatermarkRow};

pub use self::commits::*;
pub use self::reads::*;
pub use self::restarts::*;
use super::{ConversationWrites, MessageStore, Order, ReadRange, Snapshot, WriteBatch};

/// Makes stores for the cases.
#[async_trait]
pub trait Factory: Send + Sync {
    /// An empty store. Called once.
    async fn create(&self) -> Arc<dyn MessageStore>;

    /// The same store after a restart. `store` is the last handle of it: drop it, then open again.
    async fn reopen(&self, store: Arc<dyn MessageStore>) -> Arc<dyn MessageStore>;
}

/// Makes a `#[tokio::test]` of each case of the contract, against stores of `$factory`, an
/// expression that is evaluated once for each case. The caller depends on tokio.
#[macro_export]
macro_rules! store_contract {
    ($factory:expr) => {
        $crate::store_contract! { @cases $factory;
            a_batch_is_there_as_a_whole_once_it_is_committed,
            an_empty_batch_changes_nothing,
            a_repeated_commit_leaves_what_one_leaves,
            a_later_row_replaces_an_earlier_one,
            rows_that_a_batch_does_not_name_stay,
            contents_of_all_kinds_come_back_as_they_were,
            the_message_id_floor_is_the_highest_id_ever_committed,
            readers_see_whole_batches_only,
            what_does_not_exist_is_read_as_nothing,
            ranges_hold_their_bounds_and_limit_in_both_orders,
            a_conversation_is_loaded_with_head_members_watermarks_and_newest_messages,
            the_user_index_holds_former_members,
            a_watermark_alone_does_not_enter_the_user_index,
            neighbouring_conversations_are_kept_apart,
            users_whose_ids_begin_one_another_are_kept_apart,
            a_long_history_is_walked_without_hole_or_repeat,
            what_was_committed_is_there_after_a_restart,
            the_message_id_floor_survives_restarts,
            an_empty_store_is_empty_after_a_restart,
        }
    };
    (@cases $factory:expr; $($case:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $case() {
                $crate::store::contract::$case(&$factory).await;
            }
        )*
    };
}

fn conversation(id: u128) -> ConversationId {
    ConversationId::from_bytes(id.to_be_bytes())
}

fn writes(id: ConversationId) -> ConversationWrites {
    ConversationWrites {
        id,
        row: None,
        members: Vec::new(),
        messages: Vec::new(),
        watermarks: Vec::new(),
    }
}

fn row(version: u64) -> ConversationRow {
    ConversationRow {
        kind: 2,
        title: format!("title {version} ✓"),
        version,
        created_at: 1_700_000_000_000,
        deleted: version.is_multiple_of(2),
        changed_at: 1_700_000_000_000 + version,
    }
}

/// A member since the beginning; a former one if `until` is given.
fn member(until: Option<u64>) -> MemberRow {
    MemberRow {
        role: 1,
        joined_at: 1_700_000_000_001,
        intervals: vec![Interval {
            after_seq: 0,
            until_seq: until,
        }],
    }
}

fn watermark(seq: u64) -> WatermarkRow {
    WatermarkRow {
        delivered_seq: seq,
        read_seq: seq / 2,
    }
}

fn message(id: ConversationId, seq: u64) -> Message {
    Message {
        conversation_id: id.to_string(),
        message_id: 1_000_000 + seq,
        seq,
        sender_id: format!("user-{}", seq % 7),
        client_msg_id: format!("client-{seq}"),
        content: format!("message {seq} of {id}"),
        content_type: "text/plain".to_owned(),
        media: None,
        ts: 1_700_000_000_000 + seq,
    }
}

/// A conversation with the messages `seqs`.
fn with_messages(id: ConversationId, seqs: impl IntoIterator<Item = u64>) -> ConversationWrites {
    let messages = seqs.into_iter().map(|seq| Arc::new(message(id, seq)));
    ConversationWrites {
        row: Some(row(1)),
        messages: messages.collect(),
        ..writes(id)
    }
}

async fn commit(store: &dyn MessageStore, conversations: Vec<ConversationWrites>) {
    let batch = WriteBatch { conversations };
    store.commit(&batch).await.expect("committed");
}

async fn load(store: &dyn MessageStore, id: ConversationId, recent_max: u64) -> Snapshot {
    let loaded = store.load(id, recent_max).await.expect("readable");
    loaded.expect("the conversation exists")
}

async fn read(
    store: &dyn MessageStore,
    id: ConversationId,
    after: u64,
    before: u64,
    limit: u32,
    order: Order,
) -> Vec<Message> {
    let range = ReadRange {
        after,
        before,
        limit,
        order,
    };
    store.read(id, range).await.expect("readable")
}

/// Every message of the conversation, ascending.
async fn all(store: &dyn MessageStore, id: ConversationId) -> Vec<Message> {
    read(store, id, 0, u64::MAX, u32::MAX, Order::OldestFirst).await
}

/// The index of a user, sorted.
async fn index(store: &dyn MessageStore, user: &str) -> Vec<ConversationId> {
    let mut ids = store.conversations_of(user).await.expect("readable");
    ids.sort_unstable();
    ids
}

fn owned(messages: &[Arc<Message>]) -> Vec<Message> {
    messages.iter().map(|message| (**message).clone()).collect()
}
