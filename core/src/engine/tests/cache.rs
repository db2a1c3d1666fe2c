//! Eviction: what goes, what stays, and that nothing is lost by it.

use trunkline_proto::ids::ConversationId;

use super::world::{World, config};
use crate::engine::EngineConfig;

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
