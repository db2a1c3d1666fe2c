//! The world around an engine: a store in memory, sessions with inboxes, a clock that tests move.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost::Message as _;
use trunkline_proto::client::{
    Ack, ClientBody, ClientFrame, Error, Fetch, Message, Page, Receipt, SendMessage, ServerBody,
    ServerFrame, Sync, SyncPosition,
};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::link::{
    Deliver, EdgeHello, EdgeOp, SessionClosed, SessionOpened, VERSION, core_op, edge_op,
};
use trunkline_proto::store::{ConversationRow, MemberRow, WatermarkRow};

use crate::engine::{
    ConversationView, EdgeKey, Effect, Engine, EngineConfig, Input, Kind, Now, Request, Response,
    Token,
};
use crate::store::{Order, ReadRange, Snapshot, StoreError, WriteBatch};

pub const START_MS: u64 = 1_760_000_000_000;

/// A conversation as the store has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    pub row: ConversationRow,
    pub members: BTreeMap<String, MemberRow>,
    pub messages: BTreeMap<u64, Message>,
    pub watermarks: BTreeMap<String, WatermarkRow>,
}

/// A store in memory that holds the engine to what it promised.
#[derive(Default)]
pub struct FakeStore {
    pub conversations: BTreeMap<ConversationId, Stored>,
}

impl FakeStore {
    fn apply(&mut self, batch: &WriteBatch) {
        let mut seen = Vec::new();
        for writes in &batch.conversations {
            assert!(
                !seen.contains(&writes.id),
                "a conversation twice in a batch"
            );
            seen.push(writes.id);
            let stored = self.conversations.entry(writes.id).or_default();
            if let Some(row) = &writes.row {
                stored.row = row.clone();
            }
            stored.members.extend(writes.members.iter().cloned());
            stored.watermarks.extend(writes.watermarks.iter().cloned());
            for message in &writes.messages {
                let head = stored.messages.len() as u64;
                assert_eq!(message.conversation_id, writes.id.to_string());
                match stored.messages.get(&message.seq) {
                    Some(there) => assert_eq!(there, &**message, "a seq given to other content"),
                    None => assert_eq!(message.seq, head + 1, "a hole in the seqs"),
                }
                stored.messages.insert(message.seq, (**message).clone());
            }
        }
    }

    fn load(&self, id: ConversationId, recent_max: u64) -> Option<Snapshot> {
        let stored = self.conversations.get(&id)?;
        let head = stored.messages.len() as u64;
        Some(Snapshot {
            row: stored.row.clone(),
            members: stored.members.clone().into_iter().collect(),
            watermarks: stored.watermarks.clone().into_iter().collect(),
            head,
            recent: stored
                .messages
                .range(head.saturating_sub(recent_max) + 1..)
                .map(|(_, m)| m.clone())
                .collect(),
        })
    }

    fn read(&self, id: ConversationId, range: ReadRange) -> Vec<Message> {
        let Some(stored) = self.conversations.get(&id) else {
            return Vec::new();
        };
        let mut found: Vec<Message> = stored
            .messages
            .range(range.after + 1..range.before)
            .map(|(_, m)| m.clone())
            .collect();
        let limit = range.limit as usize;
        match range.order {
            Order::OldestFirst => found.truncate(limit),
            Order::NewestFirst => found = found.split_off(found.len().saturating_sub(limit)),
        }
        found
    }
}

/// What reached a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Got {
    Frame(ServerFrame),
    Registered,
    Closed(Error),
}

pub type Session = (u32, u64);

