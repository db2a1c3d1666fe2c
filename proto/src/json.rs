//! The JSON encoding of client frames: one flat object with `type`. Reading is two passes over the
//! bytes (first `type` and `id`, then the body's own fields), so no tree is built in between;
//! writing goes straight into the buffer. The most frequent frames take a shorter way
//! ([`crate::plain`]), and go from JSON to protobuf without being decoded. Called by the edge's sessions, REST and the clients.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::client::{ClientBody, ClientFrame, ServerBody, ServerFrame};
use crate::codes::Code;
use crate::limits::FRAME_ID_BYTES_MAX;
use crate::plain;

/// Why a text is no client frame. `id` is the frame's own, where it could be read.
#[derive(Debug, PartialEq, Eq)]
pub struct JsonError {
    /// `bad_frame` (close), `bad_request` or `unknown_frame` (the session stays).
    pub code: Code,
    /// What is wrong, for a person.
    pub message: String,
    /// To echo.
    pub id: String,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    r#type: Option<Text<'a>>,
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
}

/// Borrowed unless it holds escapes. (Within an `Option`, serde would copy a bare `Cow`.)
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads one of the most frequent frames straight into protobuf, which is appended to `out`. If it is
/// not one of those, or not plain, nothing is appended, and [`decode_client`] must look.
pub fn transcode_client(text: &[u8], out: &mut Vec<u8>) -> bool {
    plain::transcode_client(text, out).is_some()
}

/// Reads every client frame, and says what is wrong.
pub fn decode_client(text: &[u8]) -> Result<ClientFrame, JsonError> {
    let head: Head<'_> = serde_json::from_slice(text).map_err(|e| head_error(text, &e))?;
    let id = head.id.map_or(Cow::Borrowed(""), |id| id.0);
    if id.len() > FRAME_ID_BYTES_MAX {
        return Err(JsonError {
            code: Code::BadRequest,
            message: format!("id: over {FRAME_ID_BYTES_MAX} bytes"),
            id: String::new(),
        });
    }
    let id = id.into_owned();
    let Some(kind) = head.r#type else {
        return Err(JsonError {
            code: Code::BadRequest,
            message: "type: missing".into(),
            id,
        });
    };
    let kind = kind.0;
    let body = match &*kind {
        "connect" => body(text, ClientBody::Connect),
        "send_message" => body(text, ClientBody::SendMessage),
        "receipt" => body(text, ClientBody::Receipt),
        "typing" => body(text, ClientBody::Typing),
        "sync" => body(text, ClientBody::Sync),
        "fetch" => body(text, ClientBody::Fetch),
        "watch" => body(text, ClientBody::Watch),
        "unwatch" => body(text, ClientBody::Unwatch),
        "ping" => body(text, ClientBody::Ping),
        "heartbeat" => body(text, ClientBody::Heartbeat),
        other => {
            let shown: String = other.chars().take(64).collect();
            return Err(JsonError {
                code: Code::UnknownFrame,
                message: format!("no frame has type {shown:?}"),
                id,
            });
        }
    };
    match body {
        Ok(frame) => Ok(ClientFrame {
            id,
            frame: Some(frame),
        }),
        Err(e) => Err(JsonError {
            code: Code::BadRequest,
            message: format!("{kind}: {e}"),
            id,
        }),
    }
}

/// Text that is no JSON object is a bad frame; an object whose `type` or `id` is no string is a bad
/// request.
fn head_error(text: &[u8], error: &serde_json::Error) -> JsonError {
    let is_object = error.is_data()
        && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
        && text.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    let code = if is_object {
        Code::BadRequest
    } else {
        Code::BadFrame
    };
    JsonError {
        code,
        message: error.to_string(),
        id: String::new(),
    }
}

fn body<'a, T: Deserialize<'a>>(
    text: &'a [u8],
    wrap: fn(T) -> ClientBody,
) -> Result<ClientBody, serde_json::Error> {
    serde_json::from_slice(text).map(wrap)
}

