//! Client frames that an edge answers by itself, `heartbeat` and `ping`, read without owning
//! anything: a million idle sessions send little else. Only their plainest form is recognised.
//! Whatever else comes is for the full decoders ([`crate::json::decode_client`], prost), which also
//! say what is wrong with it.
//!
//! Invariant: what is recognised here is, field by field, what the full decoder would read. Called
//! by the edge's sessions for each frame.

use crate::limits::{FRAME_ID_BYTES_MAX, NONCE_BYTES_MAX};
use crate::plain::Scanner;

/// Such a frame, in the bytes that it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Light<'a> {
    /// Needs no answer.
    Heartbeat,
    /// To be answered with a `pong` of the same `id` and `nonce`, each within its limit.
    Ping { id: &'a str, nonce: &'a str },
}

impl<'a> Light<'a> {
    fn ping(id: &'a str, nonce: &'a str) -> Option<Self> {
        let within = id.len() <= FRAME_ID_BYTES_MAX && nonce.len() <= NONCE_BYTES_MAX;
        within.then_some(Self::Ping { id, nonce })
    }

    /// From JSON: an object of plain strings under `type`, `id` and `nonce`, without escapes.
    pub fn from_json(text: &'a [u8]) -> Option<Self> {
        let mut rest = Scanner::new(text)?;
        let (mut kind, mut id, mut nonce) = (None, None, None);
        rest.expect(b'{')?;
        loop {
            let slot = match rest.string()?.text {
                "type" => &mut kind,
                "id" => &mut id,
                "nonce" => &mut nonce,
                _ => return None,
            };
            rest.expect(b':')?;
            let value = rest.string()?;
            // A second one of its kind is an error, which the full decoder reports.
            if value.escaped || slot.replace(value.text).is_some() {
                return None;
            }
            match rest.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        if rest.next().is_some() {
            return None;
        }
        let (id, nonce) = (id.unwrap_or_default(), nonce.unwrap_or_default());
        match kind? {
            "heartbeat" if id.len() <= FRAME_ID_BYTES_MAX => Some(Self::Heartbeat),
            "ping" => Self::ping(id, nonce),
            _ => None,
        }
    }

    /// From protobuf: `id` at most once and first, then the one field of the frame, and nothing else.
    pub fn from_proto(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = Proto(bytes);
        let mut field = rest.field()?;
        let mut id = "";
        if let (ID, value) = field {
            id = std::str::from_utf8(value).ok()?;
            field = rest.field()?;
        }
        if !rest.0.is_empty() || id.len() > FRAME_ID_BYTES_MAX {
            return None;
        }
        match field {
            (HEARTBEAT, []) => Some(Self::Heartbeat),
            (PING, []) => Self::ping(id, ""),
            (PING, body) => {
                let mut body = Proto(body);
                let (NONCE, nonce) = body.field()? else {
                    return None;
                };
                let nonce = std::str::from_utf8(nonce).ok()?;
                if body.0.is_empty() {
                    Self::ping(id, nonce)
                } else {
                    None
                }
            }
            _ => None,
        }
    }
}

/// Appends the `pong` to a ping, in protobuf. Neither may be over its limit.
pub fn write_pong(id: &str, nonce: &str, out: &mut Vec<u8>) {
    debug_assert!(id.len() <= FRAME_ID_BYTES_MAX && nonce.len() <= NONCE_BYTES_MAX);
    write_string(ID, id, out);
    let len = if nonce.is_empty() { 0 } else { 2 + nonce.len() };
    out.extend_from_slice(&[PONG, len as u8]);
    write_string(NONCE, nonce, out);
}

/// Bytes that [`write_pong`] writes.
pub fn pong_len(id: &str, nonce: &str) -> usize {
    let of = |text: &str| if text.is_empty() { 0 } else { 2 + text.len() };
    of(id) + 2 + of(nonce)
}

fn write_string(tag: u8, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        out.extend_from_slice(&[tag, text.len() as u8]);
        out.extend_from_slice(text.as_bytes());
    }
}

const _: () = assert!(
    FRAME_ID_BYTES_MAX < 126 && NONCE_BYTES_MAX < 126,
    "a length is one byte"
);

/// Tags of length-delimited fields in `client.proto`: `id` of both frames, `ClientFrame.ping` and
/// `.heartbeat`, `ServerFrame.pong`, `nonce` of ping and pong.
const ID: u8 = 1 << 3 | 2;
const PING: u8 = 10 << 3 | 2;
const HEARTBEAT: u8 = 11 << 3 | 2;
const PONG: u8 = 13 << 3 | 2;
const NONCE: u8 = 1 << 3 | 2;

/// What is still to be read of a protobuf message.
struct Proto<'a>(&'a [u8]);

