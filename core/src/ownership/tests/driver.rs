//! The driver over control tables in memory, on the kernel's clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::ownership::clock::KernelClock;
use crate::ownership::control::{Control, CoreRow, Deployment, Life, PartitionRow};
use crate::ownership::driver::{Ownership, OwnershipHandle};
use crate::ownership::events::{OwnershipEvent, Settled};
use crate::ownership::held::Held;
use crate::ownership::memory::MemoryControl;
use crate::ownership::settings::Settings;
use crate::store::StoreError;
use crate::store::fenced::rows::Cas;

const PARTITIONS: u16 = 64;
const PATIENCE: Duration = Duration::from_secs(30);

fn settings() -> Settings {
    Settings {
        ttl_ms: 600,
        ..Settings::new(PARTITIONS)
    }
}

/// What a runtime would know.
#[derive(Default)]
struct Seen {
    held: Option<Arc<Held>>,
    serves: BTreeMap<u16, u64>,
    incarnations: Vec<Uuid>,
    lapses: u32,
    caught_up: Vec<(u16, Uuid)>,
    /// Partitions that were still held in `Held` when they were to be released.
    held_at_release: u32,
    released: u32,
}

/// A core whose engine settles at once.
struct Core {
    ownership: Option<Ownership>,
    handle: OwnershipHandle,
    seen: Arc<Mutex<Seen>>,
    follower: JoinHandle<()>,
}

impl Core {
    fn start(n: u8, control: &Arc<dyn Control>) -> Self {
        let (ownership, mut events) = Ownership::start(
            settings(),
            format!("http://10.0.0.{n}:7420"),
            Arc::clone(control),
            Arc::new(KernelClock),
        );
        let seen = Arc::new(Mutex::new(Seen::default()));
        let follows = Arc::clone(&seen);
        let follower = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                follows.lock().take(event);
            }
        });
        Self {
            handle: ownership.handle(),
            ownership: Some(ownership),
            seen,
            follower,
        }
    }

    fn serves(&self) -> usize {
        let seen = self.seen.lock();
        let held = seen.held.as_ref();
        let all = held.map(|held| held.all().into_iter().collect::<BTreeMap<_, _>>());
        // `Held` may be ahead of the events.
        match all {
            Some(all) if all == seen.serves => all.len(),
            _ => usize::MAX,
        }
    }

    async fn drain(&mut self) {
        if let Some(ownership) = self.ownership.take() {
            ownership.drain().await;
        }
    }
}

impl Seen {
    fn take(&mut self, event: OwnershipEvent) {
        match event {
            OwnershipEvent::Entered { held, .. } => {
                self.incarnations.push(held.incarnation());
                self.held = Some(held);
                self.serves.clear();
            }
            OwnershipEvent::Gained { partition, epoch } => {
                self.serves.insert(partition, epoch);
            }
            OwnershipEvent::CatchUp {
                partition,
                incarnation,
                done,
                ..
            } => {
                self.caught_up.push((partition, incarnation));
                let _ = done.send(());
            }
            OwnershipEvent::Release {
                partition,
                epoch,
                settled,
            } => {
                let held = self.held.as_ref().expect("entered");
                self.held_at_release += u32::from(held.holds(partition, epoch));
                self.released += 1;
                self.serves.remove(&partition);
                let _ = settled.send(Settled::Entirely);
            }
            OwnershipEvent::Lost { partition, .. } => {
                self.serves.remove(&partition);
            }
            OwnershipEvent::Lapsed => {
                self.lapses += 1;
                self.serves.clear();
            }
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cores_share_the_partitions_and_pass_them_on_when_they_stop() {
    let memory = Arc::new(MemoryControl::default());
    let control: Arc<dyn Control> = memory.clone();
    let mut first = Core::start(1, &control);
    until("the first has all", || first.serves() == 64).await;
    let mut second = Core::start(2, &control);
    until("they share", || {
        let (a, b) = (first.serves(), second.serves());
        a != usize::MAX && b != usize::MAX && a + b == 64 && (16..48).contains(&b)
    })
    .await;
    // Everybody's map comes to say what is.
    let rows = memory.tables().partitions;
    for core in [&first, &second] {
        let mut map = core.handle.map();
        let said = timeout(
            PATIENCE,
            map.wait_for(|map| {
                (0..PARTITIONS).all(|p| {
                    let owner = map.owner(p).map(|(core, epoch)| (core.incarnation, epoch));
                    owner == rows[&p].owner.map(|owner| (owner, rows[&p].epoch))
                })
            }),
        );
        said.await.expect("in time").expect("the core runs");
    }
    first.drain().await;
    first.follower.await.expect("the events ended");
    {
        let seen = first.seen.lock();
        assert!(!seen.held.as_ref().expect("entered").is_valid());
        assert_eq!(seen.released, 64);
        assert_eq!(
            seen.held_at_release, seen.released,
            "let go before the engine settled"
        );
    }
    until("the second has all", || second.serves() == 64).await;
    let tables = memory.tables();
    let old = first.seen.lock().incarnations[0];
    assert_eq!(tables.cores[&old].life, Life::Dead);
    for row in tables.partitions.values() {
        assert!(row.pending.is_empty(), "settled entirely, but {row:?}");
        assert!((2..=3).contains(&row.epoch), "{row:?}");
    }
    let figures = first.handle.stats().figures();
    assert_eq!(
        (figures.hand_overs, figures.lapses, figures.held),
        (64, 0, 0)
    );
    second.drain().await;
}

/// Control tables that one core cannot reach at times.
struct Unreachable {
    tables: Arc<MemoryControl>,
    cut: Arc<AtomicBool>,
}

impl Unreachable {
    async fn reach(&self) -> Result<&MemoryControl, StoreError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("cut".into()));
        }
        Ok(&self.tables)
    }
}

