//! What the engine counts, for the metrics of the process that runs it.

use std::fmt;

use serde::Serialize;

/// Bytes that the only session of a user takes in the registry, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RegisteredSession {
    pub session: usize,
    /// From the edge's handle to the session.
    pub handle: usize,
    pub user: usize,
    /// The user's id, of [`RegisteredSession::ID_BYTES`].
    pub id: usize,
    /// From the user's id to the user, at the most.
    pub name: usize,
}

impl RegisteredSession {
    /// How long a user id is taken to be.
    pub const ID_BYTES: usize = 16;

    /// The sum.
    pub const fn total(self) -> usize {
        self.session + self.handle + self.user + self.id + self.name
    }
}

impl fmt::Display for RegisteredSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "session {} + handle {} + user {} + id of {} bytes {} + hash table {} = {} bytes",
            self.session,
            self.handle,
            self.user,
            Self::ID_BYTES,
            self.id,
            self.name,
            self.total()
        )
    }
}

/// Heap bytes of the registry, by part: what is allocated, used or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RegistryBytes {
    /// Sessions.
    pub sessions: u64,
    /// From an edge's handle to the session.
    pub handles: u64,
    /// Users, their ids apart.
    pub users: u64,
    /// Users' ids.
    pub ids: u64,
    /// From a user's id to the user.
    pub names: u64,
}

impl RegistryBytes {
    /// All of it.
    pub const fn total(&self) -> u64 {
        self.sessions + self.handles + self.users + self.ids + self.names
    }
}

/// Counters since the start and gauges of the present. Read at any time between turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    // ---- counters ----
    /// Messages that were given a seq.
    pub sends: u64,
    /// Acks that went out, duplicates among them.
    pub acks: u64,
    /// Sends recognised by their `client_msg_id`.
    pub duplicates: u64,
    /// Sends refused since their `client_msg_id` stands for other content.
    pub conflicts: u64,
    /// `Deliver` items of messages: one for each message and edge.
    pub delivery_items: u64,
    /// Sessions that these items were addressed to.
    pub delivery_handles: u64,
    /// Of the items, those that named a roster.
    pub roster_items: u64,
    /// Rosters dropped to make room.
    pub roster_evictions: u64,
    /// Watermarks that rose.
    pub receipts: u64,
    /// `receipt` items that went out.
    pub receipt_items: u64,
    /// Conversations that were asked of the store.
    pub loads: u64,
    /// Conversations that the store did not answer for, or not readably.
    pub load_failures: u64,
    /// Pages that were asked of the store.
    pub reads: u64,
    /// Pages answered from memory.
    pub reads_cached: u64,
    /// Commits that were begun, repeats not counted.
    pub commits: u64,
    /// Commits that were repeated since their outcome was unknown.
    pub commit_retries: u64,
    /// Messages that were committed.
    pub committed: u64,
    /// Sends refused with `rate_limited`.
    pub rate_limited: u64,
    /// Operations refused with `overloaded`.
    pub overloaded: u64,
    /// Errors answered to sessions and REST callers, of every code.
    pub errors: u64,
    /// Sessions closed since a newer one of the same device came.
    pub replaced: u64,
    /// `conversation` hints sent to sessions that were announced again.
    pub hints: u64,
    /// Operations refused since their conversation is another core's.
    pub foreign: u64,
    /// Commits of a conversation that another core had taken.
    pub fenced: u64,
    /// Calls and parts of syncs and lists that another core was asked for.
    pub asked: u64,
    /// Conversations that hints did not have to look at.
    pub hints_spared: u64,
    /// Conversations dropped from memory to make room.
    pub evictions: u64,
    /// Operations and tokens that named something gone.
    pub stale: u64,
    // ---- gauges ----
    /// Attached edges.
    pub edges: u64,
    /// Sessions in the registry.
    pub sessions: u64,
    /// Users that are known at present, with a session or not.
    pub users: u64,
    /// Memory of the registry.
    pub registry: RegistryBytes,
    /// Conversations whose recipients the edges keep.
    pub rosters: u64,
    /// Handles in these.
    pub roster_handles: u64,
    /// Conversations in memory.
    pub conversations: u64,
    /// Entries of all dedup windows.
    pub dedup_entries: u64,
    /// Operations in the batch that the next commit takes.
    pub operations_open: u64,
    /// Operations that wait for a conversation to be loaded.
    pub operations_waiting: u64,
}
