//! Frames in: what each of the server's frames means to the machine.

use trunkline_proto::client::{Ack, Error, Page, ServerBody, ServerFrame};
use trunkline_proto::codes::Code;

use super::{Machine, Output, Request, parse_local_id, parse_request_id};
use crate::event::{Event, SendError};
use crate::inbox::{FETCH_RETRY_MS, Origin};
use crate::outbox::Refusal;

impl Machine {
    /// A frame came, other than the first `connected`.
    pub fn frame(&mut self, frame: ServerFrame, now_ms: u64) {
        self.heard(now_ms);
        let id = frame.id;
        match frame.frame {
            Some(ServerBody::Ack(ack)) => self.ack(ack),
            Some(ServerBody::Message(message)) => self.inbox.message(message),
            Some(ServerBody::Page(page)) => self.page(page, &id, now_ms),
            Some(ServerBody::Synced(_)) => self.synced(&id),
            Some(ServerBody::Conversation(conversation)) => {
                self.inbox
                    .hint(&conversation.conversation_id, conversation.head_seq);
                self.event(Event::ConversationChanged(conversation));
            }
            Some(ServerBody::Error(error)) => self.error(error, &id, now_ms),
            Some(ServerBody::Receipt(receipt)) => self.event(Event::Receipt(receipt)),
            Some(ServerBody::Typing(typing)) => self.event(Event::Typing(typing)),
            Some(ServerBody::Presence(presence)) => self.event(Event::Presence(presence)),
            Some(ServerBody::Reconnect(reconnect)) => {
                let at = now_ms + u64::from(reconnect.after_ms);
                self.reconnect_at_ms = Some((at, reconnect.reason));
            }
            // A second `connected` answers a renewed token; pongs only count as life; a frame
            // without a body is of a newer server.
            Some(ServerBody::Connected(_) | ServerBody::Pong(_)) | None => {}
        }
        self.hand_out();
    }

    fn ack(&mut self, ack: Ack) {
        let is_met = self.inbox.position(&ack.conversation_id).is_none();
        self.inbox.own(&ack.conversation_id, ack.seq);
        if is_met && ack.duplicate {
            // It was sent in an earlier session: more may have been said since.
            let id = ack.conversation_id.clone();
            self.catch_up.conversations.push_back(id);
        }
        if let Some(local) = self.outbox.ack(&ack) {
            self.hand_out();
            self.event(Event::Ack(ack.clone()));
            self.outputs.push_back(Output::Sent(local, Ok(ack)));
        }
    }

    fn page(&mut self, page: Page, id: &str, now_ms: u64) {
        let conversation = page.conversation_id.clone();
        let request = parse_request_id(id);
        let origin = match request.and_then(|id| self.requests.get(&id)) {
            Some((_, Request::Sync { .. })) => Origin::Sync,
            Some((_, Request::FullSync)) => Origin::FullSync,
            Some((_, Request::Gap { after, before, .. })) => Origin::Fetch {
                after: *after,
                before: *before,
            },
            Some((_, Request::Fetch)) => {
                if let Some(id) = request {
                    self.requests.remove(&id);
                    self.outputs.push_back(Output::Fetched(id, Ok(page)));
                }
                return;
            }
            None => Origin::Unasked,
        };
        if matches!(origin, Origin::Fetch { .. }) {
            request.and_then(|id| self.requests.remove(&id));
        }
        let known = self.inbox.page(page, origin, now_ms);
        if known && origin == Origin::FullSync && self.config.deliver_automatically {
            // The server thinks that it is still owed: the mark was lost.
            if let Some(position) = self.inbox.position(&conversation) {
                self.marks
                    .delivered_was_lost(&conversation, position, now_ms);
            }
        }
    }

    fn synced(&mut self, id: &str) {
        let Some(id) = parse_request_id(id) else {
            return;
        };
        match self.requests.remove(&id) {
            Some((_, Request::FullSync)) => {
                let settled = self.inbox.full_sync_ended();
                self.catch_up.conversations.extend(settled);
            }
            Some((_, Request::Sync { .. })) => {}
            _ => return,
        }
        self.catch_up.under_way = false;
        let done = self.catch_up.conversations.is_empty() && !self.catch_up.full;
        if done && !self.catch_up.told {
            self.catch_up.told = true;
            self.hand_out();
            self.event(Event::Synced);
        }
    }

    fn error(&mut self, error: Error, id: &str, now_ms: u64) {
        if let Some(id) = parse_request_id(id)
            && let Some((_, request)) = self.requests.get(&id).cloned()
        {
            self.request_refused(id, request, error, now_ms);
            return;
        }
        if id.is_empty() && is_about_everything(&error) {
            self.all_in_doubt(&error, now_ms);
            return;
        }
        match self.outbox.error(&error, parse_local_id(id), now_ms) {
            Refusal::NotOurs => self.event(Event::Error(error)),
            Refusal::Retry(_) => {}
            Refusal::Failed(local) => {
                self.event(Event::SendFailed {
                    client_msg_id: error.client_msg_id.clone(),
                    error: SendError::Refused(error.clone()),
                });
                self.outputs
                    .push_back(Output::Sent(local, Err(SendError::Refused(error))));
            }
        }
    }

