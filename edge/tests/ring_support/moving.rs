//! Sockets that go from one driver to another, of every kind to every kind.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use trunkline_edge::ring::{ConnId, Driver, DriverConfig, Hold};

use super::{DEADLINE, Kind, Seen, Shard, pattern, read_in_pieces};

const SUCCESSORS: [Kind; 4] = [Kind::Uring, Kind::PolledRings, Kind::Rings, Kind::Epoll];
/// More than two sockets hold.
const UNREAD: usize = 16 << 20;

fn successor(kind: Kind) -> Box<dyn Driver> {
    kind.open(DriverConfig::default())
}

fn hold(shard: &mut Shard, hold: Hold) {
    shard.driver.hold(hold);
    shard.until("the hold", |shard| shard.driver.is_held());
}

/// Puts everything into the hands of another driver, which goes on; the new ids by the old ones.
fn move_to(shard: &mut Shard, kind: Kind) -> HashMap<ConnId, ConnId> {
    hold(shard, Hold::Everything);
    let mut next = successor(kind);
    next.hold(Hold::Everything);
    let mut ids = HashMap::new();
    for conn in shard.live().clone() {
        if let Some(carried) = shard.driver.export(conn).unwrap() {
            ids.insert(conn, next.adopt(carried).unwrap());
        }
    }
    let mut listeners = Vec::new();
    for (id, fd) in shard.driver.listeners().unwrap() {
        assert_eq!(id, 7);
        listeners.push(fd.into());
    }
    next.adopt_listeners(7, listeners).unwrap();
    next.hold(Hold::Nothing);
    std::mem::replace(&mut shard.driver, next).abandon();
    shard.renamed(&ids);
    shard.kind = kind;
    ids
}

pub fn a_held_driver_takes_nothing(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (mut peer, conn) = shard.pair();
    hold(&mut shard, Hold::Reading);
    peer.write_all(b"while held").unwrap();
    let mut waiting = TcpStream::connect(shard.address).unwrap();
    // It still sends.
    shard.driver.send(conn, Bytes::from_static(b"hello"));
    shard.turn(Duration::ZERO);
    let mut hello = [0; 5];
    peer.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    for _ in 0..50 {
        shard.turn(Duration::from_millis(1));
    }
    assert!(shard.received[&conn].is_empty());
    assert_eq!(shard.live().len(), 1);
    let copy = std::net::TcpStream::from(shard.driver.duplicate(conn).unwrap());
    let mut bytes = [0; 32];
    assert_eq!(copy.peek(&mut bytes).unwrap(), 10, "nothing was taken");

    // Let go, it goes on as if nothing had been.
    shard.driver.hold(Hold::Nothing);
    shard.until("the bytes", |shard| shard.received[&conn] == b"while held");
    shard.until("the one who waited", |shard| shard.live().len() == 2);
    waiting.write_all(b"me too").unwrap();
    shard.until("its bytes", |shard| {
        shard.received.values().any(|bytes| bytes == b"me too")
    });
}

pub fn connections_go_on_with_a_successor(kind: Kind) {
    for next in SUCCESSORS {
        let mut shard = Shard::new(kind);
        let (mut busy, busy_id) = shard.pair();
        let (mut quiet, quiet_id) = shard.pair();
        busy.write_all(b"before").unwrap();
        shard.until("the bytes", |shard| shard.received[&busy_id] == b"before");
        hold(&mut shard, Hold::Everything);
        // Read by nobody yet: a queue in the kernel each.
        busy.write_all(b", between").unwrap();
        let mut waiting = TcpStream::connect(shard.address).unwrap();
        let ids = move_to(&mut shard, next);
        let (busy_id, quiet_id) = (ids[&busy_id], ids[&quiet_id]);
        busy.write_all(b" and after").unwrap();
        quiet.write_all(b"late").unwrap();
        shard.until("all bytes", |shard| {
            shard.received[&busy_id] == b"before, between and after"
                && shard.received[&quiet_id] == b"late"
        });
        shard.driver.send(quiet_id, Bytes::from_static(b"answer"));
        shard.turn(Duration::ZERO);
        let mut answer = [0; 6];
        quiet.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        shard.until("the one who waited", |shard| shard.live().len() == 3);
        waiting.write_all(b"me").unwrap();
        shard.until("its bytes", |shard| {
            shard.received.values().any(|bytes| bytes == b"me")
        });
        let (_late, _) = shard.pair();
        drop(busy);
        shard.until_seen(&Seen::Eof(busy_id));
        shard.driver.close(busy_id);
        assert_eq!(shard.until_closed(busy_id), None);
    }
}

pub fn a_tail_and_both_ends_go_along(kind: Kind) {
    for next in SUCCESSORS {
        let mut shard = Shard::new(kind);
        let (peer, conn) = shard.pair();
        let data = pattern(UNREAD, 9);
        shard.driver.send(conn, Bytes::from(data.clone()));
        shard.until("Blocked", |shard| shard.is_blocked(conn));
        // FIN is due behind the tail, and the peer's has come.
        shard.driver.shutdown(conn);
        peer.shutdown(Shutdown::Write).unwrap();
        shard.until_seen(&Seen::Eof(conn));
        let conn = move_to(&mut shard, next)[&conn];
        let reading = std::thread::spawn(move || read_in_pieces(peer, 64 << 10));
        let received = shard.serve(reading);
        assert!(received == data, "{kind:?} to {next:?}");
        assert_eq!(shard.until_closed(conn), None);
        let eofs = shard.count(|seen| matches!(seen, Seen::Eof(_)));
        assert_eq!(eofs, 1, "told once");
    }
}

pub fn a_hold_that_is_given_up_loses_no_tail(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (peer, conn) = shard.pair();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    let data = pattern(UNREAD, 4);
    shard.driver.send(conn, Bytes::from(data.clone()));
    shard.until("Blocked", |shard| shard.is_blocked(conn));
    hold(&mut shard, Hold::Everything);
    drop(shard.driver.export(conn).unwrap());
    let reading = std::thread::spawn(move || read_in_pieces(peer, 64 << 10));
    // The room that comes now is not used.
    for _ in 0..20 {
        shard.turn(Duration::from_millis(1));
    }
    assert!(shard.is_blocked(conn));
    shard.driver.hold(Hold::Nothing);
    shard.until_seen(&Seen::Drained(conn));
    shard.driver.shutdown(conn);
    assert!(shard.serve(reading) == data);
}
