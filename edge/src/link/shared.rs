//! A frame of the core for several sessions: encoded at most once for each encoding on this edge,
//! by the first shard that needs it. Made by the router, read by the hubs.

use std::sync::OnceLock;

use bytes::Bytes;
use trunkline_proto::client::ServerFrame;

use crate::frame::encode_once::{Encoding, encode};
use crate::session::{Class, classify};

/// See the module.
#[derive(Debug)]
pub struct SharedFrame {
    frame: ServerFrame,
    class: Class,
    key: u64,
    encoded: [OnceLock<Bytes>; 3],
}

impl SharedFrame {
    /// Encodes nothing yet.
    pub fn new(frame: ServerFrame) -> Self {
        let (class, key) = classify(&frame);
        Self {
            frame,
            class,
            key,
            encoded: [const { OnceLock::new() }; 3],
        }
    }

    /// The frame itself.
    pub const fn frame(&self) -> &ServerFrame {
        &self.frame
    }

    /// How much it matters to a slow socket, and for receipts what it is about.
    pub const fn class(&self) -> (Class, u64) {
        (self.class, self.key)
    }

    /// The bytes for recipients of `encoding`.
    pub fn bytes(&self, encoding: Encoding) -> &Bytes {
        self.encoded[encoding as usize].get_or_init(|| {
            let mut out = Vec::new();
            encode(&self.frame, encoding, &mut out);
            out.into()
        })
    }
}
