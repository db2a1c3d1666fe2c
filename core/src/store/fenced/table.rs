//! What the store remembers of conversations: those that were loaded or made, and not released.
//!
//! Invariants:
//! 1. Whoever changes a conversation, or takes it up, holds its lock; pages are read without it.
//! 2. A state is of one epoch: once the partition is held under another, it is of no use.
//! 3. What is not taken up is not in the table, but while somebody holds its lock.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use trunkline_proto::ids::ConversationId;

use super::rows::{Conversation, Fence, Window};

/// What a page is read by.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub epoch: u64,
    pub fences: Arc<[Fence]>,
    /// All seqs up to here are committed.
    pub committed: u64,
}

/// What writing needs to know.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub view: View,
    pub revision: u64,
    pub settled: u64,
    pub top_bucket: u64,
    /// The newest window of the journal in which the conversation is entered.
    pub journaled: Option<Window>,
    /// Seqs and message ids that were committed by a commit which then failed elsewhere: they come
    /// again with its repetition. They may have expired by then, so the tables cannot tell.
    pub unended: Vec<(u64, u64)>,
}

impl State {
    pub fn new(found: &Conversation, committed: u64) -> Self {
        Self {
            view: View {
                epoch: found.epoch,
                fences: found.fences.clone().into(),
                committed,
            },
            revision: found.revision,
            settled: found.settled,
            top_bucket: found.top_bucket,
            journaled: None,
            unended: Vec::new(),
        }
    }

    /// Takes over what a conditional write, or a look at its outcome, has found.
    pub fn refresh(&mut self, found: &Conversation) {
        self.revision = found.revision;
        self.settled = found.settled;
        self.top_bucket = found.top_bucket;
    }
}

#[derive(Default)]
struct Entry {
    /// A copy of the state's, for those who do not hold the lock.
    view: Mutex<Option<View>>,
    state: Arc<tokio::sync::Mutex<Option<State>>>,
}

/// The table.
#[derive(Default)]
pub(super) struct Table {
    entries: Mutex<HashMap<ConversationId, Arc<Entry>>>,
}

impl Table {
    /// How many conversations are remembered.
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    pub fn view(&self, id: ConversationId) -> Option<View> {
        let entry = self.entries.lock().get(&id).cloned()?;
        let view = entry.view.lock();
        view.clone()
    }

    /// Waits for the lock of a conversation, whether it is taken up or not.
    pub async fn lock(self: &Arc<Self>, id: ConversationId) -> Locked {
        loop {
            let entry = self.entries.lock().entry(id).or_default().clone();
            let state = Arc::clone(&entry.state).lock_owned().await;
            // Whoever had the lock before may have taken the entry out.
            if self.is_in(id, &entry) {
                return Locked {
                    table: Arc::clone(self),
                    id,
                    entry,
                    state,
                };
            }
        }
    }

    fn is_in(&self, id: ConversationId, entry: &Arc<Entry>) -> bool {
        let entries = self.entries.lock();
        entries.get(&id).is_some_and(|e| Arc::ptr_eq(e, entry))
    }
}

/// A conversation whose lock is held. Dropped with no state in it, it leaves the table.
pub(super) struct Locked {
    table: Arc<Table>,
    pub id: ConversationId,
    entry: Arc<Entry>,
    state: OwnedMutexGuard<Option<State>>,
}

impl Locked {
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    pub fn state_mut(&mut self) -> Option<&mut State> {
        self.state.as_mut()
    }

    /// Sets the state; readers see it at once.
    pub fn set(&mut self, state: State) {
        *self.entry.view.lock() = Some(state.view.clone());
        *self.state = Some(state);
    }

    /// All seqs up to `head` are committed.
    pub fn committed(&mut self, head: u64) {
        if let Some(state) = self.state.as_mut() {
            state.view.committed = state.view.committed.max(head);
            *self.entry.view.lock() = Some(state.view.clone());
        }
    }

    pub fn forget(&mut self) {
        *self.state = None;
        *self.entry.view.lock() = None;
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.state.is_none() {
            let mut entries = self.table.entries.lock();
            if entries
                .get(&self.id)
                .is_some_and(|e| Arc::ptr_eq(e, &self.entry))
            {
                entries.remove(&self.id);
            }
        }
    }
}
