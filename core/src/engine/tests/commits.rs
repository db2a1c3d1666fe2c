//! Group commit, unknown outcomes, a store that fails, conversations that cannot be read.

use trunkline_proto::client::ServerBody;
use trunkline_proto::ids::ConversationId;

use super::world::{World, unavailable};
use crate::engine::Request;
use crate::store::StoreError;

fn direct() -> ConversationId {
    ConversationId::direct("alice", "bob")
}

/// A world in which the direct conversation of alice (edge 1) and bob (edge 2) exists.
fn chat() -> (World, (u32, u64), (u32, u64)) {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    world.say(alice, "bob", "c0", "made");
    world.turn();
    world.take(alice);
    world.take(bob);
    world.commits.clear();
    (world, alice, bob)
}

#[test]
fn what_arrives_while_a_commit_is_under_way_is_the_next_commit() {
    let (mut world, alice, bob) = chat();
    world.hold_commits = true;
    for n in 1..=10 {
        world.say(alice, "bob", &format!("c{n}"), "x");
        world.turn();
    }
    assert_eq!(world.held(), 1, "at most one commit is under way");
    assert_eq!(world.take(alice), []);
    world.hold_commits = false;
    world.release();
    let sizes: Vec<usize> = world
        .commits
        .iter()
        .map(|(_, b)| b.conversations[0].messages.len())
        .collect();
    assert_eq!(sizes, [1, 9]);
    assert_eq!(world.seqs(bob), (2..=11).collect::<Vec<_>>());
}

#[test]
fn nothing_leaves_before_its_commit_returned() {
    let (mut world, alice, bob) = chat();
    world.hold_commits = true;
    world.say(alice, "bob", "c1", "secret");
    world.turn();
    let page = world.fetch(bob, direct(), (None, None, None)).unwrap();
    assert_eq!((page.head_seq, page.messages.len()), (1, 1));
    world.mark(bob, direct(), 2, "read");
    world.sync(bob, &[(direct(), 1)]);
    assert!(
        !world
            .log
            .iter()
            .any(|e| e.starts_with("ToEdge") && e.contains("secret"))
    );
    assert_eq!(world.take(alice).len(), 1, "the receipt for seq 1");
}

#[test]
fn an_unknown_outcome_is_said_once_and_the_commit_repeated_unchanged() {
    let (mut world, alice, bob) = chat();
    world.lost_answers = true;
    world
        .commit_ends
        .extend([Err(unavailable()), Err(unavailable()), Err(unavailable())]);
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let error = world.error(alice);
    assert_eq!(
        (error.code.as_str(), error.client_msg_id.as_str()),
        ("unavailable", "c1")
    );
    assert_eq!(world.settled[&1], 2);
    assert_eq!(world.take(bob), []);
    // A later send is a later batch.
    world.say(alice, "bob", "c2", "y");
    world.turn();
    for _ in 0..20 {
        world.pass(200);
    }
    assert_eq!(world.seqs(bob), [2, 3]);
    let acks = world.acks(alice);
    assert!(acks.iter().all(|a| a.client_msg_id != "c1"), "{acks:?}");
    let (first, repeats) = world.commits.split_first().unwrap();
    assert_eq!(&repeats[..3], vec![first.clone(); 3]);
    assert_eq!(world.engine.stats().commit_retries, 3);
    // The client that was told `unavailable` tries again, and learns how it went.
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let again = world.ack(alice);
    assert_eq!((again.seq, again.duplicate), (2, true));
}

#[test]
fn repeats_back_off_up_to_two_seconds() {
    let (mut world, alice, _) = chat();
    world.commit_ends.extend((0..8).map(|_| Err(unavailable())));
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let mut waits = Vec::new();
    while let Some(at) = world.engine.next_deadline() {
        waits.push((at - world.now.mono_ns) / 1_000_000);
        world.pass(waits[waits.len() - 1] - 1);
        let before = world.commits.len();
        world.pass(1);
        assert_eq!(world.commits.len(), before + 1, "neither early nor late");
    }
    assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
}

#[test]
fn those_behind_a_commit_that_keeps_failing_are_let_go_too() {
    let (mut world, alice, bob) = chat();
    world
        .commit_ends
        .extend([Err(unavailable()), Err(unavailable())]);
    world.say(alice, "bob", "c1", "x");
    world.turn();
    world.say(bob, "alice", "c2", "y");
    world.turn();
    assert_eq!(world.take(bob), []);
    world.pass(50);
    let error = world.error(bob);
    assert_eq!(
        (error.code.as_str(), error.client_msg_id.as_str()),
        ("unavailable", "c2")
    );
    world.pass(100);
    assert_eq!(world.stored(direct()).messages.len(), 3);
    assert_eq!(world.seqs(alice), [3]);
}

