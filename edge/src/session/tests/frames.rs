use trunkline_proto::client::{Ack, ClientBody, ClientFrame, Ping, ServerBody, ServerFrame};

use super::super::testing::{Got, World, masked, send_message};
use super::super::{End, Settings};
use crate::observe::counters::Number;

#[test]
fn a_message_goes_up_and_its_ack_comes_down() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.say(id, &send_message("m1"));
    assert_eq!(world.heard(), ["0 send m1"]);
    assert_eq!(world.shard.list(None, 1)[0].sends_under_way, 1);
    let ack = Ack {
        client_msg_id: "m1".into(),
        seq: 1,
        ..Ack::default()
    };
    world.deliver(id, ServerBody::Ack(ack.clone()));
    assert_eq!(
        world.got(id),
        [Got::Frame(ServerFrame::push(ServerBody::Ack(ack)))]
    );
    assert_eq!(world.shard.list(None, 1)[0].sends_under_way, 0);
    assert_eq!(world.settled, 1);
}

#[test]
fn all_that_a_turn_brings_leaves_in_one_send() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    let ping = |nonce: &str| {
        masked(
            0x81,
            format!(r#"{{"type":"ping","nonce":"{nonce}"}}"#).as_bytes(),
        )
    };
    // `World::turn` asserts that there is one send for each connection.
    world.receive(id, &[ping("a"), masked(0x89, b"p"), ping("b")].concat());
    let got = world.got(id);
    assert_eq!(got.len(), 3);
    assert_eq!(got[1], Got::Pong(b"p".to_vec()));
}

