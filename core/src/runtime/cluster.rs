//! Where several cores share the conversations: what the engine's thread hands to the task that
//! speaks with the store, with ownership and with the other cores, and how it notices that its lease
//! is over.
//!
//! Invariants:
//! 1. Nothing that a turn computed leaves it after the lease is over: the clock is read between the
//!    engine and the carrying out. A head that is shown was true when it was taken.
//! 2. An incarnation has an engine of its own, and hears nothing that an earlier one asked for. Between
//!    two of them there is an engine that owns nothing.
//! 3. What is handed over is bounded as its cause is: forwarded calls hold a permit, asked parts
//!    belong to gathers, a partition is released once, an eviction frees more than it queues.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use trunkline_proto::client::Error;
use trunkline_proto::ids::ConversationId;

use super::Reply;
use crate::engine::{Request, Response, Token};

/// What is to be done outside.
pub enum ClusterJob {
    /// See [`Effect::Released`](crate::engine::Effect::Released).
    Released {
        partition: u16,
        heads: Vec<(ConversationId, u64)>,
    },
    /// See [`Effect::Evicted`](crate::engine::Effect::Evicted).
    Evicted {
        conversation: ConversationId,
        head: u64,
    },
    /// See [`Effect::CaughtUp`](crate::engine::Effect::CaughtUp).
    CaughtUp { token: Token },
    /// Have the owner of a partition answer a caller.
    Forward {
        partition: u16,
        user: String,
        request: Request,
        reply: Forwarded,
    },
    /// Ask the owner of a partition; answered by [`Input::Asked`](crate::engine::Input::Asked).
    Ask {
        token: Token,
        partition: u16,
        user: String,
        request: Request,
    },
}

/// The caller of a forwarded call. Dropped unanswered, the caller is told `unavailable`.
pub struct Forwarded(pub(super) Reply);

impl Forwarded {
    /// Answers the caller.
    pub fn answer(self, response: Result<Response, Error>) {
        self.0.send(response);
    }
}

/// What a core needs to know that shares the conversations with others.
#[derive(Clone)]
pub struct ClusterLink {
    pub jobs: UnboundedSender<ClusterJob>,
    /// Whether there is a lease, and it is valid now.
    pub is_valid: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The time to make message ids at, of the wall clock's.
    pub id_time_ms: Arc<dyn Fn(u64) -> u64 + Send + Sync>,
}

/// As whom a core that shares the conversations gives message ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    pub worker_id: u16,
    /// Ids up to here may have been given by whoever was this worker before.
    pub message_id_floor: u64,
}
