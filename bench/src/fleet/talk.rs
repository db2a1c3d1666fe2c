//! Clients that talk: each with its partner (numbers 2k and 2k+1) and in its groups, at a rate or
//! with a number of messages under way, and check that everybody sees everything.
//!
//! Invariants: a message carries the time at which it was due, in ns since [`Shared::origin`], in its
//! content and its `client_msg_id`, so that acks and deliveries are timed wherever they arrive; only
//! what was due within the window is timed; nothing that is due is left out because the server is
//! slow.
//!
//! [`Shared::origin`]: super::Shared

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use trunkline_proto::client::{
    ClientBody, Error, Fetch, Page, SendMessage, ServerBody, ServerFrame, Sync, SyncPosition,
};
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::again::Again;
use super::ledger::{Ledger, Seen};
use super::schedule::Schedule;
use super::{Behaviour, Crowd, People};

/// Who talks, and how much.
#[derive(Clone, Debug)]
pub struct Talk {
    /// Messages per second over all clients; `None`: closed loop.
    pub rate: Option<f64>,
    /// Closed loop: messages that each sender keeps under way.
    pub inflight: u32,
    /// Clients with these numbers send.
    pub senders: std::ops::Range<u32>,
    /// Clients with these numbers have partners.
    pub talkers: std::ops::Range<u32>,
    pub payload: usize,
    pub groups: Vec<String>,
    pub group_size: u32,
    /// Part of the messages that goes to groups.
    pub group_share: f64,
    /// Part of the clients that leaves and comes back in a minute.
    pub churn: f64,
    pub names: &'static Names,
}

/// Under which names a talk counts and times, so that two talks of one fleet can be told apart.
#[derive(Debug)]
pub struct Names {
    pub ack: &'static str,
    pub delivery: &'static str,
    /// Messages sent.
    pub sent: &'static str,
    /// Messages that the server refused for the moment; `None`: that is a problem.
    pub refused: Option<&'static str>,
}

impl Names {
    /// Of a talk by itself.
    pub const PLAIN: Self = Self {
        ack: "ack",
        delivery: "delivery",
        sent: "sent",
        refused: None,
    };
}

/// Between the scenario and the talkers.
#[derive(Debug)]
pub struct Talking {
    phase: AtomicU8,
    /// What was due between these is timed; ns since the origin.
    pub from: AtomicU64,
    pub to: AtomicU64,
    /// Messages sent and neither acked nor refused yet.
    pub outstanding: AtomicU64,
    pub acked: AtomicU64,
    pub delivered: AtomicU64,
    /// Clients that asked for what they had missed and are not whole yet.
    pub catching_up: AtomicU32,
    /// What each member saw last in each conversation, when the load is over.
    pub ends: Mutex<Vec<(u64, u64)>>,
    reports: AtomicU32,
    /// The first thing that was not as it should be.
    pub first_wrong: Mutex<Option<String>>,
    any_wrong: AtomicBool,
}

/// What the talkers are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Quiet,
    Load,
    /// Tell what was seen.
    Report,
}

impl Talking {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Quiet as u8),
            from: AtomicU64::new(u64::MAX),
            to: AtomicU64::new(u64::MAX),
            outstanding: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            catching_up: AtomicU32::new(0),
            ends: Mutex::new(Vec::new()),
            reports: AtomicU32::new(0),
            first_wrong: Mutex::new(None),
            any_wrong: AtomicBool::new(false),
        })
    }

    pub fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Quiet,
            1 => Phase::Load,
            _ => Phase::Report,
        }
    }

    /// Workers that have told what their clients saw.
    pub fn reports(&self) -> u32 {
        self.reports.load(Ordering::Acquire)
    }

    fn in_window(&self, ns: u64) -> bool {
        ns >= self.from.load(Ordering::Relaxed) && ns < self.to.load(Ordering::Relaxed)
    }

    fn wrong(&self, what: impl FnOnce() -> String) {
        if !self.any_wrong.swap(true, Ordering::Relaxed)
            && let Ok(mut first) = self.first_wrong.lock()
        {
            first.get_or_insert_with(what);
        }
    }
}

