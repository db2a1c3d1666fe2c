//! Operations on one conversation, and who carries out which.

use trunkline_proto::client::Error;
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::machine::Engine;
use super::read::PageAsk;
use super::reply::{Ticket, error_in};
use super::{Effect, Now, Role, Token};

/// A checked send.
#[derive(Debug)]
pub(super) struct Draft {
    /// The other one, if the direct conversation with them was addressed.
    pub to: Option<String>,
    pub client_msg_id: String,
    pub content: String,
    pub content_type: String,
}

/// A REST call about one conversation.
#[derive(Debug)]
pub(super) enum Call {
    Get,
    /// The direct conversation with this user.
    OpenDirect(String),
    SetTitle(String),
    Delete,
    PutMember {
        user: String,
        role: Option<Role>,
    },
    RemoveMember(String),
    Members {
        cursor: Option<String>,
        limit: u32,
    },
    Receipts(Option<u64>),
    /// For another core, which gathers a list.
    Listed,
}

/// What waits for, or is done to, one conversation.
#[derive(Debug)]
pub(super) enum Work {
    Send {
        ticket: Ticket,
        draft: Box<Draft>,
    },
    Mark {
        ticket: Ticket,
        seq: u64,
        read: bool,
    },
    Page {
        ticket: Ticket,
        ask: PageAsk,
    },
    Call {
        ticket: Ticket,
        call: Call,
    },
    /// A part of a sync that another core gathers.
    SyncPart {
        ticket: Ticket,
        after: Option<u64>,
        limit: u32,
    },
    /// A conversation of a catch-up.
    Announce {
        token: Token,
        id: ConversationId,
    },
    /// One conversation of many; `after` is for a sync that names a position.
    Part {
        gather: u64,
        after: Option<u64>,
    },
}

impl Engine {
    /// Carries out one operation. Nothing stands in its way.
    pub(super) fn perform(&mut self, at: u32, work: Work, now: Now, out: &mut Vec<Effect>) {
        match work {
            Work::Send { ticket, draft } => self.send(at, ticket, *draft, now, out),
            Work::Mark { ticket, seq, read } => self.mark(at, ticket, seq, read, now, out),
            Work::Page { ticket, ask } => self.page(at, ticket, ask, out),
            Work::Call { ticket, call } => self.call(at, ticket, call, now, out),
            Work::SyncPart {
                ticket,
                after,
                limit,
            } => self.sync_part_for(at, ticket, after, limit, out),
            Work::Announce { token, .. } => self.announce(at, token, out),
            Work::Part { gather, after } => self.part(at, gather, after, out),
        }
    }

    /// Answers an operation that cannot be carried out.
    pub(super) fn refuse(&mut self, work: Work, mut error: Error, out: &mut Vec<Effect>) {
        let ticket = match work {
            Work::Send { ticket, draft } => {
                error.client_msg_id = draft.client_msg_id;
                ticket
            }
            Work::Mark { ticket, .. }
            | Work::Page { ticket, .. }
            | Work::Call { ticket, .. }
            | Work::SyncPart { ticket, .. } => ticket,
            Work::Announce { token, id } => return self.announce_failed(token, id),
            Work::Part { gather, .. } => return self.part_failed(gather, error, out),
        };
        self.front.fail(ticket, error, out);
    }

    /// Answers with an error about the conversation in a slot.
    pub(super) fn fail_in(
        &mut self,
        at: u32,
        ticket: Ticket,
        code: Code,
        message: &str,
        out: &mut Vec<Effect>,
    ) {
        let id = self.cache.slots[at].id.to_string();
        self.front.fail(ticket, error_in(code, &id, message), out);
    }
}
