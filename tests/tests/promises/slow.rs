//! Promise: a client that does not read costs a bounded amount of memory and is let go with 4410;
//! nobody else notices, and it finds everything when it comes back.

use trunkline_proto::client::ServerBody;
use trunkline_tests::process::Server;
use trunkline_tests::rest::create_group;
use trunkline_tests::session::{Session, To, connect_frame};
use trunkline_tests::wire::{self, Heard, Kind};
use trunkline_tests::{PATIENCE, eventually};

const SLOW: usize = 8;
const READERS: usize = 4;
/// What is owed to one slow reader (`--outbox-hard-bytes`, 1 MiB by default), and as much again for
/// what queues it.
const MEMORY_BUDGET: u64 = (SLOW as u64) * (2 << 20) + (32 << 20);
/// Characters of three bytes each: 3 kB a message.
const CONTENT_CHARS: usize = 1_000;
const MESSAGES_MAX: u64 = 8_000;
const BATCH: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_are_bounded_and_let_go_and_whole_after_a_sync() {
    let server = Server::serve(&["--send-rate", "0"]);
    let slow: Vec<String> = (0..SLOW).map(|n| format!("slow{n}")).collect();
    let readers: Vec<String> = (0..READERS).map(|n| format!("reader{n}")).collect();
    let members: Vec<&str> = ["alice"]
        .into_iter()
        .chain(slow.iter().map(String::as_str))
        .chain(readers.iter().map(String::as_str))
        .collect();
    let group = create_group(&server, &members);
    let mut stuck = Vec::new();
    for (n, user) in slow.iter().enumerate() {
        let kind = Kind::ALL[n % 3];
        let address = server.address(kind.listener());
        let (mut reader, mut writer) = wire::open_narrow(kind, address).await.expect("a socket");
        let connect = connect_frame(&trunkline_tests::rest::token(user), "d");
        writer.send(&connect).await.expect("it leaves");
        let heard = reader.next().await.expect("an answer");
        assert!(matches!(heard, Heard::Frame(_)), "{heard:?}");
        // From here on it does not read.
        stuck.push((reader, writer));
    }
    let mut reading = Vec::new();
    for (n, user) in readers.iter().enumerate() {
        reading.push(Session::open(&server, Kind::ALL[n % 3], user, "d").await);
    }
    let mut alice = Session::open(&server, Kind::Tcp, "alice", "d").await;
    let content = "語".repeat(CONTENT_CHARS);
    let before = server.memory_bytes();
    let (mut sent, mut most) = (0, 0);
    while live_slow(&server) > 0 {
        assert!(
            sent < MESSAGES_MAX,
            "still not closed after {sent} messages"
        );
        let prefix = format!("m{sent}-");
        let to = To::Conversation(&group);
        let seqs = alice.pour(to, &prefix, BATCH as usize, &content).await;
        // The others get every message meanwhile, in order.
        for session in &mut reading {
            for seq in &seqs {
                assert_eq!(session.message().await.seq, *seq);
            }
        }
        sent += BATCH;
        most = most.max(server.memory_bytes().saturating_sub(before));
    }
    println!(
        "{SLOW} let go after {sent} messages, {} KiB at most",
        most >> 10
    );
    assert!(most < MEMORY_BUDGET, "{most} bytes");
    // One of each kind reads again in time, and learns why; the others never do.
    let others = stuck.split_off(3);
    for (reader, _writer) in &mut stuck {
        assert_eq!(read_to_the_end(reader).await, 4410);
    }
    eventually("all are gone", async || {
        (closed_as_slow(&server) == SLOW).then_some(())
    })
    .await;
    eventually("the outboxes are gone", async || {
        (server.metric("trunkline_edge_outbox_bytes") == 0.0).then_some(())
    })
    .await;
    drop(others);

    for user in [&slow[0], &slow[1], &slow[2]] {
        let mut session = Session::open(&server, Kind::Tcp, user, "d").await;
        let mut after = 0;
        while after < sent {
            let pages = session.sync(&[(&group, after)], 200).await;
            for message in &pages[0].messages {
                assert_eq!(message.seq, after + 1);
                after += 1;
            }
        }
        assert_eq!(after, sent);
    }
}

/// How many of the slow are still sessions.
fn live_slow(server: &Server) -> usize {
    let page = server.admin("/debug/conns?state=live");
    let live = page["connections"].as_array().expect("connections");
    let is_slow = |user: &str| user.starts_with("slow");
    live.iter()
        .filter(|c| c["user"].as_str().is_some_and(is_slow))
        .count()
}

/// Reads what the socket still holds, which is whole and in order; the code of the close after it.
async fn read_to_the_end(reader: &mut wire::Reader) -> u16 {
    let mut seq = 0;
    loop {
        match tokio::time::timeout(PATIENCE, reader.next()).await {
            Ok(Ok(Heard::Frame(frame))) => {
                if let Some(ServerBody::Message(message)) = frame.frame {
                    seq += 1;
                    assert_eq!(message.seq, seq);
                }
            }
            Ok(Ok(Heard::Ping)) => {}
            Ok(Ok(Heard::Closed(code))) => return code,
            other => panic!("{other:?} after message {seq}"),
        }
    }
}

/// How many connections ended with 4410.
fn closed_as_slow(server: &Server) -> usize {
    let page = server.admin("/debug/conns?state=closed");
    let closed = page["connections"].as_array().expect("connections");
    closed.iter().filter(|c| c["code"] == 4410).count()
}
