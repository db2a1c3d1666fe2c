//! The way out. A send is one request that the kernel carries out while it takes it, without waiting
//! (MSG_DONTWAIT) and without a completion unless it stayed short (CQE_SKIP_SUCCESS, which needs
//! MSG_WAITALL: else short sends pass for success). So when the enter has returned, no completion
//! means that every byte was copied, and the payload is dropped; a completion is a short count or
//! EAGAIN, and the connection is *blocked*: the tail is kept, sent when the socket has room again,
//! and no further send is taken meanwhile.

use std::io;
use std::net::Shutdown;
use std::os::fd::{FromRawFd, OwnedFd};

use bytes::{Buf, Bytes};
use io_uring::{opcode, squeue, types};
use socket2::SockRef;

use super::ring::{QueuedSend, Ring};
use crate::ring::slots::{NONE, SendState, flag};
use crate::ring::sockets::kind_of;
use crate::ring::token::{Operation, Token};
use crate::ring::{Event, Hold};

const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// The longest single send: its count must fit the completion's result.
const SEND_LIMIT: usize = 1 << 30;

impl Ring {
    pub(super) fn send(&mut self, slot: u32, bytes: Bytes) {
        match self.slots.get(slot).send_state() {
            SendState::Ignored => return,
            SendState::Open if bytes.is_empty() => return,
            SendState::Open if bytes.len() <= SEND_LIMIT => {}
            SendState::Open | SendState::Misused => {
                return self.begin_close(slot, Some(io::ErrorKind::InvalidInput), &mut |_| {});
            }
        }
        let id = self.slots.id(slot);
        let conn = self.slots.get_mut(slot);
        conn.send = self.sends.len() as u32;
        let entry = opcode::Send::new(
            types::Fixed(conn.descriptor),
            bytes.as_ptr(),
            bytes.len() as u32,
        )
        .flags(SEND_FLAGS)
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS)
        .user_data(Token::new(Operation::Send, slot, id.generation).pack());
        self.stats.sends += 1;
        self.stats.bytes_sent += bytes.len() as u64;
        self.sends.push(QueuedSend { conn: id, bytes });
        self.queue.push(entry, &mut self.stats);
    }

    /// Drops the payloads of all sends that the kernel has taken and not complained about. To be
    /// called when all was submitted and all completions of it were handled.
    pub(super) fn forget_sends(&mut self) {
        for send in self.sends.drain(..) {
            if let Some(slot) = self.slots.find(send.conn) {
                self.slots.get_mut(slot).send = NONE;
            }
        }
        // A turn with many sends must not hold on to their room for ever.
        self.sends.shrink_to(SENDS_KEPT);
        for id in std::mem::take(&mut self.shutdowns) {
            if let Some(slot) = self.slots.find(id) {
                self.shut_when_sent(slot);
            }
        }
    }

    /// A send of this turn stayed short or failed.
    pub(super) fn on_short_send(
        &mut self,
        slot: u32,
        result: i32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let conn = self.slots.get(slot);
        let Some(send) = self.sends.get(conn.send as usize) else {
            return;
        };
        let mut tail = send.bytes.clone();
        if conn.has(flag::CLOSING) {
            self.stats.bytes_sent -= unsent(&tail, result);
            return;
        }
        match sent_count(result) {
            Ok(count) => tail.advance(count.min(tail.len())),
            Err(kind) => {
                self.stats.bytes_sent -= tail.len() as u64;
                return self.begin_close(slot, Some(kind), on_event);
            }
        }
        if tail.is_empty() {
            return;
        }
        self.stats.bytes_sent -= tail.len() as u64;
        self.stats.sends_blocked += 1;
        let unsent = tail.len();
        self.slots.set_tail(slot, tail);
        self.await_room(slot);
        on_event(Event::Blocked {
            conn: self.slots.id(slot),
            unsent,
        });
    }

    /// Waits until the socket takes bytes again, unless that is held: the release sees to it then.
    pub(super) fn await_room(&mut self, slot: u32) {
        if self.held == Hold::Everything {
            return;
        }
        let conn = self.slots.get_mut(slot);
        conn.set(flag::AWAITING_ROOM);
        let entry = opcode::PollAdd::new(types::Fixed(conn.descriptor), libc::POLLOUT as u32)
            .build()
            .user_data(Token::new(Operation::Writable, slot, conn.generation).pack());
        self.queue.push(entry, &mut self.stats);
    }

    pub(super) fn on_writable(
        &mut self,
        slot: u32,
        result: i32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let conn = self.slots.get_mut(slot);
        conn.clear(flag::AWAITING_ROOM);
        if conn.has(flag::CLOSING) {
            return self.try_finish(slot, on_event);
        }
        if result < 0 && -result != libc::EINTR && -result != libc::ECANCELED {
            return self.begin_close(slot, Some(kind_of(result)), on_event);
        }
        if self.held == Hold::Everything {
            return;
        }
        // After an error or a reset the send says which.
        self.send_tail(slot);
    }

    fn send_tail(&mut self, slot: u32) {
        let Some(rare) = self.slots.rare(slot) else {
            return;
        };
        let conn = self.slots.get(slot);
        let entry = opcode::Send::new(
            types::Fixed(conn.descriptor),
            rare.tail.as_ptr(),
            rare.tail.len() as u32,
        )
        .flags(SEND_FLAGS)
        .build()
        .user_data(Token::new(Operation::SendTail, slot, conn.generation).pack());
        self.slots.get_mut(slot).set(flag::SENDING_TAIL);
        self.queue.push(entry, &mut self.stats);
    }

    pub(super) fn on_tail_sent(
        &mut self,
        slot: u32,
        result: i32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let conn = self.slots.get_mut(slot);
        conn.clear(flag::SENDING_TAIL);
        if conn.has(flag::CLOSING) {
            self.stats.bytes_sent += result.max(0) as u64;
            return self.try_finish(slot, on_event);
        }
        let count = match sent_count(result) {
            Ok(count) => count,
            Err(kind) => return self.begin_close(slot, Some(kind), on_event),
        };
        self.stats.bytes_sent += count as u64;
        if !self.slots.advance_tail(slot, count) {
            return self.await_room(slot);
        }
        on_event(Event::Drained {
            conn: self.slots.id(slot),
        });
        self.shut_when_sent(slot);
    }

    /// FIN after all that was given to `send`.
    pub(super) fn shutdown(&mut self, slot: u32) {
        let conn = self.slots.get_mut(slot);
        if conn.has(flag::CLOSING | flag::CONNECTING | flag::SHUTDOWN_WANTED) {
            return;
        }
        conn.set(flag::SHUTDOWN_WANTED);
        if conn.send == NONE {
            self.shut_when_sent(slot);
        } else {
            // Whether this turn's send goes out whole is known after the enter.
            let id = self.slots.id(slot);
            self.shutdowns.push(id);
        }
    }

    pub(super) fn shut_when_sent(&mut self, slot: u32) {
        let conn = self.slots.get_mut(slot);
        if !conn.has(flag::SHUTDOWN_WANTED)
            || conn.has(flag::CLOSING | flag::SHUTTING | flag::SHUTDOWN_DONE)
            || conn.is_blocked()
        {
            return;
        }
        conn.set(flag::SHUTTING);
        let (descriptor, generation) = (types::Fixed(conn.descriptor), conn.generation);
        let entry = if self.abilities.install {
            opcode::FixedFdInstall::new(descriptor, 0)
                .build()
                .user_data(Token::new(Operation::InstallToShut, slot, generation).pack())
        } else {
            request_shutdown(descriptor, slot, generation)
        };
        self.queue.push(entry, &mut self.stats);
    }

    /// An ordinary descriptor came for a moment, for the system call that needs one.
    pub(super) fn on_installed_to_shut(
        &mut self,
        slot: u32,
        result: i32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        if result < 0 {
            // No descriptor to be had: the slow way.
            let conn = self.slots.get(slot);
            let entry = request_shutdown(types::Fixed(conn.descriptor), slot, conn.generation);
            return self.queue.push(entry, &mut self.stats);
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        let outcome = SockRef::from(&socket).shutdown(Shutdown::Write);
        drop(socket);
        let result =
            outcome.map_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        self.on_shutdown(slot, result, on_event);
    }

    pub(super) fn on_shutdown(
        &mut self,
        slot: u32,
        result: i32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let conn = self.slots.get_mut(slot);
        conn.clear(flag::SHUTTING);
        conn.set(flag::SHUTDOWN_DONE);
        if conn.has(flag::CLOSING) {
            return self.try_finish(slot, on_event);
        }
        // ENOTCONN: the peer has reset the connection. An armed receive reports that better.
        if result < 0 && !(-result == libc::ENOTCONN && conn.has(flag::RECEIVING)) {
            return self.begin_close(slot, Some(kind_of(result)), on_event);
        }
        self.close_if_both_shut(slot, on_event);
    }
}

/// Shuts by request, which the kernel always hands to a thread of its own.
fn request_shutdown(descriptor: types::Fixed, slot: u32, generation: u32) -> squeue::Entry {
    opcode::Shutdown::new(descriptor, libc::SHUT_WR)
        .build()
        .user_data(Token::new(Operation::Shutdown, slot, generation).pack())
}

/// Room for queued sends that a quiet ring keeps.
const SENDS_KEPT: usize = 4_096;

/// The bytes that a send's result accounts for; an error if it is the end of the connection.
fn sent_count(result: i32) -> Result<usize, io::ErrorKind> {
    match result {
        0.. => Ok(result as usize),
        // No room, or no memory, now.
        _ => match -result {
            libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM | libc::ECANCELED => Ok(0),
            _ => Err(kind_of(result)),
        },
    }
}

fn unsent(bytes: &Bytes, result: i32) -> u64 {
    (bytes.len() - bytes.len().min(result.max(0) as usize)) as u64
}
