//! Lists of recipients that the core keeps here for busy conversations, split by shard already: a
//! delivery to one takes a reference for each shard, whatever the number of recipients. They are
//! not split by encoding, since a delivery reads each recipient's slot anyway.
//!
//! Invariants:
//! 1. The rosters of one attachment: the next one begins with none.
//! 2. A delivery names the version it is meant for. What is not here in just this version is an
//!    error, upon which the attachment is given up: the next one hints all sessions. It is never
//!    skipped.
//! 3. At most [`ROSTERS_MAX`] rosters and [`ROSTER_HANDLES_MAX`] handles. The core keeps within them by
//!    dropping the least recently used; beyond them the attachment is given up.
//!
//! Called by the router.

use std::collections::HashMap;
use std::sync::Arc;

use trunkline_proto::link::Roster as Change;
use trunkline_proto::ports::{Handle, ROSTER_HANDLES_MAX, ROSTERS_MAX};

/// Why an attachment with rosters cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    #[error(
        "roster {id} is not here in version {version}: run edges and cores of the same release"
    )]
    Unknown { id: u64, version: u64 },
    #[error("more rosters than an edge keeps: run edges and cores of the same release")]
    TooMany,
}

/// The handles of one shard, ascending, so that slots are gone through in their order.
pub type ShardHandles = Arc<Vec<u64>>;

struct Roster {
    version: u64,
    handles: usize,
    parts: Box<[ShardHandles]>,
}

/// See the module.
pub struct Rosters {
    shards: usize,
    all: HashMap<u64, Roster>,
    handles: usize,
}

impl Rosters {
    /// None yet.
    pub fn new(shards: usize) -> Self {
        Self {
            shards,
            all: HashMap::new(),
            handles: 0,
        }
    }

    /// Of how many shards handles are kept.
    pub const fn shards(&self) -> usize {
        self.shards
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Handles in all of them, of 8 bytes each.
    pub const fn handles(&self) -> usize {
        self.handles
    }

    /// Takes a new roster in, or a change to one. Handles of shards that do not exist are left out.
    pub fn change(&mut self, change: Change) -> Result<(), RosterError> {
        let (id, version) = (change.roster_id, change.version);
        if version == 1 {
            if self.all.len() >= ROSTERS_MAX {
                return Err(RosterError::TooMany);
            }
            self.drop_roster(id);
            let roster = Roster {
                version: 0,
                handles: 0,
                parts: (0..self.shards).map(|_| Arc::default()).collect(),
            };
            self.all.insert(id, roster);
        }
        let roster = self.all.get_mut(&id);
        let roster = roster
            .filter(|r| r.version + 1 == version)
            .ok_or(RosterError::Unknown { id, version })?;
        roster.version = version;
        self.handles -= roster.handles;
        roster.take_out(change.left);
        roster.put_in(change.joined);
        roster.handles = roster.parts.iter().map(|part| part.len()).sum();
        self.handles += roster.handles;
        if self.handles > ROSTER_HANDLES_MAX {
            return Err(RosterError::TooMany);
        }
        Ok(())
    }

    /// The recipients, by shard, of a delivery to this version of a roster.
    pub fn recipients(&self, id: u64, version: u64) -> Result<&[ShardHandles], RosterError> {
        let roster = self.all.get(&id).filter(|r| r.version == version);
        let roster = roster.ok_or(RosterError::Unknown { id, version })?;
        Ok(&roster.parts)
    }

    /// Forgets a roster. One that is not here is forgotten already.
    pub fn drop_roster(&mut self, id: u64) {
        if let Some(roster) = self.all.remove(&id) {
            self.handles -= roster.handles;
        }
    }
}

impl Roster {
    fn take_out(&mut self, mut left: Vec<u64>) {
        left.sort_unstable();
        // The shard is the highest byte of a handle.
        for handles in left.chunk_by(|a, b| shard_of(*a) == shard_of(*b)) {
            if let Some(part) = self.parts.get_mut(shard_of(handles[0])) {
                Arc::make_mut(part).retain(|handle| handles.binary_search(handle).is_err());
            }
        }
    }

    fn put_in(&mut self, mut joined: Vec<u64>) {
        joined.sort_unstable();
        for handles in joined.chunk_by(|a, b| shard_of(*a) == shard_of(*b)) {
            if let Some(part) = self.parts.get_mut(shard_of(handles[0])) {
                let part = Arc::make_mut(part);
                part.extend_from_slice(handles);
                // Two ascending runs are merged in one pass.
                part.sort();
                part.dedup();
            }
        }
    }
}

fn shard_of(handle: u64) -> usize {
    usize::from(Handle::from_u64(handle).shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(shard: u8, slot: u32) -> u64 {
        Handle {
            shard,
            slot,
            generation: 1,
        }
        .to_u64()
    }

    fn change(id: u64, version: u64, left: &[u64], joined: &[u64]) -> Change {
        Change {
            roster_id: id,
            version,
            joined: joined.to_vec(),
            left: left.to_vec(),
        }
    }

    #[test]
    fn changes_reach_the_shard_that_they_are_about() {
        let mut rosters = Rosters::new(2);
        let (a, b, c, d) = (handle(0, 3), handle(1, 1), handle(1, 7), handle(0, 2));
        // Shard 9 does not exist.
        let first = change(5, 1, &[], &[a, c, b, handle(9, 1)]);
        rosters.change(first).unwrap();
        let kept = rosters.recipients(5, 1).unwrap()[1].clone();
        assert_eq!(*kept, [b, c]);
        assert_eq!(rosters.handles(), 3);
        rosters.change(change(5, 2, &[b, a], &[d])).unwrap();
        let parts = rosters.recipients(5, 2).unwrap();
        assert_eq!((&**parts[0], &**parts[1]), (&[d][..], &[c][..]));
        assert_eq!(*kept, [b, c], "what is under way stays as it was");
        assert_eq!((rosters.len(), rosters.handles()), (1, 2));
        rosters.drop_roster(5);
        assert_eq!((rosters.len(), rosters.handles()), (0, 0));
    }

    #[test]
    fn nothing_but_the_named_version_is_delivered_to() {
        let mut rosters = Rosters::new(1);
        let unknown = |version| Some(RosterError::Unknown { id: 1, version });
        assert_eq!(rosters.recipients(1, 1).err(), unknown(1));
        assert_eq!(rosters.change(change(1, 2, &[], &[3])).err(), unknown(2));
        rosters.change(change(1, 1, &[], &[3])).unwrap();
        assert_eq!(rosters.recipients(1, 2).err(), unknown(2));
        assert_eq!(rosters.change(change(1, 3, &[3], &[])).err(), unknown(3));
        rosters.change(change(1, 2, &[3], &[])).unwrap();
        assert_eq!(rosters.recipients(1, 1).err(), unknown(1));
        rosters.drop_roster(1);
        assert_eq!(rosters.recipients(1, 2).err(), unknown(2));
    }

    #[test]
    fn a_core_that_keeps_no_bounds_is_refused() {
        let mut rosters = Rosters::new(1);
        for id in 0..ROSTERS_MAX as u64 {
            rosters.change(change(id, 1, &[], &[id])).unwrap();
        }
        let one_more = change(ROSTERS_MAX as u64, 1, &[], &[1]);
        assert_eq!(rosters.change(one_more), Err(RosterError::TooMany));
        let many: Vec<u64> = (0..=ROSTER_HANDLES_MAX as u64).collect();
        let too_many = change(0, 2, &[], &many);
        assert_eq!(rosters.change(too_many), Err(RosterError::TooMany));
    }
}
