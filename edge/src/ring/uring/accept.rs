//! Arrivals: accepts straight into the table of direct descriptors, when to stop and go on, and whom
//! a connection comes from.
//!
//! Each accept takes one connection, and as many are with the kernel as may be let in. A multishot
//! accept would take all that wait in the listener's queue at once, tens of thousands in a storm, in
//! one call during which nobody is served; and would leave nothing to hold back.
//!
//! An accept does not report addresses, and a direct descriptor cannot be given to
//! getpeername(2). The socket option SO_PEERNAME can be read by a request, in the same submission
//! that arms the receive, so the name costs neither an enter nor a descriptor.

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};
use socket2::SockRef;

use super::queue::Completion;
use super::ring::Ring;
use crate::ring::slots::{Arrival, accept_limits, unknown_peer};
use crate::ring::sockets::{AcceptFault, accept_fault};
use crate::ring::token::{Operation, Token};
use crate::ring::{DriverConfig, Event, ListenerId};

/// The pause after an accept failed for want of kernel memory or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// `SOCKET_URING_OP_GETSOCKOPT` of `IORING_OP_URING_CMD`.
const COMMAND_GETSOCKOPT: u32 = 2;

struct Listener {
    id: ListenerId,
    /// Kept until the kernel has let go of it, so that its number is not reused meanwhile.
    socket: Option<TcpListener>,
    /// Length of the addresses it sees.
    name_length: u32,
    /// Accepts that are with the kernel.
    armed: u32,
    cancelling: bool,
    closed: bool,
}

/// A ring's listeners and its willingness to accept.
pub(super) struct Acceptor {
    listeners: Vec<Listener>,
    accepting: bool,
    /// It is this ring's turn: see [`super::UringDriver`].
    chosen: bool,
    /// Whatever else is wanted.
    pub(super) held: bool,
    /// The table is full, or nearly.
    full: bool,
    retry_at: Option<Instant>,
    /// Accepted by the kernel beyond the turn's budget: descriptor, and index of the listener.
    backlog: VecDeque<(u32, usize)>,
    /// Arrivals that may still be announced in this turn: the ring's share of the driver's budget.
    allowance: u32,
    /// What it was when the turn began.
    granted: u32,
    /// Arrivals that a turn may let in at present, at most the driver's budget; 0: all wait.
    admitted: u32,
    budget: u32,
    /// Accepts that are kept with the kernel: more when they are all used up in one turn.
    depth: u32,
    stop: u32,
    resume: u32,
}

impl Acceptor {
    pub(super) fn new(config: &DriverConfig) -> Self {
        let (stop, resume) = accept_limits(config.slots_per_ring());
        Self {
            listeners: Vec::new(),
            accepting: true,
            chosen: false,
            held: false,
            full: false,
            retry_at: None,
            backlog: VecDeque::new(),
            allowance: config.accept_budget,
            granted: config.accept_budget,
            admitted: config.accept_budget,
            budget: config.accept_budget,
            depth: 1,
            stop,
            resume,
        }
    }

    /// Somebody whom the next turn may let in.
    pub(super) fn has_admissible(&self) -> bool {
        self.has_backlog() && self.admitted > 0
    }

    fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Connections that the kernel has accepted and nobody was told of yet.
    pub(super) fn waiting(&self) -> u64 {
        self.backlog.len() as u64
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    fn wants_connections(&self) -> bool {
        self.accepting
            && self.admitted > 0
            && self.chosen
            && !self.held
            && !self.full
            && self.retry_at.is_none()
            && self.backlog.is_empty()
    }

    /// Whether the table is full, or nearly.
    pub(super) const fn is_full(&self) -> bool {
        self.full
    }

    /// Whether no accept is with the kernel.
    pub(super) fn is_quiet(&self) -> bool {
        self.backlog.is_empty() && self.listeners.iter().all(|listener| listener.armed == 0)
    }

    /// Adds further descriptors of the listening sockets to `all`.
    pub(super) fn listeners(&self, all: &mut Vec<(ListenerId, OwnedFd)>) -> io::Result<()> {
        for listener in self.listeners.iter().filter(|listener| !listener.closed) {
            if let Some(socket) = &listener.socket {
                all.push((listener.id, socket.as_fd().try_clone_to_owned()?));
            }
        }
        Ok(())
    }
}

impl Ring {
    /// Accepts from `socket` from the next turn on.
    pub(super) fn listen(&mut self, id: ListenerId, socket: TcpListener) -> io::Result<()> {
        SockRef::from(&socket).set_tcp_nodelay(true)?;
        let name_length = if socket.local_addr()?.is_ipv4() {
            size_of::<libc::sockaddr_in>()
        } else {
            size_of::<libc::sockaddr_in6>()
        } as u32;
        self.acceptor.listeners.push(Listener {
            id,
            socket: Some(socket),
            name_length,
            armed: 0,
            cancelling: false,
            closed: false,
        });
        self.update_accepting();
        Ok(())
    }

