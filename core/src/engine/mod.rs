//! The engine: everything that the core decides, as one pure state machine. `(state, input, now) →
//! effects`; no clock, no I/O, no randomness that was not handed in. The runtime feeds it on one
//! thread and carries out what it asks for; the simulator does the same with a seeded world.
//!
//! # Layout
//! - `machine`: the [`Engine`], where inputs are told apart; `work`: what is done to a conversation
//! - `registry`, `sessions`: who is connected, and what edges say
//! - `owned`, `catchup`, `afar`: which conversations are this core's, those that another left, and
//!   what others are asked
//! - `cache`, `conversation`: what is in memory, and what waits for it
//! - `send`, `dedup`: the order, and what was here before
//! - `commit`: the open batch, the one under way, and what it lets out
//! - `membership`, `receipts`: what changes beside messages
//! - `read`, `gather`, `views`: pages, work over many conversations, what REST shows
//! - `reply`, `fanout`, `rosters`: answers and deliveries, and the lists that edges keep for these
//!
//! Invariants:
//! 1. A seq is given once, next after the last, and to one content. A write whose outcome is unknown
//!    is repeated unchanged until it is settled.
//! 2. Nothing of a message leaves (ack, delivery, page, dedup answer) before its commit returned.
//! 3. For each conversation and session deliveries ascend by seq, and the sender's ack for n comes
//!    after all messages below n and before all above it.
//! 4. Every operation of an edge is answered or refused, and counted as settled exactly once.
//! 5. Memory is bounded: operations by the edges' credit, conversations by
//!    [`EngineConfig::conversations_cached_max`] and [`EngineConfig::dedup_entries_max`].

mod afar;
mod cache;
mod catchup;
mod commit;
mod conversation;
mod dedup;
mod fanout;
mod gather;
mod handles;
mod hash;
mod machine;
mod membership;
mod names;
mod owned;
mod read;
mod receipts;
mod registry;
mod reply;
mod rosters;
mod send;
mod sessions;
mod slab;
mod stats;
mod views;
mod work;

#[cfg(test)]
mod tests;

pub use machine::Engine;
pub use stats::{EngineStats, RegisteredSession, RegistryBytes};

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use trunkline_proto::client::{Ack, Error, Message, Page, SendMessage};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::link::{CoreOp, EdgeHello, EdgeOp};

use crate::store::{ReadRange, Snapshot, StoreError, WriteBatch};

/// An attached edge stream: given by the runtime, a new one for each attach, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey(pub u32);

/// Names something that was asked for, until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// The time, as the runtime read it at the turn's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, ns from any origin.
    pub mono_ns: u64,
    /// ms since the Unix epoch; may jump.
    pub unix_ms: u64,
}

/// What happens to the engine.
#[derive(Debug)]
pub enum Input {
    /// An edge's stream began. An older stream of the same edge id is dead with it. `resumes_here`:
    /// the time in `hello` that it resumes from is one that this process told it.
    EdgeAttached {
        edge: EdgeKey,
        hello: EdgeHello,
        resumes_here: bool,
    },
    /// A stream ended: its sessions leave the registry.
    EdgeDetached { edge: EdgeKey },
    /// Operations of an edge, in their order.
    EdgeOps { edge: EdgeKey, ops: Vec<EdgeOp> },
    /// A call of `user` over REST. Answered by [`Effect::Respond`] with the same token.
    Request {
        token: Token,
        user: String,
        request: Request,
        /// Another core passes it on: what is not this core's is refused.
        from_core: bool,
    },
    /// A commit ended.
    Committed {
        commit: u64,
        result: Result<(), StoreError>,
    },
    /// A conversation was read for taking it up.
    Loaded {
        conversation: ConversationId,
        result: Result<Option<Box<Snapshot>>, StoreError>,
    },
    /// Messages were read.
    PageRead {
        token: Token,
        result: Result<Vec<Message>, StoreError>,
    },
    /// A user's index was read.
    IndexRead {
        token: Token,
        result: Result<Vec<ConversationId>, StoreError>,
    },
    /// These partitions are this core's from now on. Sent only where cores share conversations, as are
    /// the next ones.
    Owned { partitions: Vec<u16> },
    /// These partitions are no longer this core's.
    Lost { partitions: Vec<u16> },
    /// Give these partitions back; each is answered by [`Effect::Released`].
    Release { partitions: Vec<u16> },
    /// An owner died that wrote to these conversations lately: tell their members where they stand.
    /// Those of other partitions are passed over. Answered by [`Effect::CaughtUp`].
    CatchUp {
        token: Token,
        conversations: Vec<ConversationId>,
    },
    /// Another core answered.
    Asked {
        token: Token,
        result: Result<Response, Error>,
    },
    /// Time passed; sent at least every 200 ms while there is anything to wait for.
    Tick,
}

