//! From a session's handle to its place in the registry, for the sessions of one edge.
//!
//! A handle names the session's slot on its edge (`trunkline_proto::ports::Handle`), and slots are
//! dense: so this is an index, four bytes for a session, in pages of their own that growing never
//! copies. The generation in a handle is not looked at here: the caller compares the whole handle.
//! Should two sessions claim one slot, the later is kept in a hash table beside the index.

use hashbrown::HashTable;
use trunkline_proto::ports::Handle;

use super::hash::Seeded;
use super::slab::NONE;

/// Slots of a page, 4 KiB.
const PAGE: usize = 1_024;

type Page = Box<[u32]>;

/// See the module.
pub(super) struct Handles {
    /// By shard, then by slot.
    shards: Vec<Vec<Option<Page>>>,
    pages: usize,
    /// Those whose place in the index is another's.
    displaced: HashTable<u32>,
}

impl Handles {
    /// Bytes of an entry.
    pub const ENTRY_BYTES: usize = size_of::<u32>();

    pub const fn new() -> Self {
        Self {
            shards: Vec::new(),
            pages: 0,
            displaced: HashTable::new(),
        }
    }

    /// The session with this handle; `handle_of` tells the handle of each that is in here.
    pub fn find(&self, hash: Seeded, handle: u64, handle_of: impl Fn(u32) -> u64) -> Option<u32> {
        let at = self.place(handle).copied().unwrap_or(NONE);
        if at != NONE && handle_of(at) == handle {
            return Some(at);
        }
        let found = self
            .displaced
            .find(hash.number(handle), |&i| handle_of(i) == handle);
        found.copied()
    }

    /// Takes in a session whose handle is not in here.
    pub fn insert(
        &mut self,
        hash: Seeded,
        handle: u64,
        index: u32,
        handle_of: impl Fn(u32) -> u64,
    ) {
        let place = self.place_or_page(handle);
        if *place == NONE {
            *place = index;
        } else {
            self.displaced
                .insert_unique(hash.number(handle), index, |&i| hash.number(handle_of(i)));
        }
    }

    /// Takes a session out.
    pub fn remove(
        &mut self,
        hash: Seeded,
        handle: u64,
        handle_of: impl Fn(u32) -> u64,
    ) -> Option<u32> {
        if let Some(place) = self.place_mut(handle)
            && *place != NONE
            && handle_of(*place) == handle
        {
            return Some(std::mem::replace(place, NONE));
        }
        let found = self
            .displaced
            .find_entry(hash.number(handle), |&i| handle_of(i) == handle);
        found.ok().map(|entry| entry.remove().0)
    }

    /// All that is in here, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let pages = self.shards.iter().flatten().flatten();
        let indexed = pages.flat_map(|page| page.iter().copied());
        indexed
            .filter(|&i| i != NONE)
            .chain(self.displaced.iter().copied())
    }

    /// Heap bytes held.
    pub fn bytes(&self) -> usize {
        let lists: usize = self.shards.iter().map(Vec::capacity).sum();
        self.pages * PAGE * size_of::<u32>()
            + lists * size_of::<Option<Page>>()
            + self.displaced.allocation_size()
    }

    fn place(&self, handle: u64) -> Option<&u32> {
        let Handle { shard, slot, .. } = Handle::from_u64(handle);
        let shard = self.shards.get(usize::from(shard))?;
        let page = shard.get(slot as usize / PAGE)?.as_ref()?;
        page.get(slot as usize % PAGE)
    }

    fn place_mut(&mut self, handle: u64) -> Option<&mut u32> {
        let Handle { shard, slot, .. } = Handle::from_u64(handle);
        let shard = self.shards.get_mut(usize::from(shard))?;
        let page = shard.get_mut(slot as usize / PAGE)?.as_mut()?;
        page.get_mut(slot as usize % PAGE)
    }

    fn place_or_page(&mut self, handle: u64) -> &mut u32 {
        let Handle { shard, slot, .. } = Handle::from_u64(handle);
        let (shard, page) = (usize::from(shard), slot as usize / PAGE);
        if self.shards.len() <= shard {
            self.shards.resize_with(shard + 1, Vec::new);
        }
        let shard = &mut self.shards[shard];
        if shard.len() <= page {
            shard.resize_with(page + 1, || None);
        }
        let page = shard[page].get_or_insert_with(|| {
            self.pages += 1;
            vec![NONE; PAGE].into()
        });
        &mut page[slot as usize % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_handle_finds_its_own(
            steps in prop::collection::vec((0u8..3, 0u32..3, 0u32..4, any::<bool>()), 1..300),
        ) {
            let hash = Seeded(7);
            let mut handles = Handles::new();
            let mut places: Vec<u64> = Vec::new();
            let mut known: HashMap<u64, u32> = HashMap::new();
            for (shard, slot, generation, open) in steps {
                let slot = slot * 5_000;
                let handle = Handle { shard, slot, generation }.to_u64();
                let of = |i: u32| places[i as usize];
                prop_assert_eq!(handles.find(hash, handle, of), known.get(&handle).copied());
                if open && !known.contains_key(&handle) {
                    places.push(handle);
                    let index = places.len() as u32 - 1;
                    handles.insert(hash, handle, index, |i| places[i as usize]);
                    known.insert(handle, index);
                } else if !open {
                    prop_assert_eq!(handles.remove(hash, handle, of), known.remove(&handle));
                }
                let mut all: Vec<u32> = handles.iter().collect();
                let mut expected: Vec<u32> = known.values().copied().collect();
                all.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(all, expected);
            }
        }
    }

    #[test]
    fn dense_slots_cost_four_bytes() {
        let hash = Seeded(7);
        let mut handles = Handles::new();
        let of = |i: u32| u64::from(i) << 32 | 1;
        for slot in 0..100_000 {
            handles.insert(hash, of(slot), slot, of);
        }
        let each = handles.bytes() as f64 / 100_000.0;
        assert!(each < 4.1, "{each} bytes");
        assert_eq!(handles.find(hash, of(77_777), of), Some(77_777));
    }
}
