//! Connections: how they come about, how they end, and that nothing of them stays.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;
use trunkline_edge::ring::{ConnId, DriverConfig, bind_reuseport};

use super::{DEADLINE, Kind, Seen, Shard, descriptors, pattern, read_in_pieces};

pub fn connections_come_and_go_without_a_trace(kind: Kind) {
    let mut shard = Shard::with(
        kind,
        DriverConfig {
            slots_max: 600,
            ..DriverConfig::default()
        },
    );
    let (peer, first) = shard.pair();
    drop(peer);
    shard.until_seen(&Seen::Eof(first));
    shard.driver.close(first);
    shard.until_closed(first);
    let baseline = descriptors();

    for _ in 0..20 {
        shard.seen.clear();
        let peers: Vec<_> = (0..100)
            .map(|_| TcpStream::connect(shard.address).unwrap())
            .collect();
        shard.until("100 accepted", |shard| {
            shard.count(|seen| matches!(seen, Seen::Accepted(..))) == 100
        });
        drop(peers);
        shard.until("100 ends", |shard| {
            shard.count(|seen| matches!(seen, Seen::Eof(_))) == 100
        });
        for conn in shard.live().clone() {
            assert!(conn.slot < shard.driver.slots_max());
            assert_ne!(conn, first, "an id was used twice");
            shard.driver.close(conn);
        }
        shard.until("100 closed", |shard| shard.live().is_empty());
    }
    let stats = shard.stats();
    assert_eq!((stats.accepted, stats.closed), (2_001, 2_001));
    assert_eq!(stats.accept_refused, 0);
    assert_eq!(descriptors(), baseline);
    // Slots are reused: the newest connection has a low one, of a late generation.
    let (_peer, last) = shard.pair();
    assert!(last.generation > 2, "{last:?}");
}

pub fn a_reset_is_reported(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (peer, conn) = shard.pair();
    SockRef::from(&peer)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(peer);
    assert_eq!(
        shard.until_closed(conn),
        Some(io::ErrorKind::ConnectionReset)
    );
    assert_eq!(shard.count(|seen| matches!(seen, Seen::Closed(..))), 1);
}

pub fn close_reaches_the_peer(kind: Kind) {
    let mut shard = Shard::new(kind);
    let before = descriptors();
    for _ in 0..50 {
        let (mut peer, conn) = shard.pair();
        shard.driver.close(conn);
        let reading = std::thread::spawn(move || peer.read(&mut [0; 8]));
        // An orderly end: nothing was unread.
        assert_eq!(shard.serve(reading).unwrap(), 0);
        assert_eq!(shard.until_closed(conn), None);
    }
    assert_eq!(descriptors(), before);
    assert_eq!(shard.stats().closed, 50);
}

pub fn outgoing_connections_work(kind: Kind) {
    let mut shard = Shard::new(kind);
    let source: SocketAddr = ([127, 0, 0, 9], 0).into();
    let target = shard.address;
    let plain = shard.driver.connect(target, None).unwrap();
    let bound = shard.driver.connect(target, Some(source)).unwrap();
    shard.until("both up, both ends", |shard| {
        shard.count(|seen| matches!(seen, Seen::Connected(_) | Seen::Accepted(..))) == 4
    });
    assert!(shard.seen.contains(&Seen::Connected(plain)));
    assert!(shard.seen.contains(&Seen::Connected(bound)));
    let (far, from) = shard
        .seen
        .iter()
        .find_map(|seen| match seen {
            Seen::Accepted(conn, 7, peer) if peer.ip() == source.ip() => Some((*conn, *peer)),
            _ => None,
        })
        .expect("a connection from the bound source");
    assert_ne!(from.port(), 0);

    shard.driver.send(bound, Bytes::from_static(b"question"));
    shard.until("question", |shard| shard.received[&far] == b"question");
    shard.driver.send(far, Bytes::from_static(b"answer"));
    shard.until("answer", |shard| shard.received[&bound] == b"answer");
    shard.driver.close(bound);
    shard.until_seen(&Seen::Eof(far));
    assert_eq!(shard.until_closed(bound), None);
    assert_eq!(shard.closed(plain), None);
}

