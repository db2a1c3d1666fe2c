//! Conversations made and changed, and what that does to what members see.

use trunkline_proto::client::{Conversation, ServerBody};
use trunkline_proto::ids::ConversationId;

use super::world::{Session, World, config, unavailable};
use crate::engine::{EngineConfig, Kind, Request, Response, Role};

fn put(id: ConversationId, user: &str, role: Option<Role>) -> Request {
    Request::PutMember {
        id,
        user: user.to_owned(),
        role,
    }
}

fn remove(id: ConversationId, user: &str) -> Request {
    Request::RemoveMember {
        id,
        user: user.to_owned(),
    }
}

fn title(id: ConversationId, title: &str) -> Request {
    Request::SetTitle {
        id,
        title: title.to_owned(),
    }
}

fn create(kind: Kind, title: &str, members: &[&str]) -> Request {
    Request::CreateConversation {
        kind,
        title: title.to_owned(),
        members: members.iter().map(|m| (*m).to_owned()).collect(),
    }
}

/// The only thing that reached a session: a `conversation`.
fn told(world: &mut World, session: Session) -> Conversation {
    match world.bodies(session).as_slice() {
        [ServerBody::Conversation(c)] => c.clone(),
        other => panic!("{other:?}"),
    }
}

fn roles(world: &mut World, asker: &str, id: ConversationId) -> Vec<(String, Role)> {
    let list = Request::ListMembers {
        id,
        cursor: None,
        limit: 200,
    };
    match world.call(asker, list) {
        Ok(Response::Members { items, .. }) => {
            items.into_iter().map(|m| (m.user_id, m.role)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_group_is_made_of_its_caller_as_owner_and_each_member_once() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    let request = create(Kind::Group, "team", &["carol", "bob", "alice", "bob"]);
    let Ok(Response::Conversation {
        conversation: view,
        created: true,
    }) = world.call("alice", request)
    else {
        panic!("not made");
    };
    assert_eq!(
        (view.kind, view.role, view.version),
        (Kind::Group, Role::Owner, 1)
    );
    assert_eq!(
        (view.member_count, view.head_seq, view.peer.clone()),
        (3, 0, None)
    );
    assert_eq!(view.conversation_id.0.get_version_num(), 7);
    for session in [alice, bob] {
        let frame = told(&mut world, session);
        assert_eq!(frame.members_added, ["alice", "bob", "carol"]);
        assert_eq!(
            (frame.kind.as_str(), frame.title.as_str()),
            ("group", "team")
        );
    }
    assert_eq!(world.view("carol", view.conversation_id).role, Role::Member);
    let stored = world.stored(view.conversation_id);
    assert_eq!((stored.row.kind, stored.members["alice"].role), (2, 3));
}

#[test]
fn group_ids_differ_within_a_millisecond_and_follow_from_the_seed() {
    let ids = |_| {
        let mut world = World::new();
        (0..5)
            .map(|_| world.group("alice", &["bob"]))
            .collect::<Vec<_>>()
    };
    let (first, second): (Vec<_>, Vec<_>) = (ids(()), ids(()));
    assert_eq!(first, second);
    let mut unique = first.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 5);
}

#[test]
fn groups_are_checked_before_they_are_made() {
    let mut world = World::with(EngineConfig {
        group_members_max: 3,
        ..config()
    });
    let cases = [
        (create(Kind::Group, "", &["a", "b", "c"]), "group_full"),
        (create(Kind::Group, "", &["no good"]), "bad_request"),
        (create(Kind::Group, &"é".repeat(201), &["a"]), "bad_request"),
        (create(Kind::Channel, "", &["a"]), "not_implemented"),
        (create(Kind::Direct, "", &[]), "bad_request"),
        (create(Kind::Direct, "", &["a", "b"]), "bad_request"),
        (create(Kind::Direct, "", &["no good"]), "bad_request"),
    ];
    for (request, code) in cases {
        assert_eq!(world.refused("alice", request.clone()), code, "{request:?}");
    }
    assert!(world.store.conversations.is_empty());
    assert!(
        world
            .call("alice", create(Kind::Group, &"é".repeat(200), &["a", "b"]))
            .is_ok()
    );
}

#[test]
fn a_direct_conversation_is_made_once_from_either_side() {
    let mut world = World::new();
    let bob = world.open(1, "bob");
    let made = |world: &mut World, caller: &str, other: &str| match world
        .call(caller, create(Kind::Direct, "ignored", &[other]))
    {
        Ok(Response::Conversation {
            conversation,
            created,
        }) => (conversation, created),
        other => panic!("{other:?}"),
    };
    let (view, created) = made(&mut world, "alice", "bob");
    assert!(created);
    assert_eq!(view.conversation_id, ConversationId::direct("alice", "bob"));
    assert_eq!(
        (view.title.as_str(), view.peer.as_deref()),
        ("", Some("bob"))
    );
    assert_eq!(told(&mut world, bob).members_added, ["alice", "bob"]);
    let (view, created) = made(&mut world, "bob", "alice");
    assert!(!created);
    assert_eq!(view.peer.as_deref(), Some("alice"));
    assert_eq!(world.take(bob), []);
    // Also after a restart.
    world.restart(config());
    assert!(!made(&mut world, "alice", "bob").1);
}

#[test]
fn racing_creators_of_a_direct_conversation_make_one() {
    let mut world = World::new();
    world.hold_commits = true;
    let first = world.ask("alice", create(Kind::Direct, "", &["bob"]));
    let second = world.ask("bob", create(Kind::Direct, "", &["alice"]));
    world.turn();
    assert_eq!(world.answered(first), None);
    world.hold_commits = false;
    world.release();
    let created: Vec<bool> = [first, second]
        .into_iter()
        .map(|token| match world.answered(token) {
            Some(Ok(Response::Conversation { created, .. })) => created,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(created, [true, false]);
    assert_eq!(world.commits.len(), 1);
}

#[test]
fn an_added_member_sees_what_comes_after_the_joining() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let carol = world.open(2, "carol");
    let group = world.group("alice", &["bob"]);
    world.take(alice);
    world.say_in(alice, group, "c1", "before");
    // In one batch: the message, then the joining.
    let added = world.ask("alice", put(group, "carol", None));
    world.turn();
    assert_eq!(world.answered(added), Some(Ok(Response::Done)));
    let got = world.bodies(alice);
    let [ServerBody::Ack(_), ServerBody::Conversation(frame)] = got.as_slice() else {
        panic!("{got:?}");
    };
    assert_eq!(frame.members_added, ["carol"]);
    assert_eq!((frame.version, frame.head_seq), (2, 1));
    assert_eq!(told(&mut world, carol).members_added, ["carol"]);
    world.say_in(alice, group, "c2", "after");
    world.turn();
    assert_eq!(world.seqs(carol), [2]);
    let page = world.fetch(carol, group, (None, None, None)).unwrap();
    assert_eq!(page.messages.iter().map(|m| m.seq).collect::<Vec<_>>(), [2]);
    assert_eq!((page.head_seq, page.more, page.version), (2, false, 2));
    let row = &world.stored(group).members["carol"];
    assert_eq!(
        (
            row.role,
            row.intervals[0].after_seq,
            row.intervals[0].until_seq
        ),
        (1, 1, None)
    );
}

#[test]
fn a_removed_member_reads_up_to_the_removal_and_is_sent_nothing_more() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    let group = world.group("alice", &["bob"]);
    world.say_in(alice, group, "c1", "seen");
    world.turn();
    world.take(bob);
    assert_eq!(
        world.call("alice", remove(group, "bob")),
        Ok(Response::Done)
    );
    let frame = told(&mut world, bob);
    assert_eq!(
        (frame.members_removed, frame.version),
        (vec!["bob".to_owned()], 2)
    );
    world.say_in(alice, group, "c2", "unseen");
    world.turn();
    assert_eq!(world.take(bob), []);
    let page = world.fetch(bob, group, (None, None, None)).unwrap();
    assert_eq!((page.messages.len(), page.head_seq), (1, 1));
    world.say_in(bob, group, "c3", "x");
    world.turn();
    assert_eq!(world.error(bob).code, "not_a_member");
    world.mark(bob, group, 1, "read");
    assert_eq!(world.error(bob).code, "not_a_member");
    let view = world.view("bob", group);
    assert_eq!(
        (view.role, view.head_seq, view.member_count),
        (Role::Member, 1, 1)
    );
    let list = Request::ListMembers {
        id: group,
        cursor: None,
        limit: 50,
    };
    assert_eq!(world.refused("bob", list), "not_a_member");
}

#[test]
fn a_member_added_again_sees_both_intervals_and_not_what_lies_between() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let group = world.group("alice", &["bob"]);
    for n in 1..=9 {
        match n {
            4 => assert!(world.call("alice", remove(group, "bob")).is_ok()),
            7 => assert!(world.call("alice", put(group, "bob", None)).is_ok()),
            _ => {}
        }
        world.say_in(alice, group, &format!("c{n}"), "x");
        world.turn();
    }
    for _ in 0..2 {
        let bob = world.open(2, "bob");
        let page = world.fetch(bob, group, (None, None, None)).unwrap();
        let seqs: Vec<u64> = page.messages.iter().map(|m| m.seq).collect();
        assert_eq!((seqs, page.head_seq), (vec![1, 2, 3, 7, 8, 9], 9));
        let page = world.fetch(bob, group, (Some(2), None, Some(2))).unwrap();
        let seqs: Vec<u64> = page.messages.iter().map(|m| m.seq).collect();
        assert_eq!((seqs, page.more), (vec![3, 7], true));
        // The same from the store.
        world.restart(config());
    }
}

#[test]
fn a_member_who_comes_back_before_anything_was_said_has_one_interval() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let group = world.group("alice", &["bob"]);
    world.say_in(alice, group, "c1", "x");
    world.turn();
    world.call("alice", remove(group, "bob")).unwrap();
    world.call("alice", put(group, "bob", None)).unwrap();
    assert_eq!(world.stored(group).members["bob"].intervals.len(), 1);
    // One who joined and left with nothing in between has seen nothing.
    world.call("alice", put(group, "carol", None)).unwrap();
    world.call("alice", remove(group, "carol")).unwrap();
    assert_eq!(world.stored(group).members["carol"].intervals, []);
    let carol = world.open(1, "carol");
    let page = world.fetch(carol, group, (None, None, None)).unwrap();
    assert_eq!((page.messages.len(), page.head_seq), (0, 0));
}