impl Talk {
    /// The partner of a talker; the last of an odd number writes to itself.
    fn partner(&self, number: u32) -> u32 {
        let partner = ((number - self.talkers.start) ^ 1) + self.talkers.start;
        if partner < self.talkers.end {
            partner
        } else {
            number
        }
    }

    /// Members of a group, by their numbers: taken round from the talkers.
    pub fn members(&self, group: u32) -> impl Iterator<Item = u32> + use<> {
        let (start, n) = (self.talkers.start, u64::from(self.talkers.len() as u32));
        let first = u64::from(group) * u64::from(self.group_size);
        (first..first + u64::from(self.group_size)).map(move |i| start + (i % n) as u32)
    }

    /// How many should have seen a conversation in which something was said.
    pub fn members_of(&self, people: &People) -> impl Fn(u64) -> u64 + use<> {
        let groups: std::collections::BTreeSet<u64> =
            self.groups.iter().filter_map(|id| key_of(id)).collect();
        let size = u64::from(self.group_size);
        let last = self.talkers.end - 1;
        let alone = (self.partner(last) == last)
            .then(|| direct(people, last, last))
            .and_then(|id| key_of(&id));
        move |conversation| {
            if groups.contains(&conversation) {
                size
            } else if alone == Some(conversation) {
                1
            } else {
                2
            }
        }
    }
}

fn direct(people: &People, a: u32, b: u32) -> String {
    ConversationId::direct(&people.user(a), &people.user(b)).to_string()
}

