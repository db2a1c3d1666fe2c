//! One edge takes over from another, with everything in the midst of something: frames that have
//! come in part, requests, sockets that do not keep up. Both are in this process; what goes between
//! them is what goes between two.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use prost::Message as _;
use trunkline_edge::handover::state::{Hello, Refusal, Welcome};
use trunkline_edge::handover::{FORMAT, HandoverError, connect, listen};
use trunkline_edge::node::{EdgeConfig, EdgeNode, TakenOver};
use trunkline_edge::ring::DriverChoice;
use trunkline_edge::session::{Bounds, Settings};
use trunkline_identity::{KeySource, Verifier};
use trunkline_proto::client::{ClientBody, ClientFrame, ServerBody, ServerFrame};
use trunkline_proto::json;

use crate::node_support::{
    self, FakeCore, PATIENCE, TcpClient, WsClient, config, eventually, local, message,
};

static NAMES: AtomicU32 = AtomicU32::new(0);

/// A name that no other test has.
fn name() -> String {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    format!("@trunkline-test-{}-{number}", std::process::id())
}

/// A listener such as the command line has for its admin pages.
fn admin() -> OwnedFd {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()
}

fn offering(config: EdgeConfig, core: &Arc<FakeCore>, name: &str) -> EdgeNode {
    let mut node = node_support::start(config, local(core));
    node.offer_upgrade(listen(name).unwrap(), admin(), || {})
        .unwrap();
    node
}

fn take_over(
    config: EdgeConfig,
    core: &Arc<FakeCore>,
    predecessor: UnixStream,
) -> Result<(EdgeNode, TakenOver), HandoverError> {
    let verifier = Verifier::new(&KeySource::Secret(node_support::SECRET.into()));
    EdgeNode::take_over(config, verifier, local(core), predecessor)
}

/// The old edge ends, the new one is ready.
fn succeed(
    old: EdgeNode,
    config: EdgeConfig,
    core: &Arc<FakeCore>,
    name: &str,
) -> (EdgeNode, TakenOver) {
    let (new, taken) = take_over(config, core, connect(name).unwrap()).unwrap();
    let handle = old.handle();
    eventually("the old edge is over", || old.is_over());
    assert!(handle.is_handed_over());
    drop(old);
    let handle = new.handle();
    eventually("the new edge is ready", || handle.is_ready());
    (new, taken)
}

fn ack(frame: ServerFrame, id: &str) {
    match frame.frame {
        Some(ServerBody::Ack(ack)) => assert_eq!(ack.client_msg_id, id),
        other => panic!("in place of the ack of {id}: {other:?}"),
    }
}

fn json_frame(body: ClientBody) -> Vec<u8> {
    let frame = ClientFrame {
        id: String::new(),
        frame: Some(body),
    };
    let mut text = Vec::new();
    json::encode_client(&frame, &mut text);
    let mut bytes = vec![0x81, 0x80 | 126];
    bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
    // With a mask of zeros the payload is as it is.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&text);
    bytes
}

/// A long message: its frame has a length of two bytes.
fn long(id: &str) -> ClientBody {
    match message(id) {
        ClientBody::SendMessage(mut send) => {
            send.content = "é".repeat(300);
            ClientBody::SendMessage(send)
        }
        other => other,
    }
}

const REQUEST: &str = "GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

