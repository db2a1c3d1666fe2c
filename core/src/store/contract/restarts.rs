//! What is left after the store was closed and opened again.

use std::sync::Arc;

use trunkline_proto::client::Message;

use super::{
    Factory, all, commit, conversation, index, load, member, message, owned, row, watermark,
    with_messages,
};
use crate::store::{ConversationWrites, MessageStore};

const ROUNDS: u64 = 3;
const CONVERSATIONS: u128 = 40;
/// Messages that each round adds to each conversation.
const PER_ROUND: u64 = 25;

/// Several times over, with commits in between.
pub async fn what_was_committed_is_there_after_a_restart(factory: &dyn Factory) {
    let mut store = factory.create().await;
    for round in 1..=ROUNDS {
        let parts = (1..=CONVERSATIONS).map(|n| part(n, round));
        commit(&*store, parts.collect()).await;
        store = factory.reopen(store).await;
        for n in 1..=CONVERSATIONS {
            holds(&*store, n, round).await;
        }
        let everything: Vec<_> = (1..=CONVERSATIONS).map(conversation).collect();
        assert_eq!(index(&*store, "all").await, everything);
    }
}

/// Otherwise ids made after a restart could repeat those made before it.
pub async fn the_message_id_floor_survives_restarts(factory: &dyn Factory) {
    let mut store = factory.create().await;
    let id = conversation(1);
    for (seq, message_id) in (1..).zip([3, 2, 90, 7]) {
        let before = store.message_id_floor().await.expect("readable");
        let mut one = with_messages(id, []);
        one.messages.push(Arc::new(Message {
            message_id,
            ..message(id, seq)
        }));
        commit(&*store, vec![one]).await;
        store = factory.reopen(store).await;
        let floor = store.message_id_floor().await.expect("readable");
        assert_eq!(floor, before.max(message_id));
        assert_eq!(load(&*store, id, 1).await.head, seq);
    }
}

/// The first start may end before the first message.
pub async fn an_empty_store_is_empty_after_a_restart(factory: &dyn Factory) {
    let store = factory.create().await;
    let store = factory.reopen(store).await;
    assert_eq!(store.message_id_floor().await.expect("readable"), 0);
    let none = store.load(conversation(1), 1).await.expect("readable");
    assert_eq!(none, None);
    commit(&*store, vec![with_messages(conversation(1), 1..=2)]).await;
    assert_eq!(load(&*store, conversation(1), 1).await.head, 2);
}

/// What round `round` writes into conversation `n`.
fn part(n: u128, round: u64) -> ConversationWrites {
    let (first, last) = ((round - 1) * PER_ROUND + 1, round * PER_ROUND);
    ConversationWrites {
        row: Some(row(round)),
        members: vec![
            ("all".to_owned(), member(None)),
            (format!("round-{round}"), member(Some(last))),
        ],
        watermarks: vec![("all".to_owned(), watermark(last))],
        ..with_messages(conversation(n), first..=last)
    }
}

async fn holds(store: &dyn MessageStore, n: u128, round: u64) {
    let id = conversation(n);
    let written: Vec<_> = (1..=round)
        .flat_map(|round| part(n, round).messages)
        .collect();
    let written = owned(&written);
    let snapshot = load(store, id, u64::MAX).await;
    assert_eq!(snapshot.row, row(round));
    assert_eq!(snapshot.head, round * PER_ROUND);
    assert_eq!(snapshot.recent, written);
    assert_eq!(snapshot.watermarks, part(n, round).watermarks);
    let rounds = (1..=round).map(|round| part(n, round).members.swap_remove(1));
    let members: Vec<_> = std::iter::once(("all".to_owned(), member(None)))
        .chain(rounds)
        .collect();
    assert_eq!(snapshot.members, members);
    assert_eq!(all(store, id).await, written);
}
