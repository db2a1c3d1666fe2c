//! The promises, as rules about what crosses the boundaries of the store. Draws nothing, changes
//! nothing. Numbers in brackets are the invariants of `docs/adr/0008-the-fenced-store.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Arguments;

use trunkline_core::store::fenced::rows::{Change, Conversation, Fence, MessageRow};
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::WatermarkRow;

use super::replicas::{Log, Replica};
use crate::trace::Trace;

/// A change of members that was acknowledged.
#[derive(Clone, Debug)]
pub struct Changed {
    pub version: u64,
    /// The seq after which the member sees nothing; `None`: the member is in.
    pub until: Option<u64>,
}

/// What was seen of one conversation.
#[derive(Default)]
struct Seen {
    /// Acked, pushed, paged or published: message ids by seq.
    shown: BTreeMap<u64, u64>,
    acked: BTreeMap<u64, u64>,
    /// When each was sent first, by `client_msg_id`.
    sent_ns: BTreeMap<String, u64>,
    bus: Vec<u64>,
    /// Deleted up to here, and so that a quorum knows it.
    expired: u64,
    expired_for_sure: u64,
    changes: Vec<Changed>,
    /// Removals as they were carried out: up to which seq, and when.
    removals: Vec<(u64, u64)>,
    /// The highest watermark that was stored, of each user.
    watermarks: BTreeMap<String, u64>,
}

impl Seen {
    fn head(&self) -> u64 {
        self.acked.keys().next_back().copied().unwrap_or(0)
    }
}

/// See the module.
pub struct Check {
    pub violations: Vec<String>,
    pub trace: Trace,
    seen: BTreeMap<ConversationId, Seen>,
    counts: BTreeMap<&'static str, u64>,
}

/// The epoch whose row of this seq counts.
fn owner(fences: &[Fence], seq: u64) -> u64 {
    let within = fences.iter().filter(|fence| fence.first_seq <= seq);
    within.map(|fence| fence.epoch).max().unwrap_or(0)
}

fn short(id: ConversationId) -> u8 {
    id.as_bytes()[15]
}