/// See the module.
pub struct World {
    seed: u64,
    pub engine: Engine,
    pub now: Now,
    pub store: FakeStore,
    inboxes: BTreeMap<Session, Vec<Got>>,
    responses: BTreeMap<Token, Result<Response, Error>>,
    pub settled: BTreeMap<u32, u32>,
    /// Every effect so far, as text.
    pub log: Vec<String>,
    /// `Deliver` items so far, with the edge; those for rosters with the handles that these held.
    pub items: Vec<(u32, Deliver)>,
    /// What the edges have of rosters: version and handles.
    pub rosters: BTreeMap<(u32, u64), (u64, BTreeSet<u64>)>,
    /// What was said of rosters, with the edge.
    pub roster_ops: Vec<(u32, core_op::Op)>,
    pub fatal: Vec<String>,
    pub cut: Vec<u32>,
    /// What was wanted of the rest of a cluster.
    pub outside: Vec<Effect>,
    /// How the next commits end; `Ok` when empty.
    pub commit_ends: VecDeque<Result<(), StoreError>>,
    /// Whether a commit that ends in `Unavailable` has happened all the same.
    pub lost_answers: bool,
    pub commits: Vec<(u64, WriteBatch)>,
    pub hold_commits: bool,
    pub hold_loads: bool,
    held: VecDeque<Effect>,
    todo: VecDeque<Effect>,
    carrying_out: bool,
    /// Errors for the next loads, reads and index reads, in the order in which they are asked.
    pub read_fails: VecDeque<StoreError>,
    /// Sessions that were opened and not closed, with their users.
    pub open: BTreeMap<Session, String>,
    /// What has to be delivered: noted when the engine is told that a commit succeeded.
    pub due: Vec<(Session, Message)>,
    /// Frames sent by edge.
    pub framed: BTreeMap<u32, u32>,
    next_token: u64,
    next_handle: u64,
}

pub fn unavailable() -> StoreError {
    StoreError::Unavailable("test".to_owned())
}

pub fn config() -> EngineConfig {
    EngineConfig {
        send_rate: 0,
        ..EngineConfig::default()
    }
}

pub fn hello(edge_id: &str) -> EdgeHello {
    EdgeHello {
        edge_id: edge_id.to_owned(),
        incarnation: 1,
        resume_from_ms: 0,
        resume_from_incarnation: 0,
        send_rate: 0,
        send_burst: 0,
        sessions_per_user_max: 8,
        version: VERSION,
    }
}

impl World {
    /// Two edges, 1 and 2, attached.
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(config: EngineConfig) -> Self {
        Self::seeded(config, 7)
    }

    pub fn seeded(config: EngineConfig, seed: u64) -> Self {
        let mut world = Self {
            seed,
            engine: Engine::new(config, 0, seed),
            now: Now {
                mono_ns: 1_000_000_000,
                unix_ms: START_MS,
            },
            store: FakeStore::default(),
            inboxes: BTreeMap::new(),
            responses: BTreeMap::new(),
            settled: BTreeMap::new(),
            log: Vec::new(),
            items: Vec::new(),
            rosters: BTreeMap::new(),
            roster_ops: Vec::new(),
            fatal: Vec::new(),
            cut: Vec::new(),
            outside: Vec::new(),
            commit_ends: VecDeque::new(),
            lost_answers: false,
            commits: Vec::new(),
            hold_commits: false,
            hold_loads: false,
            held: VecDeque::new(),
            todo: VecDeque::new(),
            carrying_out: false,
            read_fails: VecDeque::new(),
            open: BTreeMap::new(),
            due: Vec::new(),
            framed: BTreeMap::new(),
            next_token: 0,
            next_handle: 0,
        };
        world.attach(1, hello("edge-1"));
        world.attach(2, hello("edge-2"));
        world
    }

    /// The core starts anew on the same store; edges 1 and 2 attach with nothing announced.
    pub fn restart(&mut self, config: EngineConfig) {
        let floor = self
            .store
            .conversations
            .values()
            .flat_map(|c| c.messages.values());
        let floor = floor.map(|m| m.message_id).max().unwrap_or(0);
        self.engine = Engine::new(config, floor, self.seed + 1);
        self.held.clear();
        self.rosters.clear();
        self.inboxes.clear();
        self.open.clear();
        self.due.clear();
        self.framed.clear();
        self.settled.clear();
        self.attach(1, hello("edge-1"));
        self.attach(2, hello("edge-2"));
    }

    // ---- driving ----

    pub fn attach(&mut self, edge: u32, hello: EdgeHello) {
        self.attach_resuming(edge, hello, false);
    }

    /// `here`: the edge resumes from what this process told it.
    pub fn attach_resuming(&mut self, edge: u32, hello: EdgeHello, here: bool) {
        self.rosters.retain(|(at, _), _| *at != edge);
        let edge = EdgeKey(edge);
        self.feed(Input::EdgeAttached {
            edge,
            hello,
            resumes_here: here,
        });
        self.turn();
    }

