//! New connections, both ways: accepting within a budget and as the table allows, and connecting.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{EpollDriver, OnEvent, READ_EVENTS, WRITE_EVENTS, close_descriptor};
use crate::ring::slots::{accept_limits, flag};
use crate::ring::sockets::{AcceptFault, accept_fault};
use crate::ring::token::{Operation, Token};
use crate::ring::{ConnId, Event, Hold, ListenerId};

/// The pause after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl EpollDriver {
    pub(super) fn update_accepting(&mut self) {
        let (stop, resume) = accept_limits(self.slots.capacity());
        if self.slots.live() >= stop {
            self.full = true;
        } else if self.slots.live() <= resume {
            self.full = false;
        }
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
        }
        let wanted = self.accepting
            && self.admitted > 0
            && self.held == Hold::Nothing
            && !self.full
            && self.retry_at.is_none();
        for index in 0..self.listeners.len() {
            let listener = &self.listeners[index];
            if listener.watched != wanted {
                let events = if wanted { libc::EPOLLIN as u32 } else { 0 };
                let token = Token::new(Operation::Accept, index as u32, 0);
                let fd = listener.socket.as_raw_fd();
                // A known descriptor can always be modified.
                if self.control(libc::EPOLL_CTL_MOD, fd, events, token).is_ok() {
                    self.listeners[index].watched = wanted;
                }
            }
        }
    }

    pub(super) fn accept(&mut self, index: usize, budget: &mut u32, on_event: OnEvent<'_>) {
        while *budget > 0 && !self.full && self.retry_at.is_none() && self.held == Hold::Nothing {
            let Some(listener) = self.listeners.get(index) else {
                return;
            };
            match listener.socket.accept() {
                Ok((stream, peer)) => {
                    *budget -= 1;
                    let id = listener.id;
                    self.arrive(stream, peer, id, on_event);
                    self.update_accepting();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => match accept_fault(error.raw_os_error().unwrap_or(0)) {
                    AcceptFault::Connection => *budget -= 1,
                    AcceptFault::Full | AcceptFault::Pause => {
                        tracing::warn!("accept failed, pausing for {ACCEPT_PAUSE:?}: {error}");
                        self.retry_at = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                },
            }
        }
    }

    pub(super) fn arrive(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        listener: ListenerId,
        on_event: OnEvent<'_>,
    ) {
        let fd = stream.into_raw_fd();
        let Some(slot) = self.slots.allocate(fd as u32, 0) else {
            self.stats.accept_refused += 1;
            close_descriptor(fd);
            return;
        };
        if self.watch(libc::EPOLL_CTL_ADD, slot, READ_EVENTS).is_err() {
            // No memory for the watch: as if there had been no room.
            self.stats.accept_refused += 1;
            self.slots.release(slot);
            close_descriptor(fd);
            return;
        }
        self.stats.accepted += 1;
        on_event(Event::Accepted {
            conn: self.slots.id(slot),
            listener,
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        });
    }

    pub(super) fn begin_connect(
        &mut self,
        peer: SocketAddr,
        source: Option<SocketAddr>,
    ) -> io::Result<ConnId> {
        if self.slots.live() >= self.slots.capacity() {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(peer), kind, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source {
            bind_address_no_port(&socket)?;
            socket.bind(&source.into())?;
        }
        let failed = match socket.connect(&peer.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Some(error.kind()),
            _ => None,
        };
        let fd = socket.into_raw_fd();
        let Some(slot) = self.slots.allocate(fd as u32, flag::CONNECTING) else {
            close_descriptor(fd);
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        };
        let id = self.slots.id(slot);
        match failed {
            // Like a failure that takes its time: `Closed` in the next turn.
            Some(kind) => self.close_later(slot, Some(kind)),
            None => {
                let watched = self.watch(libc::EPOLL_CTL_ADD, slot, WRITE_EVENTS | READ_EVENTS);
                if let Err(error) = watched {
                    self.slots.release(slot);
                    close_descriptor(fd);
                    return Err(error);
                }
            }
        }
        Ok(id)
    }

    pub(super) fn finish_connect(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let outcome = SockRef::from(&self.socket(slot)).take_error();
        match outcome {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => {
                return self.close_now(slot, Some(error.kind()), on_event);
            }
        }
        self.slots.get_mut(slot).clear(flag::CONNECTING);
        on_event(Event::Connected {
            conn: self.slots.id(slot),
        });
        // Setting the watch anew reports what is readable by now.
        if let Err(error) = self.watch(libc::EPOLL_CTL_MOD, slot, READ_EVENTS) {
            self.close_now(slot, Some(error.kind()), on_event);
        }
    }
}

/// Has the source port chosen when the destination is known, so that it need be free only towards
/// that destination.
fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let enabled: i32 = 1;
    // SAFETY: the option is an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const enabled).cast(),
            size_of::<i32>() as u32,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
