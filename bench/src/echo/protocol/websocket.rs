//! The client's side of RFC 6455, as thin as an echo needs it. Frames come unmasked, and are not
//! copied.

use super::{ProtocolError, put_masked};

/// The longest answer to an upgrade.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const OPCODE_PONG: u8 = 10;

/// One frame of the server's.
pub(super) enum Frame<'a> {
    Data {
        payload: &'a [u8],
        /// Not one of several fragments.
        whole: bool,
    },
    /// A ping came; this answers it.
    Pong(Vec<u8>),
    Other,
}

/// The upgrade request. The key is the same for all: nothing depends on it but the answer's hash.
pub(super) fn request(host: &str, path: &str, subprotocol: Option<&str>) -> Vec<u8> {
    let subprotocol = subprotocol.map_or_else(String::new, |name| {
        format!("Sec-WebSocket-Protocol: {name}\r\n")
    });
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dHJ1bmtsaW5lLWJlbmNoLQ==\r\n\
         {subprotocol}\r\n"
    )
    .into_bytes()
}

/// The length of the answer's head; none if it is not whole.
pub(super) fn upgraded(data: &[u8]) -> Result<Option<usize>, ProtocolError> {
    let Some(end) = data.windows(4).position(|w| w == b"\r\n\r\n") else {
        return match data.len() {
            ..HEAD_BYTES_MAX => Ok(None),
            _ => Err(ProtocolError("no end to the answer's headers".into())),
        };
    };
    if !data.starts_with(b"HTTP/1.1 101 ") {
        let line = data.split(|&b| b == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        return Err(ProtocolError(format!("the upgrade was answered: {line}")));
    }
    Ok(Some(end + 4))
}

/// Takes one frame from the front: its length and what it is; none if it is not whole.
pub(super) fn take(data: &[u8]) -> Result<Option<(usize, Frame<'_>)>, ProtocolError> {
    let [first, second, rest @ ..] = data else {
        return Ok(None);
    };
    if second & 0x80 != 0 {
        return Err(ProtocolError("a masked frame from a server".into()));
    }
    let (head, length) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (4, u64::from(u16::from_be_bytes([*a, *b]))),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            (10, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
        }
        (126 | 127, _) => return Ok(None),
        (length, _) => (2, u64::from(length)),
    };
    let Some(end) = usize::try_from(length)
        .ok()
        .and_then(|n| n.checked_add(head))
    else {
        return Err(ProtocolError(format!("a frame of {length} bytes")));
    };
    let Some(payload) = data.get(head..end) else {
        return Ok(None);
    };
    let fin = first & 0x80 != 0;
    let frame = match first & 0x0f {
        0 => Frame::Data {
            payload,
            whole: false,
        },
        1 | 2 => Frame::Data {
            payload,
            whole: fin,
        },
        8 => {
            let code = payload
                .first_chunk()
                .map_or(1005, |b| u16::from_be_bytes(*b));
            return Err(ProtocolError(format!("the server closes with {code}")));
        }
        9 => {
            let mut pong = Vec::new();
            put_masked(OPCODE_PONG, payload, super::MASK, &mut pong);
            Frame::Pong(pong)
        }
        10 => Frame::Other,
        opcode => return Err(ProtocolError(format!("a frame with opcode {opcode}"))),
    };
    Ok(Some((end, frame)))
}
