//! Goal: the echo shard answers in one send per turn, keeps to its bounds with peers that do not
//! read, and closes in the right order. The driver is a script that records what it is told.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use super::*;
use crate::ring::{Carried, DriverMemory, DriverStats, Hold, Waker};

const WS: ListenerId = 0;
const TCP: ListenerId = 1;

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Send(u32, Vec<u8>),
    Shutdown(u32),
    Close(u32),
}

#[derive(Default)]
struct Script {
    told: Vec<Told>,
}

impl Driver for Script {
    fn name(&self) -> &'static str {
        "script"
    }
    fn slots_max(&self) -> u32 {
        16
    }
    fn listen(&mut self, _: ListenerId, _: TcpListener) -> io::Result<()> {
        Ok(())
    }
    fn set_accepting(&mut self, _: bool) {}
    fn admit(&mut self, _: u32) {}
    fn close_listeners(&mut self) {}
    fn connect(&mut self, _: SocketAddr, _: Option<SocketAddr>) -> io::Result<ConnId> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn send(&mut self, conn: ConnId, bytes: Bytes) {
        self.told.push(Told::Send(conn.slot, bytes.to_vec()));
    }
    fn shutdown(&mut self, conn: ConnId) {
        self.told.push(Told::Shutdown(conn.slot));
    }
    fn close(&mut self, conn: ConnId) {
        self.told.push(Told::Close(conn.slot));
    }
    fn turn(&mut self, _: Duration, _: &mut dyn FnMut(Event<'_>)) -> io::Result<()> {
        Ok(())
    }
    fn waker(&self) -> Waker {
        Waker::new().expect("an eventfd")
    }
    fn stats(&self) -> DriverStats {
        DriverStats::default()
    }
    fn idle_ns(&self) -> u64 {
        0
    }
    fn memory(&self) -> DriverMemory {
        DriverMemory::default()
    }
    fn duplicate(&mut self, _: ConnId) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn hold(&mut self, _: Hold) {}
    fn is_held(&mut self) -> bool {
        false
    }
    fn export(&mut self, _: ConnId) -> io::Result<Option<Carried>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn adopt(&mut self, _: Carried) -> io::Result<ConnId> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn listeners(&self) -> io::Result<Vec<(ListenerId, OwnedFd)>> {
        Ok(Vec::new())
    }
    fn adopt_listeners(&mut self, _: ListenerId, _: Vec<TcpListener>) -> io::Result<()> {
        Ok(())
    }
    fn abandon(&mut self) {}
}

/// A shard and the hands that play its driver.
struct Stage {
    shard: Shard,
    driver: Script,
    now: Instant,
}

fn id(slot: u32) -> ConnId {
    ConnId {
        slot,
        generation: 7,
    }
}

impl Stage {
    fn new(options: Options) -> Self {
        Self {
            shard: Shard::new(options),
            driver: Script::default(),
            now: Instant::now(),
        }
    }

    fn accept(&mut self, slot: u32, listener: ListenerId) {
        self.shard.on_event(Event::Accepted {
            conn: id(slot),
            listener,
            peer: SocketAddr::from(([127, 0, 0, 1], 9)),
        });
    }

    /// A WebSocket whose handshake is over.
    fn open_ws(&mut self, slot: u32) {
        self.accept(slot, WS);
        self.receive(slot, HANDSHAKE);
        let told = self.end_turn();
        assert!(
            matches!(&told[..], [Told::Send(_, answer)] if answer.starts_with(b"HTTP/1.1 101 ")),
            "{told:?}"
        );
    }

    fn receive(&mut self, slot: u32, data: &[u8]) {
        let mut data = data.to_vec();
        self.shard.on_event(Event::Received {
            conn: id(slot),
            data: &mut data,
        });
    }

    fn end_turn(&mut self) -> Vec<Told> {
        self.shard.finish_turn(&mut self.driver, self.now);
        std::mem::take(&mut self.driver.told)
    }

    fn later(&mut self, time: Duration) -> Vec<Told> {
        self.now += time;
        self.end_turn()
    }
}

const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

/// A masked frame with the key 0.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn all_answers_of_a_turn_leave_in_one_send() {
    let mut stage = Stage::new(Options::default());
    stage.open_ws(0);
    stage.accept(1, TCP);
    stage.receive(0, &[frame(0x81, b"a"), frame(0x89, b"p")].concat());
    stage.receive(1, b"raw ");
    stage.receive(0, &frame(0x82, b"b"));
    stage.receive(1, b"bytes");
    assert_eq!(
        stage.end_turn(),
        [
            Told::Send(0, b"\x81\x01a\x8a\x01p\x82\x01b".to_vec()),
            Told::Send(1, b"raw bytes".to_vec()),
        ]
    );
    assert_eq!(stage.end_turn(), []);
}