impl<'a> Proto<'a> {
    /// A length-delimited field with a number below 16 and fewer than 128 bytes: its tag, its value.
    fn field(&mut self) -> Option<(u8, &'a [u8])> {
        let &[tag, len @ 0..0x80, ref rest @ ..] = self.0 else {
            return None;
        };
        let (value, rest) = rest.split_at_checked(usize::from(len))?;
        self.0 = rest;
        Some((tag, value))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::client::{
        ClientBody, ClientFrame, Heartbeat, Ping, Pong, SendMessage, ServerBody, ServerFrame,
    };
    use crate::json;

    /// The same as the full decoder gives it.
    fn full(light: Light<'_>) -> ClientFrame {
        match light {
            Light::Heartbeat => ClientFrame {
                id: String::new(),
                frame: Some(ClientBody::Heartbeat(Heartbeat {})),
            },
            Light::Ping { id, nonce } => ClientFrame {
                id: id.into(),
                frame: Some(ClientBody::Ping(Ping {
                    nonce: nonce.into(),
                })),
            },
        }
    }

    /// A heartbeat's `id` is nobody's business.
    fn without_idle_id(mut frame: ClientFrame) -> ClientFrame {
        if matches!(frame.frame, Some(ClientBody::Heartbeat(_))) {
            frame.id.clear();
        }
        frame
    }

    #[test]
    fn plain_frames_are_recognised() {
        for (text, expected) in [
            (r#"{"type":"heartbeat"}"#, Light::Heartbeat),
            (r#" { "id" : "7" , "type":"heartbeat" } "#, Light::Heartbeat),
            (r#"{"type":"ping"}"#, Light::Ping { id: "", nonce: "" }),
            (
                r#"{"type":"ping","id":"é","nonce":"n n"}"#,
                Light::Ping {
                    id: "é",
                    nonce: "n n",
                },
            ),
        ] {
            assert_eq!(Light::from_json(text.as_bytes()), Some(expected), "{text}");
        }
        for (id, nonce) in [("", ""), ("7", ""), ("", "n"), ("7", "n")] {
            let frame = full(Light::Ping { id, nonce });
            let bytes = frame.encode_to_vec();
            assert_eq!(Light::from_proto(&bytes), Some(Light::Ping { id, nonce }));
        }
        let heartbeat = full(Light::Heartbeat).encode_to_vec();
        assert_eq!(Light::from_proto(&heartbeat), Some(Light::Heartbeat));
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_full_decoder() {
        let long = "x".repeat(65);
        let long = format!(r#"{{"type":"ping","nonce":"{long}"}}"#);
        for text in [
            "",
            "{}",
            "[]",
            r#"{"type":"ping""#,
            r#"{"type":"ping",}"#,
            r#"{"type":"ping"}x"#,
            r#"{"type":"p\u0069ng"}"#,
            r#"{"type":"ping","nonce":7}"#,
            r#"{"type":"ping","type":"ping"}"#,
            r#"{"type":"ping","x":"y"}"#,
            r#"{"type":"send_message","id":"7"}"#,
            "{\"type\":\"ping\",\"nonce\":\"\n\"}",
            &long,
        ] {
            assert_eq!(Light::from_json(text.as_bytes()), None, "{text}");
        }
        let send = ClientFrame {
            id: "7".into(),
            frame: Some(ClientBody::SendMessage(SendMessage::default())),
        };
        assert_eq!(Light::from_proto(&send.encode_to_vec()), None);
        assert_eq!(Light::from_proto(&[]), None);
    }

    #[test]
    fn a_pong_is_what_the_full_encoder_writes() {
        for (id, nonce) in [("", ""), ("7", ""), ("", "n"), ("7", "né")] {
            let pong = ServerBody::Pong(Pong {
                nonce: nonce.into(),
            });
            let frame = ServerFrame::answer(id, pong);
            let mut out = Vec::new();
            write_pong(id, nonce, &mut out);
            assert_eq!(out, frame.encode_to_vec());
            assert_eq!(pong_len(id, nonce), out.len());
            let (mut light, mut full) = (Vec::new(), Vec::new());
            json::encode_pong(id, nonce, &mut light);
            json::encode_server(&frame, &mut full);
            assert_eq!(light, full);
        }
    }

    /// Texts and messages one small change away from plain ones: either both decoders agree, or the
    /// full one decides alone.
    #[test]
    fn recognised_frames_are_what_the_full_decoder_reads() {
        let texts = [
            r#"{"type":"heartbeat","id":"ab"}"#,
            r#"{ "nonce":"xyz", "type":"ping","id":"7"}"#,
        ];
        let mut recognised = 0;
        for text in texts {
            for at in 0..text.len() {
                for byte in 0..=255 {
                    let mut bytes = text.as_bytes().to_vec();
                    bytes[at] = byte;
                    if let Some(light) = Light::from_json(&bytes) {
                        let read = json::decode_client(&bytes).expect("a frame");
                        assert_eq!(without_idle_id(read), full(light));
                        recognised += 1;
                    }
                }
            }
        }
        for light in [
            Light::Heartbeat,
            Light::Ping {
                id: "7",
                nonce: "xyz",
            },
            Light::Ping { id: "", nonce: "" },
        ] {
            let good = full(light).encode_to_vec();
            for at in 0..good.len() {
                for byte in 0..=255 {
                    let mut bytes = good.clone();
                    bytes[at] = byte;
                    if let Some(light) = Light::from_proto(&bytes) {
                        let read = ClientFrame::decode(&bytes[..]).expect("a frame");
                        assert_eq!(without_idle_id(read), full(light));
                        recognised += 1;
                    }
                }
            }
        }
        assert!(recognised > 1_000, "{recognised}");
    }
}
