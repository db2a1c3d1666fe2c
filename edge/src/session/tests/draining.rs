use std::collections::HashSet;

use trunkline_proto::client::ServerBody;

use super::super::testing::{Got, World, masked, request};
use super::super::{DrainCounts, Transport};
use crate::ring::ConnId;

fn told(world: &mut World, id: ConnId) -> Option<u32> {
    world.got(id).into_iter().find_map(|got| match got {
        Got::Frame(frame) => match frame.frame {
            Some(ServerBody::Reconnect(r)) if r.reason == "draining" => Some(r.after_ms),
            _ => None,
        },
        _ => None,
    })
}

#[test]
fn sessions_are_told_in_slices_each_its_own_delay_and_stay_good() {
    let mut world = World::new();
    let ids: Vec<ConnId> = (0..200)
        .map(|i| world.live("alice", &format!("d{i}")))
        .collect();
    world.shard.drain(20_000);
    world.pass(1_000);
    let early = ids
        .iter()
        .filter(|id| world.sent.contains_key(&id.slot))
        .count();
    assert!((1..200).contains(&early), "{early} of 200 after a second");
    world.pass(4_500);
    let delays: Vec<u32> = ids
        .iter()
        .map(|&id| told(&mut world, id).unwrap())
        .collect();
    assert!(delays.iter().all(|&ms| ms <= 10_000));
    assert!(delays.iter().collect::<HashSet<_>>().len() > 150);
    world.say(ids[0], r#"{"type":"ping"}"#);
    assert_eq!(world.got(ids[0]).len(), 1, "still good");
    assert!(!world.shard.is_drained());
}

#[test]
fn a_drain_ends_as_soon_as_nobody_is_left() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.shard.drain(20_000);
    world.pass(100);
    world.receive(id, &masked(0x88, &[0x03, 0xe8]));
    assert!(!world.shard.is_drained());
    world.shard.closed(id);
    assert!(world.shard.is_drained());
    let counts = DrainCounts {
        clean: 1,
        forced: 0,
    };
    assert_eq!(world.shard.drain_counts(), counts);
}

#[test]
fn at_the_end_of_the_budget_the_rest_is_closed() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    let early = world.upgraded(true);
    world.shard.drain(2_000);
    world.pass(1_900);
    assert!(told(&mut world, id).is_some());
    assert_eq!(world.fins, []);
    world.pass(200);
    assert_eq!(world.got(id), [Got::Close(1001, "draining".into())]);
    assert_eq!(world.got(early), [Got::Close(1001, "draining".into())]);
    assert_eq!(world.heard(), ["0 closed"]);
    let counts = DrainCounts {
        clean: 0,
        forced: 1,
    };
    assert_eq!(world.shard.drain_counts(), counts);
    world.pass(10_000);
    assert_eq!(world.closes.len(), 2, "after the linger");
}

#[test]
fn newcomers_are_refused_while_draining() {
    let mut world = World::new();
    let registering = world.upgraded(true);
    world.connect(registering, "alice", "d");
    world.shard.drain(20_000);
    let id = world.accept(Transport::WebSocket);
    world.receive(id, request("/v1/connect", "").as_bytes());
    let answer = String::from_utf8(world.sent.remove(&id.slot).unwrap()).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After"),
        "{answer}"
    );
    let tcp = world.accept(Transport::Tcp);
    world.turn();
    let got = world.got_tcp(tcp);
    assert!(
        matches!(&got[..], [ServerBody::Error(e)] if e.close_code == 1001),
        "{got:?}"
    );
    // Who becomes a session just now is told at once.
    world.pass(500);
    world.register(registering);
    assert!(told(&mut world, registering).is_some());
}

#[test]
fn closing_all_cuts_a_drain_short() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.shard.drain(60_000);
    world.pass(100);
    world.got(id);
    world.shard.close_all();
    world.turn();
    assert_eq!(world.got(id), [Got::Close(1001, "draining".into())]);
}
