//! A core process from its start to its end: as much of an engine as it takes to use the store the
//! way the engine does. One turn at a time takes what has come, loads what it needs, commits, repeats
//! unchanged what has no known outcome, and forgets what is fenced.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use trunkline_core::ownership::control::Deployment;
use trunkline_core::ownership::held::{BootClock, Held};
use trunkline_core::ownership::partition_of_conversation;
use trunkline_core::store::fenced::proof::Proof;
use trunkline_core::store::fenced::rows::Window;
use trunkline_core::store::fenced::{FencedOptions, FencedStore};
use trunkline_core::store::{
    ConversationWrites, MessageStore as _, Order, ReadRange, Snapshot, StoreError, WriteBatch,
};
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::{ConversationRow, Interval, MemberRow, WatermarkRow};
use uuid::Uuid;

use super::check::Changed;
use super::clockwork::{Process, Promise};
use super::defects::Defect;
use super::plan::{MS, PARTITIONS, TTL_NS, WINDOW_NS};
use super::replicas::Mutation;
use super::rows::SimRows;
use super::world::{Registry, Still, World};

/// What a client wants.
#[derive(Clone)]
pub enum Wish {
    Send {
        client_msg_id: String,
    },
    /// Bob joins, or leaves.
    Toggle,
    Receipt {
        seq: u64,
    },
    Sync,
}

/// What it gets.
pub enum Outcome {
    Sent { seq: u64, message_id: u64 },
    Changed(Changed),
    Marked { seq: u64 },
    Synced { head: u64, messages: Vec<Message> },
    Unavailable,
}

#[derive(Clone)]
pub struct Request {
    pub id: ConversationId,
    pub wish: Wish,
    pub promise: Promise<Outcome>,
}

/// A conversation in memory.
struct Conversation {
    committed: u64,
    assigned: u64,
    row: ConversationRow,
    bob: MemberRow,
    /// By `client_msg_id`: seq, message id, whether it is committed.
    window: BTreeMap<String, (u64, u64, bool)>,
}

impl Conversation {
    fn new(snapshot: Snapshot) -> Self {
        let known = snapshot.recent.into_iter();
        let bob = snapshot.members.into_iter().find(|(user, _)| user == "bob");
        Self {
            committed: snapshot.head,
            assigned: snapshot.head,
            row: snapshot.row,
            bob: bob.map(|(_, row)| row).unwrap_or_default(),
            window: known
                .map(|m| (m.client_msg_id, (m.seq, m.message_id, true)))
                .collect(),
        }
    }

    fn is_bob_in(&self) -> bool {
        let last = self.bob.intervals.last();
        last.is_some_and(|interval| interval.until_seq.is_none())
    }
}

/// Of one conversation in a turn.
struct Part {
    writes: ConversationWrites,
    senders: Vec<(u64, u64, Promise<Outcome>)>,
    toggled: Option<(MemberRow, Promise<Outcome>)>,
    marked: Vec<(u64, Promise<Outcome>)>,
    is_made: bool,
}

impl Part {
    fn new(id: ConversationId) -> Self {
        Self {
            writes: ConversationWrites {
                id,
                row: None,
                members: Vec::new(),
                messages: Vec::new(),
                watermarks: Vec::new(),
            },
            senders: Vec::new(),
            toggled: None,
            marked: Vec::new(),
            is_made: false,
        }
    }
}

type Turn = BTreeMap<ConversationId, Part>;

/// What follows from a commit.
enum Effect {
    Publish(ConversationId, Arc<Message>),
    /// Everything before it follows from commits of windows up to this one.
    Finished(Window),
}

/// See the module.
pub struct Life {
    world: Arc<World>,
    pub machine: usize,
    pub process: Process,
    pub held: Arc<Held>,
    store: FencedStore<SimRows>,
    inbox: Mutex<VecDeque<Request>>,
    conversations: Mutex<BTreeMap<ConversationId, Conversation>>,
    /// Partitions that it serves, with their epochs.
    open: Mutex<BTreeMap<u16, u64>>,
    effects: Mutex<VecDeque<Effect>>,
    message_ids: AtomicU64,
}

