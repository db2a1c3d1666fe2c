//! How long to wait before the next attempt: exponential, with full jitter. Pure: randomness is
//! handed in.

/// Counts attempts and says how long to wait.
#[derive(Clone, Debug)]
pub struct Backoff {
    base_ms: u64,
    max_ms: u64,
    attempt: u32,
}

impl Backoff {
    /// Waits between 0 and `base_ms` at first, and at most `max_ms` ever.
    pub fn new(base_ms: u64, max_ms: u64) -> Self {
        Self {
            base_ms: base_ms.max(1),
            max_ms: max_ms.max(base_ms.max(1)),
            attempt: 0,
        }
    }

    /// The upper end of the next wait.
    pub fn ceiling_ms(&self) -> u64 {
        self.base_ms
            .saturating_mul(1_u64.checked_shl(self.attempt.min(62)).unwrap_or(u64::MAX))
            .min(self.max_ms)
    }

    /// The next wait. `random`: uniform over all of `u64`. Full jitter, so that clients that lost
    /// the same server do not come back in step.
    pub fn next_ms(&mut self, random: u64) -> u64 {
        let ceiling = self.ceiling_ms();
        self.attempt = self.attempt.saturating_add(1);
        // Scales instead of taking a remainder: no bias, and 0 and the ceiling are both possible.
        ((u128::from(random) * u128::from(ceiling + 1)) >> 64) as u64
    }

    /// It worked: begin at the base again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum_and_falls_back_on_success() {
        let mut backoff = Backoff::new(1_000, 60_000);
        let ceilings: Vec<u64> = (0..8)
            .map(|_| {
                let ceiling = backoff.ceiling_ms();
                assert_eq!(backoff.next_ms(u64::MAX), ceiling);
                ceiling
            })
            .collect();
        assert_eq!(
            ceilings,
            [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
        );
        backoff.reset();
        assert_eq!(backoff.next_ms(0), 0);
        assert_eq!(backoff.ceiling_ms(), 2_000);
        let mut worn = Backoff {
            attempt: u32::MAX,
            ..backoff
        };
        assert_eq!(worn.next_ms(u64::MAX), 60_000);
    }

    #[test]
    fn jitter_covers_the_whole_range() {
        let wait = |random| Backoff::new(1_000, 60_000).next_ms(random);
        assert_eq!(wait(u64::MAX / 2), 500);
        assert_eq!(wait(u64::MAX / 4), 250);
    }
}
