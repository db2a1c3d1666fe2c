//! Messages on their way in: put in order, once each, with what is missing asked for by exact
//! range. Pure: no clock, no I/O.
//!
//! Invariants:
//! 1. Of each conversation, messages are handed out by ascending seq, none twice.
//! 2. Between two that are handed out in a row nothing is missing that the user may see: either the
//!    seqs are neighbours, or a page of the server said that there is nothing between them.
//! 3. At most [`InboxConfig::buffered_max`] messages wait for earlier ones, and at most
//!    [`InboxConfig::conversations_max`] conversations are remembered; beyond that the message is
//!    fetched again later, or the conversation that was quiet longest is forgotten.
//!
//! A conversation's *position* is the seq up to which everything was handed out. It is unknown for
//! a conversation first seen in the middle; a full `sync` (empty list) settles it, because what is
//! not in its answer was delivered to the user before.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use trunkline_proto::client::{Message, Page};

/// Bounds of an inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxConfig {
    pub conversations_max: usize,
    /// Messages of all conversations that wait for earlier ones.
    pub buffered_max: usize,
    /// Fetches under way at once.
    pub fetches_max: usize,
}

impl Default for InboxConfig {
    fn default() -> Self {
        Self {
            conversations_max: 10_000,
            buffered_max: 10_000,
            fetches_max: 8,
        }
    }
}

/// What a page answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A `sync` that named the conversation, from its position.
    Sync,
    /// A `sync` with an empty list: from where the user's deliveries end.
    FullSync,
    /// A fetch of [`Inbox::next_fetch`], `after < seq < before`.
    Fetch { after: u64, before: u64 },
    /// Nothing that is known: its messages count as if pushed.
    Unasked,
}

/// A range that is missing, exclusive at both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub conversation: String,
    pub after: u64,
    pub before: u64,
}

/// How long a fetch waits that the server could not answer, or answered with no progress.
pub const FETCH_RETRY_MS: u64 = 1_000;

#[derive(Debug)]
enum Slot {
    Message(Box<Message>),
    /// Our own, acknowledged to this session: its sender has it already.
    Own,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FetchState {
    #[default]
    Idle,
    UnderWay,
    Waiting {
        until_ms: u64,
    },
}

#[derive(Debug, Default)]
struct Conversation {
    position: Option<u64>,
    /// A full sync that will settle the position is under way.
    asked: bool,
    /// The highest seq that the server spoke of without sending it.
    head: u64,
    waiting: BTreeMap<u64, Slot>,
    fetch: FetchState,
    /// For forgetting the one that was quiet longest.
    touched: u64,
}

impl Conversation {
    /// What is missing next: `after < seq < before`.
    fn gap(&self) -> Option<(u64, u64)> {
        let position = self.position?;
        match self.waiting.keys().next() {
            Some(first) => Some((position, *first)),
            None if self.head > position => Some((position, self.head + 1)),
            None => None,
        }
    }
}

/// The inbox.
#[derive(Debug)]
pub struct Inbox {
    config: InboxConfig,
    conversations: HashMap<String, Conversation>,
    ready: VecDeque<Message>,
    buffered: usize,
    /// Conversations with a gap and no fetch under way.
    gaps: BTreeSet<String>,
    fetches: usize,
    /// Conversations without a position that no full sync under way will settle.
    unknown: BTreeSet<String>,
    touches: u64,
}

impl Inbox {
    pub fn new(config: InboxConfig) -> Self {
        Self {
            config,
            conversations: HashMap::new(),
            ready: VecDeque::new(),
            buffered: 0,
            gaps: BTreeSet::new(),
            fetches: 0,
            unknown: BTreeSet::new(),
            touches: 0,
        }
    }

    /// The next message in order.
    pub fn next_message(&mut self) -> Option<Message> {
        self.ready.pop_front()
    }

    /// Everything up to this seq was handed out; `None`: unknown.
    pub fn position(&self, conversation: &str) -> Option<u64> {
        self.conversations.get(conversation)?.position
    }

    /// All conversations with a position, sorted.
    pub fn positions(&self) -> Vec<(String, u64)> {
        let mut all: Vec<_> = self
            .conversations
            .iter()
            .filter_map(|(id, c)| Some((id.clone(), c.position?)))
            .collect();
        all.sort_unstable();
        all
    }

    /// Goes on from a position that the application kept.
    pub fn restore(&mut self, conversation: &str, position: u64) {
        let c = self.touch(conversation);
        if c.position.is_none_or(|p| p < position) {
            c.position = Some(position);
        }
        self.settle(conversation, 0);
    }

    /// A message was pushed.
    pub fn message(&mut self, message: Message) {
        let id = message.conversation_id.clone();
        let seq = message.seq;
        self.insert(&id, seq, Slot::Message(Box::new(message)));
        self.settle(&id, 0);
    }

    /// A message of our own was acknowledged: its seq is no gap.
    pub fn own(&mut self, conversation: &str, seq: u64) {
        self.insert(conversation, seq, Slot::Own);
        self.settle(conversation, 0);
    }

