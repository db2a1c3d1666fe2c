//! How many arrivals a shard lets in, so that opening sessions never takes the loop from those that
//! are open: the rest waits in the kernel's queue of the listener, where it costs nothing.
//!
//! Two budgets, both of the kind that GCRA keeps (a time at which the next one is due, and a
//! tolerance): opening work may take [`SHARE_PERCENT`] of the loop's time, and arrivals may come at the
//! operator's `arrival_rate`. In one turn no more are let in than [`TURN_NS`] has room for, by what
//! opening a session has cost of late.
//!
//! No I/O and no clock: [`crate::shard`] tells the times, asks before each turn, and charges after it.

/// Part of the loop's time that opening work may take while somebody waits to be let in.
pub const SHARE_PERCENT: u64 = 25;
/// Opening work that one turn may begin, ns. Also what may be done ahead of the share, so that single
/// arrivals never wait.
pub const TURN_NS: u64 = 1_000_000;
/// What opening a session is taken to cost until some have been opened, ns.
const COST_FIRST_NS: u64 = 50_000;
/// Arrivals after which older ones count half.
const MEMORY: u64 = 256;
/// A limited rate may be this far ahead, ns: a thread does not wake for each single arrival.
const RATE_AHEAD_NS: u64 = 10_000_000;
/// One turn's charge counts up to this, ns: a thread that was stopped must not shut the door for long.
const CHARGE_MAX_NS: u64 = 50_000_000;

/// One shard's. Times are ns since the shard's start and never go back.
#[derive(Debug)]
pub struct Admission {
    /// ns between arrivals; 0: no limit.
    interval_ns: u64,
    rate_due_ns: u64,
    share_due_ns: u64,
    /// Opening work of late, and the arrivals that it was for.
    work_ns: u64,
    arrivals: u64,
    held_ns: u64,
    seen_ns: u64,
    held: bool,
}

impl Admission {
    /// `arrival_rate`: arrivals per second of this shard; 0: no limit.
    pub fn new(arrival_rate: u32) -> Self {
        Self {
            interval_ns: match arrival_rate {
                0 => 0,
                rate => 1_000_000_000 / u64::from(rate),
            },
            rate_due_ns: 0,
            share_due_ns: 0,
            work_ns: COST_FIRST_NS * MEMORY / 4,
            arrivals: MEMORY / 4,
            held_ns: 0,
            seen_ns: 0,
            held: false,
        }
    }

    /// Arrivals that may be let in during the turn that begins now; 0: they wait, see
    /// [`Self::opens_at`].
    pub fn allowed(&mut self, now_ns: u64) -> u32 {
        if self.held {
            self.held_ns += now_ns.saturating_sub(self.seen_ns);
        }
        self.seen_ns = now_ns;
        self.held = self.opens_at() > now_ns;
        if self.held {
            return 0;
        }
        let by_cost = (TURN_NS / self.cost_ns()).max(1);
        let by_rate = match self.interval_ns {
            0 => u64::MAX,
            interval => {
                let ahead = (now_ns + self.rate_ahead_ns()).saturating_sub(self.rate_due_ns);
                // Time in which nobody came is not saved up.
                ahead.min(self.rate_ahead_ns()) / interval + 1
            }
        };
        u32::try_from(by_cost.min(by_rate)).unwrap_or(u32::MAX)
    }

    /// When the next arrival may be let in; in the past if it may now.
    pub fn opens_at(&self) -> u64 {
        let rate = self.rate_due_ns.saturating_sub(self.rate_ahead_ns());
        let ahead = TURN_NS * 100 / SHARE_PERCENT;
        rate.max(self.share_due_ns.saturating_sub(ahead))
    }

    /// Whether arrivals are held back at present.
    pub const fn is_held(&self) -> bool {
        self.held
    }

