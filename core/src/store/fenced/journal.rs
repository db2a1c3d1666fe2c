//! Which conversations were written to in the last while, durably: after a core died, whoever takes
//! its partitions over pushes and publishes again what it may not have got to.
//!
//! Invariants:
//! 1. A conversation is entered in the window in which a commit began, and the entry has returned
//!    while the partition was held, before the first of its rows in that window is written: there is
//!    no row, however late it turns up and whoever adopts it, whose entry a later owner's catch-up
//!    could have missed.
//! 2. A window is marked done after it is over, every commit that began in it has ended and lost
//!    nothing to another owner, and the caller has said that what follows from these is durable.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use trunkline_proto::ids::ConversationId;
use uuid::Uuid;

use super::rows::{JournalEntry, Rows, Window};
use super::rules::Rule;
use super::{FencedStore, WRITES_AT_ONCE};
use crate::store::StoreError;

/// How long a window is, by default.
pub const WINDOW_NS: u64 = 10_000_000_000;

/// Entries in one write.
const ENTRIES_PER_WRITE: usize = 64;

/// Windows of the own journal.
pub(super) struct Journal {
    window_ns: u64,
    windows: Mutex<Windows>,
}

#[derive(Default)]
struct Windows {
    /// Entered, and not marked done.
    open: BTreeSet<Window>,
    /// Of commits that have not ended: under way, or to be repeated.
    pending: BTreeSet<Window>,
    /// The newest of those that are left to other owners; no later commit begins in an older one.
    left: Option<Window>,
}

impl Journal {
    pub fn new(window_ns: u64) -> Self {
        Self {
            window_ns: window_ns.max(1),
            windows: Mutex::default(),
        }
    }

    /// A commit begins, or is repeated.
    pub fn begin(&self, now_ns: u64) -> Window {
        let window = Window(now_ns / self.window_ns);
        self.windows.lock().pending.insert(window);
        window
    }

    /// The commit has ended, and will not be repeated. `has_lost`: some of its conversations are
    /// another owner's now, who may adopt what was written of them, and then learns from the entries
    /// here what is still to be pushed and published: these windows are never marked done.
    pub fn end(&self, has_lost: bool) {
        let windows = &mut *self.windows.lock();
        if has_lost {
            windows.open.retain(|w| !windows.pending.contains(w));
            windows.left = windows.pending.last().copied().max(windows.left);
        }
        windows.pending.clear();
    }
}

impl<R: Rows> FencedStore<R> {
    /// Enters conversations, each with the first seq that it is about to write.
    pub(super) async fn enter(
        &self,
        window: Window,
        entries: &[JournalEntry],
    ) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        {
            let windows = &mut *self.journal.windows.lock();
            if windows.left < Some(window) {
                windows.open.insert(window);
            }
        }
        let (rows, incarnation) = (&self.rows, self.held.incarnation());
        let writes: Vec<_> = entries
            .chunks(ENTRIES_PER_WRITE)
            .map(|chunk| rows.put_journal(incarnation, window, chunk))
            .collect();
        stream::iter(writes)
            .buffer_unordered(WRITES_AT_ONCE)
            .try_collect()
            .await
    }

    /// The newest window of which, and of all before it, every commit has returned. Once all that
    /// follows from the commits that returned before this call is durable (pushed, published, filed),
    /// say so with [`FencedStore::effects_done`].
    pub fn finished_window(&self) -> Option<Window> {
        let current = self.clock.now_ns() / self.journal.window_ns;
        let windows = self.journal.windows.lock();
        let first = windows.pending.first().map_or(current, |w| w.0);
        let before = if self.rules.keeps(Rule::WindowAfterCommits) {
            first.min(current)
        } else {
            current
        };
        before.checked_sub(1).map(Window)
    }

    /// Marks all windows up to this one done. An error leaves some of them to the next call.
    pub async fn effects_done(&self, window: Window) -> Result<(), StoreError> {
        let done: Vec<Window> = {
            let windows = self.journal.windows.lock();
            windows.open.range(..=window).copied().collect()
        };
        for window in done {
            self.rows
                .end_window(self.held.incarnation(), window)
                .await?;
            self.journal.windows.lock().open.remove(&window);
        }
        Ok(())
    }

    /// What a dead incarnation may have left undone: conversations, ascending, and for each the first
    /// seq from which on nobody has said that its messages were pushed and published. Of all
    /// partitions that it had: the caller takes those that it has now.
    pub async fn catch_up(
        &self,
        incarnation: Uuid,
    ) -> Result<Vec<(ConversationId, u64)>, StoreError> {
        let mut first_seqs = BTreeMap::new();
        for window in self.rows.journal_windows(incarnation).await? {
            for entry in self.rows.journal(incarnation, window).await? {
                let first = first_seqs
                    .entry(entry.conversation)
                    .or_insert(entry.first_seq);
                *first = entry.first_seq.min(*first);
            }
        }
        Ok(first_seqs.into_iter().collect())
    }
}
