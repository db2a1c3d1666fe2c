//! permessage-deflate (RFC 7692): what is agreed upon in the handshake, and the two streams of a
//! connection on which it was. Off unless the shard's policy asks for it; a connection without it
//! owns none of this.
//!
//! Memory: an inflater holds its window (512 B to 32 KiB) and about 10 KiB of tables; a deflater
//! about 270 KiB at 15 window bits. [`Policy`] lowers both. What a message inflates to is bounded
//! by the caller's limit as it appears, so a small frame cannot expand into memory.

use std::fmt::Write;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The extension's name in the handshake.
const NAME: &str = "permessage-deflate";
/// What a sender takes off the end of each message, and a receiver puts back.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// An empty block less its tail (RFC 7692, 7.2.3.6).
const EMPTY_MESSAGE: [u8; 1] = [0];
/// zlib cannot keep to a window of 256 bytes, so 8 bits are not ours to promise.
const WINDOW_BITS_MIN: u8 = 9;
/// The largest window of DEFLATE.
pub const WINDOW_BITS_MAX: u8 = 15;
/// First reservation for inflated data, and for deflated data beyond the payload's own length.
const CHUNK_BYTES: usize = 512;
/// A deflater's output buffer beyond this is given back after each message.
const OUTPUT_KEPT_BYTES_MAX: usize = 16 * 1024;

/// What the server wants of permessage-deflate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Largest window for what the server sends, 9 to 15.
    pub server_window_bits_max: u8,
    /// Largest window for what clients send, 9 to 15; only for clients that say they can adapt.
    pub client_window_bits_max: u8,
    /// Start afresh with each message sent, whether or not the client asks.
    pub server_no_context_takeover: bool,
    /// Ask clients to start afresh with each message.
    pub client_no_context_takeover: bool,
    /// zlib's level, 1 to 9.
    pub level: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            server_window_bits_max: WINDOW_BITS_MAX,
            client_window_bits_max: WINDOW_BITS_MAX,
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            level: 3,
        }
    }
}

/// What was agreed upon, for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub server_no_context_takeover: bool,
    pub client_no_context_takeover: bool,
    pub server_window_bits: u8,
    /// The client asked for a limit, so the answer must name one.
    server_bits_asked: bool,
    /// None: the client did not say that it could be told; it may use 15.
    pub client_window_bits: Option<u8>,
    level: u32,
}

impl Agreed {
    /// The value of `Sec-WebSocket-Extensions` in the answer.
    pub fn header_value(&self) -> String {
        let mut value = String::from(NAME);
        if self.server_no_context_takeover {
            value.push_str("; server_no_context_takeover");
        }
        if self.client_no_context_takeover {
            value.push_str("; client_no_context_takeover");
        }
        // Writing to a String cannot fail.
        if self.server_bits_asked || self.server_window_bits < WINDOW_BITS_MAX {
            let _ = write!(
                value,
                "; server_max_window_bits={}",
                self.server_window_bits
            );
        }
        if let Some(bits) = self.client_window_bits.filter(|&b| b < WINDOW_BITS_MAX) {
            let _ = write!(value, "; client_max_window_bits={bits}");
        }
        value
    }

    /// The connection's reading side.
    pub fn inflater(&self) -> Box<Inflater> {
        let bits = self.client_window_bits.unwrap_or(WINDOW_BITS_MAX);
        Box::new(Inflater {
            // Clients that are told 8 and run zlib use 9.
            stream: Decompress::new_with_window_bits(false, bits.max(WINDOW_BITS_MIN)),
        })
    }

    /// The connection's writing side.
    pub fn deflater(&self) -> Box<Deflater> {
        let level = Compression::new(self.level.clamp(1, 9));
        Box::new(Deflater {
            stream: Compress::new_with_window_bits(level, false, self.server_window_bits),
            no_context_takeover: self.server_no_context_takeover,
            output: Vec::new(),
        })
    }
}

/// Takes the first of the client's offers that can be met. `offers`: the values of its
/// `Sec-WebSocket-Extensions` headers, in order. None: no compression.
pub fn negotiate<'a>(offers: impl IntoIterator<Item = &'a str>, policy: &Policy) -> Option<Agreed> {
    offers
        .into_iter()
        .flat_map(|value| value.split(','))
        .find_map(|offer| accept(offer, policy))
}

/// An offer with an unknown, repeated or malformed parameter must be declined (RFC 7692, 7).
fn accept(offer: &str, policy: &Policy) -> Option<Agreed> {
    let mut parts = offer.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(NAME) {
        return None;
    }
    let (mut server_fresh, mut client_fresh) = (false, false);
    let (mut server_bits, mut client_bits) = (None, None);
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(unquote(value.trim_start())?)),
            None => (part, None),
        };
        match (name, value) {
            ("server_no_context_takeover", None) if !server_fresh => server_fresh = true,
            ("client_no_context_takeover", None) if !client_fresh => client_fresh = true,
            ("server_max_window_bits", Some(value)) if server_bits.is_none() => {
                server_bits = Some(window_bits(value)?);
            }
            ("client_max_window_bits", value) if client_bits.is_none() => {
                client_bits = Some(value.map_or(Some(WINDOW_BITS_MAX), window_bits)?);
            }
            _ => return None,
        }
    }
    let server_window_bits = policy
        .server_window_bits_max
        .clamp(WINDOW_BITS_MIN, WINDOW_BITS_MAX)
        .min(server_bits.unwrap_or(WINDOW_BITS_MAX));
    if server_window_bits < WINDOW_BITS_MIN {
        return None;
    }
    let client_cap = policy
        .client_window_bits_max
        .clamp(WINDOW_BITS_MIN, WINDOW_BITS_MAX);
    Some(Agreed {
        server_no_context_takeover: server_fresh || policy.server_no_context_takeover,
        client_no_context_takeover: client_fresh || policy.client_no_context_takeover,
        server_window_bits,
        server_bits_asked: server_bits.is_some(),
        client_window_bits: client_bits.map(|bits| bits.min(client_cap)),
        level: policy.level,
    })
}

