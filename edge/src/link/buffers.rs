//! Memory for the frames that a shard hands to the core: chunks that are filled from front to back,
//! of which each operation gets its slice, and filled again when the core has dropped all slices. So
//! a steady shard allocates nothing for what it hands on.
//!
//! Invariants:
//! 1. A chunk is written to only behind what was handed out of it, or when all of that was dropped.
//! 2. At most [`RESTING_MAX`] chunks wait to be filled again. What the core holds beyond them is
//!    bounded by the credit that it grants.
//!
//! Whoever keeps a slice keeps its chunk: a core copies what it needs for longer. Called by
//! [`super::uplink`] alone.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk. A longer frame gets one of its own, once.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that wait until the core has dropped what it has of them.
pub const RESTING_MAX: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub struct Buffers {
    filling: BytesMut,
    /// Full, oldest first.
    resting: VecDeque<BytesMut>,
}

impl Buffers {
    /// A copy of `frame`.
    pub fn copy(&mut self, frame: &[u8]) -> Bytes {
        if frame.len() > CHUNK_BYTES {
            return Bytes::copy_from_slice(frame);
        }
        // What was handed out is not in `filling` any more.
        if self.filling.capacity() < frame.len() {
            self.next_chunk();
        }
        self.filling.extend_from_slice(frame);
        self.filling.split().freeze()
    }

    fn next_chunk(&mut self) {
        let full = std::mem::take(&mut self.filling);
        if full.capacity() > 0 || self.resting.capacity() > 0 {
            self.resting.push_back(full);
        } else {
            self.resting.reserve_exact(RESTING_MAX + 1);
        }
        if let Some(mut oldest) = self.resting.pop_front() {
            if oldest.try_reclaim(CHUNK_BYTES) {
                self.filling = oldest;
                return;
            }
            if self.resting.len() < RESTING_MAX {
                self.resting.push_front(oldest);
            }
        }
        self.filling = BytesMut::with_capacity(CHUNK_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_filled_again_once_all_slices_are_dropped() {
        let mut buffers = Buffers::default();
        let mut places = std::collections::HashSet::new();
        let mut held = VecDeque::new();
        for round in 0..100_000usize {
            let frame = [round as u8; 100];
            let copy = buffers.copy(&frame);
            places.insert(copy.as_ptr() as usize / CHUNK_BYTES);
            held.push_back((frame, copy));
            if held.len() > 1_000 {
                let (frame, copy) = held.pop_front().unwrap();
                assert_eq!(copy, frame[..]);
            }
        }
        // 100 KB are out at a time: a handful of chunks, each across two of these places.
        assert!(places.len() <= 10, "{}", places.len());
    }

    #[test]
    fn what_the_core_keeps_is_neither_overwritten_nor_waited_for() {
        let mut buffers = Buffers::default();
        let frame = [7; CHUNK_BYTES];
        let kept: Vec<Bytes> = (0..3 * RESTING_MAX as u8)
            .map(|round| buffers.copy(&[round; CHUNK_BYTES]))
            .collect();
        assert!(buffers.resting.len() <= RESTING_MAX);
        for (round, copy) in kept.iter().enumerate() {
            assert!(copy.iter().all(|&byte| byte == round as u8));
        }
        assert_eq!(
            buffers.copy(&[&frame[..], &[8]].concat()).len(),
            CHUNK_BYTES + 1
        );
    }
}
