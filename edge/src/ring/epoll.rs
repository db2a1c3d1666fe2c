//! The epoll driver: for hosts that forbid io_uring, with the same events in the same order.
//!
//! Edge-triggered, so an idle connection costs no call; one receive buffer for all; what the
//! connections send leaves at the start of the next turn. A connection with much to read gets a
//! bounded number of reads in a turn and then queues up behind the others.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::slots::{NONE, SendState, Slots, accept_limits, flag};
use super::sockets::{AcceptFault, accept_fault, nofile_limit};
use super::token::{Operation, Token};
use super::{ConnId, Driver, DriverConfig, DriverStats, Event, ListenerId, Waker};

/// The receive buffer of a driver.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Readiness events taken at once.
const EVENTS_PER_TURN: usize = 256;
/// Descriptors that the process needs for other things than connections.
const RESERVED_DESCRIPTORS: u64 = 64;
/// The pause after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const READ_EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
const WRITE_EVENTS: u32 = libc::EPOLLOUT as u32;
const HANG_UP_EVENTS: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;

type OnEvent<'a> = &'a mut dyn FnMut(Event<'_>);

struct Listener {
    id: ListenerId,
    socket: TcpListener,
    watched: bool,
}

/// The driver on epoll.
pub struct EpollDriver {
    epoll: OwnedFd,
    slots: Slots,
    listeners: Vec<Listener>,
    accepting: bool,
    full: bool,
    retry_at: Option<Instant>,
    accept_budget: u32,
    receive_budget: u32,
    buffer: Box<[u8]>,
    outbox: Vec<(ConnId, Bytes)>,
    shutdowns: Vec<ConnId>,
    closes: Vec<ConnId>,
    /// Connections with more to read.
    ready: VecDeque<ConnId>,
    events: Vec<libc::epoll_event>,
    waker: Waker,
    stats: DriverStats,
}

impl EpollDriver {
    pub fn new(config: &DriverConfig) -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let descriptors = nofile_limit().saturating_sub(RESERVED_DESCRIPTORS).max(1);
        let capacity = u64::from(config.slots_max.max(1)).min(descriptors) as u32;
        let waker = Waker::new()?;
        let driver = Self {
            epoll,
            slots: Slots::new(0, capacity),
            listeners: Vec::new(),
            accepting: true,
            full: false,
            retry_at: None,
            accept_budget: config.accept_budget.max(1),
            receive_budget: config.receive_budget.max(1),
            buffer: vec![0; RECEIVE_BUFFER].into_boxed_slice(),
            outbox: Vec::new(),
            shutdowns: Vec::new(),
            closes: Vec::new(),
            ready: VecDeque::new(),
            events: Vec::with_capacity(EVENTS_PER_TURN),
            waker,
            stats: DriverStats::default(),
        };
        driver.control(
            libc::EPOLL_CTL_ADD,
            driver.waker.as_raw_fd(),
            libc::EPOLLIN as u32,
            Token::new(Operation::Wake, 0, 0),
        )?;
        Ok(driver)
    }

    fn control(&self, operation: i32, fd: RawFd, events: u32, token: Token) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events,
            u64: token.pack(),
        };
        // SAFETY: the event lives through the call; the kernel checks the descriptors.
        let result = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn watch(&self, operation: i32, slot: u32, events: u32) -> io::Result<()> {
        let conn = self.slots.get(slot);
        self.control(
            operation,
            conn.descriptor as RawFd,
            events,
            Token::new(Operation::Receive, slot, conn.generation),
        )
    }

    /// The connection's socket, for the length of a call.
    fn socket(&self, slot: u32) -> BorrowedFd<'_> {
        // SAFETY: a live slot owns the descriptor until it is released, for which `self` must be
        // borrowed mutably.
        unsafe { BorrowedFd::borrow_raw(self.slots.get(slot).descriptor as RawFd) }
    }

    // Arrivals

    fn update_accepting(&mut self) {
        let (stop, resume) = accept_limits(self.slots.capacity());
        if self.slots.live() >= stop {
            self.full = true;
        } else if self.slots.live() <= resume {
            self.full = false;
        }
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
        }
        let wanted = self.accepting && !self.full && self.retry_at.is_none();
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

    fn accept(&mut self, index: usize, budget: &mut u32, on_event: OnEvent<'_>) {
        while *budget > 0 && !self.full && self.retry_at.is_none() {
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

    fn arrive(
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

    // Outgoing connections

    fn begin_connect(
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

    fn finish_connect(&mut self, slot: u32, on_event: OnEvent<'_>) {
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

    // The way in

    fn queue_read(&mut self, slot: u32) {
        let id = self.slots.id(slot);
        let conn = self.slots.get_mut(slot);
        if !conn.has(flag::READY | flag::EOF | flag::CLOSING) {
            conn.set(flag::READY);
            self.ready.push_back(id);
        }
    }

    fn read_ready(&mut self, on_event: OnEvent<'_>) {
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
    fn read(&mut self, slot: u32, on_event: OnEvent<'_>) {
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

    fn on_eof(&mut self, slot: u32, on_event: OnEvent<'_>) {
        self.slots.get_mut(slot).set(flag::EOF);
        on_event(Event::Eof {
            conn: self.slots.id(slot),
        });
        self.close_if_both_shut(slot, on_event);
    }

    // The way out

    /// Sends all that was handed over since the last turn, then shuts and closes.
    fn flush(&mut self, on_event: OnEvent<'_>) {
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

    fn send_first(&mut self, slot: u32, mut bytes: Bytes, on_event: OnEvent<'_>) {
        match self.write(slot, &bytes) {
            Ok(count) => bytes.advance(count),
            Err(kind) => return self.close_now(slot, Some(kind), on_event),
        }
        if bytes.is_empty() || self.slots.get(slot).has(flag::CLOSING) {
            return;
        }
        self.stats.sends_blocked += 1;
        let unsent = bytes.len();
        self.slots.get_mut(slot).rare_mut().tail = bytes;
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
    fn write(&mut self, slot: u32, bytes: &[u8]) -> Result<usize, io::ErrorKind> {
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

    fn send_tail(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let Some(rare) = &self.slots.get(slot).rare else {
            return;
        };
        let tail = rare.tail.clone();
        let count = match self.write(slot, &tail) {
            Ok(count) => count,
            Err(kind) => return self.close_now(slot, Some(kind), on_event),
        };
        let conn = self.slots.get_mut(slot);
        conn.rare_mut().tail.advance(count);
        if conn.is_blocked() {
            return;
        }
        conn.drop_tail();
        conn.clear(flag::AWAITING_ROOM);
        if let Err(error) = self.watch(libc::EPOLL_CTL_MOD, slot, READ_EVENTS) {
            return self.close_now(slot, Some(error.kind()), on_event);
        }
        on_event(Event::Drained {
            conn: self.slots.id(slot),
        });
        self.shut_when_sent(slot, on_event);
    }

    fn shut_when_sent(&mut self, slot: u32, on_event: OnEvent<'_>) {
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

    // The end

    fn close_if_both_shut(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let conn = self.slots.get(slot);
        if conn.has(flag::EOF) && conn.has(flag::SHUTDOWN_DONE) {
            self.close_now(slot, None, on_event);
        }
    }

    /// Marks a connection as closing; the next turn closes it, after it sent what is queued.
    fn close_later(&mut self, slot: u32, error: Option<io::ErrorKind>) {
        let id = self.slots.id(slot);
        let conn = self.slots.get_mut(slot);
        if conn.has(flag::CLOSING) {
            return;
        }
        conn.set(flag::CLOSING);
        if error.is_some() {
            conn.rare_mut().error = error;
        }
        self.closes.push(id);
    }

    fn close_now(&mut self, slot: u32, error: Option<io::ErrorKind>, on_event: OnEvent<'_>) {
        if !self.slots.get(slot).has(flag::CLOSING) {
            self.slots.get_mut(slot).set(flag::CLOSING);
            if error.is_some() {
                self.slots.get_mut(slot).rare_mut().error = error;
            }
        }
        self.finish(slot, on_event);
    }

    fn finish(&mut self, slot: u32, on_event: OnEvent<'_>) {
        let conn = self.slots.id(slot);
        close_descriptor(self.slots.get(slot).descriptor as RawFd);
        let error = self.slots.release(slot);
        self.stats.closed += 1;
        on_event(Event::Closed { conn, error });
    }

    // A turn

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = if self.ready.is_empty() {
            match self.retry_at {
                Some(at) => timeout.min(at.saturating_duration_since(Instant::now())),
                None => timeout,
            }
        } else {
            Duration::ZERO
        };
        // Rounded up: waking too early would spin through the last millisecond.
        let milliseconds = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
        let began = Instant::now();
        // SAFETY: the vector has room for that many events; it is told below how many there are.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_PER_TURN as i32,
                milliseconds,
            )
        };
        let elapsed = began.elapsed().as_nanos() as u64;
        self.stats.enters += 1;
        if milliseconds == 0 {
            self.stats.kernel_ns += elapsed;
        } else {
            self.stats.idle_ns += elapsed;
        }
        if count < 0 {
            let error = io::Error::last_os_error();
            self.events.clear();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        // SAFETY: the kernel has filled in that many events, at most the capacity.
        unsafe { self.events.set_len(count as usize) };
        Ok(())
    }

    fn handle(&mut self, event: libc::epoll_event, accept_budget: &mut u32, on_event: OnEvent<'_>) {
        let token = Token::unpack(event.u64);
        match token.operation {
            Operation::Wake => {
                self.waker.clear();
                return on_event(Event::Woken);
            }
            Operation::Accept => return self.accept(token.slot as usize, accept_budget, on_event),
            _ => {}
        }
        if !self.slots.current(token.slot, token.generation) {
            return;
        }
        let slot = token.slot;
        let conn = self.slots.get_mut(slot);
        if conn.has(flag::CLOSING) {
            return;
        }
        if conn.has(flag::CONNECTING) {
            if event.events & (WRITE_EVENTS | HANG_UP_EVENTS) != 0 {
                self.finish_connect(slot, on_event);
            }
            return;
        }
        if event.events & HANG_UP_EVENTS != 0 {
            conn.set(flag::HANG_UP);
        }
        if event.events & (libc::EPOLLIN as u32 | HANG_UP_EVENTS) != 0 {
            self.queue_read(slot);
        }
        if event.events & (WRITE_EVENTS | HANG_UP_EVENTS) != 0
            && self.slots.get(slot).has(flag::AWAITING_ROOM)
        {
            self.send_tail(slot, on_event);
        }
    }
}

impl Driver for EpollDriver {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn slots_max(&self) -> u32 {
        self.slots.capacity()
    }

    fn listen(&mut self, id: ListenerId, socket: TcpListener) -> io::Result<()> {
        SockRef::from(&socket).set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let token = Token::new(Operation::Accept, self.listeners.len() as u32, 0);
        self.control(libc::EPOLL_CTL_ADD, socket.as_raw_fd(), 0, token)?;
        self.listeners.push(Listener {
            id,
            socket,
            watched: false,
        });
        self.update_accepting();
        Ok(())
    }

    fn set_accepting(&mut self, accepting: bool) {
        self.accepting = accepting;
        self.update_accepting();
    }

    fn close_listeners(&mut self) {
        self.listeners.clear();
    }

    fn connect(&mut self, peer: SocketAddr, source: Option<SocketAddr>) -> io::Result<ConnId> {
        self.begin_connect(peer, source)
    }

    fn send(&mut self, conn: ConnId, bytes: Bytes) {
        let Some(slot) = self.slots.find(conn) else {
            return;
        };
        match self.slots.get(slot).send_state() {
            SendState::Ignored => {}
            SendState::Open if bytes.is_empty() => {}
            SendState::Open => {
                self.slots.get_mut(slot).send = self.outbox.len() as u32;
                self.stats.sends += 1;
                self.outbox.push((conn, bytes));
            }
            SendState::Misused => self.close_later(slot, Some(io::ErrorKind::InvalidInput)),
        }
    }

    fn shutdown(&mut self, conn: ConnId) {
        let Some(slot) = self.slots.find(conn) else {
            return;
        };
        let entry = self.slots.get_mut(slot);
        if !entry.has(flag::CLOSING | flag::CONNECTING | flag::SHUTDOWN_WANTED) {
            entry.set(flag::SHUTDOWN_WANTED);
            self.shutdowns.push(conn);
        }
    }

    fn close(&mut self, conn: ConnId) {
        if let Some(slot) = self.slots.find(conn) {
            self.close_later(slot, None);
        }
    }

    fn turn(&mut self, timeout: Duration, on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<()> {
        let began = Instant::now();
        let mut happened = false;
        self.flush(&mut |event| {
            happened = true;
            on_event(event);
        });
        self.update_accepting();
        self.stats.kernel_ns += began.elapsed().as_nanos() as u64;
        self.wait(if happened { Duration::ZERO } else { timeout })?;
        self.waker.awake();
        let events = std::mem::take(&mut self.events);
        let mut accept_budget = self.accept_budget;
        for event in &events {
            self.handle(*event, &mut accept_budget, on_event);
        }
        self.events = events;
        self.read_ready(on_event);
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn stats(&self) -> DriverStats {
        self.stats
    }

    fn duplicate(&mut self, conn: ConnId) -> io::Result<OwnedFd> {
        match self.slots.find(conn) {
            Some(slot) => self.socket(slot).try_clone_to_owned(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Drop for EpollDriver {
    fn drop(&mut self) {
        for slot in self.slots.iter_live() {
            close_descriptor(self.slots.get(slot).descriptor as RawFd);
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

/// Closes a descriptor that a slot owned, which also ends its watch.
fn close_descriptor(fd: RawFd) {
    // SAFETY: every caller has taken the descriptor from the slot that owned it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}
