//! Between the engine and its store: how long a write takes, when it is on stable storage, what a
//! failure leaves, and what readers find.

use prost::Message as _;
use trunkline_core::engine::{EdgeKey, Input, Token};
use trunkline_core::store::{ReadRange, StoreError, WriteBatch};
use trunkline_proto::client::{ClientBody, ClientFrame};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::link::{EdgeOp, edge_op};

use super::core::CoreInput;
use super::{Event, World, trace};
use crate::bugs::Bug;
use crate::plan::MS;

/// How far a commit gets.
pub(super) enum CommitStep {
    /// Readers see it.
    Applied,
    /// It is on stable storage.
    Synced,
    Returned(Result<(), StoreError>),
}

/// What is read.
pub(super) enum Read {
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

impl World {
    /// The engine wants a batch written.
    pub(super) fn begin_commit(&mut self, commit: u64, mut batch: WriteBatch) {
        if self.has(Bug::WatermarkFalls) {
            self.unmerge_marks(&mut batch);
        }
        let messages: usize = batch.conversations.iter().map(|c| c.messages.len()).sum();
        trace!(
            self,
            "disk: commit {commit} of {} conversations, {messages} messages",
            batch.conversations.len()
        );
        self.trace.detail(|| format!("{batch:?}"));
        let hostility = &self.plan.hostility;
        let is_slow = self.hostile && self.rng.store.chance(hostility.commit_slow);
        let fails = self.hostile && self.rng.store.chance(hostility.commit_fails);
        let total = if is_slow {
            self.cover.commits_slow += 1;
            self.rng.store.within(100, 1_500) * MS
        } else {
            self.rng.store.within(200_000, 8 * MS)
        };
        let sync = self.rng.store.within(total / 2, total - 1);
        let apply = self.rng.store.within(1, sync);
        let is_written = !fails || self.rng.store.chance(500);
        if is_written {
            self.core.store.under_way.insert(commit, batch);
            let sync_at = (self.now + sync).max(self.core.store.last_sync_ns + 1);
            self.core.store.last_sync_ns = sync_at;
            self.commit_after(apply, commit, CommitStep::Applied);
            self.commit_after(sync_at - self.now, commit, CommitStep::Synced);
        }
        let total = total.max(self.core.store.last_sync_ns.saturating_sub(self.now) + 1);
        let result = if fails && !self.has(Bug::FailedCommitDone) {
            Err(StoreError::Unavailable("the disk is in a bad mood".into()))
        } else {
            Ok(())
        };
        if fails && is_written {
            self.cover.commits_failed_written += 1;
        } else if fails {
            self.cover.commits_failed_unwritten += 1;
        }
        let total = if self.has(Bug::AckBeforeSync) {
            1
        } else {
            total
        };
        self.commit_after(total, commit, CommitStep::Returned(result));
    }

    fn commit_after(&mut self, ns: u64, commit: u64, step: CommitStep) {
        let epoch = self.core.epoch;
        self.after(
            ns,
            Event::Commit {
                epoch,
                commit,
                step,
            },
        );
    }

    /// A commit gets further.
    pub(super) fn commit_step(&mut self, epoch: u64, commit: u64, step: CommitStep) {
        if epoch != self.core.epoch {
            return;
        }
        let store = &mut self.core.store;
        match step {
            CommitStep::Applied => {
                if let Some(batch) = store.under_way.get(&commit) {
                    store.applied.apply(batch);
                }
            }
            CommitStep::Synced => {
                if let Some(batch) = store.sync(commit) {
                    trace!(self, "disk: commit {commit} is on stable storage");
                    self.is_durable(&batch);
                }
            }
            CommitStep::Returned(result) => {
                self.core_input(CoreInput::Store(Input::Committed { commit, result }));
            }
        }
    }

    fn is_durable(&mut self, batch: &WriteBatch) {
        let messages: usize = batch.conversations.iter().map(|c| c.messages.len()).sum();
        self.cover.messages_durable += messages as u64;
        self.check.durable(self.now, batch);
    }

