//! The drivers on real sockets: each test runs on io_uring with one ring, on io_uring with three
//! rings, and on epoll, and expects the same.

mod ring_support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ring_support::{DEADLINE, Kind, Seen, Shard, descriptors, exchange, pattern, read_in_pieces};
use socket2::SockRef;
use trunkline_edge::ring::{ConnId, DriverConfig, bind_reuseport};

/// A test for each kind of driver.
macro_rules! on_every_driver {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            use super::Kind;

            #[test]
            fn uring() {
                super::cases::$name(Kind::Uring);
            }

            #[test]
            fn three_rings() {
                super::cases::$name(Kind::Rings);
            }

            #[test]
            fn epoll() {
                super::cases::$name(Kind::Epoll);
            }
        }
    )*};
}

on_every_driver!(
    echo_is_byte_exact,
    few_buffers_serve_many_streams,
    a_slow_reader_blocks_and_drains,
    connections_come_and_go_without_a_trace,
    a_reset_is_reported,
    data_goes_on_after_the_peers_fin,
    fin_follows_the_blocked_tail,
    fin_follows_the_turns_send,
    close_reaches_the_peer,
    close_while_blocked_drops_the_tail,
    bytes_sent_before_close_arrive,
    outgoing_connections_work,
    a_refused_connection_is_closed,
    an_attempt_can_be_given_up,
    many_outgoing_connections_at_once,
    a_wake_ends_a_long_turn,
    a_full_table_recovers,
    stale_ids_do_nothing,
    nagle_is_off,
    peers_have_addresses,
    arrivals_keep_to_the_budget,
    accepting_can_be_paused,
    closed_listeners_refuse,
    a_second_send_of_a_turn_closes,
    idle_time_is_told_from_work,
    tiny_queues_lose_nothing,
    a_dropped_driver_lets_go,
    sends_to_the_vanished_end_in_closed,
    nothing_leaks_under_fire,
);

/// More than the kernel buffers for a connection whose peer does not read.
const UNREAD: usize = 24 << 20;

mod cases {
    use super::*;

    pub fn echo_is_byte_exact(kind: Kind) {
        let mut shard = Shard::echoing(kind, DriverConfig::default());
        let address = shard.address;
        for (seed, size) in [1, 2, 125, 2_047, 2_048, 2_049, 65_536, 300_000, 1 << 20]
            .into_iter()
            .enumerate()
        {
            let data = pattern(size, seed as u32);
            let sent = data.clone();
            let peer = std::thread::spawn(move || {
                let stream = TcpStream::connect(address).unwrap();
                SockRef::from(&stream)
                    .set_recv_buffer_size(128 << 10)
                    .unwrap();
                exchange(stream, sent, 3_000)
            });
            let back = shard.serve(peer);
            assert!(back == data, "{kind:?}: {size} bytes came back changed");
        }
        shard.until("all closed", |shard| shard.live().is_empty());
        let total = 1 + 2 + 125 + 2_047 + 2_048 + 2_049 + 65_536 + 300_000 + (1 << 20);
        assert_eq!(shard.stats().bytes_received, total);
        assert_eq!(shard.stats().bytes_sent, total);
        assert_eq!(shard.stats().cq_overflow, 0);
    }

    pub fn few_buffers_serve_many_streams(kind: Kind) {
        let mut shard = Shard::echoing(
            kind,
            DriverConfig {
                buffers: 4,
                ..DriverConfig::default()
            },
        );
        let address = shard.address;
        let peers: Vec<_> = (0..8)
            .map(|seed| {
                std::thread::spawn(move || {
                    let data = pattern(1 << 20, seed);
                    let stream = TcpStream::connect(address).unwrap();
                    exchange(stream, data.clone(), 16_384) == data
                })
            })
            .collect();
        for peer in peers {
            assert!(shard.serve(peer), "{kind:?}: a stream came back changed");
        }
        shard.until("all closed", |shard| shard.live().is_empty());
        if kind != Kind::Epoll {
            assert!(shard.stats().buffers_exhausted > 0, "{:?}", shard.stats());
        }
    }

