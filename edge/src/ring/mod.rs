//! The bottom of the edge: sockets as events. One driver per shard thread owns that shard's sockets
//! and hands what happens on them to the shard as [`Event`]s; what the shard wants done comes back
//! as calls between turns. Nothing above this module knows which driver runs.
//!
//! Invariants, of every driver:
//! 1. A [`ConnId`] is never reused in a process: a late call with a stale one does nothing.
//! 2. After [`Event::Closed`] (exactly one for each connection that was accepted or connected) no
//!    event bears this `ConnId`, and its descriptor and buffers are free.
//! 3. An idle connection owns no receive buffer.
//! 4. At most one send is under way for a connection. Between [`Event::Blocked`] and
//!    [`Event::Drained`] the driver holds the unsent tail, and the caller holds back.
//! 5. Bytes leave in the order given, or the connection closes; they never leave twice.

// The kernel's interfaces (shared rings, raw descriptors, addresses in requests) cannot be used
// without; nothing outside this module may.
#![allow(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;

mod affinity;
mod config;
mod epoll;
mod pass;
mod slots;
mod sockets;
mod token;
mod uring;
mod waker;

pub use affinity::{allowed_cores, pin_to_core};
pub use config::{
    DriverChoice, DriverConfig, OpenError, ReceiveMode, UnknownDriver, UnknownReceiveMode,
    default_rings, open,
};
pub use epoll::EpollDriver;
pub use pass::{PASSED_MAX, peer_user, receive_with, send_with, user};
pub use sockets::{BACKLOG, bind_reuseport, disable_huge_pages, raise_nofile};
pub use uring::{RingInitError, UringDriver};
pub use waker::Waker;

/// A connection of one shard: its slot, dense from 0 and reused, and the slot's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Index for tables beside the driver's; below [`Driver::slots_max`].
    pub slot: u32,
    /// Distinguishes the slot's successive owners.
    pub generation: u32,
}

/// Which of the shard's listeners a connection came from: the number given to [`Driver::listen`].
pub type ListenerId = u8;

/// What happened on a socket.
#[derive(Debug)]
pub enum Event<'a> {
    /// A new connection; reading has begun. `peer` is 0.0.0.0:0 if it has gone again meanwhile.
    Accepted {
        conn: ConnId,
        listener: ListenerId,
        peer: SocketAddr,
    },
    /// An outgoing connection of [`Driver::connect`] is up; reading has begun.
    Connected { conn: ConnId },
    /// Bytes came. The slice is the driver's buffer: parse and unmask in place, copy what must
    /// outlive the event.
    Received { conn: ConnId, data: &'a mut [u8] },
    /// The peer has shut its side; sending may go on. No `Received` follows.
    Eof { conn: ConnId },
    /// A send did not fit into the socket's buffer; the driver holds the rest.
    Blocked { conn: ConnId, unsent: usize },
    /// What was held is with the kernel: sending may go on.
    Drained { conn: ConnId },
    /// The connection is gone and its slot free. `error`: what ended it, if not the peer's orderly
    /// close or our own.
    Closed {
        conn: ConnId,
        error: Option<io::ErrorKind>,
    },
    /// Somebody called [`Waker::wake`].
    Woken,
}

/// How much a driver refrains from, for a successor that is to take its sockets over: see
/// [`Driver::hold`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// Nothing: the normal state.
    #[default]
    Nothing,
    /// Accepts nobody and reads nothing; what it is given to send leaves.
    Reading,
    /// Nor does it send again what stayed behind.
    Everything,
}

/// How far this side's end of a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fin {
    #[default]
    None,
    /// Due after the tail.
    Due,
    Sent,
}

/// A connection on its way from one driver to another, of the same kind or not, in the same process
/// or not.
#[derive(Debug)]
pub struct Carried {
    pub socket: OwnedFd,
    /// What the socket had no room for.
    pub tail: Bytes,
    /// The peer has shut its side.
    pub eof: bool,
    pub fin: Fin,
}

/// What a driver counts; plain numbers, read by the shard's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    pub accepted: u64,
    /// Connections dropped on arrival because the table was full.
    pub accept_refused: u64,
    /// Connections that the kernel has accepted and that wait for their turn (io_uring). A gauge.
    pub accepts_waiting: u64,
    pub closed: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub sends: u64,
    /// Sends that stayed short.
    pub sends_blocked: u64,
    /// Times that a receive found no buffer free (io_uring).
    pub buffers_exhausted: u64,
    /// Completion-queue overflows (io_uring): always 0 unless sized wrongly.
    pub cq_overflow: u64,
    /// Calls into the kernel to wait or submit.
    pub enters: u64,
    /// ns spent in those calls without waiting, and waiting.
    pub kernel_ns: u64,
    pub idle_ns: u64,
}

