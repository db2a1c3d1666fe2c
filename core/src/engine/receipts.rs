//! Watermarks: up to where each member has received and read. Merged by maximum in memory, told at
//! once to those whom it concerns, written with the next batch. They need no durability of their
//! own: what is lost in a crash is reported again by the next client.

use trunkline_proto::client::Receipt;
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::commit::id_text;
use super::conversation::Conversation;
use super::machine::Engine;
use super::registry::UserRef;
use super::reply::Ticket;
use super::work::Work;
use super::{Effect, Now, Response};

impl Engine {
    /// Takes a `receipt` frame in.
    pub(super) fn take_receipt(
        &mut self,
        ticket: Ticket,
        receipt: &Receipt,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let read = match receipt.status.as_str() {
            "delivered" => Some(false),
            "read" => Some(true),
            _ => None,
        };
        let id = ConversationId::parse(&receipt.conversation_id);
        let (Some(read), Some(id)) = (read, id) else {
            let mut error = Code::BadRequest
                .error("a receipt needs a conversation_id, and status delivered or read");
            error.conversation_id.clone_from(&receipt.conversation_id);
            return self.front.fail(ticket, error, out);
        };
        let seq = receipt.seq;
        self.dispatch(id, Work::Mark { ticket, seq, read }, now, out);
    }

    /// Raises a watermark of a member, if it rises.
    pub(super) fn mark(
        &mut self,
        at: u32,
        ticket: Ticket,
        seq: u64,
        read: bool,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let slot = &mut self.cache.slots[at];
        let Some(state) = slot.state.as_deref_mut().filter(|s| !s.deleted) else {
            return self.fail_in(at, ticket, Code::NotFound, "no such conversation", out);
        };
        let (user, head) = (ticket.user, state.committed);
        let Some(member) = state.member_mut(user).filter(|m| m.is_present()) else {
            return self.fail_in(at, ticket, Code::NotAMember, "not a member", out);
        };
        let seq = seq.min(member.visible_head(head));
        let before = if read { member.read } else { member.delivered };
        if seq > before {
            member.delivered = member.delivered.max(seq);
            if read {
                member.read = seq;
            }
            if !member.dirty {
                member.dirty = true;
                slot.dirty += 1;
                self.lanes.of(at).dirty.push(at, user, now);
            }
            self.front.stats.receipts += 1;
            let told = concerned(state, user, before + 1, seq);
            let receipt = Receipt {
                conversation_id: id_text(state.id),
                seq,
                status: if read { "read" } else { "delivered" }.to_owned(),
                user_id: self.front.registry.name(user).to_owned(),
                count: 0,
                sample: Vec::new(),
            };
            self.front
                .push_receipt(&told, ticket.session(), receipt, out);
        }
        self.front.respond(ticket, Response::Done, out);
    }
}

/// The reader, and the present members who sent something in `from..=to`, as far as the window
/// reaches back; ascending, each once.
fn concerned(state: &Conversation, reader: UserRef, from: u64, to: u64) -> Vec<UserRef> {
    let mut users = vec![reader];
    let mut last = reader;
    for sender in state.window.senders(from, to) {
        if sender != last {
            users.push(sender);
            last = sender;
        }
    }
    users.sort_unstable();
    users.dedup();
    users.retain(|u| state.present_member(*u).is_some());
    users
}
