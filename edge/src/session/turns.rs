//! What each connection is sent at the end of the turn: everything that a turn brings for it leaves
//! in one piece, and a payload that it shares with others is not copied unless something joins it.
//!
//! Invariant: a connection's `turn` is its index here while it has an entry, and [`NO_TURN`]
//! otherwise; entries live for one turn.

use bytes::Bytes;

use super::slots::{Conn, NO_TURN};
use crate::ring::ConnId;

/// A new buffer's size: an ack and a delivery or two.
const BUFFER_BYTES: usize = 256;

#[derive(Debug)]
enum Owed {
    Shared(Bytes),
    Own(Vec<u8>),
}

/// The turn's table.
#[derive(Debug, Default)]
pub struct Turns {
    entries: Vec<(ConnId, Owed)>,
}

impl Turns {
    /// The buffer that leaves at the end of the turn, to append to.
    pub fn buffer(&mut self, id: ConnId, conn: &mut Conn) -> &mut Vec<u8> {
        if conn.turn == NO_TURN {
            conn.turn = self.entries.len() as u32;
            let buffer = Vec::with_capacity(BUFFER_BYTES);
            self.entries.push((id, Owed::Own(buffer)));
        }
        let owed = &mut self.entries[conn.turn as usize].1;
        if let Owed::Shared(shared) = owed {
            let mut own = Vec::with_capacity(shared.len() + BUFFER_BYTES);
            own.extend_from_slice(shared);
            *owed = Owed::Own(own);
        }
        match owed {
            Owed::Own(own) => own,
            Owed::Shared(_) => unreachable!("made its own just above"),
        }
    }

    /// Appends `bytes`; alone in its turn, they are sent as they are.
    pub fn share(&mut self, id: ConnId, conn: &mut Conn, bytes: &Bytes) {
        if conn.turn == NO_TURN {
            conn.turn = self.entries.len() as u32;
            self.entries.push((id, Owed::Shared(bytes.clone())));
        } else {
            self.buffer(id, conn).extend_from_slice(bytes);
        }
    }

    /// Takes a connection's bytes out of the turn.
    pub fn withdraw(&mut self, conn: &mut Conn) -> Bytes {
        if conn.turn == NO_TURN {
            return Bytes::new();
        }
        let owed = &mut self.entries[conn.turn as usize].1;
        conn.turn = NO_TURN;
        std::mem::replace(owed, Owed::Shared(Bytes::new())).into_bytes()
    }

    /// Empties the table.
    pub fn drain(&mut self) -> impl Iterator<Item = (ConnId, Bytes)> {
        self.entries
            .drain(..)
            .map(|(id, owed)| (id, owed.into_bytes()))
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Owed {
    fn into_bytes(self) -> Bytes {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Own(own) => own.into(),
        }
    }
}