    /// Arrivals come to this ring, or to another one.
    pub(super) fn choose(&mut self, chosen: bool) {
        self.acceptor.chosen = chosen;
        self.update_accepting();
    }

    /// How many arrivals each turn may let in from now on.
    pub(super) fn admit(&mut self, arrivals: u32) {
        let admitted = arrivals.min(self.acceptor.budget);
        if std::mem::replace(&mut self.acceptor.admitted, admitted) != admitted {
            self.update_accepting();
        }
    }

    pub(super) fn set_accepting(&mut self, accepting: bool) {
        self.acceptor.accepting = accepting;
        self.update_accepting();
    }

    /// Closes the ports. Shutting the sockets down does so at once, though an armed accept still
    /// holds them.
    pub(super) fn close_listeners(&mut self) {
        for listener in &mut self.acceptor.listeners {
            if let Some(socket) = &listener.socket {
                // It fails only for a socket that listens no more.
                let _ = SockRef::from(socket).shutdown(std::net::Shutdown::Both);
            }
            listener.closed = true;
            if listener.armed == 0 {
                listener.socket = None;
            }
        }
        self.update_accepting();
    }

    /// Arms or cancels the accepts, as the state of the table demands.
    pub(super) fn update_accepting(&mut self) {
        let live = self.slots.live() + self.acceptor.backlog.len() as u32;
        if live >= self.acceptor.stop {
            self.acceptor.full = true;
        } else if live <= self.acceptor.resume {
            self.acceptor.full = false;
        }
        if self
            .acceptor
            .retry_at
            .is_some_and(|at| at <= Instant::now())
        {
            self.acceptor.retry_at = None;
        }
        let wanted = self.acceptor.wants_connections();
        // What the kernel accepts must find room in the table: else it is dropped.
        let room = self.acceptor.stop.saturating_sub(live);
        let depth = self.acceptor.depth.min(self.acceptor.admitted).min(room);
        for index in 0..self.acceptor.listeners.len() {
            let listener = &mut self.acceptor.listeners[index];
            let token = Token::new(Operation::Accept, index as u32, 0).pack();
            let wanted = wanted && !listener.closed;
            if wanted && !listener.cancelling {
                let Some(socket) = &listener.socket else {
                    continue;
                };
                let fd = types::Fd(socket.as_raw_fd());
                for _ in listener.armed..depth {
                    listener.armed += 1;
                    let entry = opcode::Accept::new(fd, null_mut(), null_mut())
                        .file_index(Some(types::DestinationSlot::auto_target()))
                        .build()
                        .user_data(token);
                    self.queue.push(entry, &mut self.stats);
                }
            } else if !wanted && listener.armed > 0 && !listener.cancelling {
                listener.cancelling = true;
                let all = types::CancelBuilder::user_data(token).all();
                let entry = opcode::AsyncCancel2::new(all)
                    .build()
                    .user_data(Token::new(Operation::Ignore, 0, 0).pack())
                    .flags(squeue::Flags::SKIP_SUCCESS);
                self.queue.push(entry, &mut self.stats);
            }
        }
    }

    pub(super) fn on_accept(&mut self, index: u32, completion: Completion) {
        let index = index as usize;
        let Some(listener) = self.acceptor.listeners.get_mut(index) else {
            return;
        };
        listener.armed -= 1;
        if listener.armed == 0 {
            if completion.result >= 0 {
                // All that were with the kernel: more wait, probably.
                self.acceptor.depth = (self.acceptor.depth * 2).min(self.acceptor.budget);
            }
            listener.cancelling = false;
            if listener.closed {
                listener.socket = None;
            }
        }
        match u32::try_from(completion.result) {
            Ok(descriptor) if !self.acceptor.has_backlog() && self.has_room_in_turn() => {
                self.arrive(descriptor, index);
            }
            Ok(descriptor) => self.acceptor.backlog.push_back((descriptor, index)),
            Err(_) => self.on_accept_failed(index, -completion.result),
        }
    }

    /// How many arrivals may be announced from now on.
    pub(super) fn allow_arrivals(&mut self, count: u32) {
        self.acceptor.allowance = count;
        self.acceptor.granted = count;
    }

    /// What is left of it.
    pub(super) fn allowance(&self) -> u32 {
        self.acceptor.allowance
    }

    /// Arrivals that an earlier turn could not announce hold the places for names.
    fn has_room_in_turn(&self) -> bool {
        self.acceptor.allowance > 0 && self.arrivals.len() < self.names.len()
    }

