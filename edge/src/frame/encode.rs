//! RFC 6455 as the server writes it: unmasked, unfragmented frames appended to the buffer that the
//! connection sends at the end of the turn. Called by the shard and by [`super::encode_once`].

use bytes::BufMut;

use super::deflate::Deflater;
use super::ws::{CONTROL_BYTES_MAX, Opcode};

/// Bytes of the longest header.
pub const HEADER_BYTES_MAX: usize = 10;

/// A frame's header as bytes; the payload follows it.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    len: u8,
}

impl Header {
    /// For `payload_len` bytes. `compressed`: by permessage-deflate.
    pub fn new(opcode: Opcode, compressed: bool, payload_len: usize) -> Self {
        let mut bytes = [0; HEADER_BYTES_MAX];
        bytes[0] = 0x80 | if compressed { 0x40 } else { 0 } | opcode as u8;
        let len = match payload_len {
            0..=125 => {
                bytes[1] = payload_len as u8;
                2
            }
            126..=0xffff => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
                10
            }
        };
        Self { bytes, len }
    }

    /// As on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Appends a header; the caller appends `payload_len` bytes.
pub fn write_header(out: &mut impl BufMut, opcode: Opcode, payload_len: usize) {
    out.put_slice(Header::new(opcode, false, payload_len).as_bytes());
}

fn frame(out: &mut impl BufMut, opcode: Opcode, payload: &[u8]) {
    write_header(out, opcode, payload.len());
    out.put_slice(payload);
}

/// Appends a text message. `text` is UTF-8.
pub fn text(out: &mut impl BufMut, text: &[u8]) {
    frame(out, Opcode::Text, text);
}

/// Appends a binary message.
pub fn binary(out: &mut impl BufMut, payload: &[u8]) {
    frame(out, Opcode::Binary, payload);
}

/// Appends a text or binary message, compressed.
pub fn compressed(out: &mut impl BufMut, opcode: Opcode, payload: &[u8], deflater: &mut Deflater) {
    let deflated = deflater.deflate(payload);
    out.put_slice(Header::new(opcode, true, deflated.len()).as_bytes());
    out.put_slice(deflated);
}

/// Appends a ping of at most 125 bytes; what is over is left out.
pub fn ping(out: &mut impl BufMut, payload: &[u8]) {
    frame(
        out,
        Opcode::Ping,
        &payload[..payload.len().min(CONTROL_BYTES_MAX)],
    );
}

/// Appends a pong of at most 125 bytes; what is over is left out.
pub fn pong(out: &mut impl BufMut, payload: &[u8]) {
    frame(
        out,
        Opcode::Pong,
        &payload[..payload.len().min(CONTROL_BYTES_MAX)],
    );
}

/// Appends a close frame. The reason is cut, between characters, to what fits.
pub fn close(out: &mut impl BufMut, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    write_header(out, Opcode::Close, 2 + reason.len());
    out.put_u16(code);
    out.put_slice(reason.as_bytes());
}

/// Appends the answer to a peer's close frame: the same code, or none if it gave none.
pub fn close_reply(out: &mut impl BufMut, code: Option<u16>) {
    match code {
        Some(code) => close(out, code, ""),
        None => write_header(out, Opcode::Close, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_take_the_shortest_form() {
        for (len, expected) in [
            (0usize, &[0x82u8, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(Header::new(Opcode::Binary, false, len).as_bytes(), expected);
        }
        assert_eq!(Header::new(Opcode::Text, true, 3).as_bytes(), &[0xc1, 3]);
    }

    #[test]
    fn control_frames_never_exceed_their_limit() {
        let mut out = Vec::new();
        close(&mut out, 4410, &"é".repeat(100));
        assert_eq!(out[..4], [0x88, 124, 0x11, 0x3a]);
        assert_eq!(std::str::from_utf8(&out[4..]).unwrap(), "é".repeat(61));
        out.clear();
        pong(&mut out, &[7; 300]);
        assert_eq!(out.len(), 127);
        out.clear();
        close_reply(&mut out, None);
        assert_eq!(out, [0x88, 0]);
    }
}
