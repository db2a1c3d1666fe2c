//! Partitions that come and go, and what other cores are asked.

use trunkline_proto::client::{ClientBody, Page, SendMessage, ServerBody};
use trunkline_proto::ids::ConversationId;

use super::world::{Got, Session, World, config, unavailable};
use crate::engine::{
    ConversationView, Effect, EngineConfig, Input, Kind, Listed, ListedConversation, Request,
    Response, Role, Token,
};
use crate::ownership::{partition_of, partition_of_conversation};
use crate::store::StoreError;

const PARTITIONS: u16 = 8;

fn direct(a: &str, b: &str) -> ConversationId {
    ConversationId::direct(a, b)
}

fn partition(id: ConversationId) -> u16 {
    partition_of_conversation(id, PARTITIONS)
}

fn shared(lanes: usize) -> EngineConfig {
    EngineConfig {
        partitions: Some(PARTITIONS),
        lanes,
        ..config()
    }
}

/// A core of several that has all partitions.
fn owner_of_all() -> World {
    let mut world = World::with(shared(1));
    let partitions = (0..PARTITIONS).collect();
    world.feed(Input::Owned { partitions });
    world
}

/// As above, with the direct conversation of alice and bob, who are there.
fn chat() -> (World, Session, Session) {
    let mut world = owner_of_all();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    world.say(alice, "bob", "c0", "made");
    world.turn();
    world.take(alice);
    world.take(bob);
    world.commits.clear();
    (world, alice, bob)
}

fn chat_partition() -> u16 {
    partition(direct("alice", "bob"))
}

fn lose(world: &mut World) {
    let partitions = vec![chat_partition()];
    world.feed(Input::Lost { partitions });
    world.turn();
    // The store is told to forget what was in memory, once each.
    world.outside.retain(|effect| match effect {
        Effect::Evicted { conversation, .. } => {
            assert_eq!(*conversation, direct("alice", "bob"));
            false
        }
        _ => true,
    });
}

fn regain(world: &mut World) {
    let partitions = vec![chat_partition()];
    world.feed(Input::Owned { partitions });
    world.turn();
}

#[test]
fn nothing_is_done_to_a_conversation_of_another_core() {
    let mut world = World::with(shared(1));
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let error = world.error(alice);
    assert_eq!(
        (error.code.as_str(), error.client_msg_id.as_str()),
        ("unavailable", "c1")
    );
    assert!(error.retry_after_ms > 0);
    world.mark(alice, direct("alice", "bob"), 1, "read");
    assert_eq!(world.error(alice).code, "unavailable");
    assert!(world.commits.is_empty() && world.store.conversations.is_empty());
    assert_eq!(world.engine.stats().foreign, 2);
    assert_eq!(world.engine.stats().conversations, 0);
}

