//! What an edge must know of an operation that it hands on to the core, read from the protobuf bytes
//! without owning anything: its kind, and what an error about it would name. The bytes themselves
//! travel on as they came, and the core decodes them.
//!
//! Invariants:
//! 1. What is read here is what prost reads, field by field, and prost takes all of it: the core
//!    will find nothing wrong with the frame's form.
//! 2. Whatever is not plain (an unknown field, a frame of two bodies, a wrong wire type) is left to
//!    prost, which also says what is wrong.
//!
//! Called by the edge's sessions for each frame that [`crate::light`] does not answer.

use crate::client::{ClientBody, ClientFrame};
use crate::limits::FRAME_ID_BYTES_MAX;

/// What a client frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connect,
    SendMessage,
    Receipt,
    Typing,
    Sync,
    Fetch,
    Watch,
    Unwatch,
    Ping,
    Heartbeat,
}

impl From<&ClientBody> for Kind {
    fn from(body: &ClientBody) -> Self {
        match body {
            ClientBody::Connect(_) => Self::Connect,
            ClientBody::SendMessage(_) => Self::SendMessage,
            ClientBody::Receipt(_) => Self::Receipt,
            ClientBody::Typing(_) => Self::Typing,
            ClientBody::Sync(_) => Self::Sync,
            ClientBody::Fetch(_) => Self::Fetch,
            ClientBody::Watch(_) => Self::Watch,
            ClientBody::Unwatch(_) => Self::Unwatch,
            ClientBody::Ping(_) => Self::Ping,
            ClientBody::Heartbeat(_) => Self::Heartbeat,
        }
    }
}

/// See the module. Empty: the frame has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    pub kind: Kind,
    /// At most [`FRAME_ID_BYTES_MAX`] bytes.
    pub id: &'a str,
    pub conversation_id: &'a str,
    /// Of a `send_message`.
    pub client_msg_id: &'a str,
}

impl<'a> Head<'a> {
    /// From a frame that was decoded in full; nothing if it has no body.
    pub fn of(frame: &'a ClientFrame) -> Option<Self> {
        let body = frame.frame.as_ref()?;
        let (conversation_id, client_msg_id) = match body {
            ClientBody::SendMessage(b) => (&*b.conversation_id, &*b.client_msg_id),
            ClientBody::Receipt(b) => (&*b.conversation_id, ""),
            ClientBody::Fetch(b) => (&*b.conversation_id, ""),
            ClientBody::Typing(b) => (&*b.conversation_id, ""),
            _ => Default::default(),
        };
        Some(Self {
            kind: body.into(),
            id: &frame.id,
            conversation_id,
            client_msg_id,
        })
    }

    /// From the bytes of a frame that is the core's to answer; nothing if prost must look.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut id = "";
        let mut body = None;
        let mut rest = Reader(bytes);
        while !rest.0.is_empty() {
            let (number, wire) = rest.key()?;
            if wire != DELIMITED {
                return None;
            }
            let value = rest.delimited()?;
            match number {
                1 => id = std::str::from_utf8(value).ok()?,
                // A second body is merged into the first, or takes its place.
                _ if body.replace((number, value)).is_some() => return None,
                _ => {}
            }
        }
        if id.len() > FRAME_ID_BYTES_MAX {
            return None;
        }
        let (number, body) = body?;
        let (kind, shape) = shape_of(number)?;
        let mut head = Self {
            kind,
            id,
            conversation_id: "",
            client_msg_id: "",
        };
        read_message(body, shape, &mut |number, text| match (kind, number) {
            (Kind::SendMessage | Kind::Receipt | Kind::Typing | Kind::Fetch, 1) => {
                head.conversation_id = text;
            }
            (Kind::SendMessage, 3) => head.client_msg_id = text,
            _ => {}
        })?;
        Some(head)
    }
}

/// What a field holds.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Number,
    /// A message of these fields, the first of which has number 1.
    Message(&'static [Self]),
}

use Shape::{Message, Number, Text};

