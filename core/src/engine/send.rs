//! Sends: checked, recognised if they were here before, and given their place in the order.

use std::sync::Arc;

use smallvec::smallvec;
use trunkline_proto::client::{Ack, Error, Message, SendMessage};
use trunkline_proto::codes::Code;
use trunkline_proto::ids::{ConversationId, is_valid_client_msg_id, is_valid_id};
use trunkline_proto::limits::{CONTENT_CHARS_MAX, CONTENT_TYPE_BYTES_MAX, CONTENT_TYPE_DEFAULT};

use super::cache::OVERLOADED_RETRY_MS;
use super::commit::id_text;
use super::conversation::{Conversation, Pending, Waiter};
use super::dedup::{Key, Known, print};
use super::machine::Engine;
use super::reply::{Asker, Ticket, error_in};
use super::work::{Draft, Work};
use super::{Effect, Now};

impl Engine {
    /// Takes a send in: what can be said without its conversation is said here.
    pub(super) fn take_send(
        &mut self,
        ticket: Ticket,
        send: SendMessage,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let rate = match ticket.asker {
            Asker::Session(session) => self.front.registry.edge(session.edge).map(|e| e.rate),
            Asker::Rest(_) => Some(self.rest_rate),
        };
        let sender = self.front.registry.name(ticket.user);
        let id = match check(sender, &send) {
            Ok(id) => id,
            Err((code, message)) => {
                let error = refusal(code, message, send.conversation_id, send.client_msg_id);
                return self.front.fail(ticket, error, out);
            }
        };
        let rate = rate.unwrap_or(self.rest_rate);
        let taken = self
            .front
            .registry
            .take_send(ticket.user, rate, now.mono_ns);
        if let Err(retry_after_ms) = taken {
            self.front.stats.rate_limited += 1;
            let mut error = refusal(
                Code::RateLimited,
                "too many messages of this user",
                id_text(id),
                send.client_msg_id,
            );
            error.retry_after_ms = retry_after_ms;
            return self.front.fail(ticket, error, out);
        }
        let content_type = if send.content_type.is_empty() {
            CONTENT_TYPE_DEFAULT.to_owned()
        } else {
            send.content_type
        };
        let draft = Box::new(Draft {
            to: (!send.to.is_empty()).then_some(send.to),
            client_msg_id: send.client_msg_id,
            content: send.content,
            content_type,
        });
        self.dispatch(id, Work::Send { ticket, draft }, now, out);
    }

    /// Sends to a conversation, whose state is known, or which is known not to exist.
    pub(super) fn send(
        &mut self,
        at: u32,
        ticket: Ticket,
        draft: Draft,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let slot = &mut self.cache.slots[at];
        let Some(state) = slot.state.as_deref_mut() else {
            return match &draft.to {
                Some(to) if !self.has_no_room() => {
                    let other = self.front.registry.intern(to);
                    self.create_direct(at, ticket.user, other, None, now);
                    self.assign(at, ticket, draft, now);
                }
                Some(_) => self.refuse_no_room(at, ticket, draft, out),
                None => self.fail_send(at, ticket, draft, Code::NotFound, out),
            };
        };
        if state.deleted {
            return self.fail_send(at, ticket, draft, Code::NotFound, out);
        }
        let Some(member) = state.member(ticket.user) else {
            return self.fail_send(at, ticket, draft, Code::NotAMember, out);
        };
        let present = member.is_present();
        let key = Key::new(self.hash, ticket.user, &draft.client_msg_id);
        if let Some((seq, known)) = state.window.find(key) {
            return self.answer_repeated(at, ticket, draft, seq, known, out);
        }
        if !present {
            self.fail_send(at, ticket, draft, Code::NotAMember, out);
        } else if self.has_no_room() {
            self.refuse_no_room(at, ticket, draft, out);
        } else {
            self.assign(at, ticket, draft, now);
        }
    }

    /// Gives a message its seq, id and time, and puts it into the open batch.
    fn assign(&mut self, at: u32, ticket: Ticket, draft: Draft, now: Now) {
        let slot = &mut self.cache.slots[at];
        let Some(state) = slot.state.as_deref_mut() else {
            return;
        };
        let sender = ticket.user;
        state.assigned += 1;
        state.last_ts = state.last_ts.max(now.unix_ms);
        let key = Key::new(self.hash, sender, &draft.client_msg_id);
        let print = print(self.hash, &draft.content, &draft.content_type);
        let message = Message {
            conversation_id: id_text(state.id),
            message_id: self.message_ids.next(now.unix_ms),
            seq: state.assigned,
            sender_id: self.front.registry.name(sender).to_owned(),
            client_msg_id: draft.client_msg_id,
            content: draft.content,
            content_type: draft.content_type,
            media: None,
            ts: state.last_ts,
        };
        state.window.push(key, print, sender, &message);
        self.cache.dedup_entries += 1;
        state.pending.push_back(Pending {
            message: Arc::new(message),
            from: ticket.session(),
            waiters: smallvec![Waiter {
                ticket,
                duplicate: false
            }],
        });
        self.front.stats.sends += 1;
        self.lanes.of(at).open.add_message(at, slot);
    }

