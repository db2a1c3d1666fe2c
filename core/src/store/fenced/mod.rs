//! A store with one writer at a time, over tables that several cores reach: see
//! `docs/adr/0007-several-cores.md` and `docs/adr/0008-fenced-store.md`.
//!
//! # Layout
//! - [`rows`]: the statements that it is made of
//! - `table`: what is remembered of conversations in use
//! - `first_use`: taking a conversation up under an epoch, with its fence
//! - `write`: what a commit writes of a conversation, in which order
//! - `read`: rows that count, page by page
//! - `journal`: what has to be pushed and published again after a core died
//! - [`proof`]: what says that this core was alive when a write had returned
//! - `memory`: the statements in memory, for tests
//! - [`rules`]: the rules one by one, for a test build to take out
//!
//! # Invariants
//! 1. *Committed* is a message whose row and journal entry returned from a quorum, as did all below
//!    it, and of which the partition was still held when that was asked *after* they returned.
//!    Nothing else leaves: not by [`MessageStore::commit`], a load or a page.
//! 2. What is committed is true for ever: no later owner denies it.
//! 3. A conversation is written to after it was loaded, or made, under the epoch that is held now.
//!    Any disagreement with its writer about what it was is [`StoreError::Fenced`]: load it again.
//!
//! Called by the runtime through [`MessageStore`], and by its ownership side for the journal.

mod first_use;
mod journal;
#[cfg(any(test, feature = "contract"))]
pub mod memory;
pub mod proof;
mod read;
pub mod rows;
pub mod rules;
mod table;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join, try_join};
use futures_util::stream::{self, StreamExt as _};
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;

use self::journal::Journal;
pub use self::journal::WINDOW_NS;
use self::proof::Proof;
use self::rows::{Change, JournalEntry, Rows, Window};
use self::rules::{Rule, Rules};
use self::table::{Table, View};
use self::write::Part;
use crate::ownership::control::Deployment;
use crate::ownership::held::{BootClock, Held};
use crate::ownership::partition_of_conversation;
use crate::store::stats::StoreStats;
use crate::store::{
    ConversationWrites, MessageStore, Order, ReadRange, Snapshot, StoreError, WriteBatch,
};

/// Conversations of a commit that are written side by side.
const CONVERSATIONS_AT_ONCE: usize = 256;

/// Writes of one conversation that are under way side by side.
const WRITES_AT_ONCE: usize = 16;

/// Rows in one batch, and their bytes: Cassandra warns of batches beyond 5 KiB of one partition's
/// rows only in its log, and refuses them beyond 50 KiB.
const BATCH_ROWS_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 32 * 1024;

/// Conditional writes that are begun for one purpose before the caller is told to come again.
const ATTEMPTS_MAX: usize = 8;

/// How a fenced store is set up.
#[derive(Clone)]
pub struct FencedOptions {
    pub deployment: Deployment,
    pub proof: Proof,
    /// Message ids up to here may have been given, by whoever had this worker id before.
    pub message_id_floor: u64,
}

/// See the module.
pub struct FencedStore<R> {
    rows: Arc<R>,
    held: Arc<Held>,
    /// The one that the lease is judged by.
    clock: Arc<dyn BootClock>,
    deployment: Deployment,
    proof: Proof,
    batch_rows_max: usize,
    table: Arc<Table>,
    journal: Journal,
    message_id_floor: AtomicU64,
    stats: Arc<StoreStats>,
    rules: Rules,
}

impl<R: Rows> FencedStore<R> {
    /// A store of one incarnation.
    ///
    /// # Panics
    /// If `held` has other partitions than the deployment, or the deployment has none, no tail or
    /// empty buckets: a mistake of the caller, and one that would cost messages.
    pub fn new(
        rows: Arc<R>,
        held: Arc<Held>,
        clock: Arc<dyn BootClock>,
        options: FencedOptions,
    ) -> Self {
        let deployment = options.deployment;
        assert_eq!(held.partitions(), deployment.partitions, "partitions");
        assert!(
            deployment.partitions > 0 && deployment.tail_max > 0 && deployment.bucket_size > 0,
            "not a deployment: {deployment:?}"
        );
        Self {
            rows,
            held,
            clock,
            deployment,
            proof: options.proof,
            batch_rows_max: BATCH_ROWS_MAX,
            table: Arc::default(),
            journal: Journal::new(WINDOW_NS),
            message_id_floor: AtomicU64::new(options.message_id_floor),
            stats: Arc::default(),
            rules: Rules::default(),
        }
    }

