//! A client that loses nothing: WebSocket or raw TCP, reconnecting, with an outbox that survives
//! broken connections and an inbox that hands every message out in order, once.
//!
//! ```no_run
//! use trunkline_client::{Client, ClientConfig, Event, Outgoing, TokenProvider};
//!
//! # async fn chat(token: String) -> Result<(), Box<dyn std::error::Error>> {
//! let config = ClientConfig::websocket(
//!     "ws://127.0.0.1:7400",
//!     "alice-laptop",
//!     TokenProvider::fixed(token),
//! );
//! let (client, mut events) = Client::connect(config)?;
//!
//! // Stored when this returns, however many connections it took.
//! let ack = client.send(Outgoing::to_user("bob", "hello")).await?;
//! println!("stored as {} in {}", ack.seq, ack.conversation_id);
//!
//! while let Some(event) = events.recv().await {
//!     match event {
//!         Event::Message(message) => {
//!             println!("{}: {}", message.sender_id, message.content);
//!             client.mark_read(message.conversation_id, message.seq).await?;
//!         }
//!         Event::Disconnected { reason, retry_in_ms: None } => {
//!             return Err(reason.into());
//!         }
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//! - [`Client`], [`Events`]: the handle and what it hears; a task behind them moves the bytes
//! - [`machine`]: the whole protocol without I/O, clock or randomness, for this shell and for
//!   simulators
//! - [`outbox`], [`inbox`], [`marks`], [`backoff`]: its parts
//!
//! # What is promised
//! - A message is stored once, and those to one conversation in the order in which they were sent.
//! - Messages of a conversation come out by ascending seq, none twice; what is missing is fetched
//!   before what follows it comes out.
//! - Memory is bounded: see [`ClientConfig`] and [`machine::MachineConfig`].

mod client;
mod config;
mod event;
mod task;
mod transport;

pub mod backoff;
pub mod inbox;
pub mod machine;
pub mod marks;
pub mod outbox;

pub use client::{Client, Events, Outgoing};
pub use config::{ClientConfig, ConfigError, Encoding, TokenFuture, TokenProvider, Transport};
pub use event::{DisconnectReason, Event, SendError};
/// The frames and their parts.
pub use trunkline_proto::client as frames;
