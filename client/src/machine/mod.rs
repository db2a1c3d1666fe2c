//! One client's whole protocol, without I/O: frames and time in, frames and events out. The shell
//! in `client.rs` drives it over a socket; a simulator drives it over anything.
//!
//! The caller: [`Machine::connected`] when the server's `connected` came, [`Machine::frame`] for
//! each frame after it, [`Machine::tick`] at [`Machine::deadline_ms`], [`Machine::disconnected`]
//! when the connection is gone; after each of these it takes [`Machine::next_output`] and, while
//! connected, [`Machine::next_frame`] until both are empty.
//!
//! After `connected`: the outbox is sent again; `sync` names every known conversation with its
//! position, in chunks; then a `sync` with an empty list finds the unknown ones.

mod incoming;
mod outgoing;

use std::collections::{BTreeMap, VecDeque};

use trunkline_proto::client::{Ack, ClientBody, ClientFrame, Connected, Fetch, Page, SendMessage};

use crate::event::{Event, SendError};
use crate::inbox::{Inbox, InboxConfig};
use crate::marks::Marks;
use crate::outbox::{LocalId, Outbox, OutboxConfig, PushError};

/// Bounds and times of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    pub inbox: InboxConfig,
    pub outbox: OutboxConfig,
    /// Tell the server that messages were delivered as they are handed to the application.
    pub deliver_automatically: bool,
    /// Delivered and read marks wait so long for more, and go together.
    pub receipt_delay_ms: u64,
    /// A request without an answer for so long is made again.
    pub request_timeout_ms: u64,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            inbox: InboxConfig::default(),
            outbox: OutboxConfig::default(),
            deliver_automatically: true,
            receipt_delay_ms: 50,
            request_timeout_ms: 10_000,
        }
    }
}

/// What the machine has for its caller.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Event(Event),
    /// A message of [`Machine::send`] is settled.
    Sent(LocalId, Result<Ack, SendError>),
    /// A page of [`Machine::fetch`] came.
    Fetched(u64, Result<Page, SendError>),
}

/// Something that was asked of the server and has not been answered.
#[derive(Clone, Debug)]
enum Request {
    /// A chunk of known conversations.
    Sync {
        conversations: Vec<String>,
    },
    FullSync,
    /// A gap of the inbox.
    Gap {
        conversation: String,
        after: u64,
        before: u64,
    },
    /// The application's own.
    Fetch,
}

/// What is left of the catching up after `connected`.
#[derive(Debug, Default)]
struct CatchUp {
    /// Known conversations still to be named.
    conversations: VecDeque<String>,
    /// A full sync is still to be made.
    full: bool,
    /// Whether a `sync` is under way: one at a time.
    under_way: bool,
    /// Not before this time: the server asked for patience.
    not_before_ms: u64,
    /// [`Event::Synced`] was handed out for this session.
    told: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    outbox: Outbox,
    inbox: Inbox,
    me: Option<String>,
    online: bool,
    catch_up: CatchUp,
    requests: BTreeMap<u64, (u64, Request)>,
    next_request: u64,
    marks: Marks,
    direct: VecDeque<ClientFrame>,
    outputs: VecDeque<Output>,
    heartbeat_ms: u64,
    heartbeat_due_ms: u64,
    heard_ms: u64,
    /// When the server was asked whether it lives, if it has said nothing since.
    probed_at_ms: Option<u64>,
    reconnect_at_ms: Option<(u64, String)>,
}

/// Frames of the application's own that wait to be sent.
const DIRECT_FRAMES_MAX: usize = 1_024;
/// Pages that the application may have asked for at once.
const FETCHES_MAX: usize = 256;
/// After so many heartbeats of silence the server is asked whether it lives, and after one more it
/// counts as dead.
const SILENT_HEARTBEATS: u64 = 2;

impl Machine {
    pub fn new(config: MachineConfig) -> Self {
        Self {
            outbox: Outbox::new(config.outbox.clone()),
            inbox: Inbox::new(config.inbox.clone()),
            marks: Marks::new(
                config.receipt_delay_ms,
                config.inbox.conversations_max.saturating_mul(2),
            ),
            config,
            me: None,
            online: false,
            catch_up: CatchUp::default(),
            requests: BTreeMap::new(),
            next_request: 1,
            direct: VecDeque::new(),
            outputs: VecDeque::new(),
            heartbeat_ms: u64::from(trunkline_proto::limits::HEARTBEAT_MS),
            heartbeat_due_ms: 0,
            heard_ms: 0,
            probed_at_ms: None,
            reconnect_at_ms: None,
        }
    }