impl Life {
    pub fn begin(
        world: &Arc<World>,
        machine: usize,
        number: u64,
        again: Option<Arc<Self>>,
    ) -> Arc<Self> {
        let clock: Arc<dyn BootClock> = world.clocks[machine].clone();
        let held = match &again {
            Some(life) => life.held.clone(),
            None => {
                let lease_clock: Arc<dyn BootClock> = if world.has(Defect::LapseForgiven) {
                    Arc::new(Still)
                } else {
                    clock.clone()
                };
                let until_ns = clock.now_ns() + TTL_NS * 9 / 10;
                let incarnation = Uuid::from_u128(u128::from(number));
                Arc::new(Held::new(incarnation, PARTITIONS, lease_clock, until_ns))
            }
        };
        let incarnation = held.incarnation();
        let proof = if world.plan.has_witness {
            Proof::Witness(Arc::new(Registry {
                world: Arc::downgrade(world),
                incarnation,
                machine,
            }))
        } else {
            Proof::Clock
        };
        let rows = Arc::new(SimRows {
            net: world.net.clone(),
            machine,
            held: held.clone(),
        });
        let options = FencedOptions {
            deployment: Deployment {
                partitions: PARTITIONS,
                tail_max: world.plan.tail_max,
                bucket_size: world.plan.bucket_size,
            },
            proof,
            message_id_floor: 0,
        };
        let store = FencedStore::new(rows, held.clone(), clock, options)
            .with_window_ns(WINDOW_NS)
            .with_batch_rows_max(world.plan.batch_rows_max);
        let store = match world.plan.defect {
            Some(Defect::Without(rule)) => store.without(rule),
            _ => store,
        };
        Arc::new(Self {
            world: world.clone(),
            machine,
            process: number,
            held,
            store,
            inbox: Mutex::default(),
            conversations: Mutex::default(),
            open: Mutex::new(again.map(|l| l.open.lock().clone()).unwrap_or_default()),
            effects: Mutex::default(),
            message_ids: AtomicU64::new(number << 32),
        })
    }

    pub fn run(self: &Arc<Self>) {
        let clockwork = &self.world.clockwork;
        let life = self.clone();
        clockwork.spawn(self.process, async move { life.turns().await });
        let life = self.clone();
        clockwork.spawn(self.process, async move { life.publish().await });
        let life = self.clone();
        clockwork.spawn(self.process, async move { life.finish_windows().await });
    }

    // ---- partitions ---------------------------------------------------------------------------

    /// A partition is this life's under an epoch: told a while after it was decided.
    pub fn takes(self: &Arc<Self>, partition: u16, epoch: u64) {
        let life = self.clone();
        self.world.clockwork.spawn(self.process, async move {
            let wait = life.world.within(MS, 20 * MS);
            life.world.clockwork.sleep(wait).await;
            life.held.took(partition, epoch);
            life.world.note(format_args!(
                "life {} takes {partition} under {epoch}",
                life.process
            ));
            if life.world.has(Defect::CatchUpLate) {
                life.open.lock().insert(partition, epoch);
                life.world.clockwork.sleep(300 * MS).await;
            }
            life.catch_up(partition, epoch).await;
            if life.held.holds(partition, epoch) {
                life.open.lock().insert(partition, epoch);
            }
        });
    }

    fn is_open(&self, id: ConversationId) -> bool {
        let partition = partition_of_conversation(id, PARTITIONS);
        let epoch = self.open.lock().get(&partition).copied();
        epoch.is_some_and(|epoch| self.held.holds(partition, epoch))
    }

