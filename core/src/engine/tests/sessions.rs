//! Registration, replacement, limits, credit.

use trunkline_proto::client::{ClientBody, Ping, ServerBody, Typing, Watch};
use trunkline_proto::link::{EdgeHello, VERSION};

use super::world::{Got, World, config, hello};
use crate::engine::{EdgeKey, EngineConfig, Input};

fn closed_with(got: &[Got]) -> u32 {
    match got {
        [Got::Closed(error)] => error.close_code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_is_registered_and_counted() {
    let mut world = World::new();
    world.open(1, "alice");
    world.open(2, "alice");
    let stats = world.engine.stats();
    assert_eq!((stats.edges, stats.sessions, stats.users), (2, 2, 1));
    assert!(world.settled.is_empty(), "opening costs no credit");
}

#[test]
fn a_newer_session_of_the_same_device_replaces_the_older_on_another_edge() {
    let mut world = World::new();
    world.announce((1, 91), "alice", "phone", false);
    assert_eq!(world.take((1, 91)), [Got::Registered]);
    world.announce((2, 92), "alice", "phone", false);
    assert_eq!(closed_with(&world.take((1, 91))), 4409);
    assert_eq!(world.take((2, 92)), [Got::Registered]);
    let bob = world.open(1, "bob");
    world.say(bob, "alice", "c1", "hi");
    world.turn();
    assert_eq!(world.take((1, 91)), []);
    assert_eq!(world.seqs((2, 92)), [1]);
}

#[test]
fn one_device_id_of_two_users_is_two_devices() {
    let mut world = World::new();
    world.announce((1, 91), "alice", "phone", false);
    world.announce((1, 92), "bob", "phone", false);
    assert_eq!(world.take((1, 91)), [Got::Registered]);
    assert_eq!(world.engine.stats().sessions, 2);
}

#[test]
fn sessions_beyond_the_limit_of_their_edge_are_closed() {
    let mut world = World::new();
    let limited = EdgeHello {
        sessions_per_user_max: 2,
        ..hello("edge-3")
    };
    world.attach(3, limited);
    world.open(3, "alice");
    world.open(1, "alice");
    world.announce((3, 90), "alice", "third", false);
    assert_eq!(closed_with(&world.take((3, 90))), 4429);
    assert_eq!(world.engine.stats().sessions, 2);
    // A device that is there already needs no further place.
    world.announce((3, 91), "alice", "d2", false);
    assert_eq!(world.take((3, 91)), [Got::Registered]);
}

#[test]
fn a_detached_edge_takes_its_sessions_with_it() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    world.feed(Input::EdgeDetached { edge: EdgeKey(1) });
    world.say(bob, "alice", "c1", "hi");
    world.turn();
    assert_eq!(world.take(alice), []);
    assert_eq!(world.engine.stats().sessions, 1);
    // Nothing of the dead stream is listened to.
    world.say(alice, "bob", "c2", "ghost");
    world.turn();
    assert!(world.engine.stats().stale > 0);
    assert_eq!(world.engine.stats().sends, 1);
}

#[test]
fn a_new_stream_of_an_edge_ends_its_older_one() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.attach(7, hello("edge-1"));
    assert_eq!(world.engine.stats().sessions, 0);
    assert_eq!(world.engine.stats().edges, 2);
    world.feed(Input::EdgeDetached { edge: EdgeKey(1) });
    assert_eq!(world.engine.stats().edges, 2);
    world.announce((7, alice.1), "alice", "d1", true);
    assert_eq!(world.take((7, alice.1)), [], "hints, not `registered`");
    assert_eq!(world.engine.stats().sessions, 1);
}

#[test]
fn what_is_announced_again_gives_way_to_what_was_opened_elsewhere_meanwhile() {
    let mut world = World::new();
    world.announce((1, 91), "alice", "phone", false);
    world.take((1, 91));
    world.feed(Input::EdgeDetached { edge: EdgeKey(1) });
    world.pass(1_000);
    world.announce((2, 92), "alice", "phone", false);
    world.take((2, 92));
    world.pass(1_000);
    world.attach(3, hello("edge-1"));
    world.announce_aged((3, 91), "alice", "phone", true, 2_000);
    assert_eq!(closed_with(&world.take((3, 91))), 4409);
    assert_eq!(world.take((2, 92)), []);
    assert_eq!(world.engine.stats().sessions, 1);
}

