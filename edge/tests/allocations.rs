//! What a shard's thread allocates once it is warm: nothing for heartbeats, pings and echoes, nothing
//! for a chat message, its ack and its delivery, and nothing for each recipient of a shared frame.
//!
//! The shard runs on the test's own thread, whose allocations are counted; its clients and its core
//! are other threads, and real sockets lie in between.

// Shared with the other tests of a whole edge, of which each uses a part.
#[allow(dead_code)]
mod node_support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use allocation_counter::measure;
use node_support::{FakeCore, SECRET, TcpClient, WsClient};
use trunkline_edge::echo::{Options, run_echo_shard};
use trunkline_edge::link::manager::Attacher;
use trunkline_edge::link::{Inbox, LinkState};
use trunkline_edge::ring::{Driver, DriverChoice, DriverConfig, bind_reuseport, open};
use trunkline_edge::session::{Settings, Shard};
use trunkline_edge::shard::{LISTENER_TCP, LISTENER_WS, ShardLoop};
use trunkline_identity::{KeySource, Verifier};
use trunkline_proto::client::{ClientBody, Heartbeat, Ping, SendMessage};
use trunkline_proto::link::{EdgeBatch, EdgeHello, EdgeOp};
use trunkline_proto::ports::{CorePort, EdgePort};

const CLIENTS: usize = 20;
/// Rounds before and while allocations are counted; in each, every client sends and is answered.
const ROUNDS_WARM: usize = 50;
const ROUNDS: usize = 200;

fn listening(driver: &mut dyn Driver, id: u8) -> SocketAddr {
    let listener = bind_reuseport(([127, 0, 0, 1], 0).into(), 1_024).unwrap();
    let address = listener.local_addr().unwrap();
    driver.listen(id, listener).unwrap();
    address
}

fn driver() -> Box<dyn Driver> {
    open(DriverChoice::Uring, &DriverConfig::default()).unwrap()
}

/// A core on a thread of its own, behind a queue that allocates nothing.
struct Port {
    to_core: SyncSender<EdgeBatch>,
    core: Arc<FakeCore>,
}

impl CorePort for Port {
    fn submit(&self, batch: EdgeBatch) {
        self.to_core.send(batch).unwrap();
    }

    fn list(&self) -> Vec<EdgeOp> {
        self.core.lists.take()
    }
}

fn run_core(core: Arc<FakeCore>, edge: Arc<dyn EdgePort>, batches: Receiver<EdgeBatch>) {
    for batch in batches {
        if let Some(answer) = core.answer(batch) {
            edge.deliver(answer);
        }
    }
}

/// What the clients of a shard are given.
struct World {
    ws: SocketAddr,
    tcp: SocketAddr,
    core: Arc<FakeCore>,
    /// While somebody has it, the shard does not begin a turn: what is sent meanwhile comes at once.
    gate: Arc<Mutex<()>>,
}

/// Turns a shard on this thread while `clients` runs on another, which calls back when all is warm,
/// and again before anybody leaves. Returns what was allocated here in between.
fn allocated_by_shard<C>(clients: C) -> u64
where
    C: FnOnce(World, &dyn Fn()) + Send + 'static,
{
    let mut driver = driver();
    let ws = listening(&mut *driver, LISTENER_WS);
    let tcp = listening(&mut *driver, LISTENER_TCP);
    let (sender, inbox) = crossbeam_channel::unbounded();
    let waker = driver.waker();
    let shards: Arc<[Inbox]> = Arc::new([Inbox {
        sender,
        waker: waker.clone(),
    }]);
    let attacher = Attacher::new(shards, EdgeHello::default(), Arc::new(LinkState::default()));
    let (hello, router) = attacher.begin();
    let core = Arc::new(FakeCore::default());
    let (to_core, batches) = sync_channel(1_024);
    let port: Arc<dyn CorePort> = Arc::new(Port {
        to_core,
        core: core.clone(),
    });
    attacher.up(&router, &port);
    core.attach(hello, router.clone());
    let of_core = core.clone();
    std::thread::spawn(move || run_core(of_core, router, batches));
    let settings = Settings {
        send_rate: 0,
        address_rate: 0,
        ..Settings::default()
    };
    let verifier = Verifier::new(&KeySource::Secret(SECRET.into()));
    let shard = Shard::new(settings, verifier);
    let mut shard = ShardLoop::new(
        driver,
        shard,
        inbox,
        Arc::default(),
        std::time::Instant::now(),
    );

    let phase = Arc::new(AtomicUsize::new(0));
    let of_clients = phase.clone();
    let gate = Arc::new(Mutex::new(()));
    let world = World {
        ws,
        tcp,
        core,
        gate: gate.clone(),
    };
    let clients: JoinHandle<()> = std::thread::spawn(move || {
        let next = || {
            of_clients.fetch_add(1, Ordering::SeqCst);
            waker.wake();
        };
        clients(world, &next);
    });
    // Clients that have failed end the loop too; joining them tells.
    let mut turn_until = |end| {
        while phase.load(Ordering::SeqCst) < end && !clients.is_finished() {
            drop(gate.lock().unwrap());
            assert!(!shard.turn().unwrap());
        }
    };
    turn_until(1);
    let counted = measure(|| turn_until(2));
    clients.join().unwrap();
    counted.count_total
}

