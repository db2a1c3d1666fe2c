//! A frame of the core for several sessions: encoded at most once for each encoding on this edge,
//! by the first shard that needs it. Made by the router, read by the hubs.

use std::sync::OnceLock;

use bytes::Bytes;
use prost::Message as _;
use trunkline_proto::client::ServerFrame;

use crate::frame::encode_once::{Encoding, encode};
use crate::session::{Class, classify};

/// Bytes of the longest header before a frame.
const FRAMING_BYTES: usize = 10;
/// What a message is longer by in JSON than in protobuf, about.
const JSON_NAMES_BYTES: usize = 192;

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
            let len = self.frame.encoded_len() + FRAMING_BYTES;
            let len = match encoding {
                Encoding::JsonWs => len + JSON_NAMES_BYTES,
                Encoding::ProtoWs | Encoding::ProtoTcp => len,
            };
            let mut out = Vec::with_capacity(len);
            encode(&self.frame, encoding, &mut out);
            out.into()
        })
    }
}
