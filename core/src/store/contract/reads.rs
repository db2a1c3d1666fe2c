//! What reads return: bounds, order, and nothing of a neighbour.

use super::{
    Factory, all, commit, conversation, index, load, member, message, owned, read, row, watermark,
    with_messages, writes,
};
use crate::store::{ConversationWrites, MessageStore, Order};

const ORDERS: [Order; 2] = [Order::OldestFirst, Order::NewestFirst];

/// No conversation, no message, no user: no error either.
pub async fn what_does_not_exist_is_read_as_nothing(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    commit(store, vec![with_messages(conversation(1), 1..=3)]).await;
    let missing = store.load(conversation(2), 10).await.expect("readable");
    assert_eq!(missing, None);
    for order in ORDERS {
        let none = read(store, conversation(2), 0, u64::MAX, 10, order).await;
        assert_eq!(none, []);
    }
    assert_eq!(index(store, "nobody").await, []);
}

/// Every mix of bounds, limit and order, against the definition of [`crate::store::ReadRange`].
pub async fn ranges_hold_their_bounds_and_limit_in_both_orders(factory: &dyn Factory) {
    const HEAD: u64 = 20;
    let store = factory.create().await;
    let store = &*store;
    let id = conversation(1);
    let written = with_messages(id, 1..=HEAD);
    let messages = owned(&written.messages);
    commit(store, vec![written]).await;
    for order in ORDERS {
        for after in [0, 1, 2, 7, HEAD - 1, HEAD, HEAD + 1, u64::MAX - 1, u64::MAX] {
            for before in [
                0,
                1,
                2,
                3,
                8,
                HEAD,
                HEAD + 1,
                HEAD + 2,
                u64::MAX - 1,
                u64::MAX,
            ] {
                for limit in [0, 1, 3, 20, 21, u32::MAX] {
                    let inside = messages
                        .iter()
                        .filter(|m| after < m.seq && m.seq < before)
                        .cloned();
                    let mut expected: Vec<_> = inside.collect();
                    let excess = expected.len().saturating_sub(limit as usize);
                    match order {
                        Order::OldestFirst => expected.truncate(expected.len() - excess),
                        Order::NewestFirst => drop(expected.drain(..excess)),
                    }
                    let found = read(store, id, after, before, limit, order).await;
                    assert_eq!(
                        found, expected,
                        "{after} < seq < {before}, {limit}, {order:?}"
                    );
                }
            }
        }
    }
}

/// Members in bytewise order, the newest messages ascending, whatever the order of the writes.
pub async fn a_conversation_is_loaded_with_head_members_watermarks_and_newest_messages(
    factory: &dyn Factory,
) {
    let store = factory.create().await;
    let store = &*store;
    let id = conversation(1);
    let users = ["b", "a:b", "Z", "ab", "-", "a", "_", "a@b", "9", "a.b"];
    let mut sorted = users;
    sorted.sort_unstable_by_key(|user| user.as_bytes());
    let created = ConversationWrites {
        row: Some(row(7)),
        members: users.map(|user| (user.to_owned(), member(None))).into(),
        ..writes(id)
    };
    commit(store, vec![created]).await;
    let empty = load(store, id, 10).await;
    assert_eq!((empty.head, empty.recent), (0, vec![]));

    let marks = users.map(|user| (user.to_owned(), watermark(user.len() as u64)));
    let more = ConversationWrites {
        row: None,
        watermarks: marks.into(),
        ..with_messages(id, 1..=9)
    };
    commit(store, vec![more]).await;
    for recent_max in [0, 1, 4, 9, 10, u64::MAX] {
        let snapshot = load(store, id, recent_max).await;
        assert_eq!(snapshot.row, row(7));
        assert_eq!(snapshot.head, 9, "also when no message is asked for");
        let first = 10 - recent_max.min(9);
        let newest: Vec<_> = (first..=9).map(|seq| message(id, seq)).collect();
        assert_eq!(snapshot.recent, newest, "the newest {recent_max}");
        let names = |rows: Vec<&String>| rows.into_iter().cloned().collect::<Vec<_>>();
        let members = names(snapshot.members.iter().map(|(user, _)| user).collect());
        assert_eq!(members, sorted);
        let marked = names(snapshot.watermarks.iter().map(|(user, _)| user).collect());
        assert_eq!(marked, sorted);
        for (user, mark) in &snapshot.watermarks {
            assert_eq!(*mark, watermark(user.len() as u64), "of {user}");
        }
    }
}

/// Who has left a conversation may still read what was said before.
pub async fn the_user_index_holds_former_members(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let (a, b) = (conversation(1), conversation(2));
    let with_ann = |id, until| ConversationWrites {
        row: Some(row(1)),
        members: vec![("ann".to_owned(), member(until))],
        ..writes(id)
    };
    commit(store, vec![with_ann(a, None), with_ann(b, None)]).await;
    assert_eq!(index(store, "ann").await, [a, b]);
    commit(store, vec![with_ann(a, Some(4))]).await;
    assert_eq!(index(store, "ann").await, [a, b]);
    commit(store, vec![with_ann(a, None)]).await;
    assert_eq!(index(store, "ann").await, [a, b], "no entry twice");
}

