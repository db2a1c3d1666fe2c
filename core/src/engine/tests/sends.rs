//! Sends: what is refused, what is recognised, what is acked and delivered, and in which order.

use trunkline_proto::client::{ClientBody, Media, SendMessage, ServerBody};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::link::EdgeHello;

use super::world::{World, config, hello};
use crate::engine::{EngineConfig, Request, Response};

fn direct() -> ConversationId {
    ConversationId::direct("alice", "bob")
}

#[test]
fn a_first_send_makes_the_conversation_and_tells_both_before_the_message() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    world.say(alice, "bob", "c1", "hello");
    world.turn();
    let got = world.bodies(alice);
    let [ServerBody::Conversation(made), ServerBody::Ack(ack)] = got.as_slice() else {
        panic!("{got:?}");
    };
    assert_eq!(made.conversation_id, direct().to_string());
    assert_eq!(
        (made.kind.as_str(), made.version, made.head_seq),
        ("direct", 1, 0)
    );
    assert_eq!(made.members_added, ["alice", "bob"]);
    assert_eq!(
        (ack.seq, ack.status.as_str(), ack.duplicate),
        (1, "sent", false)
    );
    let got = world.bodies(bob);
    let [ServerBody::Conversation(_), ServerBody::Message(message)] = got.as_slice() else {
        panic!("{got:?}");
    };
    assert_eq!(message.message_id, ack.message_id);
    assert_eq!((message.seq, message.ts), (ack.seq, ack.ts));
    assert_eq!(
        (message.sender_id.as_str(), message.content.as_str()),
        ("alice", "hello")
    );
    assert_eq!(message.content_type, "text/plain");
    assert_eq!(
        world.commits.len(),
        1,
        "row, members and message are one batch"
    );
    assert_eq!(world.stored(direct()).members.len(), 2);
}

#[test]
fn the_senders_other_sessions_get_the_message_and_the_sending_one_its_ack() {
    let mut world = World::new();
    let phone = world.open(1, "alice");
    let laptop = world.open(2, "alice");
    world.say(phone, "bob", "c1", "hello");
    world.turn();
    assert_eq!(world.seqs(laptop), [1]);
    assert_eq!(world.acks(phone).len(), 1);
    world.say(phone, "bob", "c2", "again");
    world.turn();
    assert_eq!(world.ack(phone).seq, 2);
}

#[test]
fn one_item_for_each_edge_carries_all_its_sessions() {
    let mut world = World::new();
    let members: Vec<String> = (0..200).map(|n| format!("m{n}")).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    let alice = world.open(1, "alice");
    for (n, name) in names.iter().enumerate() {
        world.open(1 + (n % 2) as u32, name);
    }
    let group = world.group("alice", &names);
    world.items.clear();
    world.say_in(alice, group, "c1", "all");
    world.turn();
    let messages: Vec<_> = world
        .items
        .iter()
        .filter(|(_, d)| {
            matches!(
                d.frame.as_ref().unwrap().frame,
                Some(ServerBody::Message(_))
            )
        })
        .map(|(edge, d)| (*edge, d.handles.len()))
        .collect();
    assert_eq!(messages, [(1, 100), (2, 100)]);
    assert_eq!(world.engine.stats().delivery_items, 2);
    assert_eq!(world.engine.stats().delivery_handles, 200);
}

