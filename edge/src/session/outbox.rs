//! What a slow socket is still owed: frames in order, each with its class, kept only while the
//! driver holds an unsent tail.
//!
//! Invariants:
//! 1. [`Outbox::owed`] (the driver's tail and everything queued) never exceeds the hard bound plus
//!    one control lane and a last farewell; a frame that would is refused, and the caller closes.
//! 2. Over the soft bound typing goes first, then presence, then all but the newest receipt of each
//!    (conversation, user, status). Chat is never dropped.
//! 3. WebSocket control frames have their own lane, bounded by [`CONTROL_BYTES_MAX`], that leaves
//!    first: a full outbox does not lose a pong.
//!
//! Called by the shard's sessions and the hub.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashSet};
use trunkline_proto::client::{ServerBody, ServerFrame};

use crate::frame::ws;
use crate::handover::state::{self, BadState};

/// Bytes of the control lane: an unanswered ping or two. Of pongs that do not fit, the older are
/// the ones to drop (RFC 6455, 5.5.3).
pub const CONTROL_BYTES_MAX: usize = 4 * (ws::CONTROL_BYTES_MAX + 4);

/// How much a frame matters to a peer that does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Messages, answers, errors: never dropped.
    Chat,
    /// Cumulative: the newest of each kind is enough.
    Receipt,
    Presence,
    /// Worthless a moment later.
    Typing,
}

impl Class {
    /// For tables and metrics.
    pub const ALL: [Self; 4] = [Self::Chat, Self::Receipt, Self::Presence, Self::Typing];
}

/// A frame's class, and for receipts what they are about (others: 0).
pub fn classify(frame: &ServerFrame) -> (Class, u64) {
    match &frame.frame {
        Some(ServerBody::Receipt(receipt)) => {
            let mut hasher = FixedHasher::default();
            (&receipt.conversation_id, &receipt.user_id, &receipt.status).hash(&mut hasher);
            (Class::Receipt, hasher.finish())
        }
        Some(ServerBody::Presence(_)) => (Class::Presence, 0),
        Some(ServerBody::Typing(_)) => (Class::Typing, 0),
        _ => (Class::Chat, 0),
    }
}

/// FNV-1a: the same value in each process, so that the simulator's runs repeat.
struct FixedHasher(u64);

impl Default for FixedHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[derive(Debug)]
struct Item {
    bytes: Bytes,
    class: Class,
    key: u64,
}

/// Bounds of one outbox.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub soft: usize,
    pub hard: usize,
}

/// What was let go to stay within the bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub typing: u32,
    pub presence: u32,
    pub receipts: u32,
}

/// Over the hard bound: close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// One connection's.
#[derive(Debug, Default)]
pub struct Outbox {
    control: Vec<u8>,
    items: VecDeque<Item>,
    /// Of `items`.
    bytes: usize,
    /// The driver's unsent tail, as it was when told.
    held: usize,
    typing: u32,
    presence: u32,
    receipts: u32,
    /// Receipts that the last coalescing left.
    receipts_coalesced: u32,
}

impl Outbox {
    /// Bytes that the peer is owed: the driver's tail and what is queued here.
    pub fn owed(&self) -> usize {
        self.held + self.bytes + self.control.len()
    }

