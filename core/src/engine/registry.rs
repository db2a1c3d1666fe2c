//! Who is connected: users, their sessions, and the edges that hold these.
//!
//! Invariants:
//! 1. A user id is stored once; all else names it by [`UserRef`]. A ref stays valid while somebody
//!    retains it, and in any case until the turn ends.
//! 2. A session belongs to one user and one attached edge, and leaves with its edge.
//! 3. A user's limiter outlives its sessions until it is idle: to reconnect refills no bucket.
//!
//! Memory: a session is 32 bytes, a user 32 and its id, each with a table slot of about 8; devices
//! are kept as hashes. Nothing is allocated for a session beyond that.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashTable;
use trunkline_proto::gcra::{Gcra, Rate};
use trunkline_proto::link::EdgeHello;

use super::EdgeKey;
use super::hash::Seeded;
use super::reply::SessionRef;
use super::slab::{NONE, Slab};

/// A user, for as long as it is retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct UserRef(u32);

impl UserRef {
    /// A number that tells users apart.
    pub const fn number(self) -> u64 {
        self.0 as u64
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

    pub const fn began(&self) -> Began {
        Began(self.began_and_awaits >> 1)
    }

    const fn awaits_hints(&self) -> bool {
        self.began_and_awaits & Self::AWAITS_HINTS != 0
    }
}

/// An attached edge.
pub(super) struct Edge {
    id: String,
    pub rate: Rate,
    /// 0: no limit.
    pub sessions_per_user_max: u32,
    resume_from_ms: u64,
    by_handle: HashTable<u32>,
    /// Operations dealt with in this turn.
    settled: u32,
}

const _: () = assert!(size_of::<Session>() <= 32 && size_of::<User>() <= 32);

/// Users, sessions and edges.
pub(super) struct Registry {
    hash: Seeded,
    users: Slab<User>,
    by_name: HashTable<u32>,
    sessions: Slab<Session>,
    edges: BTreeMap<EdgeKey, Edge>,
    /// Users whom nobody held when they were queued.
    fading: VecDeque<UserRef>,
    /// Edges with something settled in this turn.
    touched: Vec<EdgeKey>,
}

impl Registry {
    pub fn new(hash: Seeded) -> Self {
        Self {
            hash,
            users: Slab::new(),
            by_name: HashTable::new(),
            sessions: Slab::new(),
            edges: BTreeMap::new(),
            fading: VecDeque::new(),
            touched: Vec::new(),
        }
    }

    pub fn counts(&self) -> (usize, usize, usize) {
        (self.edges.len(), self.sessions.len(), self.users.len())
    }

    // ---- users ----

    /// The user with this id, made known if need be.
    pub fn intern(&mut self, name: &str) -> UserRef {
        let hash = self.hash.text(name);
        let users = &self.users;
        if let Some(&index) = self.by_name.find(hash, |&i| &*users[i].name == name) {
            return UserRef(index);
        }
        let index = self.users.insert(User {
            name: name.into(),
            limiter: Gcra::default(),
            first: NONE,
            refs: FADING,
        });
        let (seed, users) = (self.hash, &self.users);
        self.by_name
            .insert_unique(hash, index, |&i| seed.text(&users[i].name));
        self.fading.push_back(UserRef(index));
        UserRef(index)
    }

    /// The user's id.
    pub fn name(&self, user: UserRef) -> &str {
        &self.users[user.0].name
    }

    pub fn retain(&mut self, user: UserRef) {
        self.users[user.0].refs += 1;
    }

    pub fn release(&mut self, user: UserRef) {
        let entry = &mut self.users[user.0];
        debug_assert!(entry.refs & !FADING > 0, "user released more than retained");
        entry.refs -= 1;
        if entry.refs == 0 {
            entry.refs = FADING;
            self.fading.push_back(user);
        }
    }

