//! Messages on their way out: kept until they are acknowledged or refused for good, over any
//! number of connections. Pure: the clock is handed in.
//!
//! Invariants:
//! 1. A message leaves with the same `client_msg_id` each time, so the server stores it once.
//! 2. Of one conversation at most [`OutboxConfig::lane_window`] messages are un-acked, and none is
//!    sent while an earlier one waits to be repeated. With a window of 1 (the default) messages are
//!    stored in the order in which they were pushed, whatever is refused in between.
//! 3. At most [`OutboxConfig::entries_max`] messages are held; a further one is refused.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use trunkline_proto::client::{Ack, Error, SendMessage};
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

/// Names a message in the outbox, rising in the order of pushing.
pub type LocalId = u64;

/// Bounds and times of an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxConfig {
    /// Messages held at once.
    pub entries_max: usize,
    /// Un-acked messages over all conversations.
    pub window: usize,
    /// Un-acked messages of one conversation. Above 1 a refused message may be overtaken.
    pub lane_window: usize,
    /// A message without an answer for so long is sent again.
    pub ack_timeout_ms: u64,
    /// Wait after a refusal that names none; doubles with each further one, up to
    /// [`OutboxConfig::retry_max_ms`].
    pub retry_base_ms: u64,
    pub retry_max_ms: u64,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            entries_max: 1_024,
            window: 64,
            lane_window: 1,
            ack_timeout_ms: 10_000,
            retry_base_ms: 500,
            retry_max_ms: 30_000,
        }
    }
}

/// Why a message was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Wait for acks, then push again.
    #[error("the outbox is full")]
    Full,
    /// A message with this `client_msg_id` is still under way.
    #[error("client_msg_id is in use by another message in the outbox")]
    Duplicate,
}

/// What an `error` frame meant to the outbox.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// It named none of the messages here.
    NotOurs,
    /// It will be repeated.
    Retry(LocalId),
    /// It was refused for good and is gone from the outbox.
    Failed(LocalId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    InFlight { deadline_ms: u64 },
    Waiting { until_ms: u64 },
}

#[derive(Debug)]
struct Entry {
    message: SendMessage,
    lane: String,
    state: State,
    refusals: u32,
}

/// The outbox.
#[derive(Debug)]
pub struct Outbox {
    config: OutboxConfig,
    /// The own user id, once known: it makes `to` and `conversation_id` the same lane.
    me: Option<String>,
    next_local: LocalId,
    entries: BTreeMap<LocalId, Entry>,
    by_client_msg_id: HashMap<String, LocalId>,
    lanes: HashMap<String, VecDeque<LocalId>>,
    /// What may leave now.
    sendable: BTreeSet<LocalId>,
    /// When to look again at what is in flight or waits.
    timers: BTreeSet<(u64, LocalId)>,
    in_flight: usize,
}

impl Outbox {
    pub fn new(config: OutboxConfig) -> Self {
        Self {
            config,
            me: None,
            next_local: 1,
            entries: BTreeMap::new(),
            by_client_msg_id: HashMap::new(),
            lanes: HashMap::new(),
            sendable: BTreeSet::new(),
            timers: BTreeSet::new(),
            in_flight: 0,
        }
    }

    /// Messages held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a message in. Its `client_msg_id` must be set and differ from all held.
    pub fn push(&mut self, message: SendMessage) -> Result<LocalId, PushError> {
        if self.entries.len() >= self.config.entries_max {
            return Err(PushError::Full);
        }
        if self.by_client_msg_id.contains_key(&message.client_msg_id) {
            return Err(PushError::Duplicate);
        }
        let local = self.next_local;
        self.next_local += 1;
        let lane = lane_of(&message, self.me.as_deref());
        self.by_client_msg_id
            .insert(message.client_msg_id.clone(), local);
        self.lanes.entry(lane.clone()).or_default().push_back(local);
        self.entries.insert(
            local,
            Entry {
                message,
                lane: lane.clone(),
                state: State::Queued,
                refusals: 0,
            },
        );
        self.refresh(&lane);
        Ok(local)
    }

    /// A session began as user `me`: all that was un-acked leaves again, in order.
    pub fn connected(&mut self, me: &str) {
        if self.me.as_deref() != Some(me) {
            self.me = Some(me.to_owned());
            self.lanes.clear();
            for (local, entry) in &mut self.entries {
                entry.lane = lane_of(&entry.message, Some(me));
                let lane = self.lanes.entry(entry.lane.clone()).or_default();
                lane.push_back(*local);
            }
        }
        self.requeue_all();
    }

    /// The session is gone: nothing leaves until the next one.
    pub fn disconnected(&mut self) {
        self.requeue_all();
    }

    /// The next message to send, if one may leave; it counts as sent with this.
    pub fn next(&mut self, now_ms: u64) -> Option<(LocalId, SendMessage)> {
        if self.in_flight >= self.config.window {
            return None;
        }
        let local = self.sendable.pop_first()?;
        let deadline_ms = now_ms.saturating_add(self.config.ack_timeout_ms);
        self.set_state(local, State::InFlight { deadline_ms });
        let message = self.entries.get(&local)?.message.clone();
        Some((local, message))
    }

    /// An ack came: the message is out of the box. `None`: it was not in it (a repeated ack).
    pub fn ack(&mut self, ack: &Ack) -> Option<LocalId> {
        let local = *self.by_client_msg_id.get(&ack.client_msg_id)?;
        self.remove(local);
        Some(local)
    }

