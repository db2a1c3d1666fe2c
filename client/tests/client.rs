//! The client against a server that stores faithfully and otherwise misbehaves.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Faults, Server};
use tokio::time::timeout;
use trunkline_client::frames::{Reconnect, ServerBody, ServerFrame};
use trunkline_client::{
    Client, ClientConfig, DisconnectReason, Encoding, Event, Events, Outgoing, SendError,
    TokenProvider, Transport,
};
use trunkline_proto::codes::Close;
use trunkline_proto::ids::ConversationId;

const DEADLINE: Duration = Duration::from_secs(20);

fn config(transport: Transport, user: &str) -> ClientConfig {
    let mut config = ClientConfig::new(transport, "device", TokenProvider::fixed(user));
    config.backoff_base = Duration::from_millis(5);
    config.backoff_max = Duration::from_millis(50);
    config.machine.outbox.retry_base_ms = 5;
    config
}

fn transports(server: &Server) -> [Transport; 3] {
    let ws = |encoding| Transport::WebSocket {
        url: server.ws.clone(),
        encoding,
    };
    let address = server.tcp.clone();
    [
        ws(Encoding::Json),
        ws(Encoding::Protobuf),
        Transport::Tcp { address },
    ]
}

async fn until<T>(events: &mut Events, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    let waiting = async {
        loop {
            let event = events.recv().await.expect("the client has given up");
            if let Some(found) = pick(event) {
                return found;
            }
        }
    };
    timeout(DEADLINE, waiting).await.expect("in time")
}

async fn synced(events: &mut Events) {
    until(events, |e| matches!(e, Event::Synced).then_some(())).await;
}

async fn messages(events: &mut Events, count: usize) -> Vec<String> {
    let mut got = Vec::new();
    while got.len() < count {
        got.push(
            until(events, |e| match e {
                Event::Message(m) => Some(m.content),
                _ => None,
            })
            .await,
        );
    }
    got
}

/// Polls `check` until it holds.
async fn eventually(mut check: impl FnMut() -> bool) {
    let waiting = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, waiting).await.expect("in time");
}

#[tokio::test]
async fn two_users_chat_over_every_transport() {
    let server = Server::start(Faults::default()).await;
    for (n, transport) in transports(&server).into_iter().enumerate() {
        let (alice, mut alice_events) =
            Client::connect(config(transport.clone(), &format!("alice{n}"))).unwrap();
        let bob_id = format!("bob{n}");
        let (bob, mut bob_events) = Client::connect(config(transport, &bob_id)).unwrap();
        synced(&mut alice_events).await;
        synced(&mut bob_events).await;
        let ack = alice
            .send(Outgoing::to_user(&bob_id, "hello"))
            .await
            .unwrap();
        assert_eq!((ack.seq, ack.duplicate), (1, false));
        assert_eq!(messages(&mut bob_events, 1).await, ["hello"]);
        bob.mark_read(&ack.conversation_id, 1).await.unwrap();
        eventually(|| server.marked(&bob_id, &ack.conversation_id, "read") == 1).await;
        let page = alice.history(&ack.conversation_id, None, None, None).await;
        assert_eq!(page.unwrap().messages.len(), 1);
        let refused = alice.send(Outgoing::to_user(&bob_id, "refuse")).await;
        assert!(matches!(refused, Err(SendError::Refused(e)) if e.code == "too_large"));
        alice.close().await;
        let closed = alice.send(Outgoing::to_user(&bob_id, "late")).await;
        assert_eq!(closed, Err(SendError::Closed));
    }
}

#[tokio::test]
async fn nothing_is_lost_doubled_or_reordered_whatever_breaks() {
    let faults = Faults {
        break_before_ack: 7,
        lose_push: 3,
        refuse: 5,
    };
    let server = Server::start(faults).await;
    for (n, transport) in transports(&server).into_iter().enumerate() {
        let (alice_id, bob_id) = (format!("alice{n}"), format!("bob{n}"));
        let (alice, _alice_events) = Client::connect(config(transport.clone(), &alice_id)).unwrap();
        let (_bob, mut bob_events) = Client::connect(config(transport, &bob_id)).unwrap();
        const COUNT: usize = 200;
        let sent: Vec<String> = (0..COUNT).map(|i| i.to_string()).collect();
        let mut acks = Vec::new();
        for (i, content) in sent.iter().enumerate() {
            let message = Outgoing::to_user(&bob_id, content).with_client_msg_id(content);
            acks.push(alice.enqueue(message).await.unwrap());
            if i % 50 == 25 {
                server.break_all();
            }
        }
        for (i, ack) in acks.into_iter().enumerate() {
            let ack = timeout(DEADLINE, ack).await.unwrap().unwrap();
            assert_eq!(ack.seq, i as u64 + 1);
        }
        assert_eq!(messages(&mut bob_events, COUNT).await, sent);
        let conversation = ConversationId::direct(&alice_id, &bob_id).to_string();
        assert_eq!(server.stored(&conversation), sent);
        let seen = || server.marked(&bob_id, &conversation, "delivered") == COUNT as u64;
        eventually(seen).await;
    }
}

