//! Raw TCP: frames behind their length as a protobuf varint, the standard delimited form.
//!
//! Invariants: a frame that lies whole in the receive buffer is handed on as a slice of it; a length
//! over the limit fails before a byte of that frame is kept; what is kept grows with what was
//! received. Called by the shard for each receive of a raw TCP connection; errors are terminal.

mod carried;

use bytes::BufMut;
use trunkline_proto::codes::Close;

use super::Input;

/// Bytes of the longest varint.
pub const LENGTH_BYTES_MAX: usize = 10;

const _: () = assert!(
    size_of::<Decoder>() <= 16,
    "part of every connection's slot"
);

/// Why the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TcpError {
    /// The length is over the limit.
    #[error("frame over the size limit")]
    TooBig,
    /// The length is no varint of 64 bits.
    #[error("frame length is not a varint")]
    BadFrame,
}

impl TcpError {
    /// The close code for the last `error` frame.
    pub const fn close(self) -> Close {
        match self {
            Self::TooBig => Close::TooBig,
            Self::BadFrame => Close::BadFrame,
        }
    }
}

/// A frame that came in part.
#[derive(Debug, Default)]
struct Partial {
    /// Beginning of a length.
    head: [u8; LENGTH_BYTES_MAX],
    head_len: u8,
    /// The whole of `data` was handed on; freed when the caller asks for more.
    handed_on: bool,
    /// Bytes that the frame still lacks; none while its length is incomplete.
    missing: Option<usize>,
    data: Vec<u8>,
}

/// One connection's reading side.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
    ended: bool,
}

impl Decoder {
    /// Whether it holds nothing that a new one would not.
    pub const fn is_idle(&self) -> bool {
        self.partial.is_none() && !self.ended
    }

    /// Bytes kept of a frame that came in part.
    pub fn kept_bytes(&self) -> usize {
        let partial = self.partial.as_ref();
        partial.map_or(0, |p| size_of::<Partial>() + p.data.capacity())
    }

    /// The next frame in `input`; nothing when all of it was read. Call again until then.
    pub fn next_frame<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        frame_bytes_max: usize,
    ) -> Result<Option<&'a [u8]>, TcpError> {
        if self.partial.as_ref().is_some_and(|p| p.handed_on) {
            self.partial = None;
        }
        if self.ended {
            input.skip_rest();
            return Ok(None);
        }
        let missing = match self.missing(input, frame_bytes_max) {
            Ok(Some(missing)) => missing,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.ended = true;
                self.partial = None;
                input.skip_rest();
                return Err(error);
            }
        };
        let nothing_kept = self.partial.as_ref().is_none_or(|p| p.data.is_empty());
        if nothing_kept && missing <= input.rest().len() {
            self.partial = None;
            let range = input.take(missing);
            return Ok(Some(&input.data[range]));
        }
        let partial = self.partial.get_or_insert_default();
        let range = input.take(missing);
        let left = missing - range.len();
        partial.data.extend_from_slice(&input.data[range]);
        partial.missing = Some(left);
        partial.handed_on = left == 0;
        Ok(partial.handed_on.then_some(&partial.data[..]))
    }

    /// How much of the current frame is still to come, once its length is known.
    fn missing(
        &mut self,
        input: &mut Input<'_>,
        bytes_max: usize,
    ) -> Result<Option<usize>, TcpError> {
        let kept = self.partial.as_ref();
        if let Some(missing) = kept.and_then(|p| p.missing) {
            return Ok(Some(missing));
        }
        let length = if kept.is_none_or(|p| p.head_len == 0) {
            let length = parse_length(input.rest())?;
            if length.is_none() && input.is_empty() {
                return Ok(None);
            }
            length.map(|(length, used)| {
                input.take(used);
                length
            })
        } else {
            None
        };
        let length = match length {
            Some(length) => Some(length),
            None => self.read_length(input)?,
        };
        let Some(length) = length else {
            return Ok(None);
        };
        match usize::try_from(length) {
            Ok(length) if length <= bytes_max => Ok(Some(length)),
            _ => Err(TcpError::TooBig),
        }
    }

    /// A length that comes in pieces.
    fn read_length(&mut self, input: &mut Input<'_>) -> Result<Option<u64>, TcpError> {
        let partial = self.partial.get_or_insert_default();
        while let Some(&byte) = input.rest().first() {
            input.take(1);
            // In bounds: LENGTH_BYTES_MAX bytes are a length or an error.
            partial.head[usize::from(partial.head_len)] = byte;
            partial.head_len += 1;
            let head = &partial.head[..usize::from(partial.head_len)];
            if let Some((length, _)) = parse_length(head)? {
                partial.head_len = 0;
                partial.missing = usize::try_from(length).ok();
                return Ok(Some(length));
            }
        }
        Ok(None)
    }
}

/// The varint at the beginning of `bytes` and its length, or nothing if more bytes are needed.
fn parse_length(bytes: &[u8]) -> Result<Option<(u64, usize)>, TcpError> {
    let mut length = 0u64;
    for (i, &byte) in bytes.iter().take(LENGTH_BYTES_MAX).enumerate() {
        if i == LENGTH_BYTES_MAX - 1 && byte > 1 {
            return Err(TcpError::BadFrame);
        }
        length |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((length, i + 1)));
        }
    }
    Ok(None)
}

/// Appends the length that goes before a frame of `frame_len` bytes.
pub fn write_length(out: &mut impl BufMut, frame_len: usize) {
    let mut length = frame_len as u64;
    while length >= 0x80 {
        out.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
}

/// Appends a frame behind its length.
pub fn write_frame(out: &mut impl BufMut, frame: &[u8]) {
    write_length(out, frame.len());
    out.put_slice(frame);
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
