use super::*;
use proptest::prelude::*;

fn message(conversation: &str, id: &str) -> SendMessage {
    SendMessage {
        conversation_id: conversation.into(),
        client_msg_id: id.into(),
        content: "x".into(),
        ..SendMessage::default()
    }
}

fn ack(id: &str) -> Ack {
    Ack {
        client_msg_id: id.into(),
        ..Ack::default()
    }
}

fn refused(code: Code, id: &str, retry_after_ms: u32) -> Error {
    Error {
        client_msg_id: id.into(),
        retry_after_ms,
        ..code.error("no")
    }
}

fn outbox(lane_window: usize) -> Outbox {
    let mut outbox = Outbox::new(OutboxConfig {
        lane_window,
        ..OutboxConfig::default()
    });
    outbox.connected("me");
    outbox
}

fn sent(outbox: &mut Outbox, now_ms: u64) -> Vec<String> {
    std::iter::from_fn(|| outbox.next(now_ms))
        .map(|(_, m)| m.client_msg_id)
        .collect()
}

#[test]
fn one_message_of_a_conversation_at_a_time_and_conversations_apart() {
    let mut outbox = outbox(1);
    for (conversation, id) in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3")] {
        outbox.push(message(conversation, id)).unwrap();
    }
    assert_eq!(sent(&mut outbox, 0), ["a1", "b1"]);
    assert_eq!(outbox.ack(&ack("a1")), Some(1));
    assert_eq!(sent(&mut outbox, 0), ["a2"]);
    assert_eq!(
        outbox.ack(&ack("a1")),
        None,
        "a repeated ack settles nothing"
    );
}

#[test]
fn a_refused_message_is_not_overtaken() {
    let mut outbox = outbox(1);
    outbox.push(message("a", "a1")).unwrap();
    outbox.push(message("a", "a2")).unwrap();
    assert_eq!(sent(&mut outbox, 0), ["a1"]);
    let refusal = outbox.error(&refused(Code::RateLimited, "a1", 50), None, 100);
    assert_eq!(refusal, Refusal::Retry(1));
    outbox.expire(149);
    assert_eq!(sent(&mut outbox, 149), [""; 0]);
    assert_eq!(outbox.deadline_ms(), Some(150));
    outbox.expire(150);
    assert_eq!(sent(&mut outbox, 150), ["a1"]);
}

#[test]
fn unavailable_without_a_time_backs_off() {
    let mut outbox = outbox(1);
    outbox.push(message("a", "a1")).unwrap();
    let mut now = 0;
    for wait in [500, 1_000, 2_000] {
        assert_eq!(sent(&mut outbox, now), ["a1"]);
        outbox.error(&refused(Code::Unavailable, "a1", 0), None, now);
        assert_eq!(outbox.deadline_ms(), Some(now + wait));
        now += wait;
        outbox.expire(now);
    }
}

#[test]
fn what_is_in_doubt_leaves_again_and_nothing_else() {
    let mut outbox = outbox(1);
    for (lane, id) in [("a", "a1"), ("a", "a2"), ("b", "b1")] {
        outbox.push(message(lane, id)).unwrap();
    }
    assert_eq!(sent(&mut outbox, 0), ["a1", "b1"]);
    outbox.ack(&ack("b1"));
    outbox.in_doubt(100);
    assert_eq!(sent(&mut outbox, 100), [""; 0], "a2 does not overtake a1");
    assert_eq!(outbox.deadline_ms(), Some(600));
    outbox.expire(600);
    assert_eq!(sent(&mut outbox, 600), ["a1"]);
    outbox.ack(&ack("a1"));
    assert_eq!(sent(&mut outbox, 601), ["a2"]);
}

#[test]
fn a_silent_server_is_asked_again_and_a_new_session_gets_all() {
    let mut outbox = outbox(2);
    for id in ["a1", "a2", "a3"] {
        outbox.push(message("a", id)).unwrap();
    }
    assert_eq!(sent(&mut outbox, 0), ["a1", "a2"]);
    outbox.expire(10_000);
    assert_eq!(sent(&mut outbox, 10_000), ["a1", "a2"]);
    outbox.disconnected();
    assert_eq!(outbox.deadline_ms(), None);
    outbox.connected("me");
    assert_eq!(sent(&mut outbox, 20_000), ["a1", "a2"]);
}

