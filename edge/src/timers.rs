//! A coarse timer wheel of slot numbers: one entry for each connection, no timer object, and work
//! only for what has expired.
//!
//! Invariants:
//! 1. An entry is handed out once, with the tick under which it was filed. The owner keeps that
//!    tick in the slot; an entry whose tick is not the slot's is left over and means nothing. So
//!    bringing a deadline forward is a second entry, and postponing it is no work at all: the
//!    owner looks at the slot when the entry comes up and files it anew.
//! 2. Nothing is filed further away than [`HORIZON_TICKS`]; what is due later comes up then and is
//!    filed again.
//!
//! Called by the shard's state machine alone.

/// Slots of a block, so that it takes 256 bytes.
const BLOCK: usize = 61;

/// Some entries of a bucket, and the bucket's older blocks.
#[derive(Debug)]
struct Block {
    next: Option<Box<Self>>,
    used: u32,
    slots: [u32; BLOCK],
}

const _: () = assert!(size_of::<Block>() == 256);

/// Buckets: a power of two.
const BUCKETS: u32 = 1_024;
/// The furthest that an entry can be away.
pub const HORIZON_TICKS: u32 = BUCKETS - 1;
/// The wheel.
#[derive(Debug)]
pub struct Wheel {
    /// Lists of blocks that exist while there is something in them: a bucket that grows copies
    /// nothing, has next to no slack, and gives its memory back when it is emptied.
    buckets: Box<[Option<Box<Block>>]>,
    /// A bit for each bucket that holds something.
    occupied: [u64; (BUCKETS / 64) as usize],
    /// The last tick whose bucket was emptied.
    at: u32,
    entries: usize,
    blocks: usize,
}

impl Wheel {
    /// Bytes of an entry.
    pub const ENTRY_BYTES: usize = size_of::<u32>();