    /// Publishes what the partition's former owners may not have got to.
    async fn catch_up(&self, partition: u16, epoch: u64) {
        loop {
            let pending = {
                let control = self.world.control.lock();
                let row = &control.partitions[usize::from(partition)];
                if row.epoch != epoch {
                    return;
                }
                row.pending.first().copied()
            };
            let Some(incarnation) = pending else { return };
            if self.catch_up_with(partition, incarnation).await.is_ok() {
                let mut control = self.world.control.lock();
                let row = &mut control.partitions[usize::from(partition)];
                if row.epoch == epoch {
                    row.pending.retain(|other| *other != incarnation);
                }
            } else {
                self.world.clockwork.sleep(50 * MS).await;
            }
            if !self.held.holds(partition, epoch) {
                return;
            }
        }
    }

    async fn catch_up_with(&self, partition: u16, incarnation: Uuid) -> Result<(), StoreError> {
        for (id, first_seq) in self.store.catch_up(incarnation).await? {
            self.world.note(format_args!(
                "life {} catches up with {incarnation} on {id} from {first_seq}",
                self.process
            ));
            if partition_of_conversation(id, PARTITIONS) != partition {
                continue;
            }
            let Some(loaded) = self.store.load(id, u64::MAX).await? else {
                continue;
            };
            for message in loaded.recent.iter().filter(|m| m.seq >= first_seq) {
                self.world
                    .check
                    .lock()
                    .published(self.world.now_ns(), id, message);
            }
            self.store.release(id, loaded.head).await?;
        }
        Ok(())
    }

    /// Stops serving a partition, and lets it go.
    pub async fn let_go(&self, partition: u16) {
        self.open.lock().remove(&partition);
        let wait = self.world.within(0, 200 * MS);
        self.world.clockwork.sleep(wait).await;
        let gone: Vec<(ConversationId, u64)> = {
            let mut all = self.conversations.lock();
            let of = |id: &ConversationId| partition_of_conversation(*id, PARTITIONS) == partition;
            let ids: BTreeSet<ConversationId> = all.keys().filter(|id| of(id)).copied().collect();
            let heads = ids.iter().map(|id| (*id, all[id].committed)).collect();
            all.retain(|id, _| !ids.contains(id));
            heads
        };
        for (id, head) in gone {
            // Whether it is settled there matters to speed alone.
            let _ = self.store.release(id, head).await;
        }
        self.held.let_go(partition);
    }

    // ---- effects ------------------------------------------------------------------------------

    async fn publish(&self) {
        loop {
            let wait = self.world.within(MS, 20 * MS);
            self.world.clockwork.sleep(wait).await;
            let effect = self.effects.lock().pop_front();
            match effect {
                Some(Effect::Publish(id, message)) => {
                    let now = self.world.now_ns();
                    self.world.check.lock().published(now, id, &message);
                }
                Some(Effect::Finished(window)) => {
                    // What is left of it comes with the next one.
                    let done = self.store.effects_done(window).await;
                    self.world.note(format_args!(
                        "life {} is done with windows up to {}: {}",
                        self.process,
                        window.0,
                        done.is_ok()
                    ));
                }
                None => {}
            }
        }
    }

    async fn finish_windows(&self) {
        loop {
            self.world.clockwork.sleep(700 * MS).await;
            if let Some(window) = self.store.finished_window() {
                self.effects.lock().push_back(Effect::Finished(window));
            }
        }
    }

    // ---- requests -----------------------------------------------------------------------------

    /// A request reaches the machine.
    pub fn deliver(self: &Arc<Self>, request: Request) {
        if self.world.clockwork.is_dead(self.process) {
            return;
        }
        if self.world.has(Defect::PendingAnswered)
            && let Wish::Send { client_msg_id } = &request.wish
            && let Some((seq, message_id, _)) = self
                .conversations
                .lock()
                .get(&request.id)
                .and_then(|c| c.window.get(client_msg_id).copied())
        {
            return self.answer(&request.promise, Outcome::Sent { seq, message_id });
        }
        if self.world.has(Defect::RawReader) && matches!(request.wish, Wish::Sync) {
            let life = self.clone();
            return self.world.clockwork.spawn(self.process, async move {
                life.read_raw(&request).await;
            });
        }
        self.inbox.lock().push_back(request);
    }

