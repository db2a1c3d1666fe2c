//! When the engine's thread takes its next turn. Pure.
//!
//! A turn that commits costs the same for one message and for fifty: an fsync, and a thread switch
//! for everyone who is told. So under load turns begin [`PACE_NS`] apart, and what comes in between
//! lies in the queue without waking anybody, but for a commit that is done. Below [`PACED_FROM`] operations in such a span nobody
//! is held up: a message is taken in when it comes.
//!
//! Called by [`super::turns`].

/// From one turn's beginning to the next under load.
pub(super) const PACE_NS: u64 = 500_000;
/// Operations in [`PACE_NS`] from which on turns are paced: 16,000 a second.
const PACED_FROM: u64 = 8;
/// The load is measured over at least this.
const WINDOW_NS: u64 = 2_000_000;

/// What the thread remembers of its load.
#[derive(Debug, Default)]
pub(super) struct Pace {
    window_began_ns: u64,
    window_operations: u64,
    is_loaded: bool,
}

impl Pace {
    /// A turn that began at `began_ns` took in `operations`.
    pub(super) fn turned(&mut self, began_ns: u64, operations: usize) {
        self.window_operations += operations as u64;
        let elapsed_ns = began_ns.saturating_sub(self.window_began_ns);
        if elapsed_ns >= WINDOW_NS {
            self.is_loaded = self.window_operations * PACE_NS >= PACED_FROM * elapsed_ns;
            self.window_began_ns = began_ns;
            self.window_operations = 0;
        }
    }

    /// When the turn after the one that began at `began_ns` may begin.
    pub(super) const fn next_turn_ns(&self, began_ns: u64) -> u64 {
        if self.is_loaded {
            began_ns.saturating_add(PACE_NS)
        } else {
            began_ns
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Turns `each_ns` apart with so many operations; when the next one may begin after the last.
    fn wait_after(pace: &mut Pace, from_ns: u64, each_ns: u64, operations: usize) -> u64 {
        let turns = 4 * WINDOW_NS / each_ns + 2;
        let mut at = from_ns;
        for turn in 0..turns {
            at = from_ns + turn * each_ns;
            pace.turned(at, operations);
        }
        pace.next_turn_ns(at) - at
    }

    #[test]
    fn few_operations_wait_for_nothing_and_many_share_turns() {
        let mut pace = Pace::default();
        assert_eq!(wait_after(&mut pace, 0, MS / 10, 1), 0, "10,000 a second");
        let from = 100 * MS;
        assert_eq!(wait_after(&mut pace, from, MS / 20, 1), PACE_NS, "20,000");
        let from = 200 * MS;
        assert_eq!(wait_after(&mut pace, from, 10 * MS, 1), 0, "100");
    }

    #[test]
    fn a_burst_after_a_long_sleep_is_no_load() {
        let mut pace = Pace::default();
        pace.turned(0, 1);
        pace.turned(5_000 * MS, 200);
        assert_eq!(pace.next_turn_ns(5_000 * MS), 5_000 * MS);
    }
}
