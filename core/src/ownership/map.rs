//! Which core has which partition, as cores tell edges and each other.
//!
//! Invariants:
//! 1. The epoch of a partition never falls, whatever is merged in whatever order.
//! 2. A core that was once seen dead is never alive again.
//!
//! Without I/O: kept by the ownership machine, merged by everybody who gets maps from several cores.

use uuid::Uuid;

/// A core that the map names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapCore {
    pub incarnation: Uuid,
    /// `http://host:port` of its gRPC address.
    pub address: String,
    pub alive: bool,
}

/// Who has a partition, as far as the map knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Index into [`PartitionMap::cores`]; `None`: nobody, or a core that the map does not know.
    pub owner: Option<u16>,
    /// 0: nothing is known.
    pub epoch: u64,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionMap {
    /// Rises whenever this copy changes. Not comparable between copies.
    pub version: u64,
    /// By partition.
    pub partitions: Vec<Slot>,
    /// Ascending by incarnation. The living, and the dead that are still named or listed.
    pub cores: Vec<MapCore>,
}

impl PartitionMap {
    /// One that knows nothing yet.
    pub fn new(partitions: u16) -> Self {
        Self {
            version: 0,
            partitions: vec![Slot::default(); usize::from(partitions)],
            cores: Vec::new(),
        }
    }

    /// Who has a partition and is not known to be dead, and its epoch.
    pub fn owner(&self, partition: u16) -> Option<(&MapCore, u64)> {
        let slot = self.partitions.get(usize::from(partition))?;
        let core = self.cores.get(usize::from(slot.owner?))?;
        core.alive.then_some((core, slot.epoch))
    }

    /// The epoch of a partition; 0: nothing is known.
    pub fn epoch(&self, partition: u16) -> u64 {
        self.partitions
            .get(usize::from(partition))
            .map_or(0, |slot| slot.epoch)
    }

    /// The cores that are not known to be dead.
    pub fn living(&self) -> impl Iterator<Item = &MapCore> {
        self.cores.iter().filter(|core| core.alive)
    }

    /// Takes over what another copy knows better: higher epochs, new cores, deaths. Cores that are
    /// dead, own nothing and are no longer listed by the other are dropped. Returns whether this
    /// copy changed. A copy for another number of partitions is refused: nothing changes.
    pub fn merge(&mut self, news: &Self) -> bool {
        if news.partitions.len() != self.partitions.len() {
            return false;
        }
        let mut changed = false;
        for core in &news.cores {
            changed |= self.learn_core(core.incarnation, &core.address, core.alive);
        }
        for (partition, slot) in news.partitions.iter().enumerate() {
            let owner = slot.owner.and_then(|at| news.cores.get(usize::from(at)));
            let owner = owner.map(|core| core.incarnation);
            changed |= self.learn(partition as u16, owner, slot.epoch);
        }
        changed |= self.drop_dead(|core| news.index(core).is_none());
        self.version += u64::from(changed);
        changed
    }

    /// Learns who has a partition. An epoch that is not higher changes nothing, but names an owner
    /// that was not known before. Does not count the version.
    pub(super) fn learn(&mut self, partition: u16, owner: Option<Uuid>, epoch: u64) -> bool {
        let owner = owner.and_then(|core| self.index(core));
        let Some(slot) = self.partitions.get_mut(usize::from(partition)) else {
            return false;
        };
        let better =
            epoch > slot.epoch || (epoch == slot.epoch && slot.owner.is_none() && owner.is_some());
        if better {
            *slot = Slot { owner, epoch };
        }
        better
    }

    /// Learns of a core. Does not count the version.
    pub(super) fn learn_core(&mut self, incarnation: Uuid, address: &str, alive: bool) -> bool {
        match self.position(incarnation) {
            Ok(at) => {
                let died = self.cores[at].alive && !alive;
                self.cores[at].alive &= alive;
                died
            }
            // Owners are numbered by 16 bits; far more cores than partitions have no use.
            Err(_) if self.cores.len() >= usize::from(u16::MAX) => false,
            Err(at) => {
                for slot in &mut self.partitions {
                    slot.owner = slot.owner.map(|o| o + u16::from(usize::from(o) >= at));
                }
                let core = MapCore {
                    incarnation,
                    address: address.to_owned(),
                    alive,
                };
                self.cores.insert(at, core);
                true
            }
        }
    }

    /// Drops dead cores that own nothing and that `gone` says may go.
    pub(super) fn drop_dead(&mut self, gone: impl Fn(Uuid) -> bool) -> bool {
        let mut named = vec![false; self.cores.len()];
        for owner in self.partitions.iter().filter_map(|slot| slot.owner) {
            named[usize::from(owner)] = true;
        }
        let mut now_at = vec![None; self.cores.len()];
        let mut kept = Vec::with_capacity(self.cores.len());
        for (at, core) in self.cores.drain(..).enumerate() {
            if core.alive || named[at] || !gone(core.incarnation) {
                now_at[at] = Some(kept.len() as u16);
                kept.push(core);
            }
        }
        let dropped = kept.len() < now_at.len();
        self.cores = kept;
        if dropped {
            for slot in &mut self.partitions {
                slot.owner = slot.owner.and_then(|o| now_at[usize::from(o)]);
            }
        }
        dropped
    }

