//! The frames that make up nearly all traffic, read from and written to JSON in one pass: `json` goes
//! through serde twice for each frame (first `type`, then the body), which costs more than all else
//! that is done with a message in user space.
//!
//! Invariants:
//! 1. What is read here becomes, byte by byte, what prost makes of what [`crate::json`] would read;
//!    whatever is not plain (an unknown field, a number for a string, a field twice or missing) is
//!    left to it, which also says what is wrong.
//! 2. What is written here is, byte by byte, what serde would write.
//!
//! Called by [`crate::json`] and [`crate::light`].

use prost::encoding::{encode_varint, encoded_len_varint};

use crate::client::{Ack, Message};
use crate::limits::FRAME_ID_BYTES_MAX;

/// A string as it lies in the text, without its quotes.
#[derive(Clone, Copy)]
pub(crate) struct Raw<'a> {
    pub(crate) text: &'a str,
    /// With escapes, which stand for something else.
    pub(crate) escaped: bool,
}

impl Raw<'_> {
    /// Appends what it stands for; nothing if an escape is wrong.
    fn write_decoded(self, out: &mut Vec<u8>) -> Option<()> {
        let mut rest = self.text.as_bytes();
        if self.escaped {
            while let Some(at) = rest.iter().position(|&b| b == b'\\') {
                out.extend_from_slice(&rest[..at]);
                rest = write_escape(&rest[at + 1..], out)?;
            }
        }
        out.extend_from_slice(rest);
        Some(())
    }
}

/// Appends what an escape stands for, whose backslash was read; what comes behind it.
fn write_escape<'a>(text: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (&escape, mut rest) = text.split_first()?;
    let character = match escape {
        b'"' | b'\\' | b'/' => char::from(escape),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let (first, behind) = utf16_unit(rest)?;
            rest = behind;
            match first {
                // The first half of a pair, whose second must follow.
                0xd800..0xdc00 => {
                    let (second, behind) = utf16_unit(rest.strip_prefix(b"\\u")?)?;
                    rest = behind;
                    let pair = [first, second];
                    char::decode_utf16(pair).next()?.ok()?
                }
                _ => char::from_u32(u32::from(first))?,
            }
        }
        _ => return None,
    };
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Some(rest)
}

/// Four hexadecimal digits, and what comes behind them.
fn utf16_unit(text: &[u8]) -> Option<(u16, &[u8])> {
    let (digits, rest) = text.split_at_checked(4)?;
    let mut unit = 0;
    for &digit in digits {
        unit = unit << 4 | char::from(digit).to_digit(16)? as u16;
    }
    Some((unit, rest))
}

/// What is still to be read of a text.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Nothing if `text` is no UTF-8.
    pub(crate) fn new(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        Some(Self { text, at: 0 })
    }

    /// The next byte that is no white space.
    pub(crate) fn next(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            self.at += 1;
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
        }
    }

    pub(crate) fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    pub(crate) fn string(&mut self) -> Option<Raw<'a>> {
        self.expect(b'"')?;
        self.rest_of_string()
    }

    /// A string whose opening quote was read.
    fn rest_of_string(&mut self) -> Option<Raw<'a>> {
        let (start, mut escaped) = (self.at, false);
        loop {
            match *self.text.as_bytes().get(self.at)? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                0..b' ' => return None,
                _ => self.at += 1,
            }
        }
        let text = self.text.get(start..self.at)?;
        self.at += 1;
        Some(Raw { text, escaped })
    }

    /// A number that is a `u64`, in its only form, whose first digit was read.
    fn rest_of_number(&mut self, first: u8) -> Option<u64> {
        let mut number = u64::from(first - b'0');
        while let Some(digit @ b'0'..=b'9') = self.text.as_bytes().get(self.at) {
            if first == b'0' {
                return None;
            }
            let digit = u64::from(digit - b'0');
            number = number.checked_mul(10)?.checked_add(digit)?;
            self.at += 1;
        }
        // What goes on as a fraction or with an exponent is none.
        match self.text.as_bytes().get(self.at) {
            Some(b'.' | b'e' | b'E') => None,
            _ => Some(number),
        }
    }
}