#[tokio::test]
async fn what_came_while_away_is_caught_up_with_from_the_kept_positions() {
    let server = Server::start(Faults::default()).await;
    for n in 0..120 {
        server.post("bob", "alice", &n.to_string());
    }
    let [_, _, tcp] = transports(&server);
    let (alice, mut events) = Client::connect(config(tcp.clone(), "alice")).unwrap();
    let expected: Vec<String> = (0..120).map(|n| n.to_string()).collect();
    assert_eq!(messages(&mut events, 120).await, expected);
    let positions = alice.positions().await.unwrap();
    alice.close().await;

    server.post("bob", "alice", "while away");
    server.post("carol", "alice", "from a stranger");
    let mut again = config(tcp, "alice");
    again.positions = positions;
    let (_alice, mut events) = Client::connect(again).unwrap();
    let got = messages(&mut events, 2).await;
    assert_eq!(got, ["while away", "from a stranger"]);
}

#[tokio::test]
async fn terminal_closes_end_the_client_and_others_do_not() {
    let server = Server::start(Faults::default()).await;
    for transport in transports(&server) {
        let (alice, mut events) = Client::connect(config(transport, "alice")).unwrap();
        synced(&mut events).await;
        server.close_all(Close::Draining);
        let reason = until(&mut events, |e| match e {
            Event::Disconnected {
                reason,
                retry_in_ms: Some(_),
            } => Some(reason),
            _ => None,
        })
        .await;
        assert_eq!(reason.close(), Some(Close::Draining));
        synced(&mut events).await;
        server.close_all(Close::Replaced);
        let reason = until(&mut events, |e| match e {
            Event::Disconnected {
                reason,
                retry_in_ms: None,
            } => Some(reason),
            _ => None,
        })
        .await;
        assert_eq!(reason.close(), Some(Close::Replaced));
        assert_eq!(events.recv().await, None);
        let sent = alice.send(Outgoing::to_user("bob", "x")).await;
        assert_eq!(sent, Err(SendError::Closed));
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_there_is_another() {
    let server = Server::start(Faults::default()).await;
    let [_, ws, _] = transports(&server);
    let calls = Arc::new(AtomicU64::new(0));
    let mut renewing = config(ws.clone(), "alice");
    let counted = calls.clone();
    renewing.token = TokenProvider::from_fn(move || {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        async move { Ok(if call == 0 { "bad" } else { "alice" }.to_owned()) }
    });
    let (_alice, mut events) = Client::connect(renewing).unwrap();
    synced(&mut events).await;

    let (_bad, mut events) = Client::connect(config(ws, "bad")).unwrap();
    let reason = until(&mut events, |e| match e {
        Event::Disconnected {
            reason,
            retry_in_ms: None,
        } => Some(reason),
        _ => None,
    })
    .await;
    assert!(reason.is_unauthorized(), "{reason}");
}

#[tokio::test]
async fn reconnect_moves_the_client_after_its_delay() {
    let server = Server::start(Faults::default()).await;
    let [json, ..] = transports(&server);
    let (_alice, mut events) = Client::connect(config(json, "alice")).unwrap();
    synced(&mut events).await;
    assert_eq!(server.connects(), 1);
    server.send_all(&ServerFrame::push(ServerBody::Reconnect(Reconnect {
        after_ms: 20,
        reason: "drain".into(),
    })));
    let reason = until(&mut events, |e| match e {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
    .await;
    assert_eq!(reason, DisconnectReason::AskedToReconnect("drain".into()));
    synced(&mut events).await;
    assert_eq!(server.connects(), 2);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_tried_until_it_is() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let nowhere = Transport::Tcp { address };
    let (client, mut events) = Client::connect(config(nowhere, "alice")).unwrap();
    let waiting = client.enqueue(Outgoing::to_user("bob", "x")).await.unwrap();
    for _ in 0..3 {
        until(&mut events, |e| match e {
            Event::Disconnected {
                reason: DisconnectReason::Failed(_),
                retry_in_ms: Some(_),
            } => Some(()),
            _ => None,
        })
        .await;
    }
    client.close().await;
    assert_eq!(waiting.await, Err(SendError::Closed));
}

#[tokio::test]
async fn an_application_that_takes_no_events_stops_the_reading_and_loses_nothing() {
    let server = Server::start(Faults::default()).await;
    for n in 0..300 {
        server.post("bob", "alice", &n.to_string());
    }
    let [_, ws, _] = transports(&server);
    let mut small = config(ws, "alice");
    small.events_max = 2;
    let (alice, mut events) = Client::connect(small).unwrap();
    // The task answers although the events are full.
    let ack = alice.send(Outgoing::to_user("carol", "x"));
    let expected: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let (ack, got) = tokio::join!(timeout(DEADLINE, ack), messages(&mut events, 300));
    ack.unwrap().unwrap();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn a_silent_server_is_noticed() {
    let server = Server::start(Faults::default()).await;
    server.heartbeat(20);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Answers `connect`, then nothing, like a host that lost its power.
    let silent = tokio::spawn(async move {
        use prost::Message as _;
        use tokio::io::AsyncWriteExt as _;
        let (mut stream, _) = listener.accept().await.unwrap();
        let connected =
            ServerFrame::push(ServerBody::Connected(trunkline_client::frames::Connected {
                user_id: "alice".into(),
                heartbeat_ms: 20,
                ..Default::default()
            }));
        let bytes = connected.encode_length_delimited_to_vec();
        stream.write_all(&bytes).await.unwrap();
        (stream, listener)
    });
    let (_alice, mut events) =
        Client::connect(config(Transport::Tcp { address }, "alice")).unwrap();
    let reason = until(&mut events, |e| match e {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
    .await;
    assert_eq!(reason, DisconnectReason::Silent);
    drop(silent.await.unwrap());
}
