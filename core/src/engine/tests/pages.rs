//! `fetch`, `sync` and the REST page.

use trunkline_proto::client::{ClientBody, Error, Fetch, Page, ServerBody, Sync, SyncPosition};
use trunkline_proto::ids::ConversationId;

use super::world::{Got, Session, World, config, unavailable};
use crate::engine::{Request, Response};

fn direct() -> ConversationId {
    ConversationId::direct("alice", "bob")
}

/// alice has sent bob this many messages.
fn chat(count: u64) -> (World, Session, Session) {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    for n in 1..=count {
        world.say(alice, "bob", &format!("c{n}"), &format!("text {n}"));
    }
    world.turn();
    world.take(alice);
    world.take(bob);
    (world, alice, bob)
}

fn seqs(page: &Page) -> Vec<u64> {
    page.messages.iter().map(|m| m.seq).collect()
}

#[test]
fn a_fetch_shows_the_newest_or_the_range_asked_for_always_ascending() {
    let (mut world, _, bob) = chat(300);
    let cases: [(_, Vec<u64>, bool); 8] = [
        ((None, None, None), (251..=300).collect(), true),
        ((None, None, Some(9_999)), (101..=300).collect(), true),
        ((None, Some(11), None), (1..=10).collect(), false),
        ((None, Some(100), Some(3)), (97..=99).collect(), true),
        ((Some(10), None, Some(3)), (11..=13).collect(), true),
        ((Some(298), None, None), (299..=300).collect(), false),
        ((Some(10), Some(14), None), (11..=13).collect(), false),
        ((Some(300), None, None), vec![], false),
    ];
    for (ask, expected, more) in cases {
        let page = world.fetch(bob, direct(), ask).unwrap();
        assert_eq!((seqs(&page), page.more), (expected, more), "{ask:?}");
        assert_eq!((page.head_seq, page.version), (300, 1));
        assert!(
            page.messages
                .iter()
                .all(|m| m.content == format!("text {}", m.seq))
        );
    }
}

#[test]
fn paging_back_walks_the_whole_conversation_without_repeat_or_hole() {
    let (mut world, _, bob) = chat(1_000);
    let mut walked = Vec::new();
    let mut before = None;
    loop {
        let page = world
            .fetch(bob, direct(), (None, before, Some(37)))
            .unwrap();
        let mut found = seqs(&page);
        before = found.first().copied();
        found.extend(walked);
        walked = found;
        if !page.more {
            break;
        }
    }
    assert_eq!(walked, (1..=1_000).collect::<Vec<_>>());
    let stats = world.engine.stats();
    assert!(stats.reads_cached > 0, "the newest come from memory");
    assert!(stats.reads > 0, "the older ones from the store");
}

#[test]
fn bad_fetches_are_refused() {
    let (mut world, _, bob) = chat(1);
    let eve = world.open(1, "eve");
    let error = |r: Result<Page, Error>| r.unwrap_err().code;
    assert_eq!(
        error(world.fetch(bob, direct(), (None, None, Some(0)))),
        "bad_request"
    );
    assert_eq!(
        error(world.fetch(eve, direct(), (None, None, None))),
        "not_a_member"
    );
    let nowhere = ConversationId::direct("x", "y");
    assert_eq!(
        error(world.fetch(bob, nowhere, (None, None, None))),
        "not_found"
    );
    let fetch = Fetch {
        conversation_id: "nonsense".to_owned(),
        ..Fetch::default()
    };
    world.frame(bob, "", ClientBody::Fetch(fetch));
    world.turn();
    let error = world.error(bob);
    assert_eq!(
        (error.code.as_str(), error.conversation_id.as_str()),
        ("bad_request", "nonsense")
    );
}

