//! Eviction: what goes, what stays, and that nothing is lost by it.

use trunkline_proto::client::{Error, ServerBody};
use trunkline_proto::ids::ConversationId;

use super::world::{Got, Session, World, config};
use crate::engine::{EngineConfig, Request};

fn small(conversations_cached_max: usize) -> World {
    World::with(EngineConfig {
        conversations_cached_max,
        ..config()
    })
}

#[test]
fn the_least_recently_used_conversation_goes_first() {
    let mut world = small(3);
    let alice = world.open(1, "alice");
    for to in ["a", "b", "c", "a", "d"] {
        world.say(alice, to, &format!("to {to}"), "x");
        world.turn();
    }
    let stats = world.engine.stats();
    assert_eq!((stats.conversations, stats.evictions), (3, 1));
    let loads = stats.loads;
    for to in ["a", "c", "d"] {
        world.say(alice, to, "again", "x");
        world.turn();
    }
    assert_eq!(world.engine.stats().loads, loads, "these are in memory");
    world.say(alice, "b", "to b", "x");
    world.turn();
    assert_eq!(world.engine.stats().loads, loads + 1, "this one has gone");
    assert!(
        world.acks(alice).last().unwrap().duplicate,
        "and is as it was"
    );
}

#[test]
fn what_has_something_under_way_stays() {
    let mut world = small(1);
    let alice = world.open(1, "alice");
    world.hold_commits = true;
    for to in ["a", "b", "c"] {
        world.say(alice, to, "c1", "x");
    }
    world.turn();
    assert_eq!(world.engine.stats().conversations, 3);
    world.hold_commits = false;
    world.release();
    let stats = world.engine.stats();
    assert_eq!((stats.conversations, stats.evictions), (1, 2));
    assert_eq!(world.acks(alice).len(), 3);
}

#[test]
fn watermarks_are_written_before_their_conversation_goes() {
    let mut world = small(1);
    let alice = world.open(1, "alice");
    let bob = world.open(1, "bob");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let direct = ConversationId::direct("alice", "bob");
    world.mark(bob, direct, 1, "read");
    world.say(alice, "carol", "c1", "x");
    world.turn();
    world.turn();
    assert_eq!(world.stored(direct).watermarks["bob"].read_seq, 1);
    assert_eq!(world.engine.stats().conversations, 1);
    world.take(alice);
    world.mark(bob, direct, 1, "read");
    assert_eq!(world.take(alice), [], "it is known after the reload");
}

#[test]
fn dedup_entries_and_message_bytes_are_bounded_too() {
    for config in [
        EngineConfig {
            dedup_entries_max: 100,
            ..config()
        },
        EngineConfig {
            recent_bytes_max: 40_000,
            ..config()
        },
    ] {
        let bound = (config.dedup_entries_max, config.recent_bytes_max);
        let mut world = World::with(config);
        let alice = world.open(1, "alice");
        for n in 0..400 {
            world.say(alice, &format!("u{}", n % 20), &format!("c{n}"), "x");
            world.turn();
        }
        let stats = world.engine.stats();
        assert!(stats.evictions > 0);
        assert!(stats.dedup_entries as usize <= bound.0);
        assert!(stats.dedup_entries < 400, "{bound:?}");
        assert_eq!(world.acks(alice).iter().map(|a| a.seq).max(), Some(20));
    }
}

#[test]
fn gauges_come_back_to_nothing() {
    let mut world = small(0);
    let alice = world.open(1, "alice");
    for n in 0..300 {
        world.say(alice, &format!("u{}", n % 7), &format!("c{n}"), "x");
    }
    world.turn();
    world.turn();
    let stats = world.engine.stats();
    assert_eq!((stats.conversations, stats.dedup_entries), (0, 0));
    assert_eq!((stats.operations_open, stats.operations_waiting), (0, 0));
    assert_eq!(world.engine.cache.recent_bytes, 0);
    assert_eq!(stats.users, 1);
}

#[test]
fn what_waits_for_conversations_is_bounded() {
    let mut world = World::with(EngineConfig {
        operations_open_max: 4,
        ..config()
    });
    let alice = world.open(1, "alice");
    world.hold_loads = true;
    for (to, cid) in [
        ("a", "1"),
        ("a", "2"),
        ("b", "3"),
        ("b", "4"),
        ("c", "5"),
        ("a", "6"),
    ] {
        world.say(alice, to, cid, "x");
    }
    world.turn();
    for cid in ["5", "6"] {
        let error = error_about(&world, alice, cid);
        assert_eq!(
            error.as_ref().map(|e| e.code.as_str()),
            Some("overloaded"),
            "{cid}"
        );
    }
    assert_eq!(world.engine.stats().overloaded, 2);
    world.hold_loads = false;
    world.release();
    assert_eq!(world.acks(alice).len(), 4);
}

#[test]
fn pages_being_read_are_bounded() {
    let mut world = World::with(EngineConfig {
        operations_open_max: 70,
        ..config()
    });
    let alice = world.open(1, "alice");
    for n in 0..70 {
        world.say(alice, "bob", &format!("c{n}"), "x");
    }
    world.turn();
    world.take(alice);
    world.hold_loads = true;
    let ask = Request::Messages {
        id: ConversationId::direct("alice", "bob"),
        before: None,
        after: Some(0),
        limit: 1,
    };
    for _ in 0..70 {
        world.ask("bob", ask.clone());
    }
    assert_eq!(world.held(), 70);
    assert_eq!(world.refused("bob", ask.clone()), "overloaded");
    world.hold_loads = false;
    world.release();
    assert!(world.call("bob", ask).is_ok());
}

/// The error about `cid` among what reached a session.
fn error_about(world: &World, session: Session, cid: &str) -> Option<Error> {
    world.got(session).iter().find_map(|got| match got {
        Got::Frame(frame) => match &frame.frame {
            Some(ServerBody::Error(error)) if error.client_msg_id == cid => Some(error.clone()),
            _ => None,
        },
        _ => None,
    })
}