    /// The user that this client is, once a session began.
    pub fn user(&self) -> Option<&str> {
        self.me.as_deref()
    }

    pub fn is_online(&self) -> bool {
        self.online
    }

    /// Messages that are not settled.
    pub fn unsettled(&self) -> usize {
        self.outbox.len()
    }

    /// Everything up to this seq was handed out.
    pub fn position(&self, conversation: &str) -> Option<u64> {
        self.inbox.position(conversation)
    }

    /// All positions, for keeping.
    pub fn positions(&self) -> Vec<(String, u64)> {
        self.inbox.positions()
    }

    /// Goes on from kept positions; before the first `connected`.
    pub fn restore(&mut self, positions: &[(String, u64)]) {
        for (conversation, position) in positions {
            self.inbox.restore(conversation, *position);
        }
    }

    // ---- the connection ----

    /// A session began.
    pub fn connected(&mut self, connected: &Connected, now_ms: u64) {
        self.online = true;
        self.me = Some(connected.user_id.clone());
        self.heartbeat_ms = u64::from(connected.heartbeat_ms).max(1);
        self.heartbeat_due_ms = now_ms + self.heartbeat_ms;
        self.heard_ms = now_ms;
        self.probed_at_ms = None;
        self.reconnect_at_ms = None;
        self.outbox.connected(&connected.user_id);
        let known = self.inbox.positions().into_iter().map(|(id, _)| id);
        self.catch_up = CatchUp {
            conversations: known.collect(),
            full: true,
            ..CatchUp::default()
        };
        self.event(Event::Connected(connected.clone()));
    }

    /// The connection is gone. What was sent and not acked leaves again with the next one; pages
    /// that the application asked for are refused.
    pub fn disconnected(&mut self) {
        self.online = false;
        self.outbox.disconnected();
        self.inbox.disconnected();
        self.direct.clear();
        for (id, (_, request)) in std::mem::take(&mut self.requests) {
            if matches!(request, Request::Fetch) {
                let refused = Output::Fetched(id, Err(SendError::NotConnected));
                self.outputs.push_back(refused);
            }
        }
        self.catch_up = CatchUp::default();
        self.reconnect_at_ms = None;
        self.marks.disconnected();
    }

