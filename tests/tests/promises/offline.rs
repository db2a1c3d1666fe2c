//! Promise: whoever was away gets everything, in order and once, in the pages that were asked for;
//! what was not acked comes again; a lost frame is found out and fetched, and nothing else.

use std::collections::HashSet;

use serde_json::Value;
use trunkline_proto::client::{ClientBody, ServerBody};
use trunkline_proto::ids::ConversationId;
use trunkline_tests::eventually;
use trunkline_tests::person::Person;
use trunkline_tests::process::Server;
use trunkline_tests::proxy::Proxy;
use trunkline_tests::rest::{create_group, get, history};
use trunkline_tests::session::{Session, To};
use trunkline_tests::tap::Tap;
use trunkline_tests::wire::Kind;

const ALICE: To<'static> = To::User("alice");
const BOB: To<'static> = To::User("bob");

fn theirs() -> String {
    ConversationId::direct("alice", "bob").to_string()
}

/// The caller's entry for the conversation of alice and bob.
fn listed(server: &Server, user: &str) -> Value {
    let (status, list) = get(server, user, "/v1/conversations");
    assert_eq!(status, 200, "{list}");
    let items = list["items"].as_array().expect("items");
    let found = items.iter().find(|c| c["conversation_id"] == theirs());
    found.expect("their conversation").clone()
}

