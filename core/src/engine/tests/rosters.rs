//! Lists of recipients that edges keep for busy conversations.

use trunkline_proto::ids::ConversationId;
use trunkline_proto::link::core_op::Op;

use super::world::{Session, World, config, hello};
use crate::engine::{EngineConfig, Input, Request, RosterBounds};

const BOUNDS: RosterBounds = RosterBounds {
    recipients_min: 3,
    messages_min: 1,
    rosters_max: 2,
    handles_max: 100,
};

fn world() -> World {
    World::with(EngineConfig {
        rosters: BOUNDS,
        ..config()
    })
}

/// Ann and bob on edge 1, cy on edge 2, in a group of which the edges have a roster.
fn busy() -> (World, ConversationId, [Session; 3]) {
    let mut world = world();
    let id = world.group("ann", &["bob", "cy"]);
    let sessions = [
        world.open(1, "ann"),
        world.open(1, "bob"),
        world.open(2, "cy"),
    ];
    say(&mut world, sessions[0], id, "a");
    assert_eq!(world.roster_ops, [], "one message makes no roster");
    say(&mut world, sessions[0], id, "b");
    assert_eq!(world.engine.stats().rosters, 1);
    world.roster_ops.clear();
    (world, id, sessions)
}

fn say(world: &mut World, from: Session, id: ConversationId, cid: &str) {
    world.say_in(from, id, cid, "text");
    world.turn();
}

/// What was said of rosters since the last call, as `edge: what`.
fn said(world: &mut World) -> Vec<String> {
    let ops = std::mem::take(&mut world.roster_ops);
    let texts = ops.into_iter().map(|(edge, op)| match op {
        Op::Roster(r) => format!("{edge}: +{:?} -{:?}", r.joined, r.left),
        Op::DeliverToRoster(d) => format!("{edge}: to {} but {:?}", d.roster_id, d.except),
        Op::DropRoster(d) => format!("{edge}: drop {}", d.roster_id),
        other => format!("{edge}: {other:?}"),
    });
    texts.collect()
}

fn member(id: ConversationId, user: &str, is_in: bool) -> Request {
    let user = user.to_owned();
    if is_in {
        Request::PutMember {
            id,
            user,
            role: None,
        }
    } else {
        Request::RemoveMember { id, user }
    }
}

#[test]
fn a_busy_conversation_names_its_recipients_once() {
    let (mut world, id, [ann, bob, cy]) = busy();
    for session in [ann, bob, cy] {
        world.take(session);
    }
    say(&mut world, ann, id, "c");
    assert_eq!(
        said(&mut world),
        ["1: to 1 but Some(1)", "2: to 1 but None"]
    );
    assert_eq!((world.seqs(bob), world.seqs(cy)), (vec![3], vec![3]));
    assert_eq!(world.ack(ann).seq, 3);
    // Cy is the only one on edge 2.
    say(&mut world, cy, id, "d");
    assert_eq!(said(&mut world), ["1: to 1 but None"]);
    let stats = world.engine.stats();
    assert_eq!((stats.rosters, stats.roster_handles), (1, 3));
}

#[test]
fn sessions_and_members_that_come_and_go_are_told_before_the_next_message() {
    let (mut world, id, [ann, bob, cy]) = busy();
    world.take(bob);
    let other = world.open(2, "bob");
    world.close(cy);
    assert_eq!(
        said(&mut world),
        [""; 0],
        "nothing is said before it matters"
    );
    say(&mut world, ann, id, "c");
    let told = [
        "1: to 1 but Some(1)".to_owned(),
        format!("2: +[{}] -[{}]", other.1, cy.1),
        "2: to 1 but None".to_owned(),
    ];
    assert_eq!(said(&mut world), told);
    assert_eq!((world.seqs(bob), world.seqs(other)), (vec![3], vec![3]));
    let third = world.open(1, "cy");
    world.call("ann", member(id, "bob", false)).unwrap();
    for session in [bob, other] {
        world.take(session);
    }
    say(&mut world, ann, id, "d");
    // Nobody is left on edge 2 who could get it.
    let told = [
        format!("1: +[{}] -[{}]", third.1, bob.1),
        "1: to 1 but Some(1)".to_owned(),
    ];
    assert_eq!(said(&mut world), told);
    assert_eq!((world.seqs(bob), world.seqs(other)), (vec![], vec![]));
    for is_in in [true, false, true] {
        world.call("ann", member(id, "bob", is_in)).unwrap();
    }
    world.take(bob);
    say(&mut world, ann, id, "e");
    // On edge 2 bob was away and back before the edge heard of it.
    let told = [
        format!("1: +[{}] -[]", bob.1),
        "1: to 1 but Some(1)".to_owned(),
        "2: to 1 but None".to_owned(),
    ];
    assert_eq!(said(&mut world), told);
    assert_eq!(world.seqs(bob), [5]);
}

