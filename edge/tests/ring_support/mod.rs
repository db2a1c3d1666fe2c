//! A shard small enough for tests: one driver, turned on the test's thread, with an echo on top. Its
//! peers are plain blocking sockets on other threads.

pub mod lifecycle;
pub mod moving;
pub mod traffic;

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline_edge::ring::{
    ConnId, Driver, DriverChoice, DriverConfig, DriverStats, Event, ListenerId, ReceiveMode,
    bind_reuseport, open,
};

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Which driver a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Uring,
    /// Three rings on the one thread.
    Rings,
    /// One ring that receives by poll.
    Polled,
    /// Three of these.
    PolledRings,
    Epoll,
}

impl Kind {
    /// A driver of this kind.
    pub fn open(self, config: DriverConfig) -> Box<dyn Driver> {
        let (choice, rings) = match self {
            Kind::Uring | Kind::Polled => (DriverChoice::Uring, 1),
            Kind::Rings | Kind::PolledRings => (DriverChoice::Uring, 3),
            Kind::Epoll => (DriverChoice::Epoll, 1),
        };
        let receive = match self {
            Kind::Polled | Kind::PolledRings => ReceiveMode::Poll,
            Kind::Uring | Kind::Rings | Kind::Epoll => ReceiveMode::Multishot,
        };
        let config = DriverConfig {
            rings,
            receive,
            ..config
        };
        open(choice, &config).unwrap()
    }
}

/// An event, without what it borrows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Accepted(ConnId, ListenerId, SocketAddr),
    Connected(ConnId),
    Received(ConnId, usize),
    Eof(ConnId),
    Blocked(ConnId, usize),
    Drained(ConnId),
    Closed(ConnId, Option<io::ErrorKind>),
    Woken,
}

/// A driver, what it reported, and the bytes it received.
pub struct Shard {
    pub driver: Box<dyn Driver>,
    pub kind: Kind,
    pub seen: Vec<Seen>,
    pub received: HashMap<ConnId, Vec<u8>>,
    /// Send back what comes, and FIN after the peer's.
    pub echo: bool,
    pub address: SocketAddr,
    live: HashSet<ConnId>,
    blocked: HashSet<ConnId>,
    ended: HashSet<ConnId>,
    _serial: MutexGuard<'static, ()>,
}

/// Tests count the process's descriptors, so only one runs at a time.
static SERIAL: Mutex<()> = Mutex::new(());

impl Shard {
    pub fn new(kind: Kind) -> Self {
        Self::with(kind, DriverConfig::default())
    }

    pub fn with(kind: Kind, config: DriverConfig) -> Self {
        let serial = SERIAL
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut driver = kind.open(config);
        let listener = bind_reuseport(([127, 0, 0, 1], 0).into(), 4_096).unwrap();
        let address = listener.local_addr().unwrap();
        driver.listen(7, listener).unwrap();
        Self {
            driver,
            kind,
            seen: Vec::new(),
            received: HashMap::new(),
            echo: false,
            address,
            live: HashSet::new(),
            blocked: HashSet::new(),
            ended: HashSet::new(),
            _serial: serial,
        }
    }

    pub fn echoing(kind: Kind, config: DriverConfig) -> Self {
        let mut shard = Self::with(kind, config);
        shard.echo = true;
        shard
    }

    /// One turn, then the echo's sends.
    pub fn turn(&mut self, timeout: Duration) {
        let Self {
            driver,
            seen,
            received,
            live,
            blocked,
            ended,
            ..
        } = self;
        driver
            .turn(timeout, &mut |event| {
                let event = own(event, received);
                check_order(&event, live, blocked, ended);
                seen.push(event);
            })
            .unwrap();
        if self.echo {
            self.send_echoes();
        }
    }

    fn send_echoes(&mut self) {
        for (&conn, bytes) in &mut self.received {
            if !self.live.contains(&conn) || self.blocked.contains(&conn) {
                continue;
            }
            if !bytes.is_empty() {
                self.driver.send(conn, Bytes::from(std::mem::take(bytes)));
            }
            if self.ended.contains(&conn) {
                self.driver.shutdown(conn);
            }
        }
    }