    fn answer(&self, promise: &Promise<Outcome>, outcome: Outcome) {
        let promise = promise.clone();
        let wait = self.world.within(MS / 10, 5 * MS);
        self.world
            .clockwork
            .after(wait, move || promise.keep(outcome));
    }

    /// Reads the tables, and shows whatever rows are valid in them.
    async fn read_raw(&self, request: &Request) {
        use trunkline_core::store::fenced::rows::Rows as _;
        let id = request.id;
        let rows = SimRows {
            net: self.world.net.clone(),
            machine: self.machine,
            held: self.held.clone(),
        };
        let Ok(Some(found)) = rows.conversation(id).await else {
            return;
        };
        let Ok(all) = rows.messages_up(id, 0, 1, u64::MAX, u32::MAX).await else {
            return;
        };
        let owner = |seq| {
            let fences = found.fences.iter().rev();
            fences.clone().find(|f| f.first_seq <= seq).map(|f| f.epoch)
        };
        let messages: Vec<Message> = all
            .into_iter()
            .filter(|row| owner(row.message.seq) == Some(row.epoch))
            .map(|row| row.message)
            .collect();
        let head = messages.last().map_or(found.settled, |m| m.seq);
        self.answer(&request.promise, Outcome::Synced { head, messages });
    }

    async fn turns(self: Arc<Self>) {
        loop {
            let wait = self.world.within(MS, 15 * MS);
            self.world.clockwork.sleep(wait).await;
            let requests = std::mem::take(&mut *self.inbox.lock());
            let mut turn = Turn::new();
            for request in requests {
                self.take(&mut turn, request).await;
            }
            if !turn.is_empty() {
                self.commit(turn).await;
            }
            if self.world.rng.lock().chance(self.world.plan.evict) {
                self.evict().await;
            }
        }
    }

    async fn evict(&self) {
        let first = self.conversations.lock().pop_first();
        if let Some((id, state)) = first {
            let _ = self.store.release(id, state.committed).await;
        }
    }

    async fn take(self: &Arc<Self>, turn: &mut Turn, request: Request) {
        let id = request.id;
        // Reading from memory relies on what the store says of the page.
        let is_known = self.conversations.lock().contains_key(&id);
        let is_read = is_known && matches!(request.wish, Wish::Sync);
        if !is_read && !self.is_open(id) {
            return self.answer(&request.promise, Outcome::Unavailable);
        }
        if turn
            .get(&id)
            .is_some_and(|part| part.is_made || part.toggled.is_some())
        {
            return self.inbox.lock().push_back(request);
        }
        if !self.conversations.lock().contains_key(&id) {
            if turn.contains_key(&id) {
                // Let go since this turn began.
                return self.answer(&request.promise, Outcome::Unavailable);
            }
            match self.store.load(id, u64::MAX).await {
                Ok(Some(snapshot)) => {
                    let state = Conversation::new(snapshot);
                    self.conversations.lock().insert(id, state);
                }
                Ok(None) => return self.make(turn, request),
                Err(_) => return self.answer(&request.promise, Outcome::Unavailable),
            }
        }
        match request.wish.clone() {
            Wish::Send { client_msg_id } => self.assign(turn, &request, client_msg_id),
            Wish::Toggle => self.toggle(turn, &request),
            Wish::Receipt { seq } => {
                let part = turn.entry(id).or_insert_with(|| Part::new(id));
                let mark = WatermarkRow {
                    delivered_seq: seq,
                    read_seq: 0,
                };
                part.writes.watermarks.push(("ann".to_owned(), mark));
                part.marked.push((seq, request.promise));
            }
            Wish::Sync => self.sync(request),
        }
    }

