//! Frames and outputs out: what leaves next, and in which order of importance.

use trunkline_proto::client::{
    ClientBody, ClientFrame, Fetch, Heartbeat, Ping, Sync, SyncPosition,
};
use trunkline_proto::limits::{PAGE_LIMIT_MAX, SYNC_CONVERSATIONS_MAX};

use super::{Machine, Output, Request, SILENT_HEARTBEATS, local_id, request_id};
use crate::event::Event;

impl Machine {
    /// What the caller is to do or tell.
    pub fn next_output(&mut self, now_ms: u64) -> Option<Output> {
        let output = self.outputs.pop_front()?;
        if let Output::Event(Event::Message(message)) = &output
            && self.config.deliver_automatically
        {
            let conversation = message.conversation_id.clone();
            self.mark_delivered(&conversation, message.seq, now_ms);
        }
        Some(output)
    }

    /// The next frame to send; only while connected.
    pub fn next_frame(&mut self, now_ms: u64) -> Option<ClientFrame> {
        if !self.online {
            return None;
        }
        let frame = self
            .next_sync(now_ms)
            .or_else(|| self.direct.pop_front())
            .or_else(|| {
                let (local, message) = self.outbox.next(now_ms)?;
                Some(ClientFrame {
                    id: local_id(local),
                    frame: Some(ClientBody::SendMessage(message)),
                })
            })
            .or_else(|| self.next_gap(now_ms))
            .or_else(|| self.next_mark(now_ms))
            .or_else(|| self.next_sign_of_life(now_ms))?;
        // Any frame shows that we live.
        self.heartbeat_due_ms = now_ms + self.heartbeat_ms;
        Some(frame)
    }

    fn next_sync(&mut self, now_ms: u64) -> Option<ClientFrame> {
        let catch_up = &mut self.catch_up;
        if catch_up.under_way || catch_up.not_before_ms > now_ms {
            return None;
        }
        let count = catch_up.conversations.len().min(SYNC_CONVERSATIONS_MAX);
        let mut conversations: Vec<String> = catch_up.conversations.drain(..count).collect();
        conversations.sort_unstable();
        conversations.dedup();
        let positions: Vec<SyncPosition> = conversations
            .iter()
            .filter_map(|id| {
                Some(SyncPosition {
                    conversation_id: id.clone(),
                    after_seq: self.inbox.position(id)?,
                })
            })
            .collect();
        let request = if !positions.is_empty() {
            Request::Sync { conversations }
        } else if self.catch_up.full || self.inbox.wants_full_sync() {
            self.catch_up.full = false;
            self.inbox.full_sync_began();
            Request::FullSync
        } else {
            return None;
        };
        self.catch_up.under_way = true;
        let id = self.request(request, now_ms);
        Some(ClientFrame {
            id: request_id(id),
            frame: Some(ClientBody::Sync(Sync {
                conversations: positions,
                limit: None,
            })),
        })
    }

    fn next_gap(&mut self, now_ms: u64) -> Option<ClientFrame> {
        // Pages of the sync close most gaps.
        if self.catch_up.under_way {
            return None;
        }
        let range = self.inbox.next_fetch(now_ms)?;
        let fetch = Fetch {
            conversation_id: range.conversation.clone(),
            after: Some(range.after),
            before: Some(range.before),
            limit: Some(PAGE_LIMIT_MAX),
        };
        let request = Request::Gap {
            conversation: range.conversation,
            after: range.after,
            before: range.before,
        };
        let id = self.request(request, now_ms);
        Some(ClientFrame {
            id: request_id(id),
            frame: Some(ClientBody::Fetch(fetch)),
        })
    }

    fn next_mark(&mut self, now_ms: u64) -> Option<ClientFrame> {
        let receipt = self.marks.next(now_ms)?;
        Some(ClientFrame {
            id: String::new(),
            frame: Some(ClientBody::Receipt(receipt)),
        })
    }

    fn next_sign_of_life(&mut self, now_ms: u64) -> Option<ClientFrame> {
        let silent = now_ms >= self.heard_ms + SILENT_HEARTBEATS * self.heartbeat_ms;
        let body = if silent && !self.probing {
            self.probing = true;
            ClientBody::Ping(Ping::default())
        } else if now_ms >= self.heartbeat_due_ms {
            ClientBody::Heartbeat(Heartbeat::default())
        } else {
            return None;
        };
        Some(ClientFrame {
            id: String::new(),
            frame: Some(body),
        })
    }
}
