//! One server frame for many recipients: encoded once for each encoding that some recipient uses,
//! then shared by reference count. Called by the hub and the sessions.

use std::cell::OnceCell;

use bytes::Bytes;
use prost::Message;
use trunkline_proto::client::ServerFrame;
use trunkline_proto::{json, light};

use super::encode::{self, HEADER_BYTES_MAX, Header};
use super::tcp;
use super::ws::Opcode;

/// How a connection is spoken to: its transport and subprotocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// WebSocket, text frames of JSON.
    JsonWs,
    /// WebSocket, binary frames of protobuf.
    ProtoWs,
    /// Raw TCP, protobuf behind its length.
    ProtoTcp,
}

/// Appends `frame` as it goes over the wire, framing included. A frame without a body is nothing
/// that a client could read: it writes nothing.
pub fn encode(frame: &ServerFrame, encoding: Encoding, out: &mut Vec<u8>) {
    if frame.frame.is_none() {
        return;
    }
    match encoding {
        Encoding::JsonWs => encode_json(out, |out| json::encode_server(frame, out)),
        Encoding::ProtoWs => {
            let len = frame.encoded_len();
            out.reserve(HEADER_BYTES_MAX + len);
            encode::write_header(out, Opcode::Binary, len);
            append(frame, out);
        }
        Encoding::ProtoTcp => {
            let len = frame.encoded_len();
            out.reserve(tcp::LENGTH_BYTES_MAX + len);
            tcp::write_length(out, len);
            append(frame, out);
        }
    }
}

/// Appends a `pong` as it goes over the wire.
pub fn encode_pong(id: &str, nonce: &str, encoding: Encoding, out: &mut Vec<u8>) {
    let len = light::pong_len(id, nonce);
    match encoding {
        Encoding::JsonWs => return encode_json(out, |out| json::encode_pong(id, nonce, out)),
        Encoding::ProtoWs => encode::write_header(out, Opcode::Binary, len),
        Encoding::ProtoTcp => tcp::write_length(out, len),
    }
    light::write_pong(id, nonce, out);
}

fn append(frame: &ServerFrame, out: &mut Vec<u8>) {
    // Fails only when the buffer cannot grow; a Vec can.
    let appended = frame.encode(out);
    debug_assert!(appended.is_ok());
}

/// The length of JSON is known only when it is written, so it is written behind room for the
/// longest header and moved up to the real one.
fn encode_json(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES_MAX]);
    let body = out.len();
    write(out);
    let header = Header::new(Opcode::Text, false, out.len() - body);
    let header = header.as_bytes();
    let len = out.len() - body;
    out.copy_within(body.., start + header.len());
    out[start..start + header.len()].copy_from_slice(header);
    out.truncate(start + header.len() + len);
}

/// A frame and its encodings, each made when first asked for.
#[derive(Debug)]
pub struct EncodedFrame<'f> {
    frame: &'f ServerFrame,
    json_ws: OnceCell<Bytes>,
    proto_ws: OnceCell<Bytes>,
    proto_tcp: OnceCell<Bytes>,
}

impl<'f> EncodedFrame<'f> {
    /// Encodes nothing yet.
    pub const fn new(frame: &'f ServerFrame) -> Self {
        Self {
            frame,
            json_ws: OnceCell::new(),
            proto_ws: OnceCell::new(),
            proto_tcp: OnceCell::new(),
        }
    }

    /// The frame itself.
    pub const fn frame(&self) -> &'f ServerFrame {
        self.frame
    }

    /// The bytes for recipients of `encoding`.
    pub fn get(&self, encoding: Encoding) -> &Bytes {
        let cell = match encoding {
            Encoding::JsonWs => &self.json_ws,
            Encoding::ProtoWs => &self.proto_ws,
            Encoding::ProtoTcp => &self.proto_tcp,
        };
        cell.get_or_init(|| {
            let mut out = Vec::new();
            encode(self.frame, encoding, &mut out);
            Bytes::from(out)
        })
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::client::{Message as ChatMessage, Pong, ServerBody};

    use super::*;

    fn message(content_len: usize) -> ServerFrame {
        ServerFrame::answer(
            "7",
            ServerBody::Message(ChatMessage {
                content: "x".repeat(content_len),
                seq: 12,
                ..ChatMessage::default()
            }),
        )
    }

    /// The payload behind a server's WebSocket header, whose length field must be exact.
    fn ws_payload(bytes: &[u8], first: u8) -> &[u8] {
        assert_eq!(bytes[0], first);
        let (len, payload) = match bytes[1] {
            126 => (
                usize::from(u16::from_be_bytes([bytes[2], bytes[3]])),
                &bytes[4..],
            ),
            127 => (
                u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize,
                &bytes[10..],
            ),
            len => (usize::from(len), &bytes[2..]),
        };
        assert_eq!(len, payload.len());
        payload
    }

    #[test]
    fn every_encoding_carries_the_frame_behind_an_exact_length() {
        for content_len in [0, 1, 100, 1_000, 70_000] {
            let frame = message(content_len);
            let encoded = EncodedFrame::new(&frame);
            let json: serde_json::Value =
                serde_json::from_slice(ws_payload(encoded.get(Encoding::JsonWs), 0x81)).unwrap();
            assert_eq!(json["type"], "message");
            assert_eq!(json["id"], "7");
            assert_eq!(
                json.get("content").map_or(0, |c| c.as_str().unwrap().len()),
                content_len
            );
            let proto = ws_payload(encoded.get(Encoding::ProtoWs), 0x82);
            assert_eq!(ServerFrame::decode(proto).unwrap(), frame);
            let tcp = &encoded.get(Encoding::ProtoTcp)[..];
            assert_eq!(ServerFrame::decode_length_delimited(tcp).unwrap(), frame);
        }
    }

    #[test]
    fn an_encoding_is_made_once_and_shared() {
        let frame = message(10);
        let encoded = EncodedFrame::new(&frame);
        let first = encoded.get(Encoding::JsonWs).clone();
        assert_eq!(first.as_ptr(), encoded.get(Encoding::JsonWs).as_ptr());
    }

    #[test]
    fn encoding_appends_and_leaves_what_is_there() {
        let frame = ServerFrame::push(ServerBody::Pong(Pong::default()));
        for encoding in [Encoding::JsonWs, Encoding::ProtoWs, Encoding::ProtoTcp] {
            let mut alone = Vec::new();
            encode(&frame, encoding, &mut alone);
            let mut after = b"before".to_vec();
            encode(&frame, encoding, &mut after);
            assert_eq!(after, [b"before", &alone[..]].concat());
        }
    }

    #[test]
    fn a_pong_is_encoded_like_every_frame() {
        let pong = ServerBody::Pong(Pong { nonce: "n".into() });
        let frame = ServerFrame::answer("7", pong);
        for encoding in [Encoding::JsonWs, Encoding::ProtoWs, Encoding::ProtoTcp] {
            let (mut light, mut full) = (Vec::new(), Vec::new());
            encode_pong("7", "n", encoding, &mut light);
            encode(&frame, encoding, &mut full);
            assert_eq!(light, full);
        }
    }

    #[test]
    fn a_frame_without_a_body_is_not_sent() {
        for encoding in [Encoding::JsonWs, Encoding::ProtoWs, Encoding::ProtoTcp] {
            let mut out = Vec::new();
            encode(&ServerFrame::default(), encoding, &mut out);
            assert!(out.is_empty());
        }
    }
}
