//! Lists of recipients that edges keep for busy conversations: a message then names the list, and
//! neither the sessions of all members are looked up nor their handles sent again.
//!
//! A roster begins when a conversation has had [`RosterBounds::messages_min`] messages in a row for
//! [`RosterBounds::recipients_min`] sessions or more. From then on it is told of each session of its
//! members that begins or ends, and of members who come and go. What it is told waits here until the
//! next message, and reaches an edge just before that, on the same ordered stream.
//!
//! Invariants:
//! 1. What an edge has of a roster, with what waits, is at any time exactly the edge's sessions of
//!    the conversation's present members. The registry, where sessions begin and end, owns the
//!    rosters for that; `Conversation::apply_change` tells of members.
//! 2. An edge never holds more than [`RosterBounds::rosters_max`] rosters and
//!    [`RosterBounds::handles_max`] handles: the least recently used one goes first, and its
//!    dropping is said before the new one is.
//! 3. A roster that changes much between messages does not pay and is dropped.
//! 4. A number is never given twice. A stream that is new has none of the rosters.
//!
//! Called by `registry`, `fanout` and `membership`.

use smallvec::SmallVec;
use trunkline_proto::client::ServerFrame;
use trunkline_proto::link::{CoreOp, DeliverToRoster, DropRoster, Roster as RosterOp, core_op::Op};

use super::hash::{Map, Seeded};
use super::registry::UserRef;
use super::reply::SessionRef;
use super::{EdgeKey, Effect, RosterBounds};

/// Changes that may wait for the next message, however small the roster is.
const CHANGES_FREE: usize = 16;
/// Beyond that the part of the roster that may have changed: about here the list as such is as
/// cheap as its changes.
const CHANGES_PART: usize = 4;

/// What one edge has of a roster, and what it has yet to hear.
struct List {
    edge: EdgeKey,
    /// 0: the edge knows nothing of it.
    version: u64,
    /// Handles, with what waits taken in.
    len: usize,
    joined: Vec<u64>,
    left: Vec<u64>,
}

impl List {
    const fn new(edge: EdgeKey) -> Self {
        Self {
            edge,
            version: 0,
            len: 0,
            joined: Vec::new(),
            left: Vec::new(),
        }
    }

    /// A handle comes. One that went and comes again before the edge heard of it never went.
    fn join(&mut self, handle: u64) {
        self.len += 1;
        if !take_out(&mut self.left, handle) {
            self.joined.push(handle);
        }
    }

    fn leave(&mut self, handle: u64) {
        self.len -= 1;
        if !take_out(&mut self.joined, handle) {
            self.left.push(handle);
        }
    }

    /// Whether to tell the changes costs too much.
    const fn is_unsteady(&self) -> bool {
        let changes = self.joined.len() + self.left.len();
        self.version > 0 && changes > CHANGES_FREE && changes > self.len / CHANGES_PART
    }

    /// What the edge has to hear before the next delivery.
    fn changes(&mut self, roster_id: u64) -> Option<Op> {
        if self.joined.is_empty() && self.left.is_empty() {
            return None;
        }
        self.version += 1;
        Some(Op::Roster(RosterOp {
            roster_id,
            version: self.version,
            joined: std::mem::take(&mut self.joined),
            left: std::mem::take(&mut self.left),
        }))
    }
}

fn take_out(handles: &mut Vec<u64>, handle: u64) -> bool {
    let at = handles.iter().position(|h| *h == handle);
    at.is_some_and(|at| {
        handles.swap_remove(at);
        true
    })
}

struct Roster {
    lists: SmallVec<[List; 2]>,
    users: Vec<UserRef>,
    /// The number of its last use.
    used: u64,
}

impl Roster {
    fn list(&mut self, edge: EdgeKey) -> Option<&mut List> {
        self.lists.iter_mut().find(|l| l.edge == edge)
    }

    fn handles(&self) -> usize {
        self.lists.iter().map(|l| l.len).sum()
    }
}

