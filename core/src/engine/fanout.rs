//! From members to sessions to items: one item for each edge, whatever number of sessions it holds.

use std::sync::Arc;

use trunkline_proto::client::{self, Message, ServerBody, ServerFrame};

use super::Effect;
use super::conversation::Conversation;
use super::registry::UserRef;
use super::reply::{Front, SessionRef, deliver};

impl Front {
    /// Pushes a message that has just become durable to all present members' sessions but the one
    /// that sent it.
    pub fn push_message(
        &mut self,
        conversation: &mut Conversation,
        message: &Arc<Message>,
        from: Option<SessionRef>,
        out: &mut Vec<Effect>,
    ) {
        let frame = || ServerFrame::push(ServerBody::Message(Message::clone(message)));
        if let Some(roster) = conversation.roster {
            if self.registry.rosters.has(roster) {
                return self.push_to_roster(roster, from, frame(), out);
            }
            conversation.roster = None;
            conversation.wide_messages = 0;
        }
        let mut targets = std::mem::take(&mut self.targets);
        self.add_members(conversation, &mut targets);
        if self.is_busy(conversation, targets.len()) {
            let users = conversation.present_members().map(|m| m.user).collect();
            conversation.roster = self.registry.rosters.create(&targets, users);
            if let Some(roster) = conversation.roster {
                self.push_to_roster(roster, from, frame(), out);
                return self.recycle(targets);
            }
        }
        if let Some(from) = from {
            targets.retain(|t| *t != from);
        }
        let handles = targets.len() as u64;
        let items = if targets.is_empty() {
            0
        } else {
            send_all(&mut targets, frame(), out)
        };
        self.stats.delivery_items += items;
        self.stats.delivery_handles += handles;
        self.recycle(targets);
    }

    /// Counts a message for so many sessions, and says whether the edges are to keep their list.
    fn is_busy(&self, conversation: &mut Conversation, recipients: usize) -> bool {
        let bounds = self.registry.rosters.bounds();
        if recipients < bounds.recipients_min {
            conversation.wide_messages = 0;
            return false;
        }
        conversation.wide_messages = conversation.wide_messages.saturating_add(1);
        conversation.wide_messages > bounds.messages_min
    }

    fn push_to_roster(
        &mut self,
        roster: u64,
        from: Option<SessionRef>,
        frame: ServerFrame,
        out: &mut Vec<Effect>,
    ) {
        // A sender whose session is there is a member, so the session is in the roster: who is
        // removed sends no more before the removal is in effect.
        let registry = &mut self.registry;
        let from = from.filter(|f| registry.session(f.edge, f.handle).is_some());
        let delivered = registry.rosters.deliver(roster, from, frame, out);
        self.stats.delivery_items += delivered.items;
        self.stats.roster_items += delivered.items;
        self.stats.delivery_handles += delivered.handles;
    }

    /// Tells all present members, and `others`, of a change to the conversation.
    pub fn push_change(
        &mut self,
        conversation: &Conversation,
        others: &[UserRef],
        frame: client::Conversation,
        out: &mut Vec<Effect>,
    ) {
        let mut targets = std::mem::take(&mut self.targets);
        self.add_members(conversation, &mut targets);
        for user in others {
            self.add_user(*user, &mut targets);
        }
        let body = ServerBody::Conversation(frame);
        send_all(&mut targets, ServerFrame::push(body), out);
        self.recycle(targets);
    }

    /// Tells the sessions of `users` of a watermark, all but the one that reported it.
    pub fn push_receipt(
        &mut self,
        users: &[UserRef],
        from: Option<SessionRef>,
        receipt: client::Receipt,
        out: &mut Vec<Effect>,
    ) {
        let mut targets = std::mem::take(&mut self.targets);
        for user in users {
            self.add_user(*user, &mut targets);
        }
        if let Some(from) = from {
            targets.retain(|t| *t != from);
        }
        let body = ServerBody::Receipt(receipt);
        self.stats.receipt_items += send_all(&mut targets, ServerFrame::push(body), out);
        self.recycle(targets);
    }

    /// Sends a frame to these sessions, as far as they are still registered.
    pub fn push_to(&mut self, to: &[SessionRef], body: ServerBody, out: &mut Vec<Effect>) -> u64 {
        let mut targets = std::mem::take(&mut self.targets);
        targets.extend(
            to.iter()
                .filter(|t| self.registry.session(t.edge, t.handle).is_some()),
        );
        let count = targets.len() as u64;
        send_all(&mut targets, ServerFrame::push(body), out);
        self.recycle(targets);
        count
    }

    fn add_members(&self, conversation: &Conversation, targets: &mut Vec<SessionRef>) {
        for member in conversation.present_members() {
            self.add_user(member.user, targets);
        }
    }

    fn add_user(&self, user: UserRef, targets: &mut Vec<SessionRef>) {
        targets.extend(self.registry.sessions_of(user).map(|s| SessionRef {
            edge: s.edge,
            handle: s.handle,
        }));
    }

    fn recycle(&mut self, mut targets: Vec<SessionRef>) {
        targets.clear();
        self.targets = targets;
    }
}

/// One item for each edge among `targets`; says how many these were.
fn send_all(targets: &mut [SessionRef], frame: ServerFrame, out: &mut Vec<Effect>) -> u64 {
    // Stable: within an edge the order of members stays.
    if !targets.is_sorted_by_key(|t| t.edge) {
        targets.sort_by_key(|t| t.edge);
    }
    let mut items = 0;
    let mut frame = Some(frame);
    let mut groups = targets.chunk_by(|a, b| a.edge == b.edge).peekable();
    while let Some(group) = groups.next() {
        let body = if groups.peek().is_some() {
            frame.clone()
        } else {
            frame.take()
        };
        if let Some(body) = body {
            let handles = group.iter().map(|t| t.handle).collect();
            out.push(Effect::ToEdge {
                edge: group[0].edge,
                op: deliver(handles, body),
            });
            items += 1;
        }
    }
    items
}
