//! A rate limiter in eight bytes of state: the generic cell rate algorithm (ITU-T I.371), in its
//! virtual-scheduling form. Pure: the caller brings the clock. Used for a user's sends (edge and
//! core) and for connects per address (edge).

/// A rate and a burst, shared by all limiters of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that one event is worth; 0: no limit.
    interval_ns: u64,
    /// How far ahead of the clock a limiter may run.
    tolerance_ns: u64,
}

impl Rate {
    /// `per_second` events in the long run, `burst` at once. `per_second` 0: no limit.
    pub fn new(per_second: u32, burst: u32) -> Self {
        if per_second == 0 {
            return Self {
                interval_ns: 0,
                tolerance_ns: 0,
            };
        }
        let interval_ns = 1_000_000_000 / u64::from(per_second);
        Self {
            interval_ns,
            tolerance_ns: interval_ns * u64::from(burst.max(1) - 1),
        }
    }

    /// Whether this rate limits anything.
    pub const fn is_unlimited(self) -> bool {
        self.interval_ns == 0
    }
}

/// One limiter: the theoretical arrival time of the next conforming event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gcra {
    next_ns: u64,
}

impl Gcra {
    /// Takes one event at `now_ns`, or says after how many ms it may be tried again.
    pub fn take(&mut self, rate: Rate, now_ns: u64) -> Result<(), u32> {
        if rate.is_unlimited() {
            return Ok(());
        }
        let next = self.next_ns.max(now_ns);
        let ahead = next - now_ns;
        if ahead > rate.tolerance_ns {
            let wait_ms = (ahead - rate.tolerance_ns).div_ceil(1_000_000);
            return Err(u32::try_from(wait_ms).unwrap_or(u32::MAX).max(1));
        }
        self.next_ns = next + rate.interval_ns;
        Ok(())
    }

    /// Whether the limiter holds nothing that a new one would not.
    pub const fn is_idle(self, now_ns: u64) -> bool {
        self.next_ns <= now_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let rate = Rate::new(20, 40);
        let mut limiter = Gcra::default();
        let taken = (0..100)
            .filter(|_| limiter.take(rate, SECOND).is_ok())
            .count();
        assert_eq!(taken, 40);
        let retry = limiter.take(rate, SECOND).unwrap_err();
        assert_eq!(retry, 50);
        assert!(
            limiter
                .take(rate, SECOND + u64::from(retry) * 1_000_000)
                .is_ok()
        );
        let later = (0..100)
            .filter(|_| limiter.take(rate, 2 * SECOND).is_ok())
            .count();
        assert_eq!(later, 19);
    }

    #[test]
    fn rate_zero_is_no_limit() {
        let mut limiter = Gcra::default();
        assert!((0..10_000).all(|_| limiter.take(Rate::new(0, 0), 0).is_ok()));
    }
}