    /// Whether nothing is queued here.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.control.is_empty()
    }

    /// The driver says how much it holds.
    pub fn set_held(&mut self, bytes: usize) {
        self.held = bytes;
    }

    /// Lets go of all that is queued here; the driver's tail, which may end in the midst of a frame,
    /// still leaves.
    pub fn forget(&mut self) {
        *self = Self {
            held: self.held,
            ..Self::default()
        };
    }

    /// Queues a WebSocket control frame in the reserved lane; in a full one it takes the place of
    /// what is there.
    pub fn push_control(&mut self, frame: &[u8]) {
        if self.control.len() + frame.len() > CONTROL_BYTES_MAX {
            self.control.clear();
        }
        self.control.extend_from_slice(frame);
    }

    /// Queues what a connection gets once in its life, whatever the bounds.
    pub fn push_always(&mut self, bytes: Bytes) {
        self.append(bytes, Class::Chat, 0);
    }

    /// Queues a frame, or lets it or lesser ones go.
    pub fn push(
        &mut self,
        bytes: Bytes,
        class: Class,
        key: u64,
        bounds: Bounds,
    ) -> Result<Dropped, Full> {
        let mut dropped = Dropped::default();
        if self.owed() + bytes.len() > bounds.soft {
            self.shed(&mut dropped, bytes.len(), bounds.soft);
            let over = self.owed() + bytes.len() > bounds.soft;
            match class {
                Class::Typing if over => {
                    dropped.typing += 1;
                    return Ok(dropped);
                }
                Class::Presence if over => {
                    dropped.presence += 1;
                    return Ok(dropped);
                }
                _ => {}
            }
        }
        if self.owed() + bytes.len() > bounds.hard {
            return Err(Full);
        }
        self.append(bytes, class, key);
        Ok(dropped)
    }

    fn append(&mut self, bytes: Bytes, class: Class, key: u64) {
        self.bytes += bytes.len();
        match class {
            Class::Chat => {}
            Class::Receipt => self.receipts += 1,
            Class::Presence => self.presence += 1,
            Class::Typing => self.typing += 1,
        }
        self.items.push_back(Item { bytes, class, key });
    }

    /// Makes room for `coming` bytes, class by class, as far as needed.
    fn shed(&mut self, dropped: &mut Dropped, coming: usize, soft: usize) {
        if self.typing > 0 {
            dropped.typing += std::mem::take(&mut self.typing);
            self.keep(|item| item.class != Class::Typing);
        }
        if self.owed() + coming > soft && self.presence > 0 {
            dropped.presence += std::mem::take(&mut self.presence);
            self.keep(|item| item.class != Class::Presence);
        }
        // Again only when there are twice as many as the last time left: O(1) for each receipt.
        if self.owed() + coming > soft && self.receipts > 2 * self.receipts_coalesced {
            dropped.receipts += self.coalesce_receipts();
        }
    }

    fn keep(&mut self, wanted: impl Fn(&Item) -> bool) {
        let mut bytes = 0;
        self.items.retain(|item| {
            let wanted = wanted(item);
            bytes += if wanted { item.bytes.len() } else { 0 };
            wanted
        });
        self.bytes = bytes;
    }

    fn coalesce_receipts(&mut self) -> u32 {
        let before = self.items.len();
        let hasher = DefaultHashBuilder::default();
        let mut seen = HashSet::with_capacity_and_hasher(self.receipts as usize, hasher);
        let mut kept = VecDeque::with_capacity(before);
        let mut bytes = 0;
        while let Some(item) = self.items.pop_back() {
            if item.class != Class::Receipt || seen.insert(item.key) {
                bytes += item.bytes.len();
                kept.push_front(item);
            }
        }
        self.items = kept;
        self.bytes = bytes;
        let gone = (before - self.items.len()) as u32;
        self.receipts -= gone;
        self.receipts_coalesced = self.receipts.max(1);
        gone
    }

    /// All that is queued, for another process.
    pub fn carried(&self) -> state::Outbox {
        state::Outbox {
            control: self.control.clone(),
            items: self
                .items
                .iter()
                .map(|item| state::OutboxItem {
                    bytes: item.bytes.clone(),
                    class: item.class as u32,
                    key: item.key,
                })
                .collect(),
        }
    }

    /// The outbox of a socket for which the driver holds `held` bytes.
    pub fn resumed(carried: state::Outbox, held: usize) -> Result<Self, BadState> {
        let mut outbox = Self {
            control: carried.control,
            held,
            ..Self::default()
        };
        for item in carried.items {
            let class = Class::ALL.get(item.class as usize).copied();
            let class = class.ok_or(BadState("an unknown class of frames"))?;
            outbox.append(item.bytes, class, item.key);
        }
        Ok(outbox)
    }

    /// Everything that is queued, in the order in which it is to leave: the driver took its tail.
    pub fn take(self) -> Bytes {
        if self.control.is_empty() && self.items.len() == 1 {
            return self
                .items
                .into_iter()
                .next()
                .map_or_else(Bytes::new, |i| i.bytes);
        }
        let mut all = Vec::with_capacity(self.control.len() + self.bytes);
        all.extend_from_slice(&self.control);
        for item in &self.items {
            all.extend_from_slice(&item.bytes);
        }
        Bytes::from(all)
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::client::Receipt;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        soft: 100,
        hard: 200,
    };

    fn bytes(byte: u8, len: usize) -> Bytes {
        vec![byte; len].into()
    }

    #[test]
    fn below_the_soft_bound_everything_is_kept_in_order() {
        let mut outbox = Outbox::default();
        for (byte, class) in [
            (1, Class::Chat),
            (2, Class::Typing),
            (3, Class::Receipt),
            (4, Class::Presence),
        ] {
            let dropped = outbox.push(bytes(byte, 25), class, 0, BOUNDS).unwrap();
            assert_eq!(dropped, Dropped::default());
        }
        assert_eq!(outbox.owed(), 100);
        let expected = [[1; 25], [2; 25], [3; 25], [4; 25]].concat();
        assert_eq!(outbox.take(), expected);
    }

    #[test]
    fn typing_goes_before_presence_and_presence_before_receipts() {
        let mut outbox = Outbox::default();
        outbox.push(bytes(1, 30), Class::Typing, 0, BOUNDS).unwrap();
        outbox
            .push(bytes(2, 30), Class::Presence, 0, BOUNDS)
            .unwrap();
        outbox
            .push(bytes(3, 30), Class::Receipt, 1, BOUNDS)
            .unwrap();
        let dropped = outbox.push(bytes(4, 30), Class::Chat, 0, BOUNDS).unwrap();
        assert_eq!((dropped.typing, dropped.presence), (1, 0));
        let dropped = outbox.push(bytes(5, 30), Class::Chat, 0, BOUNDS).unwrap();
        assert_eq!((dropped.typing, dropped.presence), (0, 1));
        assert_eq!(outbox.owed(), 90);
        // Now over the bound with what may not go: the lesser classes stay at the door.
        outbox.push(bytes(6, 30), Class::Chat, 0, BOUNDS).unwrap();
        let dropped = outbox.push(bytes(7, 1), Class::Typing, 0, BOUNDS).unwrap();
        assert_eq!(dropped.typing, 1);
        let dropped = outbox
            .push(bytes(8, 1), Class::Presence, 0, BOUNDS)
            .unwrap();
        assert_eq!(dropped.presence, 1);
        assert_eq!(outbox.owed(), 120);
    }

    #[test]
    fn of_receipts_about_the_same_the_newest_stays() {
        let mut outbox = Outbox::default();
        for (byte, key) in [(1, 7), (2, 8), (3, 7), (4, 7)] {
            outbox
                .push(bytes(byte, 25), Class::Receipt, key, BOUNDS)
                .unwrap();
        }
        let dropped = outbox.push(bytes(9, 10), Class::Chat, 0, BOUNDS).unwrap();
        assert_eq!(dropped.receipts, 2);
        assert_eq!(outbox.owed(), 60);
        assert_eq!(outbox.take(), [&[2; 25][..], &[4; 25], &[9; 10]].concat());
    }

    #[test]
    fn what_exceeds_the_hard_bound_is_refused_and_the_tail_counts() {
        let mut outbox = Outbox::default();
        outbox.set_held(150);
        outbox.push(bytes(1, 50), Class::Chat, 0, BOUNDS).unwrap();
        assert_eq!(outbox.push(bytes(2, 1), Class::Chat, 0, BOUNDS), Err(Full));
        outbox.push_control(&[8, 8]);
        assert_eq!(outbox.owed(), 202);
        assert_eq!(outbox.take()[..3], [8, 8, 1]);
    }

    #[test]
    fn the_control_lane_is_bounded() {
        let mut outbox = Outbox::default();
        for i in 0..1_000u32 {
            outbox.push_control(&[i as u8; 127]);
            assert!(outbox.owed() <= CONTROL_BYTES_MAX);
        }
        assert_eq!(outbox.take().last(), Some(&(999u32 as u8)));
    }

    #[test]
    fn receipts_are_told_apart_by_what_they_are_about() {
        let receipt = |user: &str, status: &str, seq| {
            let body = Receipt {
                conversation_id: "c".into(),
                user_id: user.into(),
                status: status.into(),
                seq,
                ..Receipt::default()
            };
            classify(&ServerFrame::push(ServerBody::Receipt(body)))
        };
        assert_eq!(receipt("a", "read", 1), receipt("a", "read", 2));
        assert_ne!(receipt("a", "read", 1), receipt("b", "read", 1));
        assert_ne!(receipt("a", "read", 1), receipt("a", "delivered", 1));
    }
}