pub fn a_refused_connection_is_closed(kind: Kind) {
    let mut shard = Shard::new(kind);
    // A port that was bound and is free again.
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let conn = shard.driver.connect(refused, None).unwrap();
    assert_eq!(
        shard.until_closed(conn),
        Some(io::ErrorKind::ConnectionRefused)
    );
    // A source that is not of this host.
    let foreign: SocketAddr = ([192, 0, 2, 1], 0).into();
    match shard.driver.connect(shard.address, Some(foreign)) {
        Ok(conn) => assert_eq!(
            shard.until_closed(conn),
            Some(io::ErrorKind::AddrNotAvailable)
        ),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable),
    }
    assert_eq!(shard.count(|seen| matches!(seen, Seen::Connected(_))), 0);
}

pub fn an_attempt_can_be_given_up(kind: Kind) {
    let mut shard = Shard::new(kind);
    // A listener that accepts nothing: once its queue is full, further attempts hang.
    let deaf = bind_reuseport(([127, 0, 0, 1], 0).into(), 1).unwrap();
    let target = deaf.local_addr().unwrap();
    let conns: Vec<ConnId> = (0..8)
        .map(|_| shard.driver.connect(target, None).unwrap())
        .collect();
    shard.until("first connections", |shard| {
        shard.count(|seen| matches!(seen, Seen::Connected(_))) >= 2
    });
    let hanging = *conns
        .iter()
        .find(|conn| !shard.seen.contains(&Seen::Connected(**conn)))
        .expect("an attempt that hangs");
    let fresh = shard.driver.connect(target, None).unwrap();
    shard.driver.close(hanging);
    // At once, while its socket is still being made.
    shard.driver.close(fresh);
    assert_eq!(shard.until_closed(hanging), None);
    assert_eq!(shard.until_closed(fresh), None);
}

pub fn many_outgoing_connections_at_once(kind: Kind) {
    let mut shard = Shard::new(kind);
    let before = descriptors();
    let target = shard.address;
    for _ in 0..2_000 {
        shard.driver.connect(target, None).unwrap();
    }
    shard.until("4,000 ends", |shard| {
        shard.count(|seen| matches!(seen, Seen::Connected(_) | Seen::Accepted(..))) == 4_000
    });
    if kind != Kind::Epoll {
        assert_eq!(descriptors(), before, "direct descriptors only");
    }
    for conn in shard.live().clone() {
        shard.driver.close(conn);
    }
    shard.until("all closed", |shard| shard.live().is_empty());
    assert_eq!(shard.stats().closed, 4_000);
    assert_eq!(descriptors(), before);
}

pub fn a_full_table_recovers(kind: Kind) {
    let mut shard = Shard::with(
        kind,
        DriverConfig {
            slots_max: 24,
            ..DriverConfig::default()
        },
    );
    let capacity = shard.driver.slots_max() as usize;
    assert_eq!(capacity, 24);
    // The listen queue takes them all, the table does not.
    let peers: Vec<_> = (0..96)
        .map(|_| TcpStream::connect(shard.address).unwrap())
        .collect();
    shard.until("a table as full as it may be", |shard| {
        shard.live().len() * 100 >= capacity * 80
    });
    for _ in 0..20 {
        shard.turn(Duration::from_millis(1));
        assert!(shard.live().len() <= capacity);
    }
    let refused = shard.stats().accept_refused;
    // Nobody is taken from the queue of the listener for whom there is no room.
    assert_eq!(refused, 0, "{kind:?}");
    // Every connection gets its turn when others close.
    let mut handled = 0;
    shard.until("all others", |shard| {
        for conn in shard.live().clone() {
            shard.driver.close(conn);
        }
        let stats = shard.stats();
        handled = stats.accepted + stats.accept_refused;
        handled == 96
    });
    let accepted = shard.stats().accepted;
    assert!(accepted > capacity as u64, "none was accepted later");
    drop(peers);
    shard.until("all closed", |shard| {
        for conn in shard.live().clone() {
            shard.driver.close(conn);
        }
        shard.live().is_empty()
    });
    let (_peer, _conn) = shard.pair();
}