#[test]
fn roles_decide_who_may_change_what() {
    let mut world = World::new();
    let group = world.group("owner", &["admin", "admin2", "member", "other"]);
    for admin in ["admin", "admin2"] {
        assert!(
            world
                .call("owner", put(group, admin, Some(Role::Admin)))
                .is_ok()
        );
    }
    let forbidden = [
        ("member", put(group, "new", None)),
        ("member", title(group, "x")),
        ("member", remove(group, "other")),
        ("member", Request::DeleteConversation { id: group }),
        ("admin", put(group, "member", Some(Role::Admin))),
        ("admin", put(group, "new", Some(Role::Admin))),
        ("admin", remove(group, "admin2")),
        ("admin", remove(group, "owner")),
        ("admin", Request::DeleteConversation { id: group }),
        ("owner", put(group, "new", Some(Role::Owner))),
        ("owner", put(group, "owner", Some(Role::Member))),
    ];
    for (caller, request) in forbidden {
        assert_eq!(
            world.refused(caller, request.clone()),
            "forbidden",
            "{request:?}"
        );
    }
    assert_eq!(
        world.refused("stranger", put(group, "new", None)),
        "not_a_member"
    );
    assert_eq!(
        world.refused("stranger", remove(group, "stranger")),
        "not_a_member"
    );
    assert_eq!(
        world.refused("owner", remove(group, "stranger")),
        "not_found"
    );
    assert_eq!(
        world.refused("owner", put(group, "no good", None)),
        "bad_request"
    );
    let allowed = [
        ("admin", put(group, "new", None)),
        ("admin", title(group, "y")),
        ("admin", remove(group, "other")),
        ("member", remove(group, "member")),
        ("owner", remove(group, "admin2")),
    ];
    for (caller, request) in allowed {
        assert!(world.call(caller, request.clone()).is_ok(), "{request:?}");
    }
    let version = world.view("owner", group).version;
    assert_eq!(version, 8, "two admins made, five changes");
}

