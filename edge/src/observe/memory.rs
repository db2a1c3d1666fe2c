//! What an edge's connections cost in user memory: the sum for an idle one, from the sizes of the
//! types themselves, and what the shards really hold.

use std::fmt;

use serde::Serialize;

use crate::ring;
use crate::session::Shard;

/// User bytes of one idle session, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct IdleSession {
    /// In the driver's table of connections.
    pub driver_slot: usize,
    /// In the shard's.
    pub session_slot: usize,
    /// In the timer wheel.
    pub timer: usize,
    /// Its ids, of [`IdleSession::IDS_BYTES`] together.
    pub ids: usize,
}

impl IdleSession {
    /// How long user id and device id together are taken to be.
    pub const IDS_BYTES: usize = 20;

    /// As the types are.
    pub const fn of_this_build() -> Self {
        Self {
            driver_slot: ring::SLOT_BYTES,
            session_slot: Shard::SLOT_BYTES,
            timer: Shard::TIMER_BYTES,
            ids: Shard::identity_bytes(Self::IDS_BYTES, 0),
        }
    }

    /// The sum.
    pub const fn total(self) -> usize {
        self.driver_slot + self.session_slot + self.timer + self.ids
    }
}

const _: () = assert!(
    IdleSession::of_this_build().total() <= 112,
    "a million sessions: each byte here is a megabyte; what the tables leave free comes on top"
);

impl fmt::Display for IdleSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "driver slot {} + session slot {} + timer {} + ids of {} bytes {} = {} bytes",
            self.driver_slot,
            self.session_slot,
            self.timer,
            Self::IDS_BYTES,
            self.ids,
            self.total()
        )
    }
}

/// User memory that an edge's shards hold, in bytes: what is allocated, whether in use or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// In any state.
    pub connections: u64,
    /// The shards' tables of connections.
    pub slots_bytes: u64,
    /// The drivers' tables of connections.
    pub driver_slots_bytes: u64,
    /// Ids, and addresses that are no IPv4 ones.
    pub identities_bytes: u64,
    /// Timer wheels.
    pub timers_bytes: u64,
    /// Limiters of addresses.
    pub addresses_bytes: u64,
    /// What is owed to sockets that do not keep up.
    pub outboxes_bytes: u64,
    /// The log of connections that have ended.
    pub closed_bytes: u64,
    /// Receive buffers; those never used are address space only.
    pub receive_buffers_bytes: u64,
    /// The drivers' queues, those shared with the kernel among them.
    pub queues_bytes: u64,
}

impl Memory {
    /// What grows with the connections.
    pub const fn of_connections(&self) -> u64 {
        self.slots_bytes
            + self.driver_slots_bytes
            + self.identities_bytes
            + self.timers_bytes
            + self.outboxes_bytes
    }

    /// All of it.
    pub const fn total(&self) -> u64 {
        self.of_connections()
            + self.addresses_bytes
            + self.closed_bytes
            + self.receive_buffers_bytes
            + self.queues_bytes
    }
}

/// The page `/debug/memory`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryPage {
    /// One idle session, by the types.
    idle_session: IdleSession,
    idle_session_bytes: usize,
    #[serde(flatten)]
    held: Memory,
    total_bytes: u64,
    /// What grows with the connections, for each that there is.
    bytes_per_connection: u64,
}

impl From<Memory> for MemoryPage {
    fn from(held: Memory) -> Self {
        let idle_session = IdleSession::of_this_build();
        Self {
            idle_session,
            idle_session_bytes: idle_session.total(),
            held,
            total_bytes: held.total(),
            bytes_per_connection: held
                .of_connections()
                .checked_div(held.connections)
                .unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_readable_and_adds_up() {
        let idle = IdleSession::of_this_build();
        let text = idle.to_string();
        let parts = [idle.driver_slot, idle.session_slot, idle.timer, idle.ids];
        for part in parts.into_iter().chain([idle.total()]) {
            assert!(text.contains(&format!(" {part}")), "{text}");
        }
        assert_eq!(parts.iter().sum::<usize>(), idle.total());
    }
}
