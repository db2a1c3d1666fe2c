//! Work over many conversations for one answer: a sync, a list, the hints after a broken link.
//!
//! Bounds: so many gathers run at once ([`REQUESTS_RUNNING_MAX`], [`HINTS_RUNNING_MAX`]), each with
//! at most [`WIDTH`] conversations under way; the others queue. Syncs are bounded by the edges'
//! credit, lists by `operations_open_max`, hints by the number of users with a session.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use trunkline_proto::client::{Error, ServerBody, ServerFrame, Sync, Synced};
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::limits::SYNC_CONVERSATIONS_MAX;

use super::cache::OVERLOADED_RETRY_MS;
use super::commit::id_text;
use super::machine::Engine;
use super::read::{PageAsk, page_limit};
use super::registry::UserRef;
use super::reply::{SessionRef, Ticket, error_in};
use super::work::Work;
use super::{Effect, Listed, ListedConversation, Now, Request, Response, Token};
use crate::store::StoreError;

/// Syncs and lists that run at once.
const REQUESTS_RUNNING_MAX: usize = 64;
/// Users whose hints are being found out at once.
const HINTS_RUNNING_MAX: usize = 16;
/// Conversations of one gather that are under way at once.
const WIDTH: usize = 8;
/// How long hints rest after the store failed to answer for some.
const HINTS_PAUSE_NS: u64 = 500_000_000;
/// What was delivered this long before a link's last batch is hinted at too: it may have been lost
/// on its way.
const HINT_OVERLAP_MS: u64 = 60_000;

/// A place in a user's list of conversations: newest activity first, then the greater id.
pub(super) type ListKey = (Reverse<u64>, Reverse<ConversationId>);

/// What a gather is for.
enum Purpose {
    Sync {
        ticket: Ticket,
        limit: u32,
        pages: u32,
    },
    List {
        ticket: Ticket,
        limit: usize,
        after: Option<ListKey>,
        items: BTreeMap<ListKey, ListedConversation>,
    },
    Hints(Hints),
}

/// Sessions of one user that may have missed something.
struct Hints {
    /// What was committed later may have been lost.
    since_ms: u64,
    /// Whether all that was committed later was committed by this process.
    is_known_here: bool,
    targets: Vec<SessionRef>,
    /// The store did not answer for a part: all of it is done again.
    incomplete: bool,
}

struct Gather {
    purpose: Purpose,
    user: UserRef,
    /// Conversations to look at; a position if the caller named one.
    todo: VecDeque<(ConversationId, Option<u64>)>,
    needs_index: bool,
    under_way: usize,
    /// In the queue of those that can go on, or going on.
    awake: bool,
    error: Option<Error>,
}

/// All gathers.
#[derive(Default)]
pub(super) struct Gathers {
    last: u64,
    all: BTreeMap<u64, Gather>,
    queued: VecDeque<u64>,
    awake: VecDeque<u64>,
    indexes: BTreeMap<Token, u64>,
    requests_running: usize,
    hints_running: usize,
    /// Users of whose sessions some await hints; retained.
    hints_queued: VecDeque<UserRef>,
    hints_paused_until: Option<u64>,
}

impl Engine {
    /// Takes a `sync` frame in.
    pub(super) fn take_sync(&mut self, ticket: Ticket, sync: Sync, out: &mut Vec<Effect>) {
        let positions: Option<VecDeque<_>> = sync
            .conversations
            .iter()
            .map(|p| {
                Some((
                    ConversationId::parse(&p.conversation_id)?,
                    Some(p.after_seq),
                ))
            })
            .collect();
        let refused = match (&positions, page_limit(sync.limit)) {
            _ if sync.conversations.len() > SYNC_CONVERSATIONS_MAX => {
                Some("a sync names at most 500 conversations")
            }
            (None, _) => Some("conversation_id is not a lowercase UUID"),
            (_, None) => Some("limit is at least 1"),
            _ => None,
        };
        let (Some(todo), Some(limit), None) = (positions, page_limit(sync.limit), refused) else {
            let error = Code::BadRequest.error(refused.unwrap_or("sync"));
            return self.front.fail(ticket, error, out);
        };
        let needs_index = todo.is_empty();
        let user = ticket.user;
        let purpose = Purpose::Sync {
            ticket,
            limit,
            pages: 0,
        };
        self.queue_gather(purpose, user, todo, needs_index, out);
    }

    /// Begins a page of the caller's list of conversations.
    pub(super) fn gather_list(
        &mut self,
        ticket: Ticket,
        limit: usize,
        after: Option<ListKey>,
        out: &mut Vec<Effect>,
    ) {
        let user = ticket.user;
        let purpose = Purpose::List {
            ticket,
            limit,
            after,
            items: BTreeMap::new(),
        };
        self.queue_gather(purpose, user, VecDeque::new(), true, out);
    }

