//! Bytes in and out of the connections that are up, and how these end.

use std::io;
use std::os::fd::RawFd;

use bytes::{Buf, Bytes};
use socket2::SockRef;

use super::{EpollDriver, OnEvent, READ_EVENTS, WRITE_EVENTS, close_descriptor};
use crate::ring::slots::{NONE, flag};
use crate::ring::{Event, Hold};

impl EpollDriver {
    pub(super) fn queue_read(&mut self, slot: u32) {
        let id = self.slots.id(slot);
        let conn = self.slots.get_mut(slot);
        if self.held == Hold::Nothing && !conn.has(flag::READY | flag::EOF | flag::CLOSING) {
            conn.set(flag::READY);
            self.ready.push_back(id);
        }
    }

    pub(super) fn read_ready(&mut self, on_event: OnEvent<'_>) {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            if let Some(slot) = self.slots.find(id) {
                self.slots.get_mut(slot).clear(flag::READY);
                self.read(slot, on_event);
            }
        }
    }

    /// Reads until nothing is left, within the budget.
    pub(super) fn read(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let id = self.slots.id(slot);
        for _ in 0..self.receive_budget {
            if self.slots.get(slot).has(flag::CLOSING | flag::EOF) {
                return;
            }
            let fd = self.slots.get(slot).descriptor as RawFd;
            // SAFETY: the kernel writes at most the buffer's length into it.
            let count = unsafe {
                libc::recv(
                    fd,
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            match count {
                1.. => {
                    let count = count as usize;
                    self.stats.bytes_received += count as u64;
                    on_event(Event::Received {
                        conn: id,
                        data: &mut self.buffer[..count],
                    });
                    // A short read emptied the socket, and what comes later is a new edge; but a
                    // FIN whose edge came along with these bytes is still to be read.
                    if count < self.buffer.len() && !self.slots.get(slot).has(flag::HANG_UP) {
                        return;
                    }
                }
                0 => return self.on_eof(slot, on_event),
                _ => {
                    let error = io::Error::last_os_error();
                    match error.kind() {
                        io::ErrorKind::WouldBlock => return,
                        io::ErrorKind::Interrupted => {}
                        kind => return self.close_now(slot, Some(kind), on_event),
                    }
                }
            }
        }
        self.queue_read(slot);
    }

    pub(super) fn on_eof(&mut self, slot: u32, on_event: OnEvent<'_>) {
        self.slots.get_mut(slot).set(flag::EOF);
        on_event(Event::Eof {
            conn: self.slots.id(slot),
        });
        self.close_if_both_shut(slot, on_event);
    }

    /// Sends all that was handed over since the last turn, then shuts and closes.
    pub(super) fn flush(&mut self, on_event: OnEvent<'_>) {
        let mut outbox = std::mem::take(&mut self.outbox);
        for (id, bytes) in outbox.drain(..) {
            if let Some(slot) = self.slots.find(id) {
                self.slots.get_mut(slot).send = NONE;
                self.send_first(slot, bytes, on_event);
            }
        }
        self.outbox = outbox;
        for id in std::mem::take(&mut self.shutdowns) {
            if let Some(slot) = self.slots.find(id) {
                self.shut_when_sent(slot, on_event);
            }
        }
        for id in std::mem::take(&mut self.closes) {
            if let Some(slot) = self.slots.find(id) {
                self.finish(slot, on_event);
            }
        }
    }

    pub(super) fn send_first(&mut self, slot: u32, mut bytes: Bytes, on_event: OnEvent<'_>) {
        match self.write(slot, &bytes) {
            Ok(count) => bytes.advance(count),
            Err(kind) => return self.close_now(slot, Some(kind), on_event),
        }
        if bytes.is_empty() || self.slots.get(slot).has(flag::CLOSING) {
            return;
        }
        self.stats.sends_blocked += 1;
        let unsent = bytes.len();
        self.slots.set_tail(slot, bytes);
        if let Err(error) = self.watch(libc::EPOLL_CTL_MOD, slot, WRITE_EVENTS | READ_EVENTS) {
            return self.close_now(slot, Some(error.kind()), on_event);
        }
        self.slots.get_mut(slot).set(flag::AWAITING_ROOM);
        on_event(Event::Blocked {
            conn: self.slots.id(slot),
            unsent,
        });
    }

    /// Gives the kernel what it takes now; an error is the end of the connection.
    pub(super) fn write(&mut self, slot: u32, bytes: &[u8]) -> Result<usize, io::ErrorKind> {
        let fd = self.slots.get(slot).descriptor as RawFd;
        loop {
            // SAFETY: the kernel reads at most the slice's length from it.
            let count = unsafe {
                libc::send(
                    fd,
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            if count >= 0 {
                self.stats.bytes_sent += count as u64;
                return Ok(count as usize);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => return Ok(0),
                _ => return Err(error.kind()),
            }
        }
    }

    pub(super) fn send_tail(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let Some(rare) = self.slots.rare(slot) else {
            return;
        };
        let tail = rare.tail.clone();
        let count = match self.write(slot, &tail) {
            Ok(count) => count,
            Err(kind) => return self.close_now(slot, Some(kind), on_event),
        };
        if !self.slots.advance_tail(slot, count) {
            return;
        }
        self.slots.get_mut(slot).clear(flag::AWAITING_ROOM);
        if let Err(error) = self.watch(libc::EPOLL_CTL_MOD, slot, READ_EVENTS) {
            return self.close_now(slot, Some(error.kind()), on_event);
        }
        on_event(Event::Drained {
            conn: self.slots.id(slot),
        });
        self.shut_when_sent(slot, on_event);
    }

    pub(super) fn shut_when_sent(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let conn = self.slots.get(slot);
        if !conn.has(flag::SHUTDOWN_WANTED)
            || conn.has(flag::CLOSING | flag::SHUTDOWN_DONE)
            || conn.is_blocked()
        {
            return;
        }
        let result = SockRef::from(&self.socket(slot)).shutdown(std::net::Shutdown::Write);
        self.slots.get_mut(slot).set(flag::SHUTDOWN_DONE);
        match result {
            // The peer has reset the connection: reading reports that better.
            Err(error)
                if error.kind() != io::ErrorKind::NotConnected
                    || self.slots.get(slot).has(flag::EOF) =>
            {
                self.close_now(slot, Some(error.kind()), on_event);
            }
            _ => self.close_if_both_shut(slot, on_event),
        }
    }

    pub(super) fn close_if_both_shut(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let conn = self.slots.get(slot);
        if conn.has(flag::EOF) && conn.has(flag::SHUTDOWN_DONE) {
            self.close_now(slot, None, on_event);
        }
    }

    /// Marks a connection as closing; the next turn closes it, after it sent what is queued.
    pub(super) fn close_later(&mut self, slot: u32, error: Option<io::ErrorKind>) {
        let id = self.slots.id(slot);
        let conn = self.slots.get_mut(slot);
        if conn.has(flag::CLOSING) {
            return;
        }
        conn.set(flag::CLOSING);
        self.slots.set_error(slot, error);
        self.closes.push(id);
    }

    pub(super) fn close_now(
        &mut self,
        slot: u32,
        error: Option<io::ErrorKind>,
        on_event: OnEvent<'_>,
    ) {
        if !self.slots.get(slot).has(flag::CLOSING) {
            self.slots.get_mut(slot).set(flag::CLOSING);
            self.slots.set_error(slot, error);
        }
        self.finish(slot, on_event);
    }

    pub(super) fn finish(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let conn = self.slots.id(slot);
        close_descriptor(self.slots.get(slot).descriptor as RawFd);
        let error = self.slots.release(slot);
        self.stats.closed += 1;
        on_event(Event::Closed { conn, error });
    }
}