/// What the engine wants done. Effects of one turn are carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Send an operation to an edge.
    ToEdge { edge: EdgeKey, op: CoreOp },
    /// `operations` frames of the edge are dealt with: grant as much credit.
    Settled { edge: EdgeKey, operations: u32 },
    /// Give the stream up.
    CutEdge { edge: EdgeKey, reason: &'static str },
    /// Write; answered by [`Input::Committed`]. At most one is under way.
    Commit { commit: u64, batch: Arc<WriteBatch> },
    /// Read a conversation with its newest `recent_max` messages; answered by [`Input::Loaded`].
    Load {
        conversation: ConversationId,
        recent_max: u64,
    },
    /// Read messages; answered by [`Input::PageRead`].
    ReadPage {
        token: Token,
        conversation: ConversationId,
        range: ReadRange,
    },
    /// Read a user's conversations; answered by [`Input::IndexRead`].
    ReadIndex { token: Token, user: String },
    /// Answer a REST call.
    Respond {
        token: Token,
        response: Result<Response, Error>,
    },
    /// A partition has nothing under way any more, and nothing of it is in memory. `heads`: what its
    /// conversations had committed, as far as they were in memory and at rest.
    Released {
        partition: u16,
        heads: Vec<(ConversationId, u64)>,
    },
    /// A conversation left memory, at rest or since its partition was lost; only where cores share
    /// conversations.
    Evicted {
        conversation: ConversationId,
        head: u64,
    },
    /// The members of all these conversations were told.
    CaughtUp { token: Token },
    /// Have the owner of a partition answer a REST call in this core's stead.
    Forward {
        token: Token,
        partition: u16,
        user: String,
        request: Request,
    },
    /// Ask the owner of a partition; answered by [`Input::Asked`].
    Ask {
        token: Token,
        partition: u16,
        user: String,
        request: Request,
    },
    /// The store failed for good: log it, stop the process with a non-zero exit code.
    Fatal { reason: String },
}

/// A REST call, parsed, or what one core asks another. The caller is a valid user id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    Send(SendMessage),
    CreateConversation {
        kind: Kind,
        title: String,
        members: Vec<String>,
    },
    GetConversation {
        id: ConversationId,
    },
    ListConversations {
        cursor: Option<String>,
        limit: u32,
    },
    SetTitle {
        id: ConversationId,
        title: String,
    },
    DeleteConversation {
        id: ConversationId,
    },
    /// Adds, or changes the role of a member who is in. `None`: member, or as it is.
    PutMember {
        id: ConversationId,
        user: String,
        role: Option<Role>,
    },
    /// Removes, or leaves when `user` is the caller.
    RemoveMember {
        id: ConversationId,
        user: String,
    },
    ListMembers {
        id: ConversationId,
        cursor: Option<String>,
        limit: u32,
    },
    Messages {
        id: ConversationId,
        before: Option<u64>,
        after: Option<u64>,
        limit: u32,
    },
    MarkRead {
        id: ConversationId,
        last_read_seq: u64,
    },
    /// `seq`: the head if not given.
    Receipts {
        id: ConversationId,
        seq: Option<u64>,
    },
    /// A part of a sync, asked by the core that gathers it. `after`: what the caller has, or else its
    /// delivered mark.
    SyncPart {
        id: ConversationId,
        after: Option<u64>,
        limit: u32,
    },
    /// A place in the caller's list, asked by the core that gathers it.
    Listed {
        id: ConversationId,
    },
}

impl Request {
    /// The one conversation that it is about, if it says so rightly.
    pub fn conversation(&self, user: &str) -> Option<ConversationId> {
        match self {
            Self::Send(send) if send.to.is_empty() => ConversationId::parse(&send.conversation_id),
            Self::Send(send) => Some(ConversationId::direct(user, &send.to)),
            Self::CreateConversation {
                kind: Kind::Direct,
                members,
                ..
            } => Some(ConversationId::direct(user, members.first()?)),
            Self::CreateConversation { .. } | Self::ListConversations { .. } => None,
            Self::GetConversation { id }
            | Self::SetTitle { id, .. }
            | Self::DeleteConversation { id }
            | Self::PutMember { id, .. }
            | Self::RemoveMember { id, .. }
            | Self::ListMembers { id, .. }
            | Self::Messages { id, .. }
            | Self::MarkRead { id, .. }
            | Self::Receipts { id, .. }
            | Self::SyncPart { id, .. }
            | Self::Listed { id } => Some(*id),
        }
    }
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// 201, or 200 when `duplicate`.
    Ack(Ack),
    /// `created`: 201, else 200.
    Conversation {
        conversation: ConversationView,
        created: bool,
    },
    Conversations {
        items: Vec<ListedConversation>,
        next_cursor: Option<String>,
    },
    Members {
        items: Vec<MemberView>,
        next_cursor: Option<String>,
    },
    Messages {
        messages: Vec<Message>,
        head_seq: u64,
        more: bool,
    },
    Receipts(ReceiptsView),
    /// To [`Request::SyncPart`]. `None`: nothing that the caller lacks.
    Page(Option<Page>),
    /// To [`Request::Listed`]. `None`: nothing that belongs into the caller's list.
    Listed(Option<Box<Listed>>),
    /// 204.
    Done,
}

