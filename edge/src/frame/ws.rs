//! RFC 6455 as the server reads it: bytes in, messages and control frames out.
//!
//! Invariants:
//! 1. A connection between messages owns nothing but [`Decoder`] itself; a frame or message that
//!    came in part lives in a box, freed when it is whole.
//! 2. Text is UTF-8 when it is handed on, and bad text fails at the first hopeless byte, also in the
//!    middle of a frame.
//! 3. A message over the limit fails when a header declares it (or, inflated, when its first byte
//!    over the limit appears); what is kept grows with what was received.
//!
//! Called by the shard for each receive of a connection that has been upgraded. Every error is
//! terminal: the caller sends [`WsError::close`] and stops reading.

mod carried;

use std::ops::Range;

use trunkline_proto::codes::Close;

use super::Input;
use super::deflate::{InflateError, Inflater};
use super::mask::unmask;
use super::utf8::{self, Utf8Stream};

/// Payload bytes of a control frame (RFC 6455, 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// Two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;

const _: () = assert!(
    size_of::<Decoder>() <= 48,
    "part of every connection's slot"
);

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum WsEvent<'a> {
    /// A whole text message, valid UTF-8.
    Text(&'a [u8]),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// Asked for or not.
    Pong(&'a [u8]),
    /// The peer closes; nothing that follows is read. `code`: none in an empty close frame.
    Close { code: Option<u16>, reason: &'a str },
}

/// Why the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// Not RFC 6455, and how.
    #[error("{0}")]
    Protocol(&'static str),
    /// Text, or the reason in a close frame.
    #[error("text is not valid UTF-8")]
    BadUtf8,
    /// The message is longer than the limit.
    #[error("message over the size limit")]
    TooBig,
}

impl WsError {
    /// The close to answer with.
    pub const fn close(self) -> Close {
        match self {
            Self::Protocol(_) => Close::Protocol,
            Self::BadUtf8 => Close::BadUtf8,
            Self::TooBig => Close::TooBig,
        }
    }

    /// A few words for the close frame.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Protocol(what) => what,
            Self::BadUtf8 => "text is not valid UTF-8",
            Self::TooBig => "message over the size limit",
        }
    }
}

/// Kinds of frames, by their number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

impl Opcode {
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Close, ping, pong: short, whole, allowed between the fragments of a message.
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    fin: bool,
    /// RSV1: the message is compressed.
    compressed: bool,
    opcode: Opcode,
    len: u64,
    key: [u8; 4],
}

