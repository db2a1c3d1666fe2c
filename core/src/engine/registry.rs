//! Who is connected: users, their sessions, and the edges that hold these.
//!
//! Invariants:
//! 1. A user id is stored once; all else names it by [`UserRef`]. A ref stays valid while somebody
//!    retains it, and in any case until the turn ends.
//! 2. A session belongs to one user and one attached edge, and leaves with its edge.
//! 3. Rosters hear of every session that begins or ends.
//! 4. A user's limiter outlives its sessions until it is idle: to reconnect refills no bucket.
//!
//! Memory: a session is 32 bytes and 4 of index, a user 32, its id and 6 to 11 of hash table; devices
//! are kept as hashes. Nothing is allocated for a session beyond that, and growing copies next to
//! nothing: slabs and index grow by pages, the hash table in parts. [`Registry::bytes`] tells.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use trunkline_proto::gcra::{Gcra, Rate};
use trunkline_proto::link::EdgeHello;

use super::handles::Handles;
use super::hash::Seeded;
use super::names::Names;
use super::reply::SessionRef;
use super::rosters::Rosters;
use super::slab::{NONE, Slab};
use super::stats::{RegisteredSession, RegistryBytes};
use super::{EdgeKey, RosterBounds};

/// A user, for as long as it is retained. One more than its index: that it is never 0 spares the
/// slab of sessions a mark for those that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct UserRef(NonZeroU32);

impl UserRef {
    fn new(index: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(index))
    }

    const fn index(self) -> u32 {
        self.0.get() - 1
    }

    /// A number that tells users apart.
    pub const fn number(self) -> u64 {
        self.index() as u64
    }
}

struct User {
    name: Box<str>,
    limiter: Gcra,
    /// The newest session, or [`NONE`].
    first: u32,
    /// Holders; [`FADING`] on top while the user is queued for removal.
    refs: u32,
}

const FADING: u32 = 1 << 31;

/// Room for users to be looked at that a quiet registry keeps.
const FADING_KEPT: usize = 1_024;

/// Users looked at when a turn ends, to forget them.
const SWEPT_PER_TURN_MAX: usize = 8_192;

/// A live session.
pub(super) struct Session {
    pub handle: u64,
    device: u64,
    pub user: UserRef,
    pub edge: EdgeKey,
    /// The user's next older session, or [`NONE`].
    next: u32,
    /// When it began, and below that, in the lowest bit, whether it is to be told which conversations
    /// to look at, and has not been.
    began_and_awaits: u32,
}

/// When a connection began, in steps of 32 ms on a clock that began a year before this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Began(u32);

impl Began {
    const STEP_MS: u64 = 32;
    const PAST_MS: u64 = 365 * 24 * 3_600_000;
    /// One bit is left for something else.
    const MAX: u64 = (1 << 31) - 1;

    pub fn before(now_ns: u64, age_ms: u64) -> Self {
        let ms = (Self::PAST_MS + now_ns / 1_000_000).saturating_sub(age_ms);
        Self((ms / Self::STEP_MS).min(Self::MAX) as u32)
    }
}

impl Session {
    const AWAITS_HINTS: u32 = 1;

    pub const fn at(&self) -> SessionRef {
        SessionRef {
            edge: self.edge,
            handle: self.handle,
        }
    }

    pub const fn began(&self) -> Began {
        Began(self.began_and_awaits >> 1)
    }

    const fn awaits_hints(&self) -> bool {
        self.began_and_awaits & Self::AWAITS_HINTS != 0
    }
}

/// From when on sessions may have missed something.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResumePoint {
    pub from_ms: u64,
    /// By what this process told the edge: nothing that it did not commit itself can be missing.
    pub is_here: bool,
}

impl ResumePoint {
    /// The earlier one, and what holds for both.
    fn and(self, other: Self) -> Self {
        Self {
            from_ms: self.from_ms.min(other.from_ms),
            is_here: self.is_here && other.is_here,
        }
    }
}

/// An attached edge.
pub(super) struct Edge {
    id: String,
    pub rate: Rate,
    /// 0: no limit.
    pub sessions_per_user_max: u32,
    resume: ResumePoint,
    by_handle: Handles,
    /// Operations dealt with in this turn.
    settled: u32,
}