/// A conversation as its members see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConversationView {
    pub conversation_id: ConversationId,
    pub kind: Kind,
    pub title: String,
    /// The caller's.
    pub role: Role,
    pub version: u64,
    pub head_seq: u64,
    pub member_count: u32,
    /// ms since the Unix epoch.
    pub created_at: u64,
    /// The other one of a direct conversation.
    pub peer: Option<String>,
}

/// A conversation in the caller's list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListedConversation {
    pub conversation: ConversationView,
    pub delivered_seq: u64,
    pub read_seq: u64,
    /// Messages above `read_seq` that the caller may see and did not send.
    pub unread: u64,
    pub last_message: Option<Message>,
}

/// A conversation in the caller's list, and its place there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// When something happened in it last, ms since the Unix epoch.
    pub activity: u64,
    pub item: ListedConversation,
}

/// A member in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    pub user_id: String,
    pub role: Role,
    pub joined_at: u64,
}

/// Who has received and read a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiptsView {
    pub conversation_id: ConversationId,
    pub seq: u64,
    /// Members other than the caller with both their watermarks: (user, delivered_seq, read_seq).
    pub watermarks: Vec<(String, u64, u64)>,
}

/// What sort of conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    Direct,
    Group,
    Channel,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Group => "group",
            Self::Channel => "channel",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Direct, Self::Group, Self::Channel]
            .into_iter()
            .find(|k| k.as_str() == text)
    }
}

/// What a member may do; each includes what the one before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    Member,
    /// Adds and removes members, sets the title.
    Admin,
    /// Deletes the conversation, makes admins.
    Owner,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Member, Self::Admin, Self::Owner]
            .into_iter()
            .find(|r| r.as_str() == text)
    }
}

/// Bounds and rates of the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Snowflake worker, below 1,024.
    pub worker_id: u16,
    pub group_members_max: usize,
    /// Of REST callers; an edge's sessions go by the rates in its hello.
    pub send_rate: u32,
    pub send_burst: u32,
    /// Conversations kept in memory beyond those with operations under way.
    pub conversations_cached_max: usize,
    /// Entries of all dedup windows together that may be kept for idle conversations.
    pub dedup_entries_max: usize,
    /// Bytes, about, of the messages kept in memory for pages of idle conversations.
    pub recent_bytes_max: usize,
    /// Operations queued in one open batch before sends are refused with `overloaded`. As many may
    /// wait for conversations that are being loaded, and as many pages may be read at once.
    pub operations_open_max: usize,
    /// Partitions of a deployment in which several cores share the conversations. `None`: all of them
    /// are this core's.
    pub partitions: Option<u16>,
    /// Commits that may be under way at once, of different conversations.
    pub lanes: usize,
    /// Delivered and read marks reach the store at the latest after this.
    pub watermark_flush_ms: u64,
    pub rosters: RosterBounds,
}

/// When a conversation's recipients are kept on the edges as a roster, and how many of these there
/// are at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterBounds {
    /// Sessions from which on a list is worth keeping.
    pub recipients_min: usize,
    /// Messages that go out with a list of their own first: whoever says one thing and falls silent
    /// leaves nothing behind on the edges.
    pub messages_min: u32,
    /// Beyond these, which hold for each edge, the least recently used roster goes.
    pub rosters_max: usize,
    pub handles_max: usize,
}

impl Default for RosterBounds {
    fn default() -> Self {
        Self {
            recipients_min: 64,
            messages_min: 4,
            rosters_max: trunkline_proto::ports::ROSTERS_MAX,
            handles_max: trunkline_proto::ports::ROSTER_HANDLES_MAX,
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            worker_id: 0,
            group_members_max: trunkline_proto::limits::GROUP_MEMBERS_MAX,
            send_rate: trunkline_proto::limits::SEND_RATE,
            send_burst: trunkline_proto::limits::SEND_BURST,
            conversations_cached_max: 100_000,
            dedup_entries_max: 4_000_000,
            recent_bytes_max: 512 << 20,
            operations_open_max: 65_536,
            partitions: None,
            lanes: 1,
            watermark_flush_ms: 200,
            rosters: RosterBounds::default(),
        }
    }
}