impl DriverStats {
    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.accept_refused += other.accept_refused;
        self.accepts_waiting += other.accepts_waiting;
        self.closed += other.closed;
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.sends += other.sends;
        self.sends_blocked += other.sends_blocked;
        self.buffers_exhausted += other.buffers_exhausted;
        self.cq_overflow += other.cq_overflow;
        self.enters += other.enters;
        self.kernel_ns += other.kernel_ns;
        self.idle_ns += other.idle_ns;
    }
}

/// User memory of a driver, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverMemory {
    /// The table of connections.
    pub slots: usize,
    /// Receive buffers, touched or not.
    pub buffers: usize,
    /// Queues of requests and completions, those shared with the kernel among them.
    pub queues: usize,
}

/// User bytes of a connection in its driver's table.
pub const SLOT_BYTES: usize = size_of::<slots::Conn>();

/// One shard's sockets. Not `Send` once it runs: it lives on its thread.
pub trait Driver {
    /// "uring" or "epoll".
    fn name(&self) -> &'static str;

    /// Connections that this driver can hold at once.
    fn slots_max(&self) -> u32;

    /// Accept from `socket` from the next turn on. May be called for several sockets.
    fn listen(&mut self, id: ListenerId, socket: TcpListener) -> io::Result<()>;

    /// Stop or resume accepting on all listeners; established connections do not notice.
    fn set_accepting(&mut self, accepting: bool);

    /// From now on at most `arrivals` are announced in a turn, and never more than the configured
    /// budget. The rest waits in the kernel's queue of the listener; with 0 all do, and no turn ends
    /// its wait for them.
    fn admit(&mut self, arrivals: u32);

    /// Close the listening sockets for good: the port refuses from now on.
    fn close_listeners(&mut self);

    /// Begin an outgoing connection, from `source` if given. Ends in `Connected` or `Closed`.
    fn connect(&mut self, peer: SocketAddr, source: Option<SocketAddr>) -> io::Result<ConnId>;

    /// Hand over all that the connection is owed in this turn; it leaves with the next
    /// [`Driver::turn`]. Ignored for connections that are stale, not up yet, shut or closing. Must
    /// not be called twice for one connection between turns, nor between `Blocked` and `Drained`:
    /// that closes the connection with `InvalidInput`, since the order of bytes would be lost.
    fn send(&mut self, conn: ConnId, bytes: Bytes);

    /// FIN after all that was handed over, a held tail included. Reading goes on until `Eof`; when
    /// both directions have ended the driver closes by itself, and `Closed` follows.
    fn shutdown(&mut self, conn: ConnId);

    /// Drop the connection, a held tail with it. `Closed` follows in a later turn, and is the only
    /// event that does.
    fn close(&mut self, conn: ConnId);

    /// Submit what was queued, wait for something to happen (at most `timeout`; zero: do not wait)
    /// and hand each event to `on_event`.
    fn turn(&mut self, timeout: Duration, on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<()>;

    /// For other threads, to end this one's wait. The shard calls [`Waker::going_to_sleep`] and
    /// then looks at its inboxes before each turn that may wait; the driver calls
    /// [`Waker::awake`] when the wait is over.
    fn waker(&self) -> Waker;

    fn stats(&self) -> DriverStats;

    /// [`DriverStats::idle_ns`] alone, for each turn.
    fn idle_ns(&self) -> u64;

    /// What its tables, buffers and queues take.
    fn memory(&self) -> DriverMemory;

    /// A second, ordinary descriptor of the connection's socket: to look at its options and
    /// TCP_INFO, or to hand it to a successor process. To be called between turns.
    fn duplicate(&mut self, conn: ConnId) -> io::Result<OwnedFd>;

    /// Refrains from what `hold` names, or goes on. Takes some turns: see [`Driver::is_held`]. While
    /// a driver holds everything and is not turned, its sockets may be used elsewhere: it neither
    /// takes a byte from them nor puts one in, also if its process ends.
    fn hold(&mut self, hold: Hold);

    /// Whether nothing is under way any more of what the driver was told to refrain from.
    fn is_held(&mut self) -> bool;

    /// A copy of everything that another driver needs to go on with a connection; none if it is
    /// closing. While everything is held.
    fn export(&mut self, conn: ConnId) -> io::Result<Option<Carried>>;

    /// Takes a connection over. With a tail it begins as one that was told `Blocked`.
    fn adopt(&mut self, carried: Carried) -> io::Result<ConnId>;

    /// Further descriptors of all listening sockets.
    fn listeners(&self) -> io::Result<Vec<(ListenerId, OwnedFd)>>;

    /// Accept from `sockets` of a predecessor, all bound to one address: nobody who waits in their
    /// queues is lost.
    fn adopt_listeners(&mut self, id: ListenerId, sockets: Vec<TcpListener>) -> io::Result<()>;

    /// The sockets are a successor's: to drop this driver leaves its listeners open.
    fn abandon(&mut self);
}