const MEDIA: &[Shape] = &[Text, Text, Text, Number, Text];
const SEND_MESSAGE: &[Shape] = &[Text, Text, Text, Text, Text, Message(MEDIA)];
const RECEIPT: &[Shape] = &[Text, Number, Text, Text, Number, Text];
const TYPING: &[Shape] = &[Text, Number, Text];
const SYNC_POSITION: &[Shape] = &[Text, Number];
const SYNC: &[Shape] = &[Message(SYNC_POSITION), Number];
const FETCH: &[Shape] = &[Text, Number, Number, Number];
const USERS: &[Shape] = &[Text];

/// The bodies that a core answers, by their numbers in `client.proto`.
const fn shape_of(number: u8) -> Option<(Kind, &'static [Shape])> {
    Some(match number {
        3 => (Kind::SendMessage, SEND_MESSAGE),
        4 => (Kind::Receipt, RECEIPT),
        5 => (Kind::Typing, TYPING),
        6 => (Kind::Sync, SYNC),
        7 => (Kind::Fetch, FETCH),
        8 => (Kind::Watch, USERS),
        9 => (Kind::Unwatch, USERS),
        _ => return None,
    })
}

/// Checks a message against its shape and shows its own texts, of one field the last one last.
fn read_message<'a>(
    bytes: &'a [u8],
    shape: &[Shape],
    each: &mut dyn FnMut(u8, &'a str),
) -> Option<()> {
    let mut rest = Reader(bytes);
    while !rest.0.is_empty() {
        let (number, wire) = rest.key()?;
        let field = shape.get(usize::from(number).checked_sub(1)?)?;
        match (field, wire) {
            (Text, DELIMITED) => each(number, std::str::from_utf8(rest.delimited()?).ok()?),
            (Number, VARINT) => drop(rest.varint()?),
            (Message(shape), DELIMITED) => {
                read_message(rest.delimited()?, shape, &mut |_, _| {})?;
            }
            _ => return None,
        }
    }
    Some(())
}

/// Wire types of protobuf.
const VARINT: u8 = 0;
const DELIMITED: u8 = 2;