    /// Takes one send of `user` at `rate`, or says after how many ms to try again.
    pub fn take_send(&mut self, user: UserRef, rate: Rate, now_ns: u64) -> Result<(), u32> {
        self.users[user.0].limiter.take(rate, now_ns)
    }

    /// Forgets users whom nobody holds, some at a time. Called when a turn ends; stops at the first
    /// who has to be kept, so that it costs next to nothing when there is nothing to do.
    pub fn sweep(&mut self, now_ns: u64) {
        for _ in 0..SWEPT_PER_TURN_MAX {
            let Some(user) = self.fading.pop_front() else {
                return;
            };
            let entry = &mut self.users[user.0];
            if entry.refs != FADING {
                entry.refs &= !FADING;
                continue;
            }
            if !entry.limiter.is_idle(now_ns) {
                self.fading.push_back(user);
                break;
            }
            let hash = self.hash.text(&entry.name);
            if let Ok(found) = self.by_name.find_entry(hash, |&i| i == user.0) {
                found.remove();
            }
            self.users.remove(user.0);
        }
    }

    // ---- sessions ----

    /// The hash under which a user's device is known.
    pub fn device(&self, device_id: &str) -> u64 {
        self.hash.text(device_id)
    }

    /// The user's sessions, newest first.
    pub fn sessions_of(&self, user: UserRef) -> impl Iterator<Item = &Session> {
        let mut next = self.users[user.0].first;
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
        let index = entry.by_handle.find(self.hash.number(handle), |&i| {
            self.sessions[i].handle == handle
        })?;
        Some(*index)
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
            next: self.users[user.0].first,
            began_and_awaits: began.0 << 1,
        });
        let (seed, sessions) = (self.hash, &self.sessions);
        entry
            .by_handle
            .insert_unique(seed.number(handle), index, |&i| {
                seed.number(sessions[i].handle)
            });
        self.users[user.0].first = index;
        self.retain(user);
    }

    /// Takes a session out. `false`: there is none.
    pub fn close(&mut self, edge: EdgeKey, handle: u64) -> bool {
        let Some(entry) = self.edges.get_mut(&edge) else {
            return false;
        };
        let sessions = &self.sessions;
        let Ok(found) = entry
            .by_handle
            .find_entry(self.hash.number(handle), |&i| sessions[i].handle == handle)
        else {
            return false;
        };
        let (index, _) = found.remove();
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
    pub fn take_awaiting_hints(&mut self, user: UserRef) -> (Vec<SessionRef>, u64) {
        let mut found = Vec::new();
        let mut resume_from_ms = u64::MAX;
        let mut next = self.users[user.0].first;
        while let Some(session) = self.sessions.get_mut(next) {
            next = session.next;
            if session.awaits_hints() {
                session.began_and_awaits &= !Session::AWAITS_HINTS;
                found.push(SessionRef {
                    edge: session.edge,
                    handle: session.handle,
                });
                let edge = self.edges.get(&session.edge);
                resume_from_ms = resume_from_ms.min(edge.map_or(0, |e| e.resume_from_ms));
            }
        }
        (found, resume_from_ms)
    }

    fn unlink(&mut self, index: u32) {
        let Some(session) = self.sessions.remove(index) else {
            return;
        };
        let user = &mut self.users[session.user.0];
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

    // ---- edges ----

    /// Takes an edge in; older streams of the same edge id leave with all their sessions.
    pub fn attach(&mut self, edge: EdgeKey, hello: EdgeHello) {
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
                resume_from_ms: hello.resume_from_ms,
                id: hello.edge_id,
                by_handle: HashTable::new(),
                settled: 0,
            },
        );
    }

    /// Takes an edge out with all its sessions. `false`: there is none.
    pub fn detach(&mut self, edge: EdgeKey) -> bool {
        let Some(entry) = self.edges.remove(&edge) else {
            return false;
        };
        let mut indexes: Vec<u32> = entry.by_handle.iter().copied().collect();
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
