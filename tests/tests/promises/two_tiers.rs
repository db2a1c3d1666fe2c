//! Promise: `serve` and `edge` + `core` are the same to a client; and what happened while an edge had
//! no core is told to its sessions, which need do nothing for it.

use std::collections::HashMap;

use serde_json::{Value, json};
use trunkline_proto::client::{ClientBody, Fetch, ServerBody, Typing};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::json::encode_server;
use trunkline_tests::eventually;
use trunkline_tests::person::Person;
use trunkline_tests::process::Server;
use trunkline_tests::proxy::Proxy;
use trunkline_tests::rest::{change, create_group, post};
use trunkline_tests::session::{Session, To};
use trunkline_tests::wire::{Kind, Refused};

/// What every session got after every step, with ids and times replaced by their order of
/// appearance.
#[derive(Default)]
struct Transcript {
    lines: Vec<String>,
    names: HashMap<String, String>,
}

impl Transcript {
    /// Takes down what came to each session by the end of a step.
    async fn step(&mut self, what: &str, sessions: &mut [(&str, Session)]) {
        self.lines.push(format!("== {what}"));
        for (name, session) in sessions {
            for frame in session.frames_until_now().await {
                let mut text = Vec::new();
                encode_server(&frame, &mut text);
                let mut value: Value = serde_json::from_slice(&text).expect("JSON");
                self.normalise(&mut value);
                self.lines.push(format!("{name}: {value}"));
            }
        }
    }

    fn normalise(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match (key.as_str(), value) {
                        ("ts" | "server_time", value) => *value = json!("a time"),
                        ("message_id" | "conversation_id" | "session_id", Value::String(id)) => {
                            let next = format!("id {}", self.names.len());
                            *id = self.names.entry(id.clone()).or_insert(next).clone();
                        }
                        (_, value) => self.normalise(value),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|v| self.normalise(v)),
            _ => {}
        }
    }
}

/// Sends, and waits until the ack or the refusal is there.
async fn say(session: &mut Session, to: To<'_>, id: &str, content: &str) {
    session.say(to, id, content).await;
    session
        .until("an ack or an error", |body| match body {
            ServerBody::Ack(ack) => ack.client_msg_id == id,
            ServerBody::Error(error) => error.client_msg_id == id,
            _ => false,
        })
        .await;
}

