//! What edges say: sessions that come and go, and the frames of their clients.

use prost::Message as _;
use trunkline_proto::client::{ClientBody, ClientFrame, Error, ServerBody, ServerFrame};
use trunkline_proto::codes::{Close, Code};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::link::{
    CoreOp, EdgeHello, EdgeOp, Registered, SessionOpened, VERSION, core_op, edge_op,
};

use super::machine::Engine;
use super::read::{PageAsk, page_limit};
use super::registry::Began;
use super::reply::{Asker, SessionRef, Ticket};
use super::work::Work;
use super::{EdgeKey, Effect, Now};

/// When a user with too many sessions should try for one more.
const SESSION_RETRY_MS: u32 = 30_000;

impl Engine {
    /// An edge's stream began.
    pub(super) fn attach(
        &mut self,
        edge: EdgeKey,
        hello: EdgeHello,
        resumes_here: bool,
        out: &mut Vec<Effect>,
    ) {
        if hello.version != VERSION || hello.edge_id.is_empty() {
            let reason = "the edge speaks another version of the link protocol, or has no id";
            return out.push(Effect::CutEdge { edge, reason });
        }
        self.front.registry.attach(edge, hello, resumes_here);
    }

    /// Takes in one operation of an edge.
    pub(super) fn edge_op(&mut self, edge: EdgeKey, op: EdgeOp, now: Now, out: &mut Vec<Effect>) {
        if self.front.registry.edge(edge).is_none() {
            self.front.stats.stale += 1;
            return;
        }
        let session = SessionRef {
            edge,
            handle: op.handle,
        };
        match op.op {
            Some(edge_op::Op::Opened(opened)) => self.opened(session, &opened, now, out),
            Some(edge_op::Op::Closed(_)) => {
                if !self.front.registry.close(edge, op.handle) {
                    self.front.stats.stale += 1;
                }
            }
            Some(edge_op::Op::Frame(bytes)) => match ClientFrame::decode(&bytes[..]) {
                Ok(frame) => self.frame(session, frame, now, out),
                Err(error) => self.undecodable(session, &error, out),
            },
            None => self.front.stats.stale += 1,
        }
    }

    /// Registers a session, unless a newer one of its device is there or the user has too many.
    fn opened(
        &mut self,
        session: SessionRef,
        opened: &SessionOpened,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let again = opened.announced_again;
        let registry = &mut self.front.registry;
        if registry.session(session.edge, session.handle).is_some() {
            // Said twice: the first time holds.
            if !again {
                registered(session, out);
            }
            return;
        }
        let user = registry.intern(&opened.user_id);
        let device = registry.device(&opened.device_id);
        let older = registry.session_on_device(user, device).map(|s| {
            let session = SessionRef {
                edge: s.edge,
                handle: s.handle,
            };
            (session, s.began())
        });
        let replaced = || {
            Code::Unauthorized.closing(
                Close::Replaced,
                "replaced by a newer session of this device",
            )
        };
        // Where several cores have every session, one of them judges, so that no two contradict.
        let is_home = self.owned.is_home_of(&opened.user_id);
        // What comes back with a link may be left over: the device may have connected anew meanwhile,
        // over this edge or another. Of the two the younger stays.
        let began = Began::before(now.mono_ns, opened.age_ms);
        if again && is_home && older.is_some_and(|(_, other_began)| other_began > began) {
            self.front.stats.replaced += 1;
            return self.front.close_session(session, replaced(), out);
        }
        let edge = registry.edge(session.edge);
        let max = edge
            .filter(|_| is_home)
            .map_or(0, |e| e.sessions_per_user_max);
        let live = registry.sessions_of(user).count() - usize::from(older.is_some());
        if max > 0 && live >= max as usize {
            let error = Error {
                retry_after_ms: SESSION_RETRY_MS,
                ..Code::RateLimited.closing(Close::RateLimited, "too many sessions of this user")
            };
            return self.front.close_session(session, error, out);
        }
        if let Some((other, _)) = older.filter(|_| is_home) {
            self.front.stats.replaced += 1;
            self.front.registry.close(other.edge, other.handle);
            self.front.close_session(other, replaced(), out);
        }
        let registry = &mut self.front.registry;
        registry.open(session.edge, session.handle, user, device, began);
        if again {
            self.want_hints(session);
        } else {
            registered(session, out);
        }
    }

