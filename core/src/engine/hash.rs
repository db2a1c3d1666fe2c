//! Hashing with a seed that is handed in: two runs of one script behave alike, and who does not
//! know the seed cannot make keys collide on purpose.

use std::hash::{BuildHasher, Hasher};

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// A hash map whose iteration order nothing may depend on.
pub(super) type Map<K, V> = hashbrown::HashMap<K, V, Seeded>;

/// Makes hashers from one seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seeded(pub u64);

impl Seeded {
    /// The hash of a text.
    pub fn text(self, text: &str) -> u64 {
        xxh3_64_with_seed(text.as_bytes(), self.0)
    }

    /// The hash of a text, apart for each `scope`.
    pub fn scoped_text(self, scope: u64, text: &str) -> u128 {
        xxh3_128_with_seed(text.as_bytes(), mix(self.0, scope))
    }

    /// The hash of a number.
    pub fn number(self, number: u64) -> u64 {
        mix(self.0, number)
    }
}

impl BuildHasher for Seeded {
    type Hasher = Mixer;

    fn build_hasher(&self) -> Mixer {
        Mixer(self.0)
    }
}

/// The state while a key is hashed.
pub(super) struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u8(&mut self, value: u8) {
        self.0 = mix(self.0, u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = mix(self.0, u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0, value);
    }

    fn write_usize(&mut self, value: usize) {
        self.0 = mix(self.0, value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Folds both halves of a wide product: every bit of the inputs reaches both ends of the hash.
const fn mix(a: u64, b: u64) -> u64 {
    const ODD_A: u64 = 0x9e37_79b9_7f4a_7c15;
    const ODD_B: u64 = 0xd6e8_feb8_6659_fd93;
    let wide = (a ^ ODD_A) as u128 * (b ^ ODD_B) as u128;
    wide as u64 ^ (wide >> 64) as u64 ^ b.rotate_left(32)
}
