//! What each connection is sent at the end of the turn: everything that a turn brings for it leaves
//! in one piece.
//!
//! Frames for many connections are not copied for each of them. A connection that has got nothing
//! but shared frames in the turn stands at a place in a tree of sequences: the root's children are
//! the first frames, and a place's child is the same sequence with one frame more. Connections that
//! got the same frames stand at the same place, and its sequence is put together once for all of
//! them. Whatever is one connection's own lies in the turn's [`Arena`].
//!
//! Invariant: a connection's `turn` is its index here while it has an entry, and [`NO_TURN`]
//! otherwise; entries live for one turn.

use bytes::Bytes;

use super::arena::{Arena, Segment};
use super::slots::{Conn, NO_TURN};
use crate::ring::ConnId;

/// No place in the tree.
const NONE: u32 = u32::MAX;
/// Entries and places that a quiet shard keeps room for.
const KEPT_MAX: usize = 16_384;

#[derive(Clone, Copy, Debug)]
enum Owed {
    Nothing,
    /// The sequence that ends at this place.
    Shared(u32),
    Own(Segment),
}

/// A sequence of shared frames.
#[derive(Debug)]
struct Place {
    /// The sequence without its last frame.
    before: u32,
    last: Bytes,
    /// Bytes of the whole sequence.
    len: usize,
    /// The longer sequence that was asked for last.
    longer: u32,
    /// The whole, once put together.
    whole: Option<Segment>,
}

/// The turn's table.
#[derive(Debug)]
pub struct Turns {
    entries: Vec<(ConnId, Owed)>,
    places: Vec<Place>,
    /// The first frame that was asked for last.
    first: u32,
    arena: Arena,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            places: Vec::new(),
            first: NONE,
            arena: Arena::default(),
        }
    }
}

impl Turns {
    /// Appends bytes of the connection's own.
    pub fn append(&mut self, id: ConnId, conn: &mut Conn, bytes: &[u8]) {
        let owed = self.entry(id, conn);
        match self.entries[owed].1 {
            Owed::Nothing => self.entries[owed].1 = Owed::Own(self.arena.store(bytes)),
            Owed::Own(mut segment) => {
                self.arena.append(&mut segment, bytes);
                self.entries[owed].1 = Owed::Own(segment);
            }
            Owed::Shared(at) => {
                let shared = self.places[at as usize].len;
                let segment = self.arena.take(shared + bytes.len());
                let (before, own) = self.arena.bytes_mut(segment).split_at_mut(shared);
                write_sequence(&self.places, at, before);
                own.copy_from_slice(bytes);
                self.entries[owed].1 = Owed::Own(segment);
            }
        }
    }

    /// Appends bytes that other connections get too.
    pub fn share(&mut self, id: ConnId, conn: &mut Conn, bytes: &Bytes) {
        let owed = self.entry(id, conn);
        match self.entries[owed].1 {
            Owed::Nothing => self.entries[owed].1 = Owed::Shared(self.place(NONE, bytes)),
            Owed::Shared(at) => self.entries[owed].1 = Owed::Shared(self.place(at, bytes)),
            Owed::Own(mut segment) => {
                self.arena.append(&mut segment, bytes);
                self.entries[owed].1 = Owed::Own(segment);
            }
        }
    }

    /// The connection's entry, made if need be.
    fn entry(&mut self, id: ConnId, conn: &mut Conn) -> usize {
        if conn.turn == NO_TURN {
            conn.turn = self.entries.len() as u32;
            self.entries.push((id, Owed::Nothing));
        }
        conn.turn as usize
    }

    /// The place of the sequence at `before` and then `frame`.
    fn place(&mut self, before: u32, frame: &Bytes) -> u32 {
        let known = match self.places.get(before as usize) {
            Some(place) => place.longer,
            None => self.first,
        };
        let is_it = |p: &Place| p.last.as_ptr() == frame.as_ptr() && p.last.len() == frame.len();
        if self.places.get(known as usize).is_some_and(is_it) {
            return known;
        }
        let at = self.places.len() as u32;
        let shorter = self.places.get_mut(before as usize);
        let len = shorter.as_ref().map_or(0, |p| p.len) + frame.len();
        *shorter.map_or(&mut self.first, |p| &mut p.longer) = at;
        self.places.push(Place {
            before,
            last: frame.clone(),
            len,
            longer: NONE,
            whole: None,
        });
        at
    }

    /// Takes a connection's bytes out of the turn.
    pub fn withdraw(&mut self, conn: &mut Conn) -> Bytes {
        if conn.turn == NO_TURN {
            return Bytes::new();
        }
        let owed = &mut self.entries[conn.turn as usize].1;
        conn.turn = NO_TURN;
        match std::mem::replace(owed, Owed::Nothing) {
            Owed::Nothing => Bytes::new(),
            Owed::Own(segment) => Bytes::copy_from_slice(self.arena.bytes(segment)),
            Owed::Shared(at) => match &self.places[at as usize] {
                place if place.before == NONE => place.last.clone(),
                place => {
                    let mut whole = vec![0; place.len];
                    write_sequence(&self.places, at, &mut whole);
                    whole.into()
                }
            },
        }
    }

    /// Forgets a connection's bytes.
    pub fn forget(&mut self, conn: &mut Conn) {
        if conn.turn != NO_TURN {
            self.entries[conn.turn as usize].1 = Owed::Nothing;
            conn.turn = NO_TURN;
        }
    }

