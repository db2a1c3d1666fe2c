//! A client process: connects, drives the machine over a socket as its task does, keeps what must
//! survive the process, and shows what the machine hands out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trunkline_client::Event as ClientEvent;
use trunkline_client::SendError;
use trunkline_client::backoff::Backoff;
use trunkline_client::machine::{Machine, MachineConfig, Output};
use trunkline_client::outbox::{LocalId, OutboxConfig};
use trunkline_identity::mint_at;
use trunkline_proto::client::{
    Ack, ClientBody, ClientFrame, Connect, SendMessage, ServerBody, ServerFrame,
};
use trunkline_proto::codes::Close;

use super::edge::SECRET;
use super::net::Cut;
use super::{Event, World, trace};
use crate::bugs::Bug;
use crate::plan::{MS, Plan, SECOND, START_UNIX_MS};
use crate::wire::{self, Came, Kind, Reader};

const BACKOFF_BASE_MS: u64 = 300;
const BACKOFF_MAX_MS: u64 = 5_000;
/// Until `connected` has come.
const CONNECT_MAX: u64 = 10 * SECOND;

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Dials again some time.
    Waiting,
    Opening(usize),
    Online(usize),
    /// Its user has left.
    Gone,
}

/// One device's process.
pub(super) struct Client {
    pub(super) user: String,
    pub(super) device: String,
    pub(super) kind: Kind,
    token: String,
    pub(super) machine: Machine,
    config: MachineConfig,
    backoff: Backoff,
    pub(super) phase: Phase,
    dialed_at: u64,
    reader: Reader,
    /// Number of the session, over all clients.
    session: u64,
    close_code: u16,
    wake_at: Option<u64>,
    /// An opening of an earlier connection came to the core late.
    pub(super) may_be_displaced: bool,
    /// No network until then.
    pub(super) away_until: u64,
    /// Until then the application takes nothing.
    pub(super) paused_until: u64,
    /// Kept over a restart: what is not settled, in order.
    outbox: BTreeMap<LocalId, SendMessage>,
    /// Conversations that it has heard of.
    pub(super) conversations: BTreeSet<String>,
    pub(super) sent: u64,
}

impl Client {
    fn new(user: String, device: String, kind: Kind, plan: &Plan) -> Self {
        let config = MachineConfig {
            outbox: OutboxConfig {
                lane_window: plan.lane_window,
                ..OutboxConfig::default()
            },
            ..MachineConfig::default()
        };
        Self {
            token: mint_at(
                SECRET,
                &user,
                START_UNIX_MS / 1_000 - 60,
                Duration::from_secs(86_400),
            ),
            user,
            device,
            kind,
            machine: Machine::new(config.clone()),
            config,
            backoff: Backoff::new(BACKOFF_BASE_MS, BACKOFF_MAX_MS),
            phase: Phase::Waiting,
            dialed_at: 0,
            reader: Reader::new(kind),
            session: 0,
            close_code: 0,
            wake_at: None,
            may_be_displaced: false,
            away_until: 0,
            paused_until: 0,
            outbox: BTreeMap::new(),
            conversations: BTreeSet::new(),
            sent: 0,
        }
    }

    /// Whether nothing of it is under way.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Online(_)) && self.machine.unsettled() == 0
    }
}

