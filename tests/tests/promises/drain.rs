//! Promise: SIGTERM sends everybody elsewhere, each at a moment of its own, loses nothing, and the
//! process ends with 0 when all have left; a second SIGTERM ends it at once.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use trunkline_proto::client::{ClientBody, Ping, ServerBody};
use trunkline_proto::ids::ConversationId;
use trunkline_tests::eventually;
use trunkline_tests::person::Person;
use trunkline_tests::process::Server;
use trunkline_tests::proxy::Proxy;
use trunkline_tests::rest::{create_group, history};
use trunkline_tests::session::{Session, To};
use trunkline_tests::wire::Kind;

const CLIENTS: usize = 300;
/// The delays reach over half of it.
const BUDGET: Duration = Duration::from_secs(8);

/// Waits for the word to leave, shows that the session is still good, and leaves when told to.
/// Returns the delay and the seq of a last message.
async fn leave_when_told(mut session: Session, group: &str) -> (u32, u64) {
    let after_ms = session
        .expect("reconnect", |body| match body {
            ServerBody::Reconnect(reconnect) => {
                assert!(!reconnect.reason.is_empty());
                Some(reconnect.after_ms)
            }
            _ => None,
        })
        .await;
    let leave_at = Instant::now() + Duration::from_millis(after_ms.into());
    session
        .send(ClientBody::Ping(Ping { nonce: "n".into() }))
        .await;
    session
        .expect("a pong", |body| {
            matches!(body, ServerBody::Pong(_)).then_some(())
        })
        .await;
    let last = session.said(To::Conversation(group), "last", "words").await;
    // The client's part of the bargain.
    tokio::time::sleep_until(leave_at.into()).await;
    (after_ms, last.expect("an ack on a draining server").seq)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_is_sent_away_in_time_and_nothing_is_lost() {
    let budget = format!("{}s", BUDGET.as_secs());
    let mut server = Server::serve(&[
        "--send-rate",
        "0",
        "--connect-rate",
        "0",
        "--drain-budget",
        &budget,
    ]);
    let users: Vec<String> = (0..CLIENTS).map(|n| format!("user{n}")).collect();
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let group = create_group(&server, &members);
    let mut sessions = Vec::new();
    for (n, user) in users.iter().enumerate() {
        sessions.push(Session::open(&server, Kind::ALL[n % 3], user, "d").await);
    }
    let first = sessions[0]
        .said(To::Conversation(&group), "first", "x")
        .await;
    assert_eq!(first.expect("an ack").seq, 1);

    let began = Instant::now();
    server.signal("TERM");
    let leaving = sessions.into_iter().map(|s| leave_when_told(s, &group));
    let left = join_all(leaving).await;
    let status = server.wait();
    let took = began.elapsed();
    println!("drained {CLIENTS} in {took:.1?} of {BUDGET:?}");
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(took < BUDGET, "all left by themselves: {took:?}");

    let delays: HashSet<u32> = left.iter().map(|(after_ms, _)| *after_ms).collect();
    assert!(
        delays.len() > CLIENTS / 2,
        "{} different delays",
        delays.len()
    );
    server.start();
    let rows = history(&server, "user0", &group);
    let acked: HashSet<u64> = left.iter().map(|(_, seq)| *seq).collect();
    assert_eq!(acked.len(), CLIENTS);
    assert_eq!(rows.len(), CLIENTS + 1);
    assert!(rows.iter().skip(1).all(|row| acked.contains(&row.seq)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_ends_at_once() {
    // Longer than anybody waits here.
    let mut server = Server::serve(&["--drain-budget", "10m"]);
    let mut stays = Session::open(&server, Kind::Json, "alice", "d").await;
    server.signal("TERM");
    stays
        .expect("reconnect", |body| {
            matches!(body, ServerBody::Reconnect(_)).then_some(())
        })
        .await;
    // It is draining, so this is the second.
    server.signal("TERM");
    let status = server.wait();
    assert_eq!(status.code(), Some(128 + 15), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_move_to_another_edge_by_themselves() {
    let core = Server::core(&["--send-rate", "0"]);
    let mut one = Server::edge(
        core.address("grpc"),
        &["--send-rate", "0", "--drain-budget", "6s"],
    );
    let two = Server::edge(core.address("grpc"), &["--send-rate", "0"]);
    // Where load balancers would stand.
    let ws = Proxy::start(one.address("ws")).await;
    let tcp = Proxy::start(one.address("tcp")).await;
    let people: Vec<Person> = (0..12)
        .map(|n| {
            let kind = Kind::ALL[n % 3];
            let balancer = if kind == Kind::Tcp { &tcp } else { &ws };
            Person::start(kind, balancer.address(), &format!("user{n}"), "d")
        })
        .collect();
    eventually("all are on the first edge", async || {
        (one.admin("/debug/conns?state=live")["connections"]
            .as_array()?
            .len()
            == 12)
            .then_some(())
    })
    .await;
    ws.retarget(two.address("ws"));
    tcp.retarget(two.address("tcp"));
    one.signal("TERM");
    // They talk on all through the move.
    for _ in 0..50 {
        for (n, person) in people.iter().enumerate() {
            person.say(To::User(&format!("user{}", n ^ 1))).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(one.wait().code(), Some(0));
    for (n, person) in people.iter().enumerate() {
        let partner = format!("user{}", n ^ 1);
        let theirs = ConversationId::direct(&person.user, &partner).to_string();
        eventually("everything is acked and seen", async || {
            let (open, seen) = person
                .look(|log| (log.outstanding, log.count(&theirs)))
                .await;
            (open == 0 && seen == 100).then_some(())
        })
        .await;
        let rows: Vec<_> = history(&core, &person.user, &theirs)
            .iter()
            .map(|row| (row.seq, row.message_id))
            .collect();
        let seen: Vec<_> = person
            .look(|log| log.seen(&theirs))
            .await
            .iter()
            .map(|s| (s.seq, s.message_id))
            .collect();
        assert_eq!(seen, rows);
        let reasons = person.look(|log| log.disconnects.clone()).await;
        assert_eq!(reasons.len(), 1, "{}: {reasons:?}", person.user);
        assert!(reasons[0].contains("asked to reconnect"), "{reasons:?}");
    }
}