    fn position(&self, incarnation: Uuid) -> Result<usize, usize> {
        self.cores
            .binary_search_by_key(&incarnation, |core| core.incarnation)
    }

    fn index(&self, incarnation: Uuid) -> Option<u16> {
        self.position(incarnation).ok().map(|at| at as u16)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn core(n: u8) -> Uuid {
        Uuid::from_bytes([n; 16])
    }

    fn map(cores: &[(u8, bool)], owners: &[(u8, u64)]) -> PartitionMap {
        let mut map = PartitionMap::new(owners.len() as u16);
        for (n, alive) in cores {
            map.learn_core(core(*n), &format!("http://c{n}"), *alive);
        }
        for (p, (n, epoch)) in owners.iter().enumerate() {
            map.learn(p as u16, Some(core(*n)), *epoch);
        }
        map
    }

    fn owners(map: &PartitionMap) -> Vec<(Option<Uuid>, u64)> {
        let named = |slot: &Slot| slot.owner.map(|o| map.cores[usize::from(o)].incarnation);
        let slots = map.partitions.iter();
        slots.map(|slot| (named(slot), slot.epoch)).collect()
    }

    #[test]
    fn a_lower_epoch_is_dropped_and_a_higher_one_taken() {
        let mut mine = map(&[(3, true)], &[(3, 5), (3, 1)]);
        assert!(mine.merge(&map(&[(1, true), (3, true)], &[(1, 4), (1, 2)])));
        assert_eq!(owners(&mine), [(Some(core(3)), 5), (Some(core(1)), 2)]);
        assert_eq!(mine.version, 1);
        assert!(!mine.merge(&map(&[(1, true)], &[(1, 4), (1, 2)])));
        assert_eq!(mine.version, 1);
        assert_eq!(mine.epoch(0), 5);
        assert_eq!(
            mine.owner(1).map(|(c, e)| (c.address.as_str(), e)),
            Some(("http://c1", 2))
        );
    }

    #[test]
    fn the_dead_stay_dead_and_go_when_nobody_names_them() {
        let mut mine = map(&[(1, true), (2, true)], &[(1, 1), (2, 1)]);
        assert!(mine.merge(&map(&[(1, false)], &[(2, 0), (2, 0)])));
        assert!(mine.owner(0).is_none(), "its owner is dead");
        assert!(!mine.merge(&map(&[(1, true)], &[(1, 0), (1, 0)])));
        assert!(mine.owner(0).is_none());
        // Still named by partition 0.
        assert!(!mine.merge(&map(&[(2, true)], &[(2, 0), (2, 0)])));
        assert_eq!(mine.cores.len(), 2);
        assert!(mine.merge(&map(&[(2, true)], &[(2, 2), (2, 1)])));
        assert_eq!(mine.cores.len(), 1);
        assert_eq!(owners(&mine), [(Some(core(2)), 2), (Some(core(2)), 1)]);
    }

    #[test]
    fn an_owner_that_was_not_known_is_named_later() {
        let mut mine = map(&[], &[(7, 3)]);
        assert_eq!(
            mine.partitions[0],
            Slot {
                owner: None,
                epoch: 3
            }
        );
        assert!(mine.merge(&map(&[(7, true)], &[(7, 3)])));
        assert_eq!(owners(&mine), [(Some(core(7)), 3)]);
    }

    #[test]
    fn another_number_of_partitions_changes_nothing() {
        let mut mine = map(&[(1, true)], &[(1, 1)]);
        let before = mine.clone();
        assert!(!mine.merge(&map(&[(1, false)], &[(1, 9), (1, 9)])));
        assert_eq!(mine, before);
    }

    /// Who has a partition at an epoch is decided once: maps agree on it.
    fn a_map() -> impl Strategy<Value = PartitionMap> {
        let epochs = prop::collection::vec(0..6_u64, 4);
        let alive = prop::collection::vec(any::<bool>(), 5);
        (epochs, alive).prop_map(|(epochs, alive)| {
            let cores: Vec<(u8, bool)> = (0_u8..).zip(alive).collect();
            let owner = |p: usize, e: u64| ((p as u64 * 7 + e * 3) % 5) as u8;
            let slots: Vec<(u8, u64)> = epochs
                .iter()
                .enumerate()
                .map(|(p, e)| (owner(p, *e), *e))
                .collect();
            map(&cores, &slots)
        })
    }

    proptest! {
        #[test]
        fn maps_merge_to_the_same_in_any_order(maps in prop::collection::vec(a_map(), 1..6)) {
            let merged = |maps: &mut dyn Iterator<Item = &PartitionMap>| {
                let mut all = PartitionMap::new(4);
                for map in maps {
                    let before = all.clone();
                    let changed = all.merge(map);
                    assert_eq!(changed, owners(&before) != owners(&all) || before.cores != all.cores);
                    for p in 0..4 {
                        assert!(all.epoch(p) >= before.epoch(p));
                    }
                }
                all
            };
            let forwards = merged(&mut maps.iter());
            let backwards = merged(&mut maps.iter().rev());
            prop_assert_eq!(owners(&forwards), owners(&backwards));
            prop_assert_eq!(forwards.cores, backwards.cores);
        }
    }
}
