//! Memory for what a turn sends: chunks that are filled from front to back, handed to the driver as
//! slices, and filled again when the driver has let go of all of them. So a steady shard allocates
//! nothing for what it sends.
//!
//! Invariants:
//! 1. A chunk is written to only while no slice of it is out.
//! 2. A slice that somebody keeps (the tail of a socket that does not keep up) holds at most one
//!    chunk, whose place here is given up after a turn.
//! 3. At most [`RESTING_MAX`] chunks wait to be used again.
//!
//! Called by the turn's table ([`super::turns`]) alone.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk. What is longer gets one of its own, once.
pub const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks that are kept for later turns.
const RESTING_MAX: usize = 32;

/// Where bytes lie in the turn's chunks, and how many may be there without moving.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    chunk: u32,
    start: u32,
    len: u32,
    room: u32,
}

impl Segment {
    /// Bytes in it.
    pub const fn len(self) -> usize {
        self.len as usize
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Arena {
    /// Of this turn; the last is being filled.
    filling: Vec<BytesMut>,
    /// The same, when nothing is written any more.
    filled: Vec<Bytes>,
    /// Of earlier turns, oldest first, with the number of the turn.
    resting: VecDeque<(u64, BytesMut)>,
    turn: u64,
}

impl Arena {
    /// A segment with `bytes` in it.
    pub fn store(&mut self, bytes: &[u8]) -> Segment {
        self.write(bytes.len(), |chunk| chunk.extend_from_slice(bytes))
    }

    /// A segment of `len` bytes, to be written.
    pub fn take(&mut self, len: usize) -> Segment {
        self.write(len, |chunk| chunk.resize(chunk.len() + len, 0))
    }

    /// A segment of the `len` bytes that `extend` appends to a chunk.
    fn write(&mut self, len: usize, extend: impl FnOnce(&mut BytesMut)) -> Segment {
        let fits = |chunk: &BytesMut| chunk.capacity() - chunk.len() >= len;
        if !self.filling.last().is_some_and(fits) {
            let fresh = self.fresh(len);
            self.filling.push(fresh);
        }
        let number = self.filling.len() - 1;
        let chunk = &mut self.filling[number];
        let start = chunk.len();
        extend(chunk);
        Segment {
            chunk: number as u32,
            start: start as u32,
            len: len as u32,
            room: len as u32,
        }
    }

    /// Appends to a segment, which moves if it must.
    pub fn append(&mut self, segment: &mut Segment, bytes: &[u8]) {
        let len = segment.len() + bytes.len();
        if len > segment.room as usize && !self.grow(segment, len) {
            // Twice the room each time it moves: what is copied stays in proportion to what is sent.
            let moved = self.take(2 * len);
            let from = std::mem::replace(segment, Segment { len: 0, ..moved });
            self.copy(from, moved);
            segment.len = from.len;
        }
        let at = segment.start as usize + segment.len();
        self.filling[segment.chunk as usize][at..at + bytes.len()].copy_from_slice(bytes);
        segment.len = len as u32;
    }

    /// Makes room where the segment lies, if it is the last one and its chunk has some.
    fn grow(&mut self, segment: &mut Segment, len: usize) -> bool {
        let chunk = &mut self.filling[segment.chunk as usize];
        let end = segment.start as usize + segment.room as usize;
        let more = len - segment.room as usize;
        if end != chunk.len() || chunk.capacity() - end < more {
            return false;
        }
        chunk.resize(end + more, 0);
        segment.room = len as u32;
        true
    }

    fn copy(&mut self, from: Segment, to: Segment) {
        let (start, len) = (from.start as usize, from.len());
        let at = to.start as usize;
        if from.chunk == to.chunk {
            self.filling[to.chunk as usize].copy_within(start..start + len, at);
            return;
        }
        // A segment moves to a later chunk only.
        let (before, after) = self.filling.split_at_mut(to.chunk as usize);
        after[0][at..at + len].copy_from_slice(&before[from.chunk as usize][start..start + len]);
    }

    /// What is in a segment of this turn.
    pub fn bytes(&self, segment: Segment) -> &[u8] {
        let start = segment.start as usize;
        &self.filling[segment.chunk as usize][start..start + segment.len()]
    }

    /// As [`Arena::bytes`], to be written.
    pub fn bytes_mut(&mut self, segment: Segment) -> &mut [u8] {
        let start = segment.start as usize;
        &mut self.filling[segment.chunk as usize][start..start + segment.len()]
    }

    fn fresh(&mut self, len: usize) -> BytesMut {
        if len > CHUNK_BYTES {
            return BytesMut::with_capacity(len);
        }
        while let Some((turn, mut chunk)) = self.resting.pop_front() {
            if chunk.try_reclaim(CHUNK_BYTES) {
                return chunk;
            }
            if turn + 1 >= self.turn {
                // The driver has it still, and all that come after it.
                self.resting.push_front((turn, chunk));
                break;
            }
            // Some socket holds on to it: it is that socket's from now on.
        }
        BytesMut::with_capacity(CHUNK_BYTES)
    }

    /// Nothing is written any more in this turn: [`Arena::slice`] may be called.
    pub fn freeze(&mut self) {
        for chunk in &mut self.filling {
            self.filled.push(chunk.split().freeze());
        }
    }

    /// A segment's bytes, to be handed on.
    pub fn slice(&self, segment: Segment) -> Bytes {
        let start = segment.start as usize;
        self.filled[segment.chunk as usize].slice(start..start + segment.len())
    }

    /// The turn is over.
    pub fn rest(&mut self) {
        for (chunk, filled) in self.filling.drain(..).zip(self.filled.drain(..)) {
            // One that was made for something long is not kept.
            if filled.len() <= CHUNK_BYTES {
                self.resting.push_back((self.turn, chunk));
            }
        }
        while self.resting.len() > RESTING_MAX {
            self.resting.pop_front();
        }
        self.turn += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `bytes` in a turn of its own.
    fn turn(arena: &mut Arena, bytes: &[u8]) -> Bytes {
        let segment = arena.store(bytes);
        arena.freeze();
        let slice = arena.slice(segment);
        arena.rest();
        slice
    }

    #[test]
    fn segments_that_grow_in_turns_keep_their_bytes() {
        let mut arena = Arena::default();
        let mut segments = [arena.store(b"a"), arena.store(b"b"), arena.store(b"c")];
        let mut expected = [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()];
        for round in 0..6_000usize {
            let which = round * 7 % 3;
            let more = [round as u8; 5];
            arena.append(&mut segments[which], &more);
            expected[which].extend_from_slice(&more);
        }
        arena.freeze();
        for (segment, expected) in segments.iter().zip(expected) {
            assert_eq!(arena.slice(*segment), expected);
        }
    }

    #[test]
    fn a_chunk_is_used_again_when_nobody_holds_it() {
        let mut arena = Arena::default();
        let first = turn(&mut arena, b"one");
        let second = turn(&mut arena, b"two");
        let (one, two) = (first.as_ptr(), second.as_ptr());
        assert_ne!(one, two);
        // The driver lets go of a turn's bytes in the next turn.
        drop(first);
        let third = turn(&mut arena, b"3");
        assert_eq!(third.as_ptr(), one);
        assert_eq!(&second[..], b"two");
        drop(second);
        assert_eq!(turn(&mut arena, b"4").as_ptr(), two);
    }

    #[test]
    fn what_a_slow_socket_holds_is_left_to_it() {
        let mut arena = Arena::default();
        let held = turn(&mut arena, b"held");
        let mut before = turn(&mut arena, b"x");
        for _ in 0..100 {
            let now = turn(&mut arena, b"y");
            before = now;
        }
        assert_eq!(&held[..], b"held");
        assert_eq!(&before[..], b"y");
        assert!(arena.resting.len() <= 3, "{}", arena.resting.len());
    }

    #[test]
    fn a_large_turn_gives_its_memory_back() {
        let mut arena = Arena::default();
        let big = vec![7; 3 * CHUNK_BYTES];
        assert_eq!(turn(&mut arena, &big), big);
        for _ in 0..1_000 {
            arena.store(&[1; 1_000]);
        }
        arena.freeze();
        arena.rest();
        assert_eq!(arena.resting.len(), RESTING_MAX);
        assert!(
            arena
                .resting
                .iter()
                .all(|(_, c)| c.capacity() <= CHUNK_BYTES)
        );
    }
}
