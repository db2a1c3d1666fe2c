//! The contract on a directory, and what is particular to this store.

use std::sync::Arc;

use async_trait::async_trait;
use tempfile::TempDir;
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::ConversationRow;

use super::{EmbeddedOptions, EmbeddedStore};
use crate::store::contract::Factory;
use crate::store::{ConversationWrites, MessageStore, Order, ReadRange, WriteBatch};

struct InDirectory(TempDir);

impl InDirectory {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("tempdir"))
    }

    /// With the least memory, so that the cases also read table files.
    fn open(&self) -> Arc<EmbeddedStore> {
        let options = EmbeddedOptions {
            memtable_bytes: 1 << 20,
            cache_bytes: 1 << 20,
            ..EmbeddedOptions::default()
        };
        Arc::new(EmbeddedStore::open(self.0.path(), &options).expect("opened"))
    }
}

#[async_trait]
impl Factory for InDirectory {
    async fn create(&self) -> Arc<dyn MessageStore> {
        self.open()
    }

    async fn reopen(&self, store: Arc<dyn MessageStore>) -> Arc<dyn MessageStore> {
        assert_eq!(Arc::strong_count(&store), 1, "the last handle");
        drop(store);
        self.open()
    }
}

crate::store_contract!(InDirectory::new());

fn batch(id: ConversationId, seqs: std::ops::RangeInclusive<u64>) -> WriteBatch {
    let messages = seqs.map(|seq| {
        Arc::new(Message {
            conversation_id: id.to_string(),
            message_id: seq,
            seq,
            content: "x".repeat(100),
            ..Message::default()
        })
    });
    WriteBatch {
        conversations: vec![ConversationWrites {
            id,
            row: None,
            members: Vec::new(),
            messages: messages.collect(),
            watermarks: Vec::new(),
        }],
    }
}

#[tokio::test]
async fn the_store_counts_what_it_does() {
    let directory = InDirectory::new();
    let store = directory.open();
    let id = ConversationId::from_bytes([1; 16]);
    store.commit(&batch(id, 1..=10)).await.expect("committed");
    store.commit(&batch(id, 11..=11)).await.expect("committed");
    let range = ReadRange {
        after: 3,
        before: 8,
        limit: 50,
        order: Order::OldestFirst,
    };
    assert_eq!(store.read(id, range).await.expect("readable").len(), 4);
    let figures = store.stats().figures();
    assert_eq!((figures.commits, figures.failed_commits), (2, 0));
    assert_eq!((figures.messages, figures.messages_read), (11, 4));
    assert_eq!(figures.reads, 1);
    assert!(figures.bytes > 11 * (24 + 100), "{figures:?}");
    assert!(!figures.commit_time.is_zero(), "{figures:?}");
    assert!(store.disk_bytes().expect("readable") > figures.bytes);
}

/// Messages that are gone do not end a page, and do not lower the head.
#[tokio::test]
async fn a_range_passes_over_seqs_that_are_missing() {
    let directory = InDirectory::new();
    let store = directory.open();
    let id = ConversationId::from_bytes([1; 16]);
    for seqs in [5..=6, 300..=300, 70_000..=70_000] {
        let mut part = batch(id, seqs);
        part.conversations[0].row = Some(ConversationRow::default());
        store.commit(&part).await.expect("committed");
    }
    let read = async |after, before, order| {
        let limit = 3;
        let range = ReadRange {
            after,
            before,
            limit,
            order,
        };
        let found = store.read(id, range).await.expect("readable");
        found.iter().map(|m| m.seq).collect::<Vec<_>>()
    };
    assert_eq!(read(0, u64::MAX, Order::OldestFirst).await, [5, 6, 300]);
    assert_eq!(read(5, 70_000, Order::NewestFirst).await, [6, 300]);
    let loaded = store.load(id, 2).await.expect("readable");
    assert_eq!(loaded.map(|s| (s.head, s.recent.len())), Some((70_000, 2)));
}
