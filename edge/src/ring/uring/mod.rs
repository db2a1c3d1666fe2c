//! The io_uring driver: accepts into direct descriptors, as many as may be let in; multishot receive (or, to save
//! memory, multishot poll) into a shared ring of buffers, sends without completions.
//!
//! Usually one ring. A ring's table of descriptors is bounded by RLIMIT_NOFILE, so a host with a low
//! limit takes several rings on the one thread: the *main* ring is the one to sleep on; the others
//! write to one eventfd that the main ring reads, and do so only while it sleeps.
//!
//! Several rings share the listening sockets, and arrivals go to one ring until it is filled well, then
//! to the emptiest: so the requests of a storm of handshakes leave together, ring by ring, instead of
//! one or two from each of fifty rings a turn.
//!
//! Slots are numbered ring by ring: slot ÷ slots-per-ring is the ring.

mod accept;
mod buffers;
mod close;
mod connect;
mod hold;
mod poll;
mod queue;
mod ring;
mod send;
mod setup;

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use bytes::Bytes;
use io_uring::{opcode, types};

use self::ring::{QueuedSend, Ring};
pub use self::setup::RingInitError;
use super::token::{Operation, Token};
use super::{
    Carried, ConnId, Driver, DriverConfig, DriverMemory, DriverStats, Event, Hold, ListenerId,
    Waker,
};

/// When arrivals go to another ring that is emptier. Well below where accepting stops: what the
/// kernel accepts in one go finds room. (If it does not, one connection is dropped, and the rest waits.)
const FILLED_WELL_PERCENT: u64 = 75;

/// The driver on io_uring. Belongs to the thread that made it.
pub struct UringDriver {
    /// The main ring first. Dropped before the eventfds that it reads.
    rings: Vec<Ring>,
    slots_per_ring: u32,
    /// The ring that the next outgoing connection is tried on.
    next_ring: usize,
    /// The ring that arrivals go to.
    accepting_ring: usize,
    /// Connections of a ring from which on they go to another one that has fewer, if there is any.
    filled_well: u32,
    /// Arrivals announced in one turn, over all rings.
    accept_budget: u32,
    /// Of it, what is let in at present.
    admitted: u32,
    /// The ring that is the first to announce arrivals: the next one when the budget was used up.
    first_ring: usize,
    /// Written to by the kernel for every ring but the main one.
    _signal: Option<File>,
    waker: Waker,
    /// The listeners are a successor's too.
    abandoned: bool,
}

impl UringDriver {
    /// Makes the rings on the calling thread, the only one that may use the driver.
    pub fn new(config: &DriverConfig) -> Result<Self, RingInitError> {
        setup::validate(config)?;
        let slots_per_ring = config.slots_per_ring();
        let mut rings = Vec::with_capacity(config.rings as usize);
        for index in 0..config.rings {
            rings.push(Ring::new(config, index * slots_per_ring)?);
        }
        rings[0].choose(true);
        let waker = Waker::new().map_err(RingInitError::os("making an eventfd"))?;
        rings[0].watch_waker(waker.clone());
        let signal = if rings.len() > 1 {
            Some(connect_signal(&mut rings).map_err(RingInitError::os("registering an eventfd"))?)
        } else {
            None
        };
        Ok(Self {
            rings,
            slots_per_ring,
            next_ring: 0,
            accepting_ring: 0,
            filled_well: (u64::from(slots_per_ring) * FILLED_WELL_PERCENT / 100) as u32,
            accept_budget: config.accept_budget,
            admitted: u32::MAX,
            first_ring: 0,
            _signal: signal,
            waker,
            abandoned: false,
        })
    }

    /// Has arrivals go elsewhere when their ring is filled well. Before the driver sleeps, so that
    /// there is always one that accepts, unless all are full.
    fn choose_ring(&mut self) {
        let present = &self.rings[self.accepting_ring];
        if present.slots.live() < self.filled_well {
            return;
        }
        let is_full = present.acceptor.is_full();
        let emptiest = self.rings.iter().enumerate();
        let emptiest = emptiest.min_by_key(|(_, ring)| ring.slots.live());
        let Some((index, ring)) = emptiest.filter(|(index, _)| *index != self.accepting_ring)
        else {
            return;
        };
        if ring.slots.live() < self.filled_well || (is_full && !ring.acceptor.is_full()) {
            self.rings[self.accepting_ring].choose(false);
            self.rings[index].choose(true);
            self.accepting_ring = index;
        }
    }

