//! A slab of numbered values in pages of fixed size: growing never copies what is there, nor holds
//! twice the memory while it does.

use std::ops::{Index, IndexMut};

/// No index.
pub(super) const NONE: u32 = u32::MAX;

const PAGE: usize = 512;

enum Entry<T> {
    /// The next free entry, or [`NONE`].
    Free(u32),
    Used(T),
}

/// Values under indexes that are used again after removal, the last one freed first.
pub(super) struct Slab<T> {
    pages: Vec<Box<[Entry<T>]>>,
    free: u32,
    len: usize,
}

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Self {
            pages: Vec::new(),
            free: NONE,
            len: 0,
        }
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// Bytes that a value takes in here.
    pub const ENTRY_BYTES: usize = size_of::<Entry<T>>();

    /// Heap bytes held, those of free entries among them.
    pub const fn bytes(&self) -> usize {
        self.pages.len() * PAGE * Self::ENTRY_BYTES
            + self.pages.capacity() * size_of::<Box<[Entry<T>]>>()
    }

    pub fn insert(&mut self, value: T) -> u32 {
        if self.free == NONE {
            self.grow();
        }
        let index = self.free;
        let entry = &mut self.pages[index as usize / PAGE][index as usize % PAGE];
        if let Entry::Free(next) = *entry {
            self.free = next;
        }
        *entry = Entry::Used(value);
        self.len += 1;
        index
    }

    pub fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self
            .pages
            .get_mut(index as usize / PAGE)?
            .get_mut(index as usize % PAGE)?;
        if matches!(entry, Entry::Free(_)) {
            return None;
        }
        let Entry::Used(value) = std::mem::replace(entry, Entry::Free(self.free)) else {
            return None;
        };
        self.free = index;
        self.len -= 1;
        Some(value)
    }

    pub fn get(&self, index: u32) -> Option<&T> {
        match self
            .pages
            .get(index as usize / PAGE)?
            .get(index as usize % PAGE)?
        {
            Entry::Used(value) => Some(value),
            Entry::Free(_) => None,
        }
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        match self
            .pages
            .get_mut(index as usize / PAGE)?
            .get_mut(index as usize % PAGE)?
        {
            Entry::Used(value) => Some(value),
            Entry::Free(_) => None,
        }
    }

    /// What is there, with its index, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let entries = self.pages.iter().flatten();
        entries.zip(0..).filter_map(|(entry, index)| match entry {
            Entry::Used(value) => Some((index, value)),
            Entry::Free(_) => None,
        })
    }

    fn grow(&mut self) {
        let first = self.pages.len() * PAGE;
        let page = (first..first + PAGE)
            .map(|i| {
                let next = i + 1;
                Entry::Free(if next == first + PAGE {
                    NONE
                } else {
                    next as u32
                })
            })
            .collect();
        self.pages.push(page);
        self.free = first as u32;
    }
}

/// By an index whose holder keeps the value alive; a vacant one is a defect.
impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        match self.get(index) {
            Some(value) => value,
            None => panic!("slab index {index} is vacant"),
        }
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        match self.get_mut(index) {
            Some(value) => value,
            None => panic!("slab index {index} is vacant"),
        }
    }
}
