//! The state machine itself: where inputs are told apart and turns end.

use trunkline_proto::client::Error;
use trunkline_proto::codes::Code;
use trunkline_proto::gcra::Rate;
use trunkline_proto::ids::{ConversationId, Snowflake, is_valid_id};
use trunkline_proto::link::EdgeOp;

use super::cache::Cache;
use super::catchup::CatchUps;
use super::commit::Lanes;
use super::gather::Gathers;
use super::hash::{Map, Seeded};
use super::owned::Owned;
use super::read::{PageAsk, PageRead, page_limit};
use super::registry::Registry;
use super::reply::{Asker, Front, Ticket};
use super::stats::EngineStats;
use super::work::{Call, Work};
use super::{Effect, EngineConfig, Input, Kind, Now, Request, Token};

/// All that the core knows and decides. Driven by one thread.
pub struct Engine {
    pub(super) config: EngineConfig,
    pub(super) rest_rate: Rate,
    pub(super) hash: Seeded,
    pub(super) front: Front,
    pub(super) cache: Cache,
    pub(super) message_ids: Snowflake,
    pub(super) uuids: Uuids,
    pub(super) owned: Owned,
    /// What the next commits write, and those under way.
    pub(super) lanes: Lanes,
    /// The number of the last commit.
    pub(super) commits: u64,
    /// Write watermarks at the next occasion: a conversation that has some is in the way.
    pub(super) flush_watermarks: bool,
    pub(super) gathers: Gathers,
    pub(super) catch_ups: CatchUps,
    /// Gathers of which another core does a part, by what it was asked.
    pub(super) asked: Map<Token, u64>,
    pub(super) reads: Map<Token, PageRead>,
    last_token: u64,
    /// The store failed for good: nothing is taken in any more.
    pub(super) failed: bool,
    /// The list of the operations that were taken in last.
    emptied: Vec<EdgeOp>,
}

impl Engine {
    /// `message_id_floor`: the store's, see [`crate::store::MessageStore::message_id_floor`].
    /// `uuid_seed`: random; ids of groups and the hashes of tables come from it.
    pub fn new(config: EngineConfig, message_id_floor: u64, uuid_seed: u64) -> Self {
        let hash = Seeded(Seeded(uuid_seed).number(1));
        Self {
            rest_rate: Rate::new(config.send_rate, config.send_burst),
            hash,
            front: Front::new(Registry::new(hash, config.rosters), EngineStats::default()),
            cache: Cache::new(hash),
            message_ids: Snowflake::new(config.worker_id, message_id_floor),
            uuids: Uuids { state: uuid_seed },
            owned: Owned::new(config.partitions),
            lanes: Lanes::new(config.lanes),
            commits: 0,
            flush_watermarks: false,
            gathers: Gathers::default(),
            catch_ups: CatchUps::default(),
            asked: Map::with_hasher(hash),
            reads: Map::with_hasher(hash),
            last_token: 0,
            failed: false,
            emptied: Vec::new(),
            config,
        }
    }

    /// The list of the last [`Input::EdgeOps`], empty, to be filled again.
    pub fn take_emptied(&mut self) -> Vec<EdgeOp> {
        std::mem::take(&mut self.emptied)
    }

    /// Takes in what happened; appends what is to be done.
    pub fn on(&mut self, input: Input, now: Now, out: &mut Vec<Effect>) {
        match input {
            Input::EdgeAttached {
                edge,
                hello,
                resumes_here,
            } => self.attach(edge, hello, resumes_here, out),
            Input::EdgeDetached { edge } => {
                if !self.front.registry.detach(edge) {
                    self.front.stats.stale += 1;
                }
            }
            Input::EdgeOps { edge, mut ops } => {
                for op in ops.drain(..) {
                    self.edge_op(edge, op, now, out);
                }
                self.emptied = ops;
            }
            Input::Request {
                token,
                user,
                request,
                from_core,
            } => {
                let user = self.front.registry.intern(&user);
                let ticket = self.front.ticket(Asker::Rest(token), user, String::new());
                self.request(ticket, request, from_core, now, out);
            }
            Input::Committed { commit, result } => self.committed(commit, result, now, out),
            Input::Loaded {
                conversation,
                result,
            } => self.loaded(conversation, result, now, out),
            Input::PageRead { token, result } => self.page_read(token, result, out),
            Input::IndexRead { token, result } => self.index_read(token, result, out),
            Input::Owned { partitions } => self.own(&partitions, now),
            Input::Lost { partitions } => self.disown(&partitions, out),
            Input::Release { partitions } => self.release(&partitions, now, out),
            Input::CatchUp {
                token,
                conversations,
            } => self.catch_up(token, conversations),
            Input::Asked { token, result } => self.asked(token, result, out),
            Input::Tick => {}
        }
        self.run_gathers(now, out);
        self.run_catch_ups(now, out);
    }

