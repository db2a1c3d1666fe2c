//! Receiving by poll, for fleets that are idle most of the time: what an idle connection has armed
//! is a multishot poll, a third of what a multishot receive takes in the kernel. When it says that
//! there is something to read, receives of one buffer each fetch it.
//!
//! A poll reports changes, not states: what is left unread is not announced again. So after a
//! readiness the receives go on until one comes back short, and past that if the peer's end was
//! announced too (it may lie behind the last byte), or if the poll fired anew meanwhile. Bytes that
//! come after a short receive make the poll fire, since it stays armed all the while.

use io_uring::{cqueue, opcode, squeue, types};

use super::buffers::GROUP;
use super::queue::Completion;
use super::ring::Ring;
use crate::ring::slots::flag;
use crate::ring::sockets::kind_of;
use crate::ring::token::{Operation, Token};
use crate::ring::{Event, Hold};

const READ_EVENTS: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
/// The peer's end, in whatever way.
const HANG_UP_EVENTS: i32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32;

/// The poll of an idle connection, yet without its user data.
pub(super) fn request(descriptor: types::Fixed) -> squeue::Entry {
    opcode::PollAdd::new(descriptor, READ_EVENTS)
        .multi(true)
        .build()
}

impl Ring {
    /// The poll fired, or ended.
    pub(super) fn on_readable(
        &mut self,
        token: Token,
        completion: Completion,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let slot = token.slot;
        if !self.slots.current(slot, token.generation) {
            return;
        }
        let conn = self.slots.get_mut(slot);
        if !cqueue::more(completion.flags) {
            conn.clear(flag::RECEIVING);
        }
        if conn.has(flag::CLOSING) {
            return self.try_finish(slot, on_event);
        }
        // After the peer's end there is nothing to read, nor to wait for.
        if conn.has(flag::EOF) {
            return;
        }
        match completion.result {
            0.. => {
                if completion.result & HANG_UP_EVENTS != 0 {
                    conn.set(flag::HANG_UP);
                }
                if conn.has(flag::READING | flag::PARKED) {
                    conn.set(flag::READY);
                } else {
                    self.read(slot);
                }
            }
            _ => match -completion.result {
                libc::EINTR | libc::EAGAIN | libc::ECANCELED => {}
                libc::ENOMEM => return self.park(slot),
                _ => return self.begin_close(slot, Some(kind_of(completion.result)), on_event),
            },
        }
        if !self.slots.get(slot).has(flag::RECEIVING) {
            self.receive(slot);
        }
    }

    /// Fetches one buffer of what is there; never waits. While reading is held it is noted that there
    /// is something.
    pub(super) fn read(&mut self, slot: u32) {
        let conn = self.slots.get_mut(slot);
        if self.held != Hold::Nothing {
            return conn.set(flag::READY);
        }
        conn.set(flag::READING);
        conn.clear(flag::READY);
        let token = Token::new(Operation::Read, slot, conn.generation);
        let descriptor = types::Fixed(conn.descriptor);
        let entry = opcode::Recv::new(descriptor, std::ptr::null_mut(), self.queue.buffers.size())
            .buf_group(GROUP)
            .flags(libc::MSG_DONTWAIT)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT)
            .user_data(token.pack());
        self.queue.push(entry, &mut self.stats);
    }

    pub(super) fn on_read(
        &mut self,
        token: Token,
        completion: Completion,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let (current, wanted) = self.hand_out(token, completion, on_event);
        let slot = token.slot;
        if !current {
            return;
        }
        self.slots.get_mut(slot).clear(flag::READING);
        if !wanted {
            return self.try_finish(slot, on_event);
        }
        let conn = self.slots.get(slot);
        match completion.result {
            1.. => {
                let full = completion.result as u32 >= self.queue.buffers.size();
                if full || conn.has(flag::READY | flag::HANG_UP) {
                    self.read(slot);
                }
            }
            0 => self.on_eof(slot, on_event),
            _ => match -completion.result {
                libc::EINTR => self.read(slot),
                libc::EAGAIN if conn.has(flag::READY) => self.read(slot),
                libc::EAGAIN | libc::ECANCELED => {}
                libc::ENOBUFS | libc::ENOMEM => {
                    self.stats.buffers_exhausted += 1;
                    self.park(slot);
                }
                _ => self.begin_close(slot, Some(kind_of(completion.result)), on_event),
            },
        }
    }

    /// Has a connection wait for buffers or memory; it is in that queue once at a time.
    fn park(&mut self, slot: u32) {
        let conn = self.slots.get_mut(slot);
        if !conn.has(flag::PARKED) {
            conn.set(flag::PARKED);
            let id = self.slots.id(slot);
            self.parked.push_back(id);
        }
    }

    /// Goes on with a connection that had to wait.
    pub(super) fn resume_polled(&mut self, slot: u32) {
        self.slots.get_mut(slot).clear(flag::PARKED);
        // Armed anew, a poll reports what is there already.
        if !self.slots.get(slot).has(flag::RECEIVING) {
            self.receive(slot);
        } else if !self.slots.get(slot).has(flag::READING) {
            self.read(slot);
        }
    }
}