#[test]
fn a_handshake_may_come_in_pieces_with_frames_behind_it() {
    let mut stage = Stage::new(Options::default());
    stage.accept(0, WS);
    let (head, tail) = HANDSHAKE.split_at(20);
    stage.receive(0, head);
    assert_eq!(stage.end_turn(), []);
    stage.receive(0, &[tail, &frame(0x81, b"early")].concat());
    match &stage.end_turn()[..] {
        [Told::Send(0, bytes)] => assert!(bytes.ends_with(b"\r\n\r\n\x81\x05early")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_close_is_answered_then_fin_then_the_peers_fin_is_awaited() {
    let mut stage = Stage::new(Options::default());
    stage.open_ws(0);
    stage.receive(
        0,
        &[frame(0x88, b"\x0b\xb8why"), frame(0x81, b"late")].concat(),
    );
    let told = stage.end_turn();
    assert_eq!(
        told,
        [
            Told::Send(0, b"\x88\x02\x0b\xb8".to_vec()),
            Told::Shutdown(0)
        ]
    );
    assert_eq!(stage.later(LINGER / 2), []);
    stage.shard.on_event(Event::Eof { conn: id(0) });
    stage.end_turn();
    assert_eq!(stage.shard.timeout(stage.now), Duration::ZERO);
    assert_eq!(stage.end_turn(), [Told::Close(0)]);
    stage.shard.on_event(Event::Closed {
        conn: id(0),
        error: None,
    });
    assert_eq!(stage.shard.open, 0);
}

#[test]
fn a_peer_that_never_sends_its_fin_is_dropped() {
    let mut stage = Stage::new(Options::default());
    stage.open_ws(0);
    stage.receive(0, b"\xff\xff");
    match &stage.end_turn()[..] {
        [Told::Send(0, bytes), Told::Shutdown(0)] => {
            assert_eq!(bytes[0], 0x88);
            assert_eq!(bytes[2..4], 1002u16.to_be_bytes());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(stage.later(LINGER - Duration::from_millis(1)), []);
    assert_eq!(stage.later(Duration::from_millis(1)), [Told::Close(0)]);
    assert_eq!(stage.later(LINGER), [], "only once");
}

#[test]
fn a_request_that_never_ends_is_dropped() {
    let mut stage = Stage::new(Options::default());
    stage.open_ws(0);
    stage.accept(1, WS);
    stage.receive(1, b"GET / HT");
    assert_eq!(stage.end_turn(), []);
    assert_eq!(stage.later(HANDSHAKE_MAX), [Told::Close(1)]);
}

#[test]
fn what_is_no_websocket_gets_an_answer_and_a_fin() {
    let mut stage = Stage::new(Options::default());
    stage.accept(0, WS);
    stage.receive(0, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    match &stage.end_turn()[..] {
        [Told::Send(0, bytes), Told::Shutdown(0)] => {
            assert!(bytes.starts_with(b"HTTP/1.1 426 "));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_blocked_peer_gets_its_answers_when_it_reads_again() {
    let mut stage = Stage::new(Options::default());
    stage.accept(0, TCP);
    stage.receive(0, b"first ");
    stage.end_turn();
    stage.shard.on_event(Event::Blocked {
        conn: id(0),
        unsent: 3,
    });
    for piece in [&b"second "[..], b"third "] {
        stage.receive(0, piece);
        assert_eq!(stage.end_turn(), []);
    }
    stage.shard.on_event(Event::Eof { conn: id(0) });
    assert_eq!(stage.end_turn(), []);
    assert_eq!(stage.later(2 * LINGER), [], "it is owed something");
    stage.shard.on_event(Event::Drained { conn: id(0) });
    assert_eq!(
        stage.end_turn(),
        [Told::Send(0, b"second third ".to_vec()), Told::Shutdown(0)]
    );
    assert_eq!(stage.end_turn(), [Told::Close(0)]);
}

#[test]
fn a_peer_that_does_not_read_is_closed_at_the_bound() {
    let options = Options {
        queue_bytes_max: 250,
        ..Options::default()
    };
    let mut stage = Stage::new(options);
    stage.open_ws(0);
    stage.accept(1, TCP);
    for slot in 0..2 {
        stage.shard.on_event(Event::Blocked {
            conn: id(slot),
            unsent: 1,
        });
    }
    for _ in 0..2 {
        stage.receive(0, &frame(0x82, &[1; 100]));
        stage.receive(1, &[1; 102]);
        assert_eq!(stage.end_turn(), []);
    }
    stage.receive(0, &frame(0x82, &[1; 100]));
    stage.receive(1, &[1; 102]);
    assert_eq!(stage.end_turn(), [Told::Close(1)]);
    stage.receive(0, &frame(0x82, &[1; 100]));
    assert_eq!(stage.end_turn(), [], "nothing more is read");
    stage.shard.on_event(Event::Drained { conn: id(0) });
    match &stage.end_turn()[..] {
        [Told::Send(0, bytes), Told::Shutdown(0)] => {
            assert_eq!(bytes[2..4], 4410u16.to_be_bytes());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slow_peer_that_stays_blocked_is_dropped() {
    let options = Options {
        queue_bytes_max: 50,
        ..Options::default()
    };
    let mut stage = Stage::new(options);
    stage.open_ws(0);
    stage.shard.on_event(Event::Blocked {
        conn: id(0),
        unsent: 1,
    });
    stage.receive(0, &frame(0x82, &[1; 100]));
    assert_eq!(stage.end_turn(), []);
    assert_eq!(stage.later(LINGER), [Told::Close(0)]);
}

#[test]
fn a_stop_closes_everything_in_order() {
    let mut stage = Stage::new(Options::default());
    stage.open_ws(0);
    stage.accept(1, TCP);
    stage.end_turn();
    stage.shard.close_all();
    match &stage.end_turn()[..] {
        [Told::Send(0, bytes), Told::Shutdown(0), Told::Shutdown(1)] => {
            assert_eq!(bytes[2..4], 1001u16.to_be_bytes());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn events_of_a_slots_former_owner_are_ignored() {
    let mut stage = Stage::new(Options::default());
    stage.accept(0, TCP);
    let stale = ConnId {
        slot: 0,
        generation: 6,
    };
    stage.shard.on_event(Event::Received {
        conn: stale,
        data: &mut [1, 2, 3],
    });
    stage.shard.on_event(Event::Closed {
        conn: stale,
        error: None,
    });
    assert_eq!(stage.end_turn(), []);
    assert_eq!(stage.shard.open, 1);
}

/// The same over real sockets: a shard on its thread, and a client with blocking sockets whose
/// time-outs are the tests' deadline.
mod on_sockets {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};
    use std::sync::{Arc, mpsc};
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::ring::{BACKLOG, DriverChoice, DriverConfig, bind_reuseport, open};

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Server {
        ws: SocketAddr,
        tcp: SocketAddr,
        waker: Waker,
        stop: Arc<AtomicBool>,
        thread: JoinHandle<io::Result<()>>,
    }

    impl Server {
        fn start(choice: DriverChoice) -> Self {
            let stop = Arc::new(AtomicBool::new(false));
            let (started, when_started) = mpsc::channel();
            let seen = Arc::clone(&stop);
            let thread = thread::spawn(move || {
                let mut driver =
                    open(choice, &DriverConfig::default()).map_err(io::Error::other)?;
                let options = Options::default();
                let mut addresses = Vec::new();
                for id in [options.ws, options.tcp] {
                    let listener = bind_reuseport(([127, 0, 0, 1], 0).into(), BACKLOG)?;
                    addresses.push(listener.local_addr()?);
                    driver.listen(id, listener)?;
                }
                started
                    .send((addresses, driver.waker()))
                    .map_err(io::Error::other)?;
                run_echo_shard(&mut *driver, &seen, &options)
            });
            let (addresses, waker) = when_started.recv().expect("a driver");
            Self {
                ws: addresses[0],
                tcp: addresses[1],
                waker,
                stop,
                thread,
            }
        }

        fn ask_to_stop(&self) {
            self.stop.store(true, Ordering::Release);
            self.waker.wake();
        }

        fn join(self) {
            self.thread.join().expect("no panic").expect("no error");
        }
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn connect_ws(address: SocketAddr) -> TcpStream {
        let mut socket = connect(address);
        socket.write_all(HANDSHAKE).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "));
        socket
    }

    fn rest_of(mut socket: TcpStream) -> Vec<u8> {
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
        rest
    }

    fn serves(choice: DriverChoice) {
        let server = Server::start(choice);

        let mut ws = connect_ws(server.ws);
        ws.write_all(&frame(0x81, b"hello")).unwrap();
        ws.write_all(&frame(0x88, b"\x03\xe8")).unwrap();
        assert_eq!(rest_of(ws), b"\x81\x05hello\x88\x02\x03\xe8");

        // More than socket buffers hold: the client reads only after it has written all.
        let bytes: Vec<u8> = (0..12_000_000u32).map(|i| (i >> 3) as u8).collect();
        let mut tcp = connect(server.tcp);
        tcp.write_all(&bytes).unwrap();
        tcp.shutdown(Shutdown::Write).unwrap();
        assert!(rest_of(tcp) == bytes);

        let waiting = connect_ws(server.ws);
        server.ask_to_stop();
        assert_eq!(rest_of(waiting)[..4], [0x88, 10, 0x03, 0xe9]);
        server.join();
    }

    #[test]
    fn the_default_driver_serves_both_listeners_and_stops() {
        serves(DriverChoice::Auto);
    }

    #[test]
    fn the_epoll_driver_serves_both_listeners_and_stops() {
        serves(DriverChoice::Epoll);
    }
}
