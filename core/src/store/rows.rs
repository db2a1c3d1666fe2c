//! Rows of the embedded store, encoded from and decoded into what the engine holds.
//!
//! On disk a message is a `trunkline.store.v1.MessageRow`. It is written field by field straight
//! from the [`Message`], and read back into one, because building a row in between would copy each
//! of its strings. The tests hold this to the generated code, byte by byte.
//! Called by [`super::embedded`] alone.

use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};
use trunkline_proto::client::Message;

use super::StoreError;

/// Field numbers of `MessageRow`, frozen in `proto/store.proto`.
mod field {
    pub(super) const MESSAGE_ID: u32 = 1;
    pub(super) const TS: u32 = 2;
    pub(super) const SENDER_ID: u32 = 3;
    pub(super) const CLIENT_MSG_ID: u32 = 4;
    pub(super) const CONTENT: u32 = 5;
    pub(super) const CONTENT_TYPE: u32 = 6;
    pub(super) const MEDIA: u32 = 7;
}

/// Replaces what `row` holds by the message's row. Conversation and seq are in the key.
pub(super) fn encode_message(message: &Message, row: &mut Vec<u8>) {
    row.clear();
    put_u64(field::MESSAGE_ID, message.message_id, row);
    put_u64(field::TS, message.ts, row);
    put_string(field::SENDER_ID, &message.sender_id, row);
    put_string(field::CLIENT_MSG_ID, &message.client_msg_id, row);
    put_string(field::CONTENT, &message.content, row);
    put_string(field::CONTENT_TYPE, &message.content_type, row);
    if let Some(media) = &message.media {
        encoding::message::encode(field::MEDIA, media, row);
    }
}

/// The message that `row` holds under a key with this conversation and seq.
pub(super) fn decode_message(
    conversation_id: &str,
    seq: u64,
    row: &[u8],
) -> Result<Message, StoreError> {
    let mut message = Message {
        conversation_id: conversation_id.to_owned(),
        seq,
        ..Message::default()
    };
    let mut rest = row;
    while !rest.is_empty() {
        merge_field(&mut message, &mut rest).map_err(|error| {
            StoreError::Corrupt(format!("message {seq} of {conversation_id}: {error}"))
        })?;
    }
    Ok(message)
}

/// Any other row.
pub(super) fn decode<R: prost::Message + Default>(
    what: &str,
    key: &[u8],
    row: &[u8],
) -> Result<R, StoreError> {
    R::decode(row).map_err(|error| {
        StoreError::Corrupt(format!("{what} row under {}: {error}", key.escape_ascii()))
    })
}

fn merge_field(message: &mut Message, rest: &mut &[u8]) -> Result<(), DecodeError> {
    let context = DecodeContext::default();
    let (number, wire) = encoding::decode_key(rest)?;
    match number {
        field::MESSAGE_ID => take_u64(wire, &mut message.message_id, rest),
        field::TS => take_u64(wire, &mut message.ts, rest),
        field::SENDER_ID => take_string(wire, &mut message.sender_id, rest),
        field::CLIENT_MSG_ID => take_string(wire, &mut message.client_msg_id, rest),
        field::CONTENT => take_string(wire, &mut message.content, rest),
        field::CONTENT_TYPE => take_string(wire, &mut message.content_type, rest),
        field::MEDIA => {
            let media = message.media.get_or_insert_default();
            encoding::message::merge(wire, media, rest, context)
        }
        // Of a later version, which added fields but kept the schema version.
        _ => encoding::skip_field(wire, number, rest, context),
    }
}

fn put_u64(number: u32, value: u64, row: &mut Vec<u8>) {
    if value != 0 {
        encoding::uint64::encode(number, &value, row);
    }
}

fn put_string(number: u32, value: &String, row: &mut Vec<u8>) {
    if !value.is_empty() {
        encoding::string::encode(number, value, row);
    }
}

fn take_u64(wire: WireType, value: &mut u64, rest: &mut &[u8]) -> Result<(), DecodeError> {
    encoding::uint64::merge(wire, value, rest, DecodeContext::default())
}