    pub fn a_slow_reader_blocks_and_drains(kind: Kind) {
        let mut shard = Shard::new(kind);
        let (peer, conn) = shard.pair();
        let data = Bytes::from(pattern(UNREAD, 3));
        shard.driver.send(conn, data.clone());
        shard.until("Blocked", |shard| shard.is_blocked(conn));
        let stats = shard.stats();
        let unsent = shard.seen.iter().find_map(|seen| match seen {
            Seen::Blocked(_, unsent) => Some(*unsent),
            _ => None,
        });
        assert_eq!(stats.sends_blocked, 1);
        assert!(stats.bytes_sent + unsent.unwrap() as u64 >= UNREAD as u64);

        let reading = std::thread::spawn(move || read_in_pieces(peer, 64 << 10));
        shard.until_seen(&Seen::Drained(conn));
        assert_eq!(shard.stats().bytes_sent, UNREAD as u64);
        // The way is free again: more may be sent.
        shard.driver.send(conn, Bytes::from_static(b"and more"));
        shard.driver.shutdown(conn);
        let received = shard.serve(reading);
        assert!(received[..UNREAD] == data[..], "{kind:?}: changed");
        assert_eq!(&received[UNREAD..], b"and more");
        assert_eq!(shard.until_closed(conn), None);
    }

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

    pub fn data_goes_on_after_the_peers_fin(kind: Kind) {
        let mut shard = Shard::new(kind);
        let (mut peer, conn) = shard.pair();
        peer.write_all(b"last words").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        shard.until_seen(&Seen::Eof(conn));
        assert_eq!(shard.received[&conn], b"last words");
        assert_eq!(shard.closed(conn), None);

        let data = pattern(200_000, 5);
        shard.driver.send(conn, Bytes::from(data.clone()));
        let reading = std::thread::spawn(move || read_in_pieces(peer, 4_096));
        shard.until("sent", |shard| {
            shard.stats().bytes_sent == 200_000 && !shard.is_blocked(conn)
        });
        shard.driver.shutdown(conn);
        assert!(shard.serve(reading) == data);
        assert_eq!(shard.until_closed(conn), None);
    }

    pub fn fin_follows_the_blocked_tail(kind: Kind) {
        let mut shard = Shard::new(kind);
        let (peer, conn) = shard.pair();
        let data = Bytes::from(pattern(UNREAD, 8));
        shard.driver.send(conn, data.clone());
        shard.until("Blocked", |shard| shard.is_blocked(conn));
        shard.driver.shutdown(conn);
        // Nothing may be sent after it.
        shard.driver.send(conn, Bytes::from_static(b"too late"));
        let reading = std::thread::spawn(move || read_in_pieces(peer, 64 << 10));
        let received = shard.serve(reading);
        assert!(received == data, "{kind:?}: {} bytes", received.len());
        assert_eq!(shard.until_closed(conn), None);
    }

