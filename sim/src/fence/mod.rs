//! The fenced store on replicas that lose, delay and reorder, under cores that stop, die, lapse and
//! hand over: the product's own [`FencedStore`](trunkline_core::store::fenced::FencedStore), driven
//! by hand in virtual time from one seed, and a checker of what the protocol promises.
//!
//! # Layout
//! - [`plan`]: what a seed stands for
//! - [`clockwork`]: futures in virtual time
//! - [`replicas`], [`net`], [`rows`]: the tables, and the way to them
//! - [`world`]: machines, leases, partitions, misfortunes
//! - [`life`]: a core process, with as much of an engine as the store needs
//! - [`clients`]: people, and the end of a run
//! - [`check`]: the promises
//! - [`defects`]: what can be taken out, to see that the checker notices
//! - [`runs`]: many seeds
//!
//! # Invariants
//! Those of the crate: one seed is one run, the checker changes nothing, a run ends.

pub mod check;
pub mod clients;
pub mod clockwork;
pub mod defects;
pub mod life;
pub mod net;
pub mod plan;
pub mod replicas;
pub mod rows;
pub mod runs;
pub mod world;

use self::plan::PARTITIONS;
use trunkline_core::ownership::partition_of_conversation;
use trunkline_proto::ids::ConversationId;

/// The conversations by number, in one partition after the other.
pub fn conversation(number: u128) -> ConversationId {
    let id = |salt: u128| ConversationId::from_bytes((number | salt << 64).to_be_bytes());
    let is_there = |id: &ConversationId| {
        u128::from(partition_of_conversation(*id, PARTITIONS)) == number % u128::from(PARTITIONS)
    };
    (0..64).map(id).find(is_there).unwrap_or(id(0))
}