    /// The server says how far the conversation goes, because a delivery may have been lost.
    pub fn hint(&mut self, conversation: &str, head: u64) {
        let c = self.touch(conversation);
        c.head = c.head.max(head);
        if head == 0 {
            // Nothing was said yet: the conversation is seen from its beginning.
            c.position.get_or_insert(0);
        }
        self.settle(conversation, 0);
    }

    /// A page came. Returns whether all of it was known before.
    pub fn page(&mut self, page: Page, origin: Origin, now_ms: u64) -> bool {
        let id = page.conversation_id;
        let first = page.messages.first().map(|m| m.seq);
        let last = page.messages.last().map(|m| m.seq);
        let c = self.touch(&id);
        if c.position.is_none() && matches!(origin, Origin::Sync | Origin::FullSync) {
            let lowest = c.waiting.keys().next().copied().or(first);
            c.position = lowest
                .into_iter()
                .chain(first)
                .min()
                .map(|seq| seq.saturating_sub(1));
        }
        let before_page = c.position;
        let covered = covered(before_page, origin, page.more, first, last);
        if page.more && matches!(origin, Origin::Sync | Origin::FullSync) {
            c.head = c.head.max(page.head_seq);
        }
        let known = before_page.is_some_and(|p| last.is_some_and(|l| l <= p));
        if let Origin::Fetch { after, .. } = origin {
            self.fetch_ended(&id, (covered <= after).then_some(now_ms + FETCH_RETRY_MS));
        }
        for message in page.messages {
            let seq = message.seq;
            // The page itself is in order: what it covers need not count against the bound.
            self.put(&id, seq, Slot::Message(Box::new(message)), seq <= covered);
        }
        self.settle(&id, covered);
        known
    }

    /// The next range to fetch; it counts as under way.
    pub fn next_fetch(&mut self, now_ms: u64) -> Option<Range> {
        if self.fetches >= self.config.fetches_max {
            return None;
        }
        let due = |id: &&String| {
            self.conversations.get(*id).is_some_and(|c| match c.fetch {
                FetchState::Idle => true,
                FetchState::UnderWay => false,
                FetchState::Waiting { until_ms } => until_ms <= now_ms,
            })
        };
        let conversation = self.gaps.iter().find(due)?.clone();
        self.gaps.remove(&conversation);
        let c = self.conversations.get_mut(&conversation)?;
        let (after, before) = c.gap()?;
        c.fetch = FetchState::UnderWay;
        self.fetches += 1;
        Some(Range {
            conversation,
            after,
            before,
        })
    }

    /// The fetch of a conversation was answered with an error that may pass: again at `retry_ms`.
    pub fn fetch_failed(&mut self, conversation: &str, retry_ms: u64) {
        self.fetch_ended(conversation, Some(retry_ms));
        self.settle(conversation, 0);
    }

    /// The server will not show what is missing (no longer a member): go on without it.
    pub fn give_up_gap(&mut self, conversation: &str) {
        self.fetch_ended(conversation, None);
        let covered = match self
            .conversations
            .get(conversation)
            .and_then(Conversation::gap)
        {
            Some((_, before)) => before - 1,
            None => 0,
        };
        self.settle(conversation, covered);
    }

    /// Forgets a conversation.
    pub fn forget(&mut self, conversation: &str) {
        self.fetch_ended(conversation, None);
        if let Some(c) = self.conversations.remove(conversation) {
            self.buffered -= c.waiting.len();
        }
        self.gaps.remove(conversation);
        self.unknown.remove(conversation);
    }

    /// When a fetch that waits may be tried again.
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.fetches >= self.config.fetches_max {
            return None;
        }
        self.gaps
            .iter()
            .filter_map(|id| match self.conversations.get(id)?.fetch {
                FetchState::Waiting { until_ms } => Some(until_ms),
                FetchState::Idle | FetchState::UnderWay => None,
            })
            .min()
    }