    /// Answers a send that was here before, as soon as what it made then is durable.
    fn answer_repeated(
        &mut self,
        at: u32,
        ticket: Ticket,
        draft: Draft,
        seq: u64,
        known: Known,
        out: &mut Vec<Effect>,
    ) {
        if known.print != print(self.hash, &draft.content, &draft.content_type) {
            self.front.stats.conflicts += 1;
            return self.fail_send(at, ticket, draft, Code::IdempotencyConflict, out);
        }
        self.front.stats.duplicates += 1;
        let pending = self
            .cache
            .state_mut(at)
            .and_then(|state: &mut Conversation| state.pending_mut(seq));
        if let Some(pending) = pending {
            pending.waiters.push(Waiter {
                ticket,
                duplicate: true,
            });
            return;
        }
        let ack = Ack {
            client_msg_id: draft.client_msg_id,
            conversation_id: id_text(self.cache.slots[at].id),
            message_id: known.message_id,
            seq,
            ts: known.ts,
            status: "sent".to_owned(),
            duplicate: true,
        };
        self.front.ack(ticket, ack, out);
    }

    /// Whether the open batches take no more operations.
    pub(super) fn has_no_room(&self) -> bool {
        self.lanes.operations() >= self.config.operations_open_max
    }

    fn refuse_no_room(&mut self, at: u32, ticket: Ticket, draft: Draft, out: &mut Vec<Effect>) {
        self.front.stats.overloaded += 1;
        let id = id_text(self.cache.slots[at].id);
        let mut error = refusal(
            Code::Overloaded,
            "too many messages wait to be stored; this one was not taken in",
            id,
            draft.client_msg_id,
        );
        error.retry_after_ms = OVERLOADED_RETRY_MS;
        self.front.fail(ticket, error, out);
    }

    fn fail_send(
        &mut self,
        at: u32,
        ticket: Ticket,
        draft: Draft,
        code: Code,
        out: &mut Vec<Effect>,
    ) {
        let message = match code {
            Code::NotFound => "no such conversation",
            Code::NotAMember => "the sender is not a member",
            _ => "this client_msg_id was used for other content",
        };
        let id = id_text(self.cache.slots[at].id);
        self.front
            .fail(ticket, refusal(code, message, id, draft.client_msg_id), out);
    }
}

fn refusal(code: Code, message: &str, conversation_id: String, client_msg_id: String) -> Error {
    Error {
        client_msg_id,
        ..error_in(code, &conversation_id, message)
    }
}

/// Checks what a send says by itself, and which conversation it is for.
fn check(sender: &str, send: &SendMessage) -> Result<ConversationId, (Code, &'static str)> {
    let id = match (send.conversation_id.is_empty(), send.to.is_empty()) {
        (false, true) => ConversationId::parse(&send.conversation_id)
            .ok_or((Code::BadRequest, "conversation_id is not a lowercase UUID"))?,
        (true, false) if is_valid_id(&send.to) => ConversationId::direct(sender, &send.to),
        (true, false) => return Err((Code::BadRequest, "`to` is not a user id")),
        _ => {
            return Err((
                Code::BadRequest,
                "exactly one of conversation_id and `to` is needed",
            ));
        }
    };
    if !is_valid_client_msg_id(&send.client_msg_id) {
        return Err((Code::BadRequest, "client_msg_id has 1 to 64 bytes"));
    }
    if send.content_type.len() > CONTENT_TYPE_BYTES_MAX {
        return Err((Code::BadRequest, "content_type has at most 64 bytes"));
    }
    if send.media.is_some() {
        return Err((Code::NotImplemented, "media is not switched on"));
    }
    if send.content.is_empty() {
        return Err((Code::BadRequest, "content is empty"));
    }
    // A text of so few bytes need not be counted.
    if send.content.len() > CONTENT_CHARS_MAX && send.content.chars().count() > CONTENT_CHARS_MAX {
        return Err((Code::TooLarge, "content has at most 1000 characters"));
    }
    Ok(id)
}
