//! Pages: which messages a member is shown, from memory if it has them, else from the store.
//!
//! Seqs are contiguous, so what a page holds is known before any of it is read: [`plan`] computes
//! the seqs from the bounds and from what the member may see, and only these are fetched. Nothing
//! above the committed head of that moment is ever part of a page.

use smallvec::SmallVec;
use trunkline_proto::client::{Message, Page, ServerBody, ServerFrame};
use trunkline_proto::codes::Code;
use trunkline_proto::ids::ConversationId;

use super::cache::OVERLOADED_RETRY_MS;
use super::commit::id_text;
use super::conversation::{Conversation, Member};
use super::machine::Engine;
use super::reply::{Asker, Ticket, error_in};
use super::{Effect, Response, Token};
use crate::store::{Order, ReadRange, StoreError};

/// What page is wanted; bounds are exclusive. With `after` the oldest messages of the range, else
/// the newest.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageAsk {
    pub after: Option<u64>,
    pub before: Option<u64>,
    pub limit: u32,
}

/// The seqs of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// Inclusive, ascending.
    segments: SmallVec<[(u64, u64); 2]>,
    more: bool,
}

/// Who gets a page.
#[derive(Debug)]
pub(super) enum Sink {
    Asker(Ticket),
    /// Another core, for a sync that it gathers.
    Core(Ticket),
    /// A sync, by the number of its gather.
    Sync(u64),
}

/// A page that is being put together.
#[derive(Debug)]
pub(super) struct PageRead {
    sink: Sink,
    id: ConversationId,
    head: u64,
    version: u64,
    plan: Plan,
    /// Segments that are in `messages` already.
    done: usize,
    messages: Vec<Message>,
}

fn plan(member: &Member, head: u64, ask: PageAsk) -> Plan {
    let from = ask.after.unwrap_or(0).saturating_add(1);
    let to = head.min(ask.before.map_or(u64::MAX, |b| b.saturating_sub(1)));
    let ranges: SmallVec<[(u64, u64); 2]> = member.visible(from, to).collect();
    let total: u64 = ranges.iter().map(|(a, b)| b - a + 1).sum();
    let mut room = u64::from(ask.limit);
    let more = total > room;
    let mut segments = SmallVec::new();
    if ask.after.is_some() {
        for (a, b) in ranges {
            let count = room.min(b - a + 1);
            if count > 0 {
                segments.push((a, a + count - 1));
            }
            room -= count;
        }
    } else {
        for (a, b) in ranges.into_iter().rev() {
            let count = room.min(b - a + 1);
            if count > 0 {
                segments.push((b + 1 - count, b));
            }
            room -= count;
        }
        segments.reverse();
    }
    Plan { segments, more }
}

impl Engine {
    /// Begins the page that a session or a REST caller asked for.
    pub(super) fn page(&mut self, at: u32, ticket: Ticket, ask: PageAsk, out: &mut Vec<Effect>) {
        let Some(state) = self.cache.state(at).filter(|s| !s.deleted) else {
            return self.fail_in(at, ticket, Code::NotFound, "no such conversation", out);
        };
        let Some(member) = state.member(ticket.user) else {
            return self.fail_in(at, ticket, Code::NotAMember, "not a member", out);
        };
        if self.reads.len() >= self.config.operations_open_max {
            self.front.stats.overloaded += 1;
            let id = id_text(state.id);
            let mut error = error_in(Code::Overloaded, &id, "too many pages are being read");
            error.retry_after_ms = OVERLOADED_RETRY_MS;
            return self.front.fail(ticket, error, out);
        }
        let read = PageRead::new(Sink::Asker(ticket), state, member, ask);
        self.advance_page(read, Some(at), out);
    }

