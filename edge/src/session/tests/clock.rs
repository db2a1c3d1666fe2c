use std::time::Duration;

use trunkline_proto::client::ServerBody;

use super::super::Settings;
use super::super::testing::{Got, World, masked, token};

fn beating(heartbeat_ms: u32) -> World {
    World::with(Settings {
        heartbeat_ms,
        ..Settings::default()
    })
}

#[test]
fn a_silent_peer_is_probed_once_and_closed() {
    let mut world = World::new();
    let ws = world.live("alice", "d");
    let tcp = world.live_tcp("bob", "d");
    world.pass(59_900);
    assert_eq!((world.got(ws), world.got_tcp(tcp)), (vec![], vec![]));
    world.pass(1_000);
    assert_eq!(world.got(ws), [Got::Ping]);
    assert!(matches!(&world.got_tcp(tcp)[..], [ServerBody::Pong(_)]));
    world.pass(3_900);
    assert_eq!((world.got(ws), world.got_tcp(tcp)), (vec![], vec![]));
    world.pass(1_000);
    assert_eq!(world.got(ws), [Got::Close(4411, "heartbeat missed".into())]);
    let got = world.got_tcp(tcp);
    assert!(
        matches!(&got[..], [ServerBody::Error(e)] if e.close_code == 4411),
        "{got:?}"
    );
    assert_eq!(world.heard(), ["0 closed", "1 closed"]);
}

#[test]
fn any_byte_is_a_sign_of_life() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    for _ in 0..10 {
        world.pass(59_000);
        // Half a frame header.
        world.receive(id, &masked(0x8a, b"")[..1]);
        world.pass(100);
        world.receive(id, &masked(0x8a, b"")[1..]);
    }
    assert_eq!(world.got(id), []);
    // After a probe, too.
    world.pass(61_000);
    assert_eq!(world.got(id), [Got::Ping]);
    world.receive(id, &masked(0x8a, b""));
    world.pass(59_000);
    assert_eq!(world.got(id), []);
}

#[test]
fn short_heartbeats_are_kept_to() {
    let mut world = beating(200);
    let id = world.live("alice", "d");
    world.pass(390);
    assert_eq!(world.got(id), []);
    world.pass(60);
    assert_eq!(world.got(id), [Got::Ping]);
    world.pass(4_900);
    assert_eq!(world.got(id), []);
    world.pass(100);
    assert_eq!(world.got(id), [Got::Close(4411, "heartbeat missed".into())]);
}

#[test]
fn a_session_ends_with_its_token() {
    let mut world = World::new();
    let id = world.upgraded(true);
    let short = token("alice", 20);
    world.say(
        id,
        &format!(r#"{{"type":"connect","token":"{short}","device_id":"d"}}"#),
    );
    world.register(id);
    world.got(id);
    world.pass(19_700);
    assert_eq!(world.got(id), []);
    world.pass(900);
    let got = world.got(id);
    assert!(matches!(&got[0], Got::Frame(f)
        if matches!(&f.frame, Some(ServerBody::Error(e)) if e.code == "unauthorized")));
    assert_eq!(got[1], Got::Close(4401, "unauthorized".into()));
}

#[test]
fn an_empty_shard_waits_for_ever_and_an_idle_one_wakes_seldom() {
    let mut world = World::new();
    world.turn();
    assert_eq!(world.shard.timeout(), None);
    let settings = Settings {
        heartbeat_ms: 30_000,
        ..Settings::default()
    };
    let mut world = World::with(settings);
    for i in 0..100 {
        world.live("alice", &format!("d{i}"));
    }
    // A minute of silence less a little: entries that were filed for the early deadlines come up
    // once, then nothing until the probes.
    let mut wakes = 0;
    let mut ms = 0;
    while ms < 59_000 {
        world.turn();
        let timeout = world.shard.timeout().unwrap();
        let step = timeout.max(Duration::from_millis(1)).as_millis() as u64;
        world.ms += step;
        ms += step;
        wakes += 1;
        world.pass(0);
    }
    assert!(wakes < 30, "{wakes} wakes");
}

#[test]
fn heartbeats_of_a_crowd_file_nothing_and_leave_it_spread_out() {
    const SESSIONS: u64 = 2_000;
    let mut world = World::new();
    // They come within 20 s, and each beats every 30 s from then on.
    let ids: Vec<_> = (0..SESSIONS)
        .map(|n| {
            let id = world.live("alice", &format!("d{n}"));
            world.pass(20_000 / SESSIONS);
            id
        })
        .collect();
    let heartbeat = masked(0x8a, b"");
    for _ in 0..10 {
        world.pass(10_000);
        for &id in &ids {
            world.receive(id, &heartbeat);
            let before = world.shard.wheel.spread().0;
            world.receive(id, &heartbeat);
            assert_eq!(world.shard.wheel.spread().0, before);
            world.pass(20_000 / SESSIONS);
        }
        // One entry for each, and no tick at which many of them come up.
        let (entries, fullest) = world.shard.wheel.spread();
        assert_eq!(entries as u64, SESSIONS);
        let tick_ms = world.shard.settings.tick_ms();
        let evenly = SESSIONS * tick_ms / 20_000;
        assert!(fullest as u64 <= 3 * evenly, "{fullest} in one tick");
    }
    assert!(ids.iter().all(|&id| world.got(id).len() <= 1), "a probe");
}