impl Check {
    pub fn new(keep_trace: bool) -> Self {
        Self {
            violations: Vec::new(),
            trace: Trace::new(keep_trace),
            seen: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    pub fn note(&mut self, now_ns: u64, what: Arguments<'_>) {
        self.trace.line(now_ns, what);
    }

    pub fn violated(&mut self, now_ns: u64, what: String) {
        self.trace.line(now_ns, format_args!("VIOLATED {what}"));
        self.violations.push(what);
    }

    fn of(&mut self, id: ConversationId) -> &mut Seen {
        self.seen.entry(id).or_default()
    }

    pub fn sent(&mut self, now_ns: u64, id: ConversationId, client_msg_id: &str) {
        let sent = &mut self.of(id).sent_ns;
        sent.entry(client_msg_id.to_owned()).or_insert(now_ns);
    }

    /// A message left the system (2, 5).
    pub fn shown(&mut self, now_ns: u64, how: &str, id: ConversationId, message: &Message) {
        let (seq, message_id) = (message.seq, message.message_id);
        if message.content != message.client_msg_id || message.content.is_empty() {
            let what = format!("{how} {}/{seq} without its content", short(id));
            self.violated(now_ns, what);
        }
        self.shown_id(now_ns, how, id, seq, message_id);
    }

    fn shown_id(&mut self, now_ns: u64, how: &str, id: ConversationId, seq: u64, message_id: u64) {
        let known = *self.of(id).shown.entry(seq).or_insert(message_id);
        if known != message_id {
            let what = format!(
                "{how} {}/{seq} as {message_id}, which was {known} before",
                short(id)
            );
            self.violated(now_ns, what);
        }
    }

    pub fn acked(&mut self, now_ns: u64, id: ConversationId, seq: u64, message_id: u64) {
        self.count("acks");
        self.note(now_ns, format_args!("ack {}/{seq} {message_id}", short(id)));
        self.shown_id(now_ns, "acked", id, seq, message_id);
        self.of(id).acked.insert(seq, message_id);
    }

    /// The highest seq that was acked up to now: what a sync that begins now has to reach (6, 7).
    pub fn head(&mut self, id: ConversationId) -> u64 {
        self.of(id).head()
    }

    pub fn synced(&mut self, now_ns: u64, id: ConversationId, at_least: u64, head: u64) {
        self.count("syncs");
        if head < at_least {
            let what = format!("a sync of {} ends at {head}, below {at_least}", short(id));
            self.violated(now_ns, what);
        }
    }

    /// Up to where messages are gone for sure.
    pub fn gone(&mut self, id: ConversationId) -> u64 {
        self.of(id).expired_for_sure
    }

    /// A page: whole, but for what has expired, and without what was `gone` before it was asked for.
    pub fn paged(&mut self, now_ns: u64, id: ConversationId, gone: u64, messages: &[Message]) {
        for message in messages {
            if message.seq <= gone {
                let what = format!("{}/{} was deleted and is back", short(id), message.seq);
                self.violated(now_ns, what);
            }
            self.shown(now_ns, "paged", id, message);
        }
        let expired = self.of(id).expired;
        let has_gap =
            |pair: &[Message]| pair[1].seq != pair[0].seq + 1 && pair[1].seq > expired + 1;
        if let Some(pair) = messages.windows(2).find(|pair| has_gap(pair)) {
            let (before, seq) = (pair[0].seq, pair[1].seq);
            let what = format!("a page of {} goes from {before} to {seq}", short(id));
            self.violated(now_ns, what);
        }
    }

    pub fn published(&mut self, now_ns: u64, id: ConversationId, message: &Message) {
        self.note(
            now_ns,
            format_args!("published {}/{}", short(id), message.seq),
        );
        self.shown(now_ns, "published", id, message);
        let expired = self.of(id).expired;
        let bus = &mut self.of(id).bus;
        if bus.contains(&message.seq) {
            self.count("published_again");
            return;
        }
        let before = bus.last().copied().unwrap_or(0);
        bus.push(message.seq);
        // What has expired before it was published by its owner is past mending.
        if message.seq < before && message.seq > expired {
            let what = format!("{}/{} published after {before}", short(id), message.seq);
            self.violated(now_ns, what);
        }
    }

    pub fn expired(&mut self, id: ConversationId, up_to: u64, for_sure: bool) {
        self.count("expirations");
        let seen = self.of(id);
        seen.expired = seen.expired.max(up_to);
        if for_sure {
            seen.expired_for_sure = seen.expired_for_sure.max(up_to);
        }
    }

    pub fn membership(&mut self, now_ns: u64, id: ConversationId, change: Changed) {
        self.count("membership_changes");
        let known = &mut self.of(id).changes;
        let is_other = |c: &Changed| c.version == change.version && c.until != change.until;
        if known.iter().any(is_other) {
            let what = format!("version {} of {} twice", change.version, short(id));
            self.violated(now_ns, what);
            return;
        }
        known.push(change);
    }

    /// A watermark that is not above the committed head was stored.
    pub fn marked(&mut self, id: ConversationId, user: &str, seq: u64) {
        self.count("receipts");
        let known = self.of(id).watermarks.entry(user.to_owned()).or_default();
        *known = seq.max(*known);
    }

    /// A conditional write was carried out (1, 4).
    pub fn changed(
        &mut self,
        now_ns: u64,
        id: ConversationId,
        before: Option<&Conversation>,
        after: &Conversation,
        change: &Change,
        logs: &[Log],
    ) {
        self.note(
            now_ns,
            format_args!(
                "conversation {} revision {} epoch {} settled {} top {} {:?}",
                short(id),
                after.revision,
                after.epoch,
                after.settled,
                after.top_bucket,
                change.fence
            ),
        );
        let Some(before) = before else {
            return;
        };
        let bob = change.members.iter().find(|(user, _)| user == "bob");
        let until = bob.and_then(|(_, bob)| bob.intervals.last()?.until_seq);
        if let Some(until) = until {
            self.of(id).removals.push((until, now_ns));
        }
        if after.settled < before.settled {
            let what = format!("settled of {} falls to {}", short(id), after.settled);
            self.violated(now_ns, what);
        }
        self.all_valid(now_ns, "settled", id, before, after.settled, logs);
        let Some(fence) = change.fence else {
            return;
        };
        self.count("fences");
        let newest = before.fences.last().copied();
        if newest.is_some_and(|n| n.epoch >= fence.epoch || n.first_seq > fence.first_seq) {
            let what = format!("fence {fence:?} of {} after {newest:?}", short(id));
            self.violated(now_ns, what);
        }
        let acked = self.of(id).head();
        if acked >= fence.first_seq {
            let what = format!("{}/{acked} was acked, {fence:?} denies it", short(id));
            self.violated(now_ns, what);
        }
        let last = fence.first_seq - 1;
        self.all_valid(now_ns, "fenced", id, before, last, logs);
    }

    /// Every seq up to `last` lies on a quorum (4).
    fn all_valid(
        &mut self,
        now_ns: u64,
        how: &str,
        id: ConversationId,
        conversation: &Conversation,
        last: u64,
        logs: &[Log],
    ) {
        let expired = self.of(id).expired;
        for seq in expired + 1..=last {
            let key = (seq, owner(&conversation.fences, seq));
            let have = logs.iter().filter(|log| log.rows.contains_key(&key));
            if have.count() < 2 {
                let what = format!("{}/{seq} {how}, and not on a quorum", short(id));
                return self.violated(now_ns, what);
            }
        }
    }

    /// The end: what all quorums know, after the last owner has taken everything up.
    pub fn end(
        &mut self,
        now_ns: u64,
        id: ConversationId,
        conversation: &Conversation,
        head: u64,
        quorums: &[Replica],
    ) {
        let nothing = Log::default();
        for quorum in quorums {
            let log = quorum.logs.get(&id).unwrap_or(&nothing);
            let valid = log.rows.values().map(|(row, _)| row).filter(|row| {
                row.message.seq <= head && owner(&conversation.fences, row.message.seq) == row.epoch
            });
            let valid: BTreeMap<u64, &MessageRow> =
                valid.map(|row| (row.message.seq, row)).collect();
            self.end_of_log(now_ns, id, head, &valid);
            for user in conversation.members.iter().map(|(user, _)| user) {
                let ids = quorum.index.get(user);
                if !ids.is_some_and(|ids| ids.contains(&id)) {
                    let what = format!("{} is not in the index of {user}", short(id));
                    self.violated(now_ns, what);
                }
                let mark = quorum.watermarks.get(&(id, user.clone()));
                self.end_of_watermark(now_ns, id, user, head, mark);
            }
        }
        self.end_of_bus(now_ns, id);
        self.end_of_members(now_ns, id, conversation, &quorums[0]);
    }

    fn end_of_log(
        &mut self,
        now_ns: u64,
        id: ConversationId,
        head: u64,
        valid: &BTreeMap<u64, &MessageRow>,
    ) {
        let mut found = Vec::new();
        let seen = self.of(id);
        let (mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for seq in 1..=head.max(seen.shown.keys().next_back().copied().unwrap_or(0)) {
            let Some(row) = valid.get(&seq) else {
                if seq > seen.expired {
                    found.push(format!("{}/{seq} is missing", short(id)));
                }
                continue;
            };
            let message = &row.message;
            if seq <= seen.expired_for_sure {
                found.push(format!("{}/{seq} was deleted and is back", short(id)));
            }
            if message.content != message.client_msg_id {
                found.push(format!("{}/{seq} has lost its content", short(id)));
            }
            if seen
                .shown
                .get(&seq)
                .is_some_and(|s| *s != message.message_id)
            {
                found.push(format!("{}/{seq} is not what was shown", short(id)));
            }
            if seq <= seen.expired {
                // Who sends again what has expired sends something new.
                continue;
            }
            if !ids.insert(message.message_id) || !keys.insert(&message.client_msg_id) {
                found.push(format!("{}/{seq} is there twice", short(id)));
            }
        }
        for what in found {
            self.violated(now_ns, what);
        }
    }

    fn end_of_watermark(
        &mut self,
        now_ns: u64,
        id: ConversationId,
        user: &str,
        head: u64,
        mark: Option<&WatermarkRow>,
    ) {
        let seq = mark.map_or(0, |mark| mark.delivered_seq);
        let stored = self.of(id).watermarks.get(user).copied().unwrap_or(0);
        if seq > head || seq < stored {
            let what = format!(
                "watermark of {user} in {}: {seq}, stored {stored}, head {head}",
                short(id)
            );
            self.violated(now_ns, what);
        }
    }

    /// Each acked message is on the bus (8).
    fn end_of_bus(&mut self, now_ns: u64, id: ConversationId) {
        let seen = self.of(id);
        let missing: Vec<u64> = seen
            .acked
            .keys()
            .filter(|seq| **seq > seen.expired && !seen.bus.contains(seq))
            .copied()
            .collect();
        if let Some(seq) = missing.first() {
            self.violated(now_ns, format!("{}/{seq} was never published", short(id)));
        }
    }

    /// What was acked of members holds, and who was removed sees nothing that was sent after (9).
    fn end_of_members(
        &mut self,
        now_ns: u64,
        id: ConversationId,
        conversation: &Conversation,
        quorum: &Replica,
    ) {
        let bob = conversation.members.iter().find(|(user, _)| user == "bob");
        let Some((_, bob)) = bob else { return };
        let version = bob.joined_at;
        let until = bob.intervals.last().and_then(|i| i.until_seq);
        let changes = self.of(id).changes.clone();
        for change in &changes {
            if change.version > version {
                let what = format!("change {} of {} is undone", change.version, short(id));
                return self.violated(now_ns, what);
            }
            if change.version == version && change.until != until {
                let what = format!("change {version} of {} is another", short(id));
                return self.violated(now_ns, what);
            }
        }
        let removals = self.of(id).removals.clone();
        let sent = self.of(id).sent_ns.clone();
        let Some(log) = quorum.logs.get(&id) else {
            return;
        };
        for (row, _) in log.rows.values() {
            let is_valid = owner(&conversation.fences, row.message.seq) == row.epoch;
            let sent_ns = sent.get(&row.message.client_msg_id).copied().unwrap_or(0);
            let seq = row.message.seq;
            let is_later = |(until, at): &&(u64, u64)| seq <= *until && sent_ns > *at;
            if let Some((until, _)) = removals.iter().find(is_later).filter(|_| is_valid) {
                let what = format!(
                    "bob was removed from {} at {until}, and sees {seq}, which was sent later",
                    short(id)
                );
                return self.violated(now_ns, what);
            }
        }
    }
}
