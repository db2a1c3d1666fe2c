//! The table of a driver's connections: dense slots, reused last-freed-first so that the tables kept
//! beside it stay small, each use with a new generation. Shared by both drivers.
//!
//! An entry is 16 bytes; what few connections have at a time (an unsent tail, the error that ended
//! them, the addresses of a connection attempt) is in a table of its own while it exists.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf as _, Bytes};
use hashbrown::HashMap;
use socket2::SockAddr;

use super::{Carried, ConnId, Fin, ListenerId};

/// Room for rare things that a quiet table keeps.
const RARE_KEPT: usize = 64;

/// No descriptor yet, no send queued, end of the free list.
pub(super) const NONE: u32 = u32::MAX;

/// Facts about a connection, and operations that the kernel holds for it.
pub(super) mod flag {
    /// The slot is in use.
    pub(in super::super) const LIVE: u16 = 1 << 0;
    /// A receive, or a poll for bytes, is armed.
    pub(in super::super) const RECEIVING: u16 = 1 << 1;
    /// Waiting until the socket takes bytes again.
    pub(in super::super) const AWAITING_ROOM: u16 = 1 << 2;
    /// A send of the unsent tail is under way.
    pub(in super::super) const SENDING_TAIL: u16 = 1 << 3;
    /// A shutdown is under way.
    pub(in super::super) const SHUTTING: u16 = 1 << 4;
    /// Not yet connected: creating the socket, or connecting.
    pub(in super::super) const CONNECTING: u16 = 1 << 5;
    /// Asked for, or decided after an error; ends in `Closed`.
    pub(in super::super) const CLOSING: u16 = 1 << 6;
    /// The close itself has been handed to the kernel.
    pub(in super::super) const CLOSE_SENT: u16 = 1 << 7;
    /// The peer has shut its side.
    pub(in super::super) const EOF: u16 = 1 << 8;
    /// FIN is due after the last byte.
    pub(in super::super) const SHUTDOWN_WANTED: u16 = 1 << 9;
    /// FIN is sent.
    pub(in super::super) const SHUTDOWN_DONE: u16 = 1 << 10;
    /// In the queue of connections with more to read (epoll); readable again while a receive is
    /// under way (poll).
    pub(in super::super) const READY: u16 = 1 << 11;
    /// The peer's FIN or reset was signalled: a short read is not the end.
    pub(in super::super) const HANG_UP: u16 = 1 << 12;

    /// One receive of what a poll announced is under way.
    pub(in super::super) const READING: u16 = 1 << 13;
    /// Waits for a receive buffer.
    pub(in super::super) const PARKED: u16 = 1 << 14;
    /// There is an unsent tail.
    pub(in super::super) const BLOCKED: u16 = 1 << 15;

    /// What the kernel must give back before the descriptor may be closed.
    pub(in super::super) const IN_KERNEL: u16 =
        RECEIVING | READING | AWAITING_ROOM | SENDING_TAIL | SHUTTING | CONNECTING;
}

/// What few connections have at a time.
#[derive(Default)]
pub(super) struct Rare {
    /// Bytes given to `send` that the socket had no room for.
    pub(super) tail: Bytes,
    /// What ended the connection.
    pub(super) error: Option<io::ErrorKind>,
    pub(super) attempt: Option<Attempt>,
}

/// The addresses of an outgoing connection; the kernel reads them in place.
pub(super) struct Attempt {
    pub(super) peer: SockAddr,
    pub(super) source: Option<SockAddr>,
}

/// One connection.
pub(super) struct Conn {
    pub(super) generation: u32,
    /// The direct descriptor (io_uring) or file descriptor (epoll). In a free slot: the next one.
    pub(super) descriptor: u32,
    /// This turn's send: its index in the driver's queue.
    pub(super) send: u32,
    pub(super) flags: u16,
}

const _: () = assert!(
    size_of::<Conn>() <= 16,
    "a million connections: each byte here is a megabyte"
);

impl Conn {
    pub(super) fn has(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }

    pub(super) fn set(&mut self, flags: u16) {
        self.flags |= flags;
    }

    pub(super) fn clear(&mut self, flags: u16) {
        self.flags &= !flags;
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.has(flag::BLOCKED)
    }

    /// How far this side's end has come.
    pub(super) fn fin(&self) -> Fin {
        if self.has(flag::SHUTDOWN_DONE) {
            Fin::Sent
        } else if self.has(flag::SHUTDOWN_WANTED) {
            Fin::Due
        } else {
            Fin::None
        }
    }

    /// May `send` take bytes? Not before it is up, after it was shut, or twice at a time.
    pub(super) fn send_state(&self) -> SendState {
        if self.has(flag::CLOSING | flag::CONNECTING | flag::SHUTDOWN_WANTED) {
            SendState::Ignored
        } else if self.send != NONE || self.is_blocked() {
            SendState::Misused
        } else {
            SendState::Open
        }
    }
}