#[derive(Serialize)]
struct Tagged<'a, T> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "is_default")]
    id: &'a str,
    #[serde(flatten)]
    body: T,
}

/// Appends one server frame to `out`. A frame without a body writes nothing.
pub fn encode_server(frame: &ServerFrame, out: &mut Vec<u8>) {
    match &frame.frame {
        Some(ServerBody::Ack(ack)) => plain::write_ack(&frame.id, ack, out),
        Some(ServerBody::Message(m)) if plain::write_message(&frame.id, m, out) => {}
        _ => encode_server_in_full(frame, out),
    }
}

/// Writes every frame.
pub(crate) fn encode_server_in_full(frame: &ServerFrame, out: &mut Vec<u8>) {
    let id = &*frame.id;
    match &frame.frame {
        Some(ServerBody::Connected(b)) => write("connected", id, b, out),
        Some(ServerBody::Ack(b)) => write("ack", id, b, out),
        Some(ServerBody::Message(b)) => write("message", id, b, out),
        Some(ServerBody::Receipt(b)) => write("receipt", id, b, out),
        Some(ServerBody::Typing(b)) => write("typing", id, b, out),
        Some(ServerBody::Presence(b)) => write("presence", id, b, out),
        Some(ServerBody::Page(b)) => write("page", id, b, out),
        Some(ServerBody::Synced(b)) => write("synced", id, b, out),
        Some(ServerBody::Conversation(b)) => write("conversation", id, b, out),
        Some(ServerBody::Reconnect(b)) => write("reconnect", id, b, out),
        Some(ServerBody::Error(b)) => write("error", id, b, out),
        Some(ServerBody::Pong(b)) => write("pong", id, b, out),
        None => {}
    }
}

/// Appends a `pong`, as [`encode_server`] would.
pub fn encode_pong(id: &str, nonce: &str, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Pong<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        nonce: &'a str,
    }
    write("pong", id, &Pong { nonce }, out);
}

/// Appends one client frame to `out` (for clients and tests).
pub fn encode_client(frame: &ClientFrame, out: &mut Vec<u8>) {
    let id = &*frame.id;
    match &frame.frame {
        Some(ClientBody::Connect(b)) => write("connect", id, b, out),
        Some(ClientBody::SendMessage(b)) => write("send_message", id, b, out),
        Some(ClientBody::Receipt(b)) => write("receipt", id, b, out),
        Some(ClientBody::Typing(b)) => write("typing", id, b, out),
        Some(ClientBody::Sync(b)) => write("sync", id, b, out),
        Some(ClientBody::Fetch(b)) => write("fetch", id, b, out),
        Some(ClientBody::Watch(b)) => write("watch", id, b, out),
        Some(ClientBody::Unwatch(b)) => write("unwatch", id, b, out),
        Some(ClientBody::Ping(b)) => write("ping", id, b, out),
        Some(ClientBody::Heartbeat(b)) => write("heartbeat", id, b, out),
        None => {}
    }
}

/// Reads one server frame (for clients and tests). A `type` that this build does not know is an
/// error the caller may ignore: a newer server may speak it.
pub fn decode_server(text: &[u8]) -> Result<ServerFrame, serde_json::Error> {
    let head: Head<'_> = serde_json::from_slice(text)?;
    let kind = head.r#type.map_or(Cow::Borrowed(""), |kind| kind.0);
    let body = match &*kind {
        "connected" => ServerBody::Connected(serde_json::from_slice(text)?),
        "ack" => ServerBody::Ack(serde_json::from_slice(text)?),
        "message" => ServerBody::Message(serde_json::from_slice(text)?),
        "receipt" => ServerBody::Receipt(serde_json::from_slice(text)?),
        "typing" => ServerBody::Typing(serde_json::from_slice(text)?),
        "presence" => ServerBody::Presence(serde_json::from_slice(text)?),
        "page" => ServerBody::Page(serde_json::from_slice(text)?),
        "synced" => ServerBody::Synced(serde_json::from_slice(text)?),
        "conversation" => ServerBody::Conversation(serde_json::from_slice(text)?),
        "reconnect" => ServerBody::Reconnect(serde_json::from_slice(text)?),
        "error" => ServerBody::Error(serde_json::from_slice(text)?),
        "pong" => ServerBody::Pong(serde_json::from_slice(text)?),
        other => {
            return Err(serde::de::Error::custom(format!(
                "no server frame has type {other:?}"
            )));
        }
    };
    Ok(ServerFrame {
        id: head.id.map_or_else(String::new, |id| id.0.into_owned()),
        frame: Some(body),
    })
}

