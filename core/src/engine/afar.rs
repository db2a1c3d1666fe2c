//! What other cores are asked, where several share the conversations: a call that came to the wrong
//! one, and the parts of syncs and lists whose conversations another owns.
//!
//! Bounds: a call is forwarded once, by the runtime, and holds its caller's permit meanwhile; parts
//! are as many as gathers have under way.

use trunkline_proto::client::{Error, ServerBody, ServerFrame};
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::machine::Engine;
use super::read::PageAsk;
use super::reply::{Asker, Ticket, error_in};
use super::{Effect, Request, Response, Token};

impl Engine {
    /// Has the owner answer a REST call.
    pub(super) fn forward(
        &mut self,
        partition: u16,
        ticket: Ticket,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        let Asker::Rest(token) = ticket.asker else {
            return self.front.close(ticket);
        };
        self.front.stats.asked += 1;
        out.push(Effect::Forward {
            token,
            partition,
            user: self.front.registry.name(ticket.user).to_owned(),
            request,
        });
        self.front.close(ticket);
    }

    /// Asks the owner for a part of a gather.
    pub(super) fn ask(
        &mut self,
        partition: u16,
        gather: u64,
        user: String,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        self.front.stats.asked += 1;
        let token = self.next_token();
        self.asked.insert(token, gather);
        out.push(Effect::Ask {
            token,
            partition,
            user,
            request,
        });
    }

    /// The owner answered, or nobody did.
    pub(super) fn asked(
        &mut self,
        token: Token,
        result: Result<Response, Error>,
        out: &mut Vec<Effect>,
    ) {
        let Some(gather) = self.asked.remove(&token) else {
            self.front.stats.stale += 1;
            return;
        };
        match result {
            Ok(Response::Page(Some(page))) => {
                if let Some((session, id)) = self.sync_asker(gather) {
                    let frame = ServerFrame::answer(id, ServerBody::Page(page));
                    self.front.send(session, frame, out);
                }
                self.part_paged(gather);
            }
            Ok(Response::Listed(Some(listed))) => self.part_listed(gather, *listed),
            Ok(_) => self.part_done(gather),
            Err(error) => self.part_failed(gather, error, out),
        }
    }

    /// Shows another core what one of its users lacks of a conversation.
    pub(super) fn sync_part_for(
        &mut self,
        at: u32,
        ticket: Ticket,
        after: Option<u64>,
        limit: u32,
        out: &mut Vec<Effect>,
    ) {
        let id = self.cache.slots[at].id;
        let state = self.cache.state(at);
        let delivered = state
            .filter(|s| !s.deleted)
            .and_then(|s| s.member(ticket.user))
            .map(|m| m.delivered);
        let Some(delivered) = delivered else {
            return match (after, state) {
                // What only the index named is not worth an error.
                (None, _) => self.front.respond(ticket, Response::Page(None), out),
                (Some(_), Some(s)) if s.deleted => {
                    self.refuse_part(ticket, id, Code::NotFound, out)
                }
                (Some(_), _) => self.refuse_part(ticket, id, Code::NotAMember, out),
            };
        };
        let ask = PageAsk {
            after: Some(after.unwrap_or(delivered)),
            before: None,
            limit,
        };
        self.page_for_core(at, ticket, ask, out);
    }

    fn refuse_part(
        &mut self,
        ticket: Ticket,
        id: ConversationId,
        code: Code,
        out: &mut Vec<Effect>,
    ) {
        let message = match code {
            Code::NotFound => "no such conversation",
            _ => "not a member",
        };
        let error = error_in(code, &id.to_string(), message);
        self.front.fail(ticket, error, out);
    }
}