#[test]
fn malformed_sends_are_refused_and_store_nothing() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let fine = SendMessage {
        to: "bob".to_owned(),
        client_msg_id: "c1".to_owned(),
        content: "x".to_owned(),
        ..SendMessage::default()
    };
    let with = |edit: &dyn Fn(&mut SendMessage)| {
        let mut send = fine.clone();
        edit(&mut send);
        send
    };
    let cases = [
        (with(&|s| s.client_msg_id.clear()), "bad_request"),
        (with(&|s| s.client_msg_id = "x".repeat(65)), "bad_request"),
        (with(&|s| s.content.clear()), "bad_request"),
        (with(&|s| s.content = "é".repeat(1001)), "too_large"),
        (with(&|s| s.content_type = "x".repeat(65)), "bad_request"),
        (
            with(&|s| s.media = Some(Media::default())),
            "not_implemented",
        ),
        (with(&|s| s.to.clear()), "bad_request"),
        (
            with(&|s| s.conversation_id = direct().to_string()),
            "bad_request",
        ),
        (with(&|s| s.to = "no spaces".to_owned()), "bad_request"),
        (
            with(&|s| {
                s.to.clear();
                s.conversation_id = "CA3ECE1F-0478-587E-AB74-78AF8C811A22".to_owned();
            }),
            "bad_request",
        ),
    ];
    for (send, code) in cases {
        let client_msg_id = send.client_msg_id.clone();
        world.frame(alice, "", ClientBody::SendMessage(send.clone()));
        world.turn();
        let error = world.error(alice);
        assert_eq!(error.code, code, "{send:?}");
        assert_eq!(error.client_msg_id, client_msg_id);
    }
    assert!(world.store.conversations.is_empty());
}

#[test]
fn a_thousand_characters_are_accepted_whatever_their_bytes() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", &"𝄞".repeat(1000));
    world.turn();
    assert_eq!(world.acks(alice).len(), 1);
}

#[test]
fn unknown_conversations_and_strangers_are_told_apart() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let eve = world.open(1, "eve");
    world.say_in(alice, direct(), "c1", "x");
    world.turn();
    let error = world.error(alice);
    assert_eq!(error.code, "not_found");
    assert_eq!(error.conversation_id, direct().to_string());
    assert_eq!(error.client_msg_id, "c1");
    assert_eq!(
        world.engine.stats().conversations,
        0,
        "nothing is remembered of it"
    );
    world.say(alice, "bob", "c1", "x");
    world.turn();
    world.say_in(eve, direct(), "c2", "x");
    world.turn();
    assert_eq!(world.error(eve).code, "not_a_member");
    assert_eq!(world.stored(direct()).messages.len(), 1);
}

#[test]
fn a_conversation_with_oneself_has_one_member() {
    let mut world = World::new();
    let phone = world.open(1, "alice");
    let laptop = world.open(1, "alice");
    world.say(phone, "alice", "c1", "note");
    world.turn();
    let id = ConversationId::direct("alice", "alice");
    assert_eq!(world.stored(id).members.len(), 1);
    assert_eq!(world.seqs(laptop), [1]);
    assert_eq!(world.view("alice", id).peer.as_deref(), Some("alice"));
}

#[test]
fn a_repeated_send_gets_the_first_ones_ack() {
    let mut world = World::new();
    let phone = world.open(1, "alice");
    let laptop = world.open(2, "alice");
    world.say(phone, "bob", "c1", "hello");
    world.turn();
    let first = world.acks(phone).remove(0);
    world.take(laptop);
    world.say(laptop, "bob", "c1", "hello");
    world.turn();
    let again = world.ack(laptop);
    assert!(again.duplicate && !first.duplicate);
    assert_eq!(
        (again.message_id, again.seq, again.ts),
        (first.message_id, first.seq, first.ts)
    );
    assert_eq!(world.take(phone), [], "nothing is delivered twice");
    assert_eq!(world.stored(direct()).messages.len(), 1);
    assert_eq!(world.engine.stats().duplicates, 1);
}

#[test]
fn a_repetition_waits_until_the_first_is_durable() {
    let mut world = World::new();
    let phone = world.open(1, "alice");
    let laptop = world.open(2, "alice");
    world.say(phone, "bob", "c0", "made");
    world.turn();
    world.take(phone);
    world.take(laptop);
    world.hold_commits = true;
    world.say(phone, "bob", "c1", "hello");
    world.turn();
    world.say(laptop, "bob", "c1", "hello");
    world.turn();
    assert_eq!((world.take(phone), world.take(laptop)), (vec![], vec![]));
    world.hold_commits = false;
    world.release();
    let first = world.ack(phone);
    let again = world.acks(laptop).remove(0);
    assert_eq!((again.seq, again.message_id), (first.seq, first.message_id));
    assert!(again.duplicate);
    assert_eq!(world.stored(direct()).messages.len(), 2);
}

