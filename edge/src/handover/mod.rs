//! From one process to the next without a reconnect: a running edge hands its listeners, its live
//! sockets and everything it knows about them to a successor, and ends. Clients see a pause.
//!
//! The running edge ([`giver`]) listens on a Unix socket. The successor ([`taker`]), a new process of
//! a new binary, connects to it:
//!
//! | successor | running edge |
//! |---|---|
//! | `Hello` | checks user and format; `Welcome`, or `Refusal` |
//! | makes its rings; `Begin` | reads and accepts no more; waits until the core has answered |
//! | | `Listeners`, with descriptors |
//! | adopts; `Adopted` | `Batch` of connections, with descriptors; and so on |
//! | `Ready` | `End` |
//! | | `Commit` |
//! | `Taken`, then attaches to the core, reads and accepts | its shards end |
//! | closes the socket when the service manager knows it | ends |
//!
//! # Invariants
//! 1. Until `Taken` the running edge keeps every socket and the whole state, and goes on as if nothing
//!    had been if anything fails. The successor touches no socket before it has sent `Taken`. The
//!    running edge closes the Unix socket before it goes on, so only one of the two can believe that it
//!    is the one: see `giver::verdict`.
//! 2. No byte is lost or doubled: the drivers hold still ([`crate::ring::Hold`]), what they had read has
//!    gone through the decoders, and what they could not send is part of the state.
//! 3. At most one batch of descriptors is under way, whatever the number of connections.
//!
//! Called by [`crate::node`] and the command line.

pub mod giver;
pub mod state;
pub mod taker;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::ring::ListenerId;
pub use wire::{connect, listen};

/// Of what the two processes say to one another; equal, or there is no hand-over.
pub const FORMAT: u32 = 1;
/// While everything holds still, one step of the successor takes no longer.
pub const STEP_MAX: Duration = Duration::from_secs(5);
/// Other steps: to make rings, and to bring everything to rest.
pub const PREPARE_MAX: Duration = Duration::from_secs(20);
/// The core has this long to answer what is under way before the sockets change hands.
pub const SETTLE_MAX: Duration = Duration::from_secs(1);
/// The successor waits this long for a core before it reads without one.
pub const ATTACH_MAX: Duration = Duration::from_secs(5);
/// With a core attached it waits this long until that has heard of all sessions: a send of one that it
/// does not know would be refused.
pub const ANNOUNCE_MAX: Duration = Duration::from_secs(30);
/// Connections of one batch: a descriptor each.
pub const BATCH_CONNECTIONS: usize = 128;
/// Bytes of state from which on a batch is full.
pub const BATCH_BYTES: usize = 1 << 20;

/// What a passed listening socket is; clients' listeners are numbered as the shards' are.
pub mod socket {
    /// Of WebSocket clients.
    pub const WS: u32 = crate::shard::LISTENER_WS as u32;
    /// Of raw TCP clients.
    pub const TCP: u32 = crate::shard::LISTENER_TCP as u32;
    /// Of the hand-over itself.
    pub const UPGRADE: u32 = 2;
    /// Of the admin pages.
    pub const ADMIN: u32 = 3;
}

/// Why there was no hand-over. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    #[error(
        "no edge answers at {name} ({source}): start without --upgrade if none runs, or name its --upgrade-socket"
    )]
    NobodyThere { name: String, source: io::Error },
    #[error("the socket {name} belongs to another user: run the upgrade as the user of the edge")]
    ForeignUser { name: String },
    #[error("the edge that runs refuses the upgrade and goes on: {0}")]
    Refused(String),
    #[error(
        "the edge that runs speaks format {theirs} of the hand-over, this one {FORMAT}: drain it and start anew"
    )]
    Format { theirs: u32 },
    #[error("the other side broke off, and the old edge goes on: {0}")]
    Broken(#[from] io::Error),
    #[error("the hand-over broke off in the midst: {0}")]
    Midway(#[source] io::Error),
    #[error("{0}")]
    State(#[from] state::BadState),
    #[error(
        "room for {room} connections, the edge that runs has {connections}: raise connections_max or the file limit"
    )]
    Room { room: u64, connections: u64 },
    #[error("{0}")]
    Start(#[from] Box<crate::node::StartError>),
}

/// Connections that go together, with a descriptor each.
#[derive(Debug, Default)]
pub struct Batch {
    pub connections: Vec<state::Connection>,
    pub sockets: Vec<OwnedFd>,
}

/// What a shard that hands over is told, one after the other. When nobody is left to tell it
/// anything, it goes on as before.
pub enum Order {
    /// Give the next connections; an empty batch: there are no more.
    Next(Sender<io::Result<Batch>>),
    /// The successor has everything: end, and touch nothing.
    Gone,
}

/// What a shard answers that reads no more: copies of its listening sockets.
pub type Held = io::Result<Vec<(ListenerId, OwnedFd)>>;

/// Listening sockets with their numbers in [`socket`].
pub type Listening = Vec<(u32, OwnedFd)>;