    fn queue_gather(
        &mut self,
        purpose: Purpose,
        user: UserRef,
        todo: VecDeque<(ConversationId, Option<u64>)>,
        needs_index: bool,
        out: &mut Vec<Effect>,
    ) {
        if self.gathers.queued.len() >= self.config.operations_open_max {
            self.front.stats.overloaded += 1;
            let mut error = Code::Overloaded.error("too many syncs and lists wait");
            error.retry_after_ms = OVERLOADED_RETRY_MS;
            if let Purpose::Sync { ticket, .. } | Purpose::List { ticket, .. } = purpose {
                self.front.fail(ticket, error, out);
            }
            return;
        }
        let number = self.new_gather(purpose, user, todo, needs_index);
        self.gathers.queued.push_back(number);
    }

    fn new_gather(
        &mut self,
        purpose: Purpose,
        user: UserRef,
        todo: VecDeque<(ConversationId, Option<u64>)>,
        needs_index: bool,
    ) -> u64 {
        self.gathers.last += 1;
        let gather = Gather {
            purpose,
            user,
            todo,
            needs_index,
            under_way: 0,
            awake: false,
            error: None,
        };
        self.gathers.all.insert(self.gathers.last, gather);
        self.gathers.last
    }

    /// A session was announced again: what was committed since its link was last known to work
    /// may not have reached it.
    pub(super) fn want_hints(&mut self, session: SessionRef) {
        let registry = &mut self.front.registry;
        if let Some(user) = registry.await_hints(session.edge, session.handle) {
            registry.retain(user);
            self.gathers.hints_queued.push_back(user);
        }
    }

    /// Begins what may begin and goes on with what can. Called after each input.
    pub(super) fn run_gathers(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self
            .gathers
            .hints_paused_until
            .is_some_and(|at| at <= now.mono_ns)
        {
            self.gathers.hints_paused_until = None;
        }
        loop {
            let gathers = &mut self.gathers;
            if let Some(number) = gathers.awake.pop_front() {
                self.advance_gather(number, now, out);
            } else if gathers.requests_running < REQUESTS_RUNNING_MAX
                && let Some(number) = gathers.queued.pop_front()
            {
                gathers.requests_running += 1;
                self.begin_gather(number, out);
            } else if gathers.hints_running < HINTS_RUNNING_MAX
                && gathers.hints_paused_until.is_none()
                && let Some(user) = gathers.hints_queued.pop_front()
            {
                self.begin_hints(user, out);
            } else {
                return;
            }
        }
    }

    /// When hints that rest are to go on.
    pub(super) fn hints_deadline(&self) -> Option<u64> {
        self.gathers
            .hints_paused_until
            .filter(|_| !self.gathers.hints_queued.is_empty())
    }

    fn begin_hints(&mut self, user: UserRef, out: &mut Vec<Effect>) {
        let (targets, resume) = self.front.registry.take_awaiting_hints(user);
        if targets.is_empty() {
            return self.front.registry.release(user);
        }
        let hints = Hints {
            since_ms: resume.from_ms.saturating_sub(HINT_OVERLAP_MS),
            is_known_here: resume.is_here,
            targets,
            incomplete: false,
        };
        self.gathers.hints_running += 1;
        let number = self.new_gather(Purpose::Hints(hints), user, VecDeque::new(), true);
        self.begin_gather(number, out);
    }

    fn begin_gather(&mut self, number: u64, out: &mut Vec<Effect>) {
        let Some(gather) = self.gathers.all.get_mut(&number) else {
            return;
        };
        if !gather.needs_index {
            gather.awake = true;
            self.gathers.awake.push_back(number);
            return;
        }
        let user = self.front.registry.name(gather.user).to_owned();
        let token = self.next_token();
        self.gathers.indexes.insert(token, number);
        out.push(Effect::ReadIndex { token, user });
    }

    /// A user's index was read, or was not.
    pub(super) fn index_read(
        &mut self,
        token: Token,
        result: Result<Vec<ConversationId>, StoreError>,
        out: &mut Vec<Effect>,
    ) {
        let Some(number) = self.gathers.indexes.remove(&token) else {
            self.front.stats.stale += 1;
            return;
        };
        let Some(gather) = self.gathers.all.get_mut(&number) else {
            return;
        };
        let failed = match result {
            Ok(mut ids) => {
                // The store gives them in no certain order.
                ids.sort_unstable();
                gather.todo = ids.into_iter().map(|id| (id, None)).collect();
                None
            }
            Err(error) => {
                gather.error = Some(Code::Unavailable.error("the store did not answer"));
                if let Purpose::Hints(hints) = &mut gather.purpose {
                    hints.incomplete = true;
                }
                Some(error)
            }
        };
        gather.awake = true;
        self.gathers.awake.push_back(number);
        if let Some(error @ StoreError::Failed(_)) = failed {
            self.stop_if_failed(&error, out);
        }
    }

