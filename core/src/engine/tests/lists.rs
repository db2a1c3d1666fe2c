//! What REST shows: the caller's conversations, members, receipts.

use trunkline_proto::ids::ConversationId;

use super::world::{World, config, unavailable};
use crate::engine::{ListedConversation, Request, Response};

fn list(
    world: &mut World,
    user: &str,
    cursor: Option<String>,
    limit: u32,
) -> (Vec<ListedConversation>, Option<String>) {
    match world.call(user, Request::ListConversations { cursor, limit }) {
        Ok(Response::Conversations { items, next_cursor }) => (items, next_cursor),
        other => panic!("{other:?}"),
    }
}

fn ids(items: &[ListedConversation]) -> Vec<ConversationId> {
    items
        .iter()
        .map(|i| i.conversation.conversation_id)
        .collect()
}

#[test]
fn conversations_are_listed_newest_activity_first() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let first = world.group("alice", &["bob"]);
    world.pass(10);
    let second = world.group("alice", &["bob"]);
    world.pass(10);
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let direct = ConversationId::direct("alice", "bob");
    assert_eq!(
        ids(&list(&mut world, "alice", None, 50).0),
        [direct, second, first]
    );
    world.pass(10);
    world.say_in(alice, first, "c2", "y");
    world.turn();
    for _ in 0..2 {
        let (items, next) = list(&mut world, "bob", None, 50);
        assert_eq!(ids(&items), [first, direct, second]);
        assert_eq!(next, None);
        assert_eq!(items[0].last_message.as_ref().unwrap().content, "y");
        assert_eq!(items[1].conversation.peer.as_deref(), Some("alice"));
        assert_eq!(items[2].last_message, None);
        world.restart(config());
    }
    assert!(list(&mut world, "stranger", None, 50).0.is_empty());
}

#[test]
fn a_cursor_goes_on_where_the_page_before_ended() {
    let mut world = World::new();
    // Two and two of the same moment.
    let mut made: Vec<ConversationId> = (0..6)
        .map(|n| {
            if n % 2 == 0 {
                world.pass(5);
            }
            world.group("alice", &[])
        })
        .collect();
    made.sort();
    let mut found = Vec::new();
    let mut cursor = None;
    let mut pages = 0;
    loop {
        let (items, next) = list(&mut world, "alice", cursor, 4);
        found.extend(ids(&items));
        pages += 1;
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, 2);
    found.sort();
    assert_eq!(found, made);
    let bad = Request::ListConversations {
        cursor: Some("nonsense".to_owned()),
        limit: 4,
    };
    assert_eq!(world.refused("alice", bad), "bad_request");
    let none = Request::ListConversations {
        cursor: None,
        limit: 0,
    };
    assert_eq!(world.refused("alice", none), "bad_request");
}

#[test]
fn unread_counts_what_others_sent_above_the_read_watermark() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    for n in 0..6 {
        let (from, to) = if n % 3 == 2 {
            (bob, "alice")
        } else {
            (alice, "bob")
        };
        world.say(from, to, &format!("c{n}"), "x");
    }
    world.turn();
    let direct = ConversationId::direct("alice", "bob");
    // alice sent 1 2 4 5, bob 3 6.
    let unread = |world: &mut World, user: &str| {
        let item = list(world, user, None, 50).0.remove(0);
        (item.delivered_seq, item.read_seq, item.unread)
    };
    assert_eq!(unread(&mut world, "bob"), (0, 0, 4));
    assert_eq!(unread(&mut world, "alice"), (0, 0, 2));
    world.mark(bob, direct, 2, "read");
    world.mark(bob, direct, 5, "delivered");
    assert_eq!(unread(&mut world, "bob"), (5, 2, 2));
    world.mark(bob, direct, 6, "read");
    assert_eq!(unread(&mut world, "bob"), (6, 6, 0));
    world.pass(1_000);
    world.restart(config());
    assert_eq!(unread(&mut world, "alice"), (0, 0, 2));
}

#[test]
fn former_members_and_deleted_conversations_are_not_listed() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let left = world.group("alice", &["bob"]);
    let deleted = world.group("alice", &["bob"]);
    let joined = world.group("alice", &[]);
    world.say_in(alice, joined, "c1", "before");
    world.turn();
    let leave = Request::RemoveMember {
        id: left,
        user: "bob".to_owned(),
    };
    world.call("bob", leave).unwrap();
    world
        .call("alice", Request::DeleteConversation { id: deleted })
        .unwrap();
    let join = Request::PutMember {
        id: joined,
        user: "bob".to_owned(),
        role: None,
    };
    world.call("alice", join).unwrap();
    let (items, _) = list(&mut world, "bob", None, 50);
    assert_eq!(ids(&items), [joined]);
    assert_eq!((items[0].last_message.clone(), items[0].unread), (None, 0));
    assert_eq!(items[0].conversation.head_seq, 1);
}

#[test]
fn a_list_that_cannot_be_completed_is_unavailable() {
    let mut world = World::new();
    world.group("alice", &[]);
    let request = Request::ListConversations {
        cursor: None,
        limit: 50,
    };
    world.read_fails.push_back(unavailable());
    assert_eq!(world.refused("alice", request.clone()), "unavailable");
    world.restart(config());
    world.hold_loads = true;
    let token = world.ask("alice", request.clone());
    world.turn();
    world.release();
    world.read_fails.push_back(unavailable());
    world.release();
    assert_eq!(
        world.answered(token).unwrap().unwrap_err().code,
        "unavailable"
    );
    world.hold_loads = false;
    assert!(world.call("alice", request).is_ok());
}

#[test]
fn members_are_listed_in_order_of_their_ids() {
    let mut world = World::new();
    let group = world.group("m", &["z", "a", "k"]);
    let page = |world: &mut World, cursor: Option<String>| {
        let request = Request::ListMembers {
            id: group,
            cursor,
            limit: 3,
        };
        match world.call("a", request) {
            Ok(Response::Members { items, next_cursor }) => {
                let names: Vec<String> = items.into_iter().map(|m| m.user_id).collect();
                (names, next_cursor)
            }
            other => panic!("{other:?}"),
        }
    };
    let (names, next) = page(&mut world, None);
    assert_eq!(names, ["a", "k", "m"]);
    assert_eq!(page(&mut world, next), (vec!["z".to_owned()], None));
    let none = Request::ListMembers {
        id: group,
        cursor: None,
        limit: 0,
    };
    assert_eq!(world.refused("a", none), "bad_request");
}

#[test]
fn views_are_for_members() {
    let mut world = World::new();
    let group = world.group("alice", &["bob"]);
    let requests = [
        Request::GetConversation { id: group },
        Request::Receipts {
            id: group,
            seq: None,
        },
        Request::ListMembers {
            id: group,
            cursor: None,
            limit: 50,
        },
        Request::MarkRead {
            id: group,
            last_read_seq: 1,
        },
    ];
    for request in requests {
        assert_eq!(world.refused("eve", request), "not_a_member");
    }
    let id = ConversationId::direct("x", "y");
    assert_eq!(
        world.refused("eve", Request::GetConversation { id }),
        "not_found"
    );
    let Ok(Response::Receipts(view)) = world.call(
        "alice",
        Request::Receipts {
            id: group,
            seq: Some(9),
        },
    ) else {
        panic!("no receipts");
    };
    assert_eq!(
        (view.seq, view.watermarks),
        (0, vec![("bob".to_owned(), 0, 0)])
    );
}
