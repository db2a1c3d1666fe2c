//! The contract over tables in memory, and what is particular to this store.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use trunkline_proto::store::{ConversationRow, Interval, MemberRow, WatermarkRow};
use uuid::Uuid;

use super::memory::MemoryRows;
use super::proof::Witness;
use super::rows::{Fence, MessageRow};
use super::*;
use crate::store::contract::Factory;

struct Clock(AtomicU64);

impl BootClock for Clock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Cores that follow one another over the same tables.
struct World {
    rows: Arc<MemoryRows>,
    clock: Arc<Clock>,
    deployment: Deployment,
    cores: AtomicU64,
}

/// One of them.
#[derive(Clone)]
struct Core {
    held: Arc<Held>,
    store: Arc<FencedStore<MemoryRows>>,
}

impl World {
    fn new(tail_max: u32, bucket_size: u64) -> Self {
        Self {
            rows: Arc::default(),
            clock: Arc::new(Clock(AtomicU64::new(1))),
            deployment: Deployment {
                partitions: 8,
                tail_max,
                bucket_size,
            },
            cores: AtomicU64::new(0),
        }
    }

    /// A core that has all partitions, under an epoch above all before.
    fn core(&self, proof: Proof, message_id_floor: u64) -> Core {
        let epoch = self.cores.fetch_add(1, Ordering::SeqCst) + 1;
        let clock: Arc<dyn BootClock> = self.clock.clone();
        let partitions = self.deployment.partitions;
        let incarnation = Uuid::from_u128(u128::from(epoch));
        let held = Arc::new(Held::new(incarnation, partitions, clock.clone(), u64::MAX));
        for partition in 0..partitions {
            held.took(partition, epoch);
        }
        let options = FencedOptions {
            deployment: self.deployment,
            proof,
            message_id_floor,
        };
        let store = FencedStore::new(self.rows.clone(), held.clone(), clock, options);
        Core {
            held,
            store: Arc::new(store),
        }
    }

    fn next(&self) -> Core {
        self.core(Proof::Clock, 0)
    }

    fn pass(&self, ns: u64) {
        self.clock.0.fetch_add(ns, Ordering::SeqCst);
    }
}

#[async_trait]
impl Factory for World {
    async fn create(&self) -> Arc<dyn MessageStore> {
        self.next().store
    }

    async fn reopen(&self, store: Arc<dyn MessageStore>) -> Arc<dyn MessageStore> {
        let floor = store.message_id_floor().await.expect("readable");
        self.core(Proof::Clock, floor).store
    }
}

mod contract_of_a_large_deployment {
    use super::World;

    crate::store_contract!(World::new(1_024, 10_000));
}

mod contract_with_small_tails_and_buckets {
    use super::World;

    crate::store_contract!(World::new(3, 7));
}

fn id(n: u128) -> ConversationId {
    ConversationId::from_bytes(n.to_be_bytes())
}

fn message(seq: u64, text: &str) -> Arc<Message> {
    Arc::new(Message {
        conversation_id: id(1).to_string(),
        message_id: 1_000 + seq,
        seq,
        sender_id: "ann".to_owned(),
        client_msg_id: format!("{text}-{seq}"),
        content: text.to_owned(),
        ts: 1_700_000_000_000,
        ..Message::default()
    })
}

fn nothing() -> ConversationWrites {
    ConversationWrites {
        id: id(1),
        row: None,
        members: Vec::new(),
        messages: Vec::new(),
        watermarks: Vec::new(),
    }
}

fn messages(seqs: std::ops::RangeInclusive<u64>, text: &str) -> ConversationWrites {
    ConversationWrites {
        messages: seqs.map(|seq| message(seq, text)).collect(),
        ..nothing()
    }
}

fn created() -> ConversationWrites {
    ConversationWrites {
        row: Some(ConversationRow::default()),
        members: vec![("ann".to_owned(), MemberRow::default())],
        ..nothing()
    }
}

