//! The edge: it holds the sockets and knows nothing about chat beyond frames, sessions and lists of
//! local recipients.
//!
//! # Layout, in the order in which a byte travels
//! 1. [`ring`]: sockets as events, on io_uring or epoll; the only module with `unsafe`
//! 2. [`frame`]: bytes to messages and back: the HTTP upgrade, RFC 6455, delimited frames
//! 3. [`session`]: what one connection may do: `connect`, limits, heartbeats, closes
//! 4. [`link`]: the way to the core and back
//! 5. [`hub`]: one item from the core to many local sockets
//! 6. [`observe`]: metrics and the admin pages
//!
//! [`shard`] is the loop that turns events into inputs and actions into calls (`lull`: when it naps,
//! `admission`: whom it lets in),
//! [`timers`] its wheel, [`node`] the threads, listeners and the link of a whole process.
//!
//! [`handover`] takes all of it from one process to the next.
//!
//! [`echo`] is a second use of the first two: an echo server for conformance suites.

mod admission;
pub mod echo;
pub mod frame;
pub mod handover;
pub mod hub;
pub mod link;
mod lull;
pub mod node;
pub mod observe;
pub mod ring;
pub mod session;
pub mod shard;
pub mod timers;
