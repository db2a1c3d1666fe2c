//! A connection that carries frames, whichever way.

mod tcp;
mod ws;

use trunkline_proto::client::{ClientFrame, ServerFrame};

use crate::config::{ClientConfig, Transport};
use crate::event::DisconnectReason;

/// A connection before or after `connect`.
pub(crate) enum Connection {
    WebSocket(Box<ws::WebSocket>),
    Tcp(Box<tcp::Tcp>),
}

impl Connection {
    /// Connects; the handshake of a WebSocket included.
    pub(crate) async fn open(config: &ClientConfig) -> Result<Self, DisconnectReason> {
        match &config.transport {
            Transport::WebSocket { url, encoding } => {
                ws::WebSocket::open(url, *encoding, config.frame_bytes_max)
                    .await
                    .map(|c| Self::WebSocket(Box::new(c)))
            }
            Transport::Tcp { address } => tcp::Tcp::open(address, config.frame_bytes_max)
                .await
                .map(|c| Self::Tcp(Box::new(c))),
        }
    }

    /// Queues a frame; [`Connection::flush`] sends what is queued.
    pub(crate) async fn feed(&mut self, frame: &ClientFrame) -> Result<(), DisconnectReason> {
        match self {
            Self::WebSocket(c) => c.feed(frame).await,
            Self::Tcp(c) => c.feed(frame).await,
        }
    }

    pub(crate) async fn flush(&mut self) -> Result<(), DisconnectReason> {
        match self {
            Self::WebSocket(c) => c.flush().await,
            Self::Tcp(c) => c.flush().await,
        }
    }

    /// The next frame; `None` for bytes that were only a sign of life. Nothing is lost when this
    /// is dropped before it is done.
    pub(crate) async fn recv(&mut self) -> Result<Option<ServerFrame>, DisconnectReason> {
        match self {
            Self::WebSocket(c) => c.recv().await,
            Self::Tcp(c) => c.recv().await,
        }
    }

    /// Takes leave. Nobody waits for the answer.
    pub(crate) async fn close(&mut self) {
        match self {
            Self::WebSocket(c) => c.close().await,
            Self::Tcp(c) => c.close().await,
        }
    }
}