    /// The ring that a connection belongs to, and its slot there; none if it is gone.
    fn locate(&mut self, conn: ConnId) -> Option<(&mut Ring, u32)> {
        let ring = self
            .rings
            .get_mut((conn.slot / self.slots_per_ring) as usize)?;
        let slot = ring.slots.find(conn)?;
        Some((ring, slot))
    }

    /// Turns each ring that has something to do, with at most `arrivals` announced by all of them;
    /// says whether any had.
    fn sweep(
        &mut self,
        arrivals: &mut u32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<bool> {
        let mut busy = false;
        let count = self.rings.len();
        for index in (self.first_ring..count).chain(0..self.first_ring) {
            let ring = &mut self.rings[index];
            if ring.has_work() {
                if !busy {
                    self.waker.awake();
                }
                busy = true;
                ring.turn(None, arrivals, on_event)?;
            }
        }
        if *arrivals == 0 {
            self.first_ring = (self.first_ring + 1) % count;
        }
        Ok(busy)
    }

    /// A turn of several rings: if none has anything to do, sleep on the main one.
    fn turn_many(
        &mut self,
        timeout: Duration,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        for ring in &mut self.rings {
            if ring.acceptor.retry_at().is_some() {
                ring.update_accepting();
            }
        }
        self.choose_ring();
        let mut arrivals = self.accept_budget.min(self.admitted);
        if self.sweep(&mut arrivals, on_event)? || timeout.is_zero() {
            self.waker.awake();
            return Ok(());
        }
        let timeout = self
            .rings
            .iter()
            .fold(timeout, |timeout, ring| ring.wait_limit(timeout));
        for ring in &mut self.rings[1..] {
            ring.queue.enable_signal();
        }
        // A ring either sees that it shall signal, or we see its work now.
        fence(Ordering::SeqCst);
        let mut result = Ok(());
        if !self.rings[1..].iter_mut().any(Ring::has_work) {
            result = self.rings[0].turn(Some(timeout), &mut arrivals, on_event);
        }
        self.waker.awake();
        for ring in &mut self.rings[1..] {
            ring.queue.disable_signal();
        }
        result?;
        self.sweep(&mut arrivals, on_event).map(drop)
    }
}

/// An eventfd that the other rings write to and the main ring reads.
fn connect_signal(rings: &mut [Ring]) -> io::Result<File> {
    // SAFETY: eventfd takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    let signal = unsafe { File::from_raw_fd(fd) };
    let (main, others) = rings.split_at_mut(1);
    for ring in others {
        ring.queue.register_signal(signal.as_raw_fd())?;
    }
    main[0].watch_eventfd(signal.as_raw_fd(), Operation::Signal);
    Ok(signal)
}

impl Driver for UringDriver {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn slots_max(&self) -> u32 {
        self.rings.iter().map(|ring| ring.slots.capacity()).sum()
    }

    fn listen(&mut self, id: ListenerId, socket: TcpListener) -> io::Result<()> {
        for ring in &mut self.rings[1..] {
            ring.listen(id, socket.try_clone()?)?;
        }
        self.rings[0].listen(id, socket)
    }

    fn adopt_listeners(&mut self, id: ListenerId, sockets: Vec<TcpListener>) -> io::Result<()> {
        if sockets.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for socket in sockets {
            self.listen(id, socket)?;
        }
        Ok(())
    }

    fn set_accepting(&mut self, accepting: bool) {
        for ring in &mut self.rings {
            ring.set_accepting(accepting);
        }
    }

    fn admit(&mut self, arrivals: u32) {
        self.admitted = arrivals;
        for ring in &mut self.rings {
            ring.admit(arrivals);
        }
    }

    fn close_listeners(&mut self) {
        for ring in &mut self.rings {
            ring.close_listeners();
        }
    }