const _: () = assert!(
    Slab::<Session>::ENTRY_BYTES <= 32 && Slab::<User>::ENTRY_BYTES <= 32,
    "a million users: each byte here is a megabyte"
);

impl RegisteredSession {
    /// As the types are.
    pub const fn of_this_build() -> Self {
        Self {
            session: Slab::<Session>::ENTRY_BYTES,
            handle: Handles::ENTRY_BYTES,
            user: Slab::<User>::ENTRY_BYTES,
            id: allocated(Self::ID_BYTES),
            name: Names::ENTRY_BYTES_MAX,
        }
    }
}

const _: () = assert!(RegisteredSession::of_this_build().total() <= 96);

/// What the allocator makes of an allocation of `bytes`: it rounds to 16.
const fn allocated(bytes: usize) -> usize {
    bytes.next_multiple_of(16)
}

/// Users, sessions and edges.
pub(super) struct Registry {
    hash: Seeded,
    users: Slab<User>,
    by_name: Names,
    /// Heap bytes of all users' ids.
    ids_bytes: usize,
    sessions: Slab<Session>,
    edges: BTreeMap<EdgeKey, Edge>,
    /// Users whom nobody held when they were queued.
    fading: VecDeque<UserRef>,
    /// Edges with something settled in this turn.
    touched: Vec<EdgeKey>,
    pub rosters: Rosters,
}

impl Registry {
    pub fn new(hash: Seeded, rosters: RosterBounds) -> Self {
        Self {
            hash,
            users: Slab::new(),
            by_name: Names::new(),
            ids_bytes: 0,
            sessions: Slab::new(),
            edges: BTreeMap::new(),
            fading: VecDeque::new(),
            touched: Vec::new(),
            rosters: Rosters::new(hash, rosters),
        }
    }

    pub fn counts(&self) -> (usize, usize, usize) {
        (self.edges.len(), self.sessions.len(), self.users.len())
    }

    /// What the registry takes, by part.
    pub fn bytes(&self) -> RegistryBytes {
        let handles: usize = self.edges.values().map(|e| e.by_handle.bytes()).sum();
        let fading = self.fading.capacity() * size_of::<UserRef>();
        RegistryBytes {
            sessions: self.sessions.bytes() as u64,
            handles: handles as u64,
            users: (self.users.bytes() + fading) as u64,
            ids: self.ids_bytes as u64,
            names: self.by_name.bytes() as u64,
        }
    }

    // ---- users ----

    /// The user with this id, made known if need be.
    pub fn intern(&mut self, name: &str) -> UserRef {
        let hash = self.hash.text(name);
        let users = &self.users;
        if let Some(index) = self.by_name.find(hash, |i| &*users[i].name == name) {
            return UserRef::new(index);
        }
        let index = self.users.insert(User {
            name: name.into(),
            limiter: Gcra::default(),
            first: NONE,
            refs: FADING,
        });
        self.ids_bytes += allocated(name.len());
        let users = &self.users;
        self.by_name
            .insert(self.hash, name, index, |i| &users[i].name);
        self.fading.push_back(UserRef::new(index));
        UserRef::new(index)
    }

    /// The user's id.
    pub fn name(&self, user: UserRef) -> &str {
        &self.users[user.index()].name
    }

    pub fn retain(&mut self, user: UserRef) {
        self.users[user.index()].refs += 1;
    }

    pub fn release(&mut self, user: UserRef) {
        let entry = &mut self.users[user.index()];
        debug_assert!(entry.refs & !FADING > 0, "user released more than retained");
        entry.refs -= 1;
        if entry.refs == 0 {
            entry.refs = FADING;
            self.fading.push_back(user);
        }
    }

    /// Takes one send of `user` at `rate`, or says after how many ms to try again.
    pub fn take_send(&mut self, user: UserRef, rate: Rate, now_ns: u64) -> Result<(), u32> {
        self.users[user.index()].limiter.take(rate, now_ns)
    }