/// What is still to be read of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A field's number, below 16, and its wire type.
    fn key(&mut self) -> Option<(u8, u8)> {
        let (&key @ 0..0x80, rest) = self.0.split_first()? else {
            return None;
        };
        self.0 = rest;
        Some((key >> 3, key & 7))
    }

    /// A number below 2^63, that is of at most nine bytes.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for at in 0..9 {
            let byte = *self.0.get(at)?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }

    fn delimited(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (value, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::client::{
        Connect, Fetch, Heartbeat, Media, Ping, Receipt, SendMessage, Sync, SyncPosition, Typing,
        Unwatch, Watch,
    };

    /// Either prost takes the bytes and reads the same, or they are left to it; whether they were
    /// read here.
    fn check(bytes: &[u8]) -> bool {
        let Some(head) = Head::read(bytes) else {
            return false;
        };
        let frame = ClientFrame::decode(bytes);
        let full = frame.as_ref().map(Head::of);
        assert_eq!(full, Ok(Some(head)), "{bytes:02x?}");
        true
    }

    /// A short text now and then, of several bytes a character too.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[a-zé€😀]{1,6}", "[a-z ]{100,200}"]
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 1..300u64, 0..1u64 << 63]
    }

    /// Every body that the core answers.
    fn body() -> impl Strategy<Value = ClientBody> {
        let texts = prop::collection::vec(text(), 10);
        let numbers = prop::collection::vec(number(), 3);
        (0..7usize, texts, numbers, any::<bool>()).prop_map(|(which, texts, numbers, flag)| {
            let text = |i: usize| texts[i].clone();
            match which {
                0 => ClientBody::SendMessage(SendMessage {
                    conversation_id: text(0),
                    to: text(1),
                    client_msg_id: text(2),
                    content: text(3),
                    content_type: text(4),
                    media: flag.then(|| Media {
                        media_id: text(5),
                        url: text(6),
                        content_type: text(7),
                        size: numbers[0],
                        name: text(8),
                    }),
                }),
                1 => ClientBody::Receipt(Receipt {
                    conversation_id: text(0),
                    seq: numbers[0],
                    status: text(1),
                    user_id: text(2),
                    count: numbers[1],
                    sample: texts[3..].to_vec(),
                }),
                2 => ClientBody::Typing(Typing {
                    conversation_id: text(0),
                    active: flag,
                    user_id: text(1),
                }),
                3 => ClientBody::Sync(Sync {
                    conversations: (0..3)
                        .map(|i| SyncPosition {
                            conversation_id: text(i),
                            after_seq: numbers[i],
                        })
                        .collect(),
                    limit: flag.then_some(numbers[0] as u32),
                }),
                4 => ClientBody::Fetch(Fetch {
                    conversation_id: text(0),
                    before: flag.then_some(numbers[0]),
                    after: Some(numbers[1]),
                    limit: flag.then_some(numbers[2] as u32),
                }),
                5 => ClientBody::Watch(Watch { users: texts }),
                _ => ClientBody::Unwatch(Unwatch { users: texts }),
            }
        })
    }

    fn frame() -> impl Strategy<Value = ClientFrame> {
        (text(), body()).prop_map(|(id, body)| ClientFrame {
            id: id.chars().take(FRAME_ID_BYTES_MAX / 4).collect(),
            frame: Some(body),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_frame_for_the_core_is_read_as_prost_reads_it(frame in frame()) {
            prop_assert!(check(&frame.encode_to_vec()));
        }

        #[test]
        fn corrupted_frames_are_read_as_prost_reads_them_or_left_to_it(
            frame in frame(),
            other in frame(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..4),
        ) {
            let mut bytes = frame.encode_to_vec();
            for (at, byte, how) in changes {
                let at = at.index(bytes.len() + 1);
                match how {
                    0 => bytes.insert(at, byte),
                    1 => bytes.truncate(at),
                    2 => bytes.extend_from_slice(&other.encode_to_vec()),
                    _ if at < bytes.len() => bytes[at] = byte,
                    _ => {}
                }
            }
            check(&bytes);
        }

        #[test]
        fn any_bytes_are_read_as_prost_reads_them_or_left_to_it(
            bytes in prop::collection::vec(prop_oneof![0..16u8, any::<u8>()], 0..24),
        ) {
            check(&bytes);
        }
    }

    #[test]
    fn every_byte_of_a_frame_changed_is_read_as_prost_reads_it_or_left_to_it() {
        let send = SendMessage {
            to: "bob".into(),
            client_msg_id: "m1".into(),
            content: "é€".into(),
            media: Some(Media {
                size: 300,
                ..Media::default()
            }),
            ..SendMessage::default()
        };
        let frame = ClientFrame {
            id: "7".into(),
            frame: Some(ClientBody::SendMessage(send)),
        };
        let bytes = frame.encode_to_vec();
        let mut read = 0;
        for at in 0..bytes.len() {
            for byte in 0..=255 {
                let mut changed = bytes.clone();
                changed[at] = byte;
                read += usize::from(check(&changed));
            }
            check(&bytes[..at]);
        }
        assert!(read > 1_000, "{read}");
    }

    #[test]
    fn what_is_not_for_the_core_or_not_plain_is_left_to_prost() {
        let encoded = |id: &str, frame| {
            let id = id.to_owned();
            ClientFrame { id, frame }.encode_to_vec()
        };
        let typing = || Some(ClientBody::Typing(Typing::default()));
        let long = "x".repeat(FRAME_ID_BYTES_MAX + 1);
        for bytes in [
            encoded("7", None),
            encoded("", Some(ClientBody::Connect(Connect::default()))),
            encoded("", Some(ClientBody::Ping(Ping::default()))),
            encoded("", Some(ClientBody::Heartbeat(Heartbeat {}))),
            encoded(&long, typing()),
            [encoded("", typing()), encoded("", typing())].concat(),
            // An unknown field of a known body.
            vec![5 << 3 | DELIMITED, 2, 15 << 3, 1],
        ] {
            assert!(ClientFrame::decode(&bytes[..]).is_ok());
            assert!(!check(&bytes), "{bytes:02x?}");
        }
    }
}