    fn on_accept_failed(&mut self, index: usize, errno: i32) {
        if errno == libc::ECANCELED || self.acceptor.listeners[index].closed {
            return;
        }
        match accept_fault(errno) {
            AcceptFault::Connection => return,
            AcceptFault::Full => {
                // The kernel has accepted the connection, found no entry for it and dropped it.
                self.stats.accept_refused += 1;
                if self.slots.live() > self.acceptor.resume {
                    self.acceptor.full = true;
                    return;
                }
            }
            AcceptFault::Pause => {
                tracing::warn!(
                    "accept failed, pausing for {ACCEPT_PAUSE:?}: {}",
                    io::Error::from_raw_os_error(errno)
                );
            }
        }
        self.acceptor.retry_at = Some(Instant::now() + ACCEPT_PAUSE);
    }

    /// Takes what earlier turns left over, within this turn's budget.
    pub(super) fn accept_backlog(&mut self) {
        // Many accepts are for a storm.
        let (left, granted) = (self.acceptor.allowance, self.acceptor.granted);
        if granted > 0 && left == granted {
            self.acceptor.depth = (self.acceptor.depth / 2).max(1);
        }
        while self.has_room_in_turn()
            && let Some((descriptor, index)) = self.acceptor.backlog.pop_front()
        {
            self.arrive(descriptor, index);
        }
    }

    /// A slot for a new direct descriptor; asks for the peer's name and begins to read.
    fn arrive(&mut self, descriptor: u32, index: usize) {
        let listener = &self.acceptor.listeners[index];
        let (id, name_length) = (listener.id, listener.name_length);
        let Some(slot) = self.slots.allocate(descriptor, 0) else {
            // Outgoing connections without a descriptor yet hold the last slots.
            self.stats.accept_refused += 1;
            self.close_descriptor(descriptor);
            return;
        };
        self.stats.accepted += 1;
        self.acceptor.allowance -= 1;
        let name = &mut self.names[self.arrivals.len()];
        *name = Name::default();
        let entry = name.request(descriptor, name_length);
        self.queue.push(entry, &mut self.stats);
        self.receive(slot);
        self.arrivals.push(Arrival { slot, listener: id });
    }

    /// Tells of the arrivals, whose names the kernel has filled in when it took the requests.
    pub(super) fn announce(&mut self, on_event: &mut dyn FnMut(Event<'_>)) {
        for (arrival, name) in self.arrivals.drain(..).zip(self.names.iter()) {
            on_event(Event::Accepted {
                conn: self.slots.id(arrival.slot),
                listener: arrival.listener,
                peer: name.address(),
            });
        }
    }
}

/// Where the kernel writes a socket address, as bytes of a sockaddr_in or sockaddr_in6.
#[derive(Clone, Copy, Default)]
#[repr(C, align(8))]
pub(super) struct Name {
    bytes: [u8; size_of::<libc::sockaddr_in6>()],
}

impl Name {
    pub(super) fn array(count: u32) -> Box<[Self]> {
        vec![Self::default(); count as usize].into_boxed_slice()
    }

    /// Reads the peer's name of a direct descriptor into `self`, without a completion unless it
    /// fails. Socket commands never wait: it is done when the kernel has taken the request.
    fn request(&mut self, descriptor: u32, length: u32) -> squeue::Entry {
        let mut entry = opcode::SetSockOpt::new(
            types::Fixed(descriptor),
            libc::SOL_SOCKET as u32,
            libc::SO_PEERNAME as u32,
            self.bytes.as_mut_ptr().cast(),
            length,
        )
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS)
        .user_data(Token::new(Operation::Ignore, 0, 0).pack());
        const { assert!(size_of::<squeue::Entry>() == 64) };
        // SAFETY: the entry is the kernel's 64-byte `struct io_uring_sqe` (repr(C), asserted above),
        // whose `cmd_op` is the 32-bit word at byte 8; get and set differ in nothing else.
        unsafe {
            (&raw mut entry)
                .cast::<u32>()
                .add(2)
                .write(COMMAND_GETSOCKOPT);
        }
        entry
    }

    /// The address, unspecified if the kernel had none (the peer has gone again).
    fn address(&self) -> SocketAddr {
        let family = i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]));
        let port = u16::from_be_bytes([self.bytes[2], self.bytes[3]]);
        match family {
            libc::AF_INET => {
                let [_, _, _, _, a, b, c, d, ..] = self.bytes;
                SocketAddr::from((Ipv4Addr::new(a, b, c, d), port))
            }
            libc::AF_INET6 => {
                let mut octets = [0; 16];
                octets.copy_from_slice(&self.bytes[8..24]);
                SocketAddr::from((Ipv6Addr::from(octets).to_canonical(), port))
            }
            _ => unknown_peer(),
        }
    }
}