fn goes_on(from: (DriverChoice, usize), to: (DriverChoice, usize)) {
    let core = Arc::new(FakeCore::default());
    let name = name();
    let mut edge = offering(config(from.0, from.1), &core, &name);
    let (ws, tcp) = (edge.ws_addr(), edge.tcp_addr());
    let mut alice = WsClient::connect(ws, "alice", "d");
    let mut bob = TcpClient::connect(tcp, "bob", "d");
    let mut fresh = TcpStream::connect(ws).unwrap();
    fresh.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut half, mut at) = (json_frame(long("cut 0")), 1);
    alice.socket.write_all(&half[..at]).unwrap();
    fresh.write_all(&REQUEST.as_bytes()[..40]).unwrap();
    let handle = edge.handle();
    eventually("three are there", || handle.memory().connections == 3);

    // Again and again, in the midst of a frame each time.
    let mut next = to;
    for round in 1..=3u32 {
        let taken;
        (edge, taken) = succeed(edge, config(next.0, next.1), &core, &name);
        assert_eq!(taken.connections, 3);
        assert_eq!((edge.ws_addr(), edge.tcp_addr()), (ws, tcp));
        let admin: OwnedFd = taken.admin.unwrap().into();
        edge.offer_upgrade(taken.upgrade.unwrap(), admin, || {})
            .unwrap();
        assert_eq!(core.closed(), 0, "no session has ended");
        eventually("both are announced", || {
            core.announced_again() == 2 * round as usize
        });
        alice.socket.write_all(&half[at..]).unwrap();
        ack(alice.frame(), &format!("cut {}", round - 1));
        let id = format!("b{round}");
        bob.send("", message(&id));
        ack(bob.frame(), &id);
        // What the core sends reaches them under their new handles.
        core.push(core.open(), 10, 7);
        for frame in [alice.frame(), bob.frame()] {
            assert!(matches!(frame.frame, Some(ServerBody::Message(m)) if m.seq == 7));
        }
        half = json_frame(long(&format!("cut {round}")));
        at = [3, 9, half.len() - 2][round as usize % 3];
        alice.socket.write_all(&half[..at]).unwrap();
        eventually("all that was sent has come", || {
            edge.handle().memory().connections == 3
        });
        next = if round % 2 == 1 { from } else { to };
    }
    fresh.write_all(&REQUEST.as_bytes()[40..]).unwrap();
    let mut head = [0; 13];
    fresh.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 101 ");
    // Others come and go as ever.
    let mut carol = WsClient::connect(ws, "carol", "d");
    carol.send("", message("c"));
    ack(carol.frame(), "c");
    drop(bob);
    eventually("bob is gone", || core.closed() == 1);
    edge.drain(std::time::Duration::ZERO);
    assert_eq!(carol.close_code(), 1001);
}

#[test]
fn sessions_go_on_from_uring_to_uring() {
    goes_on((DriverChoice::Uring, 2), (DriverChoice::Uring, 2));
}

#[test]
fn sessions_go_on_from_epoll_to_epoll_with_other_shards() {
    goes_on((DriverChoice::Epoll, 1), (DriverChoice::Epoll, 3));
}

#[test]
fn sessions_go_on_from_uring_to_epoll_and_back_with_other_shards() {
    goes_on((DriverChoice::Uring, 3), (DriverChoice::Epoll, 1));
}

/// With room for more than a socket takes.
fn roomy(driver: DriverChoice) -> EdgeConfig {
    let plain = config(driver, 2);
    EdgeConfig {
        settings: Settings {
            outbox: Bounds {
                soft: 64 << 20,
                hard: 128 << 20,
            },
            ..plain.settings
        },
        ..plain
    }
}

fn what_a_slow_reader_is_owed(from: DriverChoice, to: DriverChoice) {
    const MESSAGES: u64 = 24;
    let core = Arc::new(FakeCore::default());
    let name = name();
    let old = offering(roomy(from), &core, &name);
    let mut alice = WsClient::connect(old.ws_addr(), "alice", "d");
    let mut bob = TcpClient::connect(old.tcp_addr(), "bob", "d");
    let owed = |edge: &EdgeNode| edge.handle().memory().outboxes_bytes;
    for seq in 1..=MESSAGES {
        core.push(core.open(), 1 << 20, seq);
    }
    eventually("both are owed something", || owed(&old) > 8 << 20);
    let (new, _) = succeed(old, roomy(to), &core, &name);
    eventually("the new edge owes it", || owed(&new) > 8 << 20);
    core.push(core.open(), 10, MESSAGES + 1);
    for seq in 1..=MESSAGES + 1 {
        for frame in [alice.frame(), bob.frame()] {
            match frame.frame {
                Some(ServerBody::Message(message)) => assert_eq!(message.seq, seq),
                other => panic!("in place of {seq}: {other:?}"),
            }
        }
    }
    eventually("nothing is owed any more", || owed(&new) == 0);
    alice.send("", message("a"));
    ack(alice.frame(), "a");
}