impl Core {
    async fn commit(&self, writes: ConversationWrites) -> Result<(), StoreError> {
        let conversations = vec![writes];
        self.store.commit(&WriteBatch { conversations }).await
    }

    async fn load(&self) -> Snapshot {
        let loaded = self.store.load(id(1), 1_000).await.expect("readable");
        loaded.expect("it exists")
    }

    async fn read(&self, after: u64, before: u64, limit: u32, order: Order) -> Vec<u64> {
        let range = ReadRange {
            after,
            before,
            limit,
            order,
        };
        let found = self.store.read(id(1), range).await.expect("readable");
        found.iter().map(|m| m.seq).collect()
    }
}

fn is_fenced(result: Result<(), StoreError>) -> bool {
    matches!(result, Err(StoreError::Fenced(ids)) if ids == [id(1)])
}

/// A row that an owner wrote, and that nobody told it of.
fn stray(world: &World, epoch: u64, seq: u64, text: &str) {
    let row = MessageRow {
        epoch,
        message: (*message(seq, text)).clone(),
    };
    let bucket = seq / world.deployment.bucket_size;
    world.rows.tables.lock().put_message(id(1), bucket, &row);
}

#[tokio::test]
async fn a_new_owner_adopts_the_unbroken_run_and_keeps_the_rest_out() {
    let world = World::new(4, 8);
    let old = world.next();
    old.commit(created()).await.expect("made");
    old.commit(messages(1..=6, "old")).await.expect("committed");
    // Written, never answered; the second lies behind a gap and over a bucket's end.
    stray(&world, 1, 7, "old");
    stray(&world, 1, 9, "old");
    let new = world.next();
    let taken = new.load().await;
    assert_eq!(taken.head, 7);
    assert_eq!(taken.recent.len(), 7);
    new.commit(messages(8..=12, "new"))
        .await
        .expect("committed");
    // Whatever turns up of the old owner from now on does not count.
    stray(&world, 1, 8, "late");
    stray(&world, 1, 13, "late");
    assert_eq!(new.load().await.recent[8].content, "new");
    let third = world.next();
    let taken = third.load().await;
    assert_eq!(taken.head, 12);
    let contents: Vec<&str> = taken.recent.iter().map(|m| &*m.content).collect();
    assert_eq!(contents[..7], ["old"; 7]);
    assert_eq!(contents[7..], ["new"; 5]);
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let all: Vec<u64> = (1..=12).collect();
        assert_eq!(third.read(0, u64::MAX, 100, order).await, all);
    }
    assert_eq!(third.read(5, 11, 3, Order::OldestFirst).await, [6, 7, 8]);
    assert_eq!(third.read(5, 11, 3, Order::NewestFirst).await, [8, 9, 10]);
    let conversation = world.rows.tables.lock().conversations[&id(1)].clone();
    let fence = |epoch, first_seq| Fence { epoch, first_seq };
    assert_eq!(
        conversation.fences,
        [fence(1, 1), fence(2, 8), fence(3, 13)]
    );
}

#[tokio::test]
async fn what_returned_after_the_partition_was_let_go_is_not_committed() {
    let world = World::new(4, 8);
    let core = world.next();
    core.commit(created()).await.expect("made");
    for partition in 0..8 {
        core.held.let_go(partition);
    }
    assert!(is_fenced(core.commit(messages(1..=1, "x")).await));
    assert!(matches!(
        core.store.load(id(1), 1).await,
        Err(StoreError::Fenced(_))
    ));
    assert_eq!(core.store.remembered(), 0);
}

#[tokio::test]
async fn an_owner_that_was_followed_is_refused() {
    let world = World::new(4, 8);
    let old = world.next();
    old.commit(created()).await.expect("made");
    let new = world.next();
    new.load().await;
    // Its lease is still good by its own clock, but what is conditional does not apply.
    let renamed = ConversationWrites {
        row: Some(ConversationRow::default()),
        ..nothing()
    };
    assert!(is_fenced(old.commit(renamed).await));
    assert!(matches!(
        old.store.load(id(1), 1).await,
        Err(StoreError::Fenced(_))
    ));
}