    /// The process dies: a batch under way survives as a whole, or not.
    pub(super) fn disk_crash(&mut self) {
        let commits: Vec<u64> = self.core.store.under_way.keys().copied().collect();
        for commit in commits {
            if !self.rng.store.chance(500) {
                trace!(self, "disk: commit {commit} is lost");
                self.cover.commits_lost += 1;
                break;
            }
            if let Some(batch) = self.core.store.sync(commit) {
                trace!(self, "disk: commit {commit} survives");
                self.cover.commits_survived += 1;
                self.is_durable(&batch);
            }
        }
        self.core.store.crash();
    }

    // ---- reads ----

    pub(super) fn begin_load(&mut self, conversation: ConversationId, recent_max: u64) {
        self.read_later(Read::Load {
            conversation,
            recent_max,
        });
    }

    pub(super) fn begin_page(
        &mut self,
        token: Token,
        conversation: ConversationId,
        range: ReadRange,
    ) {
        self.read_later(Read::Page {
            token,
            conversation,
            range,
        });
    }

    pub(super) fn begin_index(&mut self, token: Token, user: String) {
        self.read_later(Read::Index { token, user });
    }

    fn read_later(&mut self, read: Read) {
        let wait = if self.hostile && self.rng.store.chance(self.plan.hostility.commit_slow) {
            self.rng.store.within(20, 400) * MS
        } else {
            self.rng.store.within(50_000, 4 * MS)
        };
        let epoch = self.core.epoch;
        self.after(wait, Event::Read { epoch, read });
    }

    /// A read finds what is there at this moment.
    pub(super) fn read(&mut self, epoch: u64, read: Read) {
        if epoch != self.core.epoch {
            return;
        }
        let fails = self.hostile && self.rng.store.chance(self.plan.hostility.read_fails);
        self.cover.reads_failed += u64::from(fails);
        let error = || StoreError::Unavailable("not now".into());
        let rows = &self.core.store.applied;
        let input = match read {
            Read::Load {
                conversation,
                recent_max,
            } => {
                let mut snapshot = rows.load(conversation, recent_max);
                match (self.plan.bug, &mut snapshot) {
                    (Some(Bug::DedupForgotten), Some(found)) => found.recent.clear(),
                    (Some(Bug::SeqReuse), Some(found)) => {
                        found.head -= u64::from(found.recent.pop().is_some());
                    }
                    (Some(Bug::RemovalForgotten), Some(found)) => {
                        let rows = found
                            .members
                            .iter_mut()
                            .filter_map(|(_, r)| r.intervals.last_mut());
                        rows.for_each(|interval| interval.until_seq = None);
                    }
                    _ => {}
                }
                let result = if fails {
                    Err(error())
                } else {
                    Ok(snapshot.map(Box::new))
                };
                Input::Loaded {
                    conversation,
                    result,
                }
            }
            Read::Page {
                token,
                conversation,
                range,
            } => {
                let found = rows.read(conversation, range);
                let result = if fails { Err(error()) } else { Ok(found) };
                Input::PageRead { token, result }
            }
            Read::Index { token, user } => {
                let found = rows.conversations_of(&user);
                let result = if fails { Err(error()) } else { Ok(found) };
                Input::IndexRead { token, result }
            }
        };
        self.core_input(CoreInput::Store(input));
    }

    // ---- for the defect that does not merge watermarks ----

    pub(super) fn note_marks(&mut self, edge: EdgeKey, ops: &[EdgeOp]) {
        for op in ops {
            let Some(edge_op::Op::Frame(bytes)) = &op.op else {
                continue;
            };
            let frame = ClientFrame::decode(&bytes[..]).unwrap_or_default();
            if let Some(ClientBody::Receipt(receipt)) = &frame.frame
                && let Some(user) = self.check.core.user(edge, op.handle)
            {
                let key = (receipt.conversation_id.clone(), user.to_owned());
                self.core.last_marks.insert(key, receipt.seq);
            }
        }
    }

    fn unmerge_marks(&self, batch: &mut WriteBatch) {
        for writes in &mut batch.conversations {
            for (user, row) in &mut writes.watermarks {
                let key = (writes.id.to_string(), user.clone());
                if let Some(last) = self.core.last_marks.get(&key) {
                    row.delivered_seq = *last;
                    row.read_seq = row.read_seq.min(*last);
                }
            }
        }
    }
}
