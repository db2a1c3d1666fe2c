//! The store of the present incarnation, behind one that stays for the life of the process.
//!
//! Invariant: what was asked of an incarnation's store is answered by that store. Without an
//! incarnation nothing is owned, so nothing is asked but by mistake, and that is answered
//! [`StoreError::Unavailable`].

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;

use crate::store::fenced::FencedStore;
use crate::store::fenced::rows::Rows;
use crate::store::{MessageStore, ReadRange, Snapshot, StoreError, WriteBatch};

/// See the module.
pub struct CurrentStore<R>(RwLock<Option<Arc<FencedStore<R>>>>);

impl<R> Default for CurrentStore<R> {
    fn default() -> Self {
        Self(RwLock::new(None))
    }
}

impl<R: Rows> CurrentStore<R> {
    /// The store of an incarnation that has entered, or of none.
    pub(super) fn set(&self, store: Option<Arc<FencedStore<R>>>) {
        *self.0.write() = store;
    }

    /// The present incarnation's.
    pub fn current(&self) -> Option<Arc<FencedStore<R>>> {
        self.0.read().clone()
    }

    fn get(&self) -> Result<Arc<FencedStore<R>>, StoreError> {
        self.current()
            .ok_or_else(|| StoreError::Unavailable("this core has no lease".to_owned()))
    }
}

#[async_trait]
impl<R: Rows> MessageStore for CurrentStore<R> {
    async fn commit(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.get()?.commit(batch).await
    }

    async fn load(
        &self,
        id: ConversationId,
        recent_max: u64,
    ) -> Result<Option<Snapshot>, StoreError> {
        self.get()?.load(id, recent_max).await
    }

    async fn read(&self, id: ConversationId, range: ReadRange) -> Result<Vec<Message>, StoreError> {
        self.get()?.read(id, range).await
    }

    async fn conversations_of(&self, user: &str) -> Result<Vec<ConversationId>, StoreError> {
        self.get()?.conversations_of(user).await
    }

    /// 0 without an incarnation: one that enters brings its own floor.
    async fn message_id_floor(&self) -> Result<u64, StoreError> {
        match self.current() {
            Some(store) => store.message_id_floor().await,
            None => Ok(0),
        }
    }

    async fn release(&self, id: ConversationId, head: u64) -> Result<(), StoreError> {
        self.get()?.release(id, head).await
    }
}