    /// Forgets users whom nobody holds, some at a time. Called when a turn ends; stops at the first
    /// who has to be kept, so that it costs next to nothing when there is nothing to do.
    pub fn sweep(&mut self, now_ns: u64) {
        for _ in 0..SWEPT_PER_TURN_MAX {
            let Some(user) = self.fading.pop_front() else {
                // A crowd that left at once must not hold on to its room for ever.
                self.fading.shrink_to(FADING_KEPT);
                return;
            };
            let entry = &mut self.users[user.index()];
            if entry.refs != FADING {
                entry.refs &= !FADING;
                continue;
            }
            if !entry.limiter.is_idle(now_ns) {
                self.fading.push_back(user);
                break;
            }
            let hash = self.hash.text(&entry.name);
            self.ids_bytes -= allocated(entry.name.len());
            self.by_name.remove(hash, user.index());
            self.users.remove(user.index());
        }
    }

    // ---- sessions ----

    /// The hash under which a user's device is known.
    pub fn device(&self, device_id: &str) -> u64 {
        self.hash.text(device_id)
    }

    /// The user's sessions, newest first.
    pub fn sessions_of(&self, user: UserRef) -> impl Iterator<Item = &Session> {
        let mut next = self.users[user.index()].first;
        std::iter::from_fn(move || {
            let session = self.sessions.get(next)?;
            next = session.next;
            Some(session)
        })
    }

    /// The user's session on a device.
    pub fn session_on_device(&self, user: UserRef, device: u64) -> Option<&Session> {
        self.sessions_of(user).find(|s| s.device == device)
    }

    pub fn session(&self, edge: EdgeKey, handle: u64) -> Option<&Session> {
        self.sessions.get(self.index(edge, handle)?)
    }

    fn index(&self, edge: EdgeKey, handle: u64) -> Option<u32> {
        let entry = self.edges.get(&edge)?;
        entry
            .by_handle
            .find(self.hash, handle, |i| self.sessions[i].handle)
    }

    /// Registers a session of an attached edge, under a handle that is not in use.
    pub fn open(&mut self, edge: EdgeKey, handle: u64, user: UserRef, device: u64, began: Began) {
        let Some(entry) = self.edges.get_mut(&edge) else {
            return;
        };
        let index = self.sessions.insert(Session {
            handle,
            device,
            user,
            edge,
            next: self.users[user.index()].first,
            began_and_awaits: began.0 << 1,
        });
        let sessions = &self.sessions;
        entry
            .by_handle
            .insert(self.hash, handle, index, |i| sessions[i].handle);
        self.users[user.index()].first = index;
        self.retain(user);
        self.rosters
            .session_opened(user, SessionRef { edge, handle });
    }

    /// Takes a session out. `false`: there is none.
    pub fn close(&mut self, edge: EdgeKey, handle: u64) -> bool {
        let Some(entry) = self.edges.get_mut(&edge) else {
            return false;
        };
        let sessions = &self.sessions;
        let removed = entry
            .by_handle
            .remove(self.hash, handle, |i| sessions[i].handle);
        let Some(index) = removed else {
            return false;
        };
        self.unlink(index);
        true
    }

    /// Marks a session as one that awaits hints. Gives its user if no other session of theirs does.
    pub fn await_hints(&mut self, edge: EdgeKey, handle: u64) -> Option<UserRef> {
        let index = self.index(edge, handle)?;
        let user = self.sessions[index].user;
        let is_first = !self.sessions_of(user).any(Session::awaits_hints);
        self.sessions[index].began_and_awaits |= Session::AWAITS_HINTS;
        is_first.then_some(user)
    }

    /// The user's sessions that await hints, no longer marked, and the earliest time from which
    /// their edges may have missed something.
    pub fn take_awaiting_hints(&mut self, user: UserRef) -> (Vec<SessionRef>, ResumePoint) {
        let mut found = Vec::new();
        let mut resume = ResumePoint {
            from_ms: u64::MAX,
            is_here: true,
        };
        let mut next = self.users[user.index()].first;
        while let Some(session) = self.sessions.get_mut(next) {
            next = session.next;
            if session.awaits_hints() {
                session.began_and_awaits &= !Session::AWAITS_HINTS;
                found.push(SessionRef {
                    edge: session.edge,
                    handle: session.handle,
                });
                let edge = self.edges.get(&session.edge);
                let unknown = ResumePoint {
                    from_ms: 0,
                    is_here: false,
                };
                resume = resume.and(edge.map_or(unknown, |e| e.resume));
            }
        }
        (found, resume)
    }

