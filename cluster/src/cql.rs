//! As much of Cassandra's native protocol (version 4) as it takes to ask a node whether it serves and whom
//! it sees. Applications use a driver; this is for the rig, which has none to link. Called by `cassandra`.
//!
//! Shapes: Apache Cassandra, `native_protocol_v4.spec`, sections 2 to 4 and 6.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const VERSION_REQUEST: u8 = 0x04;
const OPCODE_ERROR: u8 = 0x00;
const OPCODE_STARTUP: u8 = 0x01;
const OPCODE_READY: u8 = 0x02;
const OPCODE_QUERY: u8 = 0x07;
const OPCODE_RESULT: u8 = 0x08;
const RESULT_ROWS: i32 = 2;
const FLAG_GLOBAL_TABLE: i32 = 1;
const FLAG_MORE_PAGES: i32 = 2;
/// Types without parameters end below this; collections, tuples and custom ones are not read here.
const TYPE_SIMPLE_MAX: u16 = 0x15;
/// A node that does not answer within this is asked again later; a schema change takes seconds.
const ANSWER_MS: u64 = 15_000;
/// Answers to the rig's questions are a few rows.
const BODY_BYTES_MAX: usize = 1 << 20;

/// How many replicas must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Consistency {
    One = 1,
    Quorum = 4,
    All = 5,
}

/// A connection that has passed STARTUP, without authentication.
pub struct Connection(TcpStream);

/// A column's bytes in a row; `None`: null.
pub type Cell = Option<Vec<u8>>;

impl Connection {
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let patience = Duration::from_millis(ANSWER_MS);
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut connection = Self(stream);
        let mut body = Vec::new();
        body.extend(1_u16.to_be_bytes());
        put_string(&mut body, "CQL_VERSION");
        put_string(&mut body, "3.0.0");
        match connection.ask(OPCODE_STARTUP, &body)? {
            (OPCODE_READY, _) => Ok(connection),
            (opcode, _) => Err(odd(&format!("opcode {opcode} after STARTUP"))),
        }
    }

    /// Runs `statement`; the rows that it selects, none for one that selects nothing.
    pub fn query(
        &mut self,
        statement: &str,
        consistency: Consistency,
    ) -> io::Result<Vec<Vec<Cell>>> {
        let mut body = Vec::new();
        let length = i32::try_from(statement.len()).map_err(io::Error::other)?;
        body.extend(length.to_be_bytes());
        body.extend(statement.as_bytes());
        body.extend((consistency as u16).to_be_bytes());
        body.push(0);
        match self.ask(OPCODE_QUERY, &body)? {
            (OPCODE_RESULT, body) => parse_rows(&body),
            (opcode, _) => Err(odd(&format!("opcode {opcode} after QUERY"))),
        }
    }

    fn ask(&mut self, opcode: u8, body: &[u8]) -> io::Result<(u8, Vec<u8>)> {
        // Version, flags, stream (two bytes), opcode, length.
        let mut frame = vec![VERSION_REQUEST, 0, 0, 0, opcode];
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        frame.extend(length.to_be_bytes());
        frame.extend(body);
        self.0.write_all(&frame)?;
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
        if length > BODY_BYTES_MAX {
            return Err(odd("a long answer"));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        if head[4] == OPCODE_ERROR {
            let mut reader = Reader(&body);
            let code = reader.int()?;
            return Err(odd(&format!("error {code:#06x}: {}", reader.string()?)));
        }
        Ok((head[4], body))
    }
}

fn put_string(body: &mut Vec<u8>, text: &str) {
    // Ours are short.
    body.extend((text.len() as u16).to_be_bytes());
    body.extend(text.as_bytes());
}

fn odd(what: &str) -> io::Error {
    io::Error::other(format!("CQL: {what}"))
}

fn parse_rows(body: &[u8]) -> io::Result<Vec<Vec<Cell>>> {
    let mut reader = Reader(body);
    if reader.int()? != RESULT_ROWS {
        return Ok(Vec::new());
    }
    let flags = reader.int()?;
    let columns = reader.int()?;
    if flags & FLAG_MORE_PAGES != 0 {
        return Err(odd("more than one page"));
    }
    if flags & FLAG_GLOBAL_TABLE != 0 {
        reader.string()?;
        reader.string()?;
    }
    for _ in 0..columns {
        if flags & FLAG_GLOBAL_TABLE == 0 {
            reader.string()?;
            reader.string()?;
        }
        reader.string()?;
        let kind = reader.short()?;
        if kind == 0 || kind > TYPE_SIMPLE_MAX {
            return Err(odd(&format!("a column of type {kind:#06x}")));
        }
    }
    let rows = reader.int()?;
    (0..rows)
        .map(|_| (0..columns).map(|_| reader.cell()).collect())
        .collect()
}

/// Takes the protocol's notations off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> io::Result<&[u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| odd("a short answer"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn short(&mut self) -> io::Result<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn int(&mut self) -> io::Result<i32> {
        let bytes = self.take(4)?;
        Ok(i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn string(&mut self) -> io::Result<String> {
        let length = self.short()?;
        let bytes = self.take(usize::from(length))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn cell(&mut self) -> io::Result<Cell> {
        match usize::try_from(self.int()?) {
            Ok(length) => Ok(Some(self.take(length)?.to_vec())),
            // A negative length is null.
            Err(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_torn_ones_refused() {
        let mut body = Vec::new();
        for number in [RESULT_ROWS, FLAG_GLOBAL_TABLE, 2] {
            body.extend(number.to_be_bytes());
        }
        put_string(&mut body, "system");
        put_string(&mut body, "local");
        for (name, kind) in [("key", 0x0d_u16), ("gone", 0x09)] {
            put_string(&mut body, name);
            body.extend(kind.to_be_bytes());
        }
        body.extend(1_i32.to_be_bytes());
        body.extend(5_i32.to_be_bytes());
        body.extend(b"local");
        body.extend((-1_i32).to_be_bytes());
        assert_eq!(
            parse_rows(&body).unwrap(),
            [[Some(b"local".to_vec()), None]]
        );
        for length in 0..body.len() {
            assert!(parse_rows(&body[..length]).is_err(), "{length} bytes");
        }
    }
}