#[test]
fn what_changes_nothing_is_done_without_a_version() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let group = world.group("alice", &["bob"]);
    world.take(alice);
    let commits = world.commits.len();
    assert_eq!(
        world.call("alice", put(group, "bob", None)),
        Ok(Response::Done)
    );
    assert_eq!(
        world.call("alice", put(group, "bob", Some(Role::Member))),
        Ok(Response::Done)
    );
    assert!(world.call("alice", title(group, "team")).is_ok());
    assert_eq!(world.commits.len(), commits);
    assert_eq!(world.take(alice), []);
    assert_eq!(world.view("alice", group).version, 1);
}

#[test]
fn a_full_group_takes_nobody_more() {
    let mut world = World::with(EngineConfig {
        group_members_max: 3,
        ..config()
    });
    let group = world.group("alice", &["b", "c"]);
    assert_eq!(world.refused("alice", put(group, "d", None)), "group_full");
    world.call("alice", remove(group, "b")).unwrap();
    assert_eq!(
        world.call("alice", put(group, "d", None)),
        Ok(Response::Done)
    );
}

#[test]
fn an_owner_hands_the_group_over_and_becomes_an_admin() {
    let mut world = World::new();
    let group = world.group("alice", &["bob"]);
    world
        .call("alice", put(group, "bob", Some(Role::Owner)))
        .unwrap();
    let roles = roles(&mut world, "alice", group);
    assert_eq!(
        roles,
        [
            ("alice".to_owned(), Role::Admin),
            ("bob".to_owned(), Role::Owner)
        ]
    );
}