pub fn stale_ids_do_nothing(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (_peer, old) = shard.pair();
    shard.driver.close(old);
    shard.until_closed(old);
    let mut found = None;
    let mut peers = Vec::new();
    while found.is_none() {
        let (peer, conn) = shard.pair();
        peers.push(peer);
        found = (conn.slot == old.slot).then_some(conn);
        assert!(peers.len() < 100, "the slot is not reused");
    }
    let new = found.unwrap();
    assert_ne!(new.generation, old.generation);

    let far = ConnId {
        slot: u32::MAX,
        generation: 1,
    };
    for stale in [old, far] {
        shard.driver.send(stale, Bytes::from_static(b"misdirected"));
        shard.driver.shutdown(stale);
        shard.driver.close(stale);
        assert!(shard.driver.duplicate(stale).is_err());
    }
    shard.driver.send(new, Bytes::from_static(b"for you"));
    shard.driver.shutdown(new);
    let peer = peers.pop().unwrap();
    let reading = std::thread::spawn(move || read_in_pieces(peer, 64));
    assert_eq!(shard.serve(reading), b"for you");
    shard.until_closed(new);
    assert_eq!(
        shard.count(|seen| matches!(seen, Seen::Closed(conn, _) if *conn == old)),
        1
    );
}

pub fn nagle_is_off(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (_peer, accepted) = shard.pair();
    let outgoing = shard.driver.connect(shard.address, None).unwrap();
    shard.until_seen(&Seen::Connected(outgoing));
    for conn in [accepted, outgoing] {
        let socket = shard.driver.duplicate(conn).unwrap();
        assert!(SockRef::from(&socket).tcp_nodelay().unwrap(), "{conn:?}");
    }
    // Looking does not disturb.
    shard
        .driver
        .send(outgoing, Bytes::from_static(b"still here"));
    shard.until("bytes", |shard| {
        shard.received.values().any(|bytes| bytes == b"still here")
    });
}

pub fn peers_have_addresses(kind: Kind) {
    let mut shard = Shard::new(kind);
    // `pair` finds the connection by the peer's address.
    let (peer, conn) = shard.pair();
    let own = peer.local_addr().unwrap();
    assert!(shard.seen.contains(&Seen::Accepted(conn, 7, own)));

    let v6 = match bind_reuseport("[::1]:0".parse().unwrap(), 16) {
        Ok(listener) => listener,
        Err(error) => {
            // A host without IPv6: said aloud, the IPv4 half has run.
            assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
            return;
        }
    };
    let target = v6.local_addr().unwrap();
    shard.driver.listen(8, v6).unwrap();
    let peer = TcpStream::connect(target).unwrap();
    let own = peer.local_addr().unwrap();
    shard.until("IPv6 accept", |shard| {
        shard
            .seen
            .iter()
            .any(|seen| matches!(seen, Seen::Accepted(_, 8, address) if *address == own))
    });
}

pub fn arrivals_keep_to_the_budget(kind: Kind) {
    let mut shard = Shard::with(
        kind,
        DriverConfig {
            accept_budget: 8,
            ..DriverConfig::default()
        },
    );
    let peers: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(shard.address).unwrap())
        .collect();
    let deadline = Instant::now() + DEADLINE;
    let mut accepted = 0;
    while accepted < peers.len() {
        assert!(Instant::now() < deadline);
        shard.seen.clear();
        shard.turn(Duration::from_millis(5));
        let new = shard.count(|seen| matches!(seen, Seen::Accepted(..)));
        // Several rings share the budget.
        assert!(new <= 8, "{kind:?}: {new} in one turn");
        accepted += new;
    }
    assert_eq!(shard.live().len(), 200);
    assert_eq!(shard.stats().accept_refused, 0);
}

