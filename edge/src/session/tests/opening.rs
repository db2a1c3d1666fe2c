use trunkline_proto::client::{ClientBody, ServerFrame};
use trunkline_proto::client::{Connect, Ping, ServerBody};

use super::super::testing::{Got, START_MS, World, masked, request, send_message, token};
use super::super::{Settings, State, Transport};
use crate::observe::counters::Number;

fn status(world: &mut World, target: &str, headers: &str) -> String {
    let id = world.accept(Transport::WebSocket);
    world.receive(id, request(target, headers).as_bytes());
    let answer = String::from_utf8(world.sent.remove(&id.slot).unwrap()).unwrap();
    let refused = !answer.starts_with("HTTP/1.1 101");
    assert_eq!(world.fins.pop(), refused.then_some(id), "{answer}");
    answer
}

fn states(world: &World) -> Vec<&'static str> {
    let list = world.shard.list(None, 100);
    list.iter().map(|conn| conn.state).collect()
}

#[test]
fn a_session_is_opened_with_the_core_and_connected_echoes_the_id() {
    let mut world = World::new();
    let id = world.upgraded(true);
    assert_eq!(states(&world), ["await_connect"]);
    world.connect(id, "alice", "phone");
    assert_eq!(world.heard(), ["0 opened alice/phone"]);
    assert_eq!(world.got(id), [], "nothing before the core has answered");
    world.register(id);
    let got = world.got(id);
    let [
        Got::Frame(ServerFrame {
            id: answered,
            frame: Some(ServerBody::Connected(connected)),
        }),
    ] = &got[..]
    else {
        panic!("{got:?}");
    };
    assert_eq!(answered, "c1");
    assert_eq!(
        (&*connected.user_id, &*connected.device_id),
        ("alice", "phone")
    );
    assert_eq!(connected.server_time, START_MS);
    assert_eq!(connected.heartbeat_ms, 30_000);
    let limits = connected.limits.unwrap();
    assert_eq!((limits.send_rate, limits.send_burst), (20, 40));
    assert_eq!(
        (limits.max_content_chars, limits.max_frame_bytes),
        (1_000, 65_536)
    );
    assert_eq!(states(&world), ["live"]);
    assert_eq!(world.settled, 1);
}

#[test]
fn with_token_and_device_in_the_handshake_connected_comes_unasked() {
    for (target, headers) in [
        (
            format!(
                "/v1/connect?access_token={}&device_id=tab-1",
                token("bob", 60)
            ),
            String::new(),
        ),
        (
            "/v1/connect?device_id=tab-1".to_owned(),
            format!("Authorization: Bearer {}\r\n", token("bob", 60)),
        ),
    ] {
        let mut world = World::new();
        assert!(status(&mut world, &target, &headers).starts_with("HTTP/1.1 101 "));
        assert_eq!(world.heard(), ["0 opened bob/tab-1"]);
        let id = world.shard.slots.next_used(0).unwrap();
        world.register(id);
        assert!(matches!(
            &world.got(id)[..],
            [Got::Frame(ServerFrame { frame: Some(ServerBody::Connected(c)), .. })]
                if c.device_id == "tab-1"
        ));
    }
}

#[test]
fn a_handshake_token_spares_connect_its_own() {
    let mut world = World::new();
    let header = format!("Authorization: Bearer {}\r\n", token("bob", 60));
    assert!(status(&mut world, "/v1/connect", &header).starts_with("HTTP/1.1 101 "));
    let id = world.shard.slots.next_used(0).unwrap();
    assert_eq!(world.heard(), Vec::<String>::new());
    world.say(id, r#"{"type":"connect","device_id":"d"}"#);
    assert_eq!(world.heard(), ["0 opened bob/d"]);

    assert!(status(&mut world, "/v1/connect", &header).starts_with("HTTP/1.1 101 "));
    let other = world.shard.slots.next_used(1).unwrap();
    world.connect(other, "alice", "d");
    assert_eq!(
        world.got(other).last(),
        Some(&Got::Close(4401, "unauthorized".into()))
    );
}

#[test]
fn what_cannot_be_admitted_is_told_in_http() {
    let settings = || Settings {
        origins: vec!["https://chat.example".into()],
        ..Settings::default()
    };
    let mut world = World::with(settings());
    let bad = "Authorization: Bearer x.y.z\r\n";
    let expired = format!("/v1/connect?access_token={}", token("a", 1));
    for (target, headers, expected) in [
        ("/v1/connect", bad, "401 "),
        ("/v1/connect?access_token=nonsense", "", "401 "),
        ("/nowhere", "", "404 "),
        ("/v1/connect", "Origin: https://evil.example\r\n", "403 "),
        ("/v1/connect", "Origin: https://chat.example\r\n", "101 "),
        ("/v1/connect", "Sec-WebSocket-Protocol: mqtt\r\n", "400 "),
    ] {
        let answer = status(&mut world, target, headers);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{target}: {answer}"
        );
    }
    world.pass(2_000);
    assert!(status(&mut world, &expired, "").starts_with("HTTP/1.1 401 "));
    let mut down = World::without_core(settings());
    let answer = status(&mut down, "/v1/connect", "");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 1\r\n"));
}

