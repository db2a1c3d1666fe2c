//! What is done when ownership or the engine says something.
//!
//! Bounds: a release waits for the store at most [`SETTLE_MAX`]; so many conversations are settled
//! side by side ([`SETTLED_AT_ONCE`]); journals are read once for all partitions that ask for the
//! same incarnation within [`CATCH_UP_GATHER`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use trunkline_proto::ids::{ConversationId, Snowflake};
use uuid::Uuid;

use super::peers::Peers;
use super::store::CurrentStore;
use super::{ClusterConfig, Events, Lease, Prepared};
use crate::engine::{Input, Token};
use crate::ownership::control::Control;
use crate::ownership::events::{MessageIds, OwnershipEvent, Settled};
use crate::ownership::held::{BootClock, Held};
use crate::ownership::partition_of_conversation;
use crate::runtime::CoreHandle;
use crate::runtime::cluster::{ClusterJob, Incarnation};
use crate::store::MessageStore as _;
use crate::store::fenced::proof::{OwnRow, Proof};
use crate::store::fenced::rows::{Rows, Window};
use crate::store::fenced::{FencedOptions, FencedStore, WINDOW_NS};

/// How long a partition that is given back waits for what is stored of its conversations.
const SETTLE_MAX: Duration = Duration::from_millis(200);
/// Conversations settled side by side.
const SETTLED_AT_ONCE: usize = 64;
/// How long catch-ups of one incarnation are gathered.
const CATCH_UP_GATHER: Duration = Duration::from_millis(50);
/// How often windows of the journal are looked at that may be marked done.
const JOURNAL_EVERY: Duration = Duration::from_secs(5);
/// Windows after which what was pushed is taken for arrived: an edge whose link broke is told of
/// everything in the last minute.
const JOURNAL_KEPT: u64 = 60_000_000_000 / WINDOW_NS + 1;

/// Partitions that ask for the journal of one incarnation.
type Waiting = Vec<(u16, oneshot::Sender<()>)>;

/// See the module.
pub(super) struct Follower<R, C> {
    config: ClusterConfig,
    rows: Arc<R>,
    control: Arc<C>,
    clock: Arc<dyn BootClock>,
    store: Arc<CurrentStore<R>>,
    lease: Lease,
    jobs: mpsc::UnboundedReceiver<ClusterJob>,
    core: CoreHandle,
    peers: Arc<Peers>,
    releases: HashMap<u16, oneshot::Sender<Settled>>,
    waiting: HashMap<Uuid, Waiting>,
    /// Incarnations whose journal is to be read, and for whom.
    due: (mpsc::UnboundedSender<Uuid>, mpsc::UnboundedReceiver<Uuid>),
    catch_ups: HashMap<Token, Waiting>,
    read: Reads,
    last_token: u64,
}

/// Journals that were read: for whom, and what is in them.
type Reads = (
    mpsc::UnboundedSender<(Waiting, Vec<ConversationId>)>,
    mpsc::UnboundedReceiver<(Waiting, Vec<ConversationId>)>,
);

impl<R: Rows, C: Control> Follower<R, C> {
    pub fn new(prepared: Prepared<R, C>, core: CoreHandle, peers: Arc<Peers>) -> Self {
        Self {
            config: prepared.config,
            rows: prepared.rows,
            control: prepared.control,
            clock: prepared.clock,
            store: prepared.store,
            lease: prepared.lease,
            jobs: prepared.jobs_rx,
            core,
            peers,
            releases: HashMap::new(),
            waiting: HashMap::new(),
            due: mpsc::unbounded_channel(),
            catch_ups: HashMap::new(),
            read: mpsc::unbounded_channel(),
            last_token: 0,
        }
    }