    /// Answers a frame that no edge of this release hands on: it has looked before.
    fn undecodable(
        &mut self,
        session: SessionRef,
        error: &prost::DecodeError,
        out: &mut Vec<Effect>,
    ) {
        self.front.stats.errors += 1;
        let error = Code::BadFrame.error(error.to_string());
        let answer = ServerFrame::push(ServerBody::Error(error));
        self.front.send(session, answer, out);
        self.front.registry.settle(session.edge);
    }

    /// Takes in a client's frame.
    fn frame(&mut self, session: SessionRef, frame: ClientFrame, now: Now, out: &mut Vec<Effect>) {
        let registry = &mut self.front.registry;
        let Some(user) = registry
            .session(session.edge, session.handle)
            .map(|s| s.user)
        else {
            self.front.stats.stale += 1;
            self.front.stats.errors += 1;
            let mut error = Code::Unavailable.error("the session is not registered");
            if let Some(ClientBody::SendMessage(send)) = frame.frame {
                error.conversation_id = send.conversation_id;
                error.client_msg_id = send.client_msg_id;
            }
            let answer = ServerFrame::answer(frame.id, ServerBody::Error(error));
            self.front.send(session, answer, out);
            return self.front.registry.settle(session.edge);
        };
        let ticket = self.front.ticket(Asker::Session(session), user, frame.id);
        match frame.frame {
            Some(ClientBody::SendMessage(send)) => self.take_send(ticket, send, now, out),
            Some(ClientBody::Receipt(receipt)) => self.take_receipt(ticket, &receipt, now, out),
            Some(ClientBody::Sync(sync)) => self.take_sync(ticket, sync, out),
            Some(ClientBody::Fetch(fetch)) => {
                let ask = (fetch.after, fetch.before, fetch.limit);
                self.take_page(ticket, &fetch.conversation_id, ask, now, out);
            }
            Some(ClientBody::Typing(typing)) => {
                let mut error = Code::NotImplemented.error("typing is not switched on");
                error.conversation_id = typing.conversation_id;
                self.front.fail(ticket, error, out);
            }
            Some(ClientBody::Watch(_) | ClientBody::Unwatch(_)) => {
                let error = Code::NotImplemented.error("presence is not switched on");
                self.front.fail(ticket, error, out);
            }
            Some(ClientBody::Connect(_) | ClientBody::Ping(_) | ClientBody::Heartbeat(_)) => {
                let error = Code::BadRequest.error("this frame ends at the edge");
                self.front.fail(ticket, error, out);
            }
            None => {
                let error = Code::UnknownFrame.error("no such frame");
                self.front.fail(ticket, error, out);
            }
        }
    }

    fn take_page(
        &mut self,
        ticket: Ticket,
        conversation_id: &str,
        (after, before, limit): (Option<u64>, Option<u64>, Option<u32>),
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let id = ConversationId::parse(conversation_id);
        let (Some(id), Some(limit)) = (id, page_limit(limit)) else {
            let mut error =
                Code::BadRequest.error("needs a conversation_id, and a limit of at least 1");
            conversation_id.clone_into(&mut error.conversation_id);
            return self.front.fail(ticket, error, out);
        };
        let ask = PageAsk {
            after,
            before,
            limit,
        };
        self.dispatch(id, Work::Page { ticket, ask }, now, out);
    }
}

fn registered(session: SessionRef, out: &mut Vec<Effect>) {
    out.push(Effect::ToEdge {
        edge: session.edge,
        op: CoreOp {
            op: Some(core_op::Op::Registered(Registered {
                handle: session.handle,
            })),
        },
    });
}
