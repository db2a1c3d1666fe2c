//! The shared vocabulary of Trunkline's tiers: frames, identifiers, limits, codes. Pure: no I/O, no
//! clock, no runtime.
//!
//! # Layout
//! - [`client`]: the frames between clients and the edge (`proto/client.proto`), JSON in [`json`]
//! - [`light`]: the few frames that the edge answers without decoding them in full
//! - [`head`]: what the edge reads of the frames that it hands on
//! - [`link`]: the stream between edge and core (`proto/link.proto`)
//! - [`peer`]: what cores ask each other (`proto/peer.proto`)
//! - [`store`]: rows on disk (`proto/store.proto`)
//! - [`ids`]: users, devices, conversations, message ids
//! - [`codes`]: error codes, close codes and what each means to a client
//! - [`limits`]: every bound of the protocol, by name
//! - [`ports`]: edge and core to one another, inside a process
//! - [`gcra`]: the rate limiter that both tiers use

pub mod codes;
pub mod gcra;
pub mod head;
pub mod ids;
pub mod json;
pub mod light;
pub mod limits;
mod plain;
pub mod ports;

/// What prost made of the schema, in the module path of its packages.
#[allow(missing_docs, clippy::all)]
mod generated {
    pub mod trunkline {
        pub mod client {
            pub mod v1 {
                tonic::include_proto!("trunkline.client.v1");
            }
        }
        pub mod link {
            pub mod v1 {
                tonic::include_proto!("trunkline.link.v1");
            }
        }
        pub mod peer {
            pub mod v1 {
                tonic::include_proto!("trunkline.peer.v1");
            }
        }
        pub mod store {
            pub mod v1 {
                tonic::include_proto!("trunkline.store.v1");
            }
        }
    }
}

/// Frames of `trunkline.client.v1`.
pub mod client {
    pub use crate::generated::trunkline::client::v1::*;
    pub use client_frame::Frame as ClientBody;
    pub use server_frame::Frame as ServerBody;

    impl ServerFrame {
        /// A frame that answers nothing in particular.
        pub fn push(body: ServerBody) -> Self {
            Self {
                id: String::new(),
                frame: Some(body),
            }
        }

        /// The answer to the client frame that carried `id`.
        pub fn answer(id: impl Into<String>, body: ServerBody) -> Self {
            Self {
                id: id.into(),
                frame: Some(body),
            }
        }
    }
}

/// The link protocol, `trunkline.link.v1`.
pub mod link {
    pub use crate::generated::trunkline::link::v1::*;

    /// Version of the link protocol that this build speaks.
    pub const VERSION: u32 = 2;
}

/// What cores ask each other, `trunkline.peer.v1`.
pub mod peer {
    pub use crate::generated::trunkline::peer::v1::*;

    /// Version of this protocol that this build speaks.
    pub const VERSION: u32 = 1;
}

/// Rows of the stores, `trunkline.store.v1`.
pub mod store {
    pub use crate::generated::trunkline::store::v1::*;
}

/// The compiled schema, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