    /// Begins a sync's page, if there is anything to show. `false`: there is not.
    pub(super) fn sync_page(
        &mut self,
        at: u32,
        gather: u64,
        user: super::registry::UserRef,
        ask: PageAsk,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(state) = self.cache.state(at) else {
            return false;
        };
        let Some(member) = state.member(user) else {
            return false;
        };
        let read = PageRead::new(Sink::Sync(gather), state, member, ask);
        if read.plan.segments.is_empty() {
            return false;
        }
        self.advance_page(read, Some(at), out);
        true
    }

    /// Begins a page for a sync that another core gathers, if there is anything to show.
    pub(super) fn page_for_core(
        &mut self,
        at: u32,
        ticket: Ticket,
        ask: PageAsk,
        out: &mut Vec<Effect>,
    ) {
        let state = self.cache.state(at);
        let found = state.and_then(|s| Some((s, s.member(ticket.user)?)));
        match found.filter(|(s, m)| !plan(m, s.committed, ask).segments.is_empty()) {
            Some((state, member)) => {
                let read = PageRead::new(Sink::Core(ticket), state, member, ask);
                self.advance_page(read, Some(at), out);
            }
            None => self.front.respond(ticket, Response::Page(None), out),
        }
    }

    /// Takes segments from memory while it has them; asks the store for the first that it has not.
    fn advance_page(&mut self, mut read: PageRead, at: Option<u32>, out: &mut Vec<Effect>) {
        let state = at.and_then(|at| self.cache.state(at));
        while let Some(&(from, to)) = read.plan.segments.get(read.done) {
            if let Some(recalled) = state.and_then(|s| s.recall(from, to)) {
                read.messages.extend(recalled.map(|m| Message::clone(m)));
                read.done += 1;
                continue;
            }
            self.front.stats.reads += 1;
            let token = self.next_token();
            out.push(Effect::ReadPage {
                token,
                conversation: read.id,
                range: ReadRange {
                    after: from - 1,
                    before: to + 1,
                    limit: (to - from + 1) as u32,
                    order: Order::OldestFirst,
                },
            });
            self.reads.insert(token, read);
            return;
        }
        // A page that needed the store comes back without its conversation.
        self.front.stats.reads_cached += u64::from(at.is_some());
        self.finish_page(read, out);
    }

    /// The store answered for one segment.
    pub(super) fn page_read(
        &mut self,
        token: Token,
        result: Result<Vec<Message>, StoreError>,
        out: &mut Vec<Effect>,
    ) {
        let Some(mut read) = self.reads.remove(&token) else {
            self.front.stats.stale += 1;
            return;
        };
        match result {
            Ok(messages) => {
                read.messages.extend(messages);
                read.done += 1;
                self.advance_page(read, None, out);
            }
            Err(error) => {
                let id = id_text(read.id);
                let answer = error_in(Code::Unavailable, &id, "the store did not answer");
                match read.sink {
                    Sink::Asker(ticket) | Sink::Core(ticket) => {
                        self.front.fail(ticket, answer, out);
                    }
                    Sink::Sync(gather) => self.part_failed(gather, answer, out),
                }
                if let StoreError::Failed(_) = error {
                    self.stop_if_failed(&error, out);
                }
            }
        }
    }

    fn finish_page(&mut self, read: PageRead, out: &mut Vec<Effect>) {
        let PageRead {
            sink,
            messages,
            head,
            plan,
            ..
        } = read;
        let more = plan.more;
        match sink {
            Sink::Asker(ticket) if matches!(ticket.asker, Asker::Rest(_)) => {
                let response = Response::Messages {
                    messages,
                    head_seq: head,
                    more,
                };
                self.front.respond(ticket, response, out);
            }
            Sink::Asker(ticket) => {
                let page = ServerBody::Page(page(read.id, messages, head, more, read.version));
                self.front.frame(ticket, page, out);
            }
            Sink::Core(ticket) => {
                let page = page(read.id, messages, head, more, read.version);
                self.front.respond(ticket, Response::Page(Some(page)), out);
            }
            Sink::Sync(gather) => {
                let page = ServerBody::Page(page(read.id, messages, head, more, read.version));
                if let Some((session, id)) = self.sync_asker(gather) {
                    self.front.send(session, ServerFrame::answer(id, page), out);
                }
                self.part_paged(gather);
            }
        }
    }
}