    /// The first send makes the conversation.
    fn make(&self, turn: &mut Turn, request: Request) {
        let id = request.id;
        if !matches!(request.wish, Wish::Send { .. }) {
            return self.answer(&request.promise, Outcome::Unavailable);
        }
        let member = MemberRow {
            role: 1,
            joined_at: 0,
            intervals: vec![Interval::default()],
        };
        let mut part = Part::new(id);
        part.is_made = true;
        part.writes.row = Some(ConversationRow {
            created_at: self.world.now_ns(),
            ..ConversationRow::default()
        });
        part.writes.members = ["ann", "bob"]
            .map(|u| (u.to_owned(), member.clone()))
            .into();
        turn.insert(id, part);
        self.inbox.lock().push_back(request);
    }

    fn assign(&self, turn: &mut Turn, request: &Request, client_msg_id: String) {
        let id = request.id;
        let mut all = self.conversations.lock();
        let Some(state) = all.get_mut(&id) else {
            return;
        };
        if let Some((seq, message_id, is_committed)) = state.window.get(&client_msg_id).copied() {
            self.world.check.lock().count("duplicates");
            if is_committed {
                self.answer(&request.promise, Outcome::Sent { seq, message_id });
            } else if let Some(part) = turn.get_mut(&id) {
                part.senders
                    .push((seq, message_id, request.promise.clone()));
            }
            return;
        }
        state.assigned += 1;
        let seq = state.assigned;
        let message_id = self.message_ids.fetch_add(1, Ordering::Relaxed);
        state
            .window
            .insert(client_msg_id.clone(), (seq, message_id, false));
        let message = Message {
            conversation_id: id.to_string(),
            message_id,
            seq,
            sender_id: "ann".to_owned(),
            content: client_msg_id.clone(),
            client_msg_id,
            ts: self.world.now_ns(),
            ..Message::default()
        };
        let part = turn.entry(id).or_insert_with(|| Part::new(id));
        part.writes.messages.push(Arc::new(message));
        part.senders
            .push((seq, message_id, request.promise.clone()));
    }

    fn toggle(&self, turn: &mut Turn, request: &Request) {
        let id = request.id;
        let all = self.conversations.lock();
        let Some(state) = all.get(&id) else { return };
        let mut row = state.row.clone();
        row.version += 1;
        let mut bob = state.bob.clone();
        bob.joined_at = row.version;
        if state.is_bob_in() {
            if let Some(last) = bob.intervals.last_mut() {
                last.until_seq = Some(state.assigned);
            }
        } else {
            bob.intervals = vec![Interval {
                after_seq: state.assigned,
                until_seq: None,
            }];
        }
        let part = turn.entry(id).or_insert_with(|| Part::new(id));
        part.writes.row = Some(row);
        part.writes.members = vec![("bob".to_owned(), bob.clone())];
        part.toggled = Some((bob, request.promise.clone()));
    }

    fn sync(self: &Arc<Self>, request: Request) {
        let all = self.conversations.lock();
        let Some(head) = all.get(&request.id).map(|state| state.committed) else {
            return;
        };
        drop(all);
        let life = self.clone();
        self.world.clockwork.spawn(self.process, async move {
            let order = if head.is_multiple_of(2) {
                Order::NewestFirst
            } else {
                Order::OldestFirst
            };
            let range = ReadRange {
                after: head.saturating_sub(9),
                before: head + 1,
                limit: 7,
                order,
            };
            let outcome = match life.store.read(request.id, range).await {
                Ok(messages) => Outcome::Synced { head, messages },
                Err(_) => Outcome::Unavailable,
            };
            life.answer(&request.promise, outcome);
        });
    }