/// The fields of the frames that are read here.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<Raw<'a>>,
    id: Option<Raw<'a>>,
    conversation_id: Option<Raw<'a>>,
    to: Option<Raw<'a>>,
    client_msg_id: Option<Raw<'a>>,
    content: Option<Raw<'a>>,
    content_type: Option<Raw<'a>>,
    status: Option<Raw<'a>>,
    seq: Option<u64>,
}

impl<'a> Fields<'a> {
    fn read(text: &'a [u8]) -> Option<Self> {
        let mut fields = Self::default();
        let mut rest = Scanner::new(text)?;
        rest.expect(b'{')?;
        loop {
            let name = rest.string()?.text;
            rest.expect(b':')?;
            match rest.next()? {
                b'"' => {
                    let value = rest.rest_of_string()?;
                    let twice = fields.string_slot(name)?.replace(value).is_some();
                    if twice {
                        return None;
                    }
                }
                first @ b'0'..=b'9' if name == "seq" => {
                    let value = rest.rest_of_number(first)?;
                    if fields.seq.replace(value).is_some() {
                        return None;
                    }
                }
                _ => return None,
            }
            match rest.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        rest.next().is_none().then_some(fields)
    }

    fn string_slot(&mut self, name: &str) -> Option<&mut Option<Raw<'a>>> {
        Some(match name {
            "type" => &mut self.kind,
            "id" => &mut self.id,
            "conversation_id" => &mut self.conversation_id,
            "to" => &mut self.to,
            "client_msg_id" => &mut self.client_msg_id,
            "content" => &mut self.content,
            "content_type" => &mut self.content_type,
            "status" => &mut self.status,
            _ => return None,
        })
    }
}

/// Appends `send_message` and `receipt` in protobuf, as prost would; nothing, and nothing appended,
/// if the full decoder must look.
pub(crate) fn transcode_client(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    let written = Fields::read(text).and_then(|fields| write_client(fields, out));
    if written.is_none() {
        out.truncate(start);
    }
    written
}

/// Field numbers in `client.proto`: of `ClientFrame`, and of the bodies that are written here.
mod number {
    pub(super) const ID: u8 = 1;
    pub(super) const SEND_MESSAGE: u8 = 3;
    pub(super) const RECEIPT: u8 = 4;
    pub(super) const CONVERSATION_ID: u8 = 1;
    pub(super) const TO: u8 = 2;
    pub(super) const CLIENT_MSG_ID: u8 = 3;
    pub(super) const CONTENT: u8 = 4;
    pub(super) const CONTENT_TYPE: u8 = 5;
    pub(super) const SEQ: u8 = 2;
    pub(super) const STATUS: u8 = 3;
}

fn write_client(fields: Fields<'_>, out: &mut Vec<u8>) -> Option<()> {
    let kind = fields.kind.filter(|kind| !kind.escaped)?.text;
    let start = out.len();
    write_text(number::ID, fields.id, out)?;
    if out.len() - start > 2 + FRAME_ID_BYTES_MAX {
        return None;
    }
    match (kind, fields) {
        (
            "send_message",
            Fields {
                conversation_id,
                to,
                client_msg_id: client_msg_id @ Some(_),
                content,
                content_type,
                status: None,
                seq: None,
                ..
            },
        ) => write_delimited(number::SEND_MESSAGE, out, |out| {
            write_text(number::CONVERSATION_ID, conversation_id, out)?;
            write_text(number::TO, to, out)?;
            write_text(number::CLIENT_MSG_ID, client_msg_id, out)?;
            write_text(number::CONTENT, content, out)?;
            write_text(number::CONTENT_TYPE, content_type, out)
        }),
        (
            "receipt",
            Fields {
                conversation_id: conversation_id @ Some(_),
                seq: Some(seq),
                status: status @ Some(_),
                to: None,
                client_msg_id: None,
                content: None,
                content_type: None,
                ..
            },
        ) => write_delimited(number::RECEIPT, out, |out| {
            write_text(number::CONVERSATION_ID, conversation_id, out)?;
            if seq != 0 {
                out.push(number::SEQ << 3);
                encode_varint(seq, out);
            }
            write_text(number::STATUS, status, out)
        }),
        _ => None,
    }
}

fn write_text(number: u8, raw: Option<Raw<'_>>, out: &mut Vec<u8>) -> Option<()> {
    match raw {
        Some(raw) if !raw.text.is_empty() => {
            write_delimited(number, out, |out| raw.write_decoded(out))
        }
        _ => Some(()),
    }
}

