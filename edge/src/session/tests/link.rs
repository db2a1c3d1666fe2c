use std::sync::Arc;

use trunkline_proto::client::{Ack, Error, ServerBody, ServerFrame, Typing};
use trunkline_proto::codes::{Close, Code};

use super::super::testing::{Got, World, send_message};
use super::super::{Settings, Transport};
use crate::hub::ShardOp;
use crate::link::shared::SharedFrame;
use crate::link::uplink::Credit;
use crate::observe::counters::Number;

#[test]
fn without_credit_a_send_is_refused_and_nothing_is_stored() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    let credit = Arc::new(Credit::new(1));
    world.shard.link_up(credit.clone());
    world.turn();
    assert_eq!(world.heard(), ["0 again alice/d"]);
    world.say(id, &send_message("m"));
    let error = world.error(id);
    assert_eq!((&*error.code, error.retry_after_ms), ("overloaded", 1_000));
    assert_eq!((&*error.client_msg_id, &*error.conversation_id), ("m", "c"));
    // Typing is worthless later: nobody is told.
    world.say(
        id,
        r#"{"type":"typing","conversation_id":"c","active":true}"#,
    );
    assert_eq!(world.got(id), []);
    assert_eq!(world.heard(), Vec::<String>::new());
    credit.grant(1);
    world.say(id, &send_message("m"));
    assert_eq!(world.heard(), ["0 send m"]);
}

#[test]
fn announcements_wait_for_credit_and_frames_do_not_overtake_them() {
    let mut world = World::without_core(Settings::default());
    let credit = Arc::new(Credit::new(0));
    world.shard.link_up(credit.clone());
    let (a, b) = (world.upgraded(true), world.upgraded(true));
    world.connect(a, "alice", "d");
    world.connect(b, "bob", "d");
    assert_eq!(world.heard(), Vec::<String>::new());
    assert!(credit.grant(1), "somebody waits");
    assert_eq!(world.shard.timeout(), Some(std::time::Duration::ZERO));
    world.turn();
    assert_eq!(world.heard(), ["0 opened alice/d"]);
    world.register(a);
    world.got(a);
    world.say(a, &send_message("m"));
    assert_eq!(world.error(a).code, "overloaded");
    assert!(credit.grant(2));
    world.turn();
    assert_eq!(world.heard(), ["1 opened bob/d"]);
    world.say(a, &send_message("m"));
    assert_eq!(world.heard(), ["0 send m"]);
}

#[test]
fn when_the_link_breaks_whoever_waits_for_an_answer_is_told() {
    let mut world = World::new();
    let (idle, waiting) = (world.live("alice", "d"), world.live("bob", "d"));
    let acked = world.live("carol", "d");
    world.say(waiting, &send_message("m"));
    world.say(acked, &send_message("n"));
    let ack = Ack {
        client_msg_id: "n".into(),
        ..Ack::default()
    };
    world.deliver(acked, ServerBody::Ack(ack));
    world.got(acked);
    world.shard.link_down();
    world.turn();
    assert_eq!(world.got(idle), []);
    assert_eq!(world.got(acked), []);
    let error = world.error(waiting);
    assert_eq!((&*error.code, &*error.client_msg_id), ("unavailable", ""));
    world.say(idle, &send_message("o"));
    let error = world.error(idle);
    assert_eq!((&*error.code, &*error.client_msg_id), ("unavailable", "o"));
    world.say(idle, r#"{"type":"ping"}"#);
    assert_eq!(world.got(idle).len(), 1, "answered here");
}

#[test]
fn after_a_break_sessions_are_announced_before_anything_else() {
    let mut world = World::new();
    let live = world.live("alice", "d");
    let pending = world.upgraded(true);
    world.connect(pending, "bob", "d");
    let gone = world.live("carol", "d");
    world.heard();
    world.shard.link_down();
    world.shard.closed(gone);
    let early = world.accept(Transport::Tcp);
    world.turn();
    assert_eq!(world.heard(), Vec::<String>::new(), "nobody to tell");
    world.shard.link_up(Arc::new(Credit::new(100)));
    world.say(live, &send_message("too early"));
    assert_eq!(world.error(live).code, "unavailable");
    assert_eq!(world.heard(), ["0 again alice/d", "1 opened bob/d"]);
    world.say(live, &send_message("m"));
    assert_eq!(world.heard(), ["0 send m"]);
    world.register(pending);
    assert_eq!(world.got(pending).len(), 1);
    world.register(live);
    assert_eq!(world.got(live), [], "was registered all the time");
    world.shard.closed(early);
    world.shard.closed(pending);
    world.turn();
    assert_eq!(world.heard(), ["1 closed"]);
}

#[test]
fn a_connect_while_the_link_is_down_waits_for_the_core() {
    let mut world = World::new();
    let id = world.upgraded(true);
    world.shard.link_down();
    world.connect(id, "alice", "d");
    assert_eq!((world.heard(), world.got(id)), (vec![], vec![]));
    world.shard.link_up(Arc::new(Credit::new(100)));
    world.turn();
    assert_eq!(world.heard(), ["0 opened alice/d"]);
    world.register(id);
    assert_eq!(world.got(id).len(), 1);
}

#[test]
fn the_core_can_end_a_session() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    let handle = world.shard.handle(id);
    let error = Code::Unauthorized.closing(Close::Replaced, "a newer session");
    world.core(ShardOp::Close { handle, error });
    let got = world.got(id);
    assert!(matches!(
        &got[0],
        Got::Frame(ServerFrame { frame: Some(ServerBody::Error(e)), .. })
            if e.close_code == 4409 && e.message == "a newer session"
    ));
    assert_eq!(got[1], Got::Close(4409, "replaced".into()));
    // Before it is registered, too; and a second time is nothing.
    let early = world.live_tcp("bob", "d");
    let handle = world.shard.handle(early);
    for _ in 0..2 {
        let error = Code::Overloaded.closing(Close::Draining, "too many");
        world.core(ShardOp::Close { handle, error });
    }
    let got = world.got_tcp(early);
    assert!(
        matches!(
            &got[..],
            [ServerBody::Error(Error {
                close_code: 1001,
                ..
            })]
        ),
        "{got:?}"
    );
}

