//! Error codes and close codes: what went wrong, in the words of the external contract, and what a
//! client is to do about it. Both tiers and both clients use these and no literals of their own.

use crate::client::Error;

/// Error codes of frames and REST problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The frame could not be decoded; the connection closes with 4400.
    BadFrame,
    /// A field is missing, mistyped or out of its range; the session stays.
    BadRequest,
    /// No frame has this `type`; the session stays.
    UnknownFrame,
    /// No token, a bad one, or a frame before `connect`.
    Unauthorized,
    /// The caller's role does not allow it.
    Forbidden,
    /// No such thing.
    NotFound,
    /// The caller is not a member of the conversation.
    NotAMember,
    /// Content or frame over its limit.
    TooLarge,
    /// The group has all the members that it may have.
    GroupFull,
    /// The `client_msg_id` was used for other content.
    IdempotencyConflict,
    /// Over a rate limit; `retry_after_ms` says when to try again.
    RateLimited,
    /// Not taken in, nothing was stored; `retry_after_ms` says when to try again.
    Overloaded,
    /// Outcome unknown: retry with the same `client_msg_id`.
    Unavailable,
    /// Known, but not built or not switched on.
    NotImplemented,
    /// A defect here.
    Internal,
}

impl Code {
    /// The code on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadFrame => "bad_frame",
            Self::BadRequest => "bad_request",
            Self::UnknownFrame => "unknown_frame",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::NotAMember => "not_a_member",
            Self::TooLarge => "too_large",
            Self::GroupFull => "group_full",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::NotImplemented => "not_implemented",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that carries this code in a REST answer.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::BadFrame | Self::BadRequest | Self::UnknownFrame => 400,
            Self::Unauthorized => 401,
            Self::Forbidden | Self::NotAMember => 403,
            Self::NotFound => 404,
            Self::GroupFull | Self::IdempotencyConflict => 409,
            Self::TooLarge => 413,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::Overloaded | Self::Unavailable => 503,
        }
    }

    /// An error frame's body with this code.
    pub fn error(self, message: impl Into<String>) -> Error {
        Error {
            code: self.as_str().to_owned(),
            message: message.into(),
            ..Error::default()
        }
    }

    /// An error frame's body after which the connection closes with `close`.
    pub fn closing(self, close: Close, message: impl Into<String>) -> Error {
        Error {
            close_code: u32::from(close.code()),
            ..self.error(message)
        }
    }
}

/// Why a connection closes: the code of the WebSocket close frame, or `close_code` of the last
/// `error` on raw TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Close {
    /// 1000, also the answer to a peer that closed.
    Normal,
    /// 1001: this server is going away.
    Draining,
    /// 1002: not RFC 6455.
    Protocol,
    /// 1003: text on a protobuf session or binary on a JSON one.
    WrongOpcode,
    /// 1007: text that is not UTF-8.
    BadUtf8,
    /// 1009: a frame or message over `max_frame_bytes`.
    TooBig,
    /// 4400: a frame that could not be decoded.
    BadFrame,
    /// 4401: no valid token.
    Unauthorized,
    /// 4408: no `connect` in time.
    ConnectTimeout,
    /// 4409: a newer session of the same user and device.
    Replaced,
    /// 4410: the peer does not read what it is sent.
    SlowConsumer,
    /// 4411: nothing came for two heartbeats.
    HeartbeatMissed,
    /// 4429: over a rate limit, for long.
    RateLimited,
}

impl Close {
    /// All of them, for tables and metrics.
    pub const ALL: [Self; 13] = [
        Self::Normal,
        Self::Draining,
        Self::Protocol,
        Self::WrongOpcode,
        Self::BadUtf8,
        Self::TooBig,
        Self::BadFrame,
        Self::Unauthorized,
        Self::ConnectTimeout,
        Self::Replaced,
        Self::SlowConsumer,
        Self::HeartbeatMissed,
        Self::RateLimited,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::Draining => 1001,
            Self::Protocol => 1002,
            Self::WrongOpcode => 1003,
            Self::BadUtf8 => 1007,
            Self::TooBig => 1009,
            Self::BadFrame => 4400,
            Self::Unauthorized => 4401,
            Self::ConnectTimeout => 4408,
            Self::Replaced => 4409,
            Self::SlowConsumer => 4410,
            Self::HeartbeatMissed => 4411,
            Self::RateLimited => 4429,
        }
    }

    /// The close with this number, if it is one of ours.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.code() == code)
    }

    /// A few words for the close frame, logs and metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Draining => "draining",
            Self::Protocol => "protocol error",
            Self::WrongOpcode => "wrong opcode",
            Self::BadUtf8 => "bad utf-8",
            Self::TooBig => "too big",
            Self::BadFrame => "bad frame",
            Self::Unauthorized => "unauthorized",
            Self::ConnectTimeout => "no connect in time",
            Self::Replaced => "replaced",
            Self::SlowConsumer => "slow consumer",
            Self::HeartbeatMissed => "heartbeat missed",
            Self::RateLimited => "rate limited",
        }
    }

    /// Whether a client must not reconnect by itself. After 4401 it may with a new token.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Protocol
                | Self::WrongOpcode
                | Self::BadUtf8
                | Self::TooBig
                | Self::BadFrame
                | Self::Replaced
                | Self::Unauthorized
        )
    }
}
