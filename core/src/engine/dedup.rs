//! The newest messages of a conversation by sender and `client_msg_id`: what makes a repeated send
//! answer with the message that it made the first time.
//!
//! Entries are hashes, not texts: 128 bits of the key and 64 of the content under a secret seed, so
//! that a window of 4,096 messages takes about 250 KB and not megabytes. The window follows seqs
//! without a gap, which makes a seq an index.

use std::collections::VecDeque;

use hashbrown::HashTable;
use trunkline_proto::client::Message;
use trunkline_proto::limits::DEDUP_WINDOW;

use super::hash::Seeded;
use super::registry::UserRef;

/// Sender and `client_msg_id`, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    low: u64,
    high: u64,
}

impl Key {
    pub fn new(hash: Seeded, sender: UserRef, client_msg_id: &str) -> Self {
        let wide = hash.scoped_text(sender.number(), client_msg_id);
        Self {
            low: wide as u64,
            high: (wide >> 64) as u64,
        }
    }
}

/// Content and content type, hashed: what a repeated send is compared by.
pub(super) fn print(hash: Seeded, content: &str, content_type: &str) -> u64 {
    Seeded(hash.text(content_type)).text(content)
}

/// A message as the window knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    key: Key,
    pub print: u64,
    pub message_id: u64,
    pub ts: u64,
    pub sender: UserRef,
}

/// The window of one conversation.
pub(super) struct Window {
    /// Seq of the first entry.
    first: u64,
    entries: VecDeque<Known>,
    /// The low halves of seqs, by key.
    by_key: HashTable<u32>,
}

impl Window {
    /// An empty window whose first entry will have this seq.
    pub fn starting_at(seq: u64) -> Self {
        Self {
            first: seq,
            entries: VecDeque::new(),
            by_key: HashTable::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The message that was sent under this key, and its seq.
    pub fn find(&self, key: Key) -> Option<(u64, Known)> {
        let low = *self.by_key.find(key.low, |&low| {
            self.entries
                .get(self.position(low))
                .is_some_and(|k| k.key == key)
        })?;
        let position = self.position(low);
        Some((self.first + position as u64, *self.entries.get(position)?))
    }

    /// Adds the message with the next seq.
    pub fn push(&mut self, key: Key, print: u64, sender: UserRef, message: &Message) {
        let seq = self.first + self.entries.len() as u64;
        debug_assert_eq!(seq, message.seq, "the window follows the seqs");
        self.entries.push_back(Known {
            key,
            print,
            message_id: message.message_id,
            ts: message.ts,
            sender,
        });
        let (first, entries) = (self.first, &self.entries);
        self.by_key.insert_unique(key.low, seq as u32, |&low| {
            entries[low.wrapping_sub(first as u32) as usize].key.low
        });
    }

    /// Drops what is older than the newest [`DEDUP_WINDOW`] committed messages, and says how many
    /// entries these were.
    pub fn trim(&mut self, committed: u64) -> usize {
        let before = self.entries.len();
        while self.first + DEDUP_WINDOW <= committed {
            let Some(known) = self.entries.pop_front() else {
                break;
            };
            let low = self.first as u32;
            if let Ok(found) = self.by_key.find_entry(known.key.low, |&l| l == low) {
                found.remove();
            }
            self.first += 1;
        }
        before - self.entries.len()
    }

    /// Senders of the messages `from..=to`, as far as they are in the window.
    pub fn senders(&self, from: u64, to: u64) -> impl Iterator<Item = UserRef> {
        let start = from.saturating_sub(self.first) as usize;
        let end = (to + 1).saturating_sub(self.first) as usize;
        let end = end.min(self.entries.len());
        self.entries
            .range(start.min(end)..end)
            .map(|known| known.sender)
    }

    fn position(&self, low: u32) -> usize {
        low.wrapping_sub(self.first as u32) as usize
    }
}
