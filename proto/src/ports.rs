//! The seam between the tiers inside a process: what an edge and a core are to one another. The
//! gRPC stream implements both over a network; in `serve` the two meet directly. Either way the
//! same batches pass, in order, and credit bounds what is under way.

use std::sync::Mutex;

use crate::link::{CoreBatch, EdgeBatch, EdgeOp};

/// A core, as an edge sees it. Submitting never blocks: credit bounds what waits behind it.
pub trait CorePort: Send + Sync {
    /// Hands over operations, in the order in which they happened.
    fn submit(&self, batch: EdgeBatch);

    /// An empty list for the next operations: one of those that were handed over, where they come
    /// back.
    fn list(&self) -> Vec<EdgeOp> {
        Vec::new()
    }
}

/// Lists of operations that were dealt with, on their way back to the shards that fill them: so
/// neither side allocates for a batch.
#[derive(Debug)]
pub struct OpLists(Mutex<Vec<Vec<EdgeOp>>>);

impl Default for OpLists {
    /// With some lists from the start, so that how many are under way at once is not found out one
    /// by one under load.
    fn default() -> Self {
        let mut lists = Vec::with_capacity(Self::LISTS_MAX);
        lists.resize_with(Self::LISTS_FIRST, || Vec::with_capacity(Self::OPS_FIRST));
        Self(Mutex::new(lists))
    }
}

impl OpLists {
    /// Lists that wait to be filled again; one more is freed.
    pub const LISTS_MAX: usize = 64;
    /// Operations that a list which waits has room for; a longer one is freed.
    pub const OPS_MAX: usize = 4_096;
    /// Lists at the beginning.
    const LISTS_FIRST: usize = 16;
    /// Operations that a new list has room for.
    const OPS_FIRST: usize = 256;

    /// An empty list.
    pub fn take(&self) -> Vec<EdgeOp> {
        let mut lists = self.0.lock().unwrap_or_else(|e| e.into_inner());
        lists
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(Self::OPS_FIRST))
    }

    /// Takes a list back; what is still in it is dropped.
    pub fn give(&self, mut list: Vec<EdgeOp>) {
        list.clear();
        if list.capacity() == 0 || list.capacity() > Self::OPS_MAX {
            return;
        }
        let mut lists = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if lists.len() < Self::LISTS_MAX {
            lists.push(list);
        }
    }
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
    fn lists_come_back_empty_and_within_bounds() {
        let lists = OpLists::default();
        let mut list = lists.take();
        list.push(EdgeOp::default());
        let place = list.as_ptr();
        lists.give(list);
        let list = lists.take();
        assert_eq!((list.len(), list.as_ptr()), (0, place));
        lists.give(Vec::with_capacity(OpLists::OPS_MAX + 1));
        assert!(lists.take().capacity() <= OpLists::OPS_MAX);
        for _ in 0..=OpLists::LISTS_MAX {
            lists.give(Vec::with_capacity(1));
        }
        assert_eq!(lists.0.lock().unwrap().len(), OpLists::LISTS_MAX);
    }

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