    /// Bytes came, whatever they were.
    pub fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        self.probed_at_ms = None;
    }

    /// Whether the server has not answered the probe.
    pub fn is_silent(&self, now_ms: u64) -> bool {
        self.online
            && self
                .probed_at_ms
                .is_some_and(|at| now_ms >= at + self.heartbeat_ms)
    }

    /// The server asked for a reconnect, and its time has come: why.
    pub fn should_reconnect(&self, now_ms: u64) -> Option<&str> {
        let (at, reason) = self.reconnect_at_ms.as_ref()?;
        (*at <= now_ms).then_some(reason)
    }

    /// How long a reconnect that the server asked for is still to wait, should the connection be
    /// gone now.
    pub fn reconnect_in_ms(&self, now_ms: u64) -> Option<u64> {
        let (at, _) = self.reconnect_at_ms.as_ref()?;
        Some(at.saturating_sub(now_ms))
    }

    /// Gives up: everything that is not settled is refused.
    pub fn close(&mut self) {
        self.disconnected();
        for local in self.outbox.drain() {
            self.outputs
                .push_back(Output::Sent(local, Err(SendError::Closed)));
        }
    }

    // ---- what the application wants ----

    /// Takes a message into the outbox. Its `client_msg_id` must be set.
    pub fn send(&mut self, message: SendMessage) -> Result<LocalId, SendError> {
        self.outbox.push(message).map_err(|e| match e {
            PushError::Full => SendError::OutboxFull,
            PushError::Duplicate => SendError::DuplicateId,
        })
    }

    /// Asks for a page; answered by [`Output::Fetched`] with the number returned here.
    pub fn fetch(&mut self, fetch: Fetch, now_ms: u64) -> Result<u64, SendError> {
        if !self.online {
            return Err(SendError::NotConnected);
        }
        if self.direct.len() >= DIRECT_FRAMES_MAX {
            return Err(SendError::OutboxFull);
        }
        let is_fetch = |(_, request): &&(u64, Request)| matches!(request, Request::Fetch);
        if self.requests.values().filter(is_fetch).count() >= FETCHES_MAX {
            return Err(SendError::OutboxFull);
        }
        let id = self.request(Request::Fetch, now_ms);
        self.direct.push_back(ClientFrame {
            id: request_id(id),
            frame: Some(ClientBody::Fetch(fetch)),
        });
        Ok(id)
    }

    /// Sends a frame that is not repeated: typing, watch, unwatch, a new token.
    pub fn direct(&mut self, body: ClientBody) -> Result<(), SendError> {
        if !self.online {
            return Err(SendError::NotConnected);
        }
        if self.direct.len() >= DIRECT_FRAMES_MAX {
            return Err(SendError::OutboxFull);
        }
        self.direct.push_back(ClientFrame {
            id: String::new(),
            frame: Some(body),
        });
        Ok(())
    }

    /// Everything up to `seq` was delivered to the user.
    pub fn mark_delivered(&mut self, conversation: &str, seq: u64, now_ms: u64) {
        self.marks.delivered(conversation, seq, now_ms);
    }

    /// Everything up to `seq` was read.
    pub fn mark_read(&mut self, conversation: &str, seq: u64, now_ms: u64) {
        self.marks.read(conversation, seq, now_ms);
    }

    // ---- time ----

    /// Time passed.
    pub fn tick(&mut self, now_ms: u64) {
        self.outbox.expire(now_ms);
        if !self.online {
            return;
        }
        while let Some((id, request)) = self
            .requests
            .iter()
            .find(|(_, (deadline, _))| *deadline <= now_ms)
            .map(|(id, (_, request))| (*id, request.clone()))
        {
            self.requests.remove(&id);
            match request {
                Request::Gap { conversation, .. } => self.inbox.fetch_failed(&conversation, now_ms),
                Request::Fetch => {
                    let refused = Output::Fetched(id, Err(SendError::NotConnected));
                    self.outputs.push_back(refused);
                }
                sync => self.sync_again(sync, now_ms),
            }
        }
        self.hand_out();
    }

    /// When [`Machine::tick`] or [`Machine::next_frame`] has something to do, at the latest.
    pub fn deadline_ms(&self) -> u64 {
        if !self.online {
            return self.outbox.deadline_ms().unwrap_or(u64::MAX);
        }
        let silence_due_ms = match self.probed_at_ms {
            Some(at) => at + self.heartbeat_ms,
            None => self.probe_due_ms(),
        };
        let waits_to_sync = !self.catch_up.under_way
            && (self.catch_up.full || !self.catch_up.conversations.is_empty());
        [
            self.outbox.deadline_ms(),
            // While a sync is under way no gap is fetched: see `next_gap`.
            self.inbox
                .deadline_ms()
                .filter(|_| !self.catch_up.under_way),
            self.marks.deadline_ms(),
            self.requests.values().map(|(deadline, _)| *deadline).min(),
            self.reconnect_at_ms.as_ref().map(|(at, _)| *at),
            Some(silence_due_ms),
            waits_to_sync.then_some(self.catch_up.not_before_ms),
        ]
        .into_iter()
        .flatten()
        .fold(self.heartbeat_due_ms, u64::min)
    }

    /// When a silent server is to be asked whether it lives.
    fn probe_due_ms(&self) -> u64 {
        self.heard_ms + SILENT_HEARTBEATS * self.heartbeat_ms
    }

    fn request(&mut self, request: Request, now_ms: u64) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        let deadline = now_ms + self.config.request_timeout_ms;
        self.requests.insert(id, (deadline, request));
        id
    }

    fn hand_out(&mut self) {
        while let Some(message) = self.inbox.next_message() {
            self.event(Event::Message(message));
        }
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}

fn request_id(id: u64) -> String {
    format!("r{id}")
}

fn local_id(local: LocalId) -> String {
    format!("m{local}")
}

fn parse_request_id(id: &str) -> Option<u64> {
    id.strip_prefix('r')?.parse().ok()
}

fn parse_local_id(id: &str) -> Option<LocalId> {
    id.strip_prefix('m')?.parse().ok()
}