    /// Follows until ownership has nothing more to say.
    pub async fn run(mut self, mut events: Events) {
        let mut journal = tokio::time::interval(JOURNAL_EVERY);
        journal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.owned(event),
                    None => return self.end(),
                },
                Some(job) = self.jobs.recv() => self.wanted(job),
                Some(incarnation) = self.due.1.recv() => self.read_journal(incarnation),
                Some((waiting, found)) = self.read.1.recv() => self.catch_up(waiting, found),
                _ = journal.tick() => self.mark_journal(),
            }
        }
    }

    /// What ownership says.
    fn owned(&mut self, event: OwnershipEvent) {
        match event {
            OwnershipEvent::Entered { held, ids } => self.enter(held, ids),
            OwnershipEvent::Gained { partition, epoch } => {
                tracing::debug!(partition, epoch, "partition gained");
                let partitions = vec![partition];
                self.core.tell(Input::Owned { partitions });
            }
            OwnershipEvent::Lost { partition, epoch } => {
                tracing::warn!(partition, epoch, "partition lost to another core");
                let partitions = vec![partition];
                self.core.tell(Input::Lost { partitions });
            }
            OwnershipEvent::Release {
                partition, settled, ..
            } => {
                self.releases.insert(partition, settled);
                let partitions = vec![partition];
                self.core.tell(Input::Release { partitions });
            }
            OwnershipEvent::CatchUp {
                partition,
                incarnation,
                done,
                ..
            } => self.want_journal(incarnation, partition, done),
            OwnershipEvent::Lapsed => {
                tracing::warn!("the lease has lapsed");
                self.end();
            }
        }
    }

    fn enter(&mut self, held: Arc<Held>, ids: Arc<MessageIds>) {
        let incarnation = held.incarnation();
        let message_id_floor = Snowflake::floor_of_ms(ids.from_ms());
        tracing::info!(%incarnation, worker = ids.worker_id(), "entered the cluster");
        let proof = if self.config.verify {
            let row = OwnRow::new(Arc::clone(&self.control), incarnation);
            Proof::Witness(Arc::new(row))
        } else {
            Proof::Clock
        };
        let options = FencedOptions {
            deployment: self.config.deployment,
            proof,
            message_id_floor,
        };
        let store = FencedStore::new(
            Arc::clone(&self.rows),
            Arc::clone(&held),
            Arc::clone(&self.clock),
            options,
        );
        let worker_id = ids.worker_id();
        self.store.set(Some(Arc::new(store)));
        *self.lease.write() = Some((held, ids));
        self.core.reborn(Incarnation {
            worker_id,
            message_id_floor,
        });
    }

    /// Nothing of the incarnation is of use any more. Answers that are dropped ask for the rest.
    fn end(&mut self) {
        *self.lease.write() = None;
        self.store.set(None);
        self.releases.clear();
        self.waiting.clear();
        self.catch_ups.clear();
    }

    /// What the engine wants.
    fn wanted(&mut self, job: ClusterJob) {
        match job {
            ClusterJob::Released { partition, heads } => self.released(partition, heads),
            ClusterJob::Evicted { conversation, head } => {
                if let Some(store) = self.store.current() {
                    tokio::spawn(async move { settle(&*store, conversation, head).await });
                }
            }
            ClusterJob::CaughtUp { token } => {
                for (_, done) in self.catch_ups.remove(&token).unwrap_or_default() {
                    let _ = done.send(());
                }
            }
            ClusterJob::Forward {
                partition,
                user,
                request,
                reply,
            } => {
                let peers = Arc::clone(&self.peers);
                tokio::spawn(async move {
                    reply.answer(peers.ask(partition, user, &request).await);
                });
            }
            ClusterJob::Ask {
                token,
                partition,
                user,
                request,
            } => {
                let (peers, core) = (Arc::clone(&self.peers), self.core.clone());
                tokio::spawn(async move {
                    let result = peers.ask(partition, user, &request).await;
                    core.tell(Input::Asked { token, result });
                });
            }
        }
    }

    /// A partition is at rest: stores how far its conversations are settled, then lets it go. The
    /// next owner has to read the journal in any case: what was pushed last may not have arrived.
    fn released(&mut self, partition: u16, heads: Vec<(ConversationId, u64)>) {
        let Some(settled) = self.releases.remove(&partition) else {
            return;
        };
        let store = self.store.current();
        tokio::spawn(async move {
            if let Some(store) = store {
                let all = stream::iter(heads)
                    .for_each_concurrent(SETTLED_AT_ONCE, |(id, head)| settle(&*store, id, head));
                // What is not stored in time costs the next owner a longer look, nothing else.
                let _ = tokio::time::timeout(SETTLE_MAX, all).await;
            }
            let _ = settled.send(Settled::Partly);
        });
    }

    fn want_journal(&mut self, incarnation: Uuid, partition: u16, done: oneshot::Sender<()>) {
        let waiting = self.waiting.entry(incarnation).or_default();
        waiting.push((partition, done));
        if waiting.len() > 1 {
            return;
        }
        let due = self.due.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CATCH_UP_GATHER).await;
            let _ = due.send(incarnation);
        });
    }

    fn read_journal(&mut self, incarnation: Uuid) {
        let Some(waiting) = self.waiting.remove(&incarnation) else {
            return;
        };
        let (Some(store), read) = (self.store.current(), self.read.0.clone()) else {
            return;
        };
        tokio::spawn(async move {
            match store.catch_up(incarnation).await {
                Ok(found) => {
                    let ids = found.into_iter().map(|(id, _)| id).collect();
                    let _ = read.send((waiting, ids));
                }
                // Ownership asks again.
                Err(error) => tracing::warn!(%incarnation, %error, "journal not read"),
            }
        });
    }

    fn catch_up(&mut self, waiting: Waiting, mut found: Vec<ConversationId>) {
        let partitions = self.config.deployment.partitions;
        let concerned = |id: &ConversationId| {
            let partition = partition_of_conversation(*id, partitions);
            waiting.iter().any(|(asked, _)| *asked == partition)
        };
        found.retain(concerned);
        if !found.is_empty() {
            let count = found.len();
            tracing::info!(conversations = count, "telling members after a take-over");
        }
        self.last_token += 1;
        let token = Token(self.last_token);
        self.catch_ups.insert(token, waiting);
        self.core.tell(Input::CatchUp {
            token,
            conversations: found,
        });
    }

    /// Marks windows of the own journal done whose pushes have long arrived, or were made up for.
    fn mark_journal(&self) {
        let Some(store) = self.store.current() else {
            return;
        };
        let finished = store.finished_window();
        let old = finished.and_then(|window| window.0.checked_sub(JOURNAL_KEPT));
        if let Some(window) = old.map(Window) {
            tokio::spawn(async move {
                // What is not marked now is marked next time.
                if let Err(error) = store.effects_done(window).await {
                    tracing::debug!(%error, "journal not marked");
                }
            });
        }
    }
}

async fn settle<R: Rows>(store: &FencedStore<R>, id: ConversationId, head: u64) {
    if let Err(error) = store.release(id, head).await {
        tracing::debug!(conversation = %id, %error, "not settled; the next owner reads more");
    }
}