    /// The server has lost its core, and with it every answer that was still to come.
    fn all_in_doubt(&mut self, error: &Error, now_ms: u64) {
        self.outbox.in_doubt(now_ms);
        let open: Vec<_> = self
            .requests
            .iter()
            .map(|(id, (_, r))| (*id, r.clone()))
            .collect();
        for (id, request) in open {
            self.request_refused(id, request, error.clone(), now_ms);
        }
    }

    fn request_refused(&mut self, id: u64, request: Request, error: Error, now_ms: u64) {
        let retry_ms = now_ms + u64::from(error.retry_after_ms).max(FETCH_RETRY_MS);
        let for_good = is_for_good(&error.code);
        match request {
            Request::Fetch => {
                self.requests.remove(&id);
                let refused = Output::Fetched(id, Err(SendError::Refused(error)));
                self.outputs.push_back(refused);
            }
            Request::Gap { conversation, .. } => {
                self.requests.remove(&id);
                if for_good {
                    self.inbox.give_up_gap(&conversation);
                    self.event(Event::Error(error));
                } else {
                    self.inbox.fetch_failed(&conversation, retry_ms);
                }
            }
            // One conversation of the sync; the others and `synced` are still to come.
            Request::Sync { .. } | Request::FullSync if !error.conversation_id.is_empty() => {
                if for_good {
                    self.inbox.forget(&error.conversation_id);
                    self.marks.forget(&error.conversation_id);
                    self.event(Event::Error(error));
                } else {
                    let again = error.conversation_id;
                    if self.inbox.position(&again).is_some() {
                        self.catch_up.conversations.push_back(again);
                    } else {
                        self.inbox.full_sync_left_out(&again);
                        self.catch_up.full = true;
                    }
                    self.catch_up.not_before_ms = retry_ms;
                }
            }
            Request::Sync { .. } | Request::FullSync => {
                self.requests.remove(&id);
                self.sync_again(request, retry_ms);
                if for_good {
                    self.event(Event::Error(error));
                }
            }
        }
    }

    pub(super) fn sync_again(&mut self, request: Request, at_ms: u64) {
        self.catch_up.under_way = false;
        self.catch_up.not_before_ms = at_ms;
        match request {
            Request::Sync { conversations } => self.catch_up.conversations.extend(conversations),
            _ => self.catch_up.full = true,
        }
    }
}

/// Whether an error that answers no frame speaks of all frames under way.
fn is_about_everything(error: &Error) -> bool {
    error.code == Code::Unavailable.as_str()
        && error.client_msg_id.is_empty()
        && error.conversation_id.is_empty()
        && error.close_code == 0
}

/// Whether repeating the request cannot help.
fn is_for_good(code: &str) -> bool {
    [
        Code::NotAMember,
        Code::NotFound,
        Code::Forbidden,
        Code::BadRequest,
    ]
    .iter()
    .any(|c| c.as_str() == code)
}

#[cfg(test)]
mod tests {
    use trunkline_proto::client::{ClientBody, Connected, SendMessage};

    use super::*;
    use crate::machine::MachineConfig;

    /// What leaves now: names of requests and ids of messages.
    fn leaving(machine: &mut Machine, now_ms: u64) -> Vec<String> {
        std::iter::from_fn(|| machine.next_frame(now_ms))
            .map(|frame| match frame.frame {
                Some(ClientBody::Sync(_)) => "sync".to_owned(),
                Some(ClientBody::SendMessage(message)) => message.client_msg_id,
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn unavailable_without_a_name_is_about_everything_under_way() {
        let mut machine = Machine::new(MachineConfig::default());
        let connected = Connected {
            user_id: "alice".into(),
            heartbeat_ms: 30_000,
            ..Connected::default()
        };
        machine.connected(&connected, 0);
        let message = SendMessage {
            to: "bob".into(),
            client_msg_id: "m".into(),
            ..SendMessage::default()
        };
        assert!(machine.send(message).is_ok());
        assert_eq!(leaving(&mut machine, 0), ["sync", "m"]);
        let lost = Code::Unavailable.error("the core was lost");
        machine.frame(ServerFrame::push(ServerBody::Error(lost)), 100);
        assert_eq!(leaving(&mut machine, 100), [""; 0]);
        machine.tick(100 + FETCH_RETRY_MS);
        let again = leaving(&mut machine, 100 + FETCH_RETRY_MS);
        assert_eq!(again, ["sync", "m"]);
        let told = machine.next_output(2_000);
        assert!(
            matches!(told, Some(Output::Event(Event::Connected(_)))),
            "{told:?}"
        );
        assert_eq!(
            machine.next_output(2_000),
            None,
            "nothing for the application"
        );
    }
}
