use super::*;
use proptest::prelude::*;

const C: &str = "c";

fn message(seq: u64) -> Message {
    Message {
        conversation_id: C.into(),
        seq,
        message_id: seq * 10,
        ..Message::default()
    }
}

fn page(seqs: impl IntoIterator<Item = u64>, head_seq: u64, more: bool) -> Page {
    Page {
        conversation_id: C.into(),
        messages: seqs.into_iter().map(message).collect(),
        head_seq,
        more,
        version: 1,
    }
}

fn inbox() -> Inbox {
    Inbox::new(InboxConfig::default())
}

/// An inbox that has everything up to `position`.
fn at(position: u64) -> Inbox {
    let mut inbox = inbox();
    inbox.restore(C, position);
    inbox
}

fn out(inbox: &mut Inbox) -> Vec<u64> {
    std::iter::from_fn(|| inbox.next_message())
        .map(|m| m.seq)
        .collect()
}

fn range(after: u64, before: u64) -> Option<Range> {
    Some(Range {
        conversation: C.into(),
        after,
        before,
    })
}

#[test]
fn a_gap_is_fetched_by_its_exact_range_and_then_all_is_in_order() {
    let mut inbox = at(3);
    for seq in [4, 7, 8, 7] {
        inbox.message(message(seq));
    }
    assert_eq!(out(&mut inbox), [4]);
    assert_eq!(inbox.next_fetch(0), range(4, 7));
    assert_eq!(inbox.next_fetch(0), None, "one fetch at a time");
    let origin = Origin::Fetch {
        after: 4,
        before: 7,
    };
    inbox.page(page([5, 6], 8, false), origin, 0);
    assert_eq!(out(&mut inbox), [5, 6, 7, 8]);
    assert_eq!(inbox.next_fetch(0), None);
}

#[test]
fn a_page_with_more_is_followed_by_the_rest() {
    let mut inbox = at(0);
    inbox.hint(C, 500);
    assert_eq!(inbox.next_fetch(0), range(0, 501));
    let origin = Origin::Fetch {
        after: 0,
        before: 501,
    };
    inbox.page(page(1..=200, 500, true), origin, 0);
    assert_eq!(out(&mut inbox).len(), 200);
    assert_eq!(inbox.next_fetch(0), range(200, 501));
}

#[test]
fn what_may_not_be_seen_is_passed_over() {
    let mut inbox = at(2);
    inbox.message(message(9));
    assert_eq!(inbox.next_fetch(0), range(2, 9));
    let origin = Origin::Fetch {
        after: 2,
        before: 9,
    };
    inbox.page(page([7], 9, false), origin, 0);
    assert_eq!(out(&mut inbox), [7]);
    assert_eq!(inbox.next_fetch(0), range(7, 9));
    let origin = Origin::Fetch {
        after: 7,
        before: 9,
    };
    inbox.page(page([], 9, false), origin, 0);
    assert_eq!(out(&mut inbox), [9]);
}

#[test]
fn our_own_acknowledged_messages_are_no_gap_and_no_news() {
    let mut inbox = at(0);
    inbox.own(C, 1);
    inbox.message(message(2));
    assert_eq!(out(&mut inbox), [2]);
    assert_eq!(inbox.position(C), Some(2));
    assert_eq!(inbox.next_fetch(0), None);
}

#[test]
fn a_conversation_met_in_the_middle_waits_for_a_full_sync() {
    let mut inbox = inbox();
    inbox.message(message(7));
    assert_eq!(out(&mut inbox), [0; 0]);
    assert!(inbox.wants_full_sync());
    inbox.full_sync_began();
    assert!(!inbox.wants_full_sync());
    inbox.page(page([5, 6], 6, false), Origin::FullSync, 0);
    inbox.full_sync_ended();
    assert_eq!(out(&mut inbox), [5, 6, 7]);
}

#[test]
fn what_a_full_sync_could_not_look_at_is_not_taken_for_delivered() {
    let mut inbox = inbox();
    inbox.hint(C, 1);
    inbox.full_sync_began();
    inbox.full_sync_left_out(C);
    inbox.full_sync_ended();
    assert_eq!(inbox.position(C), None);
    assert!(inbox.wants_full_sync());
    inbox.full_sync_began();
    inbox.page(page([1], 1, false), Origin::FullSync, 0);
    inbox.full_sync_ended();
    assert_eq!(out(&mut inbox), [1]);
}

#[test]
fn what_a_full_sync_leaves_out_was_delivered_before() {
    let mut inbox = inbox();
    inbox.message(message(7));
    inbox.full_sync_began();
    // More may have been delivered to another device since 7 came.
    assert_eq!(inbox.full_sync_ended(), [C]);
    assert_eq!(out(&mut inbox), [7]);
    inbox.page(page([8, 9], 9, false), Origin::Sync, 0);
    assert_eq!(out(&mut inbox), [8, 9]);
    // What came up while the sync was under way needs another one.
    let mut inbox = self::inbox();
    inbox.full_sync_began();
    inbox.message(message(7));
    inbox.full_sync_ended();
    assert_eq!(out(&mut inbox), [0; 0]);
    assert!(inbox.wants_full_sync());
}

#[test]
fn a_new_conversation_begins_at_its_first_message() {
    let mut inbox = inbox();
    inbox.message(message(1));
    assert_eq!(out(&mut inbox), [1]);
    let mut inbox = self::inbox();
    inbox.hint(C, 0);
    inbox.message(message(2));
    assert_eq!(inbox.next_fetch(0), range(0, 2));
}

#[test]
fn deliveries_of_another_device_do_not_hide_our_gap() {
    let mut inbox = at(3);
    inbox.page(page([8, 9], 9, false), Origin::FullSync, 0);
    assert_eq!(out(&mut inbox), [0; 0]);
    assert_eq!(inbox.next_fetch(0), range(3, 8));
}