#[test]
fn a_page_that_the_store_does_not_answer_is_unavailable() {
    let (mut world, _, bob) = chat(200);
    world.read_fails.push_back(unavailable());
    let error = world
        .fetch(bob, direct(), (Some(0), None, None))
        .unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.conversation_id),
        ("unavailable", direct().to_string())
    );
    assert_eq!(
        seqs(
            &world
                .fetch(bob, direct(), (Some(0), None, Some(2)))
                .unwrap()
        ),
        [1, 2]
    );
    assert_eq!(world.settled[&2], 2);
}

#[test]
fn rest_pages_are_those_of_fetch() {
    let (mut world, _, _) = chat(100);
    let ask = |before, after, limit| Request::Messages {
        id: direct(),
        before,
        after,
        limit,
    };
    let Ok(Response::Messages {
        messages,
        head_seq,
        more,
    }) = world.call("bob", ask(Some(50), None, 10))
    else {
        panic!("no page");
    };
    assert_eq!(
        messages.iter().map(|m| m.seq).collect::<Vec<_>>(),
        (40..50).collect::<Vec<_>>()
    );
    assert_eq!((head_seq, more), (100, true));
    assert_eq!(world.refused("bob", ask(None, None, 0)), "bad_request");
    assert_eq!(world.refused("eve", ask(None, None, 50)), "not_a_member");
}

/// A page: its conversation, its seqs, whether there is more.
type Shown = (String, Vec<u64>, bool);

/// What a sync answered: pages' conversations with their seqs, errors' codes, the count at the end.
fn synced(world: &mut World, session: Session) -> (Vec<Shown>, Vec<Error>, u32) {
    let (mut pages, mut errors, mut count) = (Vec::new(), Vec::new(), None);
    for got in world.take(session) {
        let Got::Frame(frame) = got else {
            panic!("{got:?}");
        };
        assert_eq!(frame.id, "sy", "all of the answer echoes the id");
        assert_eq!(count, None, "synced comes last");
        match frame.frame.unwrap() {
            ServerBody::Page(p) => pages.push((p.conversation_id.clone(), seqs(&p), p.more)),
            ServerBody::Error(e) => errors.push(e),
            ServerBody::Synced(s) => count = Some(s.conversations),
            other => panic!("{other:?}"),
        }
    }
    (pages, errors, count.expect("synced"))
}

#[test]
fn a_sync_brings_a_page_for_each_conversation_that_has_something() {
    let (mut world, alice, bob) = chat(120);
    let group = world.group("alice", &["bob"]);
    let quiet = world.group("alice", &["bob"]);
    let foreign = world.group("alice", &[]);
    world.say_in(alice, group, "c1", "x");
    world.turn();
    world.take(bob);
    let nowhere = ConversationId::direct("x", "y");
    let positions = [
        (direct(), 20),
        (group, 0),
        (quiet, 0),
        (foreign, 0),
        (nowhere, 0),
    ];
    world.sync(bob, &positions);
    let (mut pages, errors, count) = synced(&mut world, bob);
    pages.sort_by_key(|p| p.1.len());
    assert_eq!(
        pages,
        [
            (group.to_string(), vec![1], false),
            (direct().to_string(), (21..=70).collect(), true)
        ]
    );
    assert_eq!(count, 2);
    let refused: Vec<_> = errors
        .iter()
        .map(|e| (e.code.as_str(), e.conversation_id.clone()))
        .collect();
    assert_eq!(
        refused,
        [
            ("not_a_member", foreign.to_string()),
            ("not_a_member", nowhere.to_string())
        ]
    );
    // Up to date: nothing but the end.
    world.sync(bob, &[(direct(), 120), (group, 1)]);
    assert_eq!(synced(&mut world, bob), (vec![], vec![], 0));
}

