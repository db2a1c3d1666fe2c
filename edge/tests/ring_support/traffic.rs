//! Bytes: whole, in order, at any speed of the peer; and what a turn's time goes to.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;
use trunkline_edge::ring::DriverConfig;

use super::{DEADLINE, Kind, Seen, Shard, exchange, pattern, read_in_pieces};

/// More than the kernel buffers for a connection whose peer does not read.
const UNREAD: usize = 24 << 20;

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
            // By poll a stream takes one buffer at a time.
            buffers: match kind {
                Kind::Polled | Kind::PolledRings => 1,
                Kind::Uring | Kind::Rings | Kind::Epoll => 4,
            },
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

/// Question and answer in pieces of any size at any moment: a byte that stays unread in the socket,
/// or a readiness that goes unnoticed, ends the conversation.
pub fn no_byte_is_left_in_the_socket(kind: Kind) {
    const ROUNDS: usize = 400;
    let mut shard = Shard::echoing(kind, DriverConfig::default());
    let address = shard.address;
    let peers: Vec<_> = (1..=3)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let dice = pattern(4 * ROUNDS, seed);
                for roll in dice.chunks_exact(4) {
                    // Around multiples of a buffer's size, and small ones.
                    let length = usize::from(roll[0] % 6) * 1_024 + usize::from(roll[1] % 3);
                    let data = pattern(length.max(1), seed);
                    let piece = usize::from(roll[2]) * 16 + 1;
                    for part in data.chunks(piece) {
                        stream.write_all(part).unwrap();
                        if roll[3].is_multiple_of(2) {
                            std::thread::yield_now();
                        }
                    }
                    let mut back = vec![0; data.len()];
                    stream.read_exact(&mut back).unwrap();
                    assert!(back == data, "{kind:?}: changed");
                }
            })
        })
        .collect();
    for peer in peers {
        shard.serve(peer);
    }
    shard.until("all closed", |shard| shard.live().is_empty());
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

pub fn fin_after_a_send_waits_for_nothing(kind: Kind) {
    let mut shard = Shard::new(kind);
    let (mut peer, conn) = shard.pair();
    let reading = std::thread::spawn(move || {
        let mut data = Vec::new();
        peer.read_to_end(&mut data).map(|_| data)
    });
    shard.driver.send(conn, Bytes::from_static(b"farewell"));
    shard.driver.shutdown(conn);
    // Until the FIN is out nothing happens that would end a wait.
    let began = Instant::now();
    while shard.closed(conn).is_none() {
        shard.turn(DEADLINE);
        assert!(began.elapsed() < DEADLINE, "{kind:?}: the FIN was late");
    }
    assert_eq!(reading.join().unwrap().unwrap(), b"farewell");
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

pub fn no_wake_is_lost(kind: Kind) {
    const ROUNDS: u32 = 3_000;
    let mut shard = Shard::new(kind);
    let waker = shard.driver.waker();
    let inbox = Arc::new(AtomicU32::new(0));
    let outbox = Arc::new(AtomicU32::new(0));
    let (items, answers, caller) = (inbox.clone(), outbox.clone(), waker.clone());
    let waking = std::thread::spawn(move || {
        for round in 1..=ROUNDS {
            items.store(round, Ordering::SeqCst);
            caller.wake();
            while answers.load(Ordering::SeqCst) < round {
                std::thread::yield_now();
            }
        }
    });
    let began = Instant::now();
    while outbox.load(Ordering::SeqCst) < ROUNDS {
        waker.going_to_sleep();
        let item = inbox.load(Ordering::SeqCst);
        if item > outbox.load(Ordering::SeqCst) {
            waker.awake();
            outbox.store(item, Ordering::SeqCst);
        } else {
            // Far longer than the test may take: a lost wake fails it.
            shard.turn(DEADLINE * 2);
        }
    }
    waking.join().unwrap();
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    assert!(shard.seen.contains(&Seen::Woken));

    // While the shard runs, waking it costs nothing and does nothing.
    for _ in 0..5 {
        shard.turn(Duration::ZERO);
    }
    shard.seen.clear();
    waker.wake();
    for _ in 0..5 {
        shard.turn(Duration::ZERO);
    }
    assert!(!shard.seen.contains(&Seen::Woken));
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