#[test]
fn a_slow_reader_gets_what_it_is_owed_from_uring() {
    what_a_slow_reader_is_owed(DriverChoice::Uring, DriverChoice::Uring);
    what_a_slow_reader_is_owed(DriverChoice::Uring, DriverChoice::Epoll);
}

#[test]
fn a_slow_reader_gets_what_it_is_owed_from_epoll() {
    what_a_slow_reader_is_owed(DriverChoice::Epoll, DriverChoice::Uring);
}

#[test]
fn what_the_core_does_not_answer_in_time_has_an_unknown_outcome() {
    let core = Arc::new(FakeCore::default());
    let name = name();
    let old = offering(config(DriverChoice::Uring, 1), &core, &name);
    let mut alice = WsClient::connect(old.ws_addr(), "alice", "d");
    core.set_silent(true);
    alice.send("", message("a"));
    eventually("the core has it", || core.taken() == 1);
    let (_new, _) = succeed(old, config(DriverChoice::Uring, 1), &core, &name);
    match alice.frame().frame {
        Some(ServerBody::Error(error)) => assert_eq!(error.code, "unavailable"),
        other => panic!("in place of the error: {other:?}"),
    }
    core.set_silent(false);
    alice.send("", message("a"));
    ack(alice.frame(), "a");
}

/// The messages of the hand-over, from the outside.
struct Wire(UnixStream);

impl Wire {
    fn open(name: &str) -> Self {
        let stream = connect(name).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        self.0.write_all(&[kind]).unwrap();
        self.0
            .write_all(&(body.len() as u32).to_be_bytes())
            .unwrap();
        self.0.write_all(body).unwrap();
    }

    /// Kind and body; descriptors that come along are closed by the kernel.
    fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 5];
        self.0.read_exact(&mut header).unwrap();
        let [kind, length @ ..] = header;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).unwrap();
        (kind, body)
    }

    fn greet(&mut self, hello: &Hello) -> (u8, Vec<u8>) {
        self.send(1, &hello.encode_to_vec());
        self.receive()
    }
}

fn hello() -> Hello {
    Hello {
        format: FORMAT,
        version: "test".into(),
        ..Hello::default()
    }
}

#[test]
fn a_successor_that_does_not_fit_is_refused_and_nothing_happens() {
    let core = Arc::new(FakeCore::default());
    let name = name();
    let named = EdgeConfig {
        edge_id: "one".into(),
        ..config(DriverChoice::Uring, 1)
    };
    let edge = offering(named, &core, &name);
    let mut alice = WsClient::connect(edge.ws_addr(), "alice", "d");
    for (hello, expected) in [
        (
            Hello {
                format: FORMAT + 1,
                ..hello()
            },
            "format",
        ),
        (
            Hello {
                ws: "127.0.0.1:1".into(),
                ..hello()
            },
            "listens on",
        ),
        (
            Hello {
                edge_id: "two".into(),
                ..hello()
            },
            "edge_id",
        ),
    ] {
        let (kind, body) = Wire::open(&name).greet(&hello);
        assert_eq!(kind, 3);
        let refusal = Refusal::decode(&body[..]).unwrap();
        assert!(refusal.reason.contains(expected), "{}", refusal.reason);
    }
    let mut small = config(DriverChoice::Uring, 1);
    small.driver_config.slots_max = 1;
    let mut bob = WsClient::connect(edge.ws_addr(), "bob", "d");
    eventually("two are there", || edge.handle().memory().connections == 2);
    let error = take_over(small, &core, connect(&name).unwrap()).err();
    assert!(
        matches!(error, Some(HandoverError::Room { .. })),
        "{error:?}"
    );
    alice.send("", message("a"));
    ack(alice.frame(), "a");
    bob.send("", message("b"));
    ack(bob.frame(), "b");
    assert_eq!(core.hellos().len(), 1, "the link was not touched");
    eventually("all are counted", || {
        let mut text = String::new();
        edge.handle().encode_metrics(&mut text);
        text.contains("trunkline_edge_upgrades_failed_total 4")
    });
    // A drain is not handed over.
    edge.drain(PATIENCE);
    let (kind, body) = Wire::open(&name).greet(&hello());
    let refusal = Refusal::decode(&body[..]).unwrap();
    assert_eq!((kind, &*refusal.reason), (3, "it is draining"));
}