#[test]
fn a_repetition_during_an_outage_waits_for_the_outcome() {
    let (mut world, alice, _) = chat();
    world.commit_ends.push_back(Err(unavailable()));
    world.say(alice, "bob", "c1", "x");
    world.turn();
    world.take(alice);
    world.say(alice, "bob", "c1", "x");
    world.turn();
    assert_eq!(world.take(alice), []);
    world.pass(50);
    let ack = world.ack(alice);
    assert_eq!((ack.seq, ack.duplicate), (2, true));
    assert_eq!(world.stored(direct()).messages.len(), 2);
}

#[test]
fn a_store_that_failed_for_good_stops_the_engine() {
    for end in [
        StoreError::Failed("fsync".to_owned()),
        StoreError::Corrupt("row".to_owned()),
    ] {
        let (mut world, alice, bob) = chat();
        world.hold_commits = true;
        world.say(alice, "bob", "c1", "x");
        world.turn();
        world.say(bob, "alice", "c2", "y");
        world.turn();
        world.commit_ends.push_back(Err(end));
        world.hold_commits = false;
        world.release();
        assert_eq!(world.fatal.len(), 1);
        assert_eq!(world.error(alice).code, "unavailable");
        assert_eq!(world.error(bob).code, "unavailable");
        world.say(alice, "bob", "c3", "z");
        world.pass(10_000);
        assert_eq!(world.error(alice).code, "unavailable");
        assert_eq!(world.commits.len(), 1, "nothing is written any more");
        assert_eq!(world.engine.next_deadline(), None);
        assert_eq!(world.settled[&1] + world.settled[&2], 4);
    }
}

#[test]
fn operations_wait_for_their_conversation_and_keep_their_order() {
    let (mut world, _, _) = chat();
    world.restart(super::world::config());
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    world.hold_loads = true;
    world.say(alice, "bob", "c1", "x");
    world.say_in(bob, direct(), "c2", "y");
    world.mark(bob, direct(), 9, "read");
    world.turn();
    assert_eq!(world.held(), 1, "one load for all");
    assert_eq!(world.engine.stats().operations_waiting, 3);
    world.hold_loads = false;
    world.release();
    assert_eq!(world.acks(alice)[0].seq, 2);
    assert_eq!(world.acks(bob)[0].seq, 3);
    assert_eq!(world.engine.stats().operations_waiting, 0);
    assert_eq!(world.engine.stats().loads, 1);
}

#[test]
fn a_conversation_that_cannot_be_read_is_tried_again_by_the_next_operation() {
    let (mut world, _, _) = chat();
    world.restart(super::world::config());
    let alice = world.open(1, "alice");
    world.read_fails.push_back(unavailable());
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let error = world.error(alice);
    assert_eq!(
        (error.code.as_str(), error.client_msg_id.as_str()),
        ("unavailable", "c1")
    );
    assert_eq!(error.conversation_id, direct().to_string());
    assert_eq!(world.engine.stats().conversations, 0);
    world.say(alice, "bob", "c1", "x");
    world.turn();
    assert_eq!(world.ack(alice).seq, 2);
    // An unreadable row stops nothing but its conversation.
    world
        .read_fails
        .push_back(StoreError::Corrupt("row".to_owned()));
    world.say(alice, "carol", "c1", "x");
    world.turn();
    assert_eq!(world.error(alice).code, "unavailable");
    assert!(world.fatal.is_empty());
}

#[test]
fn a_change_with_an_unknown_outcome_blocks_its_conversation_only() {
    let (mut world, alice, bob) = chat();
    let group = world.group("alice", &["bob"]);
    world.take(alice);
    world.take(bob);
    world.commit_ends.push_back(Err(unavailable()));
    let title = Request::SetTitle {
        id: group,
        title: "new".to_owned(),
    };
    assert_eq!(world.refused("alice", title), "unavailable");
    world.say_in(bob, group, "c1", "x");
    world.turn();
    assert_eq!(world.take(bob), [], "waits for the title");
    world.pass(50);
    let got = world.bodies(bob);
    let [ServerBody::Conversation(changed), ServerBody::Ack(_)] = got.as_slice() else {
        panic!("{got:?}");
    };
    assert_eq!((changed.title.as_str(), changed.version), ("new", 2));
}