#[test]
fn a_delivery_reaches_all_recipients_in_their_encodings() {
    let mut world = World::new();
    let json = world.live("alice", "d");
    let other_json = world.live("alice", "e");
    let tcp = world.live_tcp("bob", "d");
    let gone = world.live("carol", "d");
    let handles: Vec<u64> = [json, other_json, tcp, gone]
        .map(|id| world.shard.handle(id))
        .to_vec();
    world.shard.closed(gone);
    let typing = ServerBody::Typing(Typing {
        conversation_id: "c".into(),
        active: true,
        user_id: "x".into(),
    });
    let frame = Arc::new(SharedFrame::new(ServerFrame::push(typing.clone())));
    for crosses_shards in [false, true] {
        world.core(ShardOp::Many {
            handles: handles.clone(),
            frame: frame.clone(),
            crosses_shards,
        });
        let expected = [Got::Frame(ServerFrame::push(typing.clone()))];
        assert_eq!(world.got(json), expected);
        assert_eq!(world.got(other_json), expected);
        assert_eq!(world.got_tcp(tcp), std::slice::from_ref(&typing));
    }
    let counters = world.shard.counters();
    assert_eq!(counters.get(Number::Delivered), 6);
    assert_eq!(counters.get(Number::DeliveredStale), 2);
}

#[test]
fn a_payload_that_is_alone_in_its_turn_is_not_copied() {
    let mut world = World::new();
    let ids = [world.live("alice", "d"), world.live("bob", "d")];
    let handles = ids.map(|id| world.shard.handle(id)).to_vec();
    let body = ServerBody::Typing(Typing::default());
    let frame = Arc::new(SharedFrame::new(ServerFrame::push(body)));
    let op = || ShardOp::Many {
        handles: handles.clone(),
        frame: frame.clone(),
        crosses_shards: false,
    };
    let mut actions = super::super::Actions::default();
    world.shard.core_ops([op()], 1);
    world.shard.end_turn(&mut actions);
    let pointers: Vec<_> = actions.sends.iter().map(|(_, b)| b.as_ptr()).collect();
    assert_eq!(pointers[0], pointers[1]);
    let alone = actions.sends[0].1.len();
    actions.sends.clear();
    world.shard.core_ops([op(), op()], 2);
    world.shard.end_turn(&mut actions);
    assert_eq!(actions.sends.len(), 2);
    assert!(actions.sends.iter().all(|(_, b)| b.len() == 2 * alone));
}