    fn advance_gather(&mut self, number: u64, now: Now, out: &mut Vec<Effect>) {
        while let Some(gather) = self.gathers.all.get_mut(&number) {
            let next = if gather.under_way < WIDTH {
                gather.todo.pop_front()
            } else {
                None
            };
            let Some((id, after)) = next else {
                break;
            };
            if let Some(partition) = self.owned.foreign(id) {
                if let Some(gather) = self.gathers.all.get_mut(&number) {
                    gather.under_way += 1;
                }
                self.ask_part(partition, number, id, after, out);
                continue;
            }
            if self.is_quiet(number, id) {
                self.front.stats.hints_spared += 1;
                continue;
            }
            if let Some(gather) = self.gathers.all.get_mut(&number) {
                gather.under_way += 1;
            }
            let work = Work::Part {
                gather: number,
                after,
            };
            self.dispatch(id, work, now, out);
        }
        if let Some(gather) = self.gathers.all.get_mut(&number) {
            gather.awake = false;
            if gather.under_way == 0 && gather.todo.is_empty() {
                self.finish_gather(number, now, out);
            }
        }
    }

    /// Whether hints need not look at a conversation: nothing was committed in it since, which is
    /// certain without reading it. This process has not had it in memory since then, and it alone
    /// orders the conversations: what it does not hold, and did not evict since, it did not touch.
    /// Where several cores share them, another may have written it, and it is read.
    fn is_quiet(&self, number: u64, id: ConversationId) -> bool {
        match self.gathers.all.get(&number).map(|g| &g.purpose) {
            Some(Purpose::Hints(hints)) => {
                hints.is_known_here
                    && self.config.partitions.is_none()
                    && self.cache.evicted_latest_ms <= hints.since_ms
                    && self.cache.find(id).is_none()
            }
            _ => false,
        }
    }

    /// Does a gather's part: looks at one conversation that is in memory, or does not exist.
    pub(super) fn part(&mut self, at: u32, number: u64, after: Option<u64>, out: &mut Vec<Effect>) {
        let Some(gather) = self.gathers.all.get_mut(&number) else {
            return;
        };
        let user = gather.user;
        match &mut gather.purpose {
            Purpose::Sync { limit, .. } => {
                let limit = *limit;
                if self.sync_part(at, number, user, after, limit, out) {
                    return;
                }
            }
            Purpose::List {
                limit,
                after,
                items,
                ..
            } => {
                let state = self.cache.state(at);
                if let Some(listed) = state.and_then(|s| s.listed(&self.front.registry, user)) {
                    enlist(items, *limit, *after, listed);
                }
            }
            Purpose::Hints(hints) => {
                let state = self.cache.state(at);
                let hint = state.and_then(|s| s.hint(&self.front.registry, user, hints.since_ms));
                if let Some(hint) = hint {
                    let frame = ServerBody::Conversation(hint);
                    self.front.stats.hints += self.front.push_to(&hints.targets, frame, out);
                }
            }
        }
        self.part_done(number);
    }

    /// Has the owner of a conversation do a gather's part. Hints are the owner's own affair: it has the
    /// session announced to it as well.
    fn ask_part(
        &mut self,
        partition: u16,
        number: u64,
        id: ConversationId,
        after: Option<u64>,
        out: &mut Vec<Effect>,
    ) {
        let Some(gather) = self.gathers.all.get(&number) else {
            return;
        };
        let request = match &gather.purpose {
            Purpose::Hints(_) => return self.part_done(number),
            Purpose::Sync { limit, .. } => Request::SyncPart {
                id,
                after,
                limit: *limit,
            },
            Purpose::List { .. } => Request::Listed { id },
        };
        let user = self.front.registry.name(gather.user).to_owned();
        self.ask(partition, number, user, request, out);
    }

    /// Another core said where a conversation stands in the list.
    pub(super) fn part_listed(&mut self, number: u64, listed: Listed) {
        if let Some(Gather {
            purpose:
                Purpose::List {
                    limit,
                    after,
                    items,
                    ..
                },
            ..
        }) = self.gathers.all.get_mut(&number)
        {
            enlist(items, *limit, *after, listed);
        }
        self.part_done(number);
    }

