//! Short byte strings that connections own for long, packed by length: the ids of a session, an
//! IPv6 address. An allocation of its own would cost each of them a pointer of 16 bytes and up to
//! 12 bytes of rounding; here it is four bytes of reference, and the length rounded to two.
//!
//! Invariants: an entry is the holder's from [`Texts::insert`] to [`Texts::remove`]; pages never
//! move, and are not given back. Owned by the table of connections.

/// Bytes of a page, of which the entries take as many as fit. For smaller ones the allocator would
/// take 4 KiB of its own with each 64.
const PAGE_BYTES: usize = 16_384;
/// Entries are multiples of this long; four bytes at least, for the list of free ones.
const STEP: usize = 2;
/// The longest that can be kept: two ids of 64 bytes and their lengths.
pub const TEXT_BYTES_MAX: usize = 130;
const CLASSES: usize = TEXT_BYTES_MAX / STEP + 1;

/// Bits of a reference that hold the index within its class: enough for every slot of a shard.
const INDEX_BITS: u32 = 25;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;
const _: () = assert!(CLASSES <= 1 << (32 - INDEX_BITS));

/// End of a free list.
const END: u32 = u32::MAX;

/// A kept string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text(u32);

impl Text {
    /// Nothing kept: no class is 0.
    pub const NONE: Self = Self(0);

    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// As a number that [`Text::from_bits`] understands.
    pub const fn bits(self) -> u32 {
        self.0
    }

    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    const fn class(self) -> usize {
        (self.0 >> INDEX_BITS) as usize
    }

    const fn index(self) -> usize {
        (self.0 & INDEX_MASK) as usize
    }
}

/// Entries of one length.
#[derive(Debug)]
struct Class {
    pages: Vec<Box<[u8]>>,
    /// The first free entry; each holds the number of the next.
    free: u32,
    /// Entries that were ever in use.
    used: u32,
}

/// All of a shard's.
#[derive(Debug)]
pub struct Texts {
    classes: Box<[Class]>,
    pages: usize,
}

impl Default for Texts {
    fn default() -> Self {
        let class = || Class {
            pages: Vec::new(),
            free: END,
            used: 0,
        };
        Self {
            classes: (0..CLASSES).map(|_| class()).collect(),
            pages: 0,
        }
    }
}

impl Texts {
    /// Bytes that a string of `length` takes.
    pub const fn bytes_of(length: usize) -> usize {
        let rounded = length.div_ceil(STEP) * STEP;
        if rounded < 4 { 4 } else { rounded }
    }

    /// Heap bytes held.
    pub const fn bytes(&self) -> usize {
        self.pages * PAGE_BYTES
    }

    /// Strings kept: all that were ever in use but for those in the lists of free ones, which are
    /// walked. For tests and the simulator.
    pub fn kept(&self) -> usize {
        let kept = |(number, class): (usize, &Class)| {
            let mut kept = class.used as usize;
            let mut free = class.free;
            while free != END {
                kept -= 1;
                let entry = class.entry(number * STEP, free as usize);
                free = u32::from_ne_bytes(*entry.first_chunk().unwrap_or(&END.to_ne_bytes()));
            }
            kept
        };
        self.classes.iter().enumerate().map(kept).sum()
    }

    /// Keeps what `write` puts into the `length` bytes that it is given, at most
    /// [`TEXT_BYTES_MAX`].
    pub fn insert(&mut self, length: usize, write: impl FnOnce(&mut [u8])) -> Text {
        let size = Self::bytes_of(length);
        let number = size / STEP;
        let class = &mut self.classes[number];
        let index = if class.free == END {
            let index = class.used;
            class.used += 1;
            if index as usize / per_page(size) == class.pages.len() {
                class.pages.push(vec![0; PAGE_BYTES].into());
                self.pages += 1;
            }
            index
        } else {
            let index = class.free;
            let entry = class.entry(size, index as usize);
            let (link, _) = entry.split_first_chunk::<4>().unwrap_or((&[0xff; 4], &[]));
            class.free = u32::from_ne_bytes(*link);
            index
        };
        write(&mut class.entry_mut(size, index as usize)[..length]);
        Text((number as u32) << INDEX_BITS | index)
    }

    /// What was kept, perhaps with a byte or three behind it.
    pub fn get(&self, text: Text) -> &[u8] {
        let size = text.class() * STEP;
        if size == 0 {
            return &[];
        }
        self.classes[text.class()].entry(size, text.index())
    }

    /// Lets it go.
    pub fn remove(&mut self, text: Text) {
        if text.is_none() {
            return;
        }
        let class = &mut self.classes[text.class()];
        let link = class.free.to_ne_bytes();
        class.entry_mut(text.class() * STEP, text.index())[..4].copy_from_slice(&link);
        class.free = text.index() as u32;
    }
}

impl Class {
    fn entry(&self, size: usize, index: usize) -> &[u8] {
        let start = index % per_page(size) * size;
        &self.pages[index / per_page(size)][start..start + size]
    }

    fn entry_mut(&mut self, size: usize, index: usize) -> &mut [u8] {
        let start = index % per_page(size) * size;
        &mut self.pages[index / per_page(size)][start..start + size]
    }
}

const fn per_page(size: usize) -> usize {
    PAGE_BYTES / size
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keep(texts: &mut Texts, bytes: &[u8]) -> Text {
        texts.insert(bytes.len(), |to| to.copy_from_slice(bytes))
    }

    #[test]
    fn twenty_bytes_cost_twenty_bytes() {
        let mut texts = Texts::default();
        for n in 0..100_000_u32 {
            let text = keep(&mut texts, format!("{n:020}").as_bytes());
            assert_eq!(texts.get(text), format!("{n:020}").as_bytes());
        }
        let each = texts.bytes() as f64 / 100_000.0;
        assert!(each < 20.3, "{each} bytes");
    }

    proptest! {
        #[test]
        fn nobody_gets_anothers(
            steps in prop::collection::vec((0usize..=TEXT_BYTES_MAX, any::<u8>(), 0usize..40), 1..400),
        ) {
            let mut texts = Texts::default();
            let mut kept: Vec<(Text, Vec<u8>)> = Vec::new();
            for (length, byte, at) in steps {
                if at < kept.len() {
                    let (text, bytes) = kept.swap_remove(at);
                    prop_assert_eq!(&texts.get(text)[..bytes.len()], &bytes[..]);
                    texts.remove(text);
                }
                let bytes = vec![byte; length];
                let text = keep(&mut texts, &bytes);
                prop_assert!(!text.is_none());
                prop_assert!(kept.iter().all(|(other, _)| *other != text));
                kept.push((text, bytes));
                prop_assert_eq!(texts.kept(), kept.len());
                for (text, bytes) in &kept {
                    prop_assert_eq!(&texts.get(*text)[..bytes.len()], &bytes[..]);
                }
            }
        }
    }
}
