//! Every way in which a connection ends.
//!
//! Invariant: a connection that leaves a state for [`State::Closing`] gets its reason once, the core
//! hears `closed` then, and the socket is dropped at the peer's end or after the linger at the
//! latest.

use trunkline_proto::client::{Error, ServerBody, ServerFrame};
use trunkline_proto::codes::{Close, Code};

use super::closed::ClosedRecord;
use super::outbox::Outbox;
use super::slots::flag;
use super::{End, Shard, State, Transport};
use crate::frame::encode;
use crate::frame::encode_once::encode as encode_frame;
use crate::frame::upgrade::{Rejection, write_rejection};
use crate::observe::counters::Number;
use crate::ring::ConnId;

impl Shard {
    /// The socket is gone: its slot is free.
    pub fn closed(&mut self, id: ConnId) {
        self.leave(id, End::Error);
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        let owed = conn.owed() as u64;
        self.counters.sub(Number::OutboxBytes, owed);
        if conn.has(flag::BLOCKED) {
            self.counters.sub(Number::OutboxSockets, 1);
        }
        self.turns.forget(conn);
        let accepted_at = conn.accepted_at;
        let age_ms = self.ms_since(accepted_at);
        let Some(removed) = self.slots.remove(id) else {
            return;
        };
        let conn = removed.conn;
        if let Some(gauge) = Number::sockets(conn.state, conn.transport()) {
            self.counters.sub(gauge, 1);
        }
        self.counters.inc(Number::closed(conn.end));
        let (bytes_in, bytes_out) = conn.bytes_in_out();
        self.closed.push(ClosedRecord {
            at_ms: self.now.unix_ms,
            user: removed.user,
            device: removed.device,
            reason: conn.end.reason(),
            code: match conn.end {
                End::Ours(close) => close.code(),
                _ => 0,
            },
            transport: conn.transport().name(),
            age_ms,
            bytes_in,
            bytes_out,
            peer: removed.peer,
        });
    }

    /// The peer has shut its side. What it is owed still leaves, then FIN; with both sides shut the
    /// driver closes.
    pub fn eof(&mut self, id: ConnId) {
        self.leave(id, End::Eof);
        self.fin(id);
    }

    /// Ends a connection at once; what it is owed is lost.
    pub(super) fn drop_now(&mut self, id: ConnId, end: End) {
        self.leave(id, end);
        if let Some(conn) = self.slots.get_mut(id)
            && !conn.has(flag::DROPPED)
        {
            conn.set(flag::DROPPED);
            self.drops.push(id);
        }
    }

    /// Ends a connection that does not read what it is sent. What was queued is let go at once; a
    /// peer that reads again before the linger ends learns why it was closed.
    pub(super) fn close_slow(&mut self, id: ConnId) {
        self.with_outbox(id, Outbox::forget);
        self.finish(id, Close::SlowConsumer, None);
        let deadline = self.ticks_ahead(self.settings.slow_linger_ms);
        if let Some(conn) = self.slots.get_mut(id) {
            conn.set_deadline(deadline);
        }
    }

    /// Ends a connection in an orderly way: the error, the close frame, FIN.
    pub(crate) fn finish(&mut self, id: ConnId, close: Close, error: Option<Error>) {
        self.finish_answering(id, "", close, error);
    }

    /// As [`Shard::finish`], with the error as the answer to a frame's `id`.
    pub(super) fn finish_answering(
        &mut self,
        id: ConnId,
        frame_id: &str,
        close: Close,
        error: Option<Error>,
    ) {
        self.finish_saying(id, frame_id, close, error, close.reason());
    }

    /// As [`Shard::finish_answering`], with other words in the close frame.
    pub(super) fn finish_saying(
        &mut self,
        id: ConnId,
        frame_id: &str,
        close: Close,
        error: Option<Error>,
        reason: &str,
    ) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        if conn.state == State::Closing {
            return;
        }
        let (transport, encoding) = (conn.transport(), conn.encoding);
        // On raw TCP the last error is the close frame.
        let error = error.or_else(|| {
            (transport == Transport::Tcp).then(|| code_of(close).closing(close, reason))
        });
        self.leave(id, End::Ours(close));
        self.send_always(id, |out| {
            if let Some(mut error) = error {
                error.close_code = u32::from(close.code());
                let frame = ServerFrame::answer(frame_id, ServerBody::Error(error));
                encode_frame(&frame, encoding, out);
            }
            if transport == Transport::WebSocket {
                encode::close(out, close.code(), reason);
            }
        });
        self.fin(id);
    }

    /// `unauthorized`, 4401.
    pub(super) fn unauthorized(&mut self, id: ConnId, frame_id: &str, reason: &str) {
        let state = self.slots.get(id).map(|conn| conn.state);
        if state == Some(State::AwaitConnect) {
            self.counters.inc(Number::RefusedUnauthorized);
        }
        let error = Code::Unauthorized.closing(Close::Unauthorized, reason);
        self.finish_answering(id, frame_id, Close::Unauthorized, Some(error));
    }

    /// Answers the peer's close frame.
    pub(super) fn closed_by_peer(&mut self, id: ConnId, code: Option<u16>) {
        self.leave(id, End::Peer);
        self.send_always(id, |out| encode::close_reply(out, code));
        self.fin(id);
    }

    /// Answers an HTTP request with a refusal.
    pub(super) fn reject(&mut self, id: ConnId, rejection: &Rejection) {
        self.leave(id, End::Handshake);
        self.send_always(id, |out| write_rejection(out, rejection));
        self.fin(id);
    }

    fn fin(&mut self, id: ConnId) {
        if let Some(conn) = self.slots.get_mut(id) {
            conn.set(flag::FIN);
            self.fins.push(id);
        }
    }

    /// From whatever state to [`State::Closing`].
    fn leave(&mut self, id: ConnId, end: End) {
        let deadline = self.ticks_ahead(self.settings.linger_ms);
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        if conn.state == State::Closing {
            return;
        }
        let was_live = conn.state == State::Live;
        conn.end = end;
        conn.drop_incoming();
        self.forget_announcement(id);
        self.set_state(id, State::Closing);
        if let Some(conn) = self.slots.get_mut(id) {
            conn.set_deadline(deadline);
        }
        if was_live {
            self.count_drained(end);
        }
        self.arm(id);
    }

    /// Moves a connection to `state` and keeps the gauges.
    pub(super) fn set_state(&mut self, id: ConnId, state: State) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        let before = Number::sockets(conn.state, conn.transport());
        let after = Number::sockets(state, conn.transport());
        conn.enter(state);
        if let (Some(before), Some(after)) = (before, after) {
            self.counters.sub(before, 1);
            self.counters.inc(after);
        }
    }
}

/// The error that goes with a close where the cause has none of its own.
const fn code_of(close: Close) -> Code {
    match close {
        Close::Normal | Close::Draining | Close::HeartbeatMissed => Code::Unavailable,
        Close::Protocol | Close::WrongOpcode | Close::BadUtf8 | Close::BadFrame => Code::BadFrame,
        Close::TooBig => Code::TooLarge,
        Close::Unauthorized | Close::ConnectTimeout | Close::Replaced => Code::Unauthorized,
        Close::SlowConsumer => Code::Overloaded,
        Close::RateLimited => Code::RateLimited,
    }
}
