//! The table of a driver's connections: dense slots, reused last-freed-first so that the tables kept
//! beside it stay small, each use with a new generation. Shared by both drivers.
//!
//! An entry is 24 bytes; what few connections have at a time (an unsent tail, the error that ended
//! them, the addresses of a connection attempt) is boxed while it exists.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use socket2::SockAddr;

use super::{ConnId, ListenerId};

/// No descriptor yet, no send queued, end of the free list.
pub(super) const NONE: u32 = u32::MAX;

/// Facts about a connection, and operations that the kernel holds for it.
pub(super) mod flag {
    /// The slot is in use.
    pub(in super::super) const LIVE: u16 = 1 << 0;
    /// A receive is armed.
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
    /// In the queue of connections with more to read.
    pub(in super::super) const READY: u16 = 1 << 11;
    /// The peer's FIN or reset was signalled: a short read is not the end.
    pub(in super::super) const HANG_UP: u16 = 1 << 12;

    /// What the kernel must give back before the descriptor may be closed.
    pub(in super::super) const IN_KERNEL: u16 =
        RECEIVING | AWAITING_ROOM | SENDING_TAIL | SHUTTING | CONNECTING;
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
    pub(super) rare: Option<Box<Rare>>,
}

const _: () = assert!(size_of::<Conn>() <= 32);

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

    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.tail.is_empty())
    }

    /// Takes what was unsent, and the box if nothing else is in it.
    pub(super) fn drop_tail(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.tail = Bytes::new();
            if rare.error.is_none() && rare.attempt.is_none() {
                self.rare = None;
            }
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
                rare: None,
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
        conn.rare.take().and_then(|rare| rare.error)
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
        slots.get_mut(slot).rare_mut().error = Some(io::ErrorKind::ConnectionReset);
        assert_eq!(slots.release(slot), Some(io::ErrorKind::ConnectionReset));
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
