//! What is sent and what must come back: every message of a run is the same, so that it is made
//! once, and a server that damages, cuts or shifts it is found out by one comparison.

/// The first byte of an answer to the sender, and of every message that is sent.
pub const ACK: u8 = b'a';
/// The first byte of what a chat floor sends to the partner.
pub const DELIVERY: u8 = b'd';

/// `length` letters that differ from themselves when shifted; the first is [`ACK`].
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| ACK + ((i + i / 26) % 26) as u8)
        .collect()
}

/// The same, as the chat floor's delivery.
pub fn delivery(length: usize) -> Vec<u8> {
    let mut bytes = pattern(length);
    if let Some(first) = bytes.first_mut() {
        *first = DELIVERY;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_shows() {
        let bytes = pattern(64);
        assert_eq!(bytes[0], ACK);
        assert!((1..64).all(|by| bytes[by..] != bytes[..64 - by]));
        assert_ne!(delivery(64), bytes);
        assert_eq!(delivery(64)[1..], bytes[1..]);
    }
}