impl Header {
    /// The header at the beginning of `bytes` and its length, or nothing if more bytes are needed.
    fn parse(bytes: &[u8], may_compress: bool) -> Result<Option<(Self, usize)>, WsError> {
        let &[first, second, ref rest @ ..] = bytes else {
            return Ok(None);
        };
        let opcode = Opcode::from_bits(first & 0xf).ok_or(WsError::Protocol("unknown opcode"))?;
        let fin = first & 0x80 != 0;
        let compressed = first & 0x40 != 0;
        if first & 0x30 != 0 {
            return Err(WsError::Protocol("RSV2 or RSV3 set"));
        }
        let starts_message = matches!(opcode, Opcode::Text | Opcode::Binary);
        if compressed && !(may_compress && starts_message) {
            return Err(WsError::Protocol("RSV1 set"));
        }
        if second & 0x80 == 0 {
            return Err(WsError::Protocol("frame from a client is not masked"));
        }
        let short = second & 0x7f;
        if opcode.is_control() && (!fin || usize::from(short) > CONTROL_BYTES_MAX) {
            return Err(WsError::Protocol("control frame fragmented or too long"));
        }
        let Some((len, rest)) = Self::length(short, rest)? else {
            return Ok(None);
        };
        let Some((&key, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let header = Self {
            fin,
            compressed,
            opcode,
            len,
            key,
        };
        Ok(Some((header, bytes.len() - rest.len())))
    }

    /// The payload length, in its only permitted form, the shortest.
    fn length(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, WsError> {
        let (len, rest, least) = match short {
            126 => match rest.split_first_chunk::<2>() {
                Some((&len, rest)) => (u64::from(u16::from_be_bytes(len)), rest, 126),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((&len, rest)) => (u64::from_be_bytes(len), rest, 1 << 16),
                None => return Ok(None),
            },
            len => (u64::from(len), rest, 0),
        };
        if len < least {
            return Err(WsError::Protocol("length not in its shortest form"));
        }
        if len >> 63 != 0 {
            return Err(WsError::Protocol("length over 63 bits"));
        }
        Ok(Some((len, rest)))
    }
}

/// A message of which some fragment or part of a frame has come.
#[derive(Debug)]
struct Message {
    /// Text; otherwise binary.
    text: bool,
    compressed: bool,
    /// Payload bytes as they came over the wire.
    wire_bytes: u64,
    /// Unmasked and inflated.
    data: Vec<u8>,
    utf8: Utf8Stream,
}

impl Message {
    fn new(header: &Header) -> Self {
        Self {
            text: header.opcode == Opcode::Text,
            compressed: header.compressed,
            wire_bytes: 0,
            data: Vec::new(),
            utf8: Utf8Stream::default(),
        }
    }

    /// Takes unmasked payload.
    fn push(
        &mut self,
        chunk: &[u8],
        inflater: Option<&mut Inflater>,
        bytes_max: usize,
    ) -> Result<(), WsError> {
        let before = self.data.len();
        self.wire_bytes += chunk.len() as u64;
        match inflater {
            Some(inflater) if self.compressed => {
                inflater.inflate(chunk, &mut self.data, bytes_max)?;
            }
            _ => self.data.extend_from_slice(chunk),
        }
        self.check_text(before)
    }

    /// The last payload byte was taken.
    fn finish(&mut self, inflater: Option<&mut Inflater>, bytes_max: usize) -> Result<(), WsError> {
        let before = self.data.len();
        if let Some(inflater) = inflater
            && self.compressed
        {
            inflater.finish_message(&mut self.data, bytes_max)?;
        }
        self.check_text(before)?;
        self.utf8.finish().map_err(|_| WsError::BadUtf8)
    }

    fn check_text(&mut self, from: usize) -> Result<(), WsError> {
        if self.text {
            let checked = self.utf8.push(&self.data[from..]);
            checked.map_err(|_| WsError::BadUtf8)?;
        }
        Ok(())
    }
}

impl From<InflateError> for WsError {
    fn from(error: InflateError) -> Self {
        match error {
            InflateError::TooBig => Self::TooBig,
            InflateError::Corrupt => Self::Protocol("compressed data is corrupt"),
        }
    }
}

/// What the caller was given last from the box; freed when it asks for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum HandedOn {
    #[default]
    Nothing,
    Control,
    Message,
}

/// Whatever came in part.
#[derive(Debug, Default)]
struct Partial {
    /// Beginning of a header.
    head: [u8; HEADER_BYTES_MAX],
    head_len: u8,
    handed_on: HandedOn,
    /// The frame whose payload is under way, and how much of that has come.
    frame: Option<(Header, u64)>,
    /// Payload of a control frame under way.
    control: Vec<u8>,
    message: Option<Message>,
}

/// What is to be handed on, and where it is.
enum Found {
    InPlace(Opcode, Range<usize>),
    StoredControl(Opcode),
    StoredMessage,
}

/// One connection's reading side.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
    inflater: Option<Box<Inflater>>,
    ended: bool,
}

impl Decoder {
    /// `inflater`: if permessage-deflate was negotiated.
    pub fn new(inflater: Option<Box<Inflater>>) -> Self {
        Self {
            partial: None,
            inflater,
            ended: false,
        }
    }

    /// Whether a close frame or an error ended the reading.
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether it holds nothing that a new one without an inflater would not.
    pub const fn is_idle(&self) -> bool {
        self.partial.is_none() && self.inflater.is_none() && !self.ended
    }