    /// Hands out what each connection is sent, and empties the table.
    pub fn drain(&mut self, mut each: impl FnMut(ConnId, Bytes)) {
        if self.entries.is_empty() {
            return;
        }
        for index in 0..self.entries.len() {
            if let Owed::Shared(at) = self.entries[index].1 {
                self.put_together(at);
            }
        }
        self.arena.freeze();
        for (id, owed) in self.entries.drain(..) {
            let bytes = match owed {
                Owed::Nothing => continue,
                Owed::Own(segment) => self.arena.slice(segment),
                Owed::Shared(at) => {
                    let place = &self.places[at as usize];
                    match place.whole {
                        Some(segment) => self.arena.slice(segment),
                        None => place.last.clone(),
                    }
                }
            };
            each(id, bytes);
        }
        self.places.clear();
        self.first = NONE;
        self.arena.rest();
        self.entries.shrink_to(KEPT_MAX);
        self.places.shrink_to(KEPT_MAX);
    }

    /// Puts a sequence of several frames together, unless that is done.
    fn put_together(&mut self, at: u32) {
        let place = &self.places[at as usize];
        if place.before == NONE || place.whole.is_some() {
            return;
        }
        let segment = self.arena.take(place.len);
        write_sequence(&self.places, at, self.arena.bytes_mut(segment));
        self.places[at as usize].whole = Some(segment);
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Writes the sequence that ends at `at`, last frame first; `out` is as long as it.
fn write_sequence(places: &[Place], mut at: u32, mut out: &mut [u8]) {
    while let Some(place) = places.get(at as usize) {
        let (before, last) = out.split_at_mut(out.len() - place.last.len());
        last.copy_from_slice(&place.last);
        (at, out) = (place.before, before);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn id(slot: u32) -> ConnId {
        ConnId {
            slot,
            generation: 1,
        }
    }

    fn drained(turns: &mut Turns) -> Vec<(u32, Bytes)> {
        let mut all = Vec::new();
        turns.drain(|id, bytes| all.push((id.slot, bytes)));
        all
    }

    fn conns(count: usize) -> Vec<Conn> {
        (0..count).map(|_| Conn::default()).collect()
    }

    #[test]
    fn a_frame_alone_is_sent_as_it_is() {
        let mut turns = Turns::default();
        let mut conns = conns(2);
        let frame = Bytes::from_static(b"frame");
        for (slot, conn) in conns.iter_mut().enumerate() {
            turns.share(id(slot as u32), conn, &frame);
        }
        for (_, bytes) in drained(&mut turns) {
            assert_eq!(bytes.as_ptr(), frame.as_ptr());
        }
    }

    #[test]
    fn the_same_frames_for_many_are_put_together_once() {
        let mut turns = Turns::default();
        let mut conns = conns(100);
        let frames: Vec<Bytes> = (0..8u8).map(|n| vec![n; 50].into()).collect();
        for frame in &frames {
            for (slot, conn) in conns.iter_mut().enumerate() {
                // Every tenth misses the fourth, so there are two sequences.
                if !(slot % 10 == 0 && frame[0] == 3) {
                    turns.share(id(slot as u32), conn, frame);
                }
            }
        }
        let all = drained(&mut turns);
        let (mut pointers, mut checked) = (HashSet::new(), 0);
        for (slot, bytes) in &all {
            let expected: Vec<u8> = frames
                .iter()
                .filter(|frame| !(slot % 10 == 0 && frame[0] == 3))
                .flat_map(|frame| frame.to_vec())
                .collect();
            assert_eq!(*bytes, expected);
            pointers.insert(bytes.as_ptr());
            checked += 1;
        }
        assert_eq!((checked, pointers.len()), (100, 2));
        assert!(turns.is_empty());
    }

    #[test]
    fn own_and_shared_bytes_leave_in_the_order_in_which_they_came() {
        let mut turns = Turns::default();
        let mut conns = conns(3);
        let [a, b] = [Bytes::from_static(b"<a>"), Bytes::from_static(b"<b>")];
        for (slot, conn) in conns.iter_mut().enumerate() {
            let id = id(slot as u32);
            match slot {
                0 => turns.append(id, conn, b"own"),
                1 => turns.share(id, conn, &b),
                _ => {}
            }
            turns.share(id, conn, &a);
            turns.share(id, conn, &b);
            if slot < 2 {
                turns.append(id, conn, b"last");
            }
        }
        let all = drained(&mut turns);
        let texts: Vec<&[u8]> = all.iter().map(|(_, bytes)| &bytes[..]).collect();
        assert_eq!(texts, [&b"own<a><b>last"[..], b"<b><a><b>last", b"<a><b>"]);
    }

    #[test]
    fn what_is_withdrawn_is_whole_and_does_not_leave() {
        let mut turns = Turns::default();
        let mut conns = conns(3);
        let [a, b] = [Bytes::from_static(b"<a>"), Bytes::from_static(b"<b>")];
        turns.share(id(0), &mut conns[0], &a);
        turns.share(id(0), &mut conns[0], &b);
        turns.append(id(1), &mut conns[1], b"own");
        turns.share(id(2), &mut conns[2], &a);
        assert_eq!(turns.withdraw(&mut conns[0]), "<a><b>");
        assert_eq!(turns.withdraw(&mut conns[1]), "own");
        assert_eq!(turns.withdraw(&mut conns[1]), "");
        turns.forget(&mut conns[2]);
        assert!(conns.iter().all(|conn| conn.turn == NO_TURN));
        assert_eq!(drained(&mut turns), []);
    }
}