    /// Feeds one input; the turn goes on.
    pub fn feed(&mut self, input: Input) {
        let mut out = Vec::new();
        self.engine.on(input, self.now, &mut out);
        self.carry_out(out);
    }

    /// Ends the turn and carries out what follows, until there is nothing left that is not held.
    pub fn turn(&mut self) {
        loop {
            let mut out = Vec::new();
            self.engine.end_turn(self.now, &mut out);
            if out.is_empty() {
                return;
            }
            self.carry_out(out);
        }
    }

    /// Moves the clock and ticks.
    pub fn pass(&mut self, ms: u64) {
        self.now.mono_ns += ms * 1_000_000;
        self.now.unix_ms += ms;
        self.feed(Input::Tick);
        self.turn();
    }

    /// In order; what follows from an effect comes after all that were wanted before it.
    fn carry_out(&mut self, effects: Vec<Effect>) {
        self.log.extend(effects.iter().map(|e| format!("{e:?}")));
        self.todo.extend(effects);
        if std::mem::replace(&mut self.carrying_out, true) {
            return;
        }
        while let Some(effect) = self.todo.pop_front() {
            let hold = match &effect {
                Effect::Commit { .. } => self.hold_commits,
                Effect::Load { .. } | Effect::ReadPage { .. } | Effect::ReadIndex { .. } => {
                    self.hold_loads
                }
                _ => false,
            };
            if hold {
                self.held.push_back(effect);
            } else {
                self.carry_out_one(effect);
            }
        }
        self.carrying_out = false;
    }