    /// Bytes kept of what came in part.
    pub fn kept_bytes(&self) -> usize {
        let Some(partial) = &self.partial else {
            return 0;
        };
        let message = partial.message.as_ref().map_or(0, |m| m.data.capacity());
        size_of::<Partial>() + partial.control.capacity() + message
    }

    /// The next event in `input`; nothing when all of it was read. Call again until then.
    /// `message_bytes_max`: of a whole message, inflated.
    pub fn next_event<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        message_bytes_max: usize,
    ) -> Result<Option<WsEvent<'a>>, WsError> {
        self.free_handed_on();
        if self.ended {
            input.skip_rest();
            return Ok(None);
        }
        match self.advance(input, message_bytes_max) {
            Ok(Some(found)) => self.event(found, input),
            Ok(None) => Ok(None),
            Err(error) => {
                self.ended = true;
                self.partial = None;
                input.skip_rest();
                Err(error)
            }
        }
    }

    fn free_handed_on(&mut self) {
        let Some(partial) = &mut self.partial else {
            return;
        };
        match std::mem::take(&mut partial.handed_on) {
            HandedOn::Nothing => {}
            HandedOn::Control => partial.control = Vec::new(),
            HandedOn::Message => partial.message = None,
        }
        if partial.head_len == 0 && partial.frame.is_none() && partial.message.is_none() {
            self.partial = None;
        }
    }

    /// Reads on until something can be handed on or the input is used up.
    fn advance(
        &mut self,
        input: &mut Input<'_>,
        bytes_max: usize,
    ) -> Result<Option<Found>, WsError> {
        loop {
            if self.partial.as_ref().is_none_or(|p| p.frame.is_none()) {
                let Some(header) = self.read_header(input)? else {
                    return Ok(None);
                };
                self.admit(&header, bytes_max)?;
                if let Some(found) = Self::read_in_place(&header, input)? {
                    return Ok(Some(found));
                }
                let partial = self.partial.get_or_insert_default();
                if matches!(header.opcode, Opcode::Text | Opcode::Binary) {
                    partial.message = Some(Message::new(&header));
                }
                partial.frame = Some((header, 0));
            }
            if let Some(found) = self.read_payload(input, bytes_max)? {
                return Ok(Some(found));
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The next header; what there is of an incomplete one is kept.
    fn read_header(&mut self, input: &mut Input<'_>) -> Result<Option<Header>, WsError> {
        let may_compress = self.inflater.is_some();
        if self.partial.as_ref().is_none_or(|p| p.head_len == 0) {
            if let Some((header, len)) = Header::parse(input.rest(), may_compress)? {
                input.take(len);
                return Ok(Some(header));
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
        let partial = self.partial.get_or_insert_default();
        while let Some(&byte) = input.rest().first() {
            input.take(1);
            // In bounds: with HEADER_BYTES_MAX bytes every header is complete.
            partial.head[usize::from(partial.head_len)] = byte;
            partial.head_len += 1;
            let head = &partial.head[..usize::from(partial.head_len)];
            if let Some((header, _)) = Header::parse(head, may_compress)? {
                partial.head_len = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// Whether this frame may come now, and within the limit.
    fn admit(&self, header: &Header, bytes_max: usize) -> Result<(), WsError> {
        if header.opcode.is_control() {
            return Ok(());
        }
        let message = self.partial.as_ref().and_then(|p| p.message.as_ref());
        let (compressed, before) = match (message, header.opcode) {
            (None, Opcode::Continuation) => {
                return Err(WsError::Protocol("continuation of nothing"));
            }
            (None, _) => (header.compressed, 0),
            (Some(message), Opcode::Continuation) => (message.compressed, message.wire_bytes),
            (Some(_), _) => {
                return Err(WsError::Protocol("new message within a fragmented one"));
            }
        };
        let wire_max = if compressed {
            Inflater::wire_bytes_max(bytes_max)
        } else {
            bytes_max as u64
        };
        if header.len.saturating_add(before) > wire_max {
            return Err(WsError::TooBig);
        }
        Ok(())
    }

    /// A frame that is an event by itself and lies whole in the input.
    fn read_in_place(header: &Header, input: &mut Input<'_>) -> Result<Option<Found>, WsError> {
        let whole = match header.opcode {
            Opcode::Text | Opcode::Binary => header.fin && !header.compressed,
            Opcode::Continuation => false,
            Opcode::Close | Opcode::Ping | Opcode::Pong => true,
        };
        if !whole || header.len > input.rest().len() as u64 {
            return Ok(None);
        }
        let range = input.take(header.len as usize);
        let payload = &mut input.data[range.clone()];
        unmask(payload, header.key, 0);
        if header.opcode == Opcode::Text && !utf8::is_valid(payload) {
            return Err(WsError::BadUtf8);
        }
        Ok(Some(Found::InPlace(header.opcode, range)))
    }

    /// Copies what the input has of the payload under way.
    fn read_payload(
        &mut self,
        input: &mut Input<'_>,
        bytes_max: usize,
    ) -> Result<Option<Found>, WsError> {
        let Some(partial) = self.partial.as_deref_mut() else {
            return Ok(None);
        };
        let Some((header, received)) = &mut partial.frame else {
            return Ok(None);
        };
        let missing = usize::try_from(header.len - *received).unwrap_or(usize::MAX);
        let range = input.take(missing);
        let chunk = &mut input.data[range];
        unmask(chunk, header.key, *received);
        *received += chunk.len() as u64;
        let header = *header;
        let whole = chunk.len() == missing;
        if whole {
            partial.frame = None;
        }
        if header.opcode.is_control() {
            partial.control.extend_from_slice(chunk);
            if whole {
                partial.handed_on = HandedOn::Control;
                return Ok(Some(Found::StoredControl(header.opcode)));
            }
        } else if let Some(message) = &mut partial.message {
            message.push(chunk, self.inflater.as_deref_mut(), bytes_max)?;
            if whole && header.fin {
                message.finish(self.inflater.as_deref_mut(), bytes_max)?;
                partial.handed_on = HandedOn::Message;
                return Ok(Some(Found::StoredMessage));
            }
        }
        Ok(None)
    }

    fn event<'a>(
        &'a mut self,
        found: Found,
        input: &'a mut Input<'_>,
    ) -> Result<Option<WsEvent<'a>>, WsError> {
        let (opcode, payload) = match found {
            Found::InPlace(opcode, range) => (opcode, &input.data[range]),
            Found::StoredControl(opcode) => {
                let control = self.partial.as_ref().map(|p| &p.control[..]);
                (opcode, control.unwrap_or_default())
            }
            Found::StoredMessage => {
                let message = self.partial.as_ref().and_then(|p| p.message.as_ref());
                let text = message.is_some_and(|m| m.text);
                let opcode = if text { Opcode::Text } else { Opcode::Binary };
                (opcode, message.map(|m| &m.data[..]).unwrap_or_default())
            }
        };
        Ok(Some(match opcode {
            Opcode::Text => WsEvent::Text(payload),
            // A continuation is never handed on by itself.
            Opcode::Binary | Opcode::Continuation => WsEvent::Binary(payload),
            Opcode::Ping => WsEvent::Ping(payload),
            Opcode::Pong => WsEvent::Pong(payload),
            Opcode::Close => {
                self.ended = true;
                close_event(payload)?
            }
        }))
    }
}

/// Reads a close frame's payload.
fn close_event(payload: &[u8]) -> Result<WsEvent<'_>, WsError> {
    let Some((&code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload.len() {
            0 => Ok(WsEvent::Close {
                code: None,
                reason: "",
            }),
            _ => Err(WsError::Protocol("close code of one byte")),
        };
    };
    let code = u16::from_be_bytes(code);
    if !is_close_code(code) {
        return Err(WsError::Protocol("close code that may not be sent"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| WsError::BadUtf8)?;
    Ok(WsEvent::Close {
        code: Some(code),
        reason,
    })
}

/// Whether a close frame may carry this code (RFC 6455, 7.4).
pub const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1011 | 3000..=4999)
}

#[cfg(test)]
#[path = "ws_tests.rs"]
mod tests;
