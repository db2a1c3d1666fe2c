//! The core: it gives every conversation one order, makes each message durable, and finds its
//! readers. It never touches a client socket.
//!
//! # Layout, in the order in which a message travels
//! 1. [`ingress`]: the link service (gRPC, or in process) and its credit
//! 2. [`engine`]: the sequencer and all that is decided, as a pure state machine
//! 3. [`store`]: durable conversations behind one trait
//! 4. [`ownership`]: which conversations are this core's, where there are several
//! 5. [`runtime`]: the threads that drive engine and store
//! 6. [`cluster`]: cores among each other, and with what they share
//! 7. [`rest`]: the HTTP front: REST, the demo page, admin

pub mod cluster;
pub mod engine;
pub mod ingress;
pub mod ownership;
pub mod rest;
pub mod runtime;
pub mod store;