#[test]
fn a_session_that_opens_before_the_commit_returns_gets_the_message() {
    let (mut world, id, [ann, ..]) = busy();
    world.hold_commits = true;
    say(&mut world, ann, id, "c");
    let late = world.open(2, "cy");
    world.hold_commits = false;
    world.release();
    assert_eq!(world.seqs(late), [3]);
}

#[test]
fn a_new_attachment_has_none_of_the_rosters() {
    let (mut world, id, [ann, bob, cy]) = busy();
    world.attach(1, hello("edge-1"));
    for (session, user, device) in [(ann, "ann", "d1"), (bob, "bob", "d2")] {
        world.announce(session, user, device, true);
    }
    world.take(bob);
    say(&mut world, cy, id, "c");
    // As a whole: the edge begins with version 1 again, which the world looks after.
    assert_eq!(said(&mut world), ["1: +[1, 2] -[]", "1: to 1 but None"]);
    assert_eq!(world.seqs(bob), [3]);
    let edge = crate::engine::EdgeKey(1);
    world.feed(Input::EdgeDetached { edge });
    assert_eq!(world.engine.stats().roster_handles, 1);
}

#[test]
fn the_least_recently_used_roster_makes_room() {
    let (mut world, first, [ann, bob, cy]) = busy();
    let mut groups = vec![first];
    for _ in 0..2 {
        let id = world.group("ann", &["bob", "cy"]);
        say(&mut world, ann, id, &format!("{id} 1"));
        say(&mut world, ann, first, &format!("{id} 2"));
        groups.push(id);
    }
    say(&mut world, ann, groups[1], "x");
    say(&mut world, ann, first, "y");
    said(&mut world);
    say(&mut world, bob, groups[2], "z");
    let said = said(&mut world);
    assert_eq!(
        said[..2],
        ["1: drop 2", "2: drop 2"],
        "before the new one comes"
    );
    assert!(said[2].starts_with("1: +["), "{said:?}");
    let stats = world.engine.stats();
    assert_eq!((stats.rosters, stats.roster_evictions), (2, 1));
    // Nobody misses anything for it.
    world.take(cy);
    say(&mut world, ann, groups[1], "w");
    assert_eq!(world.seqs(cy), [3]);
}

#[test]
fn a_roster_that_changes_all_the_time_or_loses_its_conversation_is_dropped() {
    let (mut world, id, [ann, bob, _]) = busy();
    for _ in 0..9 {
        let session = world.open(1, "bob");
        world.close(session);
    }
    assert_eq!(said(&mut world), [""; 0], "came and went unheard of");
    for n in 0..17 {
        let (user, edge) = (format!("user{n}"), 1);
        world.open(edge, &user);
        world.call("ann", member(id, &user, true)).unwrap();
    }
    assert_eq!(world.engine.stats().rosters, 0);
    assert_eq!(said(&mut world), ["1: drop 1", "2: drop 1"]);
    world.take(bob);
    say(&mut world, ann, id, "c");
    say(&mut world, ann, id, "d");
    assert_eq!(world.seqs(bob), [3, 4]);
    assert_eq!(world.engine.stats().rosters, 1, "it has been calm since");
    said(&mut world);
    world
        .call("ann", Request::DeleteConversation { id })
        .unwrap();
    assert_eq!(said(&mut world), ["1: drop 2", "2: drop 2"]);
    assert_eq!(world.engine.stats().roster_handles, 0);
}