    /// Empty, with `now` already dealt with.
    pub fn new(now: u32) -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| None).collect(),
            occupied: [0; (BUCKETS / 64) as usize],
            at: now,
            entries: 0,
            blocks: 0,
        }
    }

    /// Files `slot` under `tick` or the nearest tick that can be had; says under which.
    pub fn file(&mut self, slot: u32, tick: u32) -> u32 {
        let earliest = self.at.saturating_add(1);
        let latest = self.at.saturating_add(HORIZON_TICKS);
        let tick = tick.clamp(earliest, latest);
        let bucket = tick % BUCKETS;
        self.push(bucket, slot);
        self.occupied[(bucket / 64) as usize] |= 1 << (bucket % 64);
        self.entries += 1;
        tick
    }

    /// Appends everything filed up to `now`, with its tick, to `due`.
    pub fn expire(&mut self, now: u32, due: &mut Vec<(u32, u32)>) {
        if now <= self.at {
            return;
        }
        // Nothing lies further ahead than the horizon, so one round reaches all of it.
        let last = now.min(self.at.saturating_add(HORIZON_TICKS));
        let mut tick = self.at;
        while self.entries > 0 {
            let Some(next) = self.next_after(tick).filter(|&next| next <= last) else {
                break;
            };
            tick = next;
            self.empty(tick, due);
        }
        self.at = now;
    }

    /// The tick of the earliest entry.
    pub fn next(&self) -> Option<u32> {
        self.next_after(self.at)
    }

    /// Heap bytes held.
    pub const fn bytes(&self) -> usize {
        self.blocks * size_of::<Block>() + self.buckets.len() * size_of::<Option<Box<Block>>>()
    }

    /// Entries in all, and those of the fullest tick.
    #[cfg(test)]
    pub fn spread(&self) -> (usize, usize) {
        let count = |mut at: Option<&Block>| {
            let mut entries = 0;
            while let Some(block) = at {
                entries += block.used as usize;
                at = block.next.as_deref();
            }
            entries
        };
        let fullest = self.buckets.iter().map(|b| count(b.as_deref())).max();
        (self.entries, fullest.unwrap_or(0))
    }

    fn push(&mut self, bucket: u32, slot: u32) {
        let bucket = &mut self.buckets[bucket as usize];
        if bucket.as_ref().is_none_or(|b| b.used as usize == BLOCK) {
            self.blocks += 1;
            *bucket = Some(Box::new(Block {
                next: bucket.take(),
                used: 0,
                slots: [0; BLOCK],
            }));
        }
        if let Some(block) = bucket {
            block.slots[block.used as usize] = slot;
            block.used += 1;
        }
    }

    fn empty(&mut self, tick: u32, due: &mut Vec<(u32, u32)>) {
        let bucket = tick % BUCKETS;
        self.occupied[(bucket / 64) as usize] &= !(1 << (bucket % 64));
        let mut next = self.buckets[bucket as usize].take();
        while let Some(block) = next {
            let slots = &block.slots[..block.used as usize];
            due.extend(slots.iter().map(|&slot| (slot, tick)));
            self.entries -= slots.len();
            self.blocks -= 1;
            next = block.next;
        }
    }

    /// The first tick after `tick` whose bucket holds something.
    fn next_after(&self, tick: u32) -> Option<u32> {
        if self.entries == 0 {
            return None;
        }
        let mut offset = 1;
        while offset <= HORIZON_TICKS {
            let bucket = tick.wrapping_add(offset) % BUCKETS;
            let word = self.occupied[(bucket / 64) as usize] >> (bucket % 64);
            if word != 0 {
                let found = offset + word.trailing_zeros();
                return (found <= HORIZON_TICKS).then_some(tick + found);
            }
            offset += 64 - bucket % 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expired(wheel: &mut Wheel, now: u32) -> Vec<(u32, u32)> {
        let mut due = Vec::new();
        wheel.expire(now, &mut due);
        due
    }

    #[test]
    fn entries_come_up_at_their_tick_and_not_before() {
        let mut wheel = Wheel::new(100);
        assert_eq!(wheel.next(), None);
        assert_eq!(wheel.file(7, 130), 130);
        assert_eq!(wheel.file(8, 120), 120);
        assert_eq!(wheel.next(), Some(120));
        assert_eq!(expired(&mut wheel, 119), []);
        assert_eq!(expired(&mut wheel, 120), [(8, 120)]);
        assert_eq!(expired(&mut wheel, 500), [(7, 130)]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn the_past_is_the_next_tick_and_the_far_future_the_horizon() {
        let mut wheel = Wheel::new(100);
        assert_eq!(wheel.file(1, 3), 101);
        assert_eq!(wheel.file(2, 1_000_000), 100 + HORIZON_TICKS);
        let due = expired(&mut wheel, 10_000_000);
        assert_eq!(due, [(1, 101), (2, 100 + HORIZON_TICKS)]);
    }

    #[test]
    fn a_burst_gives_its_memory_back() {
        let mut wheel = Wheel::new(0);
        let empty = wheel.bytes();
        for slot in 0..100_000 {
            wheel.file(slot, 5);
        }
        let each = (wheel.bytes() - empty) as f64 / 100_000.0;
        assert!((4.0..4.3).contains(&each), "{each} bytes");
        assert_eq!(expired(&mut wheel, 5).len(), 100_000);
        assert_eq!(wheel.bytes(), empty);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_early_or_twice(
            filed in prop::collection::vec((0u32..2_000, 0u32..300), 1..200),
            steps in prop::collection::vec(1u32..400, 1..40),
        ) {
            let mut wheel = Wheel::new(50);
            let mut waiting: Vec<(u32, u32)> = Vec::new();
            let mut now = 50;
            let mut filed = filed.into_iter().enumerate();
            for step in steps {
                for (slot, (tick, _)) in filed.by_ref().take(7) {
                    let slot = slot as u32;
                    waiting.push((slot, wheel.file(slot, tick)));
                }
                prop_assert_eq!(wheel.next(), waiting.iter().map(|w| w.1).min());
                now += step;
                let mut due = expired(&mut wheel, now);
                let (mut over, rest): (Vec<_>, Vec<_>) =
                    waiting.into_iter().partition(|w| w.1 <= now);
                waiting = rest;
                due.sort_unstable();
                over.sort_unstable();
                prop_assert_eq!(due, over);
            }
        }
    }
}