#[test]
fn the_same_id_for_other_content_is_a_conflict() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "one");
    world.turn();
    world.take(alice);
    world.say(alice, "bob", "c1", "two");
    world.turn();
    let error = world.error(alice);
    assert_eq!(error.code, "idempotency_conflict");
    assert_eq!(error.client_msg_id, "c1");
    assert_eq!(error.conversation_id, direct().to_string());
    let typed = SendMessage {
        to: "bob".to_owned(),
        client_msg_id: "c1".to_owned(),
        content: "one".to_owned(),
        content_type: "text/html".to_owned(),
        ..SendMessage::default()
    };
    world.frame(alice, "", ClientBody::SendMessage(typed));
    world.turn();
    assert_eq!(world.error(alice).code, "idempotency_conflict");
    assert_eq!(world.stored(direct()).messages[&1].content, "one");
}

#[test]
fn equal_ids_of_two_users_are_two_messages() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    world.say(alice, "bob", "c1", "hello");
    world.say(bob, "alice", "c1", "hello");
    world.turn();
    assert_eq!(world.acks(alice)[0].seq, 1);
    assert_eq!(world.acks(bob)[0].seq, 2);
}

#[test]
fn a_repetition_is_recognised_after_a_restart() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    for n in 0..5_000 {
        world.say(alice, "bob", &format!("c{n}"), "hello");
    }
    world.turn();
    let acks = world.acks(alice);
    world.restart(config());
    let alice = world.open(2, "alice");
    for n in [4_999, 2_000, 5_000 - 4_096] {
        world.say(alice, "bob", &format!("c{n}"), "hello");
        world.turn();
        let again = world.ack(alice);
        assert_eq!(
            (again.seq, again.message_id),
            (acks[n].seq, acks[n].message_id)
        );
        assert!(again.duplicate);
    }
    world.say(alice, "bob", "new", "hello");
    world.turn();
    let new = world.ack(alice);
    assert_eq!(new.seq, 5_001);
    assert!(acks.iter().all(|a| a.message_id < new.message_id));
    assert_eq!(world.engine.stats().dedup_entries, 4_096);
}

#[test]
fn the_window_holds_the_newest_messages_and_lets_older_ones_go() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    for n in 0..4_097 {
        world.say(alice, "bob", &format!("c{n}"), "hello");
        world.turn();
    }
    world.take(alice);
    assert_eq!(world.engine.stats().dedup_entries, 4_096);
    world.say(alice, "bob", "c1", "hello");
    world.turn();
    assert_eq!(world.ack(alice).seq, 2);
    world.say(alice, "bob", "c0", "hello");
    world.turn();
    assert_eq!(
        world.ack(alice).seq,
        4_098,
        "beyond the window it is a new message"
    );
}

#[test]
fn all_devices_of_a_user_share_one_budget_and_repetitions_count() {
    let mut world = World::new();
    for edge in [3, 4] {
        world.attach(
            edge,
            EdgeHello {
                send_rate: 20,
                send_burst: 4,
                ..hello(&format!("limited-{edge}"))
            },
        );
    }
    let phone = world.open(3, "alice");
    let laptop = world.open(4, "alice");
    for session in [phone, laptop, phone, laptop] {
        world.say(session, "bob", "c1", "hello");
    }
    world.say(phone, "bob", "c2", "hello");
    world.turn();
    let errors: Vec<_> = world
        .bodies(phone)
        .into_iter()
        .filter_map(|b| match b {
            ServerBody::Error(e) => Some(e),
            _ => None,
        })
        .collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(
        (errors[0].code.as_str(), errors[0].retry_after_ms),
        ("rate_limited", 50)
    );
    assert_eq!(errors[0].conversation_id, direct().to_string());
    // To come again refills nothing.
    world.close(phone);
    world.close(laptop);
    world.turn();
    let phone = world.open(3, "alice");
    world.say(phone, "bob", "c2", "hello");
    world.turn();
    assert_eq!(world.error(phone).code, "rate_limited");
    world.pass(50);
    world.say(phone, "bob", "c2", "hello");
    world.turn();
    assert_eq!(world.ack(phone).seq, 2);
}

