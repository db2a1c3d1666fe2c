//! One conversation in memory: its members and what each may see, its seqs, and what waits for a
//! commit.
//!
//! Invariants:
//! 1. `committed + pending.len() == assigned`, and `pending` holds exactly the messages between.
//! 2. Members, title and version are the committed ones. A change lies beside them in `change` until
//!    its commit returned, and while it does, every other operation waits (see [`super::cache`]).
//! 3. `recent` holds the newest committed messages without a gap.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::{self, ConversationRow, MemberRow, WatermarkRow};

use super::dedup::{Key, Window, print};
use super::hash::Seeded;
use super::membership::Change;
use super::registry::{Registry, UserRef};
use super::reply::{SessionRef, Ticket};
use super::{ConversationView, Kind, Role};
use crate::store::Snapshot;

/// Committed messages kept for pages, per conversation.
pub(super) const RECENT_KEPT: usize = 64;

/// `until` of an interval that is still open.
pub(super) const OPEN: u64 = u64::MAX;

/// Seqs that a member may see: `after < seq <= until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub after: u64,
    pub until: u64,
}

/// Ascending, apart; the last one is open while the member is in.
pub(super) type Intervals = SmallVec<[Interval; 1]>;

/// One who is in, or was.
pub(super) struct Member {
    pub user: UserRef,
    pub role: Role,
    pub joined_at: u64,
    pub intervals: Intervals,
    pub delivered: u64,
    pub read: u64,
    /// Queued to be written.
    pub dirty: bool,
}

impl Member {
    pub fn new(user: UserRef, role: Role, joined_at: u64, after: u64) -> Self {
        Self {
            user,
            role,
            joined_at,
            intervals: SmallVec::from_buf([Interval { after, until: OPEN }]),
            delivered: 0,
            read: 0,
            dirty: false,
        }
    }

    pub fn is_present(&self) -> bool {
        self.intervals.last().is_some_and(|i| i.until == OPEN)
    }

    /// The highest seq up to `head` that the member may see; 0: none.
    pub fn visible_head(&self, head: u64) -> u64 {
        self.intervals
            .iter()
            .rev()
            .find(|i| i.after < head.min(i.until))
            .map_or(0, |i| head.min(i.until))
    }

    /// The seqs that the member may see within `from..=to`, as inclusive ranges, ascending.
    pub fn visible(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        self.intervals
            .iter()
            .map(move |i| (from.max(i.after.saturating_add(1)), to.min(i.until)))
            .filter(|(a, b)| a <= b)
    }

    pub fn watermark_row(&self) -> WatermarkRow {
        WatermarkRow {
            delivered_seq: self.delivered,
            read_seq: self.read,
        }
    }
}

/// A member's row with these contents.
pub(super) fn member_row(role: Role, joined_at: u64, intervals: &[Interval]) -> MemberRow {
    MemberRow {
        role: match role {
            Role::Member => 1,
            Role::Admin => 2,
            Role::Owner => 3,
        },
        joined_at,
        intervals: intervals
            .iter()
            .map(|i| store::Interval {
                after_seq: i.after,
                until_seq: (i.until != OPEN).then_some(i.until),
            })
            .collect(),
    }
}

/// Who waits for a message to be durable.
pub(super) struct Waiter {
    pub ticket: Ticket,
    pub duplicate: bool,
}

/// A message that was given a seq and is not yet durable.
pub(super) struct Pending {
    pub message: Arc<Message>,
    /// The session that sent it: it gets no `message`.
    pub from: Option<SessionRef>,
    pub waiters: SmallVec<[Waiter; 1]>,
}