fn ping() -> ClientBody {
    ClientBody::Ping(Ping { nonce: "n".into() })
}

#[test]
fn heartbeats_and_pings_allocate_nothing() {
    let allocated = allocated_by_shard(|world, next| {
        let mut ws: Vec<WsClient> = (0..CLIENTS)
            .map(|i| WsClient::connect(world.ws, "alice", &format!("ws{i}")))
            .collect();
        let mut tcp: Vec<TcpClient> = (0..CLIENTS)
            .map(|i| TcpClient::connect(world.tcp, "alice", &format!("tcp{i}")))
            .collect();
        let mut rounds = |count, pings: usize| {
            for _ in 0..count {
                let at_once = world.gate.lock().unwrap();
                for client in &mut ws {
                    client.send("", ClientBody::Heartbeat(Heartbeat {}));
                    (0..pings).for_each(|_| client.send("7", ping()));
                }
                for client in &mut tcp {
                    client.send("", ClientBody::Heartbeat(Heartbeat {}));
                    (0..pings).for_each(|_| client.send("7", ping()));
                }
                drop(at_once);
                ws.iter_mut()
                    .for_each(|c| (0..pings).for_each(|_| drop(c.frame())));
                tcp.iter_mut()
                    .for_each(|c| (0..pings).for_each(|_| drop(c.frame())));
            }
        };
        // More at once than ever afterwards: all tables have grown.
        rounds(ROUNDS_WARM, 4);
        next();
        rounds(ROUNDS, 1);
        next();
    });
    assert_eq!(allocated, 0);
}

#[test]
fn a_delivery_allocates_for_its_frame_and_not_for_its_recipients() {
    let allocated = allocated_by_shard(|world, next| {
        let mut clients: Vec<WsClient> = (0..CLIENTS)
            .map(|i| WsClient::connect(world.ws, "alice", &format!("ws{i}")))
            .collect();
        let handles = world.core.open();
        let mut rounds = |count, pushes: usize| {
            for round in 0..count {
                let at_once = world.gate.lock().unwrap();
                for _ in 0..pushes {
                    world.core.push(handles.clone(), 100, round as u64);
                }
                drop(at_once);
                for client in &mut clients {
                    (0..pushes).for_each(|_| drop(client.frame()));
                }
            }
        };
        rounds(ROUNDS_WARM, 8);
        next();
        rounds(ROUNDS, 4);
        next();
    });
    // The frame's bytes, and the count of who shares them.
    assert!(allocated <= 2 * 4 * ROUNDS as u64, "{allocated}");
    assert!(allocated > 0, "nothing was counted");
}

/// With what JSON writes as escapes, and what it need not.
fn said() -> ClientBody {
    ClientBody::SendMessage(SendMessage {
        to: "bob".into(),
        client_msg_id: "m1".into(),
        content: "\"hé\"\n\u{1}".into(),
        ..SendMessage::default()
    })
}

#[test]
fn a_chat_message_its_ack_and_its_delivery_allocate_nothing() {
    let allocated = allocated_by_shard(|world, next| {
        let mut ws: Vec<WsClient> = (0..CLIENTS)
            .map(|i| WsClient::connect(world.ws, "alice", &format!("ws{i}")))
            .collect();
        let mut tcp: Vec<TcpClient> = (0..CLIENTS)
            .map(|i| TcpClient::connect(world.tcp, "alice", &format!("tcp{i}")))
            .collect();
        let handles = world.core.open();
        let mut rounds = |count, sends: usize| {
            for round in 0..count {
                let at_once = world.gate.lock().unwrap();
                for _ in 0..sends {
                    ws.iter_mut().for_each(|client| client.send("7", said()));
                    tcp.iter_mut().for_each(|client| client.send("7", said()));
                    for &handle in &handles {
                        world.core.push(vec![handle], 100, round as u64);
                    }
                }
                drop(at_once);
                // Of each message an ack, and a message of somebody else.
                for _ in 0..2 * sends {
                    ws.iter_mut().for_each(|client| drop(client.frame()));
                    tcp.iter_mut().for_each(|client| drop(client.frame()));
                }
            }
        };
        rounds(ROUNDS_WARM, 4);
        next();
        rounds(ROUNDS, 1);
        next();
    });
    assert_eq!(allocated, 0);
}

/// What an echo shard allocates while a client sends `messages`, one after the other.
fn allocated_by_echo(messages: usize) -> u64 {
    let options = Options::default();
    let mut driver = driver();
    let address = listening(&mut *driver, options.ws);
    let stop = Arc::new(AtomicBool::new(false));
    let (waker, of_client) = (driver.waker(), stop.clone());
    let client = std::thread::spawn(move || {
        let mut client = WsClient::open(address);
        for _ in 0..messages {
            client.send("", ping());
            client.read();
        }
        drop(client);
        of_client.store(true, Ordering::Release);
        waker.wake();
    });
    let counted = measure(|| run_echo_shard(&mut *driver, &stop, &options).unwrap());
    client.join().unwrap();
    counted.count_total
}

#[test]
fn an_echo_allocates_nothing() {
    let (few, many) = (allocated_by_echo(1_000), allocated_by_echo(5_000));
    // Beginning and end cost the same, but for a turn more or less.
    assert!(few > 0, "nothing was counted");
    assert!(many <= few + 10, "{few} and {many}");
}