impl PageRead {
    fn new(sink: Sink, state: &Conversation, member: &Member, ask: PageAsk) -> Self {
        Self {
            sink,
            id: state.id,
            head: state.head_for(member),
            version: state.version,
            plan: plan(member, state.committed, ask),
            done: 0,
            messages: Vec::new(),
        }
    }
}

fn page(
    id: ConversationId,
    messages: Vec<Message>,
    head_seq: u64,
    more: bool,
    version: u64,
) -> Page {
    Page {
        conversation_id: id_text(id),
        messages,
        head_seq,
        more,
        version,
    }
}

/// A page's limit as asked for: `None` is the default, 0 is refused, more than the maximum is
/// clamped.
pub(super) fn page_limit(asked: Option<u32>) -> Option<u32> {
    use trunkline_proto::limits::{PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX};
    match asked {
        None => Some(PAGE_LIMIT_DEFAULT),
        Some(0) => None,
        Some(limit) => Some(limit.min(PAGE_LIMIT_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::conversation::{Interval, OPEN};
    use crate::engine::hash::Seeded;
    use crate::engine::registry::Registry;
    use crate::engine::{Role, RosterBounds};

    fn member(intervals: &[(u64, u64)]) -> Member {
        let user = Registry::new(Seeded(0), RosterBounds::default()).intern("u");
        Member {
            intervals: intervals
                .iter()
                .map(|(after, until)| Interval {
                    after: *after,
                    until: *until,
                })
                .collect(),
            ..Member::new(user, Role::Member, 0, 0)
        }
    }

    fn ask(after: Option<u64>, before: Option<u64>, limit: u32) -> PageAsk {
        PageAsk {
            after,
            before,
            limit,
        }
    }

    /// Plans against the definition, spelled out seq by seq.
    #[test]
    fn a_plan_holds_exactly_the_visible_seqs_within_the_bounds() {
        let members = [
            member(&[(0, OPEN)]),
            member(&[(4, 9), (12, OPEN)]),
            member(&[(0, 3), (5, 6), (10, 20)]),
            member(&[]),
        ];
        let bounds = [
            None,
            Some(0),
            Some(1),
            Some(5),
            Some(6),
            Some(13),
            Some(u64::MAX),
        ];
        for member in &members {
            for (after, before) in bounds.iter().flat_map(|a| bounds.iter().map(|b| (*a, *b))) {
                for (limit, head) in [(1, 15), (3, 15), (50, 15), (3, 0)] {
                    let mut seqs: Vec<u64> = (1..=head)
                        .filter(|s| after.is_none_or(|a| *s > a))
                        .filter(|s| before.is_none_or(|b| *s < b))
                        .filter(|s| {
                            member
                                .intervals
                                .iter()
                                .any(|i| *s > i.after && *s <= i.until)
                        })
                        .collect();
                    let more = seqs.len() > limit;
                    if after.is_some() {
                        seqs.truncate(limit);
                    } else {
                        seqs = seqs.split_off(seqs.len().saturating_sub(limit));
                    }
                    let got = plan(member, head, ask(after, before, limit as u32));
                    let planned: Vec<u64> =
                        got.segments.iter().flat_map(|(a, b)| *a..=*b).collect();
                    assert_eq!(
                        (planned, got.more),
                        (seqs, more),
                        "{after:?} {before:?} {limit}"
                    );
                }
            }
        }
    }

    #[test]
    fn limits_are_defaulted_clamped_and_never_zero() {
        assert_eq!(page_limit(None), Some(50));
        assert_eq!(page_limit(Some(0)), None);
        assert_eq!(page_limit(Some(7)), Some(7));
        assert_eq!(page_limit(Some(9_999)), Some(200));
    }
}