    fn unlink(&mut self, index: u32) {
        let Some(session) = self.sessions.remove(index) else {
            return;
        };
        self.rosters.session_closed(session.user, session.at());
        let user = &mut self.users[session.user.index()];
        if user.first == index {
            user.first = session.next;
        } else {
            let mut at = user.first;
            while let Some(newer) = self.sessions.get_mut(at) {
                if newer.next == index {
                    newer.next = session.next;
                    break;
                }
                at = newer.next;
            }
        }
        self.release(session.user);
    }

    /// A member of the conversation that has this roster came or went.
    pub fn change_roster(&mut self, roster: u64, user: UserRef, came: bool) {
        let sessions: Vec<SessionRef> = self.sessions_of(user).map(Session::at).collect();
        if came {
            self.rosters
                .member_joined(roster, user, sessions.into_iter());
        } else {
            self.rosters.member_left(roster, user, sessions.into_iter());
        }
    }

    // ---- edges ----

    /// Takes an edge in; older streams of the same edge id leave with all their sessions.
    pub fn attach(&mut self, edge: EdgeKey, hello: EdgeHello, resumes_here: bool) {
        let older: Vec<EdgeKey> = self
            .edges
            .iter()
            .filter(|(key, e)| **key == edge || e.id == hello.edge_id)
            .map(|(key, _)| *key)
            .collect();
        for key in older {
            self.detach(key);
        }
        self.edges.insert(
            edge,
            Edge {
                rate: Rate::new(hello.send_rate, hello.send_burst),
                sessions_per_user_max: hello.sessions_per_user_max,
                resume: ResumePoint {
                    from_ms: hello.resume_from_ms,
                    is_here: resumes_here,
                },
                id: hello.edge_id,
                by_handle: Handles::new(),
                settled: 0,
            },
        );
    }

    /// Takes an edge out with all its sessions. `false`: there is none.
    pub fn detach(&mut self, edge: EdgeKey) -> bool {
        let Some(entry) = self.edges.remove(&edge) else {
            return false;
        };
        self.rosters.edge_gone(edge);
        let mut indexes: Vec<u32> = entry.by_handle.iter().collect();
        // Freed in an order that does not hang on the table's.
        indexes.sort_unstable();
        for index in indexes {
            self.unlink(index);
        }
        true
    }

    pub fn edge(&self, edge: EdgeKey) -> Option<&Edge> {
        self.edges.get(&edge)
    }

    /// Counts one operation of an edge as dealt with.
    pub fn settle(&mut self, edge: EdgeKey) {
        if let Some(entry) = self.edges.get_mut(&edge) {
            if entry.settled == 0 {
                self.touched.push(edge);
            }
            entry.settled += 1;
        }
    }

    /// What was settled since the last call, by edge.
    pub fn take_settled(&mut self) -> Vec<(EdgeKey, u32)> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched
            .into_iter()
            .filter_map(|key| {
                let settled = std::mem::take(&mut self.edges.get_mut(&key)?.settled);
                (settled > 0).then_some((key, settled))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a user with an id of 16 bytes and one session, whatever their number.
    const BYTES_MAX: usize = 128;

    #[test]
    fn a_user_with_one_session_keeps_to_the_budget_at_every_size() {
        let mut registry = Registry::new(Seeded(5), RosterBounds::default());
        let edge = EdgeKey(1);
        registry.attach(edge, EdgeHello::default(), false);
        let mut largest = 0;
        for n in 0..300_000_u32 {
            let user = registry.intern(&format!("user-{n:011}"));
            let handle = trunkline_proto::ports::Handle {
                shard: (n % 2) as u8,
                slot: n / 2,
                generation: 1,
            };
            let began = Began::before(0, 0);
            registry.open(edge, handle.to_u64(), user, u64::from(n), began);
            registry.sweep(0);
            if n >= 20_000 && n.is_multiple_of(500) {
                largest = largest.max(registry.bytes().total() as usize / n as usize);
            }
        }
        println!("at most {largest} bytes; in the end {:?}", registry.bytes());
        assert!(largest <= BYTES_MAX, "{largest} bytes");
        assert!(
            largest <= RegisteredSession::of_this_build().total() + 4,
            "{largest} bytes"
        );
        assert_eq!(registry.counts(), (1, 300_000, 300_000));
        assert!(registry.detach(edge));
        assert_eq!(registry.counts().1, 0);
    }
}
