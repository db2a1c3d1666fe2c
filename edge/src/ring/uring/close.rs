//! The end of a connection. Closing a direct descriptor with a receive armed would succeed, send no
//! FIN and leak the socket. So: cancel what is armed, by its user data (by descriptor the kernel
//! searches all requests), wait for each last completion, and only then close. A shutdown runs on a
//! kernel thread and looks the descriptor up when it runs, so it too must have ended before.

use std::io;

use io_uring::{opcode, squeue, types};

use super::ring::Ring;
use crate::ring::slots::{NONE, flag};
use crate::ring::token::{Operation, Token};
use crate::ring::{Event, Hold, ReceiveMode};

impl Ring {
    /// Begins to close; `Closed` follows when the kernel has let go of everything. The first reason
    /// given is the one reported.
    pub(super) fn begin_close(
        &mut self,
        slot: u32,
        error: Option<io::ErrorKind>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let conn = self.slots.get_mut(slot);
        if conn.has(flag::CLOSING) {
            return;
        }
        conn.set(flag::CLOSING);
        self.slots.set_error(slot, error);
        self.cancel_armed(slot);
        self.try_finish(slot, on_event);
    }

    /// Both directions have ended in an orderly way: nothing can happen any more.
    pub(super) fn close_if_both_shut(&mut self, slot: u32, on_event: &mut dyn FnMut(Event<'_>)) {
        let conn = self.slots.get(slot);
        if conn.has(flag::EOF) && conn.has(flag::SHUTDOWN_DONE) {
            self.begin_close(slot, None, on_event);
        }
    }

    fn cancel_armed(&mut self, slot: u32) {
        for (armed, operation) in [
            (flag::RECEIVING, Operation::Receive),
            (flag::AWAITING_ROOM, Operation::Writable),
            (flag::CONNECTING, Operation::Connect),
        ] {
            if self.slots.get(slot).has(armed) {
                self.cancel(slot, operation);
            }
        }
    }

    pub(super) fn cancel(&mut self, slot: u32, operation: Operation) {
        let generation = self.slots.get(slot).generation;
        let target = Token::new(operation, slot, generation);
        let own = Token::new(Operation::Cancel, slot, generation);
        let entry = opcode::AsyncCancel::new(target.pack())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(own.pack());
        self.queue.push(entry, &mut self.stats);
    }

    /// A cancel that finds nothing has a completion: normally what it sought has just ended and its
    /// own completion came along. If not, seek again.
    pub(super) fn run_recancels(&mut self) {
        for id in std::mem::take(&mut self.recancels) {
            let Some(slot) = self.slots.find(id) else {
                continue;
            };
            let conn = self.slots.get(slot);
            if conn.has(flag::CLOSING) {
                self.cancel_armed(slot);
            } else if self.held != Hold::Nothing
                && conn.has(flag::RECEIVING)
                && self.receive_mode == ReceiveMode::Multishot
            {
                self.cancel(slot, Operation::Receive);
            }
        }
    }

    /// Closes the descriptor of a closing connection as soon as nothing is under way.
    pub(super) fn try_finish(&mut self, slot: u32, on_event: &mut dyn FnMut(Event<'_>)) {
        let conn = self.slots.get_mut(slot);
        if !conn.has(flag::CLOSING) || conn.has(flag::IN_KERNEL | flag::CLOSE_SENT) {
            return;
        }
        conn.set(flag::CLOSE_SENT);
        if conn.descriptor == NONE {
            // The attempt failed before there was a socket.
            return self.on_closed(slot, on_event);
        }
        let entry = opcode::Close::new(types::Fixed(conn.descriptor))
            .build()
            .user_data(Token::new(Operation::Close, slot, conn.generation).pack());
        self.queue.push(entry, &mut self.stats);
    }

    /// The descriptor is free, so the slot is.
    pub(super) fn on_closed(&mut self, slot: u32, on_event: &mut dyn FnMut(Event<'_>)) {
        let conn = self.slots.id(slot);
        let error = self.slots.release(slot);
        self.stats.closed += 1;
        on_event(Event::Closed { conn, error });
    }

    /// Closes a direct descriptor that belongs to no slot.
    pub(super) fn close_descriptor(&mut self, descriptor: u32) {
        let entry = opcode::Close::new(types::Fixed(descriptor))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Token::new(Operation::Ignore, 0, 0).pack());
        self.queue.push(entry, &mut self.stats);
    }
}