    /// With windows of the journal of another length than [`WINDOW_NS`]: what is published again after
    /// a core died is at most that much older than what it had not published.
    #[must_use]
    pub fn with_window_ns(mut self, window_ns: u64) -> Self {
        self.journal = Journal::new(window_ns);
        self
    }

    /// With fewer or more rows in a batch than is usual.
    #[must_use]
    pub fn with_batch_rows_max(mut self, batch_rows_max: usize) -> Self {
        self.batch_rows_max = batch_rows_max.max(1);
        self
    }

    /// The same without a rule, to see what the rule is there for.
    #[cfg(feature = "defects")]
    #[must_use]
    pub fn without(mut self, rule: Rule) -> Self {
        self.rules.without = Some(rule);
        self
    }

    /// What the store has done since it was made.
    pub fn stats(&self) -> Arc<StoreStats> {
        Arc::clone(&self.stats)
    }

    /// How many conversations it remembers: those that were loaded or made, and not released.
    pub fn remembered(&self) -> usize {
        self.table.len()
    }

    fn partition(&self, id: ConversationId) -> u16 {
        partition_of_conversation(id, self.deployment.partitions)
    }

    /// The epoch under which a conversation's partition is held now.
    fn epoch(&self, id: ConversationId) -> Result<u64, StoreError> {
        let epoch = self.held.epoch(self.partition(id));
        epoch.ok_or_else(|| StoreError::Fenced(vec![id]))
    }

    /// Whether this core was alive when it is asked, by the proof that stands in for the clock.
    async fn is_alive(&self) -> Result<bool, StoreError> {
        match &self.proof {
            Proof::Clock => Ok(true),
            Proof::Witness(witness) => witness.is_alive().await,
        }
    }

    fn holds(&self, part: &Part<'_>) -> bool {
        !self.rules.keeps(Rule::Gate) || self.held.holds(self.partition(part.writes.id), part.epoch)
    }

    /// The same for an answer to a reader, who must not be told an old head by an owner that was
    /// followed, frozen with its clock or not.
    async fn check_read(&self, id: ConversationId, epoch: u64) -> Result<(), StoreError> {
        if !self.rules.keeps(Rule::ReadGate) {
            return Ok(());
        }
        if !(self.is_alive().await? && self.held.holds(self.partition(id), epoch)) {
            return Err(StoreError::Fenced(vec![id]));
        }
        Ok(())
    }