/// Dies on the n-th question.
struct Doomed {
    held: Arc<Held>,
    left: AtomicUsize,
}

#[async_trait]
impl Witness for Doomed {
    async fn is_alive(&self) -> Result<bool, StoreError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.held.lapse();
            return Ok(false);
        }
        Ok(true)
    }
}

#[tokio::test]
async fn a_witness_is_asked_after_the_journal_and_after_the_rows_and_its_no_holds() {
    let world = World::new(4, 8);
    let held = world.next().held;
    let witness = Arc::new(Doomed {
        held,
        left: AtomicUsize::new(4),
    });
    let core = world.core(Proof::Witness(witness.clone()), 0);
    core.commit(created()).await.expect("made");
    core.commit(messages(1..=2, "x")).await.expect("committed");
    assert_eq!(witness.left.load(Ordering::SeqCst), 1);
    assert!(is_fenced(core.commit(messages(3..=3, "x")).await));
}

#[tokio::test]
async fn messages_that_do_not_follow_the_head_are_refused() {
    let world = World::new(4, 8);
    let core = world.next();
    let unloaded = core.commit(messages(1..=1, "x")).await;
    assert!(is_fenced(unloaded), "neither loaded nor made");
    core.commit(created()).await.expect("made");
    core.commit(messages(1..=3, "x")).await.expect("committed");
    core.commit(messages(2..=4, "x"))
        .await
        .expect("partly repeated");
    let gap = core.commit(messages(6..=6, "x")).await;
    assert!(matches!(gap, Err(StoreError::Failed(_))), "{gap:?}");
    // Somebody who knows an older head, as after the partition came back.
    assert!(is_fenced(core.commit(messages(4..=4, "other")).await));
    assert_eq!(core.load().await.head, 4);
}

#[tokio::test]
async fn a_released_conversation_is_settled_and_forgotten() {
    let world = World::new(4, 8);
    let core = world.next();
    core.commit(created()).await.expect("made");
    core.commit(messages(1..=20, "x")).await.expect("committed");
    assert_eq!(core.store.remembered(), 1);
    core.store.release(id(1), 20).await.expect("released");
    assert_eq!(core.store.remembered(), 0);
    assert_eq!(world.rows.tables.lock().conversations[&id(1)].settled, 20);
    let loaded = core.load().await;
    assert_eq!(loaded.head, 20);
    core.commit(messages(21..=21, "x"))
        .await
        .expect("committed");
}

/// Expired messages are neither a gap nor an end.
#[tokio::test]
async fn what_expired_below_the_settled_seq_is_passed_over() {
    let world = World::new(4, 8);
    let core = world.next();
    core.commit(created()).await.expect("made");
    core.commit(messages(1..=40, "x")).await.expect("committed");
    core.store.release(id(1), 40).await.expect("released");
    {
        let mut tables = world.rows.tables.lock();
        for bucket in tables.messages.values_mut() {
            bucket.retain(|(seq, _), _| [5, 6, 30].contains(seq));
        }
    }
    let next = world.next();
    assert_eq!(next.load().await.head, 40);
    let oldest = next.read(0, u64::MAX, 2, Order::OldestFirst).await;
    assert_eq!(oldest, [5, 6]);
    let newest = next.read(0, 31, 2, Order::NewestFirst).await;
    assert_eq!(newest, [6, 30]);
    // Everything, and the head stays.
    world.rows.tables.lock().messages.clear();
    let last = world.next();
    assert_eq!(last.load().await.head, 40);
    last.commit(messages(41..=41, "x"))
        .await
        .expect("committed");
}

