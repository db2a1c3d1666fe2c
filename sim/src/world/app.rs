//! What people do: talk in groups and in pairs, read, leaf through history, and change groups over
//! REST.

use trunkline_core::engine::{Kind, Request, Response};
use trunkline_proto::client::{Error, Fetch, SendMessage};
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::client::Phase;
use super::core::CoreInput;
use super::end::Stage;
use super::{Event, World, trace};
use crate::plan::{MS, SECOND};

/// A REST caller waits so long for an answer.
const CALL_MAX: u64 = 4 * SECOND;
/// And then so long before trying again, if it does.
const CALL_AGAIN: u64 = 500 * MS;
const TEXTS: [&str; 6] = [
    "hi",
    "how are you?",
    "\u{1F980} \u{1F980}",
    "see you",
    "ok",
    "no",
];

/// What all know of one another.
#[derive(Default)]
pub(super) struct Chat {
    /// Groups and who owned each first.
    pub(super) groups: Vec<(ConversationId, String)>,
    pub(super) sessions: u64,
    sends: u64,
}

/// A REST call.
pub(super) struct Call {
    pub(super) user: String,
    request: Request,
    tries: u32,
    /// Until there is an answer that settles it.
    is_stubborn: bool,
    pub(super) is_done: bool,
}

impl World {
    /// The groups that are there from the beginning.
    pub(super) fn make_groups(&mut self) {
        for _ in 0..self.plan.groups {
            let owner = self.rng.app.index(self.clients.len());
            let owner = self.clients[owner].user.clone();
            let members = self.some_users();
            let request = Request::CreateConversation {
                kind: Kind::Group,
                title: "a group".into(),
                members,
            };
            self.call(owner, request, true);
        }
    }

    fn some_users(&mut self) -> Vec<String> {
        let mut users: Vec<String> = self.clients.iter().map(|c| c.user.clone()).collect();
        users.dedup();
        users.retain(|_| self.rng.app.chance(650));
        users
    }

    /// A client's user does something.
    pub(super) fn act(&mut self, client: usize) {
        if self.stage != Stage::Talking {
            return;
        }
        let wait = self.rng.app.below(2 * self.plan.act_every_ns);
        self.after(wait, Event::Act { client });
        match self.rng.app.below(100) {
            0..62 => self.talk(client),
            62..72 => self.talk_direct(client),
            72..80 => self.read_up(client),
            80..84 => self.leaf_back(client),
            84..88 => self.rest_send(client),
            88..95 => self.change_members(client),
            _ => self.look_around(client),
        }
    }

    fn a_message(&mut self, client: usize) -> SendMessage {
        self.chat.sends += 1;
        self.clients[client].sent += 1;
        let text = *self.rng.app.pick(&TEXTS);
        let length = if self.rng.app.chance(60) { 120 } else { 1 };
        SendMessage {
            client_msg_id: format!(
                "{}-{}",
                self.clients[client].device, self.clients[client].sent
            ),
            content: format!("{} {}", self.chat.sends, text.repeat(length)),
            ..SendMessage::default()
        }
    }

    fn a_group(&mut self) -> Option<(ConversationId, String)> {
        if self.chat.groups.is_empty() {
            return None;
        }
        Some(self.rng.app.pick(&self.chat.groups).clone())
    }

    fn is_member(&self, client: usize, group: ConversationId) -> bool {
        let known = self.check.truth.conversations.get(&group);
        known.is_some_and(|k| k.is_present(&self.clients[client].user))
    }

    fn talk(&mut self, client: usize) {
        let Some((group, _)) = self.a_group() else {
            return;
        };
        // Now and then somebody knocks who does not belong there.
        if !self.is_member(client, group) && !self.rng.app.chance(50) {
            return;
        }
        let mut message = self.a_message(client);
        message.conversation_id = group.to_string();
        self.client_send(client, message);
    }

    fn talk_direct(&mut self, client: usize) {
        let other = self.rng.app.index(self.clients.len());
        let mut message = self.a_message(client);
        message.to = self.clients[other].user.clone();
        self.client_send(client, message);
    }

    /// Many messages at once.
    pub(super) fn burst(&mut self, client: usize) {
        for _ in 0..self.rng.app.within(5, 25) {
            self.talk(client);
        }
    }

    fn a_conversation(&mut self, client: usize) -> Option<String> {
        let known: Vec<&String> = self.clients[client].conversations.iter().collect();
        if known.is_empty() {
            return None;
        }
        Some((*self.rng.app.pick(&known)).clone())
    }

    fn read_up(&mut self, client: usize) {
        let Some(id) = self.a_conversation(client) else {
            return;
        };
        let position = self.clients[client].machine.position(&id).unwrap_or(0);
        if position == 0 {
            return;
        }
        if self.rng.app.chance(300) {
            let Some(id) = ConversationId::parse(&id) else {
                return;
            };
            let request = Request::MarkRead {
                id,
                last_read_seq: position,
            };
            return self.call(self.clients[client].user.clone(), request, false);
        }
        let now_ms = self.now / MS;
        self.clients[client]
            .machine
            .mark_read(&id, position, now_ms);
        self.pump(client);
    }