    /// `true`: a page is on its way, and the part is done with it.
    fn sync_part(
        &mut self,
        at: u32,
        number: u64,
        user: UserRef,
        after: Option<u64>,
        limit: u32,
        out: &mut Vec<Effect>,
    ) -> bool {
        let slot = &self.cache.slots[at];
        let id = slot.id;
        let state = slot.state.as_deref();
        let refused = match state {
            Some(s) if s.deleted => Some((Code::NotFound, "no such conversation")),
            Some(s) if s.member(user).is_some() => None,
            _ => Some((Code::NotAMember, "not a member")),
        };
        if let Some((code, message)) = refused {
            // What only the index named is not worth an error.
            if after.is_some() {
                self.sync_error(number, error_in(code, &id_text(id), message), out);
            }
            return false;
        }
        let delivered = state
            .and_then(|s| s.member(user))
            .map_or(0, |m| m.delivered);
        let ask = PageAsk {
            after: Some(after.unwrap_or(delivered)),
            before: None,
            limit,
        };
        self.sync_page(at, number, user, ask, out)
    }

    /// The session that syncs, and the `id` to echo.
    pub(super) fn sync_asker(&self, number: u64) -> Option<(SessionRef, String)> {
        match &self.gathers.all.get(&number)?.purpose {
            Purpose::Sync { ticket, .. } => Some((ticket.session()?, ticket.id.clone())),
            _ => None,
        }
    }

    fn sync_error(&mut self, number: u64, error: Error, out: &mut Vec<Effect>) {
        if let Some((session, id)) = self.sync_asker(number) {
            self.front.stats.errors += 1;
            let frame = ServerFrame::answer(id, ServerBody::Error(error));
            self.front.send(session, frame, out);
        }
    }

    /// A sync's page has gone out.
    pub(super) fn part_paged(&mut self, number: u64) {
        if let Some(Gather {
            purpose: Purpose::Sync { pages, .. },
            ..
        }) = self.gathers.all.get_mut(&number)
        {
            *pages += 1;
        }
        self.part_done(number);
    }

    /// A part could not be looked at.
    pub(super) fn part_failed(&mut self, number: u64, error: Error, out: &mut Vec<Effect>) {
        let Some(gather) = self.gathers.all.get_mut(&number) else {
            return;
        };
        match &mut gather.purpose {
            Purpose::Sync { .. } => self.sync_error(number, error, out),
            Purpose::List { .. } => gather.error = Some(error),
            Purpose::Hints(hints) => hints.incomplete = true,
        }
        self.part_done(number);
    }

    pub(super) fn part_done(&mut self, number: u64) {
        if let Some(gather) = self.gathers.all.get_mut(&number) {
            gather.under_way -= 1;
            if !gather.awake {
                gather.awake = true;
                self.gathers.awake.push_back(number);
            }
        }
    }

    fn finish_gather(&mut self, number: u64, now: Now, out: &mut Vec<Effect>) {
        let Some(gather) = self.gathers.all.remove(&number) else {
            return;
        };
        match (gather.purpose, gather.error) {
            (Purpose::Hints(hints), _) => self.finish_hints(gather.user, hints, now),
            (Purpose::Sync { ticket, .. } | Purpose::List { ticket, .. }, Some(error)) => {
                self.gathers.requests_running -= 1;
                self.front.fail(ticket, error, out);
            }
            (Purpose::Sync { ticket, pages, .. }, None) => {
                self.gathers.requests_running -= 1;
                let synced = ServerBody::Synced(Synced {
                    conversations: pages,
                });
                self.front.frame(ticket, synced, out);
            }
            (
                Purpose::List {
                    ticket,
                    limit,
                    mut items,
                    ..
                },
                None,
            ) => {
                self.gathers.requests_running -= 1;
                let has_next = items.len() > limit;
                if has_next {
                    items.pop_last();
                }
                let next_cursor = items
                    .last_key_value()
                    .filter(|_| has_next)
                    .map(|(key, _)| super::views::list_cursor(*key));
                let response = Response::Conversations {
                    items: items.into_values().collect(),
                    next_cursor,
                };
                self.front.respond(ticket, response, out);
            }
        }
    }

    /// Hints of which a part failed are all found out again, after a rest: to be told to look twice
    /// does no harm, not to be told does.
    fn finish_hints(&mut self, user: UserRef, hints: Hints, now: Now) {
        self.gathers.hints_running -= 1;
        if hints.incomplete && !self.failed {
            for target in hints.targets {
                self.want_hints(target);
            }
            self.gathers.hints_paused_until = Some(now.mono_ns + HINTS_PAUSE_NS);
        }
        self.front.registry.release(user);
    }
}

/// Puts a conversation into a page of the list, if it belongs there.
fn enlist(
    items: &mut BTreeMap<ListKey, ListedConversation>,
    limit: usize,
    after: Option<ListKey>,
    listed: Listed,
) {
    let id = listed.item.conversation.conversation_id;
    let key = (Reverse(listed.activity), Reverse(id));
    if after.is_none_or(|after| key > after) {
        items.insert(key, listed.item);
        if items.len() > limit + 1 {
            items.pop_last();
        }
    }
}
