//! What the application hears.

use trunkline_proto::client::{
    Ack, Connected, Conversation, Error, Message, Presence, Receipt, Typing,
};
use trunkline_proto::codes::Close;

/// Something that the application may want to know.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A session began. What was missed while away follows as messages, then [`Event::Synced`].
    Connected(Connected),
    /// Everything missed while away was handed out or is being fetched; from here on it is live.
    Synced,
    /// A message of somebody else, or of this user's other devices. In order for each
    /// conversation, and once.
    Message(Message),
    /// A message sent here is on stable storage.
    Ack(Ack),
    /// A message sent here was refused for good.
    SendFailed {
        client_msg_id: String,
        error: SendError,
    },
    /// Somebody has received or read.
    Receipt(Receipt),
    Typing(Typing),
    Presence(Presence),
    /// A conversation was created, its members, roles or title changed, or it has news that are
    /// being fetched.
    ConversationChanged(Conversation),
    /// The connection is gone. Unless the reason is terminal a new one is being tried.
    Disconnected {
        reason: DisconnectReason,
        /// In ms; `None`: the client has given up and no event follows.
        retry_in_ms: Option<u64>,
    },
    /// The server refused something that no message of this client's outbox caused.
    Error(Error),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The server closed with this code.
    #[error("closed by the server: {code} {text}")]
    Closed { code: u16, text: String },
    /// It told us to come back elsewhere or later.
    #[error("the server asked to reconnect: {0}")]
    AskedToReconnect(String),
    /// Refused, broken off, or not RFC 6455.
    #[error("connection failed: {0}")]
    Failed(String),
    /// The server did not answer in time.
    #[error("the server is silent")]
    Silent,
    /// The handshake was answered with this HTTP status.
    #[error("handshake refused with HTTP {0}")]
    Refused(u16),
    /// The application's token provider failed.
    #[error("no token: {0}")]
    NoToken(String),
    /// The application closed.
    #[error("closed")]
    ByApplication,
}

impl DisconnectReason {
    /// The close code, if the server gave one.
    pub fn close(&self) -> Option<Close> {
        match self {
            Self::Closed { code, .. } => Close::from_code(*code),
            Self::Refused(401) => Some(Close::Unauthorized),
            _ => None,
        }
    }

    /// Whether only a new token helps.
    pub fn is_unauthorized(&self) -> bool {
        self.close() == Some(Close::Unauthorized)
    }
}

/// Why a message was not sent, or a call not answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The outbox holds all that it may: wait for acks.
    #[error("the outbox is full")]
    OutboxFull,
    /// The `client_msg_id` is in use by another message under way.
    #[error("client_msg_id is in use by another message under way")]
    DuplicateId,
    /// The server refused it for good.
    #[error("{}: {}", .0.code, .0.message)]
    Refused(Error),
    /// Not connected now; only for calls that are not repeated by themselves.
    #[error("not connected")]
    NotConnected,
    /// The client was closed, or gave up.
    #[error("the client is closed")]
    Closed,
}