/// What a delivery came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    pub items: u64,
    pub handles: u64,
}

/// All rosters of all edges.
pub(super) struct Rosters {
    bounds: RosterBounds,
    all: Map<u64, Roster>,
    by_user: Map<UserRef, SmallVec<[u64; 2]>>,
    handles: usize,
    last_id: u64,
    uses: u64,
    /// What edges are to forget.
    dropped: Vec<(EdgeKey, u64)>,
    evictions: u64,
}

impl Rosters {
    pub fn new(hash: Seeded, bounds: RosterBounds) -> Self {
        Self {
            bounds,
            all: Map::with_hasher(hash),
            by_user: Map::with_hasher(hash),
            handles: 0,
            last_id: 0,
            uses: 0,
            dropped: Vec::new(),
            evictions: 0,
        }
    }

    pub const fn bounds(&self) -> RosterBounds {
        self.bounds
    }

    /// Rosters, handles in them, and rosters dropped to make room.
    pub fn counts(&self) -> (usize, usize, u64) {
        (self.all.len(), self.handles, self.evictions)
    }

    /// Whether it has not been dropped.
    pub fn has(&self, id: u64) -> bool {
        self.all.contains_key(&id)
    }

    /// A roster of these sessions, which are all that `users` have. `None`: it is larger than all
    /// rosters together may be.
    pub fn create(&mut self, sessions: &[SessionRef], users: Vec<UserRef>) -> Option<u64> {
        if sessions.len() > self.bounds.handles_max || self.bounds.rosters_max == 0 {
            return None;
        }
        self.make_room(1, sessions.len());
        self.last_id += 1;
        self.uses += 1;
        let id = self.last_id;
        for user in &users {
            self.by_user.entry(*user).or_default().push(id);
        }
        let mut lists: SmallVec<[List; 2]> = SmallVec::new();
        for session in sessions {
            let at = lists.iter().rposition(|l| l.edge == session.edge);
            let at = at.unwrap_or_else(|| {
                lists.push(List::new(session.edge));
                lists.len() - 1
            });
            lists[at].join(session.handle);
        }
        self.handles += sessions.len();
        let used = self.uses;
        self.all.insert(id, Roster { lists, users, used });
        Some(id)
    }

    /// Delivers to all of a roster's sessions but `except`, which is one of them.
    pub fn deliver(
        &mut self,
        id: u64,
        except: Option<SessionRef>,
        frame: ServerFrame,
        out: &mut Vec<Effect>,
    ) -> Delivered {
        self.tell_dropped(out);
        let Some(roster) = self.all.get_mut(&id) else {
            return Delivered::default();
        };
        self.uses += 1;
        roster.used = self.uses;
        let mut delivered = Delivered::default();
        let mut frame = Some(frame);
        let mut lists = roster.lists.iter_mut().peekable();
        while let Some(list) = lists.next() {
            let edge = list.edge;
            let except = except.filter(|e| e.edge == edge).map(|e| e.handle);
            let handles = list.len - usize::from(except.is_some());
            if handles == 0 {
                continue;
            }
            out.extend(list.changes(id).map(|op| to_edge(edge, op)));
            let deliver = DeliverToRoster {
                roster_id: id,
                version: list.version,
                except,
                frame: if lists.peek().is_some() {
                    frame.clone()
                } else {
                    frame.take()
                },
            };
            out.push(to_edge(edge, Op::DeliverToRoster(deliver)));
            delivered.items += 1;
            delivered.handles += handles as u64;
        }
        delivered
    }

    /// Has edges forget what was dropped. Called before each delivery, and when a turn ends.
    pub fn tell_dropped(&mut self, out: &mut Vec<Effect>) {
        let dropped = self.dropped.drain(..);
        out.extend(
            dropped
                .map(|(edge, roster_id)| to_edge(edge, Op::DropRoster(DropRoster { roster_id }))),
        );
    }

    // ---- what changes ----