#[test]
fn a_sync_page_goes_on_until_there_is_no_more() {
    let mut inbox = at(3);
    inbox.page(page(4..=53, 90, true), Origin::Sync, 0);
    assert_eq!(out(&mut inbox).len(), 50);
    assert_eq!(inbox.next_fetch(0), range(53, 91));
}

#[test]
fn a_failed_fetch_waits_and_one_refused_for_good_is_passed_over() {
    let mut inbox = at(3);
    inbox.message(message(6));
    assert_eq!(inbox.next_fetch(0), range(3, 6));
    inbox.fetch_failed(C, 1_000);
    assert_eq!(inbox.next_fetch(999), None);
    assert_eq!(inbox.deadline_ms(), Some(1_000));
    assert_eq!(inbox.next_fetch(1_000), range(3, 6));
    inbox.give_up_gap(C);
    assert_eq!(out(&mut inbox), [6]);
    assert_eq!(inbox.next_fetch(2_000), None);
}

#[test]
fn a_page_without_progress_is_not_asked_for_in_a_loop() {
    let mut inbox = at(3);
    inbox.hint(C, 9);
    assert_eq!(inbox.next_fetch(0), range(3, 10));
    let origin = Origin::Fetch {
        after: 3,
        before: 10,
    };
    inbox.page(page([], 9, true), origin, 0);
    assert_eq!(inbox.next_fetch(0), None);
    assert_eq!(inbox.deadline_ms(), Some(FETCH_RETRY_MS));
}

#[test]
fn memory_is_bounded_and_what_did_not_fit_is_fetched() {
    let mut inbox = Inbox::new(InboxConfig {
        buffered_max: 2,
        conversations_max: 2,
        ..InboxConfig::default()
    });
    inbox.restore(C, 0);
    for seq in [5, 6, 7, 8] {
        inbox.message(message(seq));
    }
    assert_eq!(inbox.buffered, 2);
    assert_eq!(inbox.next_fetch(0), range(0, 5));
    let origin = Origin::Fetch {
        after: 0,
        before: 5,
    };
    inbox.page(page(1..5, 8, false), origin, 0);
    assert_eq!(out(&mut inbox), [1, 2, 3, 4, 5, 6]);
    assert_eq!(inbox.next_fetch(0), range(6, 9));
    inbox.restore("d", 1);
    inbox.restore("e", 1);
    assert_eq!(inbox.position(C), None, "the quietest is forgotten");
    assert_eq!(inbox.positions().len(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    /// The server stores a message and pushes it, or loses the push.
    Store {
        pushed: bool,
    },
    /// A push of earlier comes again.
    Repeat(u16),
    Hint,
    Fetch,
    Answer,
    Break,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => any::<bool>().prop_map(|pushed| Step::Store { pushed }),
        1 => any::<u16>().prop_map(Step::Repeat),
        1 => Just(Step::Hint),
        3 => Just(Step::Fetch),
        3 => Just(Step::Answer),
        1 => Just(Step::Break),
    ];
    proptest::collection::vec(step, 0..120)
}

/// Every seventh message is in a time in which the user was no member.
fn visible(seq: u64) -> bool {
    !seq.is_multiple_of(7)
}

fn answer(inbox: &mut Inbox, range: &Range, head: u64, now: u64) {
    const LIMIT: usize = 5;
    let seqs: Vec<u64> = (range.after + 1..range.before.min(head + 1))
        .filter(|s| visible(*s))
        .collect();
    let more = seqs.len() > LIMIT;
    let origin = Origin::Fetch {
        after: range.after,
        before: range.before,
    };
    let seqs = seqs.into_iter().take(LIMIT);
    inbox.page(page(seqs, head, more), origin, now);
}

proptest! {
    /// Whatever is lost, repeated or cut: all that may be seen comes out, once, in order.
    #[test]
    fn everything_visible_comes_out_once_and_in_order(steps in steps()) {
        let mut inbox = Inbox::new(InboxConfig { buffered_max: 8, ..InboxConfig::default() });
        inbox.restore(C, 0);
        let (mut head, mut now) = (0, 0);
        let mut got = Vec::new();
        let mut asked: Vec<Range> = Vec::new();
        for step in steps {
            now += 10;
            match step {
                Step::Store { pushed } => {
                    head += 1;
                    if pushed && visible(head) {
                        inbox.message(message(head));
                    }
                }
                Step::Repeat(n) if head > 0 => {
                    let seq = u64::from(n) % head + 1;
                    if visible(seq) {
                        inbox.message(message(seq));
                    }
                }
                Step::Repeat(_) => {}
                Step::Hint => inbox.hint(C, head),
                Step::Fetch => asked.extend(inbox.next_fetch(now)),
                Step::Answer => {
                    if let Some(range) = asked.pop() {
                        answer(&mut inbox, &range, head, now);
                    }
                }
                Step::Break => {
                    asked.clear();
                    inbox.disconnected();
                }
            }
            got.extend(out(&mut inbox));
        }
        inbox.hint(C, head);
        for range in asked {
            answer(&mut inbox, &range, head, now);
        }
        while let Some(range) = {
            now = inbox.deadline_ms().unwrap_or(now).max(now);
            inbox.next_fetch(now)
        } {
            answer(&mut inbox, &range, head, now);
        }
        got.extend(out(&mut inbox));
        let expected: Vec<u64> = (1..=head).filter(|s| visible(*s)).collect();
        prop_assert_eq!(got, expected);
        prop_assert_eq!(inbox.position(C), Some(head));
        prop_assert_eq!(inbox.buffered, 0);
    }
}