/// What `write` appends, behind its length: written behind a length of one byte, and moved if that
/// takes more.
fn write_delimited(
    number: u8,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Option<()>,
) -> Option<()> {
    const DELIMITED: u8 = 2;
    out.extend_from_slice(&[number << 3 | DELIMITED, 0]);
    let start = out.len();
    write(out)?;
    let len = out.len() - start;
    let more = encoded_len_varint(len as u64) - 1;
    out.resize(out.len() + more, 0);
    out.copy_within(start..start + len, start + more);
    encode_varint(len as u64, &mut &mut out[start - 1..]);
    Some(())
}

/// Appends an `ack`.
pub(crate) fn write_ack(id: &str, ack: &Ack, out: &mut Vec<u8>) {
    begin(r#"{"type":"ack""#, id, out);
    text_unless_empty(r#","client_msg_id":"#, &ack.client_msg_id, out);
    text_unless_empty(r#","conversation_id":"#, &ack.conversation_id, out);
    id_unless_zero(ack.message_id, out);
    number(r#","seq":"#, ack.seq, out);
    if ack.ts != 0 {
        number(r#","ts":"#, ack.ts, out);
    }
    text_unless_empty(r#","status":"#, &ack.status, out);
    if ack.duplicate {
        out.extend_from_slice(br#","duplicate":true"#);
    }
    out.push(b'}');
}

/// Appends a `message`; false if it has media, which are written elsewhere.
pub(crate) fn write_message(id: &str, message: &Message, out: &mut Vec<u8>) -> bool {
    if message.media.is_some() {
        return false;
    }
    begin(r#"{"type":"message""#, id, out);
    text_unless_empty(r#","conversation_id":"#, &message.conversation_id, out);
    id_unless_zero(message.message_id, out);
    if message.seq != 0 {
        number(r#","seq":"#, message.seq, out);
    }
    text_unless_empty(r#","sender_id":"#, &message.sender_id, out);
    text_unless_empty(r#","client_msg_id":"#, &message.client_msg_id, out);
    out.extend_from_slice(br#","content":"#);
    text(&message.content, out);
    text_unless_empty(r#","content_type":"#, &message.content_type, out);
    if message.ts != 0 {
        number(r#","ts":"#, message.ts, out);
    }
    out.push(b'}');
    true
}

fn begin(start: &str, id: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(start.as_bytes());
    text_unless_empty(r#","id":"#, id, out);
}

fn text_unless_empty(name: &str, value: &str, out: &mut Vec<u8>) {
    if !value.is_empty() {
        out.extend_from_slice(name.as_bytes());
        text(value, out);
    }
}

fn text(value: &str, out: &mut Vec<u8>) {
    // Without an early end, so that it becomes vector code.
    let special = |found: bool, b: u8| found | (b < b' ') | (b == b'"') | (b == b'\\');
    if value.bytes().fold(false, special) {
        // Writing into a Vec cannot fail.
        let _ = serde_json::to_writer(out, value);
        return;
    }
    out.push(b'"');
    out.extend_from_slice(value.as_bytes());
    out.push(b'"');
}

fn number(name: &str, value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    let _ = serde_json::to_writer(out, &value);
}

fn id_unless_zero(value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        number(r#","message_id":""#, value, out);
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::client::{Media, ServerBody, ServerFrame};
    use crate::json::{decode_client, encode_server, encode_server_in_full};

    /// Texts as they come, and such as are one small change away.
    const TEXTS: &[&str] = &[
        r#"{"type":"send_message","to":"bob","client_msg_id":"m1","content":"h\u00e9 \"q\"\n"}"#,
        r#"{"type":"send_message","client_msg_id":"\ud83d\uDE00\b\f\r\t\/\\","to":"b"}"#,
        r#" { "id":"7", "type" : "send_message", "conversation_id":"c", "client_msg_id":"", "content_type":"t" } "#,
        r#"{"type":"receipt","conversation_id":"c","seq":1024,"status":"read"}"#,
        r#"{"seq":18446744073709551615,"status":"é","conversation_id":"c","type":"receipt","id":"x"}"#,
    ];

    /// Either way the same, or the full decoder decides alone; whether it was read here.
    fn check(text: &[u8]) -> bool {
        let mut out = b"before".to_vec();
        let read = transcode_client(text, &mut out).is_some();
        let mut expected = b"before".to_vec();
        if read {
            let full = decode_client(text).expect("the full decoder reads it too");
            full.encode(&mut expected).unwrap();
        }
        assert_eq!(out, expected, "{}", String::from_utf8_lossy(text));
        read
    }

    #[test]
    fn plain_frames_are_read_here() {
        for text in TEXTS {
            assert!(check(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_is_read_here_is_what_the_full_decoder_reads() {
        let mut read = 0;
        for text in TEXTS {
            for at in 0..text.len() {
                for byte in 0..=255 {
                    let mut bytes = text.as_bytes().to_vec();
                    bytes[at] = byte;
                    read += usize::from(check(&bytes));
                }
                check(&text.as_bytes()[..at]);
            }
        }
        assert!(read > 2_000, "{read}");
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_full_decoder() {
        for text in [
            r#"{"type":"send_message","to":"bob","content":"no client_msg_id"}"#,
            r#"{"type":"send_message","client_msg_id":"a","to":"b","to":"c"}"#,
            r#"{"type":"send_message","client_msg_id":"a","media":{"media_id":"m"}}"#,
            r#"{"type":"send_message","client_msg_id":"a","status":"\q"}"#,
            r#"{"type":"receipt","conversation_id":"c","seq":01,"status":"read"}"#,
            r#"{"type":"receipt","conversation_id":"c","seq":1.0,"status":"read"}"#,
            r#"{"type":"receipt","conversation_id":"c","seq":-1,"status":"read"}"#,
            r#"{"type":"receipt","conversation_id":"c","seq":18446744073709551616,"status":"x"}"#,
            r#"{"type":"receipt","conversation_id":"c","status":"read"}"#,
            r#"{"type":"typing","conversation_id":"c"}"#,
            r#"{"type":"send_message","client_msg_id":"\ud800"}"#,
        ] {
            assert!(!check(text.as_bytes()), "{text}");
        }
    }

    fn same(frame: &ServerFrame) {
        let (mut here, mut full) = (Vec::new(), Vec::new());
        encode_server(frame, &mut here);
        encode_server_in_full(frame, &mut full);
        assert_eq!(String::from_utf8(here), String::from_utf8(full));
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_the_full_decoder_reads_it(
            strings in prop::collection::vec(any::<String>(), 6),
            seq in any::<u64>(),
        ) {
            let text = |i: usize| serde_json::to_string(&strings[i]).unwrap();
            let send = format!(
                r#"{{"type":"send_message","to":{},"client_msg_id":{},"content":{},"content_type":{}}}"#,
                text(0), text(1), text(2), text(3),
            );
            prop_assert!(check(send.as_bytes()));
            let receipt = format!(
                r#"{{"type":"receipt","conversation_id":{},"seq":{seq},"status":{}}}"#,
                text(4), text(5),
            );
            prop_assert!(check(receipt.as_bytes()));
        }

        #[test]
        fn what_is_written_here_is_what_serde_writes(
            strings in prop::collection::vec(any::<String>(), 6),
            numbers in prop::collection::vec(prop_oneof![Just(0u64), any::<u64>()], 3),
            flag in any::<bool>(),
        ) {
            let text = |i: usize| strings[i].clone();
            same(&ServerFrame::answer(text(0), ServerBody::Ack(Ack {
                client_msg_id: text(1),
                conversation_id: text(2),
                message_id: numbers[0],
                seq: numbers[1],
                ts: numbers[2],
                status: text(3),
                duplicate: flag,
            })));
            same(&ServerFrame::answer(text(0), ServerBody::Message(Message {
                conversation_id: text(1),
                message_id: numbers[0],
                seq: numbers[1],
                sender_id: text(2),
                client_msg_id: text(3),
                content: text(4),
                content_type: text(5),
                media: flag.then(|| Media { media_id: text(0), ..Media::default() }),
                ts: numbers[2],
            })));
        }
    }

    #[test]
    fn fields_at_their_default_are_left_out_as_serde_does() {
        same(&ServerFrame::push(ServerBody::Ack(Ack::default())));
        same(&ServerFrame::push(ServerBody::Message(Message::default())));
    }
}