/// The state of a conversation.
pub(super) struct Conversation {
    pub id: ConversationId,
    pub kind: Kind,
    pub title: String,
    pub version: u64,
    pub created_at: u64,
    /// When members, roles or title changed last.
    pub changed_at: u64,
    pub deleted: bool,
    /// Present and former, ascending by their refs.
    pub members: Vec<Member>,
    pub present: u32,
    /// The last seq given.
    pub assigned: u64,
    /// The last seq that is durable.
    pub committed: u64,
    /// Of the last message given a seq.
    pub last_ts: u64,
    /// Of the last durable message; 0 when there is none.
    pub committed_ts: u64,
    pub window: Window,
    pub recent: VecDeque<Arc<Message>>,
    pub recent_bytes: usize,
    pub pending: VecDeque<Pending>,
    pub change: Option<Box<Change>>,
    /// The number of its roster, which may be gone.
    pub roster: Option<u64>,
    /// Messages since there is none that were for many.
    pub wide_messages: u32,
}

impl Conversation {
    /// A conversation that did not exist. Retains its members, who are handed in ascending.
    pub fn create(
        registry: &mut Registry,
        id: ConversationId,
        kind: Kind,
        title: String,
        now_ms: u64,
        members: Vec<Member>,
    ) -> Self {
        debug_assert!(members.is_sorted_by(|a, b| a.user < b.user));
        for member in &members {
            registry.retain(member.user);
        }
        Self {
            id,
            kind,
            title,
            version: 1,
            created_at: now_ms,
            changed_at: now_ms,
            deleted: false,
            present: members.len() as u32,
            members,
            assigned: 0,
            committed: 0,
            last_ts: 0,
            committed_ts: 0,
            window: Window::starting_at(1),
            recent: VecDeque::new(),
            recent_bytes: 0,
            pending: VecDeque::new(),
            change: None,
            roster: None,
            wide_messages: 0,
        }
    }

