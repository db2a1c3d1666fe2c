//! A whole edge with real sockets, on both drivers, between clients and a core that answers at once:
//! in the same process, and behind gRPC.

mod node_support;
mod node_upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use node_support::{
    FakeCore, TcpClient, WsClient, config, eventually, http_get, local, message, start,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use trunkline_edge::node::CoreLink;
use trunkline_edge::observe::admin::edge_admin_router;
use trunkline_edge::observe::counters::Number;
use trunkline_edge::observe::memory::IdleSession;
use trunkline_edge::ring::DriverChoice;
use trunkline_edge::session::{Bounds, DrainCounts};
use trunkline_proto::client::{ServerBody, ServerFrame};
use trunkline_proto::link::link_server::{Link, LinkServer};
use trunkline_proto::link::{CoreBatch, CoreWelcome, EdgeBatch, VERSION};
use trunkline_proto::ports::{CREDIT_INITIAL, EdgePort};

const DRIVERS: [DriverChoice; 2] = [DriverChoice::Epoll, DriverChoice::Uring];

fn is_ack(frame: &ServerFrame, id: &str, client_msg_id: &str) -> bool {
    frame.id == id
        && matches!(&frame.frame, Some(ServerBody::Ack(a)) if a.client_msg_id == client_msg_id)
}

#[test]
fn messages_are_acked_over_both_transports_on_both_drivers() {
    for driver in DRIVERS {
        let core = Arc::new(FakeCore::default());
        let node = start(config(driver, 2), local(&core));
        let mut ws: Vec<WsClient> = (0..10)
            .map(|i| WsClient::connect(node.ws_addr(), "alice", &format!("ws{i}")))
            .collect();
        let mut tcp: Vec<TcpClient> = (0..10)
            .map(|i| TcpClient::connect(node.tcp_addr(), "alice", &format!("tcp{i}")))
            .collect();
        for round in 0..20 {
            let id = format!("m{round}");
            ws.iter_mut().for_each(|c| c.send("i", message(&id)));
            tcp.iter_mut().for_each(|c| c.send("i", message(&id)));
            for frame in ws.iter_mut().map(WsClient::frame) {
                assert!(is_ack(&frame, "i", &id), "{frame:?}");
            }
            for frame in tcp.iter_mut().map(TcpClient::frame) {
                assert!(is_ack(&frame, "i", &id), "{frame:?}");
            }
        }
        // All that the core sent has been dealt with: the first grant, 20 registrations, 400 acks.
        let granted = u64::from(CREDIT_INITIAL) + 420;
        eventually("the credit returns", || core.granted() == granted);
        drop((ws, tcp));
        eventually("the core hears of the ends", || core.closed() == 20);
        node.stop();
        node.join();
    }
}

#[test]
fn one_delivery_reaches_sessions_on_all_shards() {
    for driver in DRIVERS {
        let core = Arc::new(FakeCore::default());
        let node = start(config(driver, 2), local(&core));
        let mut ws: Vec<WsClient> = (0..40)
            .map(|i| WsClient::connect(node.ws_addr(), "bob", &format!("d{i}")))
            .collect();
        let mut tcp = TcpClient::connect(node.tcp_addr(), "bob", "tcp");
        for seq in 1..=50 {
            core.push(core.open(), 300, seq);
        }
        let seq_of = |frame: ServerFrame| match frame.frame {
            Some(ServerBody::Message(m)) => m.seq,
            other => panic!("{other:?}"),
        };
        for client in &mut ws {
            let seqs: Vec<u64> = (1..=50).map(|_| seq_of(client.frame())).collect();
            assert_eq!(seqs, (1..=50).collect::<Vec<_>>());
        }
        assert_eq!(seq_of(tcp.frame()), 1);
        let handle = node.handle();
        eventually("the numbers are published", || {
            handle.number(Number::Delivered) == 50 * 41
        });
    }
}

#[test]
fn a_peer_that_does_not_read_is_closed_and_does_not_slow_the_others() {
    for driver in DRIVERS {
        let core = Arc::new(FakeCore::default());
        let mut config = config(driver, 1);
        config.settings.outbox = Bounds {
            soft: 64 * 1024,
            hard: 256 * 1024,
        };
        let node = start(config, local(&core));
        let slow = WsClient::connect(node.ws_addr(), "slow", "d");
        let mut good = WsClient::connect(node.ws_addr(), "good", "d");
        let handle = node.handle();
        let mut seq = 0;
        eventually("the slow one is closed", || {
            seq += 1;
            core.push(core.open(), 60_000, seq);
            let frame = good.frame();
            assert!(matches!(frame.frame, Some(ServerBody::Message(m)) if m.seq == seq));
            core.closed() == 1
        });
        eventually("counted", || handle.number(Number::ClosedSlowConsumer) == 1);
        eventually("nothing is owed", || {
            handle.number(Number::OutboxBytes) == 0
        });
        good.send("i", message("m"));
        assert!(is_ack(&good.frame(), "i", "m"));
        drop(slow);
    }
}

#[test]
fn a_cut_link_is_attached_anew_and_sessions_are_announced_again() {
    let core = Arc::new(FakeCore::default());
    let node = start(config(DriverChoice::Auto, 2), local(&core));
    let mut clients: Vec<WsClient> = (0..10)
        .map(|i| WsClient::connect(node.ws_addr(), "alice", &format!("d{i}")))
        .collect();
    core.set_silent(true);
    clients[0].send("i", message("lost"));
    // Whatever the cut interrupts, the client is not left waiting in silence.
    eventually("the message is taken", || {
        let handle = node.handle();
        handle.number(Number::InSendMessage) == 1
    });
    core.edge().cut("a test");
    let frame = clients[0].frame();
    assert!(matches!(frame.frame, Some(ServerBody::Error(e)) if e.code == "unavailable"));
    eventually("announced again", || core.announced_again() == 10);
    core.set_silent(false);
    let hellos = core.hellos();
    assert_eq!(hellos.len(), 2);
    assert_eq!(hellos[0].incarnation, hellos[1].incarnation);
    assert!(hellos[1].resume_from_ms > hellos[0].resume_from_ms);
    for client in &mut clients {
        client.send("i", message("m"));
        assert!(is_ack(&client.frame(), "i", "m"));
    }
}

#[test]
fn a_drain_ends_with_the_last_client() {
    for driver in DRIVERS {
        let core = Arc::new(FakeCore::default());
        let node = start(config(driver, 2), local(&core));
        let mut clients: Vec<WsClient> = (0..10)
            .map(|i| WsClient::connect(node.ws_addr(), "alice", &format!("d{i}")))
            .collect();
        node.drain(Duration::from_secs(120));
        assert!(!node.handle().is_ready());
        for client in &mut clients {
            let frame = client.frame();
            assert!(
                matches!(frame.frame, Some(ServerBody::Reconnect(_))),
                "{frame:?}"
            );
        }
        drop(clients);
        let counts = DrainCounts {
            clean: 10,
            forced: 0,
        };
        assert_eq!(node.join(), counts);
    }
}

#[test]
fn a_stop_says_goodbye() {
    let core = Arc::new(FakeCore::default());
    let node = start(config(DriverChoice::Auto, 1), local(&core));
    let mut client = WsClient::connect(node.ws_addr(), "alice", "d");
    node.stop();
    assert_eq!(client.close_code(), 1001);
    node.join();
    assert_eq!(core.closed(), 1);
}

#[test]
fn the_admin_pages_tell_what_is_there() {
    let core = Arc::new(FakeCore::default());
    let node = start(config(DriverChoice::Auto, 2), local(&core));
    let mut client = WsClient::connect(node.ws_addr(), "alice", "phone");
    drop(TcpClient::connect(node.tcp_addr(), "bob", "laptop"));
    eventually("the end is noticed", || core.closed() == 1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let admin = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, edge_admin_router(node.handle())).await });
    let get = |path: &str| http_get(admin, path);
    assert!(get("/healthz").starts_with("HTTP/1.1 200 "));
    assert!(get("/readyz").starts_with("HTTP/1.1 200 "));
    eventually("the socket is counted", || {
        get("/metrics").contains("trunkline_edge_sockets{state=\"live\",transport=\"ws\"} 1\n")
    });
    let live = get("/debug/conns?state=live");
    assert!(
        live.contains("\"user\":\"alice\"") && live.contains("\"device\":\"phone\""),
        "{live}"
    );
    assert!(!live.contains("bob"));
    eventually("the closed one is listed", || {
        let closed = get("/debug/conns?state=closed&limit=5");
        closed.contains("\"user\":\"bob\"") && closed.contains("end of stream")
    });
    assert!(get("/debug/conns?state=nonsense").starts_with("HTTP/1.1 400 "));
    let memory = get("/debug/memory");
    for part in [
        "connections\":1,",
        "idle_session\":{\"driver_slot\":",
        "queues_bytes\":",
    ] {
        assert!(memory.contains(part), "{memory}");
    }
    client.send("i", message("m"));
    assert!(is_ack(&client.frame(), "i", "m"));
}

