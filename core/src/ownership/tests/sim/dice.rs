//! Randomness from a seed: the n-th draw is a hash of n.

use xxhash_rust::xxh3::xxh3_64_with_seed;

pub struct Dice {
    seed: u64,
    drawn: u64,
}

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    pub fn any(&mut self) -> u64 {
        self.drawn += 1;
        xxh3_64_with_seed(&self.drawn.to_le_bytes(), self.seed)
    }

    /// Evenly within `0..n`, `n` above 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.any()) * u128::from(n)) >> 64) as u64
    }

    /// Evenly within `from..=to`.
    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }
}