/// The index follows the member rows and nothing else.
pub async fn a_watermark_alone_does_not_enter_the_user_index(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let marked = ConversationWrites {
        watermarks: vec![("ann".to_owned(), watermark(1))],
        ..with_messages(conversation(1), 1..=1)
    };
    commit(store, vec![marked]).await;
    assert_eq!(index(store, "ann").await, []);
    assert_eq!(
        index(store, "user-1").await,
        [],
        "nor does a message's sender"
    );
}

/// Ids that follow one another, that begin alike, and those at both ends.
pub async fn neighbouring_conversations_are_kept_apart(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let numbers = [
        0,
        1,
        2,
        0xff,
        0x100,
        0xffff_ffff,
        0x1_0000_0000,
        u128::MAX / 2,
        u128::MAX << 64,
        u128::MAX - 1,
        u128::MAX,
    ];
    let of = |n: u128, count: u64| {
        let user = format!("only-{n}");
        ConversationWrites {
            members: vec![
                (user.clone(), member(None)),
                ("all".to_owned(), member(None)),
            ],
            watermarks: vec![(user, watermark(count))],
            ..with_messages(conversation(n), 1..=count)
        }
    };
    let parts: Vec<_> = (1..).zip(numbers).map(|(count, n)| of(n, count)).collect();
    commit(store, parts.clone()).await;
    for (n, part) in numbers.into_iter().zip(&parts) {
        let snapshot = load(store, part.id, u64::MAX).await;
        assert_eq!(snapshot.head, part.messages.len() as u64);
        assert_eq!(snapshot.recent, owned(&part.messages));
        assert_eq!(all(store, part.id).await, owned(&part.messages));
        let mut members = part.members.clone();
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        assert_eq!(snapshot.members, members);
        assert_eq!(snapshot.watermarks, part.watermarks);
        assert_eq!(index(store, &format!("only-{n}")).await, [part.id]);
    }
    assert_eq!(index(store, "all").await, numbers.map(conversation));
}

/// `a`, `ab`, `a:b` and the like, in the index and among the members.
pub async fn users_whose_ids_begin_one_another_are_kept_apart(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = &*store;
    let longest = "a".repeat(64);
    let users = ["a", "ab", "a:b", "a-", "a.", "a@", "aa", "A", &longest];
    let parts = (1..).zip(users).map(|(n, user)| ConversationWrites {
        row: Some(row(1)),
        members: vec![(user.to_owned(), member(Some(n)))],
        ..writes(conversation(u128::from(n)))
    });
    commit(store, parts.collect()).await;
    for (n, user) in (1..).zip(users) {
        let id = conversation(u128::from(n));
        assert_eq!(index(store, user).await, [id], "of {user}");
        let members = load(store, id, 0).await.members;
        assert_eq!(members, [(user.to_owned(), member(Some(n)))]);
    }
    assert_eq!(index(store, "").await, []);
    assert_eq!(index(store, "a:").await, []);
}

/// Catching up and scrolling back, page by page.
pub async fn a_long_history_is_walked_without_hole_or_repeat(factory: &dyn Factory) {
    const HEAD: u64 = 25_000;
    const BATCH: u64 = 500;
    let store = factory.create().await;
    let store = &*store;
    let id = conversation(5);
    // Neighbours, so that running over an end would be seen.
    let around = [4, 6].map(|n| with_messages(conversation(n), 1..=300));
    commit(store, around.into()).await;
    for first in (1..=HEAD).step_by(BATCH as usize) {
        let last = HEAD.min(first + BATCH - 1);
        commit(store, vec![with_messages(id, first..=last)]).await;
    }
    for page in [50, 200] {
        forwards(store, page, HEAD).await;
        backwards(store, page, HEAD).await;
    }
    assert_eq!(load(store, id, 50).await.head, HEAD);
}

async fn forwards(store: &dyn MessageStore, page: u32, head: u64) {
    let id = conversation(5);
    let mut after = 0;
    while after < head {
        let found = read(store, id, after, u64::MAX, page, Order::OldestFirst).await;
        let last = head.min(after + u64::from(page));
        let expected: Vec<_> = (after + 1..=last).map(|seq| message(id, seq)).collect();
        assert_eq!(found, expected, "the page of {page} after {after}");
        after = last;
    }
    let beyond = read(store, id, head, u64::MAX, page, Order::OldestFirst).await;
    assert_eq!(beyond, []);
}

async fn backwards(store: &dyn MessageStore, page: u32, head: u64) {
    let id = conversation(5);
    let mut before = u64::MAX;
    while before > 1 {
        let found = read(store, id, 0, before, page, Order::NewestFirst).await;
        let last = head.min(before - 1);
        let first = last.saturating_sub(u64::from(page)) + 1;
        let expected: Vec<_> = (first..=last).map(|seq| message(id, seq)).collect();
        assert_eq!(found, expected, "the page of {page} before {before}");
        before = first;
    }
    let beyond = read(store, id, 0, 1, page, Order::NewestFirst).await;
    assert_eq!(beyond, []);
}
