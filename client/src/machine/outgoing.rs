//! Frames and outputs out: what leaves next, and in which order of importance.

use trunkline_proto::client::{
    ClientBody, ClientFrame, Fetch, Heartbeat, Ping, Sync, SyncPosition,
};
use trunkline_proto::limits::{PAGE_LIMIT_MAX, SYNC_CONVERSATIONS_MAX};

use super::{Machine, Output, Request, local_id, request_id};
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
        let body = if now_ms >= self.probe_due_ms() && self.probed_at_ms.is_none() {
            self.probed_at_ms = Some(now_ms);
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use trunkline_proto::client::{Connected, Pong, ServerBody, ServerFrame};

    use super::*;
    use crate::machine::MachineConfig;

    const HEARTBEAT_MS: u64 = 1_000;

    /// Idles for 60 heartbeats; pings are answered after `answer_ms`, if at all. When it takes the
    /// server for dead, if ever.
    fn idle(answer_ms: Option<u64>) -> Option<u64> {
        let mut machine = Machine::new(MachineConfig::default());
        let connected = Connected {
            user_id: "alice".into(),
            heartbeat_ms: HEARTBEAT_MS as u32,
            ..Connected::default()
        };
        machine.connected(&connected, 0);
        let mut answers = VecDeque::new();
        let mut now_ms = 0;
        while now_ms < 60 * HEARTBEAT_MS {
            while let Some(frame) = machine.next_frame(now_ms) {
                let answer = match frame.frame {
                    Some(ClientBody::Sync(_)) => ServerBody::Synced(Default::default()),
                    Some(ClientBody::Ping(_)) => ServerBody::Pong(Pong::default()),
                    _ => continue,
                };
                let at = answer_ms.map(|ms| now_ms + ms);
                answers.extend(at.map(|at| (at, ServerFrame::answer(frame.id, answer))));
            }
            if machine.is_silent(now_ms) {
                return Some(now_ms);
            }
            let answer_at = answers.front().map_or(u64::MAX, |(at, _)| *at);
            now_ms = machine.deadline_ms().min(answer_at).max(now_ms + 1);
            if let Some((_, frame)) = answers.pop_front_if(|(at, _)| *at <= now_ms) {
                machine.frame(frame, now_ms);
            }
            machine.tick(now_ms);
        }
        None
    }

    #[test]
    fn a_server_that_answers_within_a_heartbeat_lives() {
        for answer_ms in [1, 5, 60, 999] {
            assert_eq!(idle(Some(answer_ms)), None, "answers after {answer_ms} ms");
        }
    }

    #[test]
    fn a_server_that_says_nothing_is_dead_a_heartbeat_after_it_was_asked() {
        assert_eq!(idle(None), Some(3 * HEARTBEAT_MS));
    }
}
