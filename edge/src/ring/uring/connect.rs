//! Outgoing connections, without a file descriptor of the process at any time: the socket is made as
//! a direct descriptor, then its options are set, its source bound, and it is connected, all by
//! requests. So the number of attempts under way is bounded by the table alone.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;

use io_uring::{opcode, squeue, types};

use super::ring::Ring;
use crate::ring::slots::{Attempt, NONE, flag};
use crate::ring::sockets::kind_of;
use crate::ring::token::{Operation, Token};
use crate::ring::{ConnId, Event};

/// An option's value, where the kernel can read it at any time.
static ENABLED: i32 = 1;

impl Ring {
    pub(super) fn connect(
        &mut self,
        peer: SocketAddr,
        source: Option<SocketAddr>,
    ) -> io::Result<ConnId> {
        if source.is_some() && !self.abilities.bind {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "binding an outgoing connection needs IORING_OP_BIND (Linux 6.11)",
            ));
        }
        let Some(slot) = self.slots.allocate(NONE, flag::CONNECTING) else {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        };
        self.slots.set_attempt(
            slot,
            Attempt {
                peer: peer.into(),
                source: source.map(Into::into),
            },
        );
        let conn = self.slots.get(slot);
        let domain = if peer.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let entry = opcode::Socket::new(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)
            .file_index(Some(types::DestinationSlot::auto_target()))
            .build()
            .user_data(Token::new(Operation::Socket, slot, conn.generation).pack());
        self.queue.push(entry, &mut self.stats);
        Ok(self.slots.id(slot))
    }

    /// The socket is there: set it up and connect. Requests of one submission are carried out in
    /// their order up to the point where they would wait, which only the last does.
    pub(super) fn on_socket(
        &mut self,
        slot: u32,
        result: i32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let conn = self.slots.get_mut(slot);
        let Ok(descriptor) = u32::try_from(result) else {
            conn.clear(flag::CONNECTING);
            if conn.has(flag::CLOSING) {
                return self.try_finish(slot, on_event);
            }
            return self.begin_close(slot, Some(kind_of(result)), on_event);
        };
        conn.descriptor = descriptor;
        if conn.has(flag::CLOSING) {
            conn.clear(flag::CONNECTING);
            return self.try_finish(slot, on_event);
        }
        self.set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_NODELAY);
        let conn = self.slots.get(slot);
        let rare = self.slots.rare(slot);
        let Some(attempt) = rare.and_then(|rare| rare.attempt.as_ref()) else {
            return;
        };
        let connect = opcode::Connect::new(
            types::Fixed(descriptor),
            attempt.peer.as_ptr().cast(),
            attempt.peer.len(),
        )
        .build()
        .user_data(Token::new(Operation::Connect, slot, conn.generation).pack());
        let bind = attempt.source.as_ref().map(|source| {
            opcode::Bind::new(
                types::Fixed(descriptor),
                source.as_ptr().cast(),
                source.len(),
            )
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Token::new(Operation::Bind, slot, conn.generation).pack())
        });
        if let Some(bind) = bind {
            // The port is chosen when the destination is known, so that it need be free only towards
            // that destination.
            self.set_option(descriptor, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
            self.queue.push(bind, &mut self.stats);
        }
        self.queue.push(connect, &mut self.stats);
    }

    fn set_option(&mut self, descriptor: u32, level: i32, option: i32) {
        let entry = opcode::SetSockOpt::new(
            types::Fixed(descriptor),
            level as u32,
            option as u32,
            (&raw const ENABLED).cast(),
            size_of::<i32>() as u32,
        )
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS)
        .user_data(Token::new(Operation::Ignore, 0, 0).pack());
        self.queue.push(entry, &mut self.stats);
    }

    pub(super) fn on_connect(
        &mut self,
        slot: u32,
        result: i32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let conn = self.slots.get_mut(slot);
        conn.clear(flag::CONNECTING);
        if conn.has(flag::CLOSING) {
            return self.try_finish(slot, on_event);
        }
        if result < 0 {
            return self.begin_close(slot, Some(kind_of(result)), on_event);
        }
        self.slots.end_attempt(slot);
        on_event(Event::Connected {
            conn: self.slots.id(slot),
        });
        self.receive(slot);
    }
}