#[test]
fn of_two_that_are_announced_again_the_younger_stays_in_whatever_order_they_come() {
    for (first_age_ms, second_age_ms, loser) in [(9_000, 5_000, 92), (5_000, 9_000, 93)] {
        for edge in [2, 1] {
            let mut world = World::new();
            world.announce_aged((1, 92), "alice", "phone", true, first_age_ms);
            world.announce_aged((edge, 93), "alice", "phone", true, second_age_ms);
            let closed = if loser == 92 { (1, 92) } else { (edge, 93) };
            assert_eq!(closed_with(&world.take(closed)), 4409);
            assert_eq!(world.engine.stats().sessions, 1);
        }
    }
}

#[test]
fn what_is_left_over_at_an_edge_does_not_replace_what_was_opened_there_since() {
    let mut world = World::new();
    // Both waited for the link; the slots of the table come in any order.
    world.announce_aged((1, 92), "alice", "phone", false, 300);
    assert_eq!(world.take((1, 92)), [Got::Registered]);
    world.announce_aged((1, 91), "alice", "phone", true, 60_000);
    assert_eq!(closed_with(&world.take((1, 91))), 4409);
    assert_eq!(world.take((1, 92)), []);
}

#[test]
fn an_edge_of_another_version_is_cut() {
    let mut world = World::new();
    let future = EdgeHello {
        version: VERSION + 1,
        ..hello("edge-9")
    };
    world.attach(9, future);
    assert_eq!(world.cut, [9]);
    assert_eq!(world.engine.stats().edges, 2);
}

#[test]
fn a_frame_of_an_unknown_session_is_answered_unavailable_and_settled() {
    let mut world = World::new();
    world.say((1, 555), "bob", "c1", "hi");
    world.turn();
    let error = world.error((1, 555));
    assert_eq!(
        (error.code.as_str(), error.client_msg_id.as_str()),
        ("unavailable", "c1")
    );
    assert_eq!(world.settled[&1], 1);
}

#[test]
fn frames_without_a_feature_behind_them_are_answered_with_their_id() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let typing = Typing {
        conversation_id: "x".to_owned(),
        active: true,
        user_id: String::new(),
    };
    let watch = Watch { users: Vec::new() };
    let cases = [
        (ClientBody::Typing(typing), "not_implemented"),
        (ClientBody::Watch(watch), "not_implemented"),
        (ClientBody::Ping(Ping::default()), "bad_request"),
    ];
    for (index, (body, code)) in cases.into_iter().enumerate() {
        world.frame(alice, "q7", body);
        world.turn();
        let got = world.take(alice);
        let [Got::Frame(frame)] = got.as_slice() else {
            panic!("{got:?}");
        };
        let Some(ServerBody::Error(error)) = &frame.frame else {
            panic!("{frame:?}");
        };
        assert_eq!((frame.id.as_str(), error.code.as_str()), ("q7", code));
        assert_eq!(world.settled[&1], index as u32 + 1);
    }
}

#[test]
fn each_frame_is_settled_once_whatever_becomes_of_it() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    world.hold_commits = true;
    world.say(alice, "bob", "c1", "one");
    world.say(alice, "bob", "c1", "one");
    world.say(alice, "bob", "c2", "");
    world.turn();
    assert_eq!(world.settled.get(&1), Some(&1), "only what was answered");
    world.hold_commits = false;
    world.release();
    assert_eq!(world.settled[&1], 3);
    let id = trunkline_proto::ids::ConversationId::direct("alice", "bob");
    world.mark(bob, id, 1, "read");
    world.mark(bob, id, 1, "read");
    world.mark(bob, id, 1, "nonsense");
    world.sync(bob, &[]);
    assert_eq!(world.settled[&2], 4);
}

#[test]
fn users_are_forgotten_when_nobody_holds_them() {
    let mut world = World::with(EngineConfig {
        conversations_cached_max: 0,
        ..config()
    });
    for n in 0..50 {
        let session = world.open(1, &format!("user-{n}"));
        world.say(session, "bob", "c1", "hi");
        world.turn();
        world.close(session);
        world.turn();
    }
    let stats = world.engine.stats();
    assert_eq!(
        (stats.sessions, stats.users, stats.conversations),
        (0, 0, 0)
    );
}
