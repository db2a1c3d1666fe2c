//! Sockets that change hands: holding still, giving copies away, taking others in.
//!
//! An armed receive takes bytes from its socket whenever the ring is entered, and when the process
//! ends; so it has to be cancelled, one by one, before the socket may be read elsewhere. A poll, for
//! bytes or for room, takes nothing and may stay.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use io_uring::opcode;
use socket2::SockRef;

use super::ring::Ring;
use crate::ring::slots::{NONE, flag};
use crate::ring::token::{Operation, Token};
use crate::ring::{Carried, ConnId, Fin, Hold, ReceiveMode};

/// `IORING_FILE_INDEX_ALLOC`: the kernel chooses the entry of the table.
const ANY_ENTRY: i32 = -1;

impl Ring {
    pub(super) fn hold(&mut self, hold: Hold) {
        let before = std::mem::replace(&mut self.held, hold);
        if before == hold {
            return;
        }
        self.acceptor.held = hold != Hold::Nothing;
        self.update_accepting();
        let slots: Vec<u32> = self.slots.iter_live().collect();
        for slot in slots {
            let conn = self.slots.get(slot);
            if conn.has(flag::CLOSING | flag::CONNECTING) {
                continue;
            }
            let receiving = conn.has(flag::RECEIVING);
            let waits = conn.is_blocked() && !conn.has(flag::AWAITING_ROOM | flag::SENDING_TAIL);
            if hold == Hold::Nothing {
                self.read_on(slot);
            } else if receiving
                && before == Hold::Nothing
                && self.receive_mode == ReceiveMode::Multishot
            {
                self.cancel(slot, Operation::Receive);
            }
            if hold != Hold::Everything && waits {
                self.await_room(slot);
            }
        }
    }

    /// Reading is free again.
    fn read_on(&mut self, slot: u32) {
        let conn = self.slots.get(slot);
        if conn.has(flag::EOF | flag::PARKED) {
            return;
        }
        if !conn.has(flag::RECEIVING) {
            self.receive(slot);
        } else if conn.has(flag::READY) && !conn.has(flag::READING) {
            // The poll fired meanwhile.
            self.read(slot);
        }
    }

    pub(super) fn is_held(&mut self) -> bool {
        let mut under_way = 0;
        if self.held >= Hold::Reading {
            under_way |= flag::READING;
            if self.receive_mode == ReceiveMode::Multishot {
                under_way |= flag::RECEIVING;
            }
        }
        if self.held == Hold::Everything {
            under_way |= flag::SENDING_TAIL | flag::SHUTTING | flag::CLOSING;
            if !self.sends.is_empty() || !self.shutdowns.is_empty() || !self.queue.all_submitted() {
                return false;
            }
        }
        let held_back = self.held == Hold::Nothing
            || (self.acceptor.is_quiet() && self.arrivals.is_empty() && self.recancels.is_empty());
        held_back
            && !self
                .slots
                .iter_live()
                .any(|slot| self.slots.get(slot).has(under_way))
    }

    pub(super) fn export(&mut self, slot: u32) -> io::Result<Option<Carried>> {
        let conn = self.slots.get(slot);
        if conn.has(flag::CLOSING | flag::CONNECTING) {
            return Ok(None);
        }
        let (eof, fin) = (conn.has(flag::EOF), conn.fin());
        let tail = self.slots.rare(slot).map(|rare| rare.tail.clone());
        let tail = tail.unwrap_or_default();
        Ok(Some(Carried {
            socket: self.install(slot)?,
            tail,
            eof,
            fin,
        }))
    }

    /// The kernel fills in the entry while it takes the request, as with every file update.
    pub(super) fn adopt(&mut self, carried: Carried) -> io::Result<ConnId> {
        // A request on a non-blocking socket would fail rather than wait for bytes.
        SockRef::from(&carried.socket).set_nonblocking(false)?;
        let mut descriptor: Box<RawFd> = Box::new(carried.socket.as_raw_fd());
        let token = Token::new(Operation::Install, 0, 0).pack();
        let entry = opcode::FilesUpdate::new(&raw mut *descriptor, 1)
            .offset(ANY_ENTRY)
            .build()
            .user_data(token);
        self.queue.push(entry, &mut self.stats);
        self.queue.enter(None, &mut self.stats)?;
        self.queue.reap(&mut self.stats)?;
        match self.queue.take_completion(token) {
            Some(done) if done.result == 1 => {}
            Some(done) if done.result < 0 => {
                return Err(io::Error::from_raw_os_error(-done.result));
            }
            _ => return Err(io::ErrorKind::WouldBlock.into()),
        }
        let descriptor = *descriptor as u32;
        let Some(slot) = self.slots.allocate(descriptor, carried.flags()) else {
            self.close_descriptor(descriptor);
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        };
        debug_assert_ne!(descriptor, NONE);
        if !carried.tail.is_empty() {
            self.slots.set_tail(slot, carried.tail);
            self.await_room(slot);
        } else if carried.fin == Fin::Due {
            self.shut_when_sent(slot);
        }
        if !carried.eof {
            self.receive(slot);
        }
        Ok(self.slots.id(slot))
    }
}
