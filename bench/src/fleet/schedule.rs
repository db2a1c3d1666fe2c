//! When things are due: evenly spaced moments that do not move when the ones before them were late,
//! so that a server that stalls shows in everything that was due meanwhile.

use std::time::Duration;

/// Evenly spaced moments; the n-th does not move when the ones before it were late.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schedule {
    start: Option<u64>,
    emitted: u64,
    next: u64,
}

impl Schedule {
    /// The next moment that is due by `now`, with its number. `each`: ns between two.
    pub fn due(&mut self, now: u64, each: f64) -> Option<(u64, u64)> {
        let start = *self.start.get_or_insert(now);
        self.next = start + (self.emitted as f64 * each) as u64;
        if self.next > now {
            return None;
        }
        let due = (self.next, self.emitted);
        self.emitted += 1;
        Some(due)
    }

    /// Until the next one.
    pub fn wait(&self, now: u64) -> Duration {
        Duration::from_nanos(self.next.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_due_during_a_stall_keeps_its_time() {
        let mut schedule = Schedule::default();
        let each = 1_000.0;
        assert_eq!(schedule.due(500, each), Some((500, 0)));
        assert_eq!(schedule.due(500, each), None);
        assert_eq!(schedule.wait(500), Duration::from_nanos(1_000));
        let late: Vec<_> = std::iter::from_fn(|| schedule.due(3_600, each)).collect();
        assert_eq!(late, [(1_500, 1), (2_500, 2), (3_500, 3)]);
    }
}