    fn leaf_back(&mut self, client: usize) {
        let Some(id) = self.a_conversation(client) else {
            return;
        };
        let before = self.rng.app.chance(700).then(|| self.rng.app.within(1, 60));
        let fetch = Fetch {
            conversation_id: id,
            before,
            after: None,
            limit: Some(self.rng.app.within(1, 40) as u32),
        };
        // Offline: not now.
        let _ = self.clients[client].machine.fetch(fetch, self.now / MS);
        self.pump(client);
    }

    // ---- REST ----

    fn rest_send(&mut self, client: usize) {
        let Some((group, _)) = self.a_group() else {
            return;
        };
        if !self.is_member(client, group) {
            return;
        }
        let mut message = self.a_message(client);
        message.client_msg_id = format!("rest-{}", message.client_msg_id);
        message.conversation_id = group.to_string();
        let user = self.clients[client].user.clone();
        self.check.clients.sends(&user, &message);
        self.call(user, Request::Send(message), true);
    }

    fn change_members(&mut self, client: usize) {
        let Some((id, owner)) = self.a_group() else {
            return;
        };
        let target = self.rng.app.index(self.clients.len());
        let user = self.clients[target].user.clone();
        let request = if self.is_member(target, id) {
            Request::RemoveMember {
                id,
                user: user.clone(),
            }
        } else {
            Request::PutMember {
                id,
                user: user.clone(),
                role: None,
            }
        };
        // Somebody leaves, or the owner decides, or somebody who may not tries.
        let caller = match self.rng.app.below(10) {
            0 => user,
            1 => self.clients[client].user.clone(),
            _ => owner,
        };
        self.call(caller, request, false);
    }

    fn look_around(&mut self, client: usize) {
        let user = self.clients[client].user.clone();
        let group = self.a_group().map(|(id, _)| id);
        let request = match (self.rng.app.below(4), group) {
            (0, Some(id)) => Request::Receipts { id, seq: None },
            (1, Some(id)) => Request::ListMembers {
                id,
                cursor: None,
                limit: 50,
            },
            (2, Some(id)) => Request::Messages {
                id,
                before: None,
                after: Some(self.rng.app.below(50)),
                limit: self.rng.app.within(1, 100) as u32,
            },
            _ => Request::ListConversations {
                cursor: None,
                limit: 5,
            },
        };
        self.call(user, request, false);
    }

    fn call(&mut self, user: String, request: Request, is_stubborn: bool) {
        let call = self.calls.len();
        self.cover.rest_calls += 1;
        trace!(self, "call {call} of {user}: {request:?}");
        self.calls.push(Call {
            user,
            request,
            tries: 0,
            is_stubborn,
            is_done: false,
        });
        self.try_call(call);
    }

    fn try_call(&mut self, call: usize) {
        self.calls[call].tries += 1;
        let tries = self.calls[call].tries;
        let delay = self.rng.net.within(50_000, 5 * MS);
        self.after(delay, Event::CallArrives { call });
        self.after(CALL_MAX, Event::CallOverdue { call, tries });
    }

    pub(super) fn call_arrives(&mut self, call: usize) {
        let Call { user, request, .. } = &self.calls[call];
        let (user, request) = (user.clone(), request.clone());
        self.core_input(CoreInput::Call {
            call,
            user,
            request,
        });
    }

    pub(super) fn call_overdue(&mut self, call: usize, tries: u32) {
        let at = &mut self.calls[call];
        if at.is_done || at.tries != tries {
            return;
        }
        self.cover.rest_unanswered += 1;
        if at.is_stubborn {
            self.try_call(call);
        } else {
            at.is_done = true;
        }
    }

    pub(super) fn call_answered(&mut self, call: usize, response: Result<Response, Error>) {
        let at = &mut self.calls[call];
        if at.is_done {
            return;
        }
        let passing = [Code::Unavailable, Code::Overloaded, Code::RateLimited];
        if let Err(error) = &response
            && passing.iter().any(|c| c.as_str() == error.code)
            && at.is_stubborn
        {
            // Looks overdue to the timer of the next try.
            at.tries += 1;
            let tries = at.tries;
            let wait = CALL_AGAIN.max(u64::from(error.retry_after_ms) * MS);
            return self.after(wait, Event::CallOverdue { call, tries });
        }
        at.is_done = true;
        let (user, request) = (at.user.clone(), at.request.clone());
        match (request, response) {
            (Request::Send(_), Ok(Response::Ack(ack))) => {
                let verdict = self
                    .check
                    .clients
                    .acked_user(&self.check.truth, &user, &ack);
                self.check.judge(self.now, verdict);
            }
            (Request::Send(message), Err(error)) => {
                let verdict =
                    self.check
                        .clients
                        .refused(&user, &message.client_msg_id, &error.code);
                self.check.judge(self.now, verdict);
            }
            (
                Request::CreateConversation { .. },
                Ok(Response::Conversation { conversation, .. }),
            ) => {
                self.chat.groups.push((conversation.conversation_id, user));
            }
            (Request::PutMember { .. }, Ok(_)) => self.cover.members_added += 1,
            (Request::RemoveMember { .. }, Ok(_)) => self.cover.members_removed += 1,
            _ => {}
        }
    }

    /// Whether a client is connected.
    pub(super) fn online_socket(&self, client: usize) -> Option<usize> {
        match self.clients[client].phase {
            Phase::Online(socket) => Some(socket),
            _ => None,
        }
    }
}