#[test]
fn a_bad_device_in_the_handshake_is_a_bad_request() {
    let mut world = World::new();
    let target = format!(
        "/v1/connect?access_token={}&device_id=a%20b",
        token("bob", 60)
    );
    assert!(status(&mut world, &target, "").starts_with("HTTP/1.1 400 "));
}

#[test]
fn an_address_that_connects_too_often_has_to_wait() {
    let settings = Settings {
        address_rate: 1,
        address_burst: 2,
        ..Settings::default()
    };
    let mut world = World::with(settings);
    for _ in 0..2 {
        assert!(status(&mut world, "/v1/connect", "").starts_with("HTTP/1.1 101 "));
    }
    let answer = status(&mut world, "/v1/connect", "");
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("Retry-After: 1\r\n"));
    let id = world.accept(Transport::Tcp);
    world.turn();
    let got = world.got_tcp(id);
    let [ServerBody::Error(error)] = &got[..] else {
        panic!("{got:?}");
    };
    assert_eq!((&*error.code, error.close_code), ("rate_limited", 4429));
    assert!(error.retry_after_ms > 0);
    assert_eq!(std::mem::take(&mut world.fins), [id]);
    world.pass(1_000);
    assert!(status(&mut world, "/v1/connect", "").starts_with("HTTP/1.1 101 "));
}

#[test]
fn a_request_may_come_in_pieces_with_frames_behind_it() {
    let mut world = World::new();
    let id = world.accept(Transport::WebSocket);
    let mut bytes = request("/v1/connect", "").into_bytes();
    let connect = format!(
        r#"{{"type":"connect","token":"{}","device_id":"d"}}"#,
        token("alice", 60)
    );
    bytes.extend(masked(0x81, connect.as_bytes()));
    let (first, second) = bytes.split_at(bytes.len() - 20);
    for byte in first.chunks(7) {
        world.receive(id, byte);
    }
    world.receive(id, second);
    assert!(world.sent[&id.slot].starts_with(b"HTTP/1.1 101 "));
    assert_eq!(world.heard(), ["0 opened alice/d"]);
}

#[test]
fn a_request_that_comes_too_slowly_or_is_too_long_is_ended() {
    let mut world = World::new();
    let slow = world.accept(Transport::WebSocket);
    for _ in 0..4 {
        world.receive(slow, b"GET");
        world.pass(2_400);
    }
    assert_eq!(world.closes, []);
    world.receive(slow, b"G");
    world.pass(1_000);
    assert_eq!(world.closes, [slow]);
    let long = world.accept(Transport::WebSocket);
    world.receive(long, b"GET /v1/connect HTTP/1.1\r\nHost: x\r\n");
    for _ in 0..10 {
        world.receive(long, format!("x: {}\r\n", "y".repeat(990)).as_bytes());
    }
    assert!(world.sent[&long.slot].starts_with(b"HTTP/1.1 431 "));
}

#[test]
fn connect_must_come_first_and_in_time() {
    for text in [
        r#"{"type":"ping"}"#,
        r#"{"type":"heartbeat"}"#,
        r#"{"type":"nope"}"#,
        &send_message("m"),
    ] {
        let mut world = World::new();
        let id = world.upgraded(true);
        world.say(id, text);
        let got = world.got(id);
        assert_eq!(got.len(), 2, "{text}: {got:?}");
        assert!(matches!(
            &got[0],
            Got::Frame(ServerFrame { frame: Some(ServerBody::Error(e)), .. })
                if e.code == "unauthorized" && e.close_code == 4401
        ));
        assert_eq!(got[1], Got::Close(4401, "unauthorized".into()));
        assert_eq!(world.fins, [id]);
    }
    let mut world = World::new();
    let id = world.upgraded(true);
    world.pass(9_900);
    assert_eq!(world.got(id), []);
    world.pass(800);
    assert_eq!(
        world.got(id).last(),
        Some(&Got::Close(4408, "no connect in time".into()))
    );
}

#[test]
fn raw_tcp_says_its_close_in_the_last_error() {
    let mut world = World::new();
    let id = world.accept(Transport::Tcp);
    world.say_tcp(id, ClientBody::Ping(Ping::default()));
    let got = world.got_tcp(id);
    let [ServerBody::Error(error)] = &got[..] else {
        panic!("{got:?}");
    };
    assert_eq!((&*error.code, error.close_code), ("unauthorized", 4401));
    assert_eq!(world.fins, [id]);
    let late = world.accept(Transport::Tcp);
    world.pass(10_600);
    let got = world.got_tcp(late);
    assert!(
        matches!(&got[..], [ServerBody::Error(e)] if e.close_code == 4408),
        "{got:?}"
    );
}

