//! Answers: from a ticket that an operation holds back to whoever asked.
//!
//! Invariant: a [`Ticket`] is made once for each operation and used up by exactly one call of
//! [`Front::ack`], [`Front::fail`], [`Front::respond`], [`Front::frame`] or [`Front::close`]; that
//! call settles the operation. It cannot be cloned, so an operation cannot be settled twice.

use trunkline_proto::client::{Ack, Error, ServerBody, ServerFrame};
use trunkline_proto::codes::Code;
use trunkline_proto::link::{CloseSession, CoreOp, Deliver, core_op};

use super::registry::{Registry, UserRef};
use super::stats::EngineStats;
use super::{EdgeKey, Effect, Response, Token};

/// A session, named as its edge names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionRef {
    pub edge: EdgeKey,
    pub handle: u64,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Session(SessionRef),
    Rest(Token),
}

/// The right and the duty to answer one operation. Retains the user.
#[derive(Debug)]
pub(super) struct Ticket {
    pub asker: Asker,
    pub user: UserRef,
    /// The client frame's `id`, echoed.
    pub id: String,
}

impl Ticket {
    pub const fn session(&self) -> Option<SessionRef> {
        match self.asker {
            Asker::Session(session) => Some(session),
            Asker::Rest(_) => None,
        }
    }
}

/// Everybody who is connected, and what is counted on the way to them.
pub(super) struct Front {
    pub registry: Registry,
    pub stats: EngineStats,
    /// Room for the addressees of one item, kept between items.
    pub(super) targets: Vec<SessionRef>,
}

impl Front {
    pub const fn new(registry: Registry, stats: EngineStats) -> Self {
        Self {
            registry,
            stats,
            targets: Vec::new(),
        }
    }

    /// A ticket for an operation that has just come in.
    pub fn ticket(&mut self, asker: Asker, user: UserRef, id: String) -> Ticket {
        self.registry.retain(user);
        Ticket { asker, user, id }
    }

    /// Answers a send.
    pub fn ack(&mut self, ticket: Ticket, ack: Ack, out: &mut Vec<Effect>) {
        self.stats.acks += 1;
        match ticket.asker {
            Asker::Session(_) => self.frame(ticket, ServerBody::Ack(ack), out),
            Asker::Rest(_) => self.respond(ticket, Response::Ack(ack), out),
        }
    }

    /// Answers with an error.
    pub fn fail(&mut self, ticket: Ticket, error: Error, out: &mut Vec<Effect>) {
        self.stats.errors += 1;
        match ticket.asker {
            Asker::Session(_) => self.frame(ticket, ServerBody::Error(error), out),
            Asker::Rest(token) => {
                out.push(Effect::Respond {
                    token,
                    response: Err(error),
                });
                self.close(ticket);
            }
        }
    }

    /// Answers a REST call. A session that asked for the same is owed nothing but its credit.
    pub fn respond(&mut self, ticket: Ticket, response: Response, out: &mut Vec<Effect>) {
        if let Asker::Rest(token) = ticket.asker {
            out.push(Effect::Respond {
                token,
                response: Ok(response),
            });
        }
        self.close(ticket);
    }

    /// Answers a session's frame.
    pub fn frame(&mut self, mut ticket: Ticket, body: ServerBody, out: &mut Vec<Effect>) {
        if let Asker::Session(session) = ticket.asker {
            let id = std::mem::take(&mut ticket.id);
            self.send(session, ServerFrame::answer(id, body), out);
        }
        self.close(ticket);
    }

    /// Ends an operation to which there is nothing, or nothing more, to say.
    pub fn close(&mut self, ticket: Ticket) {
        self.registry.release(ticket.user);
        if let Asker::Session(session) = ticket.asker {
            self.registry.settle(session.edge);
        }
    }

    /// Sends a frame to one session, if its edge is still there.
    pub fn send(&mut self, to: SessionRef, frame: ServerFrame, out: &mut Vec<Effect>) {
        if self.registry.edge(to.edge).is_none() {
            self.stats.stale += 1;
            return;
        }
        out.push(Effect::ToEdge {
            edge: to.edge,
            op: deliver(vec![to.handle], frame),
        });
    }

    /// Has an edge close a session.
    pub fn close_session(&mut self, session: SessionRef, error: Error, out: &mut Vec<Effect>) {
        out.push(Effect::ToEdge {
            edge: session.edge,
            op: CoreOp {
                op: Some(core_op::Op::Close(CloseSession {
                    handle: session.handle,
                    error: Some(error),
                })),
            },
        });
    }
}

/// One frame to sessions of one edge.
pub(super) fn deliver(handles: Vec<u64>, frame: ServerFrame) -> CoreOp {
    CoreOp {
        op: Some(core_op::Op::Deliver(Deliver {
            handles,
            frame: Some(frame),
        })),
    }
}

/// An error about a conversation.
pub(super) fn error_in(code: Code, conversation_id: &str, message: &str) -> Error {
    Error {
        conversation_id: conversation_id.to_owned(),
        ..code.error(message)
    }
}
