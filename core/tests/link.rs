//! The link service over real sockets: edges attach, sessions open, messages cross from one stream
//! to another, credit is kept by both sides, and a broken stream leaves nothing behind.

mod support;

use std::sync::Arc;

use parking_lot::Mutex;
use support::edge::{Edge, closed, frame, hello, message_to, opened};
use support::{TestCore, core_config, eventually, rest_config};
use tonic::Code;
use trunkline_core::runtime::CoreConfig;
use trunkline_proto::client::ClientBody;
use trunkline_proto::client::{Ping, ServerBody};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::link::{CoreBatch, EdgeBatch, EdgeHello, VERSION};
use trunkline_proto::ports::{CREDIT_INITIAL, EdgePort};

#[tokio::test]
async fn hello_is_answered_with_welcome_and_the_first_credit() {
    let core = TestCore::start().await;
    let edge = Edge::attach(
        core.grpc,
        EdgeHello {
            resume_from_ms: 55,
            ..hello("e1")
        },
    )
    .await;
    assert_eq!(edge.welcome.version, VERSION);
    assert_ne!(edge.welcome.incarnation, 0);
    assert_eq!(edge.credit, u64::from(CREDIT_INITIAL));
    assert_eq!(edge.core_time_ms, 55, "nothing since then was told yet");
    core.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_begins_wrongly_is_refused() {
    let core = TestCore::start().await;
    let refused = |first: EdgeBatch| async move {
        match Edge::attach_with(core.grpc, first).await {
            Ok(_) => panic!("attached"),
            Err(status) => status,
        }
    };
    let status = refused(EdgeBatch::default()).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    let other_version = EdgeHello {
        version: VERSION + 1,
        ..hello("e1")
    };
    let status = refused(EdgeBatch {
        hello: Some(other_version),
        ..EdgeBatch::default()
    })
    .await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    let spoken = format!("speaks {VERSION}");
    assert!(status.message().contains(&spoken), "{status}");

    let status = refused(EdgeBatch {
        hello: Some(hello("no such/id")),
        ..EdgeBatch::default()
    })
    .await;
    assert_eq!(status.code(), Code::InvalidArgument);

    let status = refused(EdgeBatch {
        hello: Some(hello("e1")),
        ops: vec![opened(1, "alice", "d", false)],
        ..EdgeBatch::default()
    })
    .await;
    assert_eq!(status.code(), Code::InvalidArgument);
    core.shutdown().await;
}

#[tokio::test]
async fn a_second_hello_ends_the_stream() {
    let core = TestCore::start().await;
    let mut edge = Edge::attach(core.grpc, hello("e1")).await;
    edge.batch(EdgeBatch {
        hello: Some(hello("e1")),
        ..EdgeBatch::default()
    })
    .await;
    assert_eq!(edge.ended().await.code(), Code::InvalidArgument);
    eventually("the edge is detached", || core.handle.edges().is_empty()).await;
    core.shutdown().await;
}

#[tokio::test]
async fn a_message_is_acked_on_one_stream_and_delivered_on_another() {
    let core = TestCore::start().await;
    let mut first = Edge::attach(core.grpc, hello("e1")).await;
    let mut second = Edge::attach(core.grpc, hello("e2")).await;
    first.open(10, "alice", "phone").await;
    second.open(20, "bob", "laptop").await;

    for n in 1..=3 {
        let (id, key, content) = (format!("f{n}"), format!("m{n}"), format!("text {n}"));
        first
            .send(vec![frame(10, &id, message_to("bob", &key, &content))])
            .await;
        let ack = loop {
            let frame = first.frame_for(10).await;
            match frame.frame {
                Some(ServerBody::Ack(ack)) => {
                    assert_eq!(frame.id, id);
                    break ack;
                }
                // Told of a conversation that is new to the session.
                Some(ServerBody::Conversation(_)) if n == 1 => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((ack.seq, ack.client_msg_id.as_str()), (n, key.as_str()));
        let conversation = ConversationId::direct("alice", "bob").to_string();
        assert_eq!(ack.conversation_id, conversation);
        let message = loop {
            match second.body_for(20).await {
                ServerBody::Message(message) => break message,
                ServerBody::Conversation(c) if n == 1 => {
                    assert_eq!(c.conversation_id, conversation);
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(message.message_id, ack.message_id);
        assert_eq!((message.seq, message.ts), (ack.seq, ack.ts));
        assert_eq!(message.sender_id, "alice");
        assert_eq!(message.content, content);
    }
    core.shutdown().await;
}

#[tokio::test]
async fn every_operation_comes_back_as_credit() {
    let core = TestCore::start().await;
    let mut edge = Edge::attach(core.grpc, hello("e1")).await;
    let mut ops = vec![opened(1, "alice", "d", false)];
    for n in 0..50 {
        let body = message_to("bob", &format!("m{n}"), "x");
        ops.push(frame(1, "", body));
        ops.push(frame(1, "", ClientBody::Ping(Ping::default())));
        // Of a session that does not exist: dealt with all the same.
        ops.push(frame(99, "", ClientBody::Ping(Ping::default())));
    }
    ops.push(closed(1));
    let sent = ops.len() as u64;
    edge.send(ops).await;
    while edge.credit < u64::from(CREDIT_INITIAL) + sent {
        edge.next_batch().await.unwrap().expect("the stream ended");
    }
    assert_eq!(edge.credit, u64::from(CREDIT_INITIAL) + sent);
    core.shutdown().await;
}

#[tokio::test]
async fn an_edge_that_spends_more_than_its_credit_is_cut() {
    let core = TestCore::start().await;
    let mut edge = Edge::attach(core.grpc, hello("e1")).await;
    let ping = frame(1, "", ClientBody::Ping(Ping::default()));
    edge.send(vec![ping; CREDIT_INITIAL as usize + 1]).await;
    let status = edge.ended().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    core.shutdown().await;
}

#[tokio::test]
async fn the_core_sends_no_more_than_the_edge_granted() {
    let core = TestCore::start().await;
    let first = EdgeBatch {
        hello: Some(hello("e1")),
        credit: 2,
        ..EdgeBatch::default()
    };
    let mut edge = Edge::attach_with(core.grpc, first).await.unwrap();
    let sessions = (1..=5).map(|n| opened(n, &format!("u{n}"), "d", false));
    edge.send(sessions.collect()).await;
    edge.registered(1).await;
    edge.registered(2).await;
    let handle = core.handle.clone();
    eventually("three wait for credit", || {
        handle.edges().first().is_some_and(|e| e.waiting == 3)
    })
    .await;
    let report = core.handle.edges().remove(0);
    assert_eq!((report.credit, report.operations_out), (0, 2));
    assert_eq!((report.sessions, report.operations_in), (5, 5));
    edge.grant(3).await;
    for n in 3..=5 {
        edge.registered(n).await;
    }
    core.shutdown().await;
}

#[tokio::test]
async fn an_edge_that_grants_nothing_is_cut_at_the_bound() {
    let config = CoreConfig {
        link_buffer_ops_max: 8,
        ..core_config()
    };
    let core = TestCore::with(config, rest_config()).await;
    let first = EdgeBatch {
        hello: Some(hello("e1")),
        ..EdgeBatch::default()
    };
    let mut edge = Edge::attach_with(core.grpc, first).await.unwrap();
    let sessions = (1..=9).map(|n| opened(n, &format!("u{n}"), "d", false));
    edge.send(sessions.collect()).await;
    assert_eq!(edge.ended().await.code(), Code::Aborted);
    let handle = core.handle.clone();
    eventually("its sessions are gone", || {
        handle.engine_stats().sessions == 0 && handle.edges().is_empty()
    })
    .await;
    core.shutdown().await;
}

#[tokio::test]
async fn a_broken_stream_takes_its_sessions_with_it() {
    let core = TestCore::start().await;
    let mut edge = Edge::attach(core.grpc, hello("e1")).await;
    edge.open(1, "alice", "d").await;
    let handle = core.handle.clone();
    eventually("one session", || handle.engine_stats().sessions == 1).await;
    drop(edge);
    eventually("no session, no edge", || {
        let stats = handle.engine_stats();
        stats.sessions == 0 && stats.edges == 0
    })
    .await;
    core.shutdown().await;
}

#[tokio::test]
async fn a_newer_stream_of_the_same_edge_replaces_the_older() {
    let core = TestCore::start().await;
    let mut older = Edge::attach(core.grpc, hello("e1")).await;
    older.open(1, "alice", "d").await;
    let mut newer = Edge::attach(core.grpc, hello("e1")).await;
    assert_eq!(older.ended().await.code(), Code::Aborted);
    newer.open(1, "alice", "d").await;
    let handle = core.handle.clone();
    eventually("one edge, one session", || {
        let stats = handle.engine_stats();
        stats.sessions == 1 && stats.edges == 1 && handle.edges().len() == 1
    })
    .await;
    core.shutdown().await;
}

#[tokio::test]
async fn a_session_announced_again_is_told_what_it_may_have_missed() {
    let core = TestCore::start().await;
    let mut away = Edge::attach(core.grpc, hello("e1")).await;
    let mut here = Edge::attach(core.grpc, hello("e2")).await;
    away.open(1, "alice", "d").await;
    here.open(2, "bob", "d").await;
    let resume_from_ms = away.core_time_ms;
    assert_ne!(resume_from_ms, 0);
    drop(away);
    let handle = core.handle.clone();
    eventually("one edge is left", || handle.engine_stats().edges == 1).await;
    here.send(vec![frame(2, "", message_to("alice", "m1", "hi"))])
        .await;
    while !matches!(here.body_for(2).await, ServerBody::Ack(_)) {}

    let again = EdgeHello {
        resume_from_ms,
        ..hello("e1")
    };
    let mut back = Edge::attach(core.grpc, again).await;
    back.send(vec![opened(1, "alice", "d", true)]).await;
    match back.body_for(1).await {
        ServerBody::Conversation(hint) => {
            let conversation = ConversationId::direct("alice", "bob").to_string();
            assert_eq!(hint.conversation_id, conversation);
            assert_eq!(hint.head_seq, 1);
        }
        other => panic!("instead of a hint: {other:?}"),
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_drain_lets_acks_out_and_then_ends_the_streams() {
    let mut core = TestCore::start().await;
    let mut edge = Edge::attach(core.grpc, hello("e1")).await;
    edge.open(1, "alice", "d").await;
    edge.send(vec![frame(1, "f", message_to("bob", "m1", "last words"))])
        .await;
    let handle = core.handle.clone();
    eventually("the message was taken in", || {
        handle.edges().first().is_some_and(|e| e.operations_in == 2)
    })
    .await;
    core.drain().await;
    assert!(!core.handle.is_ready());
    while !matches!(edge.body_for(1).await, ServerBody::Ack(_)) {}
    assert_eq!(edge.ended().await.code(), Code::Aborted);
    let first = EdgeBatch {
        hello: Some(hello("e2")),
        ..EdgeBatch::default()
    };
    let refused = Edge::attach_with(core.grpc, first).await.err();
    assert_eq!(refused.expect("refused").code(), Code::Unavailable);
    core.shutdown().await;
}

#[tokio::test]
async fn health_and_reflection_tell_about_the_service() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let core = TestCore::start().await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", core.grpc));
    let channel = endpoint.unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    let service = "trunkline.link.v1.Link".to_owned();
    let check = HealthCheckRequest {
        service: service.clone(),
    };
    let status = health.check(check).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::Serving);

    let mut reflection = ServerReflectionClient::new(channel);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = tokio_stream::iter([request]);
    let answers = reflection.server_reflection_info(requests).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    assert!(list.service.iter().any(|s| s.name == service), "{list:?}");
    core.shutdown().await;
}

#[derive(Default)]
struct LocalEdge {
    batches: Mutex<Vec<CoreBatch>>,
    cuts: Mutex<Vec<String>>,
}

impl EdgePort for LocalEdge {
    fn deliver(&self, batch: CoreBatch) {
        self.batches.lock().push(batch);
    }

    fn cut(&self, reason: &str) {
        self.cuts.lock().push(reason.to_owned());
    }
}

#[tokio::test]
async fn an_edge_of_the_same_process_speaks_the_same_batches() {
    let mut core = TestCore::start().await;
    let edge = Arc::new(LocalEdge::default());
    let port = core.handle.attach_local(hello("local"), edge.clone());
    port.submit(EdgeBatch {
        credit: 10,
        ops: vec![opened(7, "alice", "d", false)],
        ..EdgeBatch::default()
    });
    eventually("registered", || {
        edge.batches.lock().iter().any(|b| !b.ops.is_empty())
    })
    .await;
    let batches = std::mem::take(&mut *edge.batches.lock());
    assert_eq!(batches[0].welcome.as_ref().unwrap().version, VERSION);
    assert_eq!(batches[0].credit, CREDIT_INITIAL);
    assert!(batches[0].ops.is_empty());
    drop(port);
    let handle = core.handle.clone();
    eventually("detached", || handle.engine_stats().edges == 0).await;

    let port = core.handle.attach_local(hello("local"), edge.clone());
    core.drain().await;
    assert_eq!(edge.cuts.lock().len(), 1, "cut by the drain, once");
    drop(port);
    core.shutdown().await;
}
