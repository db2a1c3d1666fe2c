//! Randomness: one generator for each purpose, all from one seed. Each is salted with its purpose's
//! name, so that another draw for one purpose shifts nothing that the others draw.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One purpose's generator.
pub struct Rng(Xoshiro256PlusPlus);

impl Rng {
    /// The generator of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let salted = xxh3_64_with_seed(purpose.as_bytes(), seed);
        Self(Xoshiro256PlusPlus::seed_from_u64(salted))
    }

    /// Evenly over all of `u64`.
    pub fn any(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Evenly within `0..n`; 0 if there is nothing to choose from.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.any()) * u128::from(n)) >> 64) as u64
    }

    /// Evenly within `from..=to`.
    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// An index into something of this length.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in so many of a thousand cases.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }
}

/// The generators of a world.
pub struct Streams {
    /// Delays, chunk sizes and cuts of sockets.
    pub net: Rng,
    /// The same of link streams.
    pub link: Rng,
    pub store: Rng,
    /// When turns begin.
    pub turns: Rng,
    /// What people do.
    pub app: Rng,
    pub faults: Rng,
    /// The clients' back-off.
    pub backoff: Rng,
}

impl Streams {
    pub fn new(seed: u64) -> Self {
        Self {
            net: Rng::new(seed, "net"),
            link: Rng::new(seed, "link"),
            store: Rng::new(seed, "store"),
            turns: Rng::new(seed, "turns"),
            app: Rng::new(seed, "app"),
            faults: Rng::new(seed, "faults"),
            backoff: Rng::new(seed, "backoff"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_do_not_shift_one_another() {
        let draw = |extra: u64| {
            let mut streams = Streams::new(7);
            for _ in 0..extra {
                streams.net.any();
            }
            (streams.app.any(), streams.store.any())
        };
        assert_eq!(draw(0), draw(100));
        assert_ne!(Streams::new(7).app.any(), Streams::new(8).app.any());
    }

    #[test]
    fn ranges_are_kept() {
        let mut rng = Rng::new(1, "test");
        let draws: Vec<u64> = (0..1_000).map(|_| rng.within(3, 7)).collect();
        assert_eq!(draws.iter().min(), Some(&3));
        assert_eq!(draws.iter().max(), Some(&7));
        assert!(!rng.chance(0) && rng.chance(1_000));
        assert_eq!(rng.below(0), 0);
    }
}
