use trunkline_proto::client::{Message, Presence, PresenceUser, Receipt, ServerBody, Typing};

use super::super::testing::{Got, World, masked};
use super::super::{Bounds, Settings};
use crate::observe::counters::Number;
use crate::ring::ConnId;

fn world() -> (World, ConnId) {
    let mut world = World::with(Settings {
        outbox: Bounds {
            soft: 1_000,
            hard: 4_000,
        },
        ..Settings::default()
    });
    let id = world.live("alice", "d");
    world.shard.blocked(id, 100);
    (world, id)
}

fn message(len: usize) -> ServerBody {
    ServerBody::Message(Message {
        content: "x".repeat(len),
        ..Message::default()
    })
}

fn owed(world: &mut World) -> u64 {
    world.shard.counters().get(Number::OutboxBytes)
}

#[test]
fn what_comes_while_blocked_leaves_in_order_once_drained() {
    let (mut world, id) = world();
    world.deliver(id, message(10));
    world.receive(id, &masked(0x89, b"still there?"));
    world.deliver(id, message(20));
    assert_eq!(world.got(id), [], "the driver holds a tail");
    assert!(owed(&mut world) > 100);
    assert_eq!(
        world.shard.list(None, 1)[0].owed_bytes as u64,
        owed(&mut world)
    );
    world.shard.drained(id);
    world.turn();
    let got = world.got(id);
    assert_eq!(
        got[0],
        Got::Pong(b"still there?".to_vec()),
        "control frames first"
    );
    assert_eq!(got.len(), 3);
    assert_eq!(owed(&mut world), 0);
    assert_eq!(world.shard.counters().get(Number::OutboxSockets), 0);
    world.deliver(id, message(1));
    assert_eq!(world.got(id).len(), 1);
}

#[test]
fn what_was_written_before_the_block_was_known_stays_first() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    let ping = |nonce| {
        masked(
            0x81,
            format!(r#"{{"type":"ping","nonce":"{nonce}"}}"#).as_bytes(),
        )
    };
    world.shard.received(id, &mut ping("a"));
    world.shard.blocked(id, 10);
    world.shard.received(id, &mut ping("b"));
    world.turn();
    assert_eq!(world.got(id), []);
    world.shard.drained(id);
    world.turn();
    let nonces: Vec<String> = world
        .got(id)
        .into_iter()
        .map(|got| match got {
            Got::Frame(frame) => match frame.frame {
                Some(ServerBody::Pong(pong)) => pong.nonce,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(nonces, ["a", "b"]);
}

#[test]
fn over_the_soft_bound_the_lesser_classes_go() {
    let (mut world, id) = world();
    let typing = || ServerBody::Typing(Typing::default());
    let presence = || {
        ServerBody::Presence(Presence {
            users: vec![PresenceUser {
                user_id: "u".repeat(60),
                ..PresenceUser::default()
            }],
        })
    };
    let receipt = |seq| {
        ServerBody::Receipt(Receipt {
            conversation_id: "c".into(),
            user_id: "u".into(),
            seq,
            status: "read".into(),
            ..Receipt::default()
        })
    };
    world.deliver(id, typing());
    world.deliver(id, presence());
    world.deliver(id, receipt(1));
    world.deliver(id, receipt(2));
    world.deliver(id, message(900));
    world.deliver(id, typing());
    world.deliver(id, presence());
    world.deliver(id, message(900));
    let counters = world.shard.counters();
    assert_eq!(counters.get(Number::DroppedTyping), 2);
    assert_eq!(counters.get(Number::DroppedPresence), 2);
    assert_eq!(counters.get(Number::DroppedReceipts), 1);
    world.shard.drained(id);
    world.turn();
    let got = world.got(id);
    assert_eq!(got.len(), 3, "{got:?}");
    assert!(matches!(&got[0], Got::Frame(f)
        if matches!(&f.frame, Some(ServerBody::Receipt(r)) if r.seq == 2)));
}

fn overflow(world: &mut World, id: ConnId) {
    for _ in 0..20 {
        world.deliver(id, message(900));
    }
}

#[test]
fn over_the_hard_bound_the_session_is_closed_and_its_queue_let_go() {
    let (mut world, id) = world();
    overflow(&mut world, id);
    assert_eq!(world.heard(), ["0 closed"]);
    assert!(owed(&mut world) < 200, "the tail and the farewell");
    world.shard.drained(id);
    world.turn();
    assert_eq!(world.got(id), [Got::Close(4410, "slow consumer".into())]);
    assert_eq!(world.fins, [id]);
    world.shard.closed(id);
    assert_eq!(owed(&mut world), 0);
    assert_eq!(world.shard.list_closed(1)[0].code, 4410);
    let counters = world.shard.counters();
    assert_eq!(counters.get(Number::ClosedSlowConsumer), 1);
    assert_eq!(counters.get(Number::OutboxSockets), 0);
}

#[test]
fn a_slow_consumer_that_never_reads_is_dropped_after_the_linger() {
    let (mut world, id) = world();
    overflow(&mut world, id);
    world.pass(9_000);
    assert_eq!(world.closes, []);
    world.pass(2_000);
    assert_eq!(world.closes, [id]);
    world.shard.closed(id);
    assert_eq!(owed(&mut world), 0);
}

#[test]
fn a_blocked_connection_says_goodbye_behind_what_it_is_owed() {
    let (mut world, id) = world();
    world.deliver(id, message(10));
    world.say(id, "nonsense");
    assert_eq!((world.got(id), world.fins.len()), (vec![], 0));
    world.shard.drained(id);
    world.turn();
    let got = world.got(id);
    assert_eq!(got.len(), 3);
    assert_eq!(got[2], Got::Close(4400, "bad frame".into()));
    assert_eq!(world.fins, [id]);
}

#[test]
fn a_blocked_connection_that_closes_is_dropped_after_the_linger() {
    let (mut world, id) = world();
    world.say(id, "nonsense");
    world.pass(2_600);
    assert_eq!(world.closes, [id]);
    // The driver may have said so before it heard of the close.
    world.shard.drained(id);
    world.turn();
    assert_eq!((world.got(id), world.fins.len()), (vec![], 0));
    world.shard.closed(id);
    assert_eq!(owed(&mut world), 0);
}