#[test]
fn a_bad_device_is_a_bad_request_and_the_connection_stays() {
    let mut world = World::new();
    let id = world.upgraded(true);
    for device in ["", "white space", &"x".repeat(65)] {
        world.connect(id, "alice", device);
        assert_eq!(world.error(id).code, "bad_request");
    }
    world.say(id, r#"{"type":"connect"}"#);
    assert_eq!(world.error(id).code, "bad_request");
    let long = "x".repeat(129);
    world.say(
        id,
        &format!(r#"{{"type":"connect","device_id":"d","client":"{long}"}}"#),
    );
    assert_eq!(world.error(id).code, "bad_request");
    world.connect(id, "alice", "d");
    assert_eq!(world.heard(), ["0 opened alice/d"]);
}

#[test]
fn a_bad_token_in_connect_ends_the_connection() {
    for token in ["nonsense", ""] {
        let mut world = World::new();
        let id = world.upgraded(true);
        world.say(
            id,
            &format!(r#"{{"type":"connect","id":"q","token":"{token}","device_id":"d"}}"#),
        );
        let got = world.got(id);
        assert!(
            matches!(&got[0], Got::Frame(ServerFrame { id, .. }) if id == "q"),
            "{got:?}"
        );
        assert_eq!(got[1], Got::Close(4401, "unauthorized".into()));
        assert_eq!(world.heard(), Vec::<String>::new());
    }
}

#[test]
fn frames_before_registered_wait_in_order_within_bounds() {
    let mut world = World::new();
    let id = world.upgraded(true);
    world.connect(id, "alice", "d");
    for i in 0..64 {
        world.say(id, &send_message(&format!("m{i}")));
    }
    assert_eq!(world.heard(), ["0 opened alice/d"]);
    world.say(id, &send_message("m64"));
    let error = world.error(id);
    assert_eq!((&*error.code, &*error.client_msg_id), ("overloaded", "m64"));
    assert_eq!(error.retry_after_ms, 1_000);
    world.register(id);
    // The session's own rate holds for what waited, too.
    let expected: Vec<String> = (0..40).map(|i| format!("0 send m{i}")).collect();
    assert_eq!(world.heard(), expected);
    let got = world.got(id);
    assert!(matches!(
        &got[0],
        Got::Frame(ServerFrame {
            frame: Some(ServerBody::Connected(_)),
            ..
        })
    ));
    assert_eq!(got.len(), 1 + 24);
}

#[test]
fn a_session_that_the_core_does_not_register_in_time_is_sent_away() {
    let mut world = World::new();
    let id = world.upgraded(true);
    world.connect(id, "alice", "d");
    world.heard();
    world.pass(10_600);
    let got = world.got(id);
    assert!(matches!(
        &got[0],
        Got::Frame(ServerFrame { id, frame: Some(ServerBody::Error(e)) })
            if e.code == "unavailable" && id == "c1"
    ));
    assert_eq!(got[1], Got::Close(1001, "draining".into()));
    assert_eq!(world.heard(), ["0 closed"]);
}

#[test]
fn connect_on_a_live_session_extends_it() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.say(
        id,
        &format!(
            r#"{{"type":"connect","id":"again","token":"{}","device_id":"d"}}"#,
            token("alice", 7_200)
        ),
    );
    let got = world.got(id);
    assert!(matches!(
        &got[..],
        [Got::Frame(ServerFrame { id, frame: Some(ServerBody::Connected(_)) })] if id == "again"
    ));
    assert_eq!(world.heard(), Vec::<String>::new());
    // The first token would have ended it here.
    for _ in 0..3_700 / 25 {
        world.pass(25_000);
        world.say(id, r#"{"type":"heartbeat"}"#);
    }
    assert_eq!(world.got(id), []);
    assert_eq!(states(&world), ["live"]);

    world.connect(id, "alice", "other");
    assert_eq!(world.error(id).code, "bad_request");
    world.connect(id, "bob", "d");
    assert_eq!(
        world.got(id).last(),
        Some(&Got::Close(4401, "unauthorized".into()))
    );
    assert_eq!(world.heard(), ["0 closed"]);
}

#[test]
fn protobuf_sessions_work_over_both_transports() {
    let mut world = World::new();
    let id = world.upgraded(false);
    let connect = Connect {
        token: token("alice", 60),
        device_id: "d".into(),
        client: "tests".into(),
    };
    let frame = trunkline_proto::client::ClientFrame {
        id: "7".into(),
        frame: Some(ClientBody::Connect(connect)),
    };
    let bytes = prost::Message::encode_to_vec(&frame);
    world.receive(id, &masked(0x82, &bytes));
    world.register(id);
    assert!(matches!(
        &world.got(id)[..],
        [Got::Frame(ServerFrame { id, frame: Some(ServerBody::Connected(_)) })] if id == "7"
    ));
    let tcp = world.live_tcp("bob", "d");
    world.say_tcp(tcp, ClientBody::Ping(Ping { nonce: "n".into() }));
    assert!(matches!(&world.got_tcp(tcp)[..], [ServerBody::Pong(p)] if p.nonce == "n"));
    assert_eq!(world.shard.counters().get(Number::TcpLive), 1);
    assert_eq!(world.shard.counters().get(Number::WsLive), 1);
    assert_eq!(world.shard.list(Some(State::Live), 10).len(), 2);
}
