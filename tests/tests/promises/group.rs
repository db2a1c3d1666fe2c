//! Promise: members see everything from their joining to their removal and nothing else, also while
//! others talk; a full group says so; a message to many sessions on one edge is one item.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use trunkline_proto::client::ServerBody;
use trunkline_tests::eventually;
use trunkline_tests::process::Server;
use trunkline_tests::rest::{change, create_group, history, post};
use trunkline_tests::session::{Session, To};
use trunkline_tests::wire::Kind;

/// Somebody who talks without a pause until told to stop; returns the highest seq.
fn keep_talking(mut session: Session, group: String, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut last = 0;
        for n in 0.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let prefix = format!("{}-{n}-", session.user);
            let seqs = session
                .pour(To::Conversation(&group), &prefix, 5, "on and on")
                .await;
            last = *seqs.last().expect("five");
            session.take(|body| matches!(body, ServerBody::Message(_)).then_some(()));
        }
        last
    })
}

/// The seqs of messages of `group` that have come to a session.
async fn seqs_until_now(session: &mut Session) -> Vec<u64> {
    let messages = session.messages_until_now().await;
    messages.iter().map(|m| m.seq).collect()
}

fn assert_contiguous(seqs: &[u64], whose: &str) {
    let expected: Vec<u64> = (seqs[0]..).take(seqs.len()).collect();
    assert_eq!(seqs, expected, "{whose}");
}

