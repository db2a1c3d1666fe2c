//! When a shard naps: while turn after turn brings nothing but signs of life.
//!
//! A million sessions make 33,000 heartbeats a second, and each of them, coming alone, would wake the
//! thread for two calls into the kernel and a look at every ring, to write one number. In a lull the
//! shard sleeps [`NAP`] before it looks again, and takes all that came meanwhile at once. The first
//! turn in which anything is said ends the lull, so a conversation waits for one nap, and not again
//! while it goes on.
//!
//! Invariants: nobody is held up by more than one [`NAP`]; a shard on which little happens never
//! naps, it sleeps until something comes. Pure. Called by [`crate::shard`].

use std::time::{Duration, Instant};

/// One nap: long enough for some thirty heartbeats at a million sessions, short beside the time that
/// a message takes to the disk and back.
pub const NAP: Duration = Duration::from_millis(1);
/// Turns that are looked at together.
const TURNS: u32 = 16;

/// What is remembered of the last turns.
#[derive(Debug)]
pub struct Lull {
    began: Instant,
    turns: u32,
    naps: bool,
}

impl Lull {
    /// No lull.
    pub const fn new(now: Instant) -> Self {
        Self {
            began: now,
            turns: 0,
            naps: false,
        }
    }

    /// A turn has ended, in which anything was said or done, or not (`quiet`).
    pub fn turned(&mut self, now: Instant, quiet: bool) {
        if !quiet {
            *self = Self::new(now);
            return;
        }
        self.turns += 1;
        if self.turns < TURNS {
            return;
        }
        // With naps in between, twice as long is still in quick succession.
        let patience = if self.naps { 2 } else { 1 };
        let quick = now.duration_since(self.began) < NAP * TURNS * patience;
        *self = Self {
            naps: quick,
            ..Self::new(now)
        };
    }

    /// Whether to nap before the next turn.
    pub const fn naps(&self) -> bool {
        self.naps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns `gap` apart; whether the shard naps after them.
    fn after(lull: &mut Lull, at: &mut Instant, turns: u32, gap: Duration) -> bool {
        for _ in 0..turns {
            *at += gap;
            lull.turned(*at, true);
        }
        lull.naps()
    }

    #[test]
    fn quick_signs_of_life_bring_naps_and_a_word_ends_them() {
        let mut at = Instant::now();
        let mut lull = Lull::new(at);
        assert!(!after(&mut lull, &mut at, TURNS - 1, NAP / 20));
        assert!(after(&mut lull, &mut at, 1, NAP / 20));
        // Naps make the turns longer, not fewer.
        assert!(after(&mut lull, &mut at, 5 * TURNS, NAP + NAP / 4));
        lull.turned(at, false);
        assert!(!lull.naps());
        assert!(!after(&mut lull, &mut at, TURNS - 1, NAP / 20));
    }

    #[test]
    fn a_shard_with_little_to_do_sleeps_until_something_comes() {
        let mut at = Instant::now();
        let mut lull = Lull::new(at);
        assert!(!after(&mut lull, &mut at, 5 * TURNS, NAP));
        assert!(after(&mut lull, &mut at, TURNS, NAP / 2));
        assert!(!after(&mut lull, &mut at, TURNS, 3 * NAP));
    }
}
