//! Frames: bytes to messages and back. Pure state machines over byte slices: no socket, no clock, no
//! random source, so the same code runs on the kernel, in the simulator and under a fuzzer. Called
//! by the shard (`session`, `echo`) with the driver's receive buffers.
//!
//! # Layout
//! - [`upgrade`]: the HTTP/1.1 request that opens a WebSocket, and the answers to it
//! - [`ws`]: RFC 6455, the server's reading side ([`mask`], [`utf8`] and [`deflate`] help)
//! - [`encode`]: the server's writing side
//! - [`tcp`]: protobuf frames behind their length as a varint
//! - [`encode_once`]: one server frame for many recipients, encoded once per encoding
//!
//! # Invariants
//! 1. A message that lies whole in the receive buffer is unmasked where it lies and handed on as a
//!    slice of it. Only left-overs, fragments and inflated text are copied, into a box that is
//!    freed when the message is whole: an idle connection owns no buffer here.
//! 2. What a decoder holds grows with what was *received*, never with what a header declares, and
//!    never beyond the message limit that its caller passes.
//! 3. After an error or a close frame a decoder swallows whatever else comes.
//!
//! # Example
//! ```
//! use trunkline_edge::frame::Input;
//! use trunkline_edge::frame::encode;
//! use trunkline_edge::frame::ws::{Decoder, WsEvent};
//!
//! let mut decoder = Decoder::new(None);
//! let mut out = Vec::new();
//! // A masked text frame, "hi", as a driver hands it over.
//! let mut received = [0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2];
//! let mut input = Input::new(&mut received);
//! loop {
//!     match decoder.next_event(&mut input, 65_536) {
//!         Ok(Some(WsEvent::Text(text))) => encode::text(&mut out, text),
//!         Ok(Some(WsEvent::Binary(bytes))) => encode::binary(&mut out, bytes),
//!         Ok(Some(WsEvent::Ping(payload))) => encode::pong(&mut out, payload),
//!         Ok(Some(WsEvent::Pong(_))) => {}
//!         Ok(Some(WsEvent::Close { code, .. })) => encode::close_reply(&mut out, code),
//!         Ok(None) => break,
//!         Err(error) => {
//!             encode::close(&mut out, error.close().code(), error.reason());
//!             break;
//!         }
//!     }
//! }
//! assert_eq!(out, b"\x81\x02hi");
//! ```

use std::ops::Range;

pub mod deflate;
pub mod encode;
pub mod encode_once;
pub mod mask;
pub mod tcp;
pub mod upgrade;
pub mod utf8;
pub mod ws;

#[cfg(test)]
mod testing;

/// What one receive brought, and how far a decoder has read in it. Made anew for each receive;
/// decoders are called with it until they return nothing, and then it is used up.
#[derive(Debug)]
pub struct Input<'d> {
    data: &'d mut [u8],
    at: usize,
}

impl<'d> Input<'d> {
    /// All of `data` is still to be read. Decoders unmask in it.
    pub fn new(data: &'d mut [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// What is still to be read.
    pub fn rest(&self) -> &[u8] {
        &self.data[self.at..]
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.at == self.data.len()
    }

    /// Reads up to `wanted` bytes: where they lie.
    fn take(&mut self, wanted: usize) -> Range<usize> {
        let from = self.at;
        self.at += wanted.min(self.data.len() - from);
        from..self.at
    }

    fn skip_rest(&mut self) {
        self.at = self.data.len();
    }
}
