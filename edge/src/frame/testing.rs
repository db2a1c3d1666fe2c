//! The other side, for tests: a client's encoder and a server-frame reader that share no code with
//! the product.

use super::Input;
use super::ws::{Decoder, WsError, WsEvent};

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Failed(WsError),
}

/// One frame as a client sends it. `first`: the first byte, flags and opcode.
pub fn client_frame(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    if payload.len() < 126 {
        frame.push(0x80 + payload.len() as u8);
    } else if payload.len() < 0x1_0000 {
        frame.push(0xfe);
        frame.push((payload.len() >> 8) as u8);
        frame.push(payload.len() as u8);
    } else {
        frame.push(0xff);
        for shift in (0..8).rev() {
            frame.push((payload.len() >> (8 * shift)) as u8);
        }
    }
    frame.extend(key);
    frame.extend(payload.iter().enumerate().map(|(i, b)| b ^ key[i & 3]));
    frame
}

/// A frame with a mask that is as good as any other.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, payload, [0x37, 0xfa, 0x21, 0x3d])
}

/// Feeds one receive and collects what comes of it.
pub fn feed(decoder: &mut Decoder, data: &[u8], bytes_max: usize) -> Vec<Seen> {
    let mut data = data.to_vec();
    let mut input = Input::new(&mut data);
    let mut seen = Vec::new();
    loop {
        match decoder.next_event(&mut input, bytes_max) {
            Ok(Some(event)) => seen.push(match event {
                WsEvent::Text(text) => Seen::Text(text.to_vec()),
                WsEvent::Binary(bytes) => Seen::Binary(bytes.to_vec()),
                WsEvent::Ping(bytes) => Seen::Ping(bytes.to_vec()),
                WsEvent::Pong(bytes) => Seen::Pong(bytes.to_vec()),
                WsEvent::Close { code, reason } => Seen::Close(code, reason.to_owned()),
            }),
            Ok(None) => break,
            Err(error) => seen.push(Seen::Failed(error)),
        }
    }
    assert!(input.is_empty(), "a decoder reads all that it is given");
    seen
}

/// Feeds `stream` in receives of the given sizes, over and over.
pub fn feed_in_pieces(
    decoder: &mut Decoder,
    stream: &[u8],
    sizes: &[usize],
    bytes_max: usize,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut rest = stream;
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, tail) = rest.split_at(size.clamp(1, rest.len()));
        seen.extend(feed(decoder, piece, bytes_max));
        rest = tail;
    }
    seen
}
