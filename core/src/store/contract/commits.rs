//! What commits write, and when others see it.

use std::sync::Arc;

use tokio::task::JoinSet;
use trunkline_proto::client::{Media, Message};
use trunkline_proto::ids::ConversationId;

use super::{
    Factory, all, commit, conversation, index, load, member, message, owned, row, watermark,
    with_messages, writes,
};
use crate::store::{ConversationWrites, MessageStore, WriteBatch};

/// Contents are this long in characters at most, as a client may send them.
const CONTENT_CHARS: usize = 4_096;

/// Every part of every conversation of a batch can be read once `commit` has returned.
pub async fn a_batch_is_there_as_a_whole_once_it_is_committed(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let ids = [3, 1, 2].map(conversation);
    let parts: Vec<_> = (1..).zip(ids).map(|(n, id)| full(id, n)).collect();
    commit(store, parts.clone()).await;
    for part in parts {
        let snapshot = load(store, part.id, 100).await;
        assert_eq!(Some(snapshot.row), part.row);
        assert_eq!(snapshot.members, part.members);
        assert_eq!(snapshot.watermarks, part.watermarks);
        assert_eq!(snapshot.head, part.messages.len() as u64);
        assert_eq!(snapshot.recent, owned(&part.messages));
        assert_eq!(all(store, part.id).await, owned(&part.messages));
    }
    assert_eq!(index(store, "ann").await, [1, 2, 3].map(conversation));
}

/// A batch of nothing is no error.
pub async fn an_empty_batch_changes_nothing(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    commit(store, vec![with_messages(conversation(1), 1..=3)]).await;
    let before = load(store, conversation(1), 10).await;
    commit(store, Vec::new()).await;
    commit(
        store,
        vec![writes(conversation(1)), writes(conversation(2))],
    )
    .await;
    assert_eq!(load(store, conversation(1), 10).await, before);
    let other = store.load(conversation(2), 10).await.expect("readable");
    assert_eq!(other, None);
}

/// The engine repeats a commit whose outcome it does not know.
pub async fn a_repeated_commit_leaves_what_one_leaves(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let id = conversation(1);
    commit(store, vec![full(id, 3)]).await;
    let once = (
        load(store, id, 100).await,
        all(store, id).await,
        index(store, "ann").await,
        store.message_id_floor().await.expect("readable"),
    );
    for _ in 0..3 {
        commit(store, vec![full(id, 3)]).await;
    }
    let often = (
        load(store, id, 100).await,
        all(store, id).await,
        index(store, "ann").await,
        store.message_id_floor().await.expect("readable"),
    );
    assert_eq!(often, once);
    assert_eq!(once.2, [id]);
}

/// Conversation, member and watermark rows are put: the last one holds.
pub async fn a_later_row_replaces_an_earlier_one(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let id = conversation(1);
    commit(store, vec![full(id, 1)]).await;
    let later = ConversationWrites {
        row: Some(row(2)),
        members: vec![("bob".to_owned(), member(Some(1)))],
        watermarks: vec![("ann".to_owned(), watermark(2))],
        ..with_messages(id, [2])
    };
    commit(store, vec![later]).await;
    let snapshot = load(store, id, 10).await;
    assert_eq!(snapshot.row, row(2));
    assert_eq!(
        snapshot.members,
        [
            ("ann".to_owned(), member(None)),
            ("bob".to_owned(), member(Some(1))),
        ]
    );
    assert_eq!(snapshot.watermarks, [("ann".to_owned(), watermark(2))]);
}

/// A batch with messages alone leaves the conversation's other rows as they were.
pub async fn rows_that_a_batch_does_not_name_stay(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let id = conversation(1);
    commit(store, vec![full(id, 2)]).await;
    let before = load(store, id, 0).await;
    let more = ConversationWrites {
        messages: vec![Arc::new(message(id, 3))],
        ..writes(id)
    };
    commit(store, vec![more]).await;
    let after = load(store, id, 0).await;
    assert_eq!(after.head, 3);
    assert_eq!(after.row, before.row);
    assert_eq!(after.members, before.members);
    assert_eq!(after.watermarks, before.watermarks);
}

/// Every Unicode scalar value, nothing, the longest, line ends, NUL, a media reference.
pub async fn contents_of_all_kinds_come_back_as_they_were(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let id = conversation(1);
    let mut contents = vec![
        String::new(),
        "\0".to_owned(),
        "\r\n\t \u{feff}\u{202e}'\"\\%$;--".to_owned(),
        "👩‍👩‍👧‍👦 ته 漢 e\u{301}".to_owned(),
        "𐍈".repeat(CONTENT_CHARS),
        "x".repeat(64 * 1024),
    ];
    let scalars: Vec<char> = ('\0'..=char::MAX).collect();
    contents.extend(
        scalars
            .chunks(CONTENT_CHARS)
            .map(|part| part.iter().collect()),
    );
    let messages: Vec<Arc<Message>> = (1..)
        .zip(contents)
        .map(|(seq, content)| Arc::new(unusual(id, seq, content)))
        .collect();
    for part in messages.chunks(64) {
        let part = ConversationWrites {
            row: Some(row(1)),
            messages: part.to_vec(),
            ..writes(id)
        };
        commit(store, vec![part]).await;
    }
    let read = all(store, id).await;
    assert_eq!(read.len(), messages.len());
    for (read, written) in read.iter().zip(&messages) {
        // Not assert_eq: a difference would print the whole of Unicode.
        assert!(*read == **written, "message {} differs", written.seq);
    }
}

