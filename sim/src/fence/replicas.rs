//! One replica of the tables that plain inserts write to, and how the answers of several make one.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_core::store::fenced::rows::{JournalEntry, MessageRow, Window};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::WatermarkRow;

/// An incarnation, by its number.
pub type Incarnation = u128;

/// A write, as it reaches each replica by itself.
#[derive(Clone, Debug)]
pub enum Mutation {
    /// Rows, each with the time of the write.
    Messages(ConversationId, u64, Vec<(MessageRow, u64)>),
    /// Deletes rows up to a seq that are not newer than the time.
    Delete(ConversationId, u64, u64),
    Journal(Incarnation, Window, Vec<JournalEntry>),
    EndWindow(Incarnation, Window),
    Watermarks(ConversationId, Vec<(String, WatermarkRow)>),
    /// Deletes a user's watermark, whatever it is.
    DropWatermark(ConversationId, String),
    Index(Vec<String>, ConversationId),
}

/// Rows of one conversation with the times of their writes, by (seq, epoch).
pub type Rows = BTreeMap<(u64, u64), (MessageRow, u64)>;

/// Of one conversation: rows, and what was deleted of it (up to which seq, when).
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub rows: Rows,
    deleted: Vec<(u64, u64)>,
}

impl Log {
    pub fn put(&mut self, row: &MessageRow, at: u64) {
        let key = (row.message.seq, row.epoch);
        if self.is_deleted(key.0, at) {
            return;
        }
        match self.rows.get_mut(&key) {
            // Of two values of one time the greater one stays.
            Some((known, when)) => {
                if (at, &row.message.content) > (*when, &known.message.content) {
                    (*known, *when) = (row.clone(), at);
                }
            }
            None => {
                self.rows.insert(key, (row.clone(), at));
            }
        }
    }

    fn is_deleted(&self, seq: u64, at: u64) -> bool {
        self.deleted
            .iter()
            .any(|(up_to, when)| seq <= *up_to && at <= *when)
    }

    fn delete(&mut self, up_to: u64, when: u64) {
        self.deleted.push((up_to, when));
        self.rows
            .retain(|(seq, _), (_, at)| *seq > up_to || *at > when);
    }

    /// What two replicas know together.
    pub fn merge(&mut self, other: &Self) {
        for (up_to, when) in &other.deleted {
            if !self.deleted.contains(&(*up_to, *when)) {
                self.delete(*up_to, *when);
            }
        }
        for (row, at) in other.rows.values() {
            self.put(row, *at);
        }
    }
}

/// Entries of a window, and whether it is done.
pub type JournalWindow = (BTreeMap<ConversationId, u64>, bool);

/// Of two entries of a conversation the lower one stays.
pub fn enter(entries: &mut BTreeMap<ConversationId, u64>, id: ConversationId, first_seq: u64) {
    let first = entries.entry(id).or_insert(first_seq);
    *first = first_seq.min(*first);
}

/// A replica.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    pub logs: BTreeMap<ConversationId, Log>,
    pub journal: BTreeMap<(Incarnation, Window), JournalWindow>,
    pub watermarks: BTreeMap<(ConversationId, String), WatermarkRow>,
    /// Whose watermarks were deleted: nothing that has a seq for its time is seen again.
    dropped: BTreeSet<(ConversationId, String)>,
    pub index: BTreeMap<String, BTreeSet<ConversationId>>,
    /// It answers nothing until then.
    pub down_until_ns: u64,
    /// All that was written, for a replica that forgets.
    written: Vec<(u64, Mutation)>,
}

impl Replica {
    pub fn write(&mut self, now_ns: u64, mutation: &Mutation) {
        self.written.push((now_ns, mutation.clone()));
        self.apply(mutation);
    }

    fn apply(&mut self, mutation: &Mutation) {
        match mutation {
            Mutation::Messages(id, _, rows) => {
                let log = self.logs.entry(*id).or_default();
                for (row, at) in rows {
                    log.put(row, *at);
                }
            }
            Mutation::Delete(id, up_to, when) => {
                self.logs.entry(*id).or_default().delete(*up_to, *when);
            }
            Mutation::Journal(incarnation, window, entries) => {
                let (known, _) = self.journal.entry((*incarnation, *window)).or_default();
                for entry in entries {
                    enter(known, entry.conversation, entry.first_seq);
                }
            }
            Mutation::EndWindow(incarnation, window) => {
                self.journal.entry((*incarnation, *window)).or_default().1 = true;
            }
            Mutation::Watermarks(id, marks) => {
                for (user, mark) in marks {
                    self.mark(*id, user, *mark);
                }
            }
            Mutation::DropWatermark(id, user) => {
                let key = (*id, user.clone());
                self.watermarks.remove(&key);
                self.dropped.insert(key);
            }
            Mutation::Index(users, id) => {
                for user in users {
                    self.index.entry(user.clone()).or_default().insert(*id);
                }
            }
        }
    }

    fn mark(&mut self, id: ConversationId, user: &str, mark: WatermarkRow) {
        let key = (id, user.to_owned());
        if self.dropped.contains(&key) {
            return;
        }
        let known = self.watermarks.entry(key).or_default();
        known.delivered_seq = known.delivered_seq.max(mark.delivered_seq);
        known.read_seq = known.read_seq.max(mark.read_seq);
    }

    /// What was written since then is gone: a commit log that had not been synced.
    pub fn forget_since(&mut self, since_ns: u64) {
        let mut kept = std::mem::take(&mut self.written);
        kept.retain(|(at, _)| *at < since_ns);
        let down_until_ns = self.down_until_ns;
        *self = Self {
            down_until_ns,
            ..Self::default()
        };
        for (_, mutation) in &kept {
            self.apply(mutation);
        }
        self.written = kept;
    }

    /// What two replicas know together, of everything.
    pub fn merge(&mut self, other: &Self) {
        for (id, log) in &other.logs {
            self.logs.entry(*id).or_default().merge(log);
        }
        for (key, (entries, done)) in &other.journal {
            let (known, is_done) = self.journal.entry(*key).or_default();
            for (id, first_seq) in entries {
                enter(known, *id, *first_seq);
            }
            *is_done |= done;
        }
        for key in &other.dropped {
            self.watermarks.remove(key);
            self.dropped.insert(key.clone());
        }
        for ((id, user), mark) in &other.watermarks {
            self.mark(*id, user, *mark);
        }
        for (user, ids) in &other.index {
            self.index.entry(user.clone()).or_default().extend(ids);
        }
    }
}
