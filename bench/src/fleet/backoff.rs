//! When a client that was refused or lost its connection tries again.

/// Exponential with full jitter (Brooker, "Exponential Backoff And Jitter"): a time that is equally
/// likely anywhere below the bound of this attempt. Or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the first attempt; zero: no waiting ever.
    pub base_ns: u64,
    pub max_ns: u64,
}

impl Default for Backoff {
    /// What the protocol asks of clients: 1 s to 60 s.
    fn default() -> Self {
        Self {
            base_ns: 1_000_000_000,
            max_ns: 60_000_000_000,
        }
    }
}

impl Backoff {
    /// At once, every time.
    pub const NONE: Self = Self {
        base_ns: 0,
        max_ns: 0,
    };

    /// How long to wait before the attempt after `failed` ones in a row.
    pub fn wait_ns(&self, failed: u8, random: u64) -> u64 {
        let bound = self
            .base_ns
            .saturating_mul(1 << failed.min(20))
            .min(self.max_ns);
        ((u128::from(random) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_reach_all_of_it() {
        let backoff = Backoff::default();
        assert_eq!(backoff.wait_ns(0, 0), 0);
        assert_eq!(backoff.wait_ns(0, u64::MAX), 999_999_999);
        assert_eq!(backoff.wait_ns(3, 1 << 63), 4_000_000_000);
        assert_eq!(backoff.wait_ns(255, u64::MAX), 59_999_999_999);
        assert_eq!(Backoff::NONE.wait_ns(9, u64::MAX), 0);
    }
}