    /// Turns until `done`; fails at the deadline.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "{:?}: no {what}; {:?}; last events {:?}",
                self.kind,
                self.driver.stats(),
                &self.seen[self.seen.len().saturating_sub(20)..]
            );
            self.turn(Duration::from_millis(5));
        }
    }

    /// Turns until the thread has finished.
    #[track_caller]
    pub fn serve<T>(&mut self, peer: JoinHandle<T>) -> T {
        self.until("end of the peer", |_| peer.is_finished());
        peer.join().unwrap()
    }

    /// A connected pair: a plain socket, and the driver's end.
    #[track_caller]
    pub fn pair(&mut self) -> (TcpStream, ConnId) {
        let peer = TcpStream::connect(self.address).unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        let own = peer.local_addr().unwrap();
        let mut found = None;
        self.until("accept", |shard| {
            found = shard.seen.iter().find_map(|seen| match seen {
                Seen::Accepted(conn, _, address) if *address == own => Some(*conn),
                _ => None,
            });
            found.is_some()
        });
        (peer, found.unwrap())
    }

    /// What ended the connection, once it has.
    pub fn closed(&self, conn: ConnId) -> Option<Option<io::ErrorKind>> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Closed(closed, error) if *closed == conn => Some(*error),
            _ => None,
        })
    }

    #[track_caller]
    pub fn until_closed(&mut self, conn: ConnId) -> Option<io::ErrorKind> {
        self.until("Closed", |shard| shard.closed(conn).is_some());
        self.closed(conn).unwrap()
    }

    #[track_caller]
    pub fn until_seen(&mut self, wanted: &Seen) {
        self.until("event", |shard| shard.seen.contains(wanted));
    }

    pub fn count(&self, wanted: impl Fn(&Seen) -> bool) -> usize {
        self.seen.iter().filter(|seen| wanted(seen)).count()
    }

    pub fn is_blocked(&self, conn: ConnId) -> bool {
        self.blocked.contains(&conn)
    }

    pub fn live(&self) -> &HashSet<ConnId> {
        &self.live
    }

    /// The connections bear other ids from now on.
    pub fn renamed(&mut self, ids: &HashMap<ConnId, ConnId>) {
        let set = |set: &HashSet<ConnId>| set.iter().map(|id| ids[id]).collect();
        (self.live, self.blocked, self.ended) =
            (set(&self.live), set(&self.blocked), set(&self.ended));
        let received = std::mem::take(&mut self.received);
        self.received = received
            .into_iter()
            .map(|(id, bytes)| (ids[&id], bytes))
            .collect();
    }

    pub fn stats(&self) -> DriverStats {
        self.driver.stats()
    }
}

fn own(event: Event<'_>, received: &mut HashMap<ConnId, Vec<u8>>) -> Seen {
    match event {
        Event::Accepted {
            conn,
            listener,
            peer,
        } => {
            received.insert(conn, Vec::new());
            Seen::Accepted(conn, listener, peer)
        }
        Event::Connected { conn } => {
            received.insert(conn, Vec::new());
            Seen::Connected(conn)
        }
        Event::Received { conn, data } => {
            received.get_mut(&conn).unwrap().extend_from_slice(data);
            Seen::Received(conn, data.len())
        }
        Event::Eof { conn } => Seen::Eof(conn),
        Event::Blocked { conn, unsent } => Seen::Blocked(conn, unsent),
        Event::Drained { conn } => Seen::Drained(conn),
        Event::Closed { conn, error } => Seen::Closed(conn, error),
        Event::Woken => Seen::Woken,
    }
}

/// The interface's promises on the order of events, checked in every test.
fn check_order(
    event: &Seen,
    live: &mut HashSet<ConnId>,
    blocked: &mut HashSet<ConnId>,
    ended: &mut HashSet<ConnId>,
) {
    match event {
        Seen::Accepted(conn, ..) | Seen::Connected(conn) => {
            assert!(live.insert(*conn), "{event:?} of a known connection");
        }
        Seen::Received(conn, _) => {
            assert!(live.contains(conn), "{event:?} of no connection");
            assert!(!ended.contains(conn), "{event:?} after Eof");
        }
        Seen::Eof(conn) => {
            assert!(live.contains(conn), "{event:?} of no connection");
            assert!(ended.insert(*conn), "second {event:?}");
        }
        Seen::Blocked(conn, unsent) => {
            assert!(live.contains(conn) && *unsent > 0, "{event:?}");
            assert!(blocked.insert(*conn), "second {event:?}");
        }
        Seen::Drained(conn) => {
            assert!(blocked.remove(conn), "{event:?} without Blocked");
        }
        Seen::Closed(conn, _) => {
            live.remove(conn);
            blocked.remove(conn);
            ended.remove(conn);
        }
        Seen::Woken => {}
    }
}

/// Bytes that differ by position and by `seed`.
pub fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// Writes all of `data` from a thread of its own while this one reads it back in pieces of
/// `piece` bytes; returns what came until the other side's FIN.
pub fn exchange(stream: TcpStream, data: Vec<u8>, piece: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let received = read_in_pieces(stream, piece);
    writing.join().unwrap();
    received
}

/// All that comes until FIN, with a pause of the scheduler's between pieces: a slow reader.
pub fn read_in_pieces(mut stream: TcpStream, piece: usize) -> Vec<u8> {
    let mut received = Vec::new();
    let mut buffer = vec![0; piece];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return received;
        }
        received.extend_from_slice(&buffer[..count]);
        std::thread::yield_now();
    }
}

/// Open descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
