//! The control tables in memory: what every implementation of [`Control`] does, without a network.
//! For tests, of this crate and of others (feature `contract`).

use std::collections::BTreeMap;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;

use super::control::{Control, CoreRow, Deployment, Life, PartitionRow};
use super::statement::{Answer, Statement};
use crate::store::StoreError;
use crate::store::fenced::rows::Cas;

/// The rows. [`Tables::apply`] carries out a statement at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub cores: BTreeMap<Uuid, CoreRow>,
    pub workers: BTreeMap<u16, Uuid>,
    pub partitions: BTreeMap<u16, PartitionRow>,
}

impl Tables {
    pub fn apply(&mut self, statement: &Statement) -> Answer {
        match statement {
            Statement::Cores => Answer::Cores(self.cores.values().cloned().collect()),
            Statement::Core(core) => Answer::Core(self.cores.get(core).cloned()),
            Statement::Worker(worker) => Answer::Worker(self.workers.get(worker).copied()),
            Statement::Partitions => {
                Answer::Partitions(self.partitions.values().cloned().collect())
            }
            Statement::Partition(p) => Answer::Partition(self.partitions.get(p).cloned()),
            write => Answer::Cas(if self.write(write).is_some() {
                Cas::Applied
            } else {
                Cas::Refused
            }),
        }
    }

    /// `None`: the condition does not hold.
    fn write(&mut self, statement: &Statement) -> Option<()> {
        match statement {
            Statement::Enter(row) => {
                if self.cores.contains_key(&row.incarnation) {
                    return None;
                }
                self.cores.insert(row.incarnation, row.clone());
            }
            Statement::Renew {
                incarnation,
                from,
                to,
                id_floor_ms,
            } => {
                let row = self.living(*incarnation, *from)?;
                row.counter = *to;
                row.id_floor_ms = *id_floor_ms;
            }
            Statement::DeclareDead {
                incarnation,
                counter,
            } => self.living(*incarnation, *counter)?.life = Life::Dead,
            Statement::Forget(core) => {
                self.cores.get(core).filter(|row| row.life == Life::Dead)?;
                self.cores.remove(core);
            }
            Statement::TakeWorker {
                worker_id,
                expected,
                incarnation,
            } => {
                if self.workers.get(worker_id) != expected.as_ref() {
                    return None;
                }
                self.workers.insert(*worker_id, *incarnation);
            }
            Statement::ChangePartition { expected, row } => {
                let present = self.partitions.get(&row.partition);
                if present.map(|row| (row.owner, row.epoch)) != *expected {
                    return None;
                }
                self.partitions.insert(row.partition, row.clone());
            }
            Statement::CaughtUp {
                partition,
                owner,
                epoch,
                incarnation,
            } => {
                let row = self.partitions.get_mut(partition)?;
                if (row.owner, row.epoch) != (Some(*owner), *epoch) {
                    return None;
                }
                row.pending.retain(|core| core != incarnation);
            }
            Statement::Cores
            | Statement::Core(_)
            | Statement::Worker(_)
            | Statement::Partitions
            | Statement::Partition(_) => {}
        }
        Some(())
    }

    fn living(&mut self, core: Uuid, counter: u64) -> Option<&mut CoreRow> {
        self.cores
            .get_mut(&core)
            .filter(|row| row.counter == counter && row.life == Life::Alive)
    }
}

/// Control tables that never fail and forget everything with the process.
#[derive(Debug, Default)]
pub struct MemoryControl {
    tables: Mutex<Tables>,
    deployment: Mutex<Option<Deployment>>,
}

impl MemoryControl {
    /// A copy of all rows.
    pub fn tables(&self) -> Tables {
        self.tables.lock().clone()
    }

    fn cas(&self, statement: &Statement) -> Cas {
        let applied = self.tables.lock().write(statement).is_some();
        if applied { Cas::Applied } else { Cas::Refused }
    }
}

#[async_trait]
impl Control for MemoryControl {
    async fn deployment(&self, wanted: Deployment) -> Result<Deployment, StoreError> {
        Ok(*self.deployment.lock().get_or_insert(wanted))
    }

    async fn cores(&self) -> Result<Vec<CoreRow>, StoreError> {
        Ok(self.tables.lock().cores.values().cloned().collect())
    }

    async fn core(&self, incarnation: Uuid) -> Result<Option<CoreRow>, StoreError> {
        Ok(self.tables.lock().cores.get(&incarnation).cloned())
    }

    async fn core_at_quorum(&self, incarnation: Uuid) -> Result<Option<CoreRow>, StoreError> {
        self.core(incarnation).await
    }

    async fn enter(&self, core: &CoreRow) -> Result<Cas, StoreError> {
        Ok(self.cas(&Statement::Enter(core.clone())))
    }

    async fn renew(
        &self,
        incarnation: Uuid,
        from: u64,
        to: u64,
        id_floor_ms: u64,
    ) -> Result<Cas, StoreError> {
        Ok(self.cas(&Statement::Renew {
            incarnation,
            from,
            to,
            id_floor_ms,
        }))
    }

    async fn declare_dead(&self, incarnation: Uuid, counter: u64) -> Result<Cas, StoreError> {
        Ok(self.cas(&Statement::DeclareDead {
            incarnation,
            counter,
        }))
    }

    async fn forget(&self, incarnation: Uuid) -> Result<Cas, StoreError> {
        Ok(self.cas(&Statement::Forget(incarnation)))
    }

    async fn worker(&self, worker_id: u16) -> Result<Option<Uuid>, StoreError> {
        Ok(self.tables.lock().workers.get(&worker_id).copied())
    }

    async fn take_worker(
        &self,
        worker_id: u16,
        expected: Option<Uuid>,
        incarnation: Uuid,
    ) -> Result<Cas, StoreError> {
        Ok(self.cas(&Statement::TakeWorker {
            worker_id,
            expected,
            incarnation,
        }))
    }

    async fn partitions(&self) -> Result<Vec<PartitionRow>, StoreError> {
        Ok(self.tables.lock().partitions.values().cloned().collect())
    }

    async fn partition(&self, partition: u16) -> Result<Option<PartitionRow>, StoreError> {
        Ok(self.tables.lock().partitions.get(&partition).cloned())
    }

    async fn change_partition(
        &self,
        expected: Option<(Option<Uuid>, u64)>,
        row: &PartitionRow,
    ) -> Result<Cas, StoreError> {
        let row = row.clone();
        Ok(self.cas(&Statement::ChangePartition { expected, row }))
    }

    async fn caught_up(
        &self,
        partition: u16,
        owner: Uuid,
        epoch: u64,
        incarnation: Uuid,
    ) -> Result<Cas, StoreError> {
        Ok(self.cas(&Statement::CaughtUp {
            partition,
            owner,
            epoch,
            incarnation,
        }))
    }
}
