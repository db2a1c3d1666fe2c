//! What REST callers are shown of a conversation: itself, its members, who has read it, and its
//! line in their list.

use std::cmp::Reverse;

use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::conversation::{Conversation, Member};
use super::gather::ListKey;
use super::machine::Engine;
use super::read::page_limit;
use super::registry::{Registry, UserRef};
use super::reply::Ticket;
use super::work::Call;
use super::{Effect, Listed, ListedConversation, MemberView, Now, ReceiptsView, Response};

impl Engine {
    /// Carries out a REST call about one conversation.
    pub(super) fn call(
        &mut self,
        at: u32,
        ticket: Ticket,
        call: Call,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let view = match call {
            Call::OpenDirect(other) => return self.open_direct(at, ticket, &other, now, out),
            Call::SetTitle(_) | Call::Delete | Call::PutMember { .. } | Call::RemoveMember(_) => {
                return self.change(at, ticket, call, now, out);
            }
            Call::Listed => {
                let state = self.cache.state(at);
                let listed = state.and_then(|s| s.listed(&self.front.registry, ticket.user));
                return self
                    .front
                    .respond(ticket, Response::Listed(listed.map(Box::new)), out);
            }
            view => view,
        };
        let registry = &self.front.registry;
        let response = match self.cache.state(at).filter(|s| !s.deleted) {
            None => Err((Code::NotFound, "no such conversation")),
            Some(state) => match state.member(ticket.user) {
                Some(member) => show(state, member, registry, &view),
                None => Err((Code::NotAMember, "the caller is not a member")),
            },
        };
        match response {
            Ok(response) => self.front.respond(ticket, response, out),
            Err((code, message)) => self.fail_in(at, ticket, code, message, out),
        }
    }

    /// Takes a call for the caller's list in.
    pub(super) fn take_list(
        &mut self,
        ticket: Ticket,
        cursor: Option<&str>,
        limit: u32,
        out: &mut Vec<Effect>,
    ) {
        let after = cursor.map(parse_list_cursor);
        match (page_limit(Some(limit)), after) {
            (None, _) => {
                let error = Code::BadRequest.error("limit is at least 1");
                self.front.fail(ticket, error, out);
            }
            (_, Some(None)) => {
                let error = Code::BadRequest.error("not a cursor of this list");
                self.front.fail(ticket, error, out);
            }
            (Some(limit), after) => self.gather_list(ticket, limit as usize, after.flatten(), out),
        }
    }
}

fn show(
    state: &Conversation,
    caller: &Member,
    registry: &Registry,
    call: &Call,
) -> Result<Response, (Code, &'static str)> {
    match call {
        Call::Members { .. } | Call::Receipts(_) if !caller.is_present() => {
            Err((Code::NotAMember, "the caller is no longer a member"))
        }
        Call::Members { cursor, limit } => {
            let limit =
                page_limit(Some(*limit)).ok_or((Code::BadRequest, "limit is at least 1"))?;
            Ok(state.members_page(registry, cursor.as_deref(), limit as usize))
        }
        Call::Receipts(seq) => {
            let mut watermarks: Vec<(String, u64, u64)> = state
                .present_members()
                .filter(|m| m.user != caller.user)
                .map(|m| (registry.name(m.user).to_owned(), m.delivered, m.read))
                .collect();
            watermarks.sort_unstable();
            Ok(Response::Receipts(ReceiptsView {
                conversation_id: state.id,
                seq: seq.unwrap_or(state.committed).min(state.committed),
                watermarks,
            }))
        }
        _ => Ok(Response::Conversation {
            conversation: state.view(registry, caller),
            created: false,
        }),
    }
}

impl Conversation {
    /// Present members in bytewise order of their ids, those after `cursor`, which is an id.
    fn members_page(&self, registry: &Registry, cursor: Option<&str>, limit: usize) -> Response {
        let mut named: Vec<(&str, &Member)> = self
            .present_members()
            .map(|m| (registry.name(m.user), m))
            .filter(|(name, _)| cursor.is_none_or(|cursor| *name > cursor))
            .collect();
        named.sort_unstable_by_key(|(name, _)| *name);
        let has_next = named.len() > limit;
        named.truncate(limit);
        let items: Vec<MemberView> = named
            .into_iter()
            .map(|(name, member)| MemberView {
                user_id: name.to_owned(),
                role: member.role,
                joined_at: member.joined_at,
            })
            .collect();
        let next_cursor = items
            .last()
            .filter(|_| has_next)
            .map(|last| last.user_id.clone());
        Response::Members { items, next_cursor }
    }

    /// The line in the list of a user who is in.
    pub fn listed(&self, registry: &Registry, user: UserRef) -> Option<Listed> {
        let member = self.present_member(user).filter(|_| !self.deleted)?;
        let visible = member.visible_head(self.committed);
        let last_message = self
            .recall(visible, visible)
            .and_then(|mut found| found.next().cloned());
        let item = ListedConversation {
            conversation: self.view(registry, member),
            delivered_seq: member.delivered,
            read_seq: member.read,
            unread: self.unread(member),
            last_message: last_message.map(|m| (*m).clone()),
        };
        Some(Listed {
            activity: self.activity(),
            item,
        })
    }

    /// Visible messages above what the member has read, less the own ones. Own messages are known
    /// as far as the dedup window reaches back; older ones count as others'.
    fn unread(&self, member: &Member) -> u64 {
        member
            .visible(member.read + 1, self.committed)
            .map(|(from, to)| {
                let senders = self.window.senders(from, to);
                let own = senders.filter(|sender| *sender == member.user).count();
                to - from + 1 - own as u64
            })
            .sum()
    }
}

/// The opaque cursor behind a list's last line.
pub(super) fn list_cursor((Reverse(activity), Reverse(id)): ListKey) -> String {
    format!("{activity}.{id}")
}

fn parse_list_cursor(text: &str) -> Option<ListKey> {
    let (activity, id) = text.split_once('.')?;
    Some((
        Reverse(activity.parse().ok()?),
        Reverse(ConversationId::parse(id)?),
    ))
}