    /// A session of `user` has begun.
    pub fn session_opened(&mut self, user: UserRef, session: SessionRef) {
        for id in self.of_user(user) {
            self.join(id, session);
        }
    }

    /// A session of `user` is over.
    pub fn session_closed(&mut self, user: UserRef, session: SessionRef) {
        for id in self.of_user(user) {
            self.leave(id, session);
        }
    }

    /// A stream is over: nothing of any roster is there.
    pub fn edge_gone(&mut self, edge: EdgeKey) {
        let mut handles = 0;
        for roster in self.all.values_mut() {
            roster.lists.retain(|list| {
                let stays = list.edge != edge;
                handles += if stays { 0 } else { list.len };
                stays
            });
        }
        self.handles -= handles;
        self.dropped.retain(|(at, _)| *at != edge);
    }

    /// `user`, who has these sessions, is a member from now on.
    pub fn member_joined(
        &mut self,
        id: u64,
        user: UserRef,
        sessions: impl Iterator<Item = SessionRef>,
    ) {
        let Some(roster) = self.all.get_mut(&id) else {
            return;
        };
        roster.users.push(user);
        self.by_user.entry(user).or_default().push(id);
        for session in sessions {
            self.join(id, session);
        }
    }

    /// `user`, who has these sessions, is no member any more.
    pub fn member_left(
        &mut self,
        id: u64,
        user: UserRef,
        sessions: impl Iterator<Item = SessionRef>,
    ) {
        let Some(roster) = self.all.get_mut(&id) else {
            return;
        };
        roster.users.retain(|u| *u != user);
        self.unlist(user, id);
        for session in sessions {
            self.leave(id, session);
        }
    }

    /// Drops a roster: its conversation is gone, or leaves memory.
    pub fn forget(&mut self, id: u64) {
        let Some(roster) = self.all.remove(&id) else {
            return;
        };
        self.handles -= roster.handles();
        for user in roster.users {
            self.unlist(user, id);
        }
        let known = roster.lists.iter().filter(|l| l.version > 0);
        self.dropped.extend(known.map(|l| (l.edge, id)));
    }

    fn join(&mut self, id: u64, session: SessionRef) {
        self.make_room(0, 1);
        let Some(roster) = self.all.get_mut(&id) else {
            return;
        };
        if roster.list(session.edge).is_none() {
            roster.lists.push(List::new(session.edge));
        }
        if let Some(list) = roster.list(session.edge) {
            list.join(session.handle);
            self.handles += 1;
            if list.is_unsteady() {
                self.forget(id);
            }
        }
    }

    fn leave(&mut self, id: u64, session: SessionRef) {
        let Some(roster) = self.all.get_mut(&id) else {
            return;
        };
        // None: the whole edge went.
        if let Some(list) = roster.list(session.edge) {
            list.leave(session.handle);
            self.handles -= 1;
            if list.is_unsteady() {
                self.forget(id);
            }
        }
    }

    fn of_user(&self, user: UserRef) -> SmallVec<[u64; 2]> {
        self.by_user.get(&user).cloned().unwrap_or_default()
    }

    fn unlist(&mut self, user: UserRef, id: u64) {
        if let Some(ids) = self.by_user.get_mut(&user) {
            ids.retain(|i| *i != id);
            if ids.is_empty() {
                self.by_user.remove(&user);
            }
        }
    }

    /// The bounds are those of one edge; kept over all edges together, they hold for each.
    fn make_room(&mut self, rosters: usize, handles: usize) {
        while self.all.len() + rosters > self.bounds.rosters_max
            || self.handles + handles > self.bounds.handles_max
        {
            let oldest = self.all.iter().min_by_key(|(_, roster)| roster.used);
            let Some(id) = oldest.map(|(id, _)| *id) else {
                return;
            };
            self.forget(id);
            self.evictions += 1;
        }
    }
}

fn to_edge(edge: EdgeKey, op: Op) -> Effect {
    Effect::ToEdge {
        edge,
        op: CoreOp { op: Some(op) },
    }
}
