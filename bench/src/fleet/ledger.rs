//! What each client has seen of each of its conversations, and whether that is what it should have
//! seen: acks and deliveries together are every message, once, in order. A state machine without I/O.
//!
//! A client that was away, or was told to look, may find a gap: then it asks for what is missing, and
//! what it gets must be whole. Until then what comes live above the gap is noted, not taken.
//!
//! Held by [`super::talk`]; conversations are named by the last eight bytes of their ids.

use hashbrown::HashMap;

/// What a client makes of a message that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The next one.
    New,
    /// It had it. Pushed twice, unless it comes on a page.
    Again,
    /// Messages before it have not come, and there is no excuse.
    Gap,
    /// Messages before it have not come, as is allowed: they are to be fetched.
    Behind,
}

/// How far a client has come in a conversation.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    /// Everything up to here was seen.
    last: u64,
    /// The highest seq heard of.
    highest: u64,
    /// Being behind is allowed: the client was away, or was told to look.
    excused: bool,
}

/// Positions of all clients of a worker.
#[derive(Debug, Default)]
pub struct Ledger {
    positions: HashMap<(u32, u64), Position>,
}

impl Ledger {
    /// A message or an ack came live.
    pub fn live(&mut self, client: u32, conversation: u64, seq: u64) -> Seen {
        let at = self.positions.entry((client, conversation)).or_default();
        at.highest = at.highest.max(seq);
        if seq <= at.last {
            return if at.excused {
                Seen::Behind
            } else {
                Seen::Again
            };
        }
        if seq == at.last + 1 {
            at.last = seq;
            if at.last == at.highest {
                at.excused = false;
            }
            return Seen::New;
        }
        if at.excused { Seen::Behind } else { Seen::Gap }
    }

    /// A message came on a page. A page is in order, and fills from where the client was.
    pub fn paged(&mut self, client: u32, conversation: u64, seq: u64) -> Seen {
        let at = self.positions.entry((client, conversation)).or_default();
        if seq <= at.last {
            return Seen::Again;
        }
        if seq != at.last + 1 {
            return Seen::Gap;
        }
        at.last = seq;
        at.highest = at.highest.max(seq);
        Seen::New
    }

    /// A page is over, or something told the client where the head is. What it should fetch after, if
    /// it is not whole.
    pub fn head(&mut self, client: u32, conversation: u64, head: u64) -> Option<u64> {
        let at = self.positions.entry((client, conversation)).or_default();
        at.highest = at.highest.max(head);
        at.excused = at.last < at.highest;
        at.excused.then_some(at.last)
    }

    /// The client was away: it may have missed something in this conversation. Where it stands.
    pub fn was_away(&mut self, client: u32, conversation: u64) -> u64 {
        let at = self.positions.entry((client, conversation)).or_default();
        at.excused = true;
        at.last
    }

    /// A `sync` is over: in a conversation without a page nothing was missing.
    pub fn synced(&mut self, client: u32, conversation: u64) {
        if let Some(at) = self.positions.get_mut(&(client, conversation))
            && at.last == at.highest
        {
            at.excused = false;
        }
    }

    /// Whether it has heard of messages that it has not seen.
    pub fn is_behind(&self, client: u32, conversation: u64) -> bool {
        let at = self.positions.get(&(client, conversation));
        at.is_some_and(|at| at.last < at.highest)
    }

    /// Who has come how far where: client, conversation, seq.
    pub fn all(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        let all = self.positions.iter();
        all.map(|(&(client, conversation), at)| (client, conversation, at.last))
    }
}

/// Compares what the members of each conversation have seen in the end. `ends`: conversation and
/// last seq of each member that saw anything. `members`: how many a conversation has.
/// How many conversations are not whole, and the first of them in words.
pub fn unlike(ends: &[(u64, u64)], members: impl Fn(u64) -> u64) -> (u64, Option<String>) {
    let mut by_conversation: HashMap<u64, (u64, u64, u64)> = HashMap::new();
    for &(conversation, last) in ends.iter().filter(|(_, last)| *last > 0) {
        let of = by_conversation
            .entry(conversation)
            .or_insert((last, last, 0));
        of.0 = of.0.min(last);
        of.1 = of.1.max(last);
        of.2 += 1;
    }
    let mut unlike = 0;
    let mut first = None;
    for (conversation, (low, high, seen)) in by_conversation {
        let members = members(conversation);
        if low != high || seen != members {
            unlike += 1;
            first.get_or_insert_with(|| {
                format!(
                    "of {members} members {seen} saw anything of conversation …{conversation:016x}, \
                     the last one seq {low}, the first one seq {high}"
                )
            });
        }
    }
    (unlike, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_once_and_in_order_is_as_it_should_be() {
        let mut ledger = Ledger::default();
        for seq in 1..=5 {
            assert_eq!(ledger.live(0, 7, seq), Seen::New);
            assert_eq!(ledger.live(1, 7, seq), Seen::New);
        }
        let ends: Vec<_> = ledger.all().map(|(_, c, last)| (c, last)).collect();
        assert_eq!(unlike(&ends, |_| 2), (0, None));
    }

    #[test]
    fn a_lost_a_repeated_and_an_overtaken_delivery_are_seen() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.live(0, 7, 1), Seen::New);
        assert_eq!(ledger.live(0, 7, 1), Seen::Again);
        assert_eq!(ledger.live(0, 7, 3), Seen::Gap);
        assert_eq!(ledger.live(0, 7, 2), Seen::New);
        assert_eq!(ledger.live(1, 7, 2), Seen::Gap);
    }

    #[test]
    fn a_last_delivery_that_never_came_is_seen_in_the_end() {
        let (n, first) = unlike(&[(7, 5), (7, 4), (8, 1), (8, 1)], |_| 2);
        assert_eq!(n, 1);
        assert!(
            first
                .unwrap()
                .contains("the last one seq 4, the first one seq 5")
        );
        assert_eq!(unlike(&[(7, 5)], |_| 2).0, 1, "one of them saw nothing");
        assert_eq!(unlike(&[(7, 5), (7, 0)], |_| 2).0, 1);
    }

    #[test]
    fn who_was_away_fetches_until_it_is_whole() {
        let mut ledger = Ledger::default();
        ledger.live(0, 7, 1);
        assert_eq!(ledger.was_away(0, 7), 1);
        assert_eq!(ledger.live(0, 7, 5), Seen::Behind);
        for seq in 2..=3 {
            assert_eq!(ledger.paged(0, 7, seq), Seen::New);
        }
        assert_eq!(ledger.head(0, 7, 4), Some(3), "there is more");
        assert_eq!(ledger.paged(0, 7, 3), Seen::Again);
        assert_eq!(ledger.paged(0, 7, 5), Seen::Gap, "a page with a hole");
        assert_eq!(ledger.paged(0, 7, 4), Seen::New);
        assert_eq!(ledger.paged(0, 7, 5), Seen::New);
        assert_eq!(ledger.head(0, 7, 5), None);
        assert_eq!(ledger.live(0, 7, 7), Seen::Gap, "no excuse any more");
    }
}