#[test]
fn a_refusal_for_good_frees_the_lane() {
    let mut outbox = outbox(1);
    outbox.push(message("a", "a1")).unwrap();
    outbox.push(message("a", "a2")).unwrap();
    sent(&mut outbox, 0);
    let refusal = outbox.error(&refused(Code::TooLarge, "", 0), Some(1), 0);
    assert_eq!(refusal, Refusal::Failed(1));
    assert_eq!(sent(&mut outbox, 0), ["a2"]);
    let error = refused(Code::TooLarge, "other", 0);
    assert_eq!(outbox.error(&error, Some(1), 0), Refusal::NotOurs);
}

#[test]
fn it_is_bounded_and_ids_are_unique() {
    let mut outbox = Outbox::new(OutboxConfig {
        entries_max: 2,
        ..OutboxConfig::default()
    });
    outbox.push(message("a", "1")).unwrap();
    assert_eq!(outbox.push(message("b", "1")), Err(PushError::Duplicate));
    outbox.push(message("a", "2")).unwrap();
    assert_eq!(outbox.push(message("a", "3")), Err(PushError::Full));
    assert_eq!(outbox.drain(), [1, 2]);
    assert!(outbox.is_empty());
}

#[test]
fn a_user_and_the_direct_conversation_are_one_lane() {
    let mut outbox = Outbox::new(OutboxConfig::default());
    let to_bob = SendMessage {
        to: "bob".into(),
        ..message("", "1")
    };
    outbox.push(to_bob).unwrap();
    let id = ConversationId::direct("alice", "bob").to_string();
    outbox.push(message(&id, "2")).unwrap();
    outbox.connected("alice");
    assert_eq!(sent(&mut outbox, 0), ["1"]);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Send,
    /// Settle the n-th un-acked message so.
    Ack(u8),
    Refuse(u8),
    Pass(u16),
    Break,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3_u8).prop_map(Step::Push),
        4 => Just(Step::Send),
        3 => any::<u8>().prop_map(Step::Ack),
        1 => any::<u8>().prop_map(Step::Refuse),
        1 => (0..20_000_u16).prop_map(Step::Pass),
        1 => Just(Step::Break),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Whatever is lost or refused: in each conversation acks come in the order of pushing, and
    /// in the end nothing is left.
    #[test]
    fn everything_is_stored_in_order(steps in steps()) {
        let mut outbox = outbox(1);
        let mut now = 0;
        let mut pushed = 0_u32;
        let mut wire: Vec<SendMessage> = Vec::new();
        let mut stored: HashMap<String, Vec<u32>> = HashMap::new();
        let mut store = |outbox: &mut Outbox, m: &SendMessage| {
            let log = stored.entry(m.conversation_id.clone()).or_default();
            let n: u32 = m.client_msg_id.parse().unwrap();
            if !log.contains(&n) {
                log.push(n);
            }
            outbox.ack(&ack(&m.client_msg_id));
        };
        for step in steps {
            match step {
                Step::Push(c) => {
                    pushed += 1;
                    outbox.push(message(&c.to_string(), &pushed.to_string())).unwrap();
                }
                Step::Send => wire.extend(outbox.next(now).map(|(_, m)| m)),
                Step::Ack(n) if !wire.is_empty() => {
                    let m = wire.remove(n as usize % wire.len());
                    store(&mut outbox, &m);
                }
                Step::Refuse(n) if !wire.is_empty() => {
                    let m = wire.remove(n as usize % wire.len());
                    outbox.error(&refused(Code::Overloaded, &m.client_msg_id, 10), None, now);
                }
                Step::Pass(ms) => {
                    now += u64::from(ms);
                    outbox.expire(now);
                }
                Step::Break => {
                    wire.clear();
                    outbox.disconnected();
                    outbox.connected("me");
                }
                Step::Ack(_) | Step::Refuse(_) => {}
            }
        }
        while !outbox.is_empty() {
            now = outbox.deadline_ms().unwrap_or(now).max(now);
            outbox.expire(now);
            while let Some((_, m)) = outbox.next(now) {
                store(&mut outbox, &m);
            }
        }
        prop_assert_eq!(stored.values().map(Vec::len).sum::<usize>(), pushed as usize);
        for log in stored.values() {
            prop_assert!(log.is_sorted(), "{log:?}");
        }
    }
}
