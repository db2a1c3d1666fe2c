//! Which partitions this core has, and how long it may say so.
//!
//! # Layout
//! - [`control`]: the statements that ownership is made of; [`statement`]: the same as values
//! - [`held`]: what this process holds at this moment, asked on every commit; [`clock`]: by which clock
//! - [`machine`]: one incarnation as a state machine; its parts: `enter`, `lease`, `peers`,
//!   `partitions`, `forget`
//! - [`balance`]: who should have which partition
//! - [`map`]: who has which partition, for edges and other cores
//! - [`driver`]: the task around the machine; [`events`]: what it and the runtime tell each other
//!
//! Invariants:
//! 1. A partition that [`held::Held`] says is held was taken by this incarnation under that epoch,
//!    the lease was valid when the clock was read, and nobody had been handed it.
//! 2. What is no longer held never comes back to the same incarnation under the same epoch.
//!
//! Called by the fenced store, which asks before it says that anything is committed, and by the
//! runtime, which tells the engine.

pub mod balance;
pub mod clock;
pub mod control;
pub mod driver;
mod enter;
pub mod events;
mod forget;
pub mod held;
mod lease;
pub mod machine;
pub mod map;
#[cfg(any(test, feature = "contract"))]
pub mod memory;
mod partitions;
mod peers;
pub mod settings;
pub mod statement;
pub mod stats;
#[cfg(test)]
mod tests;

use trunkline_proto::ids::ConversationId;
use xxhash_rust::xxh3::xxh3_64;

/// The partition of a conversation, or of anything else with a text for a name: users have theirs by
/// their ids. Part of the deployment's data: never to be changed.
pub fn partition_of(key: &[u8], partitions: u16) -> u16 {
    (xxh3_64(key) % u64::from(partitions.max(1))) as u16
}

/// The partition of a conversation: of the 16 bytes of its id.
pub fn partition_of_conversation(id: ConversationId, partitions: u16) -> u16 {
    partition_of(id.0.as_bytes(), partitions)
}
