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

    /// By how many bits a compact limiter's steps are longer than a nanosecond.
    const fn shift(self) -> u32 {
        (64 - self.interval_ns.leading_zeros()).saturating_sub(10)
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

/// One limiter in four bytes, for tables with an entry for each of a million: its time runs in steps
/// of which an event is worth 512 to 1,023, and comes round after more than four million events'
/// worth (two days at 20 a second). Whoever keeps one lets it [`CompactGcra::rest`] more often than
/// that; else a limiter that rested for just as long may for once refuse what it should not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactGcra {
    /// In steps; 0: at rest.
    next: u32,
}

/// The furthest that a compact limiter may run ahead of the clock, in steps.
const STEPS_AHEAD_MAX: u64 = 1 << 30;

impl CompactGcra {
    /// As [`CompactGcra::bits`] gave it.
    pub const fn from_bits(bits: u32) -> Self {
        Self { next: bits }
    }

    /// As a number; 0: at rest.
    pub const fn bits(self) -> u32 {
        self.next
    }

    /// Takes one event at `now_ns`, or says after how many ms it may be tried again.
    pub fn take(&mut self, rate: Rate, now_ns: u64) -> Result<(), u32> {
        if rate.is_unlimited() {
            return Ok(());
        }
        let shift = rate.shift();
        let interval = rate.interval_ns >> shift;
        let tolerance = (rate.tolerance_ns / rate.interval_ns * interval).min(STEPS_AHEAD_MAX);
        self.rest(rate, now_ns);
        let now = (now_ns >> shift) as u32;
        let next = if self.next == 0 { now } else { self.next };
        let ahead = u64::from(next.wrapping_sub(now));
        if ahead > tolerance {
            let wait_ms = ((ahead - tolerance) << shift).div_ceil(1_000_000);
            return Err(u32::try_from(wait_ms).unwrap_or(u32::MAX).max(1));
        }
        // 0 is taken: one step off.
        self.next = match next.wrapping_add(interval as u32) {
            0 => 1,
            next => next,
        };
        Ok(())
    }

    /// How far its next free place lies ahead of `now_ns`: all that it knows.
    pub const fn ahead_ns(mut self, rate: Rate, now_ns: u64) -> u64 {
        self.rest(rate, now_ns);
        if self.next == 0 || rate.is_unlimited() {
            return 0;
        }
        let now = (now_ns >> rate.shift()) as u32;
        (self.next.wrapping_sub(now) as u64) << rate.shift()
    }

    /// The limiter whose next free place lies `ahead_ns` after `now_ns`, or as far as one can be.
    pub const fn ahead(rate: Rate, now_ns: u64, ahead_ns: u64) -> Self {
        if ahead_ns == 0 || rate.is_unlimited() {
            return Self { next: 0 };
        }
        let steps = ahead_ns >> rate.shift();
        let steps = if steps > STEPS_AHEAD_MAX {
            STEPS_AHEAD_MAX
        } else {
            steps
        };
        let next = ((now_ns >> rate.shift()) as u32).wrapping_add(steps as u32);
        // 0 is taken: one step off.
        Self {
            next: if next == 0 { 1 } else { next },
        }
    }

    /// Notes that it is at rest, if it is.
    pub const fn rest(&mut self, rate: Rate, now_ns: u64) {
        let now = (now_ns >> rate.shift()) as u32;
        // Never further ahead than tolerance and one event: what seems so lies in the past.
        let ahead = self.next.wrapping_sub(now) as u64;
        if ahead == 0 || ahead > STEPS_AHEAD_MAX + 1_024 {
            self.next = 0;
        }
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
    fn four_bytes_limit_as_eight_do() {
        for (per_second, burst) in [
            (20, 40),
            (1, 1),
            (1_000_000, 1_000),
            (3, 1_000_000),
            (999, 7),
        ] {
            let rate = Rate::new(per_second, burst);
            let interval = 1_000_000_000 / u64::from(per_second);
            // Across the point where the steps come round, and long after.
            for start in [0, 1, interval << 23, u64::MAX >> 2] {
                let (mut small, mut large) = (CompactGcra::default(), Gcra::default());
                let (mut of_small, mut of_large) = (0_i64, 0_i64);
                for step in 0..3_000 {
                    let now = start + step * interval / 3;
                    of_small += i64::from(small.take(rate, now).is_ok());
                    of_large += i64::from(large.take(rate, now).is_ok());
                }
                let off = (of_small - of_large).abs();
                assert!(off <= 5, "{rate:?}: {of_small} for {of_large}");
                // Refused, it may be tried again when it says.
                let now = start + 1_000 * interval;
                let refused = (0..burst + 2_000).find_map(|_| small.take(rate, now).err());
                let wait = refused.expect("a refusal");
                assert!(small.take(rate, now + u64::from(wait) * 1_000_000).is_ok());
            }
        }
    }

    #[test]
    fn a_compact_limiter_is_carried_to_another_clock() {
        let rate = Rate::new(20, 40);
        let mut limiter = CompactGcra::default();
        while limiter.take(rate, SECOND).is_ok() {}
        let ahead_ns = limiter.ahead_ns(rate, SECOND);
        let mut other = CompactGcra::ahead(rate, 900 * SECOND, ahead_ns);
        assert!(other.take(rate, 900 * SECOND).is_err());
        let later = 900 * SECOND + SECOND / 10;
        assert_eq!(
            (0..10).filter(|_| other.take(rate, later).is_ok()).count(),
            2
        );
        assert_eq!(
            CompactGcra::ahead(rate, 7, u64::MAX).ahead_ns(rate, 7) >> rate.shift(),
            STEPS_AHEAD_MAX
        );
        assert_eq!(CompactGcra::default().ahead_ns(rate, SECOND), 0);
        assert_eq!(CompactGcra::ahead(rate, SECOND, 0), CompactGcra::default());
    }

    #[test]
    fn a_compact_limiter_rests() {
        let rate = Rate::new(20, 40);
        let mut limiter = CompactGcra::default();
        assert!(limiter.take(rate, SECOND).is_ok());
        limiter.rest(rate, SECOND);
        assert_ne!(limiter, CompactGcra::default());
        limiter.rest(rate, 2 * SECOND);
        assert_eq!(limiter, CompactGcra::default());
        // Without resting, it comes round: at the worst it is taken for one that was just used.
        assert!(limiter.take(rate, SECOND).is_ok());
        let round = 1 << (32 + rate.shift());
        assert!(limiter.take(rate, SECOND + round).is_ok());
    }

    #[test]
    fn rate_zero_is_no_limit() {
        let mut limiter = Gcra::default();
        assert!((0..10_000).all(|_| limiter.take(Rate::new(0, 0), 0).is_ok()));
    }
}