    /// An error came. `local`: whom the frame's id named, if it named one.
    pub fn error(&mut self, error: &Error, local: Option<LocalId>, now_ms: u64) -> Refusal {
        let named = self.by_client_msg_id.get(&error.client_msg_id).copied();
        let Some(local) = named.or(local.filter(|l| self.entries.contains_key(l))) else {
            return Refusal::NotOurs;
        };
        if !is_passing(&error.code) {
            self.remove(local);
            return Refusal::Failed(local);
        }
        self.wait_after_refusal(local, error.retry_after_ms.into(), now_ms);
        Refusal::Retry(local)
    }

    /// The server has lost sight of everything under way: all of it leaves again, under its
    /// `client_msg_id`, which finds out what became of it.
    pub fn in_doubt(&mut self, now_ms: u64) {
        let in_flight = |(local, entry): (&LocalId, &Entry)| {
            matches!(entry.state, State::InFlight { .. }).then_some(*local)
        };
        let in_doubt: Vec<_> = self.entries.iter().filter_map(in_flight).collect();
        for local in in_doubt {
            self.wait_after_refusal(local, 0, now_ms);
        }
    }

    /// `told_ms`: as the server said; 0: it said nothing.
    fn wait_after_refusal(&mut self, local: LocalId, told_ms: u64, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(&local) else {
            return;
        };
        let doubled = self
            .config
            .retry_base_ms
            .saturating_mul(1 << entry.refusals.min(20))
            .min(self.config.retry_max_ms);
        entry.refusals += 1;
        let wait_ms = match told_ms {
            0 => doubled,
            told => told,
        };
        let until_ms = now_ms.saturating_add(wait_ms.max(1));
        self.set_state(local, State::Waiting { until_ms });
    }

    /// Time passed: what waited long enough, and what had no answer for too long, may leave again.
    pub fn expire(&mut self, now_ms: u64) {
        while let Some(&(at, local)) = self.timers.first() {
            if at > now_ms {
                return;
            }
            self.set_state(local, State::Queued);
        }
    }

    /// When [`Outbox::expire`] has something to do.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Gives everything up, in order.
    pub fn drain(&mut self) -> Vec<LocalId> {
        let locals: Vec<_> = self.entries.keys().copied().collect();
        for local in &locals {
            self.remove(*local);
        }
        locals
    }

    fn requeue_all(&mut self) {
        let locals: Vec<_> = self.entries.keys().copied().collect();
        for local in locals {
            // What the server told to wait waits on.
            if !matches!(
                self.entries.get(&local).map(|e| e.state),
                Some(State::Waiting { .. })
            ) {
                self.set_state(local, State::Queued);
            }
        }
        // Lanes may have changed under entries whose state did not.
        let lanes: Vec<_> = self.lanes.keys().cloned().collect();
        for lane in lanes {
            self.refresh(&lane);
        }
    }

    fn remove(&mut self, local: LocalId) {
        self.set_state(local, State::Queued);
        self.sendable.remove(&local);
        let Some(entry) = self.entries.remove(&local) else {
            return;
        };
        self.by_client_msg_id.remove(&entry.message.client_msg_id);
        if let Some(lane) = self.lanes.get_mut(&entry.lane) {
            lane.retain(|l| *l != local);
            if lane.is_empty() {
                self.lanes.remove(&entry.lane);
            }
        }
        self.refresh(&entry.lane);
    }

    /// The only place where a state changes: timers, the count in flight and what may leave follow.
    fn set_state(&mut self, local: LocalId, state: State) {
        let Some(entry) = self.entries.get_mut(&local) else {
            return;
        };
        match entry.state {
            State::Queued => {}
            State::InFlight { deadline_ms } => {
                self.timers.remove(&(deadline_ms, local));
                self.in_flight -= 1;
            }
            State::Waiting { until_ms } => {
                self.timers.remove(&(until_ms, local));
            }
        }
        entry.state = state;
        match state {
            State::Queued => {}
            State::InFlight { deadline_ms } => {
                self.timers.insert((deadline_ms, local));
                self.in_flight += 1;
            }
            State::Waiting { until_ms } => {
                self.timers.insert((until_ms, local));
            }
        }
        let lane = entry.lane.clone();
        self.refresh(&lane);
    }

    /// Which of a lane's first messages may leave.
    fn refresh(&mut self, lane: &str) {
        let Some(locals) = self.lanes.get(lane) else {
            return;
        };
        let mut held_back = false;
        for (position, local) in locals.iter().enumerate() {
            let state = self.entries.get(local).map(|e| e.state);
            held_back |= position >= self.config.lane_window;
            held_back |= matches!(state, Some(State::Waiting { .. }));
            if state == Some(State::Queued) && !held_back {
                self.sendable.insert(*local);
            } else {
                self.sendable.remove(local);
            }
            // Beyond the window nothing was sendable before either.
            if position > self.config.lane_window {
                break;
            }
        }
    }
}

/// Whether the server may take the same message later.
fn is_passing(code: &str) -> bool {
    [Code::RateLimited, Code::Overloaded, Code::Unavailable]
        .iter()
        .any(|c| c.as_str() == code)
}

/// What a message must stay in order with.
fn lane_of(message: &SendMessage, me: Option<&str>) -> String {
    if !message.conversation_id.is_empty() {
        return message.conversation_id.clone();
    }
    match me {
        Some(me) => ConversationId::direct(me, &message.to).to_string(),
        None => format!("to:{}", message.to),
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
