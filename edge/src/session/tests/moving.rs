use prost::Message as _;
use trunkline_proto::client::{Message, ServerBody};

use super::super::testing::{Got, World, masked, request, send_message};
use super::super::{Settings, State, Transport};
use crate::handover::state;
use crate::observe::counters::Number;
use crate::ring::ConnId;

/// Slots of the successor are others, and so is its clock.
const SLOTS_ON: u32 = 700;
const CLOCK_ON_MS: u64 = 600_000;

/// The same id with the successor.
fn moved(id: ConnId) -> ConnId {
    ConnId {
        slot: id.slot + SLOTS_ON,
        generation: id.generation + 5,
    }
}

/// Another shard with all the connections of this one, as they go over the wire. `unsent`: what the
/// driver holds of each that is blocked.
fn successor(world: &mut World, settings: Settings, unsent: usize) -> World {
    world.turn();
    let mut next = World::without_core(settings);
    next.ms = world.ms + CLOCK_ON_MS;
    next.turn();
    let mut from = 0;
    while let Some(id) = world.shard.next_connection(from) {
        from = id.slot + 1;
        let bytes = world.shard.depart(id).unwrap().encode_to_vec();
        let carried = state::Connection::decode(&bytes[..]).unwrap();
        let unsent = carried.outbox.as_ref().map_or(0, |_| unsent);
        next.shard.arrive(moved(id), carried, unsent).unwrap();
    }
    next.turn();
    next
}

fn attach(world: &mut World) {
    world.shard.link_up(world.credit.clone());
    world.turn();
}

#[test]
fn silence_and_deadlines_go_on() {
    let mut world = World::new();
    let idle = world.upgraded(true);
    world.pass(4_000);
    let silent = world.live("alice", "d");
    let asked = world.live_tcp("bob", "d");
    world.pass(5_900);
    let mut next = successor(&mut world, Settings::default(), 0);
    let (idle, silent, asked) = (moved(idle), moved(silent), moved(asked));
    assert_eq!(
        next.shard.list(Some(State::Live), 1)[0].silent_ms / 1_000,
        5
    );
    assert_eq!(next.got(idle), []);
    next.pass(1_000);
    assert!(matches!(
        &next.got(idle)[..],
        [Got::Frame(_), Got::Close(4408, _)]
    ));
    next.pass(52_500);
    assert_eq!(next.got(silent), []);
    next.pass(1_500);
    assert_eq!(next.got(silent), [Got::Ping]);
    assert_eq!(next.got_tcp(asked).len(), 1);
    // Asked before the hand-over, missed after it.
    let mut last = successor(&mut next, Settings::default(), 0);
    last.pass(6_000);
    assert_eq!(
        last.got(moved(silent)),
        [Got::Close(4411, "heartbeat missed".into())]
    );
}

#[test]
fn the_send_rate_goes_on() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    for n in 0..40 {
        world.say(id, &send_message(&format!("m{n}")));
    }
    assert_eq!(world.got(id), []);
    let mut next = successor(&mut world, Settings::default(), 0);
    attach(&mut next);
    next.got(moved(id));
    next.say(moved(id), &send_message("over"));
    assert_eq!(next.error(moved(id)).code, "rate_limited");
    next.pass(100);
    next.heard();
    next.say(moved(id), &send_message("later"));
    assert_eq!(next.heard(), ["700 send later"]);
}