/// User bytes of an idle session, with what its tables leave free: slots, ids, timers.
const SESSION_BYTES_MAX: u64 = 128;

#[test]
fn an_idle_session_keeps_to_its_budget() {
    const SESSIONS: u64 = 4_000;
    let mut config = config(DriverChoice::Uring, 1);
    config.driver_config.slots_max = 6_000;
    let core = Arc::new(FakeCore::default());
    let node = start(config, local(&core));
    let handle = node.handle();
    let before = handle.memory();
    let clients: Vec<WsClient> = (0..SESSIONS)
        // Ids of 20 bytes.
        .map(|n| WsClient::connect(node.ws_addr(), &format!("user-{n:07}"), "device-1"))
        .collect();
    let live = || handle.number(Number::WsLive) == SESSIONS;
    eventually("all are counted", live);
    let memory = handle.memory();
    println!("{memory:?}");
    let bytes = memory.of_connections() - before.of_connections();
    assert!(
        bytes <= SESSIONS * SESSION_BYTES_MAX,
        "{} bytes a session: {memory:?}",
        bytes / SESSIONS
    );
    let idle = IdleSession::of_this_build();
    let exact = idle.driver_slot + idle.session_slot + idle.timer + idle.ids;
    assert!(
        bytes >= SESSIONS * exact as u64,
        "less than the types take: {memory:?}"
    );
    assert!(memory.receive_buffers_bytes > 0 && memory.queues_bytes > 0);
    drop(clients);
    eventually("all have left", || handle.memory().connections == 0);
    node.stop();
    node.join();
}

