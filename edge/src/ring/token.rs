//! What a kernel completion or readiness event carries back: the operation it belongs to, and the
//! connection's slot and generation, in the 64 bits that io_uring and epoll return untouched.
//!
//! Layout: operation (5 bits) | slot (27 bits) | generation (32 bits). A completion whose
//! generation is not the slot's present one belongs to an earlier owner and is ignored.

/// Slots a token can name.
pub(super) const SLOTS_LIMIT: u32 = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 27;
const OPERATION_SHIFT: u32 = 32 + SLOT_BITS;

/// The kinds of thing that a driver has under way in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    /// Completions that nobody acts upon.
    Ignore = 0,
    /// A listener; the slot is its index.
    Accept = 1,
    /// What waits for bytes: a multishot receive, or a multishot poll.
    Receive = 2,
    /// A turn's first send; completes only when it stays short.
    Send = 3,
    /// A send of what stayed behind; always completes.
    SendTail = 4,
    /// Waiting for room in the socket's send buffer.
    Writable = 5,
    /// Creating the socket of an outgoing connection.
    Socket = 6,
    /// Binding it to its source address.
    Bind = 7,
    Connect = 8,
    Shutdown = 9,
    Cancel = 10,
    Close = 11,
    /// The waker's eventfd.
    Wake = 12,
    /// The eventfd by which the other rings wake the main one.
    Signal = 13,
    /// Making an ordinary descriptor out of a direct one.
    Install = 14,
    /// The same, for a moment, to shut it.
    InstallToShut = 15,
    /// One receive of what a poll has announced.
    Read = 16,
}

/// An operation on a slot's owner of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) operation: Operation,
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Token {
    pub(super) const fn new(operation: Operation, slot: u32, generation: u32) -> Self {
        Self {
            operation,
            slot,
            generation,
        }
    }

    pub(super) const fn pack(self) -> u64 {
        ((self.operation as u64) << OPERATION_SHIFT)
            | ((self.slot as u64) << 32)
            | self.generation as u64
    }

    pub(super) const fn unpack(bits: u64) -> Self {
        let operation = match bits >> OPERATION_SHIFT {
            1 => Operation::Accept,
            2 => Operation::Receive,
            3 => Operation::Send,
            4 => Operation::SendTail,
            5 => Operation::Writable,
            6 => Operation::Socket,
            7 => Operation::Bind,
            8 => Operation::Connect,
            9 => Operation::Shutdown,
            10 => Operation::Cancel,
            11 => Operation::Close,
            12 => Operation::Wake,
            13 => Operation::Signal,
            14 => Operation::Install,
            15 => Operation::InstallToShut,
            16 => Operation::Read,
            _ => Operation::Ignore,
        };
        Self {
            operation,
            slot: (bits >> 32) as u32 & (SLOTS_LIMIT - 1),
            generation: bits as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_survives_the_round_trip() {
        for bits in 0..17u64 {
            let token = Token::unpack((bits << OPERATION_SHIFT) | (0x7bc_def1 << 32) | 0x8000_0001);
            assert_eq!(token.operation as u64, bits);
            assert_eq!(token.slot, 0x7bc_def1);
            assert_eq!(token.generation, 0x8000_0001);
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }

    #[test]
    fn the_largest_slot_does_not_touch_the_operation() {
        let token = Token::new(Operation::Read, SLOTS_LIMIT - 1, u32::MAX);
        assert_eq!(Token::unpack(token.pack()), token);
    }
}
