//! Hints: what sessions are told that were announced again after a link broke.

use trunkline_proto::client::{Conversation, ServerBody};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::link::EdgeHello;

use super::world::{START_MS, Session, World, config, hello, unavailable};
use crate::engine::{EdgeKey, Input, Request};

fn hints(world: &mut World, session: Session) -> Vec<Conversation> {
    world
        .bodies(session)
        .into_iter()
        .map(|b| match b {
            ServerBody::Conversation(c) => c,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn reattach(world: &mut World, edge: u32, edge_id: &str, resume_from_ms: u64) {
    world.attach(
        edge,
        EdgeHello {
            resume_from_ms,
            ..hello(edge_id)
        },
    );
}

#[test]
fn what_was_committed_while_a_link_was_down_is_hinted_at() {
    for restarted in [false, true] {
        let mut world = World::new();
        let alice = world.open(1, "alice");
        let old = world.group("alice", &["bob"]);
        world.say_in(alice, old, "c1", "long ago");
        world.turn();
        world.pass(600_000);
        let broke_at = world.now.unix_ms;
        world.feed(Input::EdgeDetached { edge: EdgeKey(2) });
        world.pass(1_000);
        world.say(alice, "bob", "c2", "missed");
        world.say(alice, "bob", "c3", "missed too");
        world.turn();
        if restarted {
            world.restart(config());
        }
        reattach(&mut world, 5, "edge-2", broke_at);
        world.announce((5, 77), "bob", "phone", true);
        let told = hints(&mut world, (5, 77));
        assert_eq!(told.len(), 1, "the other one was quiet");
        let direct = ConversationId::direct("alice", "bob").to_string();
        assert_eq!(
            (told[0].conversation_id.as_str(), told[0].head_seq),
            (direct.as_str(), 2)
        );
        assert_eq!((told[0].kind.as_str(), told[0].version), ("direct", 1));
        assert!(told[0].members_added.is_empty() && told[0].members_removed.is_empty());
        assert_eq!(world.engine.stats().hints, 1);
    }
}

#[test]
fn the_minute_before_the_break_counts_too() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    for (later_ms, expected) in [(59_999, 1), (60_000, 0)] {
        let edge = 10 + expected as u32;
        reattach(&mut world, edge, "edge-2", START_MS + later_ms);
        world.announce((edge, 77), "bob", "phone", true);
        assert_eq!(hints(&mut world, (edge, 77)).len(), expected, "{later_ms}");
    }
}

#[test]
fn a_change_of_title_is_hinted_at_after_a_restart_too() {
    let mut world = World::new();
    let id = world.group("alice", &["bob"]);
    world.pass(600_000);
    let broke_at = world.now.unix_ms;
    world.feed(Input::EdgeDetached { edge: EdgeKey(2) });
    world.pass(1_000);
    let title = "New".to_owned();
    world
        .call("alice", Request::SetTitle { id, title })
        .unwrap();
    world.restart(config());
    reattach(&mut world, 5, "edge-2", broke_at);
    world.announce((5, 77), "bob", "phone", true);
    let told = hints(&mut world, (5, 77));
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].title.as_str(), told[0].version), ("New", 2));
}

#[test]
fn a_change_of_members_is_hinted_at_also_to_whom_it_removed() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let group = world.group("alice", &["bob", "carol"]);
    world.pass(600_000);
    let broke_at = world.now.unix_ms;
    world.feed(Input::EdgeDetached { edge: EdgeKey(2) });
    world.say_in(alice, group, "c1", "carol is still here");
    world.turn();
    let gone = Request::RemoveMember {
        id: group,
        user: "carol".to_owned(),
    };
    world.call("alice", gone).unwrap();
    world.say_in(alice, group, "c2", "carol has left");
    world.turn();
    reattach(&mut world, 5, "edge-2", broke_at);
    world.announce((5, 77), "bob", "phone", true);
    world.announce((5, 78), "carol", "phone", true);
    let told = hints(&mut world, (5, 77));
    assert_eq!((told[0].version, told[0].head_seq), (2, 2));
    // She may have missed what came before, and that she was removed.
    let told = hints(&mut world, (5, 78));
    assert_eq!((told[0].version, told[0].head_seq), (2, 1));
    assert_eq!(told[0].members_removed, ["carol"]);
}

#[test]
fn a_session_that_is_new_is_hinted_at_nothing() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let bob = world.open(2, "bob");
    assert_eq!(world.take(bob), []);
    assert_eq!(world.engine.stats().hints, 0);
}

