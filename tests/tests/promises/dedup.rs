//! Promise: one `client_msg_id` of one sender in one conversation is one message, over whatever
//! connections it comes, at the same moment, and after the server was killed.

use serde_json::json;
use trunkline_proto::client::ServerBody;
use trunkline_tests::process::Server;
use trunkline_tests::rest::{history, post};
use trunkline_tests::session::{Session, To};
use trunkline_tests::wire::Kind;

const TRIES: usize = 1_000;
/// Tries that are under way together.
const AT_ONCE: usize = 25;
const REST_TRIES: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_at_the_same_instant_make_one_message_each_time() {
    let server = Server::serve(&["--send-rate", "0"]);
    let mut one = Session::open(&server, Kind::Tcp, "alice", "d1").await;
    let mut two = Session::open(&server, Kind::Json, "alice", "d2").await;
    let mut duplicates = 0;
    let mut conversation = String::new();
    for first in (0..TRIES).step_by(AT_ONCE) {
        let ids: Vec<_> = (first..first + AT_ONCE)
            .map(|n| format!("try{n}"))
            .collect();
        for (n, id) in ids.iter().enumerate() {
            // Whose bytes are written first changes.
            let (a, b) = if n % 2 == 0 {
                (&mut one, &mut two)
            } else {
                (&mut two, &mut one)
            };
            let to = To::User("bob");
            tokio::join!(a.say(to, id, "the same"), b.say(to, id, "the same"));
        }
        for id in &ids {
            let (a, b) = tokio::join!(one.settled(id), two.settled(id));
            let (a, b) = (a.expect("an ack"), b.expect("an ack"));
            assert_eq!((a.message_id, a.seq), (b.message_id, b.seq), "{id}");
            assert_ne!(a.duplicate, b.duplicate, "one of the two was first: {id}");
            duplicates += usize::from(b.duplicate);
            conversation = a.conversation_id;
        }
        // What each saw of the other's.
        for session in [&mut one, &mut two] {
            session.take(|body| matches!(body, ServerBody::Message(_)).then_some(()));
        }
    }
    println!("the second device came second {duplicates} times of {TRIES}");
    assert!((1..TRIES).contains(&duplicates), "each was first at times");
    let rows = history(&server, "alice", &conversation);
    assert_eq!(rows.len(), TRIES);
    assert!(rows.iter().zip(1..).all(|(row, seq)| row.seq == seq));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_socket_and_rest_at_once_make_one_message_each_time() {
    let server = Server::serve(&["--send-rate", "0"]);
    let mut socket = Session::open(&server, Kind::Proto, "alice", "d").await;
    for n in 0..REST_TRIES {
        let id = format!("try{n}");
        let body = json!({"to": "bob", "client_msg_id": id, "content": "the same"});
        let (by_rest, by_socket) = tokio::join!(
            async { tokio::task::block_in_place(|| post(&server, "alice", "/v1/messages", &body)) },
            socket.said(To::User("bob"), &id, "the same"),
        );
        let by_socket = by_socket.expect("an ack");
        let (status, by_rest) = by_rest;
        assert_eq!(
            status,
            if by_socket.duplicate { 201 } else { 200 },
            "{by_rest}"
        );
        assert_eq!(by_rest["seq"], by_socket.seq);
        assert_eq!(by_rest["message_id"], by_socket.message_id.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_recognised_after_a_kill_and_other_content_is_a_conflict() {
    let mut server = Server::serve(&["--send-rate", "0"]);
    let mut before = Session::open(&server, Kind::Tcp, "alice", "d").await;
    let first = before.said(To::User("bob"), "first", "one").await.unwrap();
    // As many as are promised to be recognised, the first among them.
    before.pour(To::User("bob"), "more", 4_095, "x").await;
    server.kill();
    server.until_silent();
    server.start();
    let mut after = Session::open(&server, Kind::Tcp, "alice", "d").await;
    let again = after.said(To::User("bob"), "first", "one").await.unwrap();
    assert!(again.duplicate);
    assert_eq!(
        (again.message_id, again.seq, again.ts),
        (first.message_id, first.seq, first.ts)
    );
    let other = after.said(To::User("bob"), "first", "two").await;
    assert_eq!(other.unwrap_err().code, "idempotency_conflict");
    let body = json!({"to": "bob", "client_msg_id": "first", "content": "two"});
    let (status, problem) = post(&server, "alice", "/v1/messages", &body);
    assert_eq!(
        (status, problem["code"].as_str()),
        (409, Some("idempotency_conflict"))
    );
    // Another sender's id is another message.
    let mut bob = Session::open(&server, Kind::Tcp, "bob", "d").await;
    let bobs = bob.said(To::User("alice"), "first", "mine").await.unwrap();
    assert_eq!((bobs.seq, bobs.duplicate), (4_097, false));
    let rows = history(&server, "bob", &first.conversation_id);
    assert_eq!(rows.len(), 4_097);
    assert_eq!(rows[0].content, "one");
}
