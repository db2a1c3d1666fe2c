//! The first use of a conversation under an epoch: what earlier owners left is adopted up to a head,
//! and a fence records that this epoch writes from there on.
//!
//! Why it is right: what an earlier owner called committed, it did while its lease was valid, so
//! before this one began to read; it lies on a quorum, and every read of a quorum sees it. What is
//! found beyond that is adopted, and made safe before the fence says that it counts. What is not
//! found, or lies behind a gap, was never committed, and the fence keeps it out for ever, however
//! late it turns up.

use futures_util::future::try_join;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::MemberRow;

use super::read::Scope;
use super::rows::{Cas, Change, Conversation, Fence, MessageRow, Rows};
use super::rules::Rule;
use super::table::State;
use super::{ATTEMPTS_MAX, FencedStore, WRITES_AT_ONCE};
use crate::store::{Order, StoreError};

/// Users in one write of the index.
const INDEX_USERS_PER_WRITE: usize = 50;

/// What was found above the base.
struct Tail {
    head: u64,
    /// Rows up to the head, ascending, at most as many as the deployment's tail.
    rows: Vec<MessageRow>,
}

impl<R: Rows> FencedStore<R> {
    /// Takes a conversation up under `epoch`. `None`: it does not exist. The caller holds its lock.
    pub(super) async fn take_up(
        &self,
        id: ConversationId,
        epoch: u64,
    ) -> Result<Option<(State, Conversation)>, StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(mut found) = self.rows.conversation(id).await? else {
                return Ok(None);
            };
            if found.epoch > epoch {
                return Err(StoreError::Fenced(vec![id]));
            }
            let tail = self.tail(id, &found).await?;
            if found.epoch == epoch {
                // Recorded by an earlier call, maybe one that never heard of it.
                self.put_rows(id, self.to_rewrite(&tail)).await?;
                return Ok(Some((State::new(&found, tail.head), found)));
            }
            try_join(
                self.put_rows(id, self.to_rewrite(&tail)),
                self.repair_index(id, &found.members),
            )
            .await?;
            let fence = Fence {
                epoch,
                first_seq: tail.head + 1,
            };
            let top_bucket = self.bucket(fence.first_seq);
            let change = Change {
                fence: Some(fence),
                top_bucket: Some(top_bucket),
                ..Change::default()
            };
            let recorded = match self.rows.change(id, Some(found.revision), &change).await {
                Ok(Cas::Applied) => true,
                Ok(Cas::Refused) => !self.rules.keeps(Rule::RefusalRestarts),
                // The next look at the conversation tells, and what is recorded there holds.
                Err(StoreError::Unavailable(_)) => !self.rules.keeps(Rule::UnknownIsRead),
                Err(error) => return Err(error),
            };
            if recorded {
                found.revision += 1;
                found.epoch = epoch;
                found.fences.push(fence);
                found.top_bucket = top_bucket;
                return Ok(Some((State::new(&found, tail.head), found)));
            }
        }
        Err(StoreError::Unavailable(format!(
            "conversation {id} could not be taken up in {ATTEMPTS_MAX} attempts"
        )))
    }

    /// Finds the head: the newest row that counts tells how far down a gap can be, the unbroken run
    /// from there ends at the head.
    async fn tail(&self, id: ConversationId, found: &Conversation) -> Result<Tail, StoreError> {
        let newest_fence = found.fences.last().map_or(0, |f| f.first_seq - 1);
        let base = if self.rules.keeps(Rule::SettledFloor) {
            newest_fence.max(found.settled)
        } else {
            newest_fence
        };
        let end = (found.top_bucket + 1).saturating_mul(self.deployment.bucket_size) - 1;
        let scope = Scope {
            id,
            fences: &found.fences,
            first: base + 1,
            last: end,
        };
        let newest = self.walk(scope, Order::NewestFirst, 1).await?;
        let Some(newest) = newest.first().map(|row| row.message.seq) else {
            return Ok(Tail {
                head: base,
                rows: Vec::new(),
            });
        };
        let tail_max = u64::from(self.deployment.tail_max);
        // An owner writes no further above its committed head than this.
        let low = base.max(newest.saturating_sub(tail_max));
        let scope = Scope {
            first: low + 1,
            last: newest,
            ..scope
        };
        let rows = self.walk(scope, Order::OldestFirst, usize::MAX).await?;
        let mut tail = Tail {
            head: low,
            rows: Vec::with_capacity(rows.len()),
        };
        for row in rows {
            if self.rules.keeps(Rule::UnbrokenRun) && row.message.seq != tail.head + 1 {
                break;
            }
            tail.head = row.message.seq;
            tail.rows.push(row);
        }
        Ok(tail)
    }

    /// The rows that have to be safe before the head is recorded.
    fn to_rewrite<'a>(&self, tail: &'a Tail) -> &'a [MessageRow] {
        if self.rules.keeps(Rule::WholeTail) {
            &tail.rows
        } else {
            &tail.rows[tail.rows.len().saturating_sub(1)..]
        }
    }

    /// Enters a conversation into the indexes of its members, in case its last owner did not get to
    /// it. Done once under each epoch: before the fence is recorded.
    async fn repair_index(
        &self,
        id: ConversationId,
        members: &[(String, MemberRow)],
    ) -> Result<(), StoreError> {
        if self.rules.keeps(Rule::IndexRepair) {
            self.put_index(id, members).await
        } else {
            Ok(())
        }
    }

    /// Enters a conversation into the indexes of these users.
    pub(super) async fn put_index(
        &self,
        id: ConversationId,
        members: &[(String, MemberRow)],
    ) -> Result<(), StoreError> {
        let users: Vec<String> = members.iter().map(|(user, _)| user.clone()).collect();
        let chunks = users.chunks(INDEX_USERS_PER_WRITE);
        let writes: Vec<_> = chunks.map(|chunk| self.rows.put_index(chunk, id)).collect();
        stream::iter(writes)
            .buffer_unordered(WRITES_AT_ONCE)
            .try_collect()
            .await
    }

    /// Writes rows, cut by buckets and into batches of bounded number and size, side by side.
    pub(super) async fn put_rows(
        &self,
        id: ConversationId,
        rows: &[MessageRow],
    ) -> Result<(), StoreError> {
        let writes: Vec<_> = self
            .cut(rows)
            .into_iter()
            .map(|(bucket, part)| self.rows.put_messages(id, bucket, part))
            .collect();
        let mut writes = stream::iter(writes).buffer_unordered(WRITES_AT_ONCE);
        let mut is_any_there = false;
        while let Some(written) = writes.next().await {
            if self.rules.keeps(Rule::Prefix) || !is_any_there {
                written?;
            }
            is_any_there = true;
        }
        Ok(())
    }
}