    /// Writes parts side by side. Their order comes back as it was.
    async fn write_all<'a>(&self, parts: Vec<Part<'a>>) -> Vec<Written<'a>> {
        let writes: Vec<BoxFuture<'_, _>> = parts
            .into_iter()
            .map(|mut part| {
                let write = async move {
                    let result = self.write(&mut part).await;
                    Written { part, result }
                };
                write.boxed()
            })
            .collect();
        let written = stream::iter(writes).buffer_unordered(CONVERSATIONS_AT_ONCE);
        written.collect().await
    }

    /// Writes parts whose first message of this window of the journal is among them.
    async fn write_entered<'a>(
        &self,
        mut parts: Vec<Part<'a>>,
        window: Window,
    ) -> Vec<Written<'a>> {
        if parts.is_empty() || !self.rules.keeps(Rule::Journal) {
            return self.write_all(parts).await;
        }
        let entry = |part: &Part<'_>| {
            Some(JournalEntry {
                conversation: part.writes.id,
                first_seq: part.writes.messages.first()?.seq,
            })
        };
        let entries: Vec<JournalEntry> = parts.iter().filter_map(entry).collect();
        for part in &mut parts {
            part.entered = Some(window);
        }
        if !self.rules.keeps(Rule::JournalFirst) {
            let (entered, mut written) =
                join(self.enter(window, &entries), self.write_all(parts)).await;
            if let Err(error) = entered {
                for one in &mut written {
                    one.result = one.result.clone().and(Err(error.clone()));
                }
            }
            return written;
        }
        let entered = match self.enter(window, &entries).await {
            Ok(()) if self.rules.keeps(Rule::JournalGate) => self.is_alive().await,
            other => other.map(|()| true),
        };
        let (mut held, mut written) = (Vec::new(), Vec::new());
        for part in parts {
            let result = match &entered {
                Ok(true) if !self.rules.keeps(Rule::JournalGate) || self.holds(&part) => {
                    held.push(part);
                    continue;
                }
                // Whoever has it now may have read the journal already.
                Ok(_) => Err(StoreError::Fenced(vec![part.writes.id])),
                Err(error) => Err(error.clone()),
            };
            written.push(Written { part, result });
        }
        written.extend(self.write_all(held).await);
        written
    }

    /// Takes the locks of all conversations of a batch that it writes to, and sorts them: those
    /// whose partition is not held, those that go into the journal first, the others.
    async fn take_apart<'a>(&self, batch: &'a WriteBatch, window: Window) -> Apart<'a> {
        let mut wanted: Vec<&ConversationWrites> = batch.conversations.iter().collect();
        wanted.retain(|writes| !is_empty(writes));
        // In one order, so that two who lock several never wait for one another.
        wanted.sort_unstable_by_key(|writes| writes.id);
        let mut apart = Apart::default();
        for writes in wanted {
            let mut locked = self.table.lock(writes.id).await;
            let Ok(epoch) = self.epoch(writes.id) else {
                locked.forget();
                apart.lost.push(writes.id);
                continue;
            };
            let journaled = locked.state().and_then(|state| state.journaled);
            let part = Part {
                locked,
                writes,
                epoch,
                entered: None,
                written: 0,
            };
            if writes.messages.is_empty() || journaled == Some(window) {
                apart.entered.push(part);
            } else {
                apart.to_enter.push(part);
            }
        }
        apart
    }

    async fn commit_batch(&self, batch: &WriteBatch, window: Window) -> Result<(), StoreError> {
        let Apart {
            mut lost,
            to_enter,
            entered,
        } = self.take_apart(batch, window).await;
        let (first, second) = join(
            self.write_all(entered),
            self.write_entered(to_enter, window),
        )
        .await;
        let alive = self.is_alive().await;
        let mut failure = None;
        let mut kept = Vec::new();
        for Written { mut part, result } in first.into_iter().chain(second) {
            let result = match (result, &alive) {
                (Ok(()), Err(error)) => Err(error.clone()),
                (Ok(()), Ok(alive)) if !(*alive && self.holds(&part)) => {
                    Err(StoreError::Fenced(vec![part.writes.id]))
                }
                (result, _) => result,
            };
            match result {
                Ok(()) => {
                    part.locked.committed(part.written);
                    kept.push(part);
                }
                Err(StoreError::Fenced(_)) => {
                    part.locked.forget();
                    lost.push(part.writes.id);
                }
                Err(error) => {
                    failure = Some(worse(failure, error));
                    kept.push(part);
                }
            }
        }
        for part in &mut kept {
            part.ended(failure.is_none());
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        if lost.is_empty() {
            return Ok(());
        }
        lost.sort_unstable();
        Err(StoreError::Fenced(lost))
    }

    fn count(&self, batch: &WriteBatch, result: &Result<(), StoreError>, took: Duration) {
        if !matches!(result, Ok(()) | Err(StoreError::Fenced(_))) {
            self.stats.commit_failed();
            return;
        }
        let messages = || batch.conversations.iter().flat_map(|w| &w.messages);
        let bytes: usize = messages().map(|m| m.content.len()).sum();
        let count = messages().count();
        self.stats.committed(count as u64, bytes as u64, took);
        if let Some(highest) = messages().map(|m| m.message_id).max() {
            self.message_id_floor.fetch_max(highest, Ordering::SeqCst);
        }
    }

    async fn load_snapshot(
        &self,
        id: ConversationId,
        recent_max: u64,
    ) -> Result<Option<Snapshot>, StoreError> {
        let mut locked = self.table.lock(id).await;
        let epoch = self.epoch(id).inspect_err(|_| locked.forget())?;
        let known = locked.state().map(|state| state.view.clone());
        let (view, found) = match known.filter(|view| view.epoch == epoch) {
            Some(view) => {
                let found = self.rows.conversation(id).await?.unwrap_or_default();
                if found.epoch != epoch {
                    locked.forget();
                    return Err(StoreError::Fenced(vec![id]));
                }
                (view, found)
            }
            None => {
                locked.forget();
                let Some((state, found)) = self.take_up(id, epoch).await? else {
                    self.check_read(id, epoch).await?;
                    return Ok(None);
                };
                let view = state.view.clone();
                locked.set(state);
                (view, found)
            }
        };
        let newest = ReadRange {
            after: 0,
            before: u64::MAX,
            limit: u32::try_from(recent_max).unwrap_or(u32::MAX),
            order: Order::NewestFirst,
        };
        let (mut watermarks, recent) = try_join(
            self.rows.watermarks(id),
            self.committed_messages(id, &view, newest),
        )
        .await?;
        watermarks.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.check_read(id, epoch).await?;
        self.stats.read(recent.len());
        Ok(Some(Snapshot {
            row: found.row,
            members: found.members,
            watermarks,
            head: view.committed,
            recent,
        }))
    }

    /// What a page of a conversation is read by. One that nobody has loaded is taken up for this
    /// page alone.
    async fn view(&self, id: ConversationId) -> Result<Option<View>, StoreError> {
        let known = self.table.view(id);
        if known.is_some() && !self.rules.keeps(Rule::ReadGate) {
            return Ok(known);
        }
        let epoch = self.epoch(id)?;
        if let Some(view) = known.filter(|view| view.epoch == epoch) {
            return Ok(Some(view));
        }
        let locked = self.table.lock(id).await;
        if let Some(state) = locked.state().filter(|s| s.view.epoch == epoch) {
            return Ok(Some(state.view.clone()));
        }
        let taken = self.take_up(id, epoch).await?;
        Ok(taken.map(|(state, _)| state.view))
    }
}

