//! Promise: the seqs of a conversation are 1, 2, 3 …, and everybody sees the same message at the
//! same seq, now and later.

use std::collections::HashSet;

use trunkline_proto::client::{ClientFrame, ServerBody};
use trunkline_proto::ids::ConversationId;
use trunkline_tests::checker::order_hash;
use trunkline_tests::process::Server;
use trunkline_tests::rest::{create_group, get, history};
use trunkline_tests::session::{Session, To, send_message};
use trunkline_tests::wire::{Heard, Kind, Reader, Writer};

const SENDERS: usize = 100;
const EACH: usize = 1_000;
/// Messages that a sender has under way.
const WINDOW: usize = 20;

/// One member: sends its part, and reads until it has seen everything. Acks and messages together
/// must come with seqs 1, 2, 3 … as they stand on the wire. Returns the hash of what it saw.
async fn take_part(mut reader: Reader, mut writer: Writer, user: String, group: String) -> u64 {
    let (mut sent, mut acked) = (0, 0);
    let mut seen = Vec::with_capacity(SENDERS * EACH);
    while seen.len() < SENDERS * EACH {
        let mut bytes = Vec::new();
        while sent < EACH && sent < acked + WINDOW {
            let frame = ClientFrame {
                id: String::new(),
                frame: Some(send_message(
                    To::Conversation(&group),
                    &format!("m{sent}"),
                    "hello, all of you",
                )),
            };
            writer.encode(&frame, &mut bytes);
            sent += 1;
        }
        if !bytes.is_empty() {
            writer.send_encoded(&bytes).await.expect("it leaves");
        }
        let mut next = Some(reader.next().await.expect("a live connection"));
        while let Some(heard) = next {
            let Heard::Frame(frame) = heard else {
                panic!("{user}: {heard:?}");
            };
            let (seq, id) = match frame.frame {
                Some(ServerBody::Ack(ack)) => {
                    acked += 1;
                    (ack.seq, ack.message_id)
                }
                Some(ServerBody::Message(message)) => {
                    assert_ne!(message.sender_id, user, "one's own come as acks");
                    (message.seq, message.message_id)
                }
                Some(ServerBody::Conversation(_)) => {
                    next = reader.next_buffered();
                    continue;
                }
                other => panic!("{user}: {other:?}"),
            };
            assert_eq!(seq, seen.len() as u64 + 1, "{user}: the next seq");
            seen.push((seq, id));
            next = reader.next_buffered();
        }
    }
    assert_eq!(acked, EACH);
    order_hash(seen.into_iter())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_senders_in_one_group_make_one_order() {
    // Nobody here is slow; the machine may be.
    let server = Server::serve(&["--send-rate", "0", "--outbox-hard-bytes", "64MiB"]);
    let users: Vec<String> = (0..SENDERS).map(|n| format!("sender{n}")).collect();
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let group = create_group(&server, &members);
    let mut parts = Vec::new();
    for user in &users {
        let session = Session::open(&server, Kind::Tcp, user, "d").await;
        parts.push((session.split(), user.clone()));
    }
    let parts = parts.into_iter().map(|((reader, writer), user)| {
        tokio::spawn(take_part(reader, writer, user, group.clone()))
    });
    let hashes: HashSet<u64> = futures_util::future::join_all(parts)
        .await
        .into_iter()
        .map(|hash| hash.expect("a member"))
        .collect();
    assert_eq!(hashes.len(), 1, "all members saw one order");
    let rows = history(&server, "sender7", &group);
    assert_eq!(rows.len(), SENDERS * EACH);
    assert!(rows.iter().zip(1..).all(|(row, seq)| row.seq == seq));
    assert!(hashes.contains(&order_hash(rows.iter().map(|r| (r.seq, r.message_id)))));
    let ids: HashSet<_> = rows.iter().map(|row| row.message_id).collect();
    assert_eq!(ids.len(), rows.len(), "every message has an id of its own");
}

const LONG: u64 = 25_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paging_walks_a_long_conversation_without_repeat_or_hole() {
    let server = Server::serve(&["--send-rate", "0"]);
    let mut alice = Session::open(&server, Kind::Tcp, "alice", "d").await;
    alice
        .pour(To::User("bob"), "m", LONG as usize, "word")
        .await;
    let conversation = ConversationId::direct("alice", "bob").to_string();
    // Downwards on a socket, in pages whose size divides nothing.
    let mut bob = Session::open(&server, Kind::Json, "bob", "d").await;
    let mut before = None;
    let mut expected = LONG;
    loop {
        let page = bob.fetch(&conversation, None, before, 187).await;
        assert_eq!(page.head_seq, LONG);
        assert!(page.messages.is_sorted_by(|a, b| a.seq < b.seq));
        for message in page.messages.iter().rev() {
            assert_eq!(message.seq, expected);
            assert_eq!(message.client_msg_id, format!("m{}", expected - 1));
            expected -= 1;
        }
        assert_eq!(page.more, expected > 0);
        if !page.more {
            break;
        }
        before = Some(expected + 1);
    }
    assert_eq!(expected, 0);
    // Downwards over REST, and upwards.
    let mut expected = LONG;
    while expected > 0 {
        let path = format!(
            "/v1/conversations/{conversation}/messages?before={}&limit=200",
            expected + 1
        );
        let (status, page) = get(&server, "bob", &path);
        assert_eq!(status, 200, "{page}");
        let messages = page["messages"].as_array().expect("messages");
        assert_eq!(messages.last().expect("some")["seq"], expected);
        assert_eq!(
            messages[0]["seq"].as_u64().expect("a seq") + messages.len() as u64,
            expected + 1
        );
        expected -= messages.len() as u64;
    }
    let rows = history(&server, "bob", &conversation);
    assert_eq!(rows.len() as u64, LONG);
    assert!(rows.iter().zip(1..).all(|(row, seq)| row.seq == seq));
}