    pub fn fin_follows_the_turns_send(kind: Kind) {
        let mut shard = Shard::new(kind);
        for size in [10, UNREAD] {
            let (peer, conn) = shard.pair();
            let data = Bytes::from(pattern(size, 9));
            shard.driver.send(conn, data.clone());
            shard.driver.shutdown(conn);
            let reading = std::thread::spawn(move || read_in_pieces(peer, 64 << 10));
            assert!(shard.serve(reading) == data, "{kind:?}: {size} bytes");
            assert_eq!(shard.until_closed(conn), None);
        }
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

    pub fn close_while_blocked_drops_the_tail(kind: Kind) {
        let mut shard = Shard::new(kind);
        let (peer, conn) = shard.pair();
        shard.driver.send(conn, Bytes::from(pattern(UNREAD, 1)));
        shard.until("Blocked", |shard| shard.is_blocked(conn));
        let reading = std::thread::spawn(move || read_in_pieces(peer, 64 << 10));
        shard.driver.close(conn);
        assert_eq!(shard.until_closed(conn), None);
        let received = shard.serve(reading);
        assert!(received.len() < UNREAD, "the tail was sent");
        assert_eq!(shard.stats().bytes_sent, received.len() as u64);
    }

    pub fn bytes_sent_before_close_arrive(kind: Kind) {
        let mut shard = Shard::new(kind);
        let (peer, conn) = shard.pair();
        shard.driver.send(conn, Bytes::from_static(b"goodbye"));
        shard.driver.close(conn);
        let reading = std::thread::spawn(move || read_in_pieces(peer, 64));
        assert_eq!(shard.serve(reading), b"goodbye");
        assert_eq!(shard.until_closed(conn), None);
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

    pub fn a_wake_ends_a_long_turn(kind: Kind) {
        let mut shard = Shard::new(kind);
        // Nothing pending before the wait.
        shard.turn(Duration::ZERO);
        for _ in 0..3 {
            shard.seen.clear();
            let waker = shard.driver.waker();
            waker.going_to_sleep();
            let waking = std::thread::spawn(move || waker.wake());
            let began = Instant::now();
            while !shard.seen.contains(&Seen::Woken) {
                assert!(began.elapsed() < DEADLINE);
                shard.turn(DEADLINE * 2);
            }
            assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
            waking.join().unwrap();
        }
        // The shard runs: waking it costs nothing and does nothing.
        shard.seen.clear();
        shard.driver.waker().wake();
        shard.turn(Duration::ZERO);
        shard.turn(Duration::ZERO);
        assert!(!shard.seen.contains(&Seen::Woken));
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
        if kind == Kind::Uring {
            assert!(refused > 0, "the kernel dropped none");
        }
        // Every connection is either dropped and counted, or gets its turn when others close.
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
        let rings = if kind == Kind::Rings { 3 } else { 1 };
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
            // A turn of several rings may sweep them before and after it slept.
            assert!(new <= 8 * rings * 2, "{kind:?}: {new} in one turn");
            accepted += new;
        }
        assert_eq!(shard.live().len(), 200);
        assert_eq!(shard.stats().accept_refused, 0);
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

    pub fn a_second_send_of_a_turn_closes(kind: Kind) {
        let mut shard = Shard::new(kind);
        let (peer, conn) = shard.pair();
        shard.driver.send(conn, Bytes::from_static(b"one"));
        shard.driver.send(conn, Bytes::from_static(b"two"));
        assert_eq!(shard.until_closed(conn), Some(io::ErrorKind::InvalidInput));
        let reading = std::thread::spawn(move || read_in_pieces(peer, 64));
        assert_eq!(shard.serve(reading), b"one");
    }

    pub fn idle_time_is_told_from_work(kind: Kind) {
        let mut shard = Shard::new(kind);
        for _ in 0..3 {
            shard.turn(Duration::ZERO);
        }
        let before = shard.stats();
        shard.turn(Duration::from_millis(50));
        let idle = shard.stats().idle_ns - before.idle_ns;
        assert!(idle > 40_000_000, "{idle} ns of 50 ms");
        assert!(shard.stats().kernel_ns - before.kernel_ns < 40_000_000);
    }

    pub fn tiny_queues_lose_nothing(kind: Kind) {
        let mut shard = Shard::echoing(
            kind,
            DriverConfig {
                sq_entries: 2,
                cq_entries: 4,
                buffers: 64,
                buffer_size: 512,
                ..DriverConfig::default()
            },
        );
        let address = shard.address;
        let peers: Vec<_> = (0..24)
            .map(|seed| {
                std::thread::spawn(move || {
                    let data = pattern(100_000, seed);
                    let stream = TcpStream::connect(address).unwrap();
                    exchange(stream, data.clone(), 4_096) == data
                })
            })
            .collect();
        for peer in peers {
            assert!(shard.serve(peer), "{kind:?}: a stream came back changed");
        }
        shard.until("all closed", |shard| shard.live().is_empty());
        let stats = shard.stats();
        assert_eq!((stats.accepted, stats.closed), (24, 24));
        assert_eq!(stats.bytes_sent, 2_400_000);
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

    pub fn sends_to_the_vanished_end_in_closed(kind: Kind) {
        let mut shard = Shard::new(kind);
        let (peer, conn) = shard.pair();
        peer.shutdown(Shutdown::Write).unwrap();
        shard.until_seen(&Seen::Eof(conn));
        drop(peer);
        // The first send is answered by a reset, a later one meets it.
        shard.until("Closed", |shard| {
            if !shard.is_blocked(conn) {
                shard
                    .driver
                    .send(conn, Bytes::from_static(b"anybody there?"));
            }
            shard.closed(conn).is_some()
        });
        let error = shard.closed(conn).unwrap();
        assert!(
            matches!(
                error,
                Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
            ),
            "{error:?}"
        );
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
            stats.accepted + stats.accept_refused >= u64::from(PEERS * EACH)
                && shard.live().is_empty()
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
}