#[tokio::test]
async fn a_watermark_does_not_rise_above_the_head() {
    let world = World::new(4, 8);
    let core = world.next();
    core.commit(created()).await.expect("made");
    let mark = WatermarkRow {
        delivered_seq: u64::MAX,
        read_seq: 2,
    };
    let marked = ConversationWrites {
        watermarks: vec![("ann".to_owned(), mark)],
        ..messages(1..=3, "x")
    };
    core.commit(marked).await.expect("committed");
    let clamped = WatermarkRow {
        delivered_seq: 3,
        read_seq: 2,
    };
    assert_eq!(core.load().await.watermarks, [("ann".to_owned(), clamped)]);
}

#[tokio::test]
async fn the_index_of_members_is_repaired_by_the_next_owner() {
    let world = World::new(4, 8);
    let core = world.next();
    let gone = MemberRow {
        intervals: vec![Interval {
            after_seq: 0,
            until_seq: Some(1),
        }],
        ..MemberRow::default()
    };
    let mut made = created();
    made.members.push(("bob".to_owned(), gone));
    core.commit(made).await.expect("made");
    world.rows.tables.lock().index.clear();
    let next = world.next();
    next.load().await;
    for user in ["ann", "bob"] {
        let ids = next.store.conversations_of(user).await.expect("readable");
        assert_eq!(ids, [id(1)], "of {user}");
    }
}

#[tokio::test]
async fn a_journal_names_what_was_written_until_its_effects_are_done() {
    let world = World::new(4, 8);
    let core = world.next();
    let mine = core.held.incarnation();
    core.commit(created()).await.expect("made");
    core.commit(messages(1..=2, "x")).await.expect("committed");
    core.commit(messages(3..=3, "x")).await.expect("committed");
    let heir = world.next();
    let left = || heir.store.catch_up(mine);
    assert_eq!(left().await.expect("readable"), [(id(1), 1)]);
    assert_eq!(core.store.finished_window(), None, "it is not over");
    world.pass(WINDOW_NS);
    core.commit(messages(4..=4, "x")).await.expect("committed");
    assert_eq!(left().await.expect("readable"), [(id(1), 1)]);
    let finished = core.store.finished_window().expect("the first is over");
    core.store.effects_done(finished).await.expect("marked");
    assert_eq!(left().await.expect("readable"), [(id(1), 4)]);
    world.pass(WINDOW_NS);
    let finished = core.store.finished_window().expect("the second is over");
    core.store.effects_done(finished).await.expect("marked");
    assert_eq!(left().await.expect("readable"), []);
}

#[tokio::test]
async fn a_conversation_that_was_let_go_meanwhile_keeps_its_first_entry() {
    let world = World::new(4, 8);
    let core = world.next();
    core.commit(created()).await.expect("made");
    core.commit(messages(1..=2, "x")).await.expect("committed");
    core.store.release(id(1), 2).await.expect("released");
    core.load().await;
    core.commit(messages(3..=3, "x")).await.expect("committed");
    let left = world.next().store.catch_up(core.held.incarnation()).await;
    assert_eq!(left.expect("readable"), [(id(1), 1)]);
}

#[tokio::test]
async fn a_window_in_which_something_was_lost_is_left_to_the_next_owner() {
    let world = World::new(4, 8);
    let core = world.next();
    core.commit(created()).await.expect("made");
    core.commit(messages(1..=2, "x")).await.expect("committed");
    let heir = world.next();
    heir.load().await;
    // Refused as late as can be: its rows are written by then.
    let renamed = ConversationWrites {
        row: Some(ConversationRow::default()),
        ..messages(3..=3, "x")
    };
    assert!(is_fenced(core.commit(renamed).await));
    world.pass(WINDOW_NS);
    let finished = core.store.finished_window().expect("it is over");
    core.store.effects_done(finished).await.expect("marked");
    let left = heir.store.catch_up(core.held.incarnation()).await;
    assert_eq!(left.expect("readable"), [(id(1), 1)]);
}