/// Arrivals of several rings go to one of them until it is three quarters full, then to the next, and
/// back to one that has emptied; beyond that all are filled.
pub fn rings_are_filled_one_after_another(kind: Kind) {
    let rings: u32 = match kind {
        Kind::Rings | Kind::PolledRings => 3,
        Kind::Uring | Kind::Polled | Kind::Epoll => 1,
    };
    let mut shard = Shard::with(
        kind,
        DriverConfig {
            slots_max: 20 * rings,
            ..DriverConfig::default()
        },
    );
    let each = shard.driver.slots_max() / rings;
    let mut peers = Vec::new();
    let mut arrive = |shard: &mut Shard| {
        let accepted = shard.stats().accepted;
        peers.push(TcpStream::connect(shard.address).unwrap());
        shard.until("an arrival", |shard| shard.stats().accepted > accepted);
        shard.until("its event", |shard| {
            let events = shard.count(|seen| matches!(seen, Seen::Accepted(..)));
            events as u64 == shard.stats().accepted
        });
    };
    for ring in 0..rings {
        for _ in 0..15 {
            arrive(&mut shard);
        }
        let of_ring = shard.live().iter().filter(|conn| conn.slot / each == ring);
        assert_eq!(of_ring.count(), 15, "{kind:?}");
    }
    // All are filled well: there is room for some more in each.
    for _ in 0..3 * rings {
        arrive(&mut shard);
    }
    assert_eq!(shard.live().len() as u32, 18 * rings);
    assert_eq!(shard.stats().accept_refused, 0);
}

/// Hundreds wait at the port: held back, they stay in the kernel and the driver sleeps; let in by few,
/// no turn takes more, and each serves who is there.
pub fn the_established_are_served_between_arrivals(kind: Kind) {
    const WAITING: usize = 300;
    const EACH_TURN: u32 = 3;
    let mut shard = Shard::echoing(kind, DriverConfig::default());
    let (mut calm, conn) = shard.pair();
    calm.set_nodelay(true).unwrap();
    shard.seen.clear();
    shard.driver.admit(0);
    // What was under way has ended.
    shard.turn(Duration::ZERO);
    shard.turn(Duration::from_millis(1));
    let waiting: Vec<_> = (0..WAITING)
        .map(|_| TcpStream::connect(shard.address).unwrap())
        .collect();
    // Arrivals until an established connection was served and answered, of the turns that it took.
    let mut ping = |shard: &mut Shard| {
        let arrival = |seen: &Seen| matches!(seen, Seen::Accepted(..));
        let served = |seen: &Seen| *seen == Seen::Received(conn, 4);
        calm.write_all(b"ping").unwrap();
        let mut arrived = 0;
        // A receive by poll takes two turns: one to see that there are bytes, one to read them.
        for turn in 1.. {
            assert!(turn <= 2, "{kind:?}: not served");
            shard.seen.clear();
            shard.turn(Duration::from_millis(100));
            let count = shard.count(arrival);
            assert!(count <= EACH_TURN as usize, "{kind:?}: {count} in a turn");
            arrived += count;
            if let Some(at) = shard.seen.iter().position(served) {
                let newcomer = shard.seen.iter().position(arrival);
                let is_first = newcomer.is_none_or(|newcomer| at < newcomer);
                assert!(is_first, "{kind:?}: who is there comes first");
                break;
            }
        }
        // The echo leaves with a turn in which nobody is let in.
        shard.driver.admit(0);
        shard.seen.clear();
        shard.turn(Duration::ZERO);
        assert_eq!(shard.count(arrival), 0, "{kind:?}");
        calm.read_exact(&mut [0; 4]).unwrap();
        arrived
    };
    for _ in 0..20 {
        assert_eq!(ping(&mut shard), 0, "{kind:?}");
    }
    let stats = shard.stats();
    assert_eq!((stats.accepted, stats.accepts_waiting), (1, 0), "{kind:?}");
    let enters = stats.enters;
    for _ in 0..3 {
        shard.turn(Duration::from_millis(20));
    }
    // No turn ended early for those who wait.
    assert!(shard.stats().enters - enters <= 12, "{kind:?}");
    let (deadline, mut arrived) = (Instant::now() + DEADLINE, 0);
    while arrived < WAITING {
        assert!(Instant::now() < deadline, "{kind:?}: {arrived} arrived");
        shard.driver.admit(EACH_TURN);
        arrived += ping(&mut shard);
    }
    assert_eq!(shard.stats().accept_refused, 0);
    drop(waiting);
}