fn take_string(wire: WireType, value: &mut String, rest: &mut &[u8]) -> Result<(), DecodeError> {
    encoding::string::merge(wire, value, rest, DecodeContext::default())
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;
    use prost::Message as _;
    use trunkline_proto::client::Media;
    use trunkline_proto::store::MessageRow;

    use super::*;

    fn as_row(message: &Message) -> MessageRow {
        MessageRow {
            message_id: message.message_id,
            ts: message.ts,
            sender_id: message.sender_id.clone(),
            client_msg_id: message.client_msg_id.clone(),
            content: message.content.clone(),
            content_type: message.content_type.clone(),
            media: message.media.clone(),
        }
    }

    prop_compose! {
        fn any_media()(
            media_id in ".{0,8}",
            url in ".{0,40}",
            content_type in ".{0,12}",
            size in prop_oneof![Just(0), any::<u64>()],
            name in ".{0,12}",
        ) -> Media {
            Media { media_id, url, content_type, size, name }
        }
    }

    prop_compose! {
        fn any_message()(
            message_id in prop_oneof![Just(0), any::<u64>()],
            ts in prop_oneof![Just(0), any::<u64>()],
            sender_id in ".{0,20}",
            client_msg_id in ".{0,20}",
            content in ".{0,300}",
            content_type in ".{0,20}",
            media in option::of(any_media()),
            seq in any::<u64>(),
        ) -> Message {
            Message {
                conversation_id: "ca3ece1f-0478-587e-ab74-78af8c811a22".to_owned(),
                message_id, seq, sender_id, client_msg_id, content, content_type, media, ts,
            }
        }
    }

    proptest! {
        #[test]
        fn a_message_is_written_as_the_generated_row_is(message in any_message()) {
            let mut row = vec![0xee; 3];
            encode_message(&message, &mut row);
            prop_assert_eq!(&row, &as_row(&message).encode_to_vec());
            let read = decode_message(&message.conversation_id, message.seq, &row).expect("own row");
            prop_assert_eq!(read, message);
        }

        #[test]
        fn bytes_that_are_no_row_are_refused_as_the_generated_code_refuses_them(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let generated = MessageRow::decode(&bytes[..]);
            let ours = decode_message("c", 1, &bytes);
            match (generated, ours) {
                (Ok(row), Ok(message)) => prop_assert_eq!(as_row(&message), row),
                (Err(_), Err(StoreError::Corrupt(_))) => {}
                (generated, ours) => prop_assert!(false, "{generated:?} against {ours:?}"),
            }
        }
    }

    #[test]
    fn every_field_of_the_row_is_written() {
        let message = Message {
            conversation_id: "c".to_owned(),
            message_id: u64::MAX,
            seq: 3,
            sender_id: "s".to_owned(),
            client_msg_id: "m".to_owned(),
            content: "text".to_owned(),
            content_type: "text/plain".to_owned(),
            media: Some(Media::default()),
            ts: 5,
        };
        let mut row = Vec::new();
        encode_message(&message, &mut row);
        let mut fields = Vec::new();
        let mut rest = &row[..];
        while !rest.is_empty() {
            let (number, wire) = encoding::decode_key(&mut rest).expect("a field");
            fields.push(number);
            encoding::skip_field(wire, number, &mut rest, DecodeContext::default())
                .expect("its value");
        }
        assert_eq!(fields, [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over() {
        let mut row = Vec::new();
        put_u64(field::TS, 9, &mut row);
        put_string(900, &"later".to_owned(), &mut row);
        put_u64(field::MESSAGE_ID, 8, &mut row);
        let message = decode_message("c", 1, &row).expect("readable");
        assert_eq!((message.ts, message.message_id), (9, 8));
    }

    #[test]
    fn a_row_cut_short_is_corrupt() {
        let mut row = Vec::new();
        put_string(
            field::CONTENT,
            &"a long enough content".to_owned(),
            &mut row,
        );
        row.pop();
        let error = decode_message("c", 7, &row).expect_err("cut short");
        assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("message 7 of c")));
    }
}