    async fn commit(&self, mut turn: Turn) {
        let conversations = turn.values().map(|part| part.writes.clone()).collect();
        let batch = WriteBatch { conversations };
        let mut lost = Vec::new();
        loop {
            match self.store.commit(&batch).await {
                Ok(()) => break,
                Err(StoreError::Fenced(ids)) => {
                    self.world
                        .note(format_args!("life {} has lost {ids:?}", self.process));
                    self.world.check.lock().count("fenced_commits");
                    lost = ids;
                    break;
                }
                Err(StoreError::Unavailable(_)) => {
                    self.world.check.lock().count("repeated_commits");
                    self.world.clockwork.sleep(50 * MS).await;
                }
                Err(error) => {
                    let now = self.world.now_ns();
                    return self.world.check.lock().violated(now, error.to_string());
                }
            }
        }
        for id in lost {
            self.conversations.lock().remove(&id);
            if let Some(part) = turn.remove(&id) {
                self.refuse(part);
            }
        }
        for part in turn.into_values() {
            self.committed(part).await;
        }
    }

    fn refuse(&self, part: Part) {
        let senders = part.senders.into_iter().map(|(_, _, promise)| promise);
        let toggled = part.toggled.into_iter().map(|(_, promise)| promise);
        let marked = part.marked.into_iter().map(|(_, promise)| promise);
        for promise in senders.chain(toggled).chain(marked) {
            self.answer(&promise, Outcome::Unavailable);
        }
    }

    async fn committed(&self, part: Part) {
        let id = part.writes.id;
        let now = self.world.now_ns();
        if part.is_made {
            let made = Conversation::new(Snapshot {
                row: part.writes.row.unwrap_or_default(),
                members: part.writes.members,
                watermarks: Vec::new(),
                head: 0,
                recent: Vec::new(),
            });
            self.conversations.lock().insert(id, made);
            return;
        }
        for message in &part.writes.messages {
            self.world.check.lock().shown(now, "pushed", id, message);
            let mut effects = self.effects.lock();
            effects.push_back(Effect::Publish(id, message.clone()));
        }
        let dropped = part.toggled.is_some() && self.world.has(Defect::WatermarkDropped);
        if let Some(state) = self.conversations.lock().get_mut(&id) {
            for message in &part.writes.messages {
                state.committed = message.seq;
                if let Some(known) = state.window.get_mut(&message.client_msg_id) {
                    known.2 = true;
                }
            }
            if let Some((bob, _)) = &part.toggled {
                state.bob = bob.clone();
                state.row = part.writes.row.clone().unwrap_or_default();
            }
        }
        for (seq, message_id, promise) in part.senders {
            self.answer(&promise, Outcome::Sent { seq, message_id });
        }
        if let Some((bob, promise)) = part.toggled {
            let change = Changed {
                version: bob.joined_at,
                until: bob.intervals.last().and_then(|i| i.until_seq),
            };
            self.answer(&promise, Outcome::Changed(change));
        }
        for (seq, promise) in part.marked {
            self.answer(&promise, Outcome::Marked { seq });
        }
        if dropped {
            let mutation = Mutation::DropWatermark(id, "ann".to_owned());
            let _ = self.world.net.write(self.machine, mutation).await;
        }
    }

    // ---- the end ------------------------------------------------------------------------------

    /// Loads everything, and says up to where it goes.
    pub async fn take_everything(&self, ids: &[ConversationId]) -> BTreeMap<ConversationId, u64> {
        let mut heads = BTreeMap::new();
        for id in ids {
            loop {
                if self.is_open(*id) {
                    match self.store.load(*id, u64::MAX).await {
                        Ok(loaded) => {
                            heads.extend(loaded.map(|snapshot| (*id, snapshot.head)));
                            break;
                        }
                        Err(_) => self.world.clockwork.sleep(50 * MS).await,
                    }
                } else {
                    self.world.clockwork.sleep(50 * MS).await;
                }
            }
        }
        heads
    }
}