/// Which `what` ("members_added" or "members_removed") the session was told.
async fn told(session: &mut Session, user: &str, added: bool) {
    session
        .expect("the change of members", |body| match body {
            ServerBody::Conversation(c) => {
                let users = if added {
                    &c.members_added
                } else {
                    &c.members_removed
                };
                users.iter().any(|u| u == user).then_some(())
            }
            _ => None,
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn members_come_and_go_in_the_midst_of_the_talk() {
    let server = Server::serve(&["--send-rate", "0"]);
    let group = create_group(&server, &["owner", "talker1", "talker2"]);
    let path = |user: &str| format!("/v1/conversations/{group}/members/{user}");
    let stop = Arc::new(AtomicBool::new(false));
    let mut owner = Session::open(&server, Kind::Json, "owner", "d").await;
    let mut talking = Vec::new();
    for (user, kind) in [("talker1", Kind::Tcp), ("talker2", Kind::Proto)] {
        let session = Session::open(&server, kind, user, "d").await;
        talking.push(keep_talking(session, group.clone(), Arc::clone(&stop)));
    }
    for round in 0..10 {
        let user = format!("guest{round}");
        let mut guest = Session::open(&server, Kind::ALL[round % 3], &user, "d").await;
        let (status, answer) = change(&server, "PUT", "owner", &path(&user));
        assert_eq!(status, 204, "{answer}");
        told(&mut guest, &user, true).await;
        told(&mut owner, &user, true).await;
        let mut seen = Vec::new();
        eventually("the guest hears the talk", async || {
            seen.extend(seqs_until_now(&mut guest).await);
            (seen.len() >= 20).then_some(())
        })
        .await;
        let (status, answer) = change(&server, "DELETE", "owner", &path(&user));
        assert_eq!(status, 204, "{answer}");
        told(&mut guest, &user, false).await;
        seen.extend(seqs_until_now(&mut guest).await);
        assert_contiguous(&seen, &user);
        assert!(seen[0] > 1 || round == 0, "none from before");
        // The talk goes on without the guest: what is stored for the guest is what was shown.
        let end = *seen.last().expect("some");
        let mut heard = owner.message().await.seq;
        while heard < end + 20 {
            heard = owner.message().await.seq;
        }
        assert_eq!(seqs_until_now(&mut guest).await, [] as [u64; 0]);
        let rows: Vec<u64> = history(&server, &user, &group)
            .iter()
            .map(|row| row.seq)
            .collect();
        assert_eq!(
            rows, seen,
            "history of {user} is the interval of membership"
        );
        let page = guest.fetch(&group, Some(end), None, 50).await;
        assert_eq!(page.messages, []);
        let refused = guest.said(To::Conversation(&group), "after", "x").await;
        assert_eq!(refused.expect_err("removed").code, "not_a_member");
    }
    stop.store(true, Ordering::SeqCst);
    let mut last = 0;
    for task in talking {
        last = last.max(task.await.expect("a talker"));
    }
    let rows = history(&server, "owner", &group);
    assert_eq!(rows.len() as u64, last);
    assert!(rows.iter().zip(1..).all(|(row, seq)| row.seq == seq));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_added_again_sees_both_intervals_and_not_what_lies_between() {
    let server = Server::serve(&["--send-rate", "0"]);
    let group = create_group(&server, &["owner", "guest"]);
    let path = format!("/v1/conversations/{group}/members/guest");
    let mut owner = Session::open(&server, Kind::Tcp, "owner", "d").await;
    let to = To::Conversation(&group);
    owner.pour(to, "in", 5, "x").await;
    assert_eq!(change(&server, "DELETE", "guest", &path).0, 204, "leaves");
    owner.pour(to, "between", 5, "x").await;
    assert_eq!(change(&server, "PUT", "owner", &path).0, 204);
    owner.pour(to, "again", 5, "x").await;
    let rows: Vec<u64> = history(&server, "guest", &group)
        .iter()
        .map(|row| row.seq)
        .collect();
    assert_eq!(rows, [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_group_takes_nobody_more() {
    let server = Server::serve(&["--group-members-max", "40"]);
    let users: Vec<String> = (0..40).map(|n| format!("member{n}")).collect();
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let group = create_group(&server, &members);
    let path = format!("/v1/conversations/{group}/members/");
    let refused = |(status, problem): (u16, Value)| {
        assert_eq!(status, 409, "{problem}");
        assert_eq!(problem["code"], "group_full");
    };
    refused(change(&server, "PUT", "member0", &format!("{path}late")));
    // Who is in already may be put again; who leaves makes room.
    assert_eq!(
        change(&server, "PUT", "member0", &format!("{path}member7")).0,
        204
    );
    assert_eq!(
        change(&server, "DELETE", "member7", &format!("{path}member7")).0,
        204
    );
    assert_eq!(
        change(&server, "PUT", "member0", &format!("{path}late")).0,
        204
    );
    refused(change(&server, "PUT", "member0", &format!("{path}member7")));
    let too_many: Vec<String> = (0..41).map(|n| format!("other{n}")).collect();
    let body = json!({"kind": "group", "title": "too many", "members": too_many});
    refused(post(&server, "other0", "/v1/conversations", &body));
}

const MEMBERS: usize = 200;
const MESSAGES: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_many_on_one_edge_is_one_item() {
    let core = Server::core(&["--send-rate", "0"]);
    let limits = ["--send-rate", "0", "--connect-rate", "0", "--shards", "1"];
    let edges = [(); 2].map(|()| Server::edge(core.address("grpc"), &limits));
    let users: Vec<String> = (0..MEMBERS).map(|n| format!("member{n}")).collect();
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let group = create_group(&core, &members);
    let mut sessions = Vec::new();
    for (n, user) in users.iter().enumerate() {
        // One of them sits on the other edge.
        let edge = &edges[usize::from(n == MEMBERS - 1)];
        sessions.push(Session::open(edge, Kind::ALL[n % 3], user, "d").await);
    }
    let items = || core.metric("trunkline_core_delivery_items_total");
    let handles = || core.metric("trunkline_core_delivery_handles_total");
    let (items_before, handles_before) = (items(), handles());
    sessions[0]
        .pour(To::Conversation(&group), "m", MESSAGES, "to all")
        .await;
    for session in &mut sessions[1..] {
        for seq in 1..=MESSAGES as u64 {
            assert_eq!(session.message().await.seq, seq);
        }
    }
    // The engine's figures are published now and then.
    let expected_handles = (MESSAGES * (MEMBERS - 1)) as f64;
    eventually("the core's figures", async || {
        (handles() - handles_before >= expected_handles).then_some(())
    })
    .await;
    assert_eq!(handles() - handles_before, expected_handles);
    assert_eq!(
        items() - items_before,
        (2 * MESSAGES) as f64,
        "one item for each message and edge"
    );
}
