//! After another core died: the members of the conversations that it wrote to lately are told where
//! these stand, since its last deliveries may not have left it.
//!
//! Bounds: at most [`RUNNING_MAX`] conversations are under way at once; the rest waits in the list
//! that was handed in.

use std::collections::{BTreeMap, VecDeque};

use trunkline_proto::ids::ConversationId;

use super::machine::Engine;
use super::work::Work;
use super::{Effect, Now, Token};

/// Conversations that are under way at once.
const RUNNING_MAX: usize = 64;
/// How long those rest for which the store did not answer.
const PAUSE_NS: u64 = 500_000_000;

/// All catch-ups.
#[derive(Default)]
pub(super) struct CatchUps {
    queue: VecDeque<(Token, ConversationId)>,
    /// Conversations that are not yet done, by catch-up.
    left: BTreeMap<Token, usize>,
    running: usize,
    done: Vec<Token>,
    /// The store did not answer for one: rest before the next.
    tired: bool,
    paused_until: Option<u64>,
}

impl CatchUps {
    /// When those that rest are to go on.
    pub fn deadline(&self) -> Option<u64> {
        self.paused_until.filter(|_| !self.queue.is_empty())
    }

    fn finish(&mut self, token: Token) {
        self.running -= 1;
        if let Some(left) = self.left.get_mut(&token) {
            *left -= 1;
            if *left == 0 {
                self.left.remove(&token);
                self.done.push(token);
            }
        }
    }
}

impl Engine {
    /// Takes a catch-up in.
    pub(super) fn catch_up(&mut self, token: Token, conversations: Vec<ConversationId>) {
        if conversations.is_empty() {
            return self.catch_ups.done.push(token);
        }
        self.catch_ups.left.insert(token, conversations.len());
        let queued = conversations.into_iter().map(|id| (token, id));
        self.catch_ups.queue.extend(queued);
    }

    /// Goes on with what may go on. Called after each input.
    pub(super) fn run_catch_ups(&mut self, now: Now, out: &mut Vec<Effect>) {
        let catch_ups = &mut self.catch_ups;
        if std::mem::take(&mut catch_ups.tired) {
            catch_ups.paused_until = Some(now.mono_ns + PAUSE_NS);
        }
        if catch_ups.paused_until.is_some_and(|at| at <= now.mono_ns) {
            catch_ups.paused_until = None;
        }
        while self.catch_ups.paused_until.is_none()
            && !self.catch_ups.tired
            && self.catch_ups.running < RUNNING_MAX
            && let Some((token, id)) = self.catch_ups.queue.pop_front()
        {
            self.catch_ups.running += 1;
            if self.owned.foreign(id).is_some() {
                self.catch_ups.finish(token);
            } else {
                self.dispatch(id, Work::Announce { token, id }, now, out);
            }
        }
        for token in self.catch_ups.done.drain(..) {
            out.push(Effect::CaughtUp { token });
        }
    }

    /// Tells the members of a conversation where it stands.
    pub(super) fn announce(&mut self, at: u32, token: Token, out: &mut Vec<Effect>) {
        if let Some(state) = self.cache.state(at).filter(|s| !s.deleted) {
            let frame = state.frame();
            self.front.stats.hints += 1;
            self.front.push_change(state, &[], frame, out);
        }
        self.catch_ups.finish(token);
    }

    /// A conversation could not be looked at: later, unless it is another's now.
    pub(super) fn announce_failed(&mut self, token: Token, id: ConversationId) {
        if self.failed || self.owned.foreign(id).is_some() {
            return self.catch_ups.finish(token);
        }
        self.catch_ups.running -= 1;
        self.catch_ups.queue.push_back((token, id));
        self.catch_ups.tired = true;
    }
}