    /// Carries out what was held, in order; what follows from it is held again if it is to be.
    pub fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        for effect in held {
            self.carry_out_one(effect);
        }
        self.turn();
    }

    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::ToEdge { edge, op } => self.arrive(edge, op.op.expect("an operation")),
            Effect::Settled { edge, operations } => {
                *self.settled.entry(edge.0).or_default() += operations;
            }
            Effect::CutEdge { edge, .. } => self.cut.push(edge.0),
            Effect::Commit { commit, batch } => self.commit(commit, WriteBatch::clone(&batch)),
            Effect::Load {
                conversation,
                recent_max,
            } => {
                let loaded = self.store.load(conversation, recent_max).map(Box::new);
                let result = self.read_fails.pop_front().map_or(Ok(loaded), Err);
                self.feed(Input::Loaded {
                    conversation,
                    result,
                });
            }
            Effect::ReadPage {
                token,
                conversation,
                range,
            } => {
                let messages = self.store.read(conversation, range);
                let result = self.read_fails.pop_front().map_or(Ok(messages), Err);
                self.feed(Input::PageRead { token, result });
            }
            Effect::ReadIndex { token, user } => {
                let found = self.store.conversations.iter();
                let found = found.filter(|(_, c)| c.members.contains_key(&user));
                let mut ids: Vec<_> = found.map(|(id, _)| *id).collect();
                // The order is not promised.
                if self.seed.is_multiple_of(2) {
                    ids.reverse();
                }
                let result = self.read_fails.pop_front().map_or(Ok(ids), Err);
                self.feed(Input::IndexRead { token, result });
            }
            Effect::Respond { token, response } => {
                let before = self.responses.insert(token, response);
                assert_eq!(before, None, "a call answered twice");
            }
            Effect::Fatal { reason } => self.fatal.push(reason),
            Effect::Released { .. }
            | Effect::Evicted { .. }
            | Effect::CaughtUp { .. }
            | Effect::Forward { .. }
            | Effect::Ask { .. } => self.outside.push(effect),
        }
    }

    fn arrive(&mut self, edge: EdgeKey, op: core_op::Op) {
        match op {
            core_op::Op::Roster(_)
            | core_op::Op::DropRoster(_)
            | core_op::Op::DeliverToRoster(_) => self.arrive_at_roster(edge, op),
            core_op::Op::Deliver(deliver) => {
                let frame = deliver.frame.clone().expect("a frame");
                assert!(!deliver.handles.is_empty(), "an item for nobody");
                self.check_stored(frame.frame.as_ref().expect("a body"));
                for handle in &deliver.handles {
                    self.check_visible((edge.0, *handle), frame.frame.as_ref());
                    let got = Got::Frame(frame.clone());
                    self.inboxes.entry((edge.0, *handle)).or_default().push(got);
                }
                self.items.push((edge.0, deliver));
            }
            core_op::Op::Registered(r) => {
                let inbox = self.inboxes.entry((edge.0, r.handle)).or_default();
                inbox.push(Got::Registered);
            }
            core_op::Op::Close(close) => {
                let got = Got::Closed(close.error.expect("an error"));
                self.open.remove(&(edge.0, close.handle));
                self.inboxes
                    .entry((edge.0, close.handle))
                    .or_default()
                    .push(got);
            }
        }
    }

    /// As an edge takes it, which gives its stream up over the least irregularity.
    fn arrive_at_roster(&mut self, edge: EdgeKey, op: core_op::Op) {
        self.roster_ops.push((edge.0, op.clone()));
        match op {
            core_op::Op::Roster(roster) => {
                let key = (edge.0, roster.roster_id);
                let (version, handles) = self.rosters.entry(key).or_default();
                *version += 1;
                assert_eq!(*version, roster.version, "{key:?}");
                for handle in &roster.left {
                    assert!(handles.remove(handle), "{handle} left and was not in");
                }
                for handle in &roster.joined {
                    assert!(handles.insert(*handle), "{handle} joined twice");
                }
            }
            core_op::Op::DropRoster(dropped) => {
                let was = self.rosters.remove(&(edge.0, dropped.roster_id));
                assert!(was.is_some(), "dropped and was not there");
            }
            core_op::Op::DeliverToRoster(deliver) => {
                let (version, handles) = &self.rosters[&(edge.0, deliver.roster_id)];
                assert_eq!(*version, deliver.version);
                if let Some(except) = deliver.except {
                    assert!(handles.contains(&except), "the sender is not in");
                }
                let handles = handles.iter().filter(|h| deliver.except != Some(**h));
                let deliver = Deliver {
                    handles: handles.copied().collect(),
                    frame: deliver.frame,
                };
                self.arrive(edge, core_op::Op::Deliver(deliver));
            }
            _ => {}
        }
    }

    fn commit(&mut self, commit: u64, batch: WriteBatch) {
        let result = self.commit_ends.pop_front().unwrap_or(Ok(()));
        if result.is_ok() || self.lost_answers {
            self.store.apply(&batch);
        } else if let Err(StoreError::Fenced(ids)) = &result {
            let mut kept = batch.clone();
            kept.conversations.retain(|c| !ids.contains(&c.id));
            self.store.apply(&kept);
        }
        if result.is_ok() {
            self.note_due(&batch);
        }
        self.commits.push((commit, batch));
        self.feed(Input::Committed { commit, result });
    }

    /// Each session of each user who may see a message has to get it, or the ack.
    fn note_due(&mut self, batch: &WriteBatch) {
        for writes in &batch.conversations {
            let members = &self.store.conversations[&writes.id].members;
            for message in &writes.messages {
                let sees = |user: &String| {
                    let intervals = members.get(user).map(|m| m.intervals.as_slice());
                    intervals.unwrap_or_default().iter().any(|i| {
                        let until = i.until_seq.unwrap_or(u64::MAX);
                        i.after_seq < message.seq && message.seq <= until
                    })
                };
                let sessions = self.open.iter().filter(|(_, user)| sees(user));
                self.due
                    .extend(sessions.map(|(session, _)| (*session, (**message).clone())));
            }
        }
    }

    /// Who is out gets no message.
    fn check_visible(&self, session: Session, body: Option<&ServerBody>) {
        let (Some(ServerBody::Message(message)), Some(user)) = (body, self.open.get(&session))
        else {
            return;
        };
        let id = ConversationId::parse(&message.conversation_id).expect("an id");
        let member = self.store.conversations[&id].members.get(user);
        let intervals = member.map(|m| m.intervals.as_slice()).unwrap_or_default();
        let sees = intervals
            .iter()
            .any(|i| i.after_seq < message.seq && message.seq <= i.until_seq.unwrap_or(u64::MAX));
        assert!(sees, "{user} gets {}, which is not for them", message.seq);
    }

    /// Nothing of a message leaves before the store has it.
    fn check_stored(&self, body: &ServerBody) {
        let stored = |conversation: &str, seq: u64| {
            let id = ConversationId::parse(conversation).expect("an id");
            let found = self.store.conversations.get(&id);
            found.and_then(|c| c.messages.get(&seq)).cloned()
        };
        match body {
            ServerBody::Ack(a) => {
                let message = stored(&a.conversation_id, a.seq).expect("acked, so stored");
                assert_eq!(message.message_id, a.message_id);
                assert_eq!(message.client_msg_id, a.client_msg_id);
                assert_eq!(message.ts, a.ts);
            }
            ServerBody::Message(m) => {
                assert_eq!(stored(&m.conversation_id, m.seq).as_ref(), Some(m));
            }
            ServerBody::Page(p) => {
                for m in &p.messages {
                    assert_eq!(stored(&m.conversation_id, m.seq).as_ref(), Some(m));
                }
                assert!(p.messages.is_sorted_by_key(|m| m.seq));
                assert!(p.messages.iter().all(|m| m.seq <= p.head_seq));
            }
            _ => {}
        }
    }

    // ---- sessions ----

    pub fn op(&mut self, (edge, handle): Session, op: edge_op::Op) {
        let ops = vec![EdgeOp {
            handle,
            op: Some(op),
        }];
        let edge = EdgeKey(edge);
        self.feed(Input::EdgeOps { edge, ops });
    }

    pub fn announce(&mut self, session: Session, user: &str, device: &str, again: bool) {
        self.announce_aged(session, user, device, again, 0);
    }

    /// As [`World::announce`], of a connection that was accepted so long ago.
    pub fn announce_aged(
        &mut self,
        session: Session,
        user: &str,
        device: &str,
        again: bool,
        age_ms: u64,
    ) {
        self.open.insert(session, user.to_owned());
        self.op(
            session,
            edge_op::Op::Opened(SessionOpened {
                user_id: user.to_owned(),
                device_id: device.to_owned(),
                announced_again: again,
                age_ms,
            }),
        );
        self.turn();
    }

    /// A session of `user`, registered; its device is named after its handle.
    pub fn open(&mut self, edge: u32, user: &str) -> Session {
        self.next_handle += 1;
        let session = (edge, self.next_handle);
        self.announce(session, user, &format!("d{}", self.next_handle), false);
        assert_eq!(self.take(session), [Got::Registered]);
        session
    }

    pub fn close(&mut self, session: Session) {
        self.open.remove(&session);
        self.op(session, edge_op::Op::Closed(SessionClosed {}));
    }

    /// A frame; the turn goes on.
    pub fn frame(&mut self, session: Session, id: &str, body: ClientBody) {
        *self.framed.entry(session.0).or_default() += 1;
        let frame = ClientFrame {
            id: id.to_owned(),
            frame: Some(body),
        };
        self.op(session, edge_op::Op::Frame(frame.encode_to_vec().into()));
    }

    /// A send to the user `to`.
    pub fn say(&mut self, session: Session, to: &str, cid: &str, content: &str) {
        let send = SendMessage {
            to: to.to_owned(),
            client_msg_id: cid.to_owned(),
            content: content.to_owned(),
            ..SendMessage::default()
        };
        self.frame(session, "", ClientBody::SendMessage(send));
    }

    /// A send to a conversation.
    pub fn say_in(&mut self, session: Session, id: ConversationId, cid: &str, content: &str) {
        let send = SendMessage {
            conversation_id: id.to_string(),
            client_msg_id: cid.to_owned(),
            content: content.to_owned(),
            ..SendMessage::default()
        };
        self.frame(session, "", ClientBody::SendMessage(send));
    }

    pub fn mark(&mut self, session: Session, id: ConversationId, seq: u64, status: &str) {
        let receipt = Receipt {
            conversation_id: id.to_string(),
            seq,
            status: status.to_owned(),
            ..Receipt::default()
        };
        self.frame(session, "", ClientBody::Receipt(receipt));
        self.turn();
    }

    pub fn sync(&mut self, session: Session, positions: &[(ConversationId, u64)]) {
        let conversations = positions
            .iter()
            .map(|(id, after_seq)| SyncPosition {
                conversation_id: id.to_string(),
                after_seq: *after_seq,
            })
            .collect();
        let sync = Sync {
            conversations,
            limit: None,
        };
        self.frame(session, "sy", ClientBody::Sync(sync));
        self.turn();
    }

    /// The page of a fetch.
    pub fn fetch(
        &mut self,
        session: Session,
        id: ConversationId,
        (after, before, limit): (Option<u64>, Option<u64>, Option<u32>),
    ) -> Result<Page, Error> {
        let fetch = Fetch {
            conversation_id: id.to_string(),
            before,
            after,
            limit,
        };
        self.frame(session, "fe", ClientBody::Fetch(fetch));
        self.turn();
        let mut got = self.take(session);
        match got.pop() {
            Some(Got::Frame(ServerFrame { id, frame })) if id == "fe" => match frame {
                Some(ServerBody::Page(page)) => Ok(page),
                Some(ServerBody::Error(error)) => Err(error),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// What reached a session since the last call.
    pub fn take(&mut self, session: Session) -> Vec<Got> {
        self.inboxes.remove(&session).unwrap_or_default()
    }

    /// What reached a session since the last `take`, left there.
    pub fn got(&self, session: Session) -> &[Got] {
        self.inboxes.get(&session).map_or(&[], Vec::as_slice)
    }

    /// The frames' bodies among that.
    pub fn bodies(&mut self, session: Session) -> Vec<ServerBody> {
        self.take(session)
            .into_iter()
            .map(|got| match got {
                Got::Frame(frame) => frame.frame.expect("a body"),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// The only thing that reached a session: an ack.
    pub fn ack(&mut self, session: Session) -> Ack {
        match self.bodies(session).as_slice() {
            [ServerBody::Ack(ack)] => ack.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// The only thing that reached a session: an error.
    pub fn error(&mut self, session: Session) -> Error {
        match self.bodies(session).as_slice() {
            [ServerBody::Error(error)] => error.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// The acks among what reached a session.
    pub fn acks(&mut self, session: Session) -> Vec<Ack> {
        let bodies = self.bodies(session).into_iter();
        bodies
            .filter_map(|b| match b {
                ServerBody::Ack(ack) => Some(ack),
                _ => None,
            })
            .collect()
    }

    /// Seqs of the messages among what reached a session.
    pub fn seqs(&mut self, session: Session) -> Vec<u64> {
        let bodies = self.bodies(session).into_iter();
        bodies
            .filter_map(|b| match b {
                ServerBody::Message(m) => Some(m.seq),
                _ => None,
            })
            .collect()
    }

    // ---- REST ----

    /// Makes a call; the turn goes on.
    pub fn ask(&mut self, user: &str, request: Request) -> Token {
        self.ask_from(user, request, false)
    }

    /// As [`World::ask`], perhaps by another core.
    pub fn ask_from(&mut self, user: &str, request: Request, from_core: bool) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.feed(Input::Request {
            token,
            user: user.to_owned(),
            request,
            from_core,
        });
        token
    }

    pub fn answered(&mut self, token: Token) -> Option<Result<Response, Error>> {
        self.responses.remove(&token)
    }

    /// Makes a call and takes its answer.
    pub fn call(&mut self, user: &str, request: Request) -> Result<Response, Error> {
        let token = self.ask(user, request);
        self.turn();
        self.answered(token).expect("an answer")
    }

    /// The error code that a call is answered with.
    pub fn refused(&mut self, user: &str, request: Request) -> String {
        match self.call(user, request) {
            Err(error) => error.code,
            Ok(response) => panic!("{response:?}"),
        }
    }

    /// A group of `owner` and `members`.
    pub fn group(&mut self, owner: &str, members: &[&str]) -> ConversationId {
        let request = Request::CreateConversation {
            kind: Kind::Group,
            title: "team".to_owned(),
            members: members.iter().map(|m| (*m).to_owned()).collect(),
        };
        match self.call(owner, request) {
            Ok(Response::Conversation {
                conversation,
                created: true,
            }) => conversation.conversation_id,
            other => panic!("{other:?}"),
        }
    }

    pub fn view(&mut self, user: &str, id: ConversationId) -> ConversationView {
        match self.call(user, Request::GetConversation { id }) {
            Ok(Response::Conversation {
                conversation,
                created: false,
            }) => conversation,
            other => panic!("{other:?}"),
        }
    }

    pub fn stored(&self, id: ConversationId) -> &Stored {
        self.store.conversations.get(&id).expect("stored")
    }
}
