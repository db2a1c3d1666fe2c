//! From a user's id to its place in the registry: a hash table in parts, so that growing it copies
//! one part at a time. One table of a million users would stand still for a fifth of a second when
//! it doubles, and take three times its memory meanwhile.

use hashbrown::HashTable;

use super::hash::Seeded;

/// A power of two.
const PARTS: usize = 256;
/// Of a hash, the table itself uses the lowest bits and the highest seven.
const PART_SHIFT: u32 = 40;

/// See the module.
pub(super) struct Names {
    parts: Box<[HashTable<u32>]>,
}

impl Names {
    /// Bytes of an entry in a table that has just doubled: 7/16 of its places are taken, each of
    /// which is a number and a byte of hash.
    pub const ENTRY_BYTES_MAX: usize = ((size_of::<u32>() + 1) * 16).div_ceil(7);

    pub fn new() -> Self {
        Self {
            parts: (0..PARTS).map(|_| HashTable::new()).collect(),
        }
    }

    /// Whoever has this hash and is the one meant.
    pub fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.parts[part(hash)].find(hash, |&i| is_it(i)).copied()
    }

    /// Takes in a user who is not in here.
    pub fn insert<'a>(
        &mut self,
        hash: Seeded,
        name: &str,
        index: u32,
        name_of: impl Fn(u32) -> &'a str,
    ) {
        let own = hash.text(name);
        self.parts[part(own)].insert_unique(own, index, |&i| hash.text(name_of(i)));
    }

    /// Takes a user out.
    pub fn remove(&mut self, hash: u64, index: u32) {
        if let Ok(found) = self.parts[part(hash)].find_entry(hash, |&i| i == index) {
            found.remove();
        }
    }

    /// Heap bytes held.
    pub fn bytes(&self) -> usize {
        let tables: usize = self.parts.iter().map(HashTable::allocation_size).sum();
        tables + self.parts.len() * size_of::<HashTable<u32>>()
    }
}

const fn part(hash: u64) -> usize {
    (hash >> PART_SHIFT) as usize % PARTS
}
