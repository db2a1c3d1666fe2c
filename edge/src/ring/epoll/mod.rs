//! The epoll driver: for hosts that forbid io_uring, with the same events in the same order.
//!
//! Edge-triggered, so an idle connection costs no call; one receive buffer for all; what the
//! connections send leaves at the start of the next turn. A connection with much to read gets a
//! bounded number of reads in a turn and then queues up behind the others.

mod arrivals;
mod hold;
mod traffic;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;

use super::slots::{SendState, Slots, flag};
use super::sockets::nofile_limit;
use super::token::{Operation, Token};
use super::{
    Carried, ConnId, Driver, DriverConfig, DriverMemory, DriverStats, Event, Hold, ListenerId,
    Waker,
};

/// The receive buffer of a driver.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Readiness events taken at once.
const EVENTS_PER_TURN: usize = 256;
/// Descriptors that the process needs for other things than connections; half of them for a batch
/// of copies that is handed to a successor.
const RESERVED_DESCRIPTORS: u64 = 256;

/// A wait this short found something ready.
const PROMPT_NS: u64 = 5_000;

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
    /// Of it, what is let in at present.
    admitted: u32,
    /// Listeners with somebody in their queue, until the turn has served those that are there.
    knocks: Vec<usize>,
    receive_budget: u32,
    buffer: Box<[u8]>,
    outbox: Vec<(ConnId, Bytes)>,
    shutdowns: Vec<ConnId>,
    closes: Vec<ConnId>,
    /// Connections with more to read.
    ready: VecDeque<ConnId>,
    /// What is not to be done at present.
    held: Hold,
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
            admitted: u32::MAX,
            knocks: Vec::new(),
            receive_budget: config.receive_budget.max(1),
            buffer: vec![0; RECEIVE_BUFFER].into_boxed_slice(),
            outbox: Vec::new(),
            shutdowns: Vec::new(),
            closes: Vec::new(),
            ready: VecDeque::new(),
            held: Hold::Nothing,
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
        if milliseconds == 0 || elapsed < PROMPT_NS {
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

    fn handle(&mut self, event: libc::epoll_event, on_event: OnEvent<'_>) {
        let token = Token::unpack(event.u64);
        match token.operation {
            Operation::Wake => {
                self.waker.clear();
                return on_event(Event::Woken);
            }
            Operation::Accept => return self.knocks.push(token.slot as usize),
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
            && self.held != Hold::Everything
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

    fn admit(&mut self, arrivals: u32) {
        // The next turn looks at it before it waits.
        self.admitted = arrivals;
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
        for event in &events {
            self.handle(*event, on_event);
        }
        self.events = events;
        self.read_ready(on_event);
        let mut accept_budget = self.accept_budget.min(self.admitted);
        while let Some(listener) = self.knocks.pop() {
            self.accept(listener, &mut accept_budget, on_event);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn stats(&self) -> DriverStats {
        self.stats
    }

    fn idle_ns(&self) -> u64 {
        self.stats.idle_ns
    }

    fn memory(&self) -> DriverMemory {
        DriverMemory {
            slots: self.slots.bytes(),
            buffers: self.buffer.len(),
            queues: self.events.capacity() * size_of::<libc::epoll_event>()
                + self.outbox.capacity() * size_of::<(ConnId, Bytes)>(),
        }
    }

    fn duplicate(&mut self, conn: ConnId) -> io::Result<OwnedFd> {
        match self.slots.find(conn) {
            Some(slot) => self.socket(slot).try_clone_to_owned(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn hold(&mut self, hold: Hold) {
        self.hold_back(hold);
    }

    fn is_held(&mut self) -> bool {
        self.held != Hold::Everything
            || (self.outbox.is_empty() && self.shutdowns.is_empty() && self.closes.is_empty())
    }

    fn export(&mut self, conn: ConnId) -> io::Result<Option<Carried>> {
        match self.slots.find(conn) {
            Some(slot) => self.copy_of(slot),
            None => Ok(None),
        }
    }

    fn adopt(&mut self, carried: Carried) -> io::Result<ConnId> {
        self.take_in(carried)
    }

    fn listeners(&self) -> io::Result<Vec<(ListenerId, OwnedFd)>> {
        let copy = |l: &Listener| Ok((l.id, l.socket.as_fd().try_clone_to_owned()?));
        self.listeners.iter().map(copy).collect()
    }

    fn adopt_listeners(&mut self, id: ListenerId, sockets: Vec<TcpListener>) -> io::Result<()> {
        sockets
            .into_iter()
            .try_for_each(|socket| self.listen(id, socket))
    }

    // To close a listener here is not to shut it.
    fn abandon(&mut self) {}
}

impl Drop for EpollDriver {
    fn drop(&mut self) {
        for slot in self.slots.iter_live() {
            close_descriptor(self.slots.get(slot).descriptor as RawFd);
        }
    }
}

/// Closes a descriptor that a slot owned, which also ends its watch.
fn close_descriptor(fd: RawFd) {
    // SAFETY: every caller has taken the descriptor from the slot that owned it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}
