//! Rows that count, page by page, over buckets and in both orders.
//!
//! A seq may have several rows: that of its owner, and those of owners that wrote too late. A page
//! that is full may end between rows of one seq, so the next one begins with that seq again.

use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;

use super::FencedStore;
use super::rows::{Fence, MessageRow, Rows};
use super::rules::Rule;
use super::table::View;
use crate::store::{Order, ReadRange, StoreError};

/// Rows in one page.
const PAGE_ROWS_MAX: usize = 512;

/// Rows that are asked for beyond those that are wanted, because some may not count.
const PAGE_ROWS_SPARE: usize = 8;

/// Rows of one conversation, `first <= seq <= last`.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub id: ConversationId,
    pub fences: &'a [Fence],
    pub first: u64,
    pub last: u64,
}

/// The epoch whose row of this seq counts: the greatest of those whose fence begins at or below it.
pub(super) fn owner(fences: &[Fence], seq: u64) -> Option<u64> {
    let fence = fences.iter().rev().find(|fence| fence.first_seq <= seq);
    fence.map(|fence| fence.epoch)
}

impl<R: Rows> FencedStore<R> {
    pub(super) fn bucket(&self, seq: u64) -> u64 {
        seq / self.deployment.bucket_size
    }

    fn counts(&self, scope: Scope<'_>, row: &MessageRow) -> bool {
        !self.rules.keeps(Rule::Owner) || owner(scope.fences, row.message.seq) == Some(row.epoch)
    }

    /// The first `limit` rows that count, in this order.
    pub(super) async fn walk(
        &self,
        scope: Scope<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<MessageRow>, StoreError> {
        let (mut first, mut last) = (scope.first, scope.last);
        let mut found: Vec<MessageRow> = Vec::new();
        while first <= last && found.len() < limit {
            let Page { rows, next } = self
                .page(scope, first, last, order, limit - found.len())
                .await?;
            let counting = rows.into_iter().filter(|row| self.counts(scope, row));
            found.extend(counting.take(limit - found.len()));
            let Some(next) = next else { break };
            match order {
                Order::OldestFirst => first = next,
                Order::NewestFirst => last = next,
            }
        }
        Ok(found)
    }

    /// One page, of one bucket: rows of whole seqs.
    async fn page(
        &self,
        scope: Scope<'_>,
        first: u64,
        last: u64,
        order: Order,
        wanted: usize,
    ) -> Result<Page, StoreError> {
        let bucket = match order {
            Order::OldestFirst => self.bucket(first),
            Order::NewestFirst => self.bucket(last),
        };
        let start = bucket * self.deployment.bucket_size;
        let end = start.saturating_add(self.deployment.bucket_size - 1);
        let (from, to) = (first.max(start), last.min(end));
        // More than there can be of one seq.
        let rows_min = scope.fences.len() + 2;
        let size = wanted.saturating_add(PAGE_ROWS_SPARE).min(PAGE_ROWS_MAX);
        let size = size.max(rows_min);
        let limit = u32::try_from(size).unwrap_or(u32::MAX);
        let mut rows = match order {
            Order::OldestFirst => {
                let page = self.rows.messages_up(scope.id, bucket, from, to, limit);
                page.await?
            }
            Order::NewestFirst => {
                let page = self.rows.messages_down(scope.id, bucket, from, to, limit);
                page.await?
            }
        };
        let beyond = |seq: u64| match order {
            Order::OldestFirst => seq.checked_add(1),
            Order::NewestFirst => seq.checked_sub(1),
        };
        let next = match rows.last().map(|row| row.message.seq) {
            Some(seq) if rows.len() >= size => {
                let of_whole_seqs = rows.partition_point(|row| row.message.seq != seq);
                if of_whole_seqs == 0 {
                    beyond(seq)
                } else {
                    rows.truncate(of_whole_seqs);
                    Some(seq)
                }
            }
            _ => match order {
                Order::OldestFirst => beyond(to),
                Order::NewestFirst => beyond(from),
            },
        };
        Ok(Page { rows, next })
    }

    /// Messages of a conversation that has been taken up, up to its committed head.
    pub(super) async fn committed_messages(
        &self,
        id: ConversationId,
        view: &View,
        range: ReadRange,
    ) -> Result<Vec<Message>, StoreError> {
        let last = range.before.saturating_sub(1).min(view.committed);
        let (Some(first), limit) = (range.after.checked_add(1), range.limit as usize) else {
            return Ok(Vec::new());
        };
        let scope = Scope {
            id,
            fences: &view.fences,
            first,
            last,
        };
        let rows = self.walk(scope, range.order, limit).await?;
        let mut messages: Vec<Message> = rows.into_iter().map(|row| row.message).collect();
        if range.order == Order::NewestFirst {
            messages.reverse();
        }
        Ok(messages)
    }
}

struct Page {
    rows: Vec<MessageRow>,
    /// The seq to go on with; `None`: there is nothing beyond.
    next: Option<u64>,
}