/// A parameter's value may be a quoted token.
fn unquote(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"'),
        None => Some(value),
    }
}

/// 8 to 15 in decimal, without leading zeros.
fn window_bits(value: &str) -> Option<u8> {
    let plain = value.bytes().all(|b| b.is_ascii_digit()) && !value.starts_with('0');
    value
        .parse()
        .ok()
        .filter(|bits| plain && (8..=WINDOW_BITS_MAX).contains(bits))
}

/// Why a message could not be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// It inflates to more than the limit.
    TooBig,
    /// It is no DEFLATE stream.
    Corrupt,
}

/// Inflates what one client sends.
#[derive(Debug)]
pub struct Inflater {
    // Kept across messages also when the client starts afresh with each: it then refers to nothing
    // before, and a window too many does no harm.
    stream: Decompress,
}

impl Inflater {
    /// How long a compressed message may be on the wire: incompressible data grows a little.
    pub const fn wire_bytes_max(message_bytes_max: usize) -> u64 {
        message_bytes_max as u64 + message_bytes_max as u64 / 4 + 64
    }

    /// Appends to `out` what `chunk` inflates to.
    pub fn inflate(
        &mut self,
        mut chunk: &[u8],
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<(), InflateError> {
        while !chunk.is_empty() {
            self.step(&mut chunk, out, bytes_max)?;
        }
        // The last step may have filled `out` with more still to come from the window.
        while out.len() == out.capacity() && out.capacity() > 0 {
            let before = out.len();
            self.step(&mut chunk, out, bytes_max)?;
            if out.len() == before {
                break;
            }
        }
        Ok(())
    }

    /// The message ends: puts back what its sender took off.
    pub fn finish_message(
        &mut self,
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<(), InflateError> {
        self.inflate(&TAIL, out, bytes_max)
    }

    fn step(
        &mut self,
        chunk: &mut &[u8],
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<(), InflateError> {
        if out.len() == out.capacity() {
            // Doubling, but never more than one byte beyond the limit: that byte is the proof.
            let target = (out.len() * 2)
                .max(CHUNK_BYTES)
                .min(bytes_max.saturating_add(1));
            out.reserve_exact(target.saturating_sub(out.len()).max(1));
        }
        let (in_before, out_before) = (self.stream.total_in(), out.len());
        let status = self
            .stream
            .decompress_vec(chunk, out, FlushDecompress::Sync)
            .map_err(|_| InflateError::Corrupt)?;
        let used = (self.stream.total_in() - in_before) as usize;
        *chunk = &chunk[used..];
        if out.len() > bytes_max {
            return Err(InflateError::TooBig);
        }
        if status == Status::StreamEnd {
            // A final block: legal, and whatever follows is a new stream.
            self.stream.reset(false);
        } else if used == 0 && out.len() == out_before && !chunk.is_empty() {
            // There was room and input, and neither was used.
            return Err(InflateError::Corrupt);
        }
        Ok(())
    }
}

/// Deflates what one connection is sent.
#[derive(Debug)]
pub struct Deflater {
    stream: Compress,
    no_context_takeover: bool,
    output: Vec<u8>,
}

impl Deflater {
    /// `payload` as one compressed message, good until the next call.
    pub fn deflate(&mut self, payload: &[u8]) -> &[u8] {
        if payload.is_empty() {
            // zlib writes nothing when there is nothing new to flush.
            return &EMPTY_MESSAGE;
        }
        if self.output.capacity() > OUTPUT_KEPT_BYTES_MAX {
            self.output = Vec::new();
        }
        self.output.clear();
        let mut rest = payload;
        loop {
            if self.output.capacity() - self.output.len() < CHUNK_BYTES / 2 {
                self.output.reserve(rest.len() / 4 + CHUNK_BYTES);
            }
            let before = self.stream.total_in();
            // Fails only on a stream that was finished, which ours never is.
            let status = self
                .stream
                .compress_vec(rest, &mut self.output, FlushCompress::Sync);
            debug_assert!(status.is_ok());
            rest = &rest[(self.stream.total_in() - before) as usize..];
            // Room left means that the flush is complete.
            if status.is_err() || self.output.len() < self.output.capacity() {
                break;
            }
        }
        if self.no_context_takeover {
            self.stream.reset();
        }
        let message = &self.output[..];
        message.strip_suffix(&TAIL).unwrap_or(message)
    }
}

#[cfg(test)]
#[path = "deflate_tests.rs"]
mod tests;
