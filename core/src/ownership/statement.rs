//! What the machine asks of the control tables, as values, so that it needs no I/O.

use uuid::Uuid;

use super::control::{Control, CoreRow, PartitionRow};
use crate::store::StoreError;
use crate::store::fenced::rows::Cas;

/// A call of [`Control`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    Cores,
    Core(Uuid),
    Enter(CoreRow),
    Renew {
        incarnation: Uuid,
        from: u64,
        to: u64,
        id_floor_ms: u64,
    },
    DeclareDead {
        incarnation: Uuid,
        counter: u64,
    },
    Forget(Uuid),
    Worker(u16),
    TakeWorker {
        worker_id: u16,
        expected: Option<Uuid>,
        incarnation: Uuid,
    },
    Partitions,
    Partition(u16),
    ChangePartition {
        expected: Option<(Option<Uuid>, u64)>,
        row: PartitionRow,
    },
    CaughtUp {
        partition: u16,
        owner: Uuid,
        epoch: u64,
        incarnation: Uuid,
    },
}

/// What came of a [`Statement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Cores(Vec<CoreRow>),
    Core(Option<CoreRow>),
    Worker(Option<Uuid>),
    Partitions(Vec<PartitionRow>),
    Partition(Option<PartitionRow>),
    Cas(Cas),
    /// It failed, or took too long: a write may have happened, may happen later, or never.
    Unknown,
}

impl Statement {
    /// Asks it.
    pub(super) async fn ask(&self, control: &dyn Control) -> Result<Answer, StoreError> {
        Ok(match self {
            Self::Cores => Answer::Cores(control.cores().await?),
            Self::Core(incarnation) => Answer::Core(control.core(*incarnation).await?),
            Self::Enter(row) => Answer::Cas(control.enter(row).await?),
            Self::Renew {
                incarnation,
                from,
                to,
                id_floor_ms,
            } => Answer::Cas(
                control
                    .renew(*incarnation, *from, *to, *id_floor_ms)
                    .await?,
            ),
            Self::DeclareDead {
                incarnation,
                counter,
            } => Answer::Cas(control.declare_dead(*incarnation, *counter).await?),
            Self::Forget(incarnation) => Answer::Cas(control.forget(*incarnation).await?),
            Self::Worker(worker_id) => Answer::Worker(control.worker(*worker_id).await?),
            Self::TakeWorker {
                worker_id,
                expected,
                incarnation,
            } => Answer::Cas(
                control
                    .take_worker(*worker_id, *expected, *incarnation)
                    .await?,
            ),
            Self::Partitions => Answer::Partitions(control.partitions().await?),
            Self::Partition(partition) => Answer::Partition(control.partition(*partition).await?),
            Self::ChangePartition { expected, row } => {
                Answer::Cas(control.change_partition(*expected, row).await?)
            }
            Self::CaughtUp {
                partition,
                owner,
                epoch,
                incarnation,
            } => Answer::Cas(
                control
                    .caught_up(*partition, *owner, *epoch, *incarnation)
                    .await?,
            ),
        })
    }
}