impl Carried {
    /// The flags with which it begins in a slot.
    pub(super) fn flags(&self) -> u16 {
        let eof = if self.eof { flag::EOF } else { 0 };
        eof | match self.fin {
            Fin::None => 0,
            Fin::Due => flag::SHUTDOWN_WANTED,
            Fin::Sent => flag::SHUTDOWN_WANTED | flag::SHUTDOWN_DONE,
        }
    }
}

/// What a call of `send` meets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SendState {
    Open,
    /// Closing, shut, or not connected yet.
    Ignored,
    /// A second send of the turn, or one while blocked: the order of bytes is lost.
    Misused,
}

/// A slab of connections. `slot` in its methods is the index in this slab; a [`ConnId`] counts from
/// `base`, so that several slabs of one driver share one numbering.
pub(super) struct Slots {
    base: u32,
    capacity: u32,
    conns: Vec<Conn>,
    /// Boxed, so that what the kernel reads in place does not move when the table grows.
    rare: HashMap<u32, Box<Rare>>,
    free: u32,
    live: u32,
}

impl Slots {
    pub(super) fn new(base: u32, capacity: u32) -> Self {
        Self {
            base,
            capacity,
            // Reserved address space, not memory: pages are touched as slots come into use.
            conns: Vec::with_capacity(capacity as usize),
            rare: HashMap::new(),
            free: NONE,
            live: 0,
        }
    }

