//! The seam between the tiers inside a process: what an edge and a core are to one another. The
//! gRPC stream implements both over a network; in `serve` the two meet directly. Either way the
//! same batches pass, in order, and credit bounds what is under way.

use crate::link::{CoreBatch, EdgeBatch};

/// A core, as an edge sees it. Submitting never blocks: credit bounds what waits behind it.
pub trait CorePort: Send + Sync {
    /// Hands over operations, in the order in which they happened.
    fn submit(&self, batch: EdgeBatch);
}

/// An edge, as a core sees it. Delivering never blocks.
pub trait EdgePort: Send + Sync {
    /// Hands over replies and deliveries, in order.
    fn deliver(&self, batch: CoreBatch);

    /// The core gives this stream up (the edge grants no credit, or left the protocol). The edge
    /// attaches anew and announces its sessions.
    fn cut(&self, reason: &str);
}

/// A session's handle: the shard that holds it, its slot there, and the slot's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    pub shard: u8,
    /// Below 2^24.
    pub slot: u32,
    pub generation: u32,
}

impl Handle {
    /// Slots that a shard can have.
    pub const SLOTS_MAX: u32 = 1 << 24;

    /// On the wire: shard in the top byte, then 24 bits of slot, then the generation.
    pub const fn to_u64(self) -> u64 {
        (self.shard as u64) << 56 | (self.slot as u64 & 0xff_ffff) << 32 | self.generation as u64
    }

    /// From the wire.
    pub const fn from_u64(value: u64) -> Self {
        Self {
            shard: (value >> 56) as u8,
            slot: (value >> 32) as u32 & 0xff_ffff,
            generation: value as u32,
        }
    }
}

/// Operations that either side may have under way before the other grants more.
pub const CREDIT_INITIAL: u32 = 16_384;

/// Rosters that a core may have one edge keep, and handles in all of them together: 8 MiB.
pub const ROSTERS_MAX: usize = 4_096;
pub const ROSTER_HANDLES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_survives_the_wire() {
        let handle = Handle {
            shard: 255,
            slot: Handle::SLOTS_MAX - 1,
            generation: u32::MAX,
        };
        assert_eq!(Handle::from_u64(handle.to_u64()), handle);
        let handle = Handle {
            shard: 1,
            slot: 2,
            generation: 3,
        };
        assert_eq!(Handle::from_u64(handle.to_u64()), handle);
    }
}
