//! Two cores on the same tables in memory, with gRPC between them and real clocks.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use trunkline_proto::client::SendMessage;
use trunkline_proto::ids::ConversationId;

use super::{Cluster, ClusterConfig, Prepared};
use crate::engine::{EngineConfig, Request, Response};
use crate::ingress::serve_grpc;
use crate::ownership::clock::KernelClock;
use crate::ownership::control::Deployment;
use crate::ownership::memory::MemoryControl;
use crate::ownership::settings::Settings;
use crate::runtime::{Core, CoreConfig, CoreHandle};
use crate::store::fenced::memory::MemoryRows;

const PARTITIONS: u16 = 16;
/// Long enough that a loaded machine does not take a living core for dead.
const TTL_MS: u64 = 2_000;
const DEADLINE: Duration = Duration::from_secs(30);

/// What all cores of a cluster reach.
#[derive(Default)]
struct Tables {
    rows: Arc<MemoryRows>,
    control: Arc<MemoryControl>,
}

/// A core that has entered, and listens for the others.
struct Node {
    core: Option<Core>,
    cluster: Option<Cluster>,
    stop: watch::Sender<bool>,
}

impl Tables {
    async fn core(&self) -> Node {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let deployment = Deployment {
            partitions: PARTITIONS,
            tail_max: 1_024,
            bucket_size: 10_000,
        };
        let mut settings = Settings::new(PARTITIONS);
        settings.ttl_ms = TTL_MS;
        let config = ClusterConfig {
            deployment,
            settings,
            address: format!("http://{}", listener.local_addr().unwrap()),
            verify: false,
        };
        let clock = Arc::new(KernelClock);
        let prepared = Prepared::new(config, self.rows.clone(), self.control.clone(), clock);
        let core_config = CoreConfig {
            engine: EngineConfig {
                partitions: Some(PARTITIONS),
                lanes: 4,
                send_rate: 0,
                ..EngineConfig::default()
            },
            cluster: Some(prepared.link()),
            ..CoreConfig::default()
        };
        let store = prepared.store();
        let start = move || Core::start(core_config, store).unwrap();
        let core = tokio::task::spawn_blocking(start).await.unwrap();
        let (stop, mut stopped) = watch::channel(false);
        let until = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        tokio::spawn(serve_grpc(listener, core.handle(), until));
        let cluster = prepared.run(core.handle());
        Node {
            cluster: Some(cluster),
            core: Some(core),
            stop,
        }
    }
}

impl Node {
    fn handle(&self) -> CoreHandle {
        self.core.as_ref().unwrap().handle()
    }

    /// Partitions that the map gives to this core.
    fn partitions(&self) -> usize {
        let handle = self.cluster.as_ref().unwrap().handle();
        handle.stats().figures().held as usize
    }

