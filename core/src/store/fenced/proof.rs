//! What says that this core was alive after a write had returned: its clock, or, where a machine can
//! be frozen together with its clock, its own row.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use crate::ownership::control::{Control, Life};
use crate::store::StoreError;

/// Says whether this core has been declared dead.
#[async_trait]
pub trait Witness: Send + Sync + 'static {
    /// Whether the core's row, read at quorum by a read that begins now, says that it is alive.
    async fn is_alive(&self) -> Result<bool, StoreError>;
}

/// What a commit is proved by.
#[derive(Clone)]
pub enum Proof {
    /// The lease, by the own clock: costs nothing, and relies on a clock that goes on while the
    /// machine is frozen.
    Clock,
    /// The lease, and a look at the own row once in each commit: relies on no clock.
    Witness(Arc<dyn Witness>),
}

/// Looks at the core's own row.
pub struct OwnRow<C> {
    control: Arc<C>,
    incarnation: Uuid,
}

impl<C: Control> OwnRow<C> {
    pub fn new(control: Arc<C>, incarnation: Uuid) -> Self {
        Self {
            control,
            incarnation,
        }
    }
}

#[async_trait]
impl<C: Control> Witness for OwnRow<C> {
    async fn is_alive(&self) -> Result<bool, StoreError> {
        let row = self.control.core_at_quorum(self.incarnation).await?;
        Ok(row.is_some_and(|row| row.life == Life::Alive))
    }
}