/// What the ledger calls a conversation: the last eight bytes of its id, which are random enough.
fn key_of(id: &str) -> Option<u64> {
    let id = ConversationId::parse(id)?;
    let [.., a, b, c, d, e, f, g, h] = *id.as_bytes();
    Some(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

/// What a talking client has; others have none.
#[derive(Default)]
struct Talker {
    /// Its direct conversation, once it has written to it.
    direct: Option<Box<str>>,
    /// Indexes of its groups.
    groups: Vec<u32>,
    sent: u32,
    /// Sent and not answered, on the present connection.
    open: u32,
    /// Asked for what it had missed.
    catching_up: bool,
    was_up: bool,
}

/// The talkers of one worker.
pub struct Talkers {
    talk: Arc<Talk>,
    shared: Arc<Talking>,
    /// Clients from this index on, as many as there are talkers among them.
    first: u32,
    /// The number of the worker's first client.
    numbers_from: u32,
    talkers: Vec<Talker>,
    /// Indexes of those who send.
    senders: Vec<u32>,
    /// This worker's share of the rate.
    rate: Option<f64>,
    ledger: Ledger,
    /// Closed loop: senders that owe a message.
    owing: Vec<u32>,
    /// Closed loop: senders whose message was refused, and who owe it later.
    refused: Again,
    again: Again,
    schedule: Option<Schedule>,
    churn: Schedule,
    reported: bool,
}

impl Talkers {
    /// The talkers among the clients with these numbers.
    pub fn new(talk: &Arc<Talk>, shared: &Arc<Talking>, numbers: std::ops::Range<u32>) -> Self {
        let within = |range: &std::ops::Range<u32>| {
            range.start.clamp(numbers.start, numbers.end)
                ..range.end.clamp(numbers.start, numbers.end)
        };
        let ours = within(&talk.talkers);
        let mut talkers: Vec<Talker> = Vec::new();
        talkers.resize_with(ours.len(), Talker::default);
        for group in 0..talk.groups.len() as u32 {
            for member in talk.members(group).filter(|m| ours.contains(m)) {
                talkers[(member - ours.start) as usize].groups.push(group);
            }
        }
        let senders: Vec<u32> = within(&talk.senders)
            .filter(|number| {
                let groups = &talkers[(number - ours.start) as usize].groups;
                talk.group_share < 1.0 || !groups.is_empty()
            })
            .map(|number| number - numbers.start)
            .collect();
        let part = senders.len() as f64 / talk.senders.len().max(1) as f64;
        Self {
            rate: talk.rate.map(|rate| rate * part).filter(|&rate| rate > 0.0),
            talk: Arc::clone(talk),
            shared: Arc::clone(shared),
            first: ours.start - numbers.start,
            numbers_from: numbers.start,
            talkers,
            senders,
            ledger: Ledger::default(),
            owing: Vec::new(),
            refused: Again::default(),
            again: Again::default(),
            schedule: None,
            churn: Schedule::default(),
            reported: false,
        }
    }

    /// Clients from this number on were there before the fleet, in another way: the first time that
    /// they are up, they ask for what they have missed.
    pub fn come_late(&mut self, from: u32) {
        let first = self.first + self.numbers_from;
        for (number, talker) in (first..).zip(&mut self.talkers) {
            talker.was_up = number >= from;
        }
    }

    fn talker(&mut self, client: u32) -> Option<&mut Talker> {
        let at = client.checked_sub(self.first)?;
        self.talkers.get_mut(at as usize)
    }

    /// Emits what is due; returns how long nothing will be.
    fn load(&mut self, now: u64, crowd: &mut Crowd) -> Duration {
        if self.senders.is_empty() {
            return Duration::MAX;
        }
        let begins = self.schedule.is_none();
        let mut schedule = self.schedule.take().unwrap_or_default();
        let wait;
        if let Some(rate) = self.rate {
            while let Some((due, n)) = schedule.due(now, 1e9 / rate) {
                let sender = self.senders[(n % self.senders.len() as u64) as usize];
                self.say(sender, due, crowd);
            }
            wait = schedule.wait(now);
        } else {
            if begins {
                for _ in 0..self.talk.inflight {
                    self.owing.extend_from_slice(&self.senders);
                }
            }
            while let Some(sender) = self.refused.due(now) {
                self.owing.push(sender);
            }
            for sender in std::mem::take(&mut self.owing) {
                self.say(sender, now, crowd);
            }
            wait = self.refused.wait(now);
        }
        self.schedule = Some(schedule);
        wait.min(self.churn(now, crowd))
    }

    /// Has clients leave and come back.
    fn churn(&mut self, now: u64, crowd: &mut Crowd) -> Duration {
        let a_minute = self.talk.churn * self.talkers.len() as f64;
        if a_minute <= 0.0 {
            return Duration::MAX;
        }
        while let Some((due, _)) = self.churn.due(now, 60e9 / a_minute) {
            let random = crowd.random() >> 8;
            let client = self.first + (random % self.talkers.len() as u64) as u32;
            if crowd.is_up(client) {
                crowd.tally.count("left");
                self.let_go(client);
                crowd.leave(client, due);
            }
        }
        self.churn.wait(now)
    }

    /// What this client had under way will not be answered any more.
    fn let_go(&mut self, client: u32) {
        let shared = Arc::clone(&self.shared);
        if let Some(talker) = self.talker(client) {
            let open = std::mem::take(&mut talker.open);
            shared.outstanding.fetch_sub(open.into(), Ordering::Relaxed);
            if std::mem::take(&mut talker.catching_up) {
                shared.catching_up.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// One client sends one message, due at `due`.
    fn say(&mut self, client: u32, due: u64, crowd: &mut Crowd) {
        if self.talk.churn > 0.0 && !crowd.is_up(client) {
            return crowd.tally.count("away");
        }
        let random = crowd.random();
        let number = crowd.number(client);
        let (talk, shared) = (Arc::clone(&self.talk), Arc::clone(&self.shared));
        let Some(talker) = self.talker(client) else {
            return;
        };
        talker.sent += 1;
        let mut message = SendMessage {
            client_msg_id: format!("{due:016x}-{number}-{}", talker.sent),
            content: format!("{due:016x}-{:.<width$}", "", width = talk.payload - 17),
            ..SendMessage::default()
        };
        let part = (random >> 11) as f64 / (1u64 << 53) as f64;
        if talk.group_share > 0.0 && !talker.groups.is_empty() && part <= talk.group_share {
            let at = (random >> 8) as usize % talker.groups.len();
            let group = talker.groups[at] as usize;
            message.conversation_id.clone_from(&talk.groups[group]);
        } else if let Some(direct) = &talker.direct {
            message.conversation_id = direct.to_string();
        } else {
            let partner = talk.partner(number);
            talker.direct = Some(direct(&crowd.people, number, partner).into());
            message.to = crowd.people.user(partner);
        }
        if !crowd.send(client, ClientBody::SendMessage(message)) {
            // Closed loop: it owes the message still, when its connection is there again.
            return;
        }
        if let Some(talker) = self.talker(client) {
            talker.open += 1;
        }
        shared.outstanding.fetch_add(1, Ordering::Relaxed);
        if shared.in_window(due) {
            crowd.tally.count(talk.names.sent);
        }
    }

    /// A message of this client was answered. Whether the client owes the next one.
    fn settle(&mut self, client: u32) -> bool {
        let shared = Arc::clone(&self.shared);
        let Some(talker) = self.talker(client).filter(|talker| talker.open > 0) else {
            return false;
        };
        talker.open -= 1;
        shared.outstanding.fetch_sub(1, Ordering::Relaxed);
        self.rate.is_none() && shared.phase() == Phase::Load
    }

    /// A message of this client was refused: whoever is in a closed loop waits as long as it is told.
    fn send_refused(&mut self, client: u32, error: &Error, crowd: &mut Crowd) {
        let owes = self.settle(client);
        let (now, random) = (crowd.shared.now(), crowd.random());
        let passes = owes && self.refused.refused(client, error, now, random);
        if owes && !passes {
            self.owing.push(client);
        }
        if let Some(name) = self.talk.names.refused
            && error.code == Code::Overloaded.as_str()
        {
            crowd.tally.excuse(&error.code);
            crowd.tally.count(name);
        }
    }

    /// A message or an ack came live: is it the next one?
    fn check(&mut self, client: u32, id: &str, seq: u64, what: &str, crowd: &mut Crowd) {
        let Some(conversation) = key_of(id) else {
            return self.wrong(client, crowd, || format!("conversation id {id:?}"));
        };
        match self.ledger.live(client, conversation, seq) {
            Seen::New => {}
            Seen::Behind => {
                let talker = self.talker(client);
                if talker.is_some_and(|talker| !talker.catching_up) {
                    self.look(client, id, seq, crowd);
                }
            }
            Seen::Again => self.wrong(client, crowd, || format!("{what} {seq} came twice")),
            Seen::Gap => self.wrong(client, crowd, || {
                format!("{what} {seq} came before the ones below it")
            }),
        }
    }

    fn wrong(&self, client: u32, crowd: &mut Crowd, what: impl FnOnce() -> String) {
        crowd.tally.count("wrong");
        let number = crowd.number(client);
        self.shared.wrong(|| format!("client {number}: {}", what()));
    }

    fn page(&mut self, client: u32, page: &Page, crowd: &mut Crowd) {
        let Some(conversation) = key_of(&page.conversation_id) else {
            return self.wrong(client, crowd, || "a page of no conversation".to_owned());
        };
        for message in &page.messages {
            match self.ledger.paged(client, conversation, message.seq) {
                Seen::New => crowd.tally.count("fetched"),
                Seen::Again | Seen::Behind => {}
                Seen::Gap => self.wrong(client, crowd, || {
                    format!("a page goes on with {} where it should not", message.seq)
                }),
            }
        }
        self.look(client, &page.conversation_id, page.head_seq, crowd);
    }

    /// The client knows where the head is, and fetches what it lacks.
    fn look(&mut self, client: u32, id: &str, head: u64, crowd: &mut Crowd) {
        let behind = key_of(id).and_then(|key| self.ledger.head(client, key, head));
        let shared = Arc::clone(&self.shared);
        let Some(talker) = self.talker(client) else {
            return;
        };
        match behind {
            Some(after) => {
                if !std::mem::replace(&mut talker.catching_up, true) {
                    shared.catching_up.fetch_add(1, Ordering::Relaxed);
                }
                let fetch = Fetch {
                    conversation_id: id.to_owned(),
                    after: Some(after),
                    limit: Some(trunkline_proto::limits::PAGE_LIMIT_MAX),
                    ..Fetch::default()
                };
                crowd.send(client, ClientBody::Fetch(fetch));
            }
            None if std::mem::take(&mut talker.catching_up) => {
                shared.catching_up.fetch_sub(1, Ordering::Relaxed);
            }
            None => {}
        }
    }

    /// The client asks for what it has missed everywhere.
    fn sync(&mut self, client: u32, crowd: &mut Crowd) {
        let mut conversations = Vec::new();
        for id in self.conversations(client, crowd) {
            let Some(key) = key_of(&id) else { continue };
            conversations.push(SyncPosition {
                conversation_id: id,
                after_seq: self.ledger.was_away(client, key),
            });
        }
        let sync = Sync {
            conversations,
            limit: Some(trunkline_proto::limits::PAGE_LIMIT_MAX),
        };
        crowd.send(client, ClientBody::Sync(sync));
    }

    /// Clients whose sync or fetch was refused ask again.
    fn ask_again(&mut self, now: u64, crowd: &mut Crowd) -> Duration {
        while let Some(client) = self.again.due(now) {
            let asks = self.talker(client).is_some_and(|talker| talker.catching_up);
            if asks && crowd.is_up(client) {
                self.sync(client, crowd);
            }
        }
        self.again.wait(now)
    }

    /// The conversations of a client.
    fn conversations(&self, client: u32, crowd: &Crowd) -> Vec<String> {
        let number = crowd.number(client);
        let mut all = vec![direct(&crowd.people, number, self.talk.partner(number))];
        if let Some(talker) = self.talkers.get((client - self.first) as usize) {
            let groups = talker.groups.iter();
            all.extend(groups.map(|&g| self.talk.groups[g as usize].clone()));
        }
        all
    }

    fn report(&mut self) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        if let Ok(mut ends) = self.shared.ends.lock() {
            ends.extend(self.ledger.all().map(|(_, c, last)| (c, last)));
        }
        self.shared.reports.fetch_add(1, Ordering::Release);
    }
}

impl Behaviour for Talkers {
    /// Whoever was up before asks for what it has missed.
    fn up(&mut self, client: u32, crowd: &mut Crowd) {
        let Some(talker) = self.talker(client) else {
            return;
        };
        if !std::mem::replace(&mut talker.was_up, true) {
            return;
        }
        if self.rate.is_none() && self.senders.binary_search(&client).is_ok() {
            let owed = std::iter::repeat_n(client, self.talk.inflight as usize);
            self.owing.extend(owed);
        }
        if let Some(talker) = self.talker(client) {
            talker.catching_up = true;
            self.shared.catching_up.fetch_add(1, Ordering::Relaxed);
        }
        self.sync(client, crowd);
    }

    fn down(&mut self, client: u32, _: &mut Crowd) {
        self.let_go(client);
    }

    fn frame(&mut self, client: u32, frame: ServerFrame, crowd: &mut Crowd) {
        match frame.frame {
            Some(ServerBody::Ack(ack)) => {
                let now = crowd.shared.now();
                if self.settle(client) {
                    self.owing.push(client);
                }
                if self.shared.in_window(now) {
                    self.shared.acked.fetch_add(1, Ordering::Relaxed);
                }
                let due = due_of(&ack.client_msg_id);
                if let Some(due) = due.filter(|&due| self.shared.in_window(due)) {
                    crowd
                        .tally
                        .time(self.talk.names.ack, now.saturating_sub(due));
                }
                self.check(client, &ack.conversation_id, ack.seq, "ack", crowd);
            }
            Some(ServerBody::Message(message)) => {
                let now = crowd.shared.now();
                if self.shared.in_window(now) {
                    self.shared.delivered.fetch_add(1, Ordering::Relaxed);
                }
                let due = due_of(&message.content);
                if let Some(due) = due.filter(|&due| self.shared.in_window(due)) {
                    crowd
                        .tally
                        .time(self.talk.names.delivery, now.saturating_sub(due));
                }
                let id = &message.conversation_id;
                self.check(client, id, message.seq, "message", crowd);
            }
            Some(ServerBody::Page(page)) => self.page(client, &page, crowd),
            Some(ServerBody::Conversation(told)) => {
                self.look(client, &told.conversation_id, told.head_seq, crowd);
            }
            Some(ServerBody::Synced(_)) => {
                let mut whole = true;
                for id in self.conversations(client, crowd) {
                    let Some(key) = key_of(&id) else { continue };
                    self.ledger.synced(client, key);
                    whole &= !self.ledger.is_behind(client, key);
                }
                let shared = Arc::clone(&self.shared);
                if whole
                    && let Some(talker) = self.talker(client)
                    && std::mem::take(&mut talker.catching_up)
                {
                    shared.catching_up.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Some(ServerBody::Error(error)) if !error.client_msg_id.is_empty() => {
                self.send_refused(client, &error, crowd);
            }
            // Nobody has written yet in a conversation that was asked about.
            Some(ServerBody::Error(error)) if error.code == Code::NotAMember.as_str() => {
                crowd.tally.excuse(&error.code);
            }
            Some(ServerBody::Error(error)) => {
                let (now, random) = (crowd.shared.now(), crowd.random());
                if self.again.refused(client, &error, now, random) {
                    crowd.tally.excuse(&error.code);
                    crowd.tally.count("refused_requests");
                }
            }
            _ => {}
        }
    }

    fn tick(&mut self, now: u64, crowd: &mut Crowd) -> Duration {
        let again = self.ask_again(now, crowd);
        match self.shared.phase() {
            Phase::Quiet => again,
            Phase::Load => self.load(now, crowd).min(again),
            Phase::Report => {
                self.report();
                again
            }
        }
    }
}

/// The time at which a message was due, from the head of its content or its `client_msg_id`.
fn due_of(text: &str) -> Option<u64> {
    u64::from_str_radix(text.get(..16)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(clients: u32) -> Talk {
        Talk {
            rate: None,
            inflight: 1,
            senders: 0..clients,
            talkers: 0..clients,
            payload: 20,
            groups: Vec::new(),
            group_size: 3,
            group_share: 0.0,
            churn: 0.0,
            names: &Names::PLAIN,
        }
    }

    #[test]
    fn the_time_is_read_back() {
        let text = format!("{:016x}-7-1", 123_456_789u64);
        assert_eq!(due_of(&text), Some(123_456_789));
        assert_eq!(due_of("short"), None);
    }

    #[test]
    fn partners_are_one_anothers_and_the_last_of_an_odd_number_is_alone() {
        let mut talk = talk(5);
        assert_eq!([0, 1, 2, 3, 4].map(|n| talk.partner(n)), [1, 0, 3, 2, 4]);
        talk.talkers = 10..12;
        assert_eq!([10, 11].map(|n| talk.partner(n)), [11, 10]);
    }

    #[test]
    fn groups_are_taken_round() {
        let talk = talk(5);
        assert_eq!(talk.members(1).collect::<Vec<_>>(), [3, 4, 0]);
    }
}