#[async_trait]
impl Control for Unreachable {
    async fn deployment(&self, wanted: Deployment) -> Result<Deployment, StoreError> {
        self.reach().await?.deployment(wanted).await
    }
    async fn cores(&self) -> Result<Vec<CoreRow>, StoreError> {
        self.reach().await?.cores().await
    }
    async fn core(&self, incarnation: Uuid) -> Result<Option<CoreRow>, StoreError> {
        self.reach().await?.core(incarnation).await
    }
    async fn core_at_quorum(&self, incarnation: Uuid) -> Result<Option<CoreRow>, StoreError> {
        self.reach().await?.core(incarnation).await
    }
    async fn enter(&self, core: &CoreRow) -> Result<Cas, StoreError> {
        self.reach().await?.enter(core).await
    }
    async fn renew(
        &self,
        incarnation: Uuid,
        from: u64,
        to: u64,
        floor: u64,
    ) -> Result<Cas, StoreError> {
        self.reach()
            .await?
            .renew(incarnation, from, to, floor)
            .await
    }
    async fn declare_dead(&self, incarnation: Uuid, counter: u64) -> Result<Cas, StoreError> {
        self.reach().await?.declare_dead(incarnation, counter).await
    }
    async fn forget(&self, incarnation: Uuid) -> Result<Cas, StoreError> {
        self.reach().await?.forget(incarnation).await
    }
    async fn worker(&self, worker_id: u16) -> Result<Option<Uuid>, StoreError> {
        self.reach().await?.worker(worker_id).await
    }
    async fn take_worker(
        &self,
        worker_id: u16,
        expected: Option<Uuid>,
        incarnation: Uuid,
    ) -> Result<Cas, StoreError> {
        let tables = self.reach().await?;
        tables.take_worker(worker_id, expected, incarnation).await
    }
    async fn partitions(&self) -> Result<Vec<PartitionRow>, StoreError> {
        self.reach().await?.partitions().await
    }
    async fn partition(&self, partition: u16) -> Result<Option<PartitionRow>, StoreError> {
        self.reach().await?.partition(partition).await
    }
    async fn change_partition(
        &self,
        expected: Option<(Option<Uuid>, u64)>,
        row: &PartitionRow,
    ) -> Result<Cas, StoreError> {
        self.reach().await?.change_partition(expected, row).await
    }
    async fn caught_up(
        &self,
        partition: u16,
        owner: Uuid,
        epoch: u64,
        incarnation: Uuid,
    ) -> Result<Cas, StoreError> {
        let tables = self.reach().await?;
        tables.caught_up(partition, owner, epoch, incarnation).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_is_cut_off_lapses_is_taken_over_and_comes_back_as_another() {
    let memory = Arc::new(MemoryControl::default());
    let cut = Arc::new(AtomicBool::new(false));
    let through: Arc<dyn Control> = Arc::new(Unreachable {
        tables: Arc::clone(&memory),
        cut: Arc::clone(&cut),
    });
    let mut first = Core::start(1, &through);
    until("the first has all", || first.serves() == 64).await;
    let control: Arc<dyn Control> = memory.clone();
    let mut second = Core::start(2, &control);
    until("the second has entered", || second.serves() == 0).await;
    cut.store(true, Ordering::SeqCst);
    until("the first lapses", || first.seen.lock().lapses == 1).await;
    assert_eq!(first.serves(), 0);
    until("the second has all", || second.serves() == 64).await;
    let old = first.seen.lock().incarnations[0];
    until("all journals are read", || {
        let tables = memory.tables();
        tables.partitions.values().all(|row| row.pending.is_empty())
    })
    .await;
    let caught_up = second.seen.lock().caught_up.clone();
    assert!(caught_up.iter().filter(|(_, core)| *core == old).count() > 32);
    cut.store(false, Ordering::SeqCst);
    until("the first is back and has its share", || {
        first.serves() != usize::MAX && first.serves() > 16
    })
    .await;
    let incarnations = first.seen.lock().incarnations.clone();
    assert_eq!(incarnations.len(), 2);
    assert_ne!(incarnations[0], incarnations[1]);
    assert_eq!(first.handle.stats().figures().lapses, 1);
    assert!(second.handle.stats().figures().take_overs > 32);
    first.drain().await;
    second.drain().await;
}