/// A core behind gRPC.
struct GrpcCore(Arc<FakeCore>);

struct GrpcEdge(mpsc::UnboundedSender<Result<CoreBatch, Status>>);

impl EdgePort for GrpcEdge {
    fn deliver(&self, batch: CoreBatch) {
        let _ = self.0.send(Ok(batch));
    }

    fn cut(&self, reason: &str) {
        let _ = self.0.send(Err(Status::aborted(reason)));
    }
}

#[tonic::async_trait]
impl Link for GrpcCore {
    type AttachStream = UnboundedReceiverStream<Result<CoreBatch, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<EdgeBatch>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.unwrap();
        let (sender, outbound) = mpsc::unbounded_channel();
        let edge = Arc::new(GrpcEdge(sender));
        edge.deliver(CoreBatch {
            welcome: Some(CoreWelcome {
                version: VERSION,
                incarnation: 1,
            }),
            ..CoreBatch::default()
        });
        let core = self.0.clone();
        core.attach(first.hello.clone().unwrap(), edge.clone());
        core.answer(first);
        tokio::spawn(async move {
            while let Ok(Some(batch)) = inbound.message().await {
                if let Some(answer) = core.answer(batch) {
                    edge.deliver(answer);
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(outbound)))
    }
}

fn serve_grpc(core: &Arc<FakeCore>) -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let service = LinkServer::new(GrpcCore(core.clone()));
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (runtime, address)
}

#[test]
fn the_link_over_grpc_moves_to_another_core_when_one_dies() {
    let cores: [Arc<FakeCore>; 2] = Default::default();
    let (first, first_at) = serve_grpc(&cores[0]);
    let (_second, second_at) = serve_grpc(&cores[1]);
    let urls = vec![format!("http://{first_at}"), format!("http://{second_at}")];
    let node = start(config(DriverChoice::Auto, 2), CoreLink::Grpc(urls));
    let mut clients: Vec<WsClient> = (0..8)
        .map(|i| WsClient::connect(node.ws_addr(), "alice", &format!("d{i}")))
        .collect();
    for client in &mut clients {
        client.send("i", message("m"));
        assert!(is_ack(&client.frame(), "i", "m"));
    }
    let granted = u64::from(CREDIT_INITIAL) + 16;
    eventually("the credit returns", || cores[0].granted() == granted);
    first.shutdown_background();
    eventually("the other core has the sessions", || {
        cores[1].announced_again() == 8
    });
    let hello = &cores[1].hellos()[0];
    assert!(hello.resume_from_ms > 0);
    assert_eq!(hello.resume_from_incarnation, 1, "whose time it is");
    eventually("ready again", || node.handle().is_ready());
    for client in &mut clients {
        client.send("j", message("n"));
        assert!(is_ack(&client.frame(), "j", "n"));
    }
}