/// A part whose writes have returned.
struct Written<'a> {
    part: Part<'a>,
    result: Result<(), StoreError>,
}

/// A batch, sorted by what is to be done first.
#[derive(Default)]
struct Apart<'a> {
    lost: Vec<ConversationId>,
    to_enter: Vec<Part<'a>>,
    entered: Vec<Part<'a>>,
}

fn is_empty(writes: &ConversationWrites) -> bool {
    writes.row.is_none()
        && writes.members.is_empty()
        && writes.messages.is_empty()
        && writes.watermarks.is_empty()
}

/// What a repetition mends gives way to what it does not.
fn worse(known: Option<StoreError>, error: StoreError) -> StoreError {
    match (known, error) {
        (Some(known), StoreError::Unavailable(_)) => known,
        (_, error) => error,
    }
}

#[async_trait]
impl<R: Rows> MessageStore for FencedStore<R> {
    async fn commit(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let begun_ns = self.clock.now_ns();
        let window = self.journal.begin(begun_ns);
        let result = self.commit_batch(batch, window).await;
        match &result {
            Ok(()) => self.journal.end(false),
            Err(StoreError::Fenced(_)) => self.journal.end(self.rules.keeps(Rule::LostWindowStays)),
            Err(_) => {}
        }
        let took = Duration::from_nanos(self.clock.now_ns().saturating_sub(begun_ns));
        self.count(batch, &result, took);
        result
    }

    async fn load(
        &self,
        id: ConversationId,
        recent_max: u64,
    ) -> Result<Option<Snapshot>, StoreError> {
        self.load_snapshot(id, recent_max).await
    }

    async fn read(&self, id: ConversationId, range: ReadRange) -> Result<Vec<Message>, StoreError> {
        let Some(view) = self.view(id).await? else {
            return Ok(Vec::new());
        };
        let messages = self.committed_messages(id, &view, range).await?;
        self.check_read(id, view.epoch).await?;
        self.stats.read(messages.len());
        Ok(messages)
    }

    async fn conversations_of(&self, user: &str) -> Result<Vec<ConversationId>, StoreError> {
        let ids = self.rows.index(user).await?;
        self.stats.read(0);
        Ok(ids)
    }

    async fn message_id_floor(&self) -> Result<u64, StoreError> {
        Ok(self.message_id_floor.load(Ordering::SeqCst))
    }

    async fn release(&self, id: ConversationId, head: u64) -> Result<(), StoreError> {
        let mut locked = self.table.lock(id).await;
        let Some(state) = locked.state() else {
            return Ok(());
        };
        let settled = head.min(state.view.committed);
        let is_worth_it =
            settled > state.settled && self.held.holds(self.partition(id), state.view.epoch);
        let result = if is_worth_it {
            let change = Change {
                settled: Some(settled),
                ..Change::default()
            };
            self.change_if_owner(&mut locked, &change).await
        } else {
            Ok(())
        };
        locked.forget();
        result
    }
}
