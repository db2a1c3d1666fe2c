//! Conversations made and changed: members, roles, titles, the end.
//!
//! A change is planned on the committed state, written in order with the messages before it, and
//! takes effect when that is durable. Until then everything else on the conversation waits, so
//! nobody sees or builds on a change that may not have happened.

use trunkline_proto::client;
use trunkline_proto::codes::Code;
use trunkline_proto::ids::{ConversationId, is_valid_id};
use trunkline_proto::limits::TITLE_CHARS_MAX;

use super::cache::OVERLOADED_RETRY_MS;
use super::commit::id_text;
use super::conversation::{Conversation, Intervals, Member, OPEN, member_row};
use super::machine::Engine;
use super::registry::{Registry, UserRef};
use super::reply::{Front, Ticket};
use super::work::Call;
use super::{Effect, Kind, Now, Response, Role};

/// What a change's caller is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    View { created: bool },
}

/// What becomes of one member. Retains the user while it is part of a [`Change`].
struct Update {
    user: UserRef,
    role: Role,
    joined_at: u64,
    intervals: Intervals,
}

/// A change that is not yet durable.
pub(super) struct Change {
    /// It comes after the messages up to this seq.
    pub at_seq: u64,
    pub ticket: Option<Ticket>,
    answer: Answer,
    plan: Plan,
    changed_at: u64,
}

/// What a change does.
#[derive(Default)]
struct Plan {
    title: Option<String>,
    deleted: bool,
    updates: Vec<Update>,
    added: Vec<UserRef>,
    removed: Vec<UserRef>,
}