    /// Ends a run of inputs: begins at most one commit, if none is under way, and settles credit.
    pub fn end_turn(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.evict(out);
        self.advance_releases(now, out);
        self.advance_commits(now, out);
        for (edge, operations) in self.front.registry.take_settled() {
            out.push(Effect::Settled { edge, operations });
        }
        self.front.registry.rosters.tell_dropped(out);
        self.front.registry.sweep(now.mono_ns);
    }

    /// When [`Input::Tick`] is due at the latest, on the monotonic clock. `None`: nothing to wait
    /// for.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.failed {
            return None;
        }
        [
            self.commit_deadline(),
            self.hints_deadline(),
            self.release_deadline(),
            self.catch_ups.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The counters and gauges.
    pub fn stats(&self) -> EngineStats {
        let (edges, sessions, users) = self.front.registry.counts();
        let (rosters, roster_handles, roster_evictions) = self.front.registry.rosters.counts();
        EngineStats {
            edges: edges as u64,
            sessions: sessions as u64,
            users: users as u64,
            registry: self.front.registry.bytes(),
            rosters: rosters as u64,
            roster_handles: roster_handles as u64,
            roster_evictions,
            conversations: self.cache.slots.len() as u64,
            dedup_entries: self.cache.dedup_entries as u64,
            operations_open: self.lanes.operations() as u64,
            operations_waiting: self.cache.waiting as u64,
            ..self.front.stats
        }
    }

    pub(super) fn next_token(&mut self) -> Token {
        self.last_token += 1;
        Token(self.last_token)
    }

    /// Takes a REST call in.
    fn request(
        &mut self,
        ticket: Ticket,
        request: Request,
        from_core: bool,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let name = self.front.registry.name(ticket.user);
        let foreign = request
            .conversation(name)
            .and_then(|id| self.owned.foreign(id));
        if let Some(partition) = foreign.filter(|_| !from_core) {
            return self.forward(partition, ticket, request, out);
        }
        let (id, call) = match request {
            Request::Send(send) => return self.take_send(ticket, send, now, out),
            Request::CreateConversation {
                kind,
                title,
                members,
            } => return self.take_create(ticket, kind, title, members, now, out),
            Request::ListConversations { cursor, limit } => {
                return self.take_list(ticket, cursor.as_deref(), limit, out);
            }
            Request::Messages {
                id,
                before,
                after,
                limit,
            } => {
                let Some(limit) = page_limit(Some(limit)) else {
                    let error = Code::BadRequest.error("limit is at least 1");
                    return self.front.fail(ticket, error, out);
                };
                let ask = PageAsk {
                    after,
                    before,
                    limit,
                };
                return self.dispatch(id, Work::Page { ticket, ask }, now, out);
            }
            Request::MarkRead { id, last_read_seq } => {
                let work = Work::Mark {
                    ticket,
                    seq: last_read_seq,
                    read: true,
                };
                return self.dispatch(id, work, now, out);
            }
            Request::GetConversation { id } => (id, Call::Get),
            Request::SetTitle { id, title } => (id, Call::SetTitle(title)),
            Request::DeleteConversation { id } => (id, Call::Delete),
            Request::PutMember { id, user, role } => (id, Call::PutMember { user, role }),
            Request::RemoveMember { id, user } => (id, Call::RemoveMember(user)),
            Request::ListMembers { id, cursor, limit } => (id, Call::Members { cursor, limit }),
            Request::Receipts { id, seq } => (id, Call::Receipts(seq)),
            Request::Listed { id } => (id, Call::Listed),
            Request::SyncPart { id, after, limit } => {
                let work = Work::SyncPart {
                    ticket,
                    after,
                    limit,
                };
                return self.dispatch(id, work, now, out);
            }
        };
        self.dispatch(id, Work::Call { ticket, call }, now, out);
    }

    fn take_create(
        &mut self,
        ticket: Ticket,
        kind: Kind,
        title: String,
        members: Vec<String>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let error: Error = match (kind, members.as_slice()) {
            (Kind::Group, _) => return self.create_group(ticket, title, &members, now, out),
            (Kind::Channel, _) => Code::NotImplemented.error("channels are not switched on"),
            (Kind::Direct, [other]) if is_valid_id(other) => {
                let caller = self.front.registry.name(ticket.user);
                let id = ConversationId::direct(caller, other);
                let call = Call::OpenDirect(other.clone());
                return self.dispatch(id, Work::Call { ticket, call }, now, out);
            }
            (Kind::Direct, _) => {
                Code::BadRequest.error("a direct conversation is with exactly one user")
            }
        };
        self.front.fail(ticket, error, out);
    }
}

/// Makes ids of groups: UUIDv7 of the time that is handed in and of a generator that was seeded.
pub(super) struct Uuids {
    state: u64,
}

impl Uuids {
    pub fn next(&mut self, now_ms: u64) -> ConversationId {
        let (a, b) = (self.random(), self.random());
        let mut random = [0; 10];
        random[..8].copy_from_slice(&a.to_le_bytes());
        random[8..].copy_from_slice(&b.to_le_bytes()[..2]);
        ConversationId(uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid())
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