#[test]
fn an_empty_sync_brings_everything_above_the_delivered_watermark() {
    let (mut world, alice, bob) = chat(5);
    let group = world.group("alice", &["bob", "carol"]);
    world.say_in(alice, group, "g1", "x");
    world.turn();
    world.mark(bob, direct(), 3, "delivered");
    world.take(bob);
    for _ in 0..2 {
        let bob = world.open(1, "bob");
        world.sync(bob, &[]);
        let (mut pages, errors, count) = synced(&mut world, bob);
        pages.sort_by_key(|p| p.1.len());
        assert_eq!(
            pages,
            [
                (group.to_string(), vec![1], false),
                (direct().to_string(), vec![4, 5], false)
            ]
        );
        assert_eq!((errors.len(), count), (0, 2));
        // The same after a restart, from what was written.
        world.pass(1_000);
        world.restart(config());
    }
    let bob = world.open(1, "bob");
    world.mark(bob, direct(), 5, "delivered");
    world.mark(bob, group, 1, "delivered");
    world.sync(bob, &[]);
    assert_eq!(synced(&mut world, bob), (vec![], vec![], 0));
    let stranger = world.open(1, "stranger");
    world.sync(stranger, &[]);
    assert_eq!(synced(&mut world, stranger), (vec![], vec![], 0));
}

#[test]
fn bad_syncs_are_refused_as_a_whole() {
    let (mut world, _, bob) = chat(1);
    let position = |id: &str| SyncPosition {
        conversation_id: id.to_owned(),
        after_seq: 0,
    };
    let id = direct().to_string();
    let cases = [
        (vec![position(&id); 501], None),
        (vec![position(&id)], Some(0)),
        (vec![position(&id), position("nonsense")], None),
    ];
    for (conversations, limit) in cases {
        let sync = Sync {
            conversations,
            limit,
        };
        world.frame(bob, "", ClientBody::Sync(sync));
        world.turn();
        assert_eq!(world.error(bob).code, "bad_request");
    }
    world.sync(bob, &vec![(direct(), 0); 500]);
    assert_eq!(synced(&mut world, bob).2, 500);
}

#[test]
fn a_sync_goes_on_past_a_conversation_that_cannot_be_read() {
    let (mut world, alice, _) = chat(1);
    let group = world.group("alice", &["bob"]);
    world.say_in(alice, group, "c1", "x");
    world.turn();
    world.restart(config());
    let bob = world.open(2, "bob");
    world.read_fails.push_back(unavailable());
    world.sync(bob, &[(direct(), 0), (group, 0)]);
    let (pages, errors, count) = synced(&mut world, bob);
    assert_eq!(pages, [(group.to_string(), vec![1], false)]);
    assert_eq!((errors[0].code.as_str(), count), ("unavailable", 1));
    // Without the index there is nothing to go by.
    world.read_fails.push_back(unavailable());
    world.sync(bob, &[]);
    assert_eq!(world.error(bob).code, "unavailable");
}

#[test]
fn messages_sent_during_a_sync_arrive_once() {
    let (mut world, alice, bob) = chat(100);
    world.hold_loads = true;
    world.sync(bob, &[(direct(), 20)]);
    assert_eq!(world.held(), 1, "the page is read from the store");
    world.say(alice, "bob", "new", "x");
    world.turn();
    world.hold_loads = false;
    world.release();
    let mut all = Vec::new();
    for body in world.bodies(bob) {
        match body {
            ServerBody::Message(m) => all.push(m.seq),
            ServerBody::Page(p) => all.extend(seqs(&p)),
            _ => {}
        }
    }
    all.sort_unstable();
    assert_eq!(all, (21..=70).chain([101]).collect::<Vec<_>>());
}

#[test]
fn a_sync_of_many_conversations_has_few_under_way_at_once() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let ids: Vec<_> = (0..100)
        .map(|n| {
            world.say(alice, &format!("u{n}"), "c1", "x");
            (ConversationId::direct("alice", &format!("u{n}")), 0)
        })
        .collect();
    world.turn();
    world.restart(config());
    let alice = world.open(1, "alice");
    world.hold_loads = true;
    world.sync(alice, &ids);
    assert_eq!(world.held(), 8);
    while world.held() > 0 {
        assert!(world.held() <= 8);
        world.release();
    }
    assert_eq!(synced(&mut world, alice).2, 100);
}
