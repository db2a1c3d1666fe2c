//! The threads that touch the store: one commits, a few read. Each has a small tokio runtime of its
//! own, so that a store may block inside its futures or drive sockets from them, as it likes.
//!
//! What waits here is bounded by the engine: at most one commit is under way, and reads belong to
//! operations that hold credit or to REST calls that hold a permit.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use trunkline_proto::ids::ConversationId;

use super::{Event, Shared};
use crate::engine::{Input, Token};
use crate::store::{MessageStore, ReadRange, StoreError, WriteBatch};

/// Threads that read.
pub(super) const READERS: usize = 2;

pub(super) struct CommitJob {
    pub(super) commit: u64,
    pub(super) batch: WriteBatch,
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

/// Starts the committer. The first thing that it sends is the store's message id floor.
pub(super) fn start_committer(
    store: Arc<dyn MessageStore>,
    jobs: Receiver<CommitJob>,
    events: Sender<Event>,
    shared: Arc<Shared>,
    floor: Sender<Result<u64, StoreError>>,
) -> io::Result<JoinHandle<()>> {
    let runtime = runtime()?;
    std::thread::Builder::new()
        .name("committer".into())
        .spawn(move || {
            // A dropped receiver means that the start was given up; the job queue ends with it.
            let _ = floor.send(runtime.block_on(store.message_id_floor()));
            for CommitJob { commit, batch } in jobs {
                let begun = Instant::now();
                let result = runtime.block_on(store.commit(&batch));
                let messages: usize = batch.conversations.iter().map(|c| c.messages.len()).sum();
                shared
                    .metrics
                    .committed(begun.elapsed(), messages, result.is_ok());
                let input = Input::Committed { commit, result };
                if events.send(Event::Store(input)).is_err() {
                    return;
                }
            }
        })
}

/// Starts one reader.
pub(super) fn start_reader(
    index: usize,
    store: Arc<dyn MessageStore>,
    jobs: Receiver<ReadJob>,
    events: Sender<Event>,
) -> io::Result<JoinHandle<()>> {
    let runtime = runtime()?;
    std::thread::Builder::new()
        .name(format!("reader-{index}"))
        .spawn(move || {
            for job in jobs {
                let input = runtime.block_on(read(&*store, job));
                if events.send(Event::Store(input)).is_err() {
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