/// A successor that goes away after each step before the last one.
fn goes_on_alone(driver: DriverChoice) {
    let core = Arc::new(FakeCore::default());
    let name = name();
    let edge = offering(config(driver, 2), &core, &name);
    let (ws, tcp) = (edge.ws_addr(), edge.tcp_addr());
    let mut people: Vec<WsClient> = (0..20)
        .map(|n| WsClient::connect(ws, &format!("user{n}"), "d"))
        .collect();
    let mut bob = TcpClient::connect(tcp, "bob", "d");
    let frame = json_frame(long("cut"));
    eventually("all are there", || edge.handle().memory().connections == 21);
    for steps in 0..6 {
        people[0].socket.write_all(&frame[..50]).unwrap();
        let mut wire = Wire::open(&name);
        let (kind, body) = wire.greet(&hello());
        assert_eq!(kind, 2);
        assert_eq!(Welcome::decode(&body[..]).unwrap().connections, 21);
        if steps > 0 {
            wire.send(4, &[]);
        }
        if steps > 1 {
            assert_eq!(wire.receive().0, 5);
            // While everything holds still: it must not be lost.
            bob.send("", message("meanwhile"));
            people[0].socket.write_all(&frame[50..]).unwrap();
        }
        if steps > 2 {
            let mut kind = wire.receive().0;
            while kind == 6 && steps > 3 {
                wire.send(7, &[]);
                kind = wire.receive().0;
            }
            if steps > 4 {
                assert_eq!(kind, 8);
                wire.send(9, &[]);
                assert_eq!(wire.receive().0, 10, "the word that it may");
            }
        }
        drop(wire);
        if steps > 1 {
            ack(bob.frame(), "meanwhile");
        } else {
            people[0].socket.write_all(&frame[50..]).unwrap();
        }
        ack(people[0].frame(), "cut");
        for (n, person) in people.iter_mut().enumerate() {
            person.send("", message(&format!("m{n}")));
        }
        for (n, person) in people.iter_mut().enumerate() {
            ack(person.frame(), &format!("m{n}"));
        }
        let mut new = TcpClient::connect(tcp, "new", "d");
        new.send("", message("new"));
        ack(new.frame(), "new");
        drop(new);
        let failed = format!("upgrades_failed_total {}", steps + 1);
        eventually("the failure is counted", || {
            let mut text = String::new();
            edge.handle().encode_metrics(&mut text);
            text.contains(&failed) && edge.handle().memory().connections == 21
        });
    }
    assert_eq!(core.hellos().len(), 1, "the link was not touched");
    // And after all that one that stays.
    let (_new, taken) = succeed(edge, config(driver, 1), &core, &name);
    assert_eq!(taken.connections, 21);
    bob.send("", message("z"));
    ack(bob.frame(), "z");
}

#[test]
fn an_edge_goes_on_when_its_successor_vanishes_midway_on_uring() {
    goes_on_alone(DriverChoice::Uring);
}

#[test]
fn an_edge_goes_on_when_its_successor_vanishes_midway_on_epoll() {
    goes_on_alone(DriverChoice::Epoll);
}

#[test]
fn an_edge_that_ends_by_itself_takes_its_socket_along() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upgrade");
    let name = path.to_str().unwrap().to_owned();
    let core = Arc::new(FakeCore::default());
    let edge = offering(config(DriverChoice::Uring, 1), &core, &name);
    assert!(path.exists());
    edge.stop();
    drop(edge);
    assert!(!path.exists());
    let error = connect(&name).err();
    assert!(
        matches!(error, Some(HandoverError::NobodyThere { .. })),
        "{error:?}"
    );
}