impl World {
    /// Users and their devices.
    pub(super) fn add_clients(&mut self) {
        let kinds = [Kind::Tcp, Kind::Tcp, Kind::WsProto, Kind::WsJson];
        for user in 0..self.plan.users {
            let devices = 1 + usize::from(self.rng.app.chance(self.plan.second_device));
            for device in 0..devices {
                let user = format!("u{user}");
                self.check.clients.add_device(&user, devices == 1);
                let kind = *self.rng.app.pick(&kinds);
                let client = Client::new(user, format!("d{device}"), kind, &self.plan);
                self.clients.push(client);
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.now / MS
    }

    // ---- connecting ----

    pub(super) fn dial(&mut self, client: usize) {
        if self.clients[client].phase != Phase::Waiting {
            return;
        }
        if self.clients[client].away_until > self.now {
            let at = self.clients[client].away_until;
            return self.queue.push(at, Event::Dial { client });
        }
        self.clients[client].dialed_at = self.now;
        let edge = self.rng.net.index(self.edges.len());
        if !self.edges[edge].is_up {
            // Refused by the host.
            return self.dial_later(client, None);
        }
        let socket = self.open_socket(client, edge);
        let at = &mut self.clients[client];
        at.may_be_displaced = false;
        at.phase = Phase::Opening(socket);
        at.reader = Reader::new(at.kind);
        at.close_code = 0;
        self.after(CONNECT_MAX, Event::DialOverdue { client, socket });
        match self.clients[client].kind {
            Kind::Tcp => self.say_connect(client, socket),
            kind => self.client_sends(socket, &wire::request(kind)),
        }
    }

    fn say_connect(&mut self, client: usize, socket: usize) {
        let at = &self.clients[client];
        let connect = Connect {
            token: at.token.clone(),
            device_id: at.device.clone(),
            client: String::new(),
        };
        let frame = ClientFrame {
            id: String::new(),
            frame: Some(ClientBody::Connect(connect)),
        };
        self.say(client, socket, &[frame]);
    }

    /// Sends frames, together.
    fn say(&mut self, client: usize, socket: usize, frames: &[ClientFrame]) {
        let kind = self.clients[client].kind;
        let mut bytes = Vec::new();
        for frame in frames {
            let key = self.rng.net.any() as u32;
            wire::encode(kind, frame, key, &mut bytes);
        }
        if !bytes.is_empty() {
            self.trace.detail(|| format!("c{client} says {frames:?}"));
            self.client_sends(socket, &bytes);
        }
    }

    pub(super) fn dial_overdue(&mut self, client: usize, socket: usize) {
        if self.clients[client].phase == Phase::Opening(socket) {
            self.hang_up(client, socket);
        }
    }

    /// The client lets go of its connection.
    fn hang_up(&mut self, client: usize, socket: usize) {
        self.cut(socket, Cut::ByClient);
        self.lost(client);
    }

    /// The connection is gone, as far as the client can tell.
    pub(super) fn client_lost(&mut self, client: usize, socket: usize) {
        self.sockets[socket].client_open = false;
        if matches!(self.clients[client].phase, Phase::Opening(at) | Phase::Online(at) if at == socket)
        {
            self.lost(client);
        }
    }

    fn lost(&mut self, client: usize) {
        let now_ms = self.now_ms();
        let at = &mut self.clients[client];
        self.cover.unreadable_after_cut += u64::from(at.reader.is_partial());
        trace!(self, "c{client} is offline, close code {}", at.close_code);
        let told_ms = at.machine.reconnect_in_ms(now_ms);
        if self.now >= at.dialed_at + BACKOFF_BASE_MS * MS {
            at.backoff.reset();
        }
        at.machine.disconnected();
        at.phase = Phase::Waiting;
        let code = at.close_code;
        let is_terminal = Close::from_code(code).is_some_and(Close::is_terminal);
        if is_terminal && code == Close::Replaced.code() && at.may_be_displaced {
            // Its user opens it again.
            self.cover.displaced_late += 1;
        } else if is_terminal {
            self.violation(format!("client {client} is closed for good, with {code}"));
        }
        self.take_outputs(client);
        self.dial_later(client, told_ms);
    }

    fn dial_later(&mut self, client: usize, told_ms: Option<u64>) {
        let random = self.rng.backoff.any();
        let backoff = &mut self.clients[client].backoff;
        let wait_ms = told_ms.unwrap_or_else(|| backoff.next_ms(random));
        self.after((wait_ms + 1) * MS, Event::Dial { client });
    }

    // ---- bytes in ----

    pub(super) fn client_received(&mut self, client: usize, socket: usize, bytes: &[u8]) {
        let now_ms = self.now_ms();
        let at = &mut self.clients[client];
        if !matches!(at.phase, Phase::Opening(s) | Phase::Online(s) if s == socket) {
            return;
        }
        at.reader.push(bytes);
        at.machine.heard(now_ms);
        while let Some(came) = self.clients[client].reader.take() {
            match came {
                Came::Upgraded => self.say_connect(client, socket),
                Came::Refused(status) => {
                    trace!(self, "c{client} is refused with {status}");
                    return self.hang_up(client, socket);
                }
                Came::Frame(frame) => self.came(client, socket, *frame),
                Came::Ping(payload) => {
                    let mut pong = Vec::new();
                    wire::pong(&payload, self.rng.net.any() as u32, &mut pong);
                    self.client_sends(socket, &pong);
                }
                Came::Close(code) => {
                    self.clients[client].close_code = code;
                    return self.hang_up(client, socket);
                }
                Came::Broken(what) => {
                    return self.violation(format!("client {client} cannot read: {what}"));
                }
            }
        }
        self.pump(client);
    }

    fn came(&mut self, client: usize, socket: usize, frame: ServerFrame) {
        trace!(self, "c{client} < {}", brief(&frame));
        self.trace.detail(|| format!("{frame:?}"));
        let now_ms = self.now_ms();
        if let Some(ServerBody::Error(error)) = &frame.frame
            && error.close_code != 0
        {
            self.clients[client].close_code = error.close_code as u16;
        }
        if let Phase::Opening(_) = self.clients[client].phase {
            if let Some(ServerBody::Connected(connected)) = &frame.frame {
                self.chat.sessions += 1;
                let at = &mut self.clients[client];
                at.session = self.chat.sessions;
                at.phase = Phase::Online(socket);
                trace!(self, "c{client} is online with session {}", at.session);
                at.machine.connected(connected, now_ms);
            }
            return;
        }
        let verdict = self
            .check
            .clients
            .came(client, self.clients[client].session, &frame);
        self.check.judge(self.now, verdict);
        if self.has(Bug::ClientDedupOff) {
            self.show_at_once(client, &frame);
        }
        self.clients[client].machine.frame(frame, now_ms);
    }

    /// The defect: what comes is shown as it comes.
    fn show_at_once(&mut self, client: usize, frame: &ServerFrame) {
        let messages = match &frame.frame {
            Some(ServerBody::Message(message)) => std::slice::from_ref(message),
            Some(ServerBody::Page(page)) => &page.messages,
            _ => return,
        };
        for message in messages {
            let verdict = self.check.clients.shown(&self.check.truth, client, message);
            self.check.judge(self.now, verdict);
        }
    }

    // ---- the machine's wishes ----

    /// Does all that the machine wants done, and sees when to look again.
    pub(super) fn pump(&mut self, client: usize) {
        let now_ms = self.now_ms();
        self.take_outputs(client);
        if let Phase::Online(socket) = self.clients[client].phase {
            let mut frames = Vec::new();
            while let Some(frame) = self.clients[client].machine.next_frame(now_ms) {
                if let Some(ClientBody::Fetch(fetch)) = &frame.frame {
                    self.cover.gaps_fetched +=
                        u64::from(fetch.after.is_some() && fetch.before.is_some());
                    if self.has(Bug::GapFetchOff) {
                        continue;
                    }
                }
                frames.push(frame);
            }
            self.say(client, socket, &frames);
            let at = &mut self.clients[client];
            if at.paused_until > self.now {
                at.machine.heard(now_ms);
            }
            if at.machine.should_reconnect(now_ms).is_some() || at.machine.is_silent(now_ms) {
                return self.hang_up(client, socket);
            }
        }
        self.plan_wake(client);
    }

    fn plan_wake(&mut self, client: usize) {
        let at = &mut self.clients[client];
        let deadline_ms = at.machine.deadline_ms();
        if deadline_ms == u64::MAX || at.phase == Phase::Gone {
            return;
        }
        let wake = (deadline_ms * MS).max(self.now + MS);
        if at.wake_at.is_none_or(|planned| wake < planned) {
            at.wake_at = Some(wake);
            self.queue.push(wake, Event::Wake { client });
        }
    }

    pub(super) fn wake(&mut self, client: usize) {
        let now_ms = self.now_ms();
        let at = &mut self.clients[client];
        if at.wake_at != Some(self.now) {
            return;
        }
        at.wake_at = None;
        at.machine.tick(now_ms);
        self.pump(client);
    }

    fn take_outputs(&mut self, client: usize) {
        let now_ms = self.now_ms();
        while let Some(output) = self.clients[client].machine.next_output(now_ms) {
            match output {
                Output::Event(event) => self.client_event(client, event),
                Output::Sent(local, result) => self.settled(client, local, result),
                Output::Fetched(_, Ok(page)) => {
                    trace!(self, "c{client} fetched {} messages", page.messages.len());
                }
                Output::Fetched(_, Err(_)) => {}
            }
        }
    }

    fn client_event(&mut self, client: usize, event: ClientEvent) {
        match event {
            ClientEvent::Message(message) => {
                trace!(
                    self,
                    "c{client} shows {} {}", message.conversation_id, message.seq
                );
                self.clients[client]
                    .conversations
                    .insert(message.conversation_id.clone());
                if !self.has(Bug::ClientDedupOff) {
                    let verdict = self
                        .check
                        .clients
                        .shown(&self.check.truth, client, &message);
                    self.check.judge(self.now, verdict);
                }
            }
            ClientEvent::ConversationChanged(conversation) => {
                self.clients[client]
                    .conversations
                    .insert(conversation.conversation_id);
            }
            _ => {}
        }
    }

    fn settled(&mut self, client: usize, local: LocalId, result: Result<Ack, SendError>) {
        let Some(message) = self.clients[client].outbox.remove(&local) else {
            return self.violation(format!("client {client} settles what it did not send"));
        };
        trace!(self, "c{client} settles {}", message.client_msg_id);
        let verdict = match result {
            Ok(ack) if ack.client_msg_id == message.client_msg_id => {
                self.check.clients.acked(&self.check.truth, client, &ack)
            }
            Ok(ack) => Err(format!(
                "the ack of {} for {}",
                ack.client_msg_id, message.client_msg_id
            )),
            Err(SendError::Refused(error)) => {
                self.cover.refused_sends += 1;
                let user = &self.clients[client].user;
                self.check
                    .clients
                    .refused(user, &message.client_msg_id, &error.code)
            }
            Err(error) => Err(format!("{} ended with {error}", message.client_msg_id)),
        };
        self.check.judge(self.now, verdict);
    }

    // ---- the user's wishes ----

    /// A user sends from a device.
    pub(super) fn client_send(&mut self, client: usize, message: SendMessage) {
        let user = self.clients[client].user.clone();
        let at = &mut self.clients[client];
        match at.machine.send(message.clone()) {
            Ok(local) => {
                trace!(self, "c{client} sends {}", message.client_msg_id);
                self.check.clients.sends(&user, &message);
                at.outbox.insert(local, message);
            }
            // Full: the user waits.
            Err(_) => return,
        }
        self.pump(client);
    }

    /// The process ends and starts anew, with what it kept.
    pub(super) fn client_restart(&mut self, client: usize) {
        if self.clients[client].phase == Phase::Gone {
            return;
        }
        trace!(self, "c{client} restarts");
        let forgets = self.has(Bug::OutboxForgotten);
        if let Phase::Opening(socket) | Phase::Online(socket) = self.clients[client].phase {
            self.cut(socket, Cut::ByClient);
            self.clients[client].phase = Phase::Waiting;
            self.dial_later(client, None);
        }
        let at = &mut self.clients[client];
        let positions = at.machine.positions();
        at.machine = Machine::new(at.config.clone());
        at.machine.restore(&positions);
        let outbox = std::mem::take(&mut at.outbox);
        for message in outbox.into_values().filter(|_| !forgets) {
            if let Ok(local) = at.machine.send(message.clone()) {
                at.outbox.insert(local, message);
            }
        }
        self.pump(client);
    }

    /// The user leaves.
    pub(super) fn client_leaves(&mut self, client: usize) {
        if let Phase::Opening(socket) | Phase::Online(socket) = self.clients[client].phase {
            self.client_shuts(socket);
        }
        let at = &mut self.clients[client];
        at.machine.disconnected();
        at.phase = Phase::Gone;
    }
}

fn brief(frame: &ServerFrame) -> String {
    match &frame.frame {
        Some(ServerBody::Message(m)) => format!("message {} {}", m.conversation_id, m.seq),
        Some(ServerBody::Ack(a)) => format!("ack {} {}", a.client_msg_id, a.seq),
        Some(ServerBody::Page(p)) => format!(
            "page {} of {} messages, head {}",
            p.conversation_id,
            p.messages.len(),
            p.head_seq
        ),
        Some(ServerBody::Conversation(c)) => {
            format!("conversation {} head {}", c.conversation_id, c.head_seq)
        }
        Some(ServerBody::Error(e)) => format!("error {} {}", e.code, e.client_msg_id),
        Some(ServerBody::Receipt(r)) => format!("receipt {} {}", r.conversation_id, r.seq),
        Some(ServerBody::Connected(_)) => "connected".to_owned(),
        Some(ServerBody::Synced(s)) => format!("synced {}", s.conversations),
        Some(ServerBody::Reconnect(r)) => format!("reconnect in {}", r.after_ms),
        Some(ServerBody::Pong(_)) => "pong".to_owned(),
        _ => "other".to_owned(),
    }
}