    /// Makes a call, again until it is answered: a conversation may be changing its owner.
    async fn call_until(&self, user: &str, request: Request) -> Response {
        let (handle, begun) = (self.handle(), Instant::now());
        loop {
            match handle.request(user.to_owned(), request.clone()).await {
                Ok(response) => return response,
                Err(error) => assert_eq!(error.code, "unavailable"),
            }
            assert!(begun.elapsed() < DEADLINE, "never answered");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends, again until it is taken in: its seq, and whether it was there before.
    async fn say_until(&self, from: &str, to: &str, cid: &str) -> (u64, bool) {
        let send = SendMessage {
            to: to.to_owned(),
            client_msg_id: cid.to_owned(),
            content: "hello".to_owned(),
            ..SendMessage::default()
        };
        match self.call_until(from, Request::Send(send)).await {
            Response::Ack(ack) => (ack.seq, ack.duplicate),
            other => panic!("{other:?}"),
        }
    }

    /// Stops at once: hands nothing over, and its lease runs out.
    async fn die(mut self) {
        let _ = self.stop.send(true);
        self.cluster.take().unwrap().abort();
        let core = self.core.take().unwrap();
        tokio::task::spawn_blocking(move || core.shutdown())
            .await
            .unwrap();
    }

    async fn leave(mut self) {
        self.cluster.take().unwrap().leave().await;
        let _ = self.stop.send(true);
        let core = self.core.take().unwrap();
        tokio::task::spawn_blocking(move || core.shutdown())
            .await
            .unwrap();
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn two(tables: &Tables) -> (Node, Node) {
    let (one, two) = (tables.core().await, tables.core().await);
    eventually("both have their share", || {
        let (a, b) = (one.partitions(), two.partitions());
        a > 0 && b > 0 && a + b == usize::from(PARTITIONS)
    })
    .await;
    (one, two)
}

fn peers() -> Vec<String> {
    (0..24).map(|n| format!("peer{n}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_core_answers_for_any_conversation() {
    let tables = Tables::default();
    let (one, two) = two(&tables).await;
    for peer in peers() {
        assert_eq!(one.say_until("alice", &peer, "c1").await.0, 1);
        assert_eq!(two.say_until("alice", &peer, "c2").await.0, 2);
        // A repeated send finds the first one whichever core it comes to.
        assert_eq!(two.say_until("alice", &peer, "c1").await, (1, true));
    }
    let list = Request::ListConversations {
        cursor: None,
        limit: 200,
    };
    for node in [&one, &two] {
        match node.call_until("alice", list.clone()).await {
            Response::Conversations { items, .. } => assert_eq!(items.len(), peers().len()),
            other => panic!("{other:?}"),
        }
    }
    // The figures are published a few times a second.
    eventually("one had to ask the other", || {
        one.handle().engine_stats().asked + two.handle().engine_stats().asked > 0
    })
    .await;
    one.leave().await;
    two.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_core_had_is_taken_over_with_all_that_it_acked() {
    let tables = Tables::default();
    let (one, two) = two(&tables).await;
    for peer in peers() {
        assert_eq!(two.say_until("alice", &peer, "c1").await.0, 1);
    }
    two.die().await;
    for peer in peers() {
        assert_eq!(one.say_until("alice", &peer, "c1").await, (1, true));
        assert_eq!(one.say_until("alice", &peer, "c2").await.0, 2);
    }
    assert_eq!(one.partitions(), usize::from(PARTITIONS));
    one.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_leaves_hands_everything_over() {
    let tables = Tables::default();
    let (one, two) = two(&tables).await;
    for peer in peers() {
        assert_eq!(one.say_until("alice", &peer, "c1").await.0, 1);
    }
    two.leave().await;
    eventually("all is the other's", || {
        one.partitions() == usize::from(PARTITIONS)
    })
    .await;
    for peer in peers() {
        assert_eq!(one.say_until("alice", &peer, "c1").await, (1, true));
    }
    let conversation = ConversationId::direct("alice", "peer0");
    let page = Request::Messages {
        id: conversation,
        before: None,
        after: None,
        limit: 50,
    };
    match one.call_until("peer0", page).await {
        Response::Messages { head_seq, .. } => assert_eq!(head_seq, 1),
        other => panic!("{other:?}"),
    }
    one.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_lapsed_begins_anew_and_serves_again() {
    let tables = Tables::default();
    let core = tables.core().await;
    assert_eq!(core.say_until("alice", "bob", "c1").await.0, 1);
    let before: Vec<_> = tables.control.tables().cores.values().cloned().collect();
    let [row] = before.as_slice() else {
        panic!("{before:?}");
    };
    // Somebody declares it dead: its next renewal is refused.
    use crate::ownership::control::Control as _;
    let mut counter = row.counter;
    while tables
        .control
        .declare_dead(row.incarnation, counter)
        .await
        .unwrap()
        != crate::store::fenced::rows::Cas::Applied
    {
        counter = tables
            .control
            .core(row.incarnation)
            .await
            .unwrap()
            .unwrap()
            .counter;
    }
    eventually("another incarnation has everything", || {
        let tables = tables.control.tables();
        let living = tables
            .cores
            .values()
            .filter(|c| c.incarnation != row.incarnation);
        living.count() == 1 && core.partitions() == usize::from(PARTITIONS)
    })
    .await;
    assert_eq!(core.say_until("alice", "bob", "c1").await, (1, true));
    assert_eq!(core.say_until("alice", "bob", "c2").await.0, 2);
    core.leave().await;
}