    pub(super) fn live(&self) -> u32 {
        self.live
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// A slot for a new connection, or none if all are taken.
    pub(super) fn allocate(&mut self, descriptor: u32, flags: u16) -> Option<u32> {
        let slot = if self.free != NONE {
            let slot = self.free;
            self.free = self.conns[slot as usize].descriptor;
            slot
        } else if (self.conns.len() as u32) < self.capacity {
            self.conns.push(Conn {
                generation: 1,
                descriptor: NONE,
                send: NONE,
                flags: 0,
            });
            self.conns.len() as u32 - 1
        } else {
            return None;
        };
        self.live += 1;
        let conn = &mut self.conns[slot as usize];
        conn.descriptor = descriptor;
        conn.flags = flags | flag::LIVE;
        Some(slot)
    }

    /// Gives the slot back; its tokens and ids are stale from now on.
    pub(super) fn release(&mut self, slot: u32) -> Option<io::ErrorKind> {
        let conn = &mut self.conns[slot as usize];
        debug_assert!(conn.has(flag::LIVE));
        // Skips 0, which no connection ever has.
        conn.generation = conn.generation.checked_add(1).unwrap_or(1);
        conn.flags = 0;
        conn.send = NONE;
        conn.descriptor = self.free;
        self.free = slot;
        self.live -= 1;
        // Looked up for few: a table without entries costs nothing here.
        if self.rare.is_empty() {
            return None;
        }
        let error = self.rare.remove(&slot).and_then(|rare| rare.error);
        self.give_back_rare();
        error
    }

    /// A crowd that was blocked at once must not hold on to its table for ever.
    fn give_back_rare(&mut self) {
        if self.rare.is_empty() {
            self.rare.shrink_to(RARE_KEPT);
        }
    }

    /// What few connections have, if this one has anything of it.
    pub(super) fn rare(&self, slot: u32) -> Option<&Rare> {
        self.rare.get(&slot).map(|rare| &**rare)
    }

    pub(super) fn set_attempt(&mut self, slot: u32, attempt: Attempt) {
        self.rare.entry(slot).or_default().attempt = Some(attempt);
    }

    /// The attempt has succeeded.
    pub(super) fn end_attempt(&mut self, slot: u32) {
        self.rare.remove(&slot);
        self.give_back_rare();
    }

    /// Notes what ends the connection, if it is not its orderly close.
    pub(super) fn set_error(&mut self, slot: u32, error: Option<io::ErrorKind>) {
        if error.is_some() {
            self.rare.entry(slot).or_default().error = error;
        }
    }

    /// Keeps what a send left over, which is not nothing.
    pub(super) fn set_tail(&mut self, slot: u32, tail: Bytes) {
        debug_assert!(!tail.is_empty());
        self.conns[slot as usize].set(flag::BLOCKED);
        self.rare.entry(slot).or_default().tail = tail;
    }

    /// Counts `sent` bytes of the tail as gone; says whether that was all of it.
    pub(super) fn advance_tail(&mut self, slot: u32, sent: usize) -> bool {
        let Some(rare) = self.rare.get_mut(&slot) else {
            return true;
        };
        rare.tail.advance(sent.min(rare.tail.len()));
        if !rare.tail.is_empty() {
            return false;
        }
        if rare.error.is_none() && rare.attempt.is_none() {
            self.rare.remove(&slot);
            self.give_back_rare();
        }
        self.conns[slot as usize].clear(flag::BLOCKED);
        true
    }

    /// Heap bytes of the entries that were ever in use; the rest of the table is address space that
    /// no page stands behind.
    pub(super) fn bytes(&self) -> usize {
        let rare = size_of::<u32>() + size_of::<Box<Rare>>() + 1;
        self.conns.len() * size_of::<Conn>()
            + self.rare.capacity() * rare
            + self.rare.len() * size_of::<Rare>()
    }

    /// The slot's present owner.
    pub(super) fn id(&self, slot: u32) -> ConnId {
        ConnId {
            slot: self.base + slot,
            generation: self.conns[slot as usize].generation,
        }
    }

    /// The slot of a connection of this slab, unless it is gone.
    pub(super) fn find(&self, conn: ConnId) -> Option<u32> {
        let slot = conn.slot.checked_sub(self.base)?;
        self.current(slot, conn.generation).then_some(slot)
    }

    /// Does the slot still belong to that generation?
    pub(super) fn current(&self, slot: u32, generation: u32) -> bool {
        self.conns
            .get(slot as usize)
            .is_some_and(|conn| conn.generation == generation && conn.has(flag::LIVE))
    }

    pub(super) fn get(&self, slot: u32) -> &Conn {
        &self.conns[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Conn {
        &mut self.conns[slot as usize]
    }

    /// The slots in use.
    pub(super) fn iter_live(&self) -> impl Iterator<Item = u32> {
        (0..self.conns.len() as u32).filter(|&slot| self.get(slot).has(flag::LIVE))
    }
}

/// When accepting stops and goes on again, for a table of `capacity`: beyond the first number, down
/// to the second. The gap keeps a table at its limit from stopping and starting at each close.
pub(super) fn accept_limits(capacity: u32) -> (u32, u32) {
    let stop = (u64::from(capacity) * 95 / 100).max(1) as u32;
    let resume = (u64::from(capacity) * 90 / 100) as u32;
    (stop, resume.min(stop - 1))
}

/// An accepted connection on its way to `Event::Accepted`.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub(super) slot: u32,
    pub(super) listener: ListenerId,
}

/// The address of a peer that the kernel no longer knows.
pub(super) fn unknown_peer() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_dense_and_reused_with_new_generations() {
        let mut slots = Slots::new(100, 3);
        let first: Vec<u32> = (0..3).map(|d| slots.allocate(d, 0).unwrap()).collect();
        assert_eq!(first, [0, 1, 2]);
        assert!(slots.allocate(9, 0).is_none());

        let old = slots.id(1);
        assert_eq!(old.slot, 101);
        assert_eq!(slots.find(old), Some(1));
        slots.release(1);
        assert_eq!(slots.find(old), None);
        assert_eq!(slots.live(), 2);

        assert_eq!(slots.allocate(7, 0), Some(1));
        assert_eq!(slots.find(old), None);
        assert_ne!(slots.id(1).generation, old.generation);
    }

    #[test]
    fn a_foreign_id_is_not_found() {
        let mut slots = Slots::new(100, 3);
        slots.allocate(0, 0).unwrap();
        for slot in [0, 99, 101, 4000] {
            assert_eq!(
                slots.find(ConnId {
                    slot,
                    generation: 1
                }),
                None
            );
        }
    }

    #[test]
    fn release_reports_what_ended_the_connection() {
        let mut slots = Slots::new(0, 1);
        let slot = slots.allocate(0, 0).unwrap();
        slots.set_error(slot, Some(io::ErrorKind::ConnectionReset));
        assert_eq!(slots.release(slot), Some(io::ErrorKind::ConnectionReset));
        let slot = slots.allocate(1, 0).unwrap();
        assert_eq!(slots.release(slot), None);
    }

    #[test]
    fn a_tail_blocks_until_it_is_gone_and_leaves_nothing_behind() {
        let mut slots = Slots::new(0, 2_000);
        let empty = slots.bytes();
        for descriptor in 0..2_000 {
            let slot = slots.allocate(descriptor, 0).unwrap();
            slots.set_tail(slot, Bytes::from_static(b"abc"));
        }
        assert!(slots.get(7).send_state() == SendState::Misused);
        for slot in 0..2_000 {
            assert!(!slots.advance_tail(slot, 2));
            assert_eq!(&slots.rare(slot).unwrap().tail[..], b"c");
            assert!(slots.advance_tail(slot, 1));
            assert!(slots.get(slot).send_state() == SendState::Open);
        }
        let grown = slots.bytes() - empty - 2_000 * size_of::<Conn>();
        assert!(grown < 8_192, "{grown} bytes");
    }

    #[test]
    fn accepting_stops_before_the_table_is_full() {
        assert_eq!(accept_limits(20_000), (19_000, 18_000));
        for capacity in 1..200 {
            let (stop, resume) = accept_limits(capacity);
            assert!(stop >= 1 && stop <= capacity && resume < stop);
        }
    }
}