    /// Whether a conversation's position can be known only by a full sync.
    pub fn wants_full_sync(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// A full sync leaves now; it settles what is unknown at this moment.
    pub fn full_sync_began(&mut self) {
        for id in std::mem::take(&mut self.unknown) {
            if let Some(c) = self.conversations.get_mut(&id) {
                c.asked = true;
            }
        }
    }

    /// The full sync under way cannot answer for this conversation: only a later one settles it.
    pub fn full_sync_left_out(&mut self, conversation: &str) {
        if let Some(c) = self.conversations.get_mut(conversation) {
            c.asked = false;
        }
        self.settle(conversation, 0);
    }

    /// The full sync is answered: what it did not speak of was delivered before it was first seen
    /// here. Gives the conversations that have a position through this alone: what was seen of them
    /// may be of an earlier session, and more delivered elsewhere since, so they are worth a sync.
    pub fn full_sync_ended(&mut self) -> Vec<String> {
        let mut asked: Vec<String> = self
            .conversations
            .iter()
            .filter(|(_, c)| c.asked)
            .map(|(id, _)| id.clone())
            .collect();
        // Messages come out in an order that does not hang on the table's.
        asked.sort_unstable();
        let mut settled = Vec::new();
        for id in asked {
            if let Some(c) = self.conversations.get_mut(&id) {
                c.asked = false;
                if c.position.is_none() {
                    let lowest = c.waiting.keys().next().map(|seq| seq.saturating_sub(1));
                    let head = (c.head > 0).then_some(c.head);
                    c.position = lowest.into_iter().chain(head).min();
                    settled.push(id.clone());
                }
            }
            self.settle(&id, 0);
        }
        settled
    }

    /// The session is gone, and with it all that was asked.
    pub fn disconnected(&mut self) {
        self.fetches = 0;
        let ids: Vec<String> = self.conversations.keys().cloned().collect();
        for id in ids {
            if let Some(c) = self.conversations.get_mut(&id) {
                c.fetch = FetchState::Idle;
                c.asked = false;
            }
            self.settle(&id, 0);
        }
    }

    fn insert(&mut self, id: &str, seq: u64, slot: Slot) {
        self.touch(id);
        self.put(id, seq, slot, false);
    }

    /// Keeps a message until its turn. Beyond the bound it is only remembered that there is one.
    fn put(&mut self, id: &str, seq: u64, slot: Slot, in_order: bool) {
        let room = in_order || self.buffered < self.config.buffered_max;
        let Some(c) = self.conversations.get_mut(id) else {
            return;
        };
        if seq == 1 {
            // The first message of all: whatever the position was thought to be, it begins here.
            c.position.get_or_insert(0);
        }
        if c.position.is_some_and(|p| seq <= p) || c.waiting.contains_key(&seq) {
            return;
        }
        if !room && c.position.is_none_or(|p| seq != p + 1) {
            c.head = c.head.max(seq);
            return;
        }
        c.waiting.insert(seq, slot);
        self.buffered += 1;
    }

    /// Hands out what is in order, or covered by a page up to `covered`; then sees what is missing.
    fn settle(&mut self, id: &str, covered: u64) {
        let Some(c) = self.conversations.get_mut(id) else {
            return;
        };
        let Some(mut position) = c.position else {
            if c.asked || (c.waiting.is_empty() && c.head == 0) {
                self.unknown.remove(id);
            } else {
                self.unknown.insert(id.to_owned());
            }
            return;
        };
        while let Some(first) = c.waiting.first_entry() {
            let seq = *first.key();
            if seq > position.max(covered) + 1 {
                break;
            }
            self.buffered -= 1;
            if let Slot::Message(message) = first.remove()
                && seq > position
            {
                self.ready.push_back(*message);
            }
            position = position.max(seq);
        }
        c.position = Some(position.max(covered));
        if c.fetch != FetchState::UnderWay && c.gap().is_some() {
            self.gaps.insert(id.to_owned());
        } else {
            self.gaps.remove(id);
            if c.gap().is_none() && c.fetch != FetchState::UnderWay {
                c.fetch = FetchState::Idle;
            }
        }
        self.unknown.remove(id);
    }

    fn fetch_ended(&mut self, id: &str, retry_ms: Option<u64>) {
        if let Some(c) = self.conversations.get_mut(id)
            && c.fetch == FetchState::UnderWay
        {
            self.fetches -= 1;
            c.fetch = match retry_ms {
                Some(until_ms) => FetchState::Waiting { until_ms },
                None => FetchState::Idle,
            };
        }
    }

    /// The conversation, new if need be; the one that was quiet longest makes room.
    fn touch(&mut self, id: &str) -> &mut Conversation {
        self.touches += 1;
        let is_new = !self.conversations.contains_key(id);
        if is_new && self.conversations.len() >= self.config.conversations_max {
            let quietest = self
                .conversations
                .iter()
                .min_by_key(|(_, c)| c.touched)
                .map(|(id, _)| id.clone());
            if let Some(quietest) = quietest {
                self.forget(&quietest);
            }
        }
        let touched = self.touches;
        let c = self.conversations.entry(id.to_owned()).or_default();
        c.touched = touched;
        c
    }
}

/// Up to where a page leaves nothing missing, seen from `position`; 0: it says nothing about that.
fn covered(
    position: Option<u64>,
    origin: Origin,
    more: bool,
    first: Option<u64>,
    last: Option<u64>,
) -> u64 {
    let Some(position) = position else { return 0 };
    match (origin, last) {
        (Origin::Sync, Some(last)) => last,
        // It begins where the user's deliveries end, which other devices may have moved beyond us.
        (Origin::FullSync, Some(last)) if first.is_some_and(|f| f <= position + 1) => last,
        (Origin::Fetch { after, .. }, Some(last)) if after <= position => last,
        // Nothing there that we may see. (An empty page that promises more says nothing.)
        (Origin::Fetch { after, before }, None) if after <= position && !more => before - 1,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "inbox_tests.rs"]
mod tests;