pub fn accepting_can_be_paused(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (mut early, conn) = shard.pair();
    shard.driver.set_accepting(false);
    for _ in 0..5 {
        shard.turn(Duration::from_millis(1));
    }
    let late = TcpStream::connect(shard.address).unwrap();
    early.write_all(b"still served").unwrap();
    shard.until("bytes", |shard| shard.received[&conn] == b"still served");
    for _ in 0..5 {
        shard.turn(Duration::from_millis(1));
    }
    assert_eq!(shard.stats().accepted, 1);
    shard.driver.set_accepting(true);
    shard.until("late accept", |shard| shard.stats().accepted == 2);
    drop(late);
}

pub fn closed_listeners_refuse(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (mut peer, conn) = shard.pair();
    shard.driver.close_listeners();
    let refused = TcpStream::connect(shard.address).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    // Those who are there do not notice.
    peer.write_all(b"hello").unwrap();
    shard.until("bytes", |shard| shard.received[&conn] == b"hello");
    // The port is free for a successor.
    let address = shard.address;
    shard.until("free port", |_| bind_reuseport(address, 16).is_ok());
}

pub fn a_dropped_driver_lets_go(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (mut peer, _conn) = shard.pair();
    let address = shard.address;
    drop(shard);
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    // FIN or reset, but not silence. From a thread of its own: taking a ring apart interrupts
    // the system calls of the thread that had it.
    let reading = std::thread::spawn(move || peer.read(&mut [0; 8]));
    match reading.join().unwrap() {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

/// Peers and shard end connections in every way at every moment; all must be accounted for.
pub fn nothing_leaks_under_fire(kind: Kind) {
    const PEERS: u32 = 4;
    const EACH: u32 = 150;
    let mut shard = Shard::with(
        kind,
        DriverConfig {
            slots_max: 60,
            buffers: 8,
            ..DriverConfig::default()
        },
    );
    let before = descriptors();
    let address = shard.address;
    let peers: Vec<_> = (0..PEERS)
        .map(|seed| {
            std::thread::spawn(move || {
                for round in 0..EACH {
                    misbehave(address, pattern(4, seed * EACH + round)[2]);
                }
            })
        })
        .collect();
    let chunk = Bytes::from(pattern(300_000, 1));
    let mut dice = pattern(65_536, 99).into_iter().cycle();
    shard.until("end of all", |shard| {
        let mut live: Vec<ConnId> = shard.live().iter().copied().collect();
        live.sort_by_key(|conn| conn.slot);
        let finished = peers.iter().all(std::thread::JoinHandle::is_finished);
        for conn in live {
            match dice.next().unwrap() % 16 {
                0 => shard.driver.close(conn),
                1 => shard.driver.shutdown(conn),
                2..9 if !shard.is_blocked(conn) => shard.driver.send(conn, chunk.clone()),
                // Once nobody connects any more, get to an end.
                _ if finished => shard.driver.close(conn),
                _ => {}
            }
        }
        finished && shard.live().is_empty()
    });
    // What waited in the listen queue to the end comes now, and finds its peer gone.
    shard.until("the last ones", |shard| {
        for conn in shard.live().clone() {
            shard.driver.close(conn);
        }
        let stats = shard.stats();
        stats.accepted + stats.accept_refused >= u64::from(PEERS * EACH) && shard.live().is_empty()
    });
    let stats = shard.stats();
    assert_eq!(stats.accepted, stats.closed);
    assert_eq!(descriptors(), before);
    // The whole table is usable still.
    let mut kept = Vec::new();
    for _ in 0..15 {
        kept.push(shard.pair());
    }
}

/// One connection that ends in a way of its own.
fn misbehave(address: SocketAddr, way: u8) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut buffer = [0; 50_000];
    // Whether these succeed depends on the shard's mood.
    let _ = stream.write_all(&buffer[..usize::from(way) * 64]);
    if way & 1 != 0 {
        let _ = stream.read(&mut buffer);
    }
    if way & 2 != 0 {
        let _ = stream.shutdown(Shutdown::Write);
    }
    if way & 4 != 0 {
        let _ = stream.read(&mut buffer);
    }
    if way & 8 != 0 {
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}