/// Also when a later commit carries lower ids, or none.
pub async fn the_message_id_floor_is_the_highest_id_ever_committed(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let floor = async || store.message_id_floor().await.expect("readable");
    assert_eq!(floor().await, 0);
    let with_ids = |id, from: u64, ids: &[u64]| {
        let messages = (from..).zip(ids).map(|(seq, &message_id)| {
            Arc::new(Message {
                message_id,
                ..message(id, seq)
            })
        });
        ConversationWrites {
            row: Some(row(1)),
            messages: messages.collect(),
            ..writes(id)
        }
    };
    let (a, b) = (conversation(1), conversation(2));
    commit(
        store,
        vec![with_ids(a, 1, &[50, 90]), with_ids(b, 1, &[70])],
    )
    .await;
    assert_eq!(floor().await, 90);
    commit(store, vec![with_ids(b, 2, &[80])]).await;
    assert_eq!(floor().await, 90, "lower ids do not lower it");
    commit(store, vec![full(conversation(3), 0)]).await;
    assert_eq!(
        floor().await,
        90,
        "a batch without messages does not change it"
    );
    let highest = i64::MAX.unsigned_abs();
    commit(store, vec![with_ids(a, 3, &[highest])]).await;
    assert_eq!(floor().await, highest);
}

/// A writer puts the same number into four rows of one conversation and the head of another,
/// while readers look: they never find two numbers, nor one that goes back.
pub async fn readers_see_whole_batches_only(factory: &dyn Factory) {
    const BATCHES: u64 = 400;
    const READERS: usize = 3;
    let store = factory.create().await;
    let (a, b) = (conversation(10), conversation(11));
    store.commit(&numbered(a, b, 1)).await.expect("committed");
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let store = Arc::clone(&store);
        readers.spawn(async move {
            let (mut last, mut looks) = (0, 0u64);
            while last < BATCHES {
                let number = whole(&*store, a).await;
                assert!(number >= last, "from {last} back to {number}");
                let other = load(&*store, b, 1).await.head;
                assert!(
                    other >= number,
                    "batch {number} has but {other} in its other half"
                );
                last = number;
                looks += 1;
                tokio::task::yield_now().await;
            }
            looks
        });
    }
    for number in 2..=BATCHES {
        let batch = numbered(a, b, number);
        store.commit(&batch).await.expect("committed");
    }
    while let Some(looks) = readers.join_next().await {
        assert!(looks.expect("no reader found a torn batch") > 0);
    }
}

/// The number that all parts of `id` agree upon.
async fn whole(store: &dyn MessageStore, id: ConversationId) -> u64 {
    let snapshot = load(store, id, 2).await;
    let number = snapshot.row.version;
    assert_eq!(snapshot.head, number, "message and conversation row");
    assert_eq!(snapshot.recent.last().map(|m| m.seq), Some(number));
    assert_eq!(snapshot.watermarks, [("ann".to_owned(), watermark(number))]);
    assert_eq!(snapshot.members, [("ann".to_owned(), member(Some(number)))]);
    number
}

fn numbered(a: ConversationId, b: ConversationId, number: u64) -> WriteBatch {
    let first = ConversationWrites {
        row: Some(row(number)),
        members: vec![("ann".to_owned(), member(Some(number)))],
        watermarks: vec![("ann".to_owned(), watermark(number))],
        ..with_messages(a, [number])
    };
    WriteBatch {
        conversations: vec![first, with_messages(b, [number])],
    }
}

/// A conversation with rows of every kind.
fn full(id: ConversationId, messages: u64) -> ConversationWrites {
    ConversationWrites {
        members: ["ann", "bob"]
            .map(|user| (user.to_owned(), member(None)))
            .into(),
        watermarks: vec![("ann".to_owned(), watermark(messages))],
        ..with_messages(id, 1..=messages)
    }
}

fn unusual(id: ConversationId, seq: u64, content: String) -> Message {
    let media = Media {
        media_id: format!("media {seq}"),
        url: "https://example.com/ä?b=c#d".to_owned(),
        content_type: "image/png".to_owned(),
        size: i64::MAX.unsigned_abs(),
        name: "naïve 🖼.png".to_owned(),
    };
    Message {
        content,
        content_type: String::new(),
        media: match seq % 3 {
            0 => None,
            1 => Some(media),
            _ => Some(Media::default()),
        },
        ts: if seq == 1 { 0 } else { i64::MAX.unsigned_abs() },
        ..message(id, seq)
    }
}
