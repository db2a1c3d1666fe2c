//! The statements that ownership is made of: leases of cores, and who has which partition. Cassandra
//! implements them, and so do the simulator's replicas.
//!
//! Invariants, of every implementation: conditional writes are linearizable for each row, and are
//! never repeated on the caller's behalf. An error of one says that its outcome is unknown: read the
//! row again with [`Control::core`] or [`Control::partition`], which decide what was under way.

use async_trait::async_trait;
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::fenced::rows::Cas;

/// What a deployment decides once, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Another number would hand conversations to partitions of lower epochs.
    pub partitions: u16,
    /// How many rows an owner may have written above the committed head of a conversation.
    pub tail_max: u32,
    /// Messages in a bucket.
    pub bucket_size: u64,
}

/// The life of a core process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Alive,
    /// For good: no renewal can succeed any more.
    Dead,
}

/// A core process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreRow {
    /// New for each process start, and after each lapse.
    pub incarnation: Uuid,
    /// Raised with each renewal.
    pub counter: u64,
    pub ttl_ms: u64,
    pub life: Life,
    /// The worker of its message ids; two living cores never have the same (see
    /// [`Control::take_worker`]).
    pub worker_id: u16,
    /// Message ids that this worker may have given lie below this time, ms since the Unix epoch.
    pub id_floor_ms: u64,
    /// Where edges and other cores reach it: `http://host:port` of its gRPC address.
    pub address: String,
}

/// Who has a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionRow {
    pub partition: u16,
    /// `None`: nobody has had it yet, or nobody wants it.
    pub owner: Option<Uuid>,
    pub epoch: u64,
    /// Incarnations whose journals are to be caught up with.
    pub pending: Vec<Uuid>,
}

/// See the module.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// What was decided; `wanted` is decided if nothing was.
    async fn deployment(&self, wanted: Deployment) -> Result<Deployment, StoreError>;

    /// All cores, at quorum: may be older than a conditional write under way.
    async fn cores(&self) -> Result<Vec<CoreRow>, StoreError>;

    /// One core, decided (SERIAL).
    async fn core(&self, incarnation: Uuid) -> Result<Option<CoreRow>, StoreError>;

    /// One core at quorum, without deciding anything: the check of `--fence verify`.
    async fn core_at_quorum(&self, incarnation: Uuid) -> Result<Option<CoreRow>, StoreError>;

    /// Enters a core that does not exist.
    async fn enter(&self, core: &CoreRow) -> Result<Cas, StoreError>;

    /// `counter` from → to, with a new floor, if it is `from` and the core is alive.
    async fn renew(
        &self,
        incarnation: Uuid,
        from: u64,
        to: u64,
        id_floor_ms: u64,
    ) -> Result<Cas, StoreError>;

    /// Declares a core dead if its counter is still this one.
    async fn declare_dead(&self, incarnation: Uuid, counter: u64) -> Result<Cas, StoreError>;

    /// Deletes the row of a core if it is dead. The caller has seen that no partition and no worker
    /// id names it, so that the rows do not add up over the years.
    async fn forget(&self, incarnation: Uuid) -> Result<Cas, StoreError>;

    /// Who has a worker id, or had it last; decided (SERIAL).
    async fn worker(&self, worker_id: u16) -> Result<Option<Uuid>, StoreError>;

    /// Takes a worker id over from `expected`; `None`: one that nobody ever had. The caller has seen
    /// that `expected` is dead, and starts above its row's floor.
    async fn take_worker(
        &self,
        worker_id: u16,
        expected: Option<Uuid>,
        incarnation: Uuid,
    ) -> Result<Cas, StoreError>;

    /// All partitions that somebody ever had, at quorum.
    async fn partitions(&self) -> Result<Vec<PartitionRow>, StoreError>;

    /// One partition, decided (SERIAL).
    async fn partition(&self, partition: u16) -> Result<Option<PartitionRow>, StoreError>;

    /// Writes a partition if owner and epoch are `expected`; `None`: if it does not exist.
    async fn change_partition(
        &self,
        expected: Option<(Option<Uuid>, u64)>,
        row: &PartitionRow,
    ) -> Result<Cas, StoreError>;

    /// Takes an incarnation off `pending`, if owner and epoch are still these.
    async fn caught_up(
        &self,
        partition: u16,
        owner: Uuid,
        epoch: u64,
        incarnation: Uuid,
    ) -> Result<Cas, StoreError>;
}