    fn connect(&mut self, peer: SocketAddr, source: Option<SocketAddr>) -> io::Result<ConnId> {
        let mut result = Err(io::Error::from_raw_os_error(libc::ENFILE));
        for _ in 0..self.rings.len() {
            let index = self.next_ring;
            self.next_ring = (index + 1) % self.rings.len();
            result = self.rings[index].connect(peer, source);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn send(&mut self, conn: ConnId, bytes: Bytes) {
        if let Some((ring, slot)) = self.locate(conn) {
            ring.send(slot, bytes);
        }
    }

    fn shutdown(&mut self, conn: ConnId) {
        if let Some((ring, slot)) = self.locate(conn) {
            ring.shutdown(slot);
        }
    }

    fn close(&mut self, conn: ConnId) {
        if let Some((ring, slot)) = self.locate(conn) {
            // A connection that is up has a descriptor, one that is not has a request under way: so
            // `Closed` comes with a completion, never now.
            ring.begin_close(slot, None, &mut |_| {});
        }
    }

    fn turn(&mut self, timeout: Duration, on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<()> {
        if self.rings.len() == 1 {
            let wait = (!timeout.is_zero()).then_some(timeout);
            let mut arrivals = self.accept_budget.min(self.admitted);
            self.rings[0].turn(wait, &mut arrivals, on_event)
        } else {
            self.turn_many(timeout, on_event)
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn duplicate(&mut self, conn: ConnId) -> io::Result<OwnedFd> {
        let Some((ring, slot)) = self.locate(conn) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        ring.install(slot)
    }

    fn hold(&mut self, hold: Hold) {
        for ring in &mut self.rings {
            ring.hold(hold);
        }
    }

    fn is_held(&mut self) -> bool {
        self.rings.iter_mut().all(Ring::is_held)
    }

    fn export(&mut self, conn: ConnId) -> io::Result<Option<Carried>> {
        match self.locate(conn) {
            Some((ring, slot)) => ring.export(slot),
            None => Ok(None),
        }
    }

    fn adopt(&mut self, carried: Carried) -> io::Result<ConnId> {
        let emptiest = self.rings.iter_mut().min_by_key(|ring| ring.slots.live());
        match emptiest {
            Some(ring) => ring.adopt(carried),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn listeners(&self) -> io::Result<Vec<(ListenerId, OwnedFd)>> {
        // They are the same for all rings.
        let mut all = Vec::new();
        self.rings[0].acceptor.listeners(&mut all)?;
        Ok(all)
    }

    fn abandon(&mut self) {
        self.abandoned = true;
    }

    fn stats(&self) -> DriverStats {
        let mut total = DriverStats::default();
        for ring in &self.rings {
            total.add(&ring.stats);
            total.accepts_waiting += ring.acceptor.waiting();
        }
        total
    }

    fn idle_ns(&self) -> u64 {
        // Only the main ring sleeps.
        self.rings[0].stats.idle_ns
    }

    fn memory(&self) -> DriverMemory {
        let mut total = DriverMemory::default();
        for ring in &self.rings {
            total.slots += ring.slots.bytes();
            total.buffers += ring.queue.buffers.bytes();
            total.queues += ring.queue.bytes() + ring.sends.capacity() * size_of::<QueuedSend>();
        }
        total
    }
}

impl Ring {
    /// An ordinary descriptor for a direct one. The kernel makes it while it takes the request.
    fn install(&mut self, slot: u32) -> io::Result<OwnedFd> {
        if !self.abilities.install {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "an ordinary descriptor of a connection needs IORING_OP_FIXED_FD_INSTALL (Linux 6.8)",
            ));
        }
        let conn = self.slots.get(slot);
        if conn.descriptor == super::slots::NONE {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let token = Token::new(Operation::Install, slot, conn.generation).pack();
        let entry = opcode::FixedFdInstall::new(types::Fixed(conn.descriptor), 0)
            .build()
            .user_data(token);
        self.queue.push(entry, &mut self.stats);
        self.queue.enter(None, &mut self.stats)?;
        self.queue.reap(&mut self.stats)?;
        match self.queue.take_completion(token) {
            Some(done) if done.result >= 0 => {
                // SAFETY: the kernel has just made this descriptor for us.
                Ok(unsafe { OwnedFd::from_raw_fd(done.result) })
            }
            Some(done) => Err(io::Error::from_raw_os_error(-done.result)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Drop for UringDriver {
    /// The ports refuse from now on: the kernel takes the rings apart some milliseconds later.
    fn drop(&mut self) {
        if !self.abandoned {
            self.close_listeners();
        }
    }
}