#[test]
fn what_is_under_way_when_its_partition_goes_is_unknown_and_found_again_by_its_next_owner() {
    let (mut world, alice, bob) = chat();
    world.hold_commits = true;
    world.say(alice, "bob", "c1", "under way");
    world.turn();
    world.say(alice, "bob", "c2", "in the open batch");
    world.turn();
    lose(&mut world);
    let codes: Vec<String> = world
        .bodies(alice)
        .into_iter()
        .map(|body| match body {
            ServerBody::Error(error) => format!("{} {}", error.code, error.client_msg_id),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(codes, ["unavailable c1", "unavailable c2"]);

    // Ours again, while the store has not answered for the last time: nothing is built on that.
    regain(&mut world);
    world.say(alice, "bob", "c3", "too early");
    world.turn();
    assert_eq!(world.error(alice).client_msg_id, "c3");

    world.hold_commits = false;
    world.release();
    assert_eq!(world.take(alice), [], "told before that nobody knows");
    assert_eq!(world.take(bob), []);
    assert_eq!(world.commits.len(), 1, "what was withdrawn is not written");

    world.say(alice, "bob", "c1", "under way");
    world.turn();
    assert!(world.ack(alice).duplicate);
    world.say(alice, "bob", "c2", "in the open batch");
    world.turn();
    let ack = world.ack(alice);
    assert_eq!((ack.seq, ack.duplicate), (3, false));
    assert_eq!(world.seqs(bob), [3]);
}

#[test]
fn what_another_core_has_taken_is_given_up_and_the_rest_of_the_batch_goes_out() {
    let (mut world, alice, _bob) = chat();
    let carol = world.open(1, "carol");
    let lost = direct("alice", "bob");
    world
        .commit_ends
        .push_back(Err(StoreError::Fenced(vec![lost])));
    world.say(alice, "bob", "c1", "fenced");
    world.say(carol, "dave", "c1", "fine");
    world.turn();
    assert_eq!(world.error(alice).code, "unavailable");
    assert_eq!(world.acks(carol)[0].seq, 1);
    assert_eq!(world.engine.stats().fenced, 1);
    world.say(alice, "bob", "c1", "fenced");
    world.turn();
    assert_eq!(world.ack(alice).seq, 2, "loaded anew, and not found there");
}

#[test]
fn a_partition_is_given_back_when_its_commits_are_done() {
    let (mut world, alice, bob) = chat();
    world.hold_commits = true;
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let partitions = vec![chat_partition()];
    world.feed(Input::Release { partitions });
    world.turn();
    assert!(world.outside.is_empty(), "a commit is under way");
    world.say(alice, "bob", "c2", "too late");
    world.turn();
    assert_eq!(world.error(alice).client_msg_id, "c2");
    world.hold_commits = false;
    world.release();
    assert_eq!(world.ack(alice).seq, 2);
    assert_eq!(world.seqs(bob), [2]);
    assert_released(&world, &[(direct("alice", "bob"), 2)]);
    assert_eq!(world.engine.stats().conversations, 0);
}

#[test]
fn a_partition_is_given_back_in_time_even_if_the_store_does_not_answer() {
    let (mut world, alice, _bob) = chat();
    world.hold_commits = true;
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let partitions = vec![chat_partition()];
    world.feed(Input::Release { partitions });
    world.turn();
    let deadline = world.engine.next_deadline().expect("a deadline");
    assert!(deadline <= world.now.mono_ns + 200_000_000);
    world.pass(200);
    assert_eq!(world.error(alice).code, "unavailable");
    assert_released(&world, &[]);
    world.hold_commits = false;
    world.release();
    assert_eq!(world.take(alice), []);
    assert_eq!(world.engine.stats().conversations, 0);
}

fn assert_released(world: &World, expected: &[(ConversationId, u64)]) {
    match world.outside.as_slice() {
        [Effect::Released { partition, heads }] => {
            assert_eq!(*partition, chat_partition());
            assert_eq!(heads, expected);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn watermarks_are_written_before_a_partition_is_given_back() {
    let (mut world, _alice, bob) = chat();
    let id = direct("alice", "bob");
    world.mark(bob, id, 1, "read");
    let partitions = vec![chat_partition()];
    world.feed(Input::Release { partitions });
    world.turn();
    assert_eq!(world.store.conversations[&id].watermarks["bob"].read_seq, 1);
    assert_released(&world, &[(id, 1)]);
}

#[test]
fn what_is_loaded_when_its_partition_goes_is_not_taken_up() {
    let (mut world, alice, _bob) = chat();
    lose(&mut world);
    regain(&mut world);
    world.hold_loads = true;
    world.say(alice, "bob", "c1", "x");
    world.turn();
    lose(&mut world);
    assert_eq!(world.error(alice).code, "unavailable");
    regain(&mut world);
    world.say(alice, "bob", "c2", "x");
    world.turn();
    assert_eq!(world.error(alice).code, "unavailable", "of another epoch");
    world.hold_loads = false;
    world.release();
    assert_eq!(world.engine.stats().conversations, 0);
    world.say(alice, "bob", "c3", "x");
    world.turn();
    assert_eq!(world.ack(alice).seq, 2);
}

#[test]
fn a_lost_conversation_is_told_with_its_head() {
    let (mut world, ..) = chat();
    let partitions = vec![chat_partition()];
    world.feed(Input::Lost { partitions });
    match world.outside.as_slice() {
        [Effect::Evicted { conversation, head }] => {
            assert_eq!((*conversation, *head), (direct("alice", "bob"), 1));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_evicted_conversation_is_told_with_its_head() {
    let mut world = World::with(EngineConfig {
        conversations_cached_max: 1,
        ..shared(1)
    });
    let partitions = (0..PARTITIONS).collect();
    world.feed(Input::Owned { partitions });
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    world.say(alice, "carol", "c1", "x");
    world.turn();
    match world.outside.as_slice() {
        [Effect::Evicted { conversation, head }] => {
            assert_eq!((*conversation, *head), (direct("alice", "bob"), 1));
        }
        other => panic!("{other:?}"),
    }
}

/// What the engine wants asked of another core: by which token, of which partition, what.
fn asks(world: &mut World) -> Vec<(Token, u16, String, Request)> {
    let outside = std::mem::take(&mut world.outside).into_iter();
    outside
        .map(|effect| match effect {
            Effect::Ask {
                token,
                partition,
                user,
                request,
            } => (token, partition, user, request),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_sync_has_the_pages_of_other_owners_before_it_is_done() {
    let (mut world, _alice, bob) = chat();
    let (ours, theirs) = (direct("alice", "bob"), direct("bob", "zoe"));
    let partitions = vec![partition(theirs)];
    assert_ne!(partition(ours), partition(theirs), "choose other names");
    world.feed(Input::Lost { partitions });
    world.sync(bob, &[(ours, 0), (theirs, 4)]);
    let asked = asks(&mut world);
    let [(token, of, user, request)] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    assert_eq!((*of, user.as_str()), (partition(theirs), "bob"));
    assert_eq!(
        *request,
        Request::SyncPart {
            id: theirs,
            after: Some(4),
            limit: 50
        }
    );
    let before = world.bodies(bob);
    assert!(matches!(before.as_slice(), [ServerBody::Page(p)] if p.messages.len() == 1));
    let page = Page {
        conversation_id: theirs.to_string(),
        head_seq: 5,
        ..Page::default()
    };
    world.feed(Input::Asked {
        token: *token,
        result: Ok(Response::Page(Some(page.clone()))),
    });
    match world.bodies(bob).as_slice() {
        [ServerBody::Page(got), ServerBody::Synced(synced)] => {
            assert_eq!((got, synced.conversations), (&page, 2));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_owner_that_does_not_answer_is_an_error_of_that_conversation_only() {
    let (mut world, _alice, bob) = chat();
    let theirs = direct("bob", "zoe");
    let partitions = vec![partition(theirs)];
    world.feed(Input::Lost { partitions });
    world.sync(bob, &[(theirs, 4)]);
    let (token, ..) = asks(&mut world).remove(0);
    let error = trunkline_proto::codes::Code::Unavailable.error("no owner");
    world.feed(Input::Asked {
        token,
        result: Err(error),
    });
    match world.bodies(bob).as_slice() {
        [ServerBody::Error(error), ServerBody::Synced(synced)] => {
            assert_eq!(
                (error.code.as_str(), synced.conversations),
                ("unavailable", 0)
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_owner_shows_what_another_core_gathers() {
    let (mut world, _alice, _bob) = chat();
    let id = direct("alice", "bob");
    let part = |after| Request::SyncPart {
        id,
        after,
        limit: 50,
    };
    match world.call("bob", part(None)) {
        Ok(Response::Page(Some(page))) => assert_eq!((page.head_seq, page.messages.len()), (1, 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.call("bob", part(Some(1))), Ok(Response::Page(None)));
    assert_eq!(world.call("eve", part(None)), Ok(Response::Page(None)));
    assert_eq!(world.refused("eve", part(Some(0))), "not_a_member");
    match world.call("bob", Request::Listed { id }) {
        Ok(Response::Listed(Some(listed))) => {
            assert_eq!(listed.item.conversation.conversation_id, id);
            assert_eq!(listed.item.unread, 1);
            assert!(listed.activity > 0);
        }
        other => panic!("{other:?}"),
    }
    let listed = world.call("eve", Request::Listed { id });
    assert_eq!(listed, Ok(Response::Listed(None)));
}

#[test]
fn a_list_has_the_conversations_of_other_owners_in_their_places() {
    let (mut world, _alice, bob) = chat();
    let theirs = direct("bob", "zoe");
    world.say(bob, "zoe", "c1", "x");
    world.turn();
    let partitions = vec![partition(theirs)];
    world.feed(Input::Lost { partitions });
    world.outside.clear();
    let call = Request::ListConversations {
        cursor: None,
        limit: 10,
    };
    let list = world.ask("bob", call);
    world.turn();
    let (token, _, _, request) = asks(&mut world).remove(0);
    assert_eq!(request, Request::Listed { id: theirs });
    let item = ListedConversation {
        conversation: ConversationView {
            conversation_id: theirs,
            kind: Kind::Direct,
            title: String::new(),
            role: Role::Member,
            version: 1,
            head_seq: 1,
            member_count: 2,
            created_at: 1,
            peer: Some("zoe".to_owned()),
        },
        delivered_seq: 0,
        read_seq: 0,
        unread: 0,
        last_message: None,
    };
    world.feed(Input::Asked {
        token,
        result: Ok(Response::Listed(Some(Box::new(Listed {
            activity: u64::MAX,
            item: item.clone(),
        })))),
    });
    match world.answered(list) {
        Some(Ok(Response::Conversations { items, next_cursor })) => {
            assert_eq!((items.len(), next_cursor), (2, None));
            assert_eq!(items[0], item, "the newest activity");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_that_came_to_the_wrong_core_is_passed_on_whole() {
    let mut world = World::with(shared(1));
    let send = Request::Send(SendMessage {
        to: "bob".to_owned(),
        client_msg_id: "c1".to_owned(),
        content: "x".to_owned(),
        ..SendMessage::default()
    });
    let token = world.ask("alice", send.clone());
    match world.outside.as_slice() {
        [
            Effect::Forward {
                token: passed,
                partition,
                user,
                request,
            },
        ] => {
            assert_eq!((*passed, *partition), (token, chat_partition()));
            assert_eq!((user.as_str(), request), ("alice", &send));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.answered(token), None, "the owner answers");

    let token = world.ask_from("alice", send, true);
    world.turn();
    let error = world.answered(token).expect("an answer").unwrap_err();
    assert_eq!(error.code, "unavailable", "passed on once, not on and on");
}

#[test]
fn a_group_is_made_where_it_belongs() {
    let mut world = World::with(shared(1));
    let create = Request::CreateConversation {
        kind: Kind::Group,
        title: String::new(),
        members: vec!["bob".to_owned()],
    };
    assert_eq!(world.refused("alice", create), "unavailable");
    let partitions = vec![3];
    world.feed(Input::Owned { partitions });
    for _ in 0..20 {
        let id = world.group("alice", &["bob"]);
        assert_eq!(partition(id), 3);
    }
}

#[test]
fn after_an_owner_died_the_members_of_its_conversations_are_told_where_these_stand() {
    let (mut world, alice, bob) = chat();
    let id = direct("alice", "bob");
    let foreign = direct("bob", "zoe");
    lose(&mut world);
    regain(&mut world);
    let partitions = vec![partition(foreign)];
    world.feed(Input::Lost { partitions });
    world.outside.clear();
    world.read_fails.push_back(unavailable());
    world.feed(Input::CatchUp {
        token: Token(77),
        conversations: vec![foreign, id],
    });
    world.turn();
    assert!(world.outside.is_empty(), "the store did not answer");
    assert_eq!(world.take(bob), []);
    world.pass(500);
    for session in [alice, bob] {
        match world.bodies(session).as_slice() {
            [ServerBody::Conversation(hint)] => {
                assert_eq!(
                    (hint.conversation_id.as_str(), hint.head_seq),
                    (&*id.to_string(), 1)
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        matches!(
            world.outside.as_slice(),
            [Effect::CaughtUp { token: Token(77) }]
        ),
        "{:?}",
        world.outside
    );
}

#[test]
fn only_the_home_of_a_user_judges_over_sessions() {
    let mut world = World::with(shared(1));
    let home = partition_of(b"alice", PARTITIONS);
    world.announce((1, 501), "alice", "phone", false);
    world.announce((2, 502), "alice", "phone", false);
    assert_eq!(world.take((1, 501)), [Got::Registered]);
    assert_eq!(world.take((2, 502)), [Got::Registered]);
    let partitions = vec![home];
    world.feed(Input::Owned { partitions });
    world.announce((2, 503), "alice", "phone", false);
    assert_eq!(world.take((2, 503)), [Got::Registered]);
    let replaced = [(1, 501), (2, 502)].map(|session| world.take(session).len());
    assert_eq!(replaced.iter().sum::<usize>(), 1, "{replaced:?}");
}

#[test]
fn lanes_commit_side_by_side_and_a_conversation_keeps_to_one() {
    let mut world = World::with(shared(4));
    let partitions = (0..PARTITIONS).collect();
    world.feed(Input::Owned { partitions });
    let alice = world.open(1, "alice");
    let peers: Vec<String> = (0..8).map(|n| format!("peer{n}")).collect();
    for peer in &peers {
        world.say(alice, peer, "c0", "made");
        world.turn();
    }
    world.take(alice);
    world.commits.clear();
    world.hold_commits = true;
    for cid in ["c1", "c2"] {
        for peer in &peers {
            world.say(alice, peer, cid, "x");
            world.turn();
        }
    }
    assert_eq!(world.held(), 4, "one commit under way for each lane");
    world.hold_commits = false;
    world.release();
    assert_eq!(world.acks(alice).len(), 16);
    for (_, batch) in &world.commits {
        for writes in &batch.conversations {
            let seqs: Vec<u64> = writes.messages.iter().map(|m| m.seq).collect();
            assert!(seqs.is_sorted(), "{seqs:?}");
        }
    }
}

#[test]
fn a_typing_frame_needs_no_owner() {
    // Not built yet: it must say so wherever it comes, not that the conversation is elsewhere.
    let mut world = World::with(shared(1));
    let alice = world.open(1, "alice");
    world.frame(alice, "", ClientBody::Typing(Default::default()));
    world.turn();
    assert_eq!(world.error(alice).code, "not_implemented");
}