fn write<T: Serialize>(kind: &'static str, id: &str, body: &T, out: &mut Vec<u8>) {
    // Writing into a Vec cannot fail, and no map has keys that are not strings.
    let _ = serde_json::to_writer(
        out,
        &Tagged {
            r#type: kind,
            id,
            body,
        },
    );
}

/// For `skip_serializing_if`: an absent field means its default.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// 64-bit ids as decimal strings: JavaScript's numbers end at 2^53.
pub(crate) mod decimal_string {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        text.parse()
            .map_err(|_| D::Error::custom("expected a decimal string"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Ack, Message, SendMessage};

    #[test]
    fn a_send_is_read_and_unknown_fields_are_ignored() {
        let frame = decode_client(
            br#"{"x":[1,{}],"type":"send_message","id":"7","to":"bob","client_msg_id":"a","content":"h\u00e9"}"#,
        )
        .unwrap();
        let body = SendMessage {
            to: "bob".into(),
            client_msg_id: "a".into(),
            content: "hé".into(),
            ..SendMessage::default()
        };
        assert_eq!(
            frame,
            ClientFrame {
                id: "7".into(),
                frame: Some(ClientBody::SendMessage(body))
            }
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_apart() {
        for (text, code) in [
            ("", Code::BadFrame),
            ("nonsense", Code::BadFrame),
            ("[1]", Code::BadFrame),
            ("\"a\"", Code::BadFrame),
            ("{\"type\":\"ping\"", Code::BadFrame),
            ("{}", Code::BadRequest),
            (r#"{"type":7}"#, Code::BadRequest),
            (r#"{"type":"nope"}"#, Code::UnknownFrame),
            (
                r#"{"type":"receipt","conversation_id":"x"}"#,
                Code::BadRequest,
            ),
            (r#"{"type":"fetch","conversation_id":7}"#, Code::BadRequest),
        ] {
            assert_eq!(
                decode_client(text.as_bytes()).unwrap_err().code,
                code,
                "{text}"
            );
        }
        let error = decode_client(br#"{"type":"nope","id":"q"}"#).unwrap_err();
        assert_eq!(error.id, "q");
    }

    #[test]
    fn answers_are_flat_and_message_ids_are_strings() {
        let mut out = Vec::new();
        let ack = Ack {
            client_msg_id: "a".into(),
            message_id: 1 << 60,
            seq: 3,
            status: "sent".into(),
            ..Ack::default()
        };
        encode_server(&ServerFrame::answer("7", ServerBody::Ack(ack)), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"type":"ack","id":"7","client_msg_id":"a","message_id":"1152921504606846976","seq":3,"status":"sent"}"#
        );
    }

    #[test]
    fn what_is_written_is_read_again() {
        let message = Message {
            conversation_id: "c".into(),
            message_id: 9,
            seq: 1,
            content: "\u{1F600} \"q\"\n".into(),
            ..Message::default()
        };
        let frame = ServerFrame::push(ServerBody::Message(message));
        let mut out = Vec::new();
        encode_server(&frame, &mut out);
        assert_eq!(decode_server(&out).unwrap(), frame);
    }
}
