//! Watermarks: how they rise, whom they are told, when they are written.

use trunkline_proto::client::{Receipt, ServerBody};
use trunkline_proto::ids::ConversationId;

use super::world::{Session, World, config};
use crate::engine::{Request, Response};

fn direct() -> ConversationId {
    ConversationId::direct("alice", "bob")
}

/// alice has sent bob three messages.
fn three() -> (World, Session, Session) {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    for n in 1..=3 {
        world.say(alice, "bob", &format!("c{n}"), "x");
    }
    world.turn();
    world.take(alice);
    world.take(bob);
    (world, alice, bob)
}

fn receipts(world: &mut World, session: Session) -> Vec<(String, u64, String)> {
    world
        .bodies(session)
        .into_iter()
        .map(|b| match b {
            ServerBody::Receipt(Receipt {
                user_id,
                seq,
                status,
                ..
            }) => (user_id, seq, status),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn said(user: &str, seq: u64, status: &str) -> (String, u64, String) {
    (user.to_owned(), seq, status.to_owned())
}

#[test]
fn delivered_then_read_reach_the_sender_in_that_order() {
    let (mut world, alice, bob) = three();
    world.mark(bob, direct(), 2, "delivered");
    world.mark(bob, direct(), 2, "read");
    assert_eq!(
        receipts(&mut world, alice),
        [said("bob", 2, "delivered"), said("bob", 2, "read")]
    );
    assert_eq!(world.take(bob), [], "the reporting session is told nothing");
    assert_eq!(world.settled[&2], 2);
}

#[test]
fn a_repeated_or_older_watermark_does_nothing() {
    let (mut world, alice, bob) = three();
    world.mark(bob, direct(), 2, "read");
    world.take(alice);
    world.pass(1_000);
    let commits = world.commits.len();
    for (seq, status) in [(2, "read"), (1, "read"), (2, "delivered"), (0, "read")] {
        world.mark(bob, direct(), seq, status);
    }
    world.pass(1_000);
    assert_eq!((world.take(alice), world.take(bob)), (vec![], vec![]));
    assert_eq!(world.commits.len(), commits, "nothing is written");
    assert_eq!(world.engine.stats().receipts, 1);
}

#[test]
fn read_without_delivered_sets_both_and_says_only_read() {
    let (mut world, alice, bob) = three();
    world.mark(bob, direct(), 3, "read");
    assert_eq!(receipts(&mut world, alice), [said("bob", 3, "read")]);
    let asked = Request::Receipts {
        id: direct(),
        seq: None,
    };
    let Ok(Response::Receipts(view)) = world.call("alice", asked) else {
        panic!("no view");
    };
    assert_eq!(
        (view.seq, view.watermarks),
        (3, vec![("bob".to_owned(), 3, 3)])
    );
}

#[test]
fn marks_are_clamped_to_the_head() {
    let (mut world, alice, bob) = three();
    world.mark(bob, direct(), u64::MAX, "delivered");
    assert_eq!(receipts(&mut world, alice), [said("bob", 3, "delivered")]);
}

#[test]
fn the_readers_other_sessions_are_told_and_rest_tells_all_of_them() {
    let (mut world, _, bob) = three();
    let laptop = world.open(1, "bob");
    world.mark(bob, direct(), 1, "read");
    assert_eq!(receipts(&mut world, laptop), [said("bob", 1, "read")]);
    assert_eq!(world.take(bob), []);
    let mark = Request::MarkRead {
        id: direct(),
        last_read_seq: 2,
    };
    assert_eq!(world.call("bob", mark.clone()), Ok(Response::Done));
    assert_eq!(receipts(&mut world, laptop), [said("bob", 2, "read")]);
    assert_eq!(receipts(&mut world, bob), [said("bob", 2, "read")]);
    assert_eq!(world.call("bob", mark), Ok(Response::Done));
    assert_eq!(world.take(bob), []);
}

#[test]
fn in_a_group_only_senders_in_the_covered_range_are_told() {
    let mut world = World::new();
    let sessions: Vec<Session> = ["a", "b", "c", "d"]
        .iter()
        .map(|u| world.open(1, u))
        .collect();
    let group = world.group("a", &["b", "c", "d"]);
    for (n, sender) in [0, 1, 1, 2].into_iter().enumerate() {
        world.say_in(sessions[sender], group, &format!("c{n}"), "x");
    }
    world.turn();
    for session in &sessions {
        world.take(*session);
    }
    world.mark(sessions[3], group, 1, "read");
    world.mark(sessions[3], group, 3, "read");
    assert_eq!(receipts(&mut world, sessions[0]), [said("d", 1, "read")]);
    assert_eq!(receipts(&mut world, sessions[1]), [said("d", 3, "read")]);
    assert_eq!(receipts(&mut world, sessions[2]), []);
    // A sender who has left is told nothing.
    let gone = Request::RemoveMember {
        id: group,
        user: "c".to_owned(),
    };
    world.call("a", gone).unwrap();
    world.take(sessions[2]);
    world.mark(sessions[3], group, 4, "read");
    assert_eq!(world.take(sessions[2]), []);
}

#[test]
fn a_late_joiner_cannot_mark_what_was_before() {
    let (mut world, alice, _) = three();
    let group = world.group("alice", &[]);
    world.say_in(alice, group, "c1", "x");
    world.turn();
    let put = Request::PutMember {
        id: group,
        user: "bob".to_owned(),
        role: None,
    };
    world.call("alice", put).unwrap();
    world.take(alice);
    let bob = world.open(1, "bob");
    world.mark(bob, group, 1, "read");
    assert_eq!(world.take(alice), []);
}

#[test]
fn what_is_no_receipt_is_refused() {
    let (mut world, _, bob) = three();
    let eve = world.open(1, "eve");
    world.mark(bob, direct(), 1, "seen");
    assert_eq!(world.error(bob).code, "bad_request");
    world.mark(eve, direct(), 1, "read");
    assert_eq!(world.error(eve).code, "not_a_member");
    world.mark(bob, ConversationId::direct("x", "y"), 1, "read");
    assert_eq!(world.error(bob).code, "not_found");
}

#[test]
fn watermarks_ride_along_with_the_next_commit() {
    let (mut world, alice, bob) = three();
    world.mark(bob, direct(), 2, "read");
    let commits = world.commits.len();
    world.say(alice, "bob", "c9", "x");
    world.turn();
    assert_eq!(world.commits.len(), commits + 1);
    let row = &world.stored(direct()).watermarks["bob"];
    assert_eq!((row.delivered_seq, row.read_seq), (2, 2));
    assert_eq!(world.engine.next_deadline(), None);
}

#[test]
fn watermarks_alone_are_written_after_a_while_in_one_batch() {
    let (mut world, alice, bob) = three();
    let commits = world.commits.len();
    for seq in 1..=3 {
        world.mark(bob, direct(), seq, "delivered");
    }
    world.mark(alice, direct(), 3, "read");
    let flush = world.engine.next_deadline().unwrap() - world.now.mono_ns;
    assert_eq!(flush, 200_000_000);
    world.pass(199);
    assert_eq!(world.commits.len(), commits);
    world.pass(1);
    assert_eq!(world.commits.len(), commits + 1);
    let rows = &world.commits[commits].1.conversations[0].watermarks;
    assert_eq!(rows.len(), 2, "one row for each member, not for each mark");
    assert_eq!(world.engine.next_deadline(), None);
    world.restart(config());
    let bob = world.open(1, "bob");
    world.mark(bob, direct(), 3, "delivered");
    assert_eq!(
        world.engine.stats().receipts,
        0,
        "known since before the restart"
    );
}

#[test]
fn a_mark_made_while_its_row_is_being_written_is_written_too() {
    let (mut world, _, bob) = three();
    world.hold_commits = true;
    world.mark(bob, direct(), 1, "delivered");
    world.pass(200);
    assert_eq!(world.held(), 1);
    world.mark(bob, direct(), 3, "delivered");
    world.hold_commits = false;
    world.release();
    world.pass(200);
    assert_eq!(world.stored(direct()).watermarks["bob"].delivered_seq, 3);
}
