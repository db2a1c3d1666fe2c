//! The threads that touch the store: one commits for each lane of the engine, a few read. Each has a small tokio runtime of its own, so that a store may block
//! inside its futures or drive sockets from them, as it likes.
//!
//! What waits here is bounded by the engine: at most one commit is under way for each lane, and reads belong to
//! operations that hold credit or to REST calls that hold a permit.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::Receiver;
use trunkline_proto::ids::ConversationId;

use super::queue::Sender;
use super::{Event, Shared};
use crate::engine::{Input, Token};
use crate::store::{MessageStore, ReadRange, StoreError, WriteBatch};

/// Threads that read.
pub(super) const READERS: usize = 2;

pub(super) struct CommitJob {
    pub(super) life: u32,
    pub(super) commit: u64,
    pub(super) batch: Arc<WriteBatch>,
}

impl CommitJob {
    pub(super) fn messages(&self) -> usize {
        let conversations = &self.batch.conversations;
        conversations.iter().map(|c| c.messages.len()).sum()
    }
}

/// Commits, on the thread that owns it.
pub(super) struct Committer {
    runtime: tokio::runtime::Runtime,
    store: Arc<dyn MessageStore>,
    shared: Arc<Shared>,
}

impl Committer {
    pub(super) fn new(store: Arc<dyn MessageStore>, shared: Arc<Shared>) -> io::Result<Self> {
        Ok(Self {
            runtime: runtime()?,
            store,
            shared,
        })
    }

    /// Blocks until the store has answered.
    fn commit(&self, job: &CommitJob) -> Result<(), StoreError> {
        let begun = Instant::now();
        let result = self.runtime.block_on(self.store.commit(&job.batch));
        let took = begun.elapsed();
        let metrics = &self.shared.metrics;
        metrics.committed(took, job.messages(), result.is_ok());
        result
    }
}

pub(super) enum ReadJob {
    Load {
        conversation: ConversationId,
        recent_max: u64,
    },
    Page {
        token: Token,
        conversation: ConversationId,
        range: ReadRange,
    },
    Index {
        token: Token,
        user: String,
    },
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Starts a committer. The first thing that it sends is the store's message id floor, if asked.
pub(super) fn start_committer(
    committer: Committer,
    jobs: Receiver<CommitJob>,
    events: Sender<Event>,
    floor: Option<crossbeam_channel::Sender<Result<u64, StoreError>>>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("committer".into())
        .spawn(move || {
            let Committer { runtime, store, .. } = &committer;
            if let Some(floor) = floor {
                // A dropped receiver means that the start was given up; the job queue ends with it.
                let _ = floor.send(runtime.block_on(store.message_id_floor()));
            }
            for job in jobs {
                let result = committer.commit(&job);
                let CommitJob { life, commit, .. } = job;
                let committed = Event::Committed {
                    life,
                    commit,
                    result,
                };
                if events.send_urgent(committed).is_err() {
                    return;
                }
            }
        })
}

/// Starts one reader.
pub(super) fn start_reader(
    index: usize,
    store: Arc<dyn MessageStore>,
    jobs: Receiver<(u32, ReadJob)>,
    events: Sender<Event>,
) -> io::Result<JoinHandle<()>> {
    let runtime = runtime()?;
    std::thread::Builder::new()
        .name(format!("reader-{index}"))
        .spawn(move || {
            for (life, job) in jobs {
                let input = runtime.block_on(read(&*store, job));
                if events.send(Event::Read { life, input }).is_err() {
                    return;
                }
            }
        })
}

async fn read(store: &dyn MessageStore, job: ReadJob) -> Input {
    match job {
        ReadJob::Load {
            conversation,
            recent_max,
        } => Input::Loaded {
            conversation,
            result: store
                .load(conversation, recent_max)
                .await
                .map(|snapshot| snapshot.map(Box::new)),
        },
        ReadJob::Page {
            token,
            conversation,
            range,
        } => Input::PageRead {
            token,
            result: store.read(conversation, range).await,
        },
        ReadJob::Index { token, user } => Input::IndexRead {
            token,
            result: store.conversations_of(&user).await,
        },
    }
}
