//! Keys of the embedded store. Frozen like the rows: a new version must read an old directory.
//!
//! | keyspace | key |
//! |---|---|
//! | `messages` | conversation (16 bytes) ‖ seq (8 bytes, big endian) |
//! | `conversations` | conversation |
//! | `members`, `watermarks` | conversation ‖ user |
//! | `user_conversations` | user ‖ 0x00 ‖ conversation |
//!
//! Integers are big endian, so that the bytewise order of the keys is the order of the seqs.
//! Called by [`super::embedded`] alone.

use trunkline_proto::ids::ConversationId;

use super::StoreError;

/// Length of a conversation's id in a key.
pub(super) const CONVERSATION_BYTES: usize = 16;
/// Length of a message's key.
pub(super) const MESSAGE_BYTES: usize = CONVERSATION_BYTES + 8;

/// Ends the user id in the index. No user id holds it, see [`trunkline_proto::ids::is_valid_id`].
const USER_END: u8 = 0;

/// Key of the message with this seq.
pub(super) fn message(id: ConversationId, seq: u64) -> [u8; MESSAGE_BYTES] {
    let mut key = [0; MESSAGE_BYTES];
    key[..CONVERSATION_BYTES].copy_from_slice(id.as_bytes());
    key[CONVERSATION_BYTES..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// Key of a row about a user in a conversation: member, watermark.
pub(super) fn conversation_user(id: ConversationId, user: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(CONVERSATION_BYTES + user.len());
    key.extend_from_slice(id.as_bytes());
    key.extend_from_slice(user.as_bytes());
    key
}

/// What all index keys of a user begin with.
pub(super) fn user_prefix(user: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(user.len() + 1 + CONVERSATION_BYTES);
    key.extend_from_slice(user.as_bytes());
    key.push(USER_END);
    key
}

/// Key of the index entry of a user's conversation.
pub(super) fn user_conversation(user: &str, id: ConversationId) -> Vec<u8> {
    let mut key = user_prefix(user);
    key.extend_from_slice(id.as_bytes());
    key
}

/// The seq in a message's key.
pub(super) fn seq_of(key: &[u8]) -> Result<u64, StoreError> {
    match key.get(CONVERSATION_BYTES..).map(<[u8; 8]>::try_from) {
        Some(Ok(seq)) => Ok(u64::from_be_bytes(seq)),
        _ => Err(corrupt("message", key)),
    }
}

/// The user in a member's or watermark's key.
pub(super) fn user_of(key: &[u8]) -> Result<String, StoreError> {
    key.get(CONVERSATION_BYTES..)
        .and_then(|user| std::str::from_utf8(user).ok())
        .map(str::to_owned)
        .ok_or_else(|| corrupt("member or watermark", key))
}

/// The conversation in an index key that begins with [`user_prefix`] of a user.
pub(super) fn conversation_of(key: &[u8], prefix: &[u8]) -> Result<ConversationId, StoreError> {
    match key.get(prefix.len()..).map(<[u8; 16]>::try_from) {
        Some(Ok(id)) => Ok(ConversationId::from_bytes(id)),
        _ => Err(corrupt("user index", key)),
    }
}

fn corrupt(what: &str, key: &[u8]) -> StoreError {
    StoreError::Corrupt(format!("{what} key {}", key.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ConversationId = ConversationId::from_bytes([7; 16]);

    #[test]
    fn keys_order_as_their_seqs_do() {
        let seqs = [0, 1, 255, 256, 65_535, 1 << 32, u64::MAX - 1, u64::MAX];
        let keys = seqs.map(|seq| message(ID, seq));
        assert!(keys.is_sorted());
        assert_eq!(keys.map(|key| seq_of(&key).expect("own key")), seqs);
    }

    #[test]
    fn keys_give_back_what_was_put_in() {
        let key = conversation_user(ID, "a:b@c");
        assert_eq!(user_of(&key).expect("own key"), "a:b@c");
        let key = user_conversation("a:b@c", ID);
        assert_eq!(
            conversation_of(&key, &user_prefix("a:b@c")).expect("own key"),
            ID
        );
    }

    #[test]
    fn a_user_that_begins_another_does_not_begin_its_index_keys() {
        assert!(!user_conversation("ab", ID).starts_with(&user_prefix("a")));
        assert!(!user_conversation("a:b", ID).starts_with(&user_prefix("a")));
    }

    #[test]
    fn keys_of_other_lengths_are_named_corrupt() {
        for key in [&b""[..], &[7; 16], &[7; 23], &[7; 25]] {
            assert!(
                matches!(seq_of(key), Err(StoreError::Corrupt(_))),
                "{key:?}"
            );
        }
        assert!(matches!(user_of(&[7; 15]), Err(StoreError::Corrupt(_))));
        assert!(matches!(user_of(&[0xff; 17]), Err(StoreError::Corrupt(_))));
        assert!(matches!(
            conversation_of(b"a\0short", b"a\0"),
            Err(StoreError::Corrupt(_))
        ));
    }
}