#[test]
fn pings_are_answered_and_heartbeats_are_not() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.say(id, r#"{"type":"ping","id":"i","nonce":"n"}"#);
    let got = world.got(id);
    assert!(matches!(
        &got[..],
        [Got::Frame(ServerFrame { id, frame: Some(ServerBody::Pong(p)) })]
            if id == "i" && p.nonce == "n"
    ));
    world.say(id, r#"{"type":"heartbeat"}"#);
    assert_eq!(world.got(id), []);
    let long = "n".repeat(65);
    world.say(id, &format!(r#"{{"type":"ping","nonce":"{long}"}}"#));
    assert_eq!(world.error(id).code, "bad_request");
    assert_eq!(world.heard(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_decoded_closes_and_what_is_wrong_does_not() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    for (text, code) in [
        (r#"{"type":"nope","id":"i"}"#, "unknown_frame"),
        (r#"{"type":"fetch","id":"i"}"#, "bad_request"),
        (r#"{"id":"i"}"#, "bad_request"),
    ] {
        world.say(id, text);
        let got = world.got(id);
        assert!(
            matches!(
                &got[..],
                [Got::Frame(ServerFrame { id, frame: Some(ServerBody::Error(e)) })]
                    if id == "i" && e.code == code && e.close_code == 0
            ),
            "{text}: {got:?}"
        );
    }
    world.say(id, "nonsense");
    let got = world.got(id);
    assert!(matches!(
        &got[0],
        Got::Frame(ServerFrame { frame: Some(ServerBody::Error(e)), .. })
            if e.code == "bad_frame" && e.close_code == 4400
    ));
    assert_eq!(got[1], Got::Close(4400, "bad frame".into()));
    assert_eq!(world.heard(), ["0 closed"]);
    // Nothing that comes later counts.
    world.say(id, &send_message("late"));
    assert_eq!((world.heard(), world.got(id)), (vec![], vec![]));
}

#[test]
fn protobuf_frames_are_checked_the_same_way() {
    let mut world = World::new();
    let id = world.live_tcp("alice", "d");
    let say = |world: &mut World, frame: &ClientFrame| {
        world.receive(id, &prost::Message::encode_length_delimited_to_vec(frame));
        world.got_tcp(id)
    };
    let long_id = ClientFrame {
        id: "x".repeat(65),
        frame: Some(ClientBody::Ping(Ping::default())),
    };
    let got = say(&mut world, &long_id);
    assert!(
        matches!(&got[..], [ServerBody::Error(e)] if e.code == "bad_request"),
        "{got:?}"
    );
    let got = say(&mut world, &ClientFrame::default());
    assert!(
        matches!(&got[..], [ServerBody::Error(e)] if e.code == "unknown_frame"),
        "{got:?}"
    );
    world.receive(id, &[2, 0xff, 0xff]);
    let got = world.got_tcp(id);
    assert!(
        matches!(&got[..], [ServerBody::Error(e)] if e.code == "bad_frame" && e.close_code == 4400),
        "{got:?}"
    );
    assert_eq!(world.fins, [id]);
}

#[test]
fn the_wrong_opcode_and_bad_frames_close_with_their_codes() {
    let oversize = {
        let mut header = vec![0x81, 0xff];
        header.extend_from_slice(&70_000u64.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        header
    };
    for (bytes, code) in [
        (masked(0x82, b"x"), 1003),
        (masked(0x81, b"\xff"), 1007),
        (oversize, 1009),
        (vec![0x81, 0x01, b'x'], 1002),
    ] {
        let mut world = World::new();
        let id = world.live("alice", "d");
        world.receive(id, &bytes);
        let got = world.got(id);
        assert!(
            matches!(&got[..], [Got::Close(c, _)] if *c == code),
            "{code}: {got:?}"
        );
        assert_eq!(world.fins, [id]);
    }
    let mut world = World::new();
    let id = world.upgraded(false);
    world.receive(id, &masked(0x81, b"{}"));
    assert_eq!(world.got(id), [Got::Close(1003, "wrong opcode".into())]);
    let tcp = world.live_tcp("bob", "d");
    world.receive(tcp, &[0xff, 0xff, 0xff, 0x7f]);
    let got = world.got_tcp(tcp);
    assert!(
        matches!(&got[..], [ServerBody::Error(e)] if e.close_code == 1009),
        "{got:?}"
    );
}

#[test]
fn the_peers_close_is_answered_and_its_end_awaited() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.receive(id, &masked(0x88, &[0x03, 0xe8, b'b', b'y', b'e']));
    assert_eq!(world.got(id), [Got::Close(1000, String::new())]);
    assert_eq!((&world.fins[..], &world.closes[..]), (&[id][..], &[][..]));
    assert_eq!(world.heard(), ["0 closed"]);
    world.shard.closed(id);
    assert_eq!(world.shard.connections(), 0);
    let closed = world.shard.list_closed(10);
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0].reason, End::Peer.reason());
    assert_eq!((&*closed[0].user, &*closed[0].device), ("alice", "d"));
    assert_eq!(closed[0].peer.to_string(), "192.0.2.1:40000");
    assert!(closed[0].bytes_in > 0 && closed[0].bytes_out > 0);
    assert_eq!(world.shard.counters().get(Number::ClosedPeer), 1);
    assert_eq!(world.shard.slots.texts_kept(), 0);
}

#[test]
fn a_peer_that_does_not_end_is_dropped_after_the_linger() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.say(id, "nonsense");
    world.pass(1_900);
    assert_eq!(world.closes, []);
    world.pass(700);
    assert_eq!(world.closes, [id], "once");
    world.pass(60_000);
    assert_eq!(world.closes, [id], "once");
    world.shard.closed(id);
    assert_eq!(world.shard.list_closed(1)[0].code, 4400);
}

#[test]
fn the_end_of_the_stream_ends_the_session() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.shard.eof(id);
    world.turn();
    assert_eq!(world.heard(), ["0 closed"]);
    assert_eq!(world.fins, [id]);
    let id = world.live("alice", "e");
    world.shard.closed(id);
    world.turn();
    assert_eq!(world.heard(), ["1 closed"]);
    let reasons: Vec<_> = world
        .shard
        .list_closed(9)
        .iter()
        .map(|r| r.reason)
        .collect();
    assert_eq!(reasons, ["socket error"]);
}

#[test]
fn the_send_rate_is_held_and_abuse_ends_the_session() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    for i in 0..40 {
        world.say(id, &send_message(&format!("m{i}")));
    }
    assert_eq!(world.heard().len(), 40);
    assert_eq!(world.got(id), []);
    world.say(id, &send_message("over"));
    let error = world.error(id);
    assert_eq!(
        (&*error.code, &*error.client_msg_id),
        ("rate_limited", "over")
    );
    assert_eq!(&*error.conversation_id, "c");
    assert_eq!(error.retry_after_ms, 50);
    // Other frames are not sends.
    world.say(
        id,
        r#"{"type":"typing","conversation_id":"c","active":true}"#,
    );
    assert_eq!(world.heard(), ["0 typing"]);
    world.pass(50);
    world.say(id, &send_message("later"));
    assert_eq!(world.heard(), ["0 send later"]);
    for _ in 0..200 {
        world.say(id, &send_message("again"));
    }
    assert_eq!(world.fins, []);
    world.say(id, &send_message("again"));
    assert_eq!(
        world.got(id).last(),
        Some(&Got::Close(4429, "rate limited".into()))
    );
    assert_eq!(world.heard(), ["0 closed"]);
}

#[test]
fn rate_zero_is_no_limit() {
    let settings = Settings {
        send_rate: 0,
        ..Settings::default()
    };
    let mut world = World::with(settings);
    let id = world.live("alice", "d");
    for _ in 0..500 {
        world.say(id, &send_message("m"));
    }
    assert_eq!(world.heard().len(), 500);
}