/// What is refused, and why.
type Refusal = (Code, &'static str);

impl Conversation {
    /// Takes the change that has become durable into effect, announces it, answers its caller.
    pub fn apply_change(&mut self, front: &mut Front, out: &mut Vec<Effect>) {
        let Some(change) = self.change.take() else {
            return;
        };
        let Change { plan, ticket, .. } = *change;
        let created = matches!(change.answer, Answer::View { created: true });
        if !created {
            self.version += 1;
        }
        self.changed_at = change.changed_at;
        self.deleted |= plan.deleted;
        if let Some(title) = plan.title {
            self.title = title;
        }
        for update in plan.updates {
            self.apply_update(&mut front.registry, update);
        }
        self.present = self.members.iter().filter(|m| m.is_present()).count() as u32;
        if let Some(roster) = self.roster.take_if(|_| self.deleted) {
            front.registry.rosters.forget(roster);
        }
        let frame = client::Conversation {
            members_added: names(&front.registry, &plan.added),
            members_removed: names(&front.registry, &plan.removed),
            ..self.frame()
        };
        front.push_change(self, &plan.removed, frame, out);
        let Some(ticket) = ticket else {
            return;
        };
        let response = match (change.answer, self.member(ticket.user)) {
            (Answer::View { created }, Some(member)) => Response::Conversation {
                conversation: self.view(&front.registry, member),
                created,
            },
            _ => Response::Done,
        };
        front.respond(ticket, response, out);
    }

    fn apply_update(&mut self, registry: &mut Registry, update: Update) {
        let user = update.user;
        let was_present = self.member(user).is_some_and(Member::is_present);
        match self.members.binary_search_by_key(&user, |m| m.user) {
            Ok(at) => {
                let member = &mut self.members[at];
                member.role = update.role;
                member.joined_at = update.joined_at;
                member.intervals = update.intervals;
                registry.release(user);
            }
            // The new member takes over the change's hold on the user.
            Err(at) => self.members.insert(
                at,
                Member {
                    intervals: update.intervals,
                    ..Member::new(user, update.role, update.joined_at, 0)
                },
            ),
        }
        let is_present = self.member(user).is_some_and(Member::is_present);
        match self.roster {
            Some(roster) if is_present != was_present => {
                registry.change_roster(roster, user, is_present);
            }
            _ => {}
        }
    }

    /// The frame that tells of this conversation, without who came or went.
    pub fn frame(&self) -> client::Conversation {
        client::Conversation {
            conversation_id: id_text(self.id),
            kind: self.kind.as_str().to_owned(),
            title: self.title.clone(),
            version: self.version,
            members_added: Vec::new(),
            members_removed: Vec::new(),
            head_seq: self.committed,
        }
    }

    /// When something was committed or changed last.
    pub fn latest_ms(&self) -> u64 {
        self.committed_ts.max(self.changed_at)
    }

    /// What a session of `user` is told that may have missed something since then. Whoever was
    /// removed meanwhile is told so, and has what was sent before still to read.
    pub fn hint(
        &self,
        registry: &Registry,
        user: UserRef,
        since_ms: u64,
    ) -> Option<client::Conversation> {
        let member = self.member(user)?;
        if self.deleted || self.latest_ms() <= since_ms {
            return None;
        }
        let mut frame = self.frame();
        if !member.is_present() {
            frame.head_seq = self.head_for(member);
            frame.members_removed = vec![registry.name(user).to_owned()];
        }
        Some(frame)
    }

    /// The caller of a change, if they may ask for one at all.
    fn changer(&self, caller: UserRef) -> Result<&Member, Refusal> {
        let member = self
            .present_member(caller)
            .ok_or((Code::NotAMember, "the caller is not a member"))?;
        if self.kind == Kind::Direct {
            return Err((Code::Forbidden, "a direct conversation cannot be changed"));
        }
        Ok(member)
    }

    fn plan_title(&self, caller: UserRef, title: String) -> Result<Option<Plan>, Refusal> {
        if self.changer(caller)?.role < Role::Admin {
            return Err((Code::Forbidden, "only admins set the title"));
        }
        Ok((title != self.title).then(|| Plan {
            title: Some(title),
            ..Plan::default()
        }))
    }

    fn plan_delete(&self, caller: UserRef) -> Result<Option<Plan>, Refusal> {
        if self.changer(caller)?.role < Role::Owner {
            return Err((Code::Forbidden, "only the owner deletes a conversation"));
        }
        Ok(Some(Plan {
            deleted: true,
            updates: self.present_members().map(|m| self.leaving(m)).collect(),
            removed: self.present_members().map(|m| m.user).collect(),
            ..Plan::default()
        }))
    }

    fn plan_put(
        &self,
        caller: UserRef,
        target: UserRef,
        role: Option<Role>,
        members_max: usize,
        now_ms: u64,
    ) -> Result<Option<Plan>, Refusal> {
        let changer = self.changer(caller)?;
        if changer.role < Role::Admin {
            return Err((Code::Forbidden, "only admins add members"));
        }
        if let Some(member) = self.present_member(target) {
            return plan_role(changer, member, role.unwrap_or(member.role));
        }
        let role = role.unwrap_or(Role::Member);
        if role == Role::Owner || role > Role::Member && changer.role < Role::Owner {
            return Err((
                Code::Forbidden,
                "only the owner gives roles, and the own one to members",
            ));
        }
        if self.present as usize >= members_max {
            return Err((Code::GroupFull, "the group has all the members it may have"));
        }
        let former = self.member(target);
        let intervals = former.map(|m| m.intervals.clone()).unwrap_or_default();
        Ok(Some(Plan {
            updates: vec![Update {
                user: target,
                role,
                joined_at: now_ms,
                intervals: joined(intervals, self.assigned),
            }],
            added: vec![target],
            ..Plan::default()
        }))
    }

    fn plan_remove(
        &self,
        registry: &Registry,
        caller: UserRef,
        target: UserRef,
    ) -> Result<Option<Plan>, Refusal> {
        let changer = self.changer(caller)?;
        let member = self
            .present_member(target)
            .ok_or((Code::NotFound, "no such member"))?;
        let leaves = caller == target;
        let allowed = leaves
            || changer.role == Role::Owner
            || changer.role == Role::Admin && member.role == Role::Member;
        if !allowed {
            return Err((Code::Forbidden, "the caller's role does not allow it"));
        }
        let mut updates = vec![self.leaving(member)];
        if member.role == Role::Owner
            && let Some(heir) = self.heir(registry, target)
        {
            updates.push(with_role(heir, Role::Owner));
        }
        Ok(Some(Plan {
            updates,
            removed: vec![target],
            ..Plan::default()
        }))
    }

    /// Who owns the conversation after its owner left: admins before members, then whoever has been
    /// in for longest.
    fn heir(&self, registry: &Registry, owner: UserRef) -> Option<&Member> {
        self.present_members()
            .filter(|m| m.user != owner)
            .min_by_key(|m| {
                (
                    std::cmp::Reverse(m.role),
                    m.joined_at,
                    registry.name(m.user),
                )
            })
    }

    fn leaving(&self, member: &Member) -> Update {
        let mut intervals = member.intervals.clone();
        if let Some(last) = intervals.last_mut() {
            last.until = self.assigned;
            if last.after == last.until {
                intervals.pop();
            }
        }
        Update {
            user: member.user,
            role: Role::Member,
            joined_at: member.joined_at,
            intervals,
        }
    }
}

/// These intervals and one that opens after `seq`.
fn joined(mut intervals: Intervals, seq: u64) -> Intervals {
    match intervals.last_mut() {
        // Nothing was said in between.
        Some(last) if last.until == seq => last.until = OPEN,
        _ => intervals.push(super::conversation::Interval {
            after: seq,
            until: OPEN,
        }),
    }
    intervals
}

fn with_role(member: &Member, role: Role) -> Update {
    Update {
        user: member.user,
        role,
        joined_at: member.joined_at,
        intervals: member.intervals.clone(),
    }
}

/// A member who is in gets another role; to make another the owner is to step back to admin.
fn plan_role(changer: &Member, member: &Member, role: Role) -> Result<Option<Plan>, Refusal> {
    if role == member.role {
        return Ok(None);
    }
    if changer.role < Role::Owner {
        return Err((Code::Forbidden, "only the owner changes roles"));
    }
    if changer.user == member.user {
        return Err((
            Code::Forbidden,
            "the owner has to make another the owner first",
        ));
    }
    let mut updates = vec![with_role(member, role)];
    if role == Role::Owner {
        updates.push(with_role(changer, Role::Admin));
    }
    Ok(Some(Plan {
        updates,
        ..Plan::default()
    }))
}

fn names(registry: &Registry, users: &[UserRef]) -> Vec<String> {
    let mut names: Vec<String> = users.iter().map(|u| registry.name(*u).to_owned()).collect();
    names.sort_unstable();
    names
}

impl Engine {
    /// Changes a conversation that exists.
    pub(super) fn change(
        &mut self,
        at: u32,
        ticket: Ticket,
        call: Call,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let Some(state) = self.cache.state(at).filter(|s| !s.deleted) else {
            return self.fail_in(at, ticket, Code::NotFound, "no such conversation", out);
        };
        let (caller, registry) = (ticket.user, &mut self.front.registry);
        let answer = match call {
            Call::SetTitle(_) => Answer::View { created: false },
            _ => Answer::Done,
        };
        let members_max = self.config.group_members_max;
        let planned = match call {
            Call::SetTitle(title) => check_title(&title)
                .map_err(|message| (Code::BadRequest, message))
                .and_then(|()| state.plan_title(caller, title)),
            Call::Delete => state.plan_delete(caller),
            Call::PutMember { user, .. } if !is_valid_id(&user) => {
                Err((Code::BadRequest, "not a user id"))
            }
            Call::PutMember { user, role } => {
                let target = registry.intern(&user);
                state.plan_put(caller, target, role, members_max, now.unix_ms)
            }
            Call::RemoveMember(user) => {
                let target = registry.intern(&user);
                state.plan_remove(registry, caller, target)
            }
            _ => Ok(None),
        };
        match planned {
            Err((code, message)) => self.fail_in(at, ticket, code, message, out),
            Ok(None) => {
                let response = match (answer, state.member(caller)) {
                    (Answer::View { created }, Some(member)) => Response::Conversation {
                        conversation: state.view(&self.front.registry, member),
                        created,
                    },
                    _ => Response::Done,
                };
                self.front.respond(ticket, response, out);
            }
            Ok(Some(_)) if self.has_no_room() => self.refuse_change(at, ticket, out),
            Ok(Some(plan)) => self.begin_change(at, ticket, answer, plan, now),
        }
    }

    /// Puts a change into the open batch.
    fn begin_change(&mut self, at: u32, ticket: Ticket, answer: Answer, plan: Plan, now: Now) {
        let slot = &mut self.cache.slots[at];
        let Some(state) = slot.state.as_deref_mut() else {
            return;
        };
        let mut row = state.row();
        row.version += 1;
        row.changed_at = now.unix_ms;
        row.deleted |= plan.deleted;
        if let Some(title) = &plan.title {
            row.title.clone_from(title);
        }
        let registry = &mut self.front.registry;
        let mut members = Vec::with_capacity(plan.updates.len());
        for update in &plan.updates {
            registry.retain(update.user);
            members.push((
                registry.name(update.user).to_owned(),
                member_row(update.role, update.joined_at, &update.intervals),
            ));
        }
        members.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        state.change = Some(Box::new(Change {
            at_seq: state.assigned,
            ticket: Some(ticket),
            answer,
            plan,
            changed_at: now.unix_ms,
        }));
        let writes = self.lanes.of(at).open.add_change(at, slot);
        writes.row = Some(row);
        writes.members = members;
    }

    fn refuse_change(&mut self, at: u32, ticket: Ticket, out: &mut Vec<Effect>) {
        self.front.stats.overloaded += 1;
        let id = id_text(self.cache.slots[at].id);
        let mut error = super::reply::error_in(
            Code::Overloaded,
            &id,
            "too many operations wait to be stored",
        );
        error.retry_after_ms = OVERLOADED_RETRY_MS;
        self.front.fail(ticket, error, out);
    }

    /// The direct conversation with `other`, made if need be.
    pub(super) fn open_direct(
        &mut self,
        at: u32,
        ticket: Ticket,
        other: &str,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        match self.cache.state(at) {
            Some(state) => {
                // The id follows from both members, so the caller is one of them.
                let Some(member) = state.member(ticket.user) else {
                    return self.fail_in(at, ticket, Code::NotAMember, "not a member", out);
                };
                let response = Response::Conversation {
                    conversation: state.view(&self.front.registry, member),
                    created: false,
                };
                self.front.respond(ticket, response, out);
            }
            None if self.has_no_room() => self.refuse_change(at, ticket, out),
            None => {
                let other = self.front.registry.intern(other);
                self.create_direct(at, ticket.user, other, Some(ticket), now);
            }
        }
    }

    /// Makes a direct conversation in a slot that has none.
    pub(super) fn create_direct(
        &mut self,
        at: u32,
        actor: UserRef,
        other: UserRef,
        ticket: Option<Ticket>,
        now: Now,
    ) {
        let mut users = vec![(actor, Role::Member), (other, Role::Member)];
        users.dedup();
        self.create(at, Kind::Direct, String::new(), users, ticket, now);
    }

    /// Makes a group of the caller and `members`.
    pub(super) fn create_group(
        &mut self,
        ticket: Ticket,
        title: String,
        members: &[String],
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let refusal = |(code, message): Refusal| code.error(message);
        let mut users = vec![(ticket.user, Role::Owner)];
        let checked = match check_title(&title) {
            Err(message) => Err((Code::BadRequest, message)),
            Ok(()) if members.iter().any(|m| !is_valid_id(m)) => Err((
                Code::BadRequest,
                "members holds something that is no user id",
            )),
            Ok(()) => {
                let mut interned: Vec<UserRef> = members
                    .iter()
                    .map(|m| self.front.registry.intern(m))
                    .filter(|u| *u != ticket.user)
                    .collect();
                interned.sort_unstable();
                interned.dedup();
                users.extend(interned.into_iter().map(|u| (u, Role::Member)));
                if users.len() > self.config.group_members_max {
                    Err((Code::GroupFull, "more members than a group may have"))
                } else if self.failed {
                    Err((Code::Unavailable, "the store failed"))
                } else if self.owned.has_none() {
                    Err((
                        Code::Unavailable,
                        "this core has no conversations yet; retry",
                    ))
                } else if self.has_no_room() {
                    Err((Code::Overloaded, "too many operations wait to be stored"))
                } else {
                    Ok(())
                }
            }
        };
        if let Err(refused) = checked {
            let mut error = refusal(refused);
            if refused.0 == Code::Overloaded {
                self.front.stats.overloaded += 1;
                error.retry_after_ms = OVERLOADED_RETRY_MS;
            }
            return self.front.fail(ticket, error, out);
        }
        let id = self.new_id(now.unix_ms);
        let at = self.cache.insert(id, false);
        self.create(at, Kind::Group, title, users, Some(ticket), now);
    }

    /// An id of a conversation that is this core's to make.
    fn new_id(&mut self, now_ms: u64) -> ConversationId {
        loop {
            let id = self.uuids.next(now_ms);
            if self.owned.foreign(id).is_none() {
                return id;
            }
        }
    }

    fn create(
        &mut self,
        at: u32,
        kind: Kind,
        title: String,
        mut users: Vec<(UserRef, Role)>,
        ticket: Option<Ticket>,
        now: Now,
    ) {
        users.sort_unstable();
        let members: Vec<Member> = users
            .iter()
            .map(|(user, role)| Member::new(*user, *role, now.unix_ms, 0))
            .collect();
        let registry = &mut self.front.registry;
        let id: ConversationId = self.cache.slots[at].id;
        let mut rows: Vec<_> = members
            .iter()
            .map(|m| {
                let row = member_row(m.role, m.joined_at, &m.intervals);
                (registry.name(m.user).to_owned(), row)
            })
            .collect();
        rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut state = Conversation::create(registry, id, kind, title, now.unix_ms, members);
        state.change = Some(Box::new(Change {
            at_seq: 0,
            ticket,
            answer: Answer::View { created: true },
            plan: Plan {
                added: users.iter().map(|(user, _)| *user).collect(),
                ..Plan::default()
            },
            changed_at: now.unix_ms,
        }));
        let slot = &mut self.cache.slots[at];
        let row = state.row();
        slot.state = Some(Box::new(state));
        let writes = self.lanes.of(at).open.add_change(at, slot);
        writes.row = Some(row);
        writes.members = rows;
    }
}

/// Whether a title can be one.
fn check_title(title: &str) -> Result<(), &'static str> {
    if title.chars().count() > TITLE_CHARS_MAX {
        return Err("title has at most 200 characters");
    }
    Ok(())
}