    /// A conversation as the store has it. Retains its members.
    pub fn take_up(
        registry: &mut Registry,
        hash: Seeded,
        id: ConversationId,
        snapshot: Snapshot,
    ) -> Result<Self, &'static str> {
        let row = snapshot.row;
        let kind = match row.kind {
            1 => Kind::Direct,
            2 => Kind::Group,
            3 => Kind::Channel,
            _ => return Err("unknown kind of conversation"),
        };
        let gapless = snapshot
            .recent
            .iter()
            .rev()
            .zip((1..=snapshot.head).rev())
            .all(|(message, seq)| message.seq == seq);
        if !gapless || snapshot.recent.len() as u64 > snapshot.head {
            return Err("newest messages with a gap");
        }
        let mut members = Vec::with_capacity(snapshot.members.len());
        for (name, member) in &snapshot.members {
            members.push(take_up_member(registry, name, member)?);
        }
        members.sort_unstable_by_key(|m| m.user);
        let joined_last = members.iter().map(|m| m.joined_at).max().unwrap_or(0);
        let last_ts = snapshot.recent.last().map_or(0, |m| m.ts);
        let mut this = Self {
            changed_at: joined_last.max(row.created_at).max(row.changed_at),
            title: row.title,
            version: row.version,
            created_at: row.created_at,
            deleted: row.deleted,
            assigned: snapshot.head,
            committed: snapshot.head,
            last_ts,
            committed_ts: last_ts,
            window: Window::starting_at(snapshot.head + 1 - snapshot.recent.len() as u64),
            ..Self::create(registry, id, kind, String::new(), 0, members)
        };
        this.present = this.members.iter().filter(|m| m.is_present()).count() as u32;
        for (name, watermark) in &snapshot.watermarks {
            let user = registry.intern(name);
            if let Some(member) = this.member_mut(user) {
                member.delivered = watermark.delivered_seq;
                member.read = watermark.read_seq;
            }
        }
        this.take_up_recent(registry, hash, snapshot.recent);
        Ok(this)
    }

    /// Fills the window, and memory for pages, from the newest messages.
    fn take_up_recent(&mut self, registry: &mut Registry, hash: Seeded, recent: Vec<Message>) {
        let recent_from = recent.len().saturating_sub(RECENT_KEPT);
        for (index, message) in recent.into_iter().enumerate() {
            let sender = registry.intern(&message.sender_id);
            let key = Key::new(hash, sender, &message.client_msg_id);
            let print = print(hash, &message.content, &message.content_type);
            self.window.push(key, print, sender, &message);
            if index >= recent_from {
                self.remember(Arc::new(message));
            }
        }
    }

    pub fn row(&self) -> ConversationRow {
        ConversationRow {
            kind: match self.kind {
                Kind::Direct => 1,
                Kind::Group => 2,
                Kind::Channel => 3,
            },
            title: self.title.clone(),
            version: self.version,
            created_at: self.created_at,
            deleted: self.deleted,
            changed_at: self.changed_at,
        }
    }

    pub fn member(&self, user: UserRef) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&user, |m| m.user).ok()?;
        self.members.get(at)
    }

    pub fn member_mut(&mut self, user: UserRef) -> Option<&mut Member> {
        let at = self.members.binary_search_by_key(&user, |m| m.user).ok()?;
        self.members.get_mut(at)
    }

    /// The member, if present.
    pub fn present_member(&self, user: UserRef) -> Option<&Member> {
        self.member(user).filter(|m| m.is_present())
    }

    pub fn present_members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.is_present())
    }

    /// Keeps a committed message for pages, and lets an older one go.
    pub fn remember(&mut self, message: Arc<Message>) {
        self.recent_bytes += weight(&message);
        self.recent.push_back(message);
        if self.recent.len() > RECENT_KEPT
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_bytes -= weight(&oldest);
        }
    }

    /// The committed messages `from..=to`, if memory has them all.
    pub fn recall(&self, from: u64, to: u64) -> Option<impl Iterator<Item = &Arc<Message>>> {
        let first = self.recent.front()?.seq;
        if from < first || to > self.committed {
            return None;
        }
        Some(
            self.recent
                .range((from - first) as usize..=(to - first) as usize),
        )
    }

    /// The pending message with this seq.
    pub fn pending_mut(&mut self, seq: u64) -> Option<&mut Pending> {
        let at = seq.checked_sub(self.committed + 1)?;
        self.pending.get_mut(at as usize)
    }

    /// When something happened last: a message, or else the creation.
    pub fn activity(&self) -> u64 {
        self.committed_ts.max(self.created_at)
    }

    /// As `member` sees it.
    pub fn view(&self, registry: &Registry, member: &Member) -> ConversationView {
        let present = member.is_present();
        ConversationView {
            conversation_id: self.id,
            kind: self.kind,
            title: self.title.clone(),
            role: if present { member.role } else { Role::Member },
            version: self.version,
            head_seq: self.head_for(member),
            member_count: self.present,
            created_at: self.created_at,
            peer: (self.kind == Kind::Direct).then(|| {
                let peer = self.members.iter().find(|m| m.user != member.user);
                registry.name(peer.unwrap_or(member).user).to_owned()
            }),
        }
    }

    /// The head as `member` is told it: that of the conversation, or the last seq before leaving.
    pub fn head_for(&self, member: &Member) -> u64 {
        if member.is_present() {
            self.committed
        } else {
            member.visible_head(self.committed)
        }
    }
}

fn take_up_member(
    registry: &mut Registry,
    name: &str,
    row: &MemberRow,
) -> Result<Member, &'static str> {
    let role = match row.role {
        1 => Role::Member,
        2 => Role::Admin,
        3 => Role::Owner,
        _ => return Err("unknown role of a member"),
    };
    let intervals = row.intervals.iter().map(|i| Interval {
        after: i.after_seq,
        until: i.until_seq.unwrap_or(OPEN),
    });
    Ok(Member {
        intervals: intervals.collect(),
        ..Member::new(registry.intern(name), role, row.joined_at, 0)
    })
}

/// About what a message takes in memory.
fn weight(message: &Message) -> usize {
    // The struct, five allocations' slack, the id's text.
    const FIXED: usize = 320;
    FIXED + message.content.len() + message.client_msg_id.len() + message.sender_id.len()
}