#[test]
fn a_leaving_owner_is_followed_by_the_longest_standing_admin_then_member() {
    let mut world = World::new();
    let group = world.group("owner", &["m1"]);
    for (user, role) in [
        ("m2", None),
        ("a1", Some(Role::Admin)),
        ("a0", Some(Role::Admin)),
    ] {
        world.pass(1_000);
        world.call("owner", put(group, user, role)).unwrap();
    }
    for (leaver, heir) in [("owner", "a1"), ("a1", "a0"), ("a0", "m1"), ("m1", "m2")] {
        assert_eq!(
            world.call(leaver, remove(group, leaver)),
            Ok(Response::Done)
        );
        assert_eq!(world.view(heir, group).role, Role::Owner, "{leaver} left");
    }
    // The last one may leave too.
    assert_eq!(world.call("m2", remove(group, "m2")), Ok(Response::Done));
    assert_eq!(world.view("m2", group).member_count, 0);
}

#[test]
fn a_deleted_conversation_is_found_by_nobody() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    let bob = world.open(2, "bob");
    let group = world.group("alice", &["bob"]);
    world.say_in(alice, group, "c1", "x");
    world.turn();
    world.take(alice);
    world.take(bob);
    let delete = Request::DeleteConversation { id: group };
    assert_eq!(world.call("alice", delete.clone()), Ok(Response::Done));
    for session in [alice, bob] {
        assert_eq!(told(&mut world, session).members_removed, ["alice", "bob"]);
    }
    for _ in 0..2 {
        assert_eq!(world.refused("alice", delete.clone()), "not_found");
        assert_eq!(
            world.refused("alice", Request::GetConversation { id: group }),
            "not_found"
        );
        assert_eq!(world.refused("alice", put(group, "bob", None)), "not_found");
        let bob = world.open(2, "bob");
        world.say_in(bob, group, "c2", "x");
        world.turn();
        assert_eq!(world.error(bob).code, "not_found");
        assert_eq!(
            world
                .fetch(bob, group, (None, None, None))
                .unwrap_err()
                .code,
            "not_found"
        );
        world.mark(bob, group, 1, "read");
        assert_eq!(world.error(bob).code, "not_found");
        world.restart(config());
    }
}

#[test]
fn direct_conversations_cannot_be_changed() {
    let mut world = World::new();
    let alice = world.open(1, "alice");
    world.say(alice, "bob", "c1", "x");
    world.turn();
    let id = ConversationId::direct("alice", "bob");
    for request in [
        put(id, "carol", None),
        remove(id, "alice"),
        title(id, "x"),
        Request::DeleteConversation { id },
    ] {
        assert_eq!(world.refused("alice", request), "forbidden");
    }
}

#[test]
fn a_change_is_seen_by_nobody_before_it_is_durable() {
    let mut world = World::new();
    let bob = world.open(2, "bob");
    let group = world.group("alice", &["bob"]);
    world.take(bob);
    world.hold_commits = true;
    let change = world.ask("alice", title(group, "new"));
    world.turn();
    let look = world.ask("bob", Request::GetConversation { id: group });
    world.say_in(bob, group, "c1", "x");
    world.turn();
    assert_eq!((world.answered(change), world.answered(look)), (None, None));
    assert_eq!(world.take(bob), []);
    world.hold_commits = false;
    world.release();
    let Some(Ok(Response::Conversation { conversation, .. })) = world.answered(look) else {
        panic!("no view");
    };
    assert_eq!(
        (conversation.title.as_str(), conversation.version),
        ("new", 2)
    );
    let got = world.bodies(bob);
    assert!(
        matches!(
            got.as_slice(),
            [ServerBody::Conversation(_), ServerBody::Ack(_)]
        ),
        "{got:?}"
    );
}

#[test]
fn an_addition_with_an_unknown_outcome_is_said_so_and_announced_when_settled() {
    let mut world = World::new();
    let carol = world.open(1, "carol");
    let group = world.group("alice", &["bob"]);
    world.commit_ends.push_back(Err(unavailable()));
    assert_eq!(
        world.refused("alice", put(group, "carol", None)),
        "unavailable"
    );
    assert_eq!(world.take(carol), []);
    world.pass(50);
    assert_eq!(told(&mut world, carol).members_added, ["carol"]);
    assert_eq!(
        world.call("alice", put(group, "carol", None)),
        Ok(Response::Done)
    );
}