/// A conversation with everything in it. `front` has the sockets, `core` the REST.
async fn play(front: &Server, core: &Server) -> Vec<String> {
    let mut sessions = Vec::new();
    for (name, kind, user, device) in [
        ("alice", Kind::Json, "alice", "phone"),
        ("alice's desk", Kind::Proto, "alice", "desk"),
        ("bob", Kind::Tcp, "bob", "d"),
        ("carol", Kind::Json, "carol", "d"),
    ] {
        sessions.push((name, Session::open(front, kind, user, device).await));
    }
    let mut script = Transcript::default();
    let direct = ConversationId::direct("alice", "bob").to_string();
    let absent = ConversationId::direct("alice", "nobody").to_string();

    for (what, who, to, id, content) in [
        ("a first message", 0, To::User("bob"), "m1", "héllo"),
        ("the same once more", 1, To::User("bob"), "m1", "héllo"),
        ("other content", 0, To::User("bob"), "m1", "other"),
        ("an answer", 2, To::Conversation(&direct), "b1", "hi"),
        ("to nobody", 0, To::Conversation(&absent), "m2", "x"),
        ("nothing", 0, To::User("bob"), "m3", ""),
        ("not a member", 3, To::Conversation(&direct), "c1", "x"),
    ] {
        say(&mut sessions[who].1, to, id, content).await;
        script.step(what, &mut sessions).await;
    }
    for (seq, status) in [(1, "delivered"), (99, "read"), (1, "read")] {
        sessions[2].1.receipt(&direct, seq, status).await;
        sessions[2].1.fence().await;
        script.step("a receipt", &mut sessions).await;
    }
    let typing = Typing {
        conversation_id: direct.clone(),
        active: true,
        ..Typing::default()
    };
    sessions[0].1.send(ClientBody::Typing(typing)).await;
    script.step("typing", &mut sessions).await;
    let fetch = Fetch {
        conversation_id: direct.clone(),
        ..Fetch::default()
    };
    sessions[3].1.send(ClientBody::Fetch(fetch)).await;
    let is_error = |body: &ServerBody| matches!(body, ServerBody::Error(_));
    sessions[3].1.until("the refusal", is_error).await;
    script.step("what is not for her", &mut sessions).await;

    let group = create_group(core, &["alice", "bob"]);
    script.step("a group", &mut sessions).await;
    let member = format!("/v1/conversations/{group}/members/carol");
    sessions[0]
        .1
        .pour(To::Conversation(&group), "g", 3, "to all")
        .await;
    script.step("talk", &mut sessions).await;
    assert_eq!(change(core, "PUT", "alice", &member).0, 204);
    script.step("one more member", &mut sessions).await;
    let to = To::Conversation(&group);
    say(&mut sessions[3].1, to, "c2", "hi all").await;
    script.step("who talks", &mut sessions).await;
    assert_eq!(change(core, "DELETE", "carol", &member).0, 204);
    script.step("and leaves", &mut sessions).await;
    let body = json!({"to": "bob", "client_msg_id": "r1", "content": "by REST"});
    assert_eq!(post(core, "alice", "/v1/messages", &body).0, 201);
    script.step("a message by REST", &mut sessions).await;

    let mut late = Session::open(front, Kind::Json, "bob", "late").await;
    let mut pages = late.sync(&[], 2).await;
    pages.sort_by_key(|page| page.head_seq);
    for page in pages {
        let mut text = Vec::new();
        let frame = trunkline_proto::client::ServerFrame::push(ServerBody::Page(page));
        encode_server(&frame, &mut text);
        let mut value: Value = serde_json::from_slice(&text).expect("JSON");
        script.normalise(&mut value);
        script.lines.push(format!("bob, late: {value}"));
    }
    script.lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_and_two_say_the_same() {
    let serve = Server::serve(&[]);
    let whole = play(&serve, &serve).await;
    let core = Server::core(&[]);
    let edge = Server::edge(core.address("grpc"), &[]);
    let apart = play(&edge, &core).await;
    assert!(whole.len() > 40, "a script of some length: {}", whole.len());
    let differs = whole.iter().zip(&apart).position(|(one, two)| one != two);
    if let Some(at) = differs {
        let from = at.saturating_sub(3);
        let show = |lines: &[String]| lines[from..lines.len().min(at + 4)].join("\n");
        panic!("serve:\n{}\nedge + core:\n{}", show(&whole), show(&apart));
    }
    assert_eq!(whole.len(), apart.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_missed_while_the_link_was_cut_is_told_and_fetched() {
    let core = Server::core(&[]);
    let link = Proxy::start(core.address("grpc")).await;
    let edge = Server::edge(link.address(), &[]);
    let theirs = ConversationId::direct("alice", "bob").to_string();
    let mut alice = Session::open(&edge, Kind::Json, "alice", "d").await;
    let bob = Person::start(Kind::Proto, edge.address("ws"), "bob", "d");
    let mut plain_bob = Session::open(&edge, Kind::Tcp, "bob", "plain").await;
    alice
        .said(To::User("bob"), "before", "x")
        .await
        .expect("an ack");
    assert_eq!(plain_bob.message().await.seq, 1);
    eventually("bob has the first", async || {
        (bob.look(|log| log.count(&theirs)).await == 1).then_some(())
    })
    .await;

    link.refuse(true);
    eventually("the edge has lost its core", async || {
        (!edge.is_ready()).then_some(())
    })
    .await;
    // No core: no new sessions, and what is sent has an unknown outcome.
    match Session::try_open(Kind::Json, edge.address("ws"), "carol", "d").await {
        Err(Refused::Http(503)) => {}
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("taken without a core"),
    }
    let refused = alice.said(To::User("bob"), "during", "x").await;
    assert_eq!(refused.expect_err("no core").code, "unavailable");
    for n in 0..3 {
        let body = json!({"to": "bob", "client_msg_id": format!("r{n}"), "content": "by REST"});
        assert_eq!(post(&core, "alice", "/v1/messages", &body).0, 201);
    }

    link.refuse(false);
    // Each session is told how far the conversation goes now; nobody was disconnected.
    for session in [&mut alice, &mut plain_bob] {
        let head = session
            .expect("a hint", |body| match body {
                ServerBody::Conversation(c) if c.conversation_id == theirs && c.head_seq >= 4 => {
                    Some(c.head_seq)
                }
                _ => None,
            })
            .await;
        assert_eq!(head, 4);
    }
    eventually("bob has all", async || {
        (bob.look(|log| log.count(&theirs)).await >= 4).then_some(())
    })
    .await;
    let (connects, seqs) = bob
        .look(|log| (log.connects, log.shown_seqs(&theirs)))
        .await;
    assert_eq!((connects, seqs), (1, vec![1, 2, 3, 4]));
    let again = alice
        .said(To::User("bob"), "during", "x")
        .await
        .expect("an ack");
    assert_eq!(
        (again.seq, again.duplicate),
        (5, false),
        "nothing was stored of it"
    );
    assert_eq!(plain_bob.message().await.seq, 5);
}