#[test]
fn rest_callers_go_by_the_configured_rate() {
    let mut world = World::with(EngineConfig {
        send_rate: 10,
        send_burst: 1,
        ..config()
    });
    let send = |cid: &str| {
        Request::Send(SendMessage {
            to: "bob".to_owned(),
            client_msg_id: cid.to_owned(),
            content: "x".to_owned(),
            ..SendMessage::default()
        })
    };
    assert!(world.call("alice", send("c1")).is_ok());
    let error = world.call("alice", send("c2")).unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.retry_after_ms),
        ("rate_limited", 100)
    );
    assert!(world.call("carol", send("c2")).is_ok());
}

#[test]
fn a_rest_send_reaches_all_sessions_of_the_sender() {
    let mut world = World::new();
    let phone = world.open(1, "alice");
    let send = Request::Send(SendMessage {
        to: "bob".to_owned(),
        client_msg_id: "c1".to_owned(),
        content: "x".to_owned(),
        ..SendMessage::default()
    });
    let Ok(Response::Ack(ack)) = world.call("alice", send.clone()) else {
        panic!("no ack");
    };
    assert_eq!((ack.seq, ack.duplicate), (1, false));
    assert_eq!(world.seqs(phone), [1]);
    // The socket and REST share one memory of what was sent.
    world.say(phone, "bob", "c1", "x");
    world.turn();
    let again = world.ack(phone);
    assert_eq!((again.message_id, again.duplicate), (ack.message_id, true));
    let Ok(Response::Ack(ack)) = world.call("alice", send) else {
        panic!("no ack");
    };
    assert!(ack.duplicate);
}

#[test]
fn sends_beyond_the_open_batch_are_refused_as_overloaded() {
    let mut world = World::with(EngineConfig {
        operations_open_max: 3,
        ..config()
    });
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c0", "first");
    world.turn();
    world.take(alice);
    world.hold_commits = true;
    world.say(alice, "bob", "under way", "x");
    world.turn();
    for n in 0..4 {
        world.say(alice, "bob", &format!("c{n}"), "first");
    }
    world.turn();
    // c0 was a repetition, c1 to c3 fill the batch.
    assert!(world.ack(alice).duplicate);
    world.say(alice, "bob", "c4", "x");
    world.turn();
    let error = world.error(alice);
    assert_eq!(error.code, "overloaded");
    assert!(error.retry_after_ms > 0);
    world.hold_commits = false;
    world.release();
    assert_eq!(world.acks(alice).len(), 4);
    assert_eq!(world.stored(direct()).messages.len(), 5);
}

#[test]
fn times_never_go_back_within_a_conversation() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    world.now.unix_ms -= 5_000;
    world.say(alice, "bob", "c2", "x");
    world.turn();
    let acks = world.acks(alice);
    assert_eq!(acks[0].ts, acks[1].ts);
    assert!(acks[0].message_id < acks[1].message_id);
}

#[test]
fn acks_and_messages_ascend_together_in_each_session() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    world.say(alice, "bob", "c0", "made");
    world.turn();
    world.take(alice);
    world.take(bob);
    for n in 1..50 {
        let (session, to) = if n % 3 == 0 {
            (bob, "alice")
        } else {
            (alice, "bob")
        };
        world.say(session, to, &format!("c{n}"), "x");
    }
    world.turn();
    for session in [alice, bob] {
        let seqs: Vec<u64> = world
            .bodies(session)
            .into_iter()
            .map(|b| match b {
                ServerBody::Ack(a) => a.seq,
                ServerBody::Message(m) => m.seq,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seqs, (2..=50).collect::<Vec<_>>());
    }
}
