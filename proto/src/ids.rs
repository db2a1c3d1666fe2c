//! Identifiers: how they look, how they are checked, how they are made.

use uuid::Uuid;

use crate::limits::{CLIENT_MSG_ID_BYTES_MAX, ID_BYTES_MAX};

/// Namespace of direct conversations' UUIDv5.
pub const DIRECT_NAMESPACE: Uuid = Uuid::from_u128(0xfe1939a1_c503_5c73_82b3_85a7b7106b48);

/// Milliseconds from the Unix epoch to 2024-01-01T00:00:00Z, where message ids begin to count.
pub const SNOWFLAKE_EPOCH_MS: u64 = 1_704_067_200_000;

/// A conversation's id: UUIDv5 for direct ones, UUIDv7 for the others.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct ConversationId(pub Uuid);

impl ConversationId {
    /// The direct conversation of two users, whichever writes first. Name: the bytewise lesser id,
    /// a line feed, the greater.
    pub fn direct(a: &str, b: &str) -> Self {
        let (low, high) = if a.as_bytes() <= b.as_bytes() {
            (a, b)
        } else {
            (b, a)
        };
        Self(Uuid::new_v5(
            &DIRECT_NAMESPACE,
            format!("{low}\n{high}").as_bytes(),
        ))
    }

    /// Only the hyphenated lowercase form is a conversation id: two spellings would be two keys.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 36 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        Uuid::try_parse(text).ok().map(Self)
    }

    /// The 16 bytes of the key in a store.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From a store's key.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl std::fmt::Display for ConversationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Whether `text` is a user id or device id: 1–64 bytes of `[A-Za-z0-9._:@-]`.
pub fn is_valid_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'-'))
}

/// Whether `text` can be a `client_msg_id`: 1–64 bytes.
pub fn is_valid_client_msg_id(text: &str) -> bool {
    (1..=CLIENT_MSG_ID_BYTES_MAX).contains(&text.len())
}

/// Makes message ids: 41 bit ms since [`SNOWFLAKE_EPOCH_MS`], 10 bit worker, 12 bit counter.
///
/// Ids of one maker only ever rise. When the clock is set back, or 4,096 ids were made within a
/// millisecond, it goes on counting from the highest time that it has used, ahead of the clock.
#[derive(Clone, Debug)]
pub struct Snowflake {
    worker: u16,
    last_ms: u64,
    counter: u16,
}

impl Snowflake {
    /// Worker ids that exist.
    pub const WORKERS: u16 = 1 << 10;
    const COUNTER_MAX: u16 = (1 << 12) - 1;

    /// The highest id of the time before this millisecond, whoever made it.
    pub const fn floor_of_ms(unix_ms: u64) -> u64 {
        (unix_ms.saturating_sub(SNOWFLAKE_EPOCH_MS) << 22).saturating_sub(1)
    }

    /// `floor_id`: the highest id known to exist already (0: none); all ids made are above it.
    pub fn new(worker: u16, floor_id: u64) -> Self {
        assert!(
            worker < Self::WORKERS,
            "worker id over {}",
            Self::WORKERS - 1
        );
        // The whole millisecond of the floor counts as used up, whichever worker made it.
        Self {
            worker,
            last_ms: floor_id >> 22,
            counter: Self::COUNTER_MAX,
        }
    }

    /// The next id. `now_ms`: ms since the Unix epoch.
    pub fn next(&mut self, now_ms: u64) -> u64 {
        let now = now_ms.saturating_sub(SNOWFLAKE_EPOCH_MS);
        if now > self.last_ms {
            self.last_ms = now;
            self.counter = 0;
        } else if self.counter < Self::COUNTER_MAX {
            self.counter += 1;
        } else {
            self.last_ms += 1;
            self.counter = 0;
        }
        self.last_ms << 22 | u64::from(self.worker) << 12 | u64::from(self.counter)
    }

    /// The ms since the Unix epoch at which `id` was made.
    pub const fn timestamp_ms(id: u64) -> u64 {
        (id >> 22) + SNOWFLAKE_EPOCH_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direct_conversation_is_the_same_from_both_sides() {
        let id = ConversationId::direct("alice", "bob");
        assert_eq!(id, ConversationId::direct("bob", "alice"));
        assert_eq!(id.to_string(), "ca3ece1f-0478-587e-ab74-78af8c811a22");
    }

    #[test]
    fn only_the_canonical_spelling_is_a_conversation_id() {
        assert!(ConversationId::parse("ca3ece1f-0478-587e-ab74-78af8c811a22").is_some());
        assert!(ConversationId::parse("CA3ECE1F-0478-587E-AB74-78AF8C811A22").is_none());
        assert!(ConversationId::parse("ca3ece1f0478587eab7478af8c811a22").is_none());
        assert!(ConversationId::parse("").is_none());
    }

    #[test]
    fn ids_are_checked() {
        assert!(is_valid_id("a.b_c:d@e-F9"));
        assert!(!is_valid_id(""));
        assert!(!is_valid_id("white space"));
        assert!(!is_valid_id("é"));
        assert!(!is_valid_id(&"x".repeat(65)));
    }

    #[test]
    fn message_ids_rise_also_when_the_clock_goes_back() {
        let mut ids = Snowflake::new(7, 0);
        let t = SNOWFLAKE_EPOCH_MS + 1_000;
        let mut last = 0;
        for now in (0..10_000)
            .map(|i| t + i / 5_000)
            .chain([t - 500, t - 499, 0, t + 10])
        {
            let id = ids.next(now);
            assert!(id > last, "{id} after {last}");
            last = id;
        }
    }

    #[test]
    fn a_new_maker_starts_above_its_floor() {
        let t = SNOWFLAKE_EPOCH_MS + 1_000;
        let floor = Snowflake::new(1_023, 0).next(t + 60_000);
        let id = Snowflake::new(0, floor).next(t);
        assert!(id > floor);
        assert!(Snowflake::timestamp_ms(id) >= t + 60_000);
    }
}