    /// A turn ended at `now_ns` in which `arrivals` were let in and `work_ns` went to those, and to
    /// earlier ones whose sessions are not open yet.
    pub fn charge(&mut self, now_ns: u64, arrivals: u64, work_ns: u64) {
        if self.interval_ns > 0 && arrivals > 0 {
            self.rate_due_ns = self.rate_due_ns.max(now_ns) + arrivals * self.interval_ns;
        }
        if work_ns > 0 {
            let work_ns = work_ns.min(CHARGE_MAX_NS);
            let began_ns = now_ns.saturating_sub(work_ns);
            self.share_due_ns = self.share_due_ns.max(began_ns) + work_ns * 100 / SHARE_PERCENT;
            self.work_ns += work_ns;
        }
        self.arrivals += arrivals;
        if self.arrivals >= MEMORY {
            self.arrivals /= 2;
            self.work_ns /= 2;
        }
    }

    /// Time in which arrivals were held back, ns.
    pub const fn held_ns(&self) -> u64 {
        self.held_ns
    }

    /// What opening one session costs, ns.
    fn cost_ns(&self) -> u64 {
        (self.work_ns / self.arrivals.max(1)).max(1)
    }

    fn rate_ahead_ns(&self) -> u64 {
        RATE_AHEAD_NS.max(self.interval_ns) - self.interval_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A loop where everybody waits: opens what it may at `cost_ns` each, else sleeps until it may.
    /// Gives back the arrivals of ten seconds and the time spent on them.
    fn storm(admission: &mut Admission, cost_ns: u64, budget: u32) -> (u64, u64) {
        let from = admission.seen_ns;
        let (mut now, mut opened, mut worked) = (from, 0, 0);
        while now < from + 10 * SECOND {
            let n = admission.allowed(now).min(budget);
            if n == 0 {
                assert!(
                    admission.opens_at() > now,
                    "a door that is shut and never opens"
                );
                now = admission.opens_at();
                continue;
            }
            let work = u64::from(n) * cost_ns;
            now += work;
            admission.charge(now, n.into(), work);
            opened += u64::from(n);
            worked += work;
        }
        (opened, worked)
    }

    #[test]
    fn opening_takes_its_share_of_the_time_and_no_more() {
        for cost in [5_000, 50_000, 400_000] {
            let (_, worked) = storm(&mut Admission::new(0), cost, 64);
            let share = worked * 100 / (10 * SECOND);
            assert!(
                (SHARE_PERCENT - 1..=SHARE_PERCENT).contains(&share),
                "{cost} ns: {share} %"
            );
        }
    }

    #[test]
    fn a_turn_begins_no_more_than_it_has_time_for() {
        let mut admission = Admission::new(0);
        storm(&mut admission, 200_000, 64);
        let now = admission.opens_at();
        let n = admission.allowed(now);
        assert!((1..=6).contains(&n), "{n} at 200 µs each");
        // Dear ones come one by one, but they come.
        storm(&mut admission, 5_000_000, 64);
        let now = admission.opens_at();
        assert_eq!(admission.allowed(now), 1);
    }

    #[test]
    fn the_operators_rate_holds_over_any_second() {
        let (opened, _) = storm(&mut Admission::new(500), 20_000, 64);
        assert!((4_990..=5_010).contains(&opened), "{opened}");
        // Also where it is slower than the tolerance.
        let (opened, _) = storm(&mut Admission::new(20), 20_000, 64);
        assert!((199..=201).contains(&opened), "{opened}");
    }

    #[test]
    fn silence_is_not_saved_up() {
        let mut admission = Admission::new(1_000);
        let n = admission.allowed(3_600 * SECOND);
        assert!(n <= 10, "{n} at once after an hour");
    }

    #[test]
    fn single_arrivals_never_wait() {
        let mut admission = Admission::new(0);
        for n in 1..1_000 {
            let now = n * 1_000_000;
            assert!(admission.allowed(now) > 0);
            admission.charge(now + 100_000, 1, 100_000);
        }
        assert_eq!(admission.held_ns(), 0);
    }

    #[test]
    fn a_thread_that_was_stopped_opens_again_soon() {
        let mut admission = Admission::new(0);
        admission.allowed(0);
        admission.charge(60 * SECOND, 1, 60 * SECOND);
        assert!(admission.opens_at() < 61 * SECOND);
        assert_eq!(admission.allowed(60 * SECOND), 0);
        let opens = admission.opens_at();
        assert!(admission.allowed(opens) > 0);
        assert_eq!(admission.held_ns(), opens - 60 * SECOND);
    }
}