#[test]
fn sessions_of_one_user_share_the_work() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    world.restart(config());
    reattach(&mut world, 5, "edge-2", 0);
    world.hold_loads = true;
    // Others first, so that bob has to queue.
    for n in 0..16 {
        world.announce((5, 100 + n), &format!("u{n}"), "phone", true);
    }
    assert_eq!(world.held(), 16);
    world.announce((5, 77), "bob", "phone", true);
    world.announce((5, 78), "bob", "laptop", true);
    world.announce((5, 79), "bob", "tablet", true);
    world.op(
        (5, 79),
        trunkline_proto::link::edge_op::Op::Closed(Default::default()),
    );
    assert_eq!(world.held(), 16, "so many users at once, no more");
    world.log.clear();
    world.hold_loads = false;
    world.release();
    let asked = world
        .log
        .iter()
        .filter(|e| e.contains("ReadIndex") && e.contains("bob"));
    assert_eq!(asked.count(), 1);
    assert_eq!(hints(&mut world, (5, 77)).len(), 1);
    assert_eq!(hints(&mut world, (5, 78)).len(), 1);
    assert_eq!(world.take((5, 79)), [], "gone meanwhile");
    world.pass(1);
    assert_eq!(
        world.engine.stats().users,
        18,
        "16 others, bob, alice, and nobody twice"
    )
}

#[test]
fn hints_that_fail_are_found_out_again_after_a_rest() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    world.restart(config());
    reattach(&mut world, 5, "edge-2", 0);
    for failing in ["index", "conversation"] {
        world.hold_loads = true;
        world.announce((5, 77), "bob", failing, true);
        if failing == "conversation" {
            world.release();
        }
        world.read_fails.push_back(unavailable());
        world.hold_loads = false;
        world.release();
        assert_eq!(world.take((5, 77)), []);
        let at = world.engine.next_deadline().expect("a rest");
        world.pass((at - world.now.mono_ns) / 1_000_000);
        assert_eq!(hints(&mut world, (5, 77)).len(), 1, "{failing}");
        assert_eq!(world.engine.next_deadline(), None);
        world.close((5, 77));
        world.restart(config());
        reattach(&mut world, 5, "edge-2", 0);
    }
}

/// Conversations of one user each, on a core that has just begun and holds none of them; the edge
/// that all are on breaks and is there again, `here` or not, after alice said something to the first.
fn upgraded(here: bool, cached_max: usize) -> (World, Vec<Vec<Conversation>>) {
    const USERS: u64 = 40;
    let mut world = World::new();
    for n in 0..USERS {
        world.group(&format!("user{n}"), &["alice"]);
    }
    let last = world.group("user0", &["alice"]);
    world.pass(600_000);
    world.restart(crate::engine::EngineConfig {
        conversations_cached_max: cached_max,
        ..config()
    });
    let alice = world.open(1, "alice");
    for n in 0..USERS {
        world.announce((2, 500 + n), &format!("user{n}"), "phone", false);
    }
    world.pass(600_000);
    let broke_at = world.now.unix_ms;
    world.feed(Input::EdgeDetached { edge: EdgeKey(2) });
    world.say_in(alice, last, "c1", "missed");
    world.turn();
    assert_eq!(world.engine.stats().loads, 1);
    let resuming = EdgeHello {
        resume_from_ms: broke_at,
        ..hello("edge-2")
    };
    world.attach_resuming(5, resuming, here);
    for n in 0..USERS {
        world.announce((5, 900 + n), &format!("user{n}"), "phone", true);
    }
    let told = (0..USERS).map(|n| hints(&mut world, (5, 900 + n)));
    let told = told.collect();
    (world, told)
}

#[test]
fn conversations_that_were_quiet_are_not_read_for_hints() {
    let (world, told) = upgraded(true, 1_000);
    let stats = world.engine.stats();
    assert_eq!((stats.loads, stats.hints_spared), (1, 40));
    assert_eq!(told[0].len(), 1, "what was missed is told");
    assert!(told[1..].iter().all(Vec::is_empty));
}

#[test]
fn conversations_are_read_for_hints_if_another_process_may_have_written_them() {
    let (world, told) = upgraded(false, 1_000);
    assert_eq!(world.engine.stats().hints_spared, 0);
    assert_eq!(world.engine.stats().loads, 41);
    assert_eq!(told[0].len(), 1);
}

#[test]
fn conversations_are_read_for_hints_if_one_that_was_not_quiet_left_memory() {
    let (world, told) = upgraded(true, 0);
    assert_eq!(world.engine.stats().hints_spared, 0);
    assert_eq!(told[0].len(), 1, "it is read again");
}