async fn eventually_shown(person: &Person, conversation: &str, count: usize) {
    let what = format!("{} is shown {count}", person.user);
    eventually(&what, async || {
        let shown = person.look(|log| log.count(conversation)).await;
        (shown >= count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_comes_in_order_and_once_and_is_then_done_with() {
    let server = Server::serve(&["--send-rate", "0"]);
    let mut alice = Session::open(&server, Kind::Json, "alice", "d").await;
    alice.pour(BOB, "m", 120, "while you were out").await;
    for kind in Kind::ALL {
        // A user of each kind would do; it is the same bob, who is owed nothing the second time.
        let bob = Person::start(kind, server.address(kind.listener()), "bob", "d");
        let expected: u64 = if kind == Kind::ALL[0] { 120 } else { 0 };
        eventually("bob is in sync", async || {
            bob.look(|log| (log.synced > 0).then_some(())).await
        })
        .await;
        eventually_shown(&bob, &theirs(), expected as usize).await;
        eventually("the server knows that bob has all", async || {
            (listed(&server, "bob")["delivered_seq"] == 120).then_some(())
        })
        .await;
        let seqs = bob.look(|log| log.shown_seqs(&theirs())).await;
        assert_eq!(seqs, (1..=expected).collect::<Vec<_>>());
        bob.leave().await;
    }
    let mut again = Session::open(&server, Kind::Tcp, "bob", "d").await;
    assert_eq!(again.sync(&[], 50).await, []);
    // The newest is still unread.
    assert_eq!(listed(&server, "bob")["unread"], 120);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_and_not_acked_comes_again() {
    let server = Server::serve(&["--send-rate", "0"]);
    let mut alice = Session::open(&server, Kind::Json, "alice", "d").await;
    alice.pour(BOB, "m", 10, "x").await;
    let first = {
        let mut bob = Session::open(&server, Kind::Tcp, "bob", "d").await;
        // Five more come live, and are not acked either.
        let pages = bob.sync(&[], 50).await;
        alice.pour(BOB, "live", 5, "x").await;
        for seq in 11..=15 {
            assert_eq!(bob.message().await.seq, seq);
        }
        pages
    };
    assert_eq!(first[0].messages.len(), 10);
    let mut bob = Session::open(&server, Kind::Json, "bob", "d").await;
    let again = bob.sync(&[], 50).await;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].messages[..10], first[0].messages);
    assert_eq!(again[0].messages.len(), 15);
    // A part is acked: the rest comes.
    bob.receipt(&theirs(), 12, "delivered").await;
    bob.fence().await;
    drop(bob);
    let mut bob = Session::open(&server, Kind::Proto, "bob", "d").await;
    let rest = bob.sync(&[], 50).await;
    let seqs: Vec<_> = rest[0].messages.iter().map(|m| m.seq).collect();
    assert_eq!(seqs, [13, 14, 15]);
}

const MISSED: u64 = 10_000;
const RETURNING: usize = 20;
/// What all the returning readers may cost. All that they missed would be a hundred MiB.
const MEMORY_BUDGET: u64 = 24 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_missed_messages_come_only_as_asked_for() {
    let server = Server::serve(&["--send-rate", "0"]);
    let readers: Vec<String> = (0..RETURNING).map(|n| format!("reader{n}")).collect();
    let members: Vec<&str> = ["alice"]
        .into_iter()
        .chain(readers.iter().map(String::as_str))
        .collect();
    let group = create_group(&server, &members);
    let mut alice = Session::open(&server, Kind::Tcp, "alice", "d").await;
    let content = "word ".repeat(100);
    alice
        .pour(To::Conversation(&group), "m", MISSED as usize, &content)
        .await;
    let before = server.memory_bytes();
    let mut sessions = Vec::new();
    for reader in &readers {
        let mut session = Session::open(&server, Kind::Tcp, reader, "d").await;
        let pages = session.sync(&[], 50).await;
        assert_eq!(pages.len(), 1);
        let page = &pages[0];
        assert_eq!(
            (page.messages.len(), page.head_seq, page.more),
            (50, MISSED, true)
        );
        assert_eq!(page.messages[0].seq, 1);
        sessions.push(session);
    }
    for session in &mut sessions {
        let rest = session.frames_until_now().await;
        assert_eq!(rest, [], "nothing that was not asked for");
    }
    // One of them reads on to the end.
    let mut after = 50;
    while after < MISSED {
        let pages = sessions[0].sync(&[(&group, after)], 200).await;
        for message in &pages[0].messages {
            assert_eq!(message.seq, after + 1);
            after += 1;
        }
        assert_eq!(pages[0].more, after < MISSED);
    }
    let grown = server.memory_bytes().saturating_sub(before);
    println!("{RETURNING} readers of {MISSED} cost {} KiB", grown >> 10);
    assert!(grown < MEMORY_BUDGET, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_sent_during_the_sync_come_exactly_once() {
    let server = Server::serve(&["--send-rate", "0"]);
    let group = create_group(&server, &["alice", "Json", "Proto", "Tcp"]);
    let mut alice = Session::open(&server, Kind::Tcp, "alice", "d").await;
    let all = To::Conversation(&group);
    alice.pour(all, "before", 500, "x").await;
    let people: Vec<_> = Kind::ALL
        .into_iter()
        .map(|kind| {
            let address = server.address(kind.listener());
            Person::start(kind, address, &format!("{kind:?}"), "d")
        })
        .collect();
    alice.pour(all, "during", 500, "x").await;
    for person in &people {
        eventually_shown(person, &group, 1_000).await;
        let seqs = person.look(|log| log.shown_seqs(&group)).await;
        assert_eq!(seqs, (1..=1_000).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_frame_is_fetched_and_nothing_else() {
    let server = Server::serve(&["--send-rate", "0"]);
    // Of the live messages 4, 5 and 9 get lost on the way to bob.
    let lost =
        |body: &ServerBody| matches!(body, ServerBody::Message(m) if [4, 5, 9].contains(&m.seq));
    let tap = Tap::start(server.address("tcp"), lost).await;
    let bob = Person::start(Kind::Tcp, tap.address(), "bob", "d");
    eventually("bob is in sync", async || {
        bob.look(|log| (log.synced > 0).then_some(())).await
    })
    .await;
    let mut alice = Session::open(&server, Kind::Json, "alice", "d").await;
    for n in 1..=12 {
        alice
            .said(BOB, &format!("m{n}"), "x")
            .await
            .expect("an ack");
    }
    eventually_shown(&bob, &theirs(), 12).await;
    let seqs = bob.look(|log| log.shown_seqs(&theirs())).await;
    assert_eq!(seqs, (1..=12).collect::<Vec<_>>());
    let fetched: Vec<_> = tap
        .heard()
        .into_iter()
        .filter_map(|body| match body {
            ClientBody::Fetch(fetch) => Some((fetch.after, fetch.before)),
            _ => None,
        })
        .collect();
    assert_eq!(
        fetched,
        [(Some(3), Some(6)), (Some(8), Some(10))],
        "exactly the missing ranges, exclusive at both ends"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_written_while_disconnected_arrives_once_over_another_edge() {
    let core = Server::core(&["--send-rate", "0"]);
    let one = Server::edge(core.address("grpc"), &["--send-rate", "0"]);
    let two = Server::edge(core.address("grpc"), &["--send-rate", "0"]);
    // Stands where a load balancer would.
    let balancer = Proxy::start(one.address("ws")).await;
    let alice = Person::start(Kind::Proto, balancer.address(), "alice", "d");
    let bob = Person::start(Kind::Tcp, one.address("tcp"), "bob", "d");
    for n in 0..40 {
        // The link breaks with messages under way, and stays broken for the rest.
        if n == 10 {
            balancer.refuse(true);
        }
        alice.say(BOB).await;
    }
    balancer.retarget(two.address("ws"));
    balancer.refuse(false);
    eventually("everything is acked", async || {
        alice.look(|log| (log.outstanding == 0).then_some(())).await
    })
    .await;
    assert!(alice.look(|log| log.connects).await >= 2 || balancer.cuts() > 0);
    eventually_shown(&bob, &theirs(), 40).await;
    let rows = history(&core, "bob", &theirs());
    assert_eq!(rows.len(), 40, "each once");
    // Final ids, in the order of writing; bob sees the same.
    let own = alice.look(|log| log.seen(&theirs())).await;
    let shown = bob.look(|log| log.seen(&theirs())).await;
    for (n, row) in rows.iter().enumerate() {
        assert_eq!(row.content, format!("content {n} of alice"));
        for seen in [&own[n], &shown[n]] {
            assert_eq!((seen.seq, seen.message_id), (row.seq, row.message_id));
        }
    }
    eventually("the other edge counts a session", async || {
        (two.metric("trunkline_edge_sessions_opened_total") >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_device_sees_the_newest_page_and_scrolls_to_the_first() {
    let server = Server::serve(&["--send-rate", "0"]);
    let mut alice = Session::open(&server, Kind::Tcp, "alice", "d").await;
    alice.pour(BOB, "m", 170, "x").await;
    {
        // An older device has everything.
        let mut old = Session::open(&server, Kind::Tcp, "bob", "old").await;
        old.receipt(&theirs(), 170, "delivered").await;
        old.fence().await;
    }
    let mut new = Session::open(&server, Kind::Json, "bob", "new").await;
    assert_eq!(new.sync(&[], 50).await, [], "the user is owed nothing");
    let newest = new.fetch(&theirs(), None, None, 20).await;
    let seqs: Vec<_> = newest.messages.iter().map(|m| m.seq).collect();
    assert_eq!(seqs, (151..=170).collect::<Vec<_>>());
    let mut top = newest.messages[0].seq;
    let mut more = newest.more;
    while more {
        let page = new.fetch(&theirs(), None, Some(top), 50).await;
        assert_eq!(page.messages.last().expect("some").seq, top - 1);
        top = page.messages[0].seq;
        more = page.more;
    }
    assert_eq!(top, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_a_user_get_the_same_and_share_what_was_read() {
    let server = Server::serve(&["--send-rate", "0"]);
    let mut alice = Session::open(&server, Kind::Tcp, "alice", "phone").await;
    let mut alices_desk = Session::open(&server, Kind::Json, "alice", "desk").await;
    let mut phone = Session::open(&server, Kind::Tcp, "bob", "phone").await;
    let mut desk = Session::open(&server, Kind::Proto, "bob", "desk").await;
    alice.pour(BOB, "m", 10, "x").await;
    let mut seen = HashSet::new();
    for session in [&mut phone, &mut desk, &mut alices_desk] {
        let mut ids = Vec::new();
        for seq in 1..=10 {
            let message = session.message().await;
            assert_eq!(message.seq, seq);
            ids.push(message.message_id);
        }
        seen.insert(ids);
        assert_eq!(session.messages_until_now().await, [], "each once");
    }
    assert_eq!(seen.len(), 1, "all devices got the same");
    assert_eq!(
        alice.messages_until_now().await,
        [],
        "the sending session got acks"
    );
    assert_eq!(listed(&server, "bob")["unread"], 10);

    phone.receipt(&theirs(), 10, "read").await;
    let is_read = |body: &ServerBody| match body {
        ServerBody::Receipt(r) if r.status == "read" => Some((r.user_id.clone(), r.seq)),
        _ => None,
    };
    for session in [&mut desk, &mut alice] {
        let told = session.expect("the read mark", is_read).await;
        assert_eq!(told, ("bob".to_owned(), 10));
    }
    let bobs = listed(&server, "bob");
    assert_eq!(
        (&bobs["unread"], &bobs["read_seq"], &bobs["delivered_seq"]),
        (&0.into(), &10.into(), &10.into())
    );
    // Bob's own message is not unread to him on any device, and is to alice.
    phone.said(ALICE, "back", "y").await.expect("an ack");
    assert_eq!(desk.message().await.seq, 11);
    assert_eq!(listed(&server, "bob")["unread"], 0);
    assert_eq!(listed(&server, "alice")["unread"], 1);
}