#[test]
fn a_request_in_parts_and_early_frames_go_along() {
    let mut world = World::new();
    let asking = world.accept(Transport::WebSocket);
    let head = request("/v1/connect", "");
    world.receive(asking, &head.as_bytes()[..30]);
    let early = world.upgraded(true);
    world.connect(early, "alice", "d");
    world.say(early, &send_message("early"));
    let mut next = successor(&mut world, Settings::default(), 0);
    attach(&mut next);
    let (asking, early) = (moved(asking), moved(early));
    // Not registered yet, so not announced as one that was.
    assert_eq!(next.heard(), ["701 opened alice/d"]);
    next.receive(asking, &head.as_bytes()[30..]);
    let answer = next.sent.remove(&asking.slot).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    next.register(early);
    match &next.got(early)[..] {
        [Got::Frame(frame)] => {
            assert_eq!(frame.id, "c1", "the answer to its connect");
            assert!(matches!(frame.frame, Some(ServerBody::Connected(_))));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(next.heard(), ["701 send early"]);
}

#[test]
fn what_a_slow_socket_is_owed_goes_along() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.shard.blocked(id, 100);
    for seq in 1..=3 {
        let message = Message {
            seq,
            ..Message::default()
        };
        world.deliver(id, ServerBody::Message(message));
    }
    world.receive(id, &masked(0x89, b"ping"));
    let owed = world.shard.counters().get(Number::OutboxBytes);
    let mut next = successor(&mut world, Settings::default(), 100);
    let id = moved(id);
    assert_eq!(next.shard.counters().get(Number::OutboxBytes), owed);
    assert_eq!(next.shard.counters().get(Number::OutboxSockets), 1);
    assert_eq!(next.got(id), [], "the driver holds a tail");
    next.shard.drained(id);
    next.turn();
    let got = next.got(id);
    assert_eq!(got[0], Got::Pong(b"ping".to_vec()));
    let seqs: Vec<u64> = got[1..]
        .iter()
        .map(|got| match got {
            Got::Frame(frame) => match &frame.frame {
                Some(ServerBody::Message(message)) => message.seq,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seqs, [1, 2, 3]);
    assert_eq!(next.shard.counters().get(Number::OutboxBytes), 0);
}

#[test]
fn only_who_waits_for_an_answer_hears_that_the_outcome_is_unknown() {
    let mut world = World::new();
    let (waits, idle) = (world.live("alice", "d"), world.live("bob", "d"));
    world.say(waits, &send_message("m"));
    let mut next = successor(&mut world, Settings::default(), 0);
    assert_eq!(next.error(moved(waits)).code, "unavailable");
    assert_eq!(next.got(moved(idle)), []);
    attach(&mut next);
    assert_eq!(next.heard(), ["700 again alice/d", "701 again bob/d"]);
    assert!(next.shard.all_announced());
}

#[test]
fn a_farewell_goes_on_and_nothing_is_counted_twice() {
    let mut world = World::new();
    let (leaving, staying) = (world.live("alice", "d"), world.live_tcp("bob", "d"));
    world.receive(leaving, &masked(0x88, &1000u16.to_be_bytes()));
    assert_eq!(world.fins, [leaving]);
    let mut next = successor(&mut world, Settings::default(), 0);
    let (leaving, staying) = (moved(leaving), moved(staying));
    let numbers = |world: &mut World| {
        let counters = world.shard.counters();
        [
            Number::WsClosing,
            Number::WsLive,
            Number::TcpLive,
            Number::TakenOver,
        ]
        .map(|number| counters.get(number))
    };
    assert_eq!(numbers(&mut next), [1, 0, 1, 2]);
    // The peer's end is awaited no longer than it would have been.
    next.pass(3_000);
    assert_eq!(next.closes, [leaving]);
    next.shard.closed(leaving);
    next.shard.closed(staying);
    assert_eq!(numbers(&mut next), [0, 0, 0, 2]);
    assert_eq!(next.shard.texts_kept(), 0);
    let closed = next.shard.list_closed(9);
    assert_eq!(
        (&*closed[1].user, closed[1].reason),
        ("alice", "closed by peer")
    );
}

#[test]
fn nonsense_is_refused() {
    let mut world = World::new();
    let id = world.live("alice", "d");
    world.turn();
    let good = world.shard.depart(id).unwrap();
    let mut next = World::without_core(Settings::default());
    let harms: [fn(&mut state::Connection); 6] = [
        |c| c.encoding = 4,
        |c| c.state = 0,
        |c| c.state = 6,
        |c| c.end = 77,
        |c| c.peer = "nowhere".into(),
        |c| c.tcp = Some(state::TcpDecoder::default()),
    ];
    for harm in harms {
        let mut bad = good.clone();
        harm(&mut bad);
        assert!(next.shard.arrive(moved(id), bad, 0).is_err());
    }
    assert_eq!(next.shard.connections(), 0);
    next.shard.arrive(moved(id), good, 0).unwrap();
    assert_eq!(next.shard.connections(), 1);
}
