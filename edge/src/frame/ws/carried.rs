//! A decoder on its way to another process.

use super::{Decoder, HEADER_BYTES_MAX, HandedOn, Header, Message, Opcode, Partial, Utf8Stream};
use crate::handover::state::{BadState, WsDecoder, WsFrame, WsMessage};

impl Decoder {
    /// All that it holds; none for a connection with permessage-deflate, whose window cannot be
    /// carried. Between two receives.
    pub fn carried(&self) -> Option<WsDecoder> {
        if self.inflater.is_some() {
            return None;
        }
        let mut carried = WsDecoder {
            ended: self.ended,
            ..WsDecoder::default()
        };
        if let Some(partial) = &self.partial {
            partial.head[..usize::from(partial.head_len)].clone_into(&mut carried.head);
            carried.frame = partial.frame.map(|(header, received)| WsFrame {
                fin: header.fin,
                opcode: header.opcode as u32,
                len: header.len,
                key: u32::from_be_bytes(header.key),
                received,
            });
            // What was handed on is over.
            if partial.handed_on != HandedOn::Control {
                partial.control.clone_into(&mut carried.control);
            }
            if partial.handed_on != HandedOn::Message {
                carried.message = partial.message.as_ref().map(|message| WsMessage {
                    text: message.text,
                    wire_bytes: message.wire_bytes,
                    data: message.data.clone(),
                    code_point: message.utf8.code_point().to_vec(),
                });
            }
        }
        Some(carried)
    }

    /// Goes on where the other one stood.
    pub fn resumed(carried: WsDecoder) -> Result<Self, BadState> {
        let mut decoder = Self {
            ended: carried.ended,
            ..Self::default()
        };
        if carried.head.len() >= HEADER_BYTES_MAX {
            return Err(BadState("a frame header that is too long"));
        }
        let nothing = carried.head.is_empty()
            && carried.frame.is_none()
            && carried.control.is_empty()
            && carried.message.is_none();
        if nothing {
            return Ok(decoder);
        }
        let mut partial = Box::<Partial>::default();
        partial.head[..carried.head.len()].copy_from_slice(&carried.head);
        partial.head_len = carried.head.len() as u8;
        partial.control = carried.control;
        partial.frame = carried.frame.map(resumed_frame).transpose()?;
        partial.message = carried.message.map(resumed_message).transpose()?;
        decoder.partial = Some(partial);
        Ok(decoder)
    }
}

fn resumed_frame(frame: WsFrame) -> Result<(Header, u64), BadState> {
    let opcode = u8::try_from(frame.opcode).ok().and_then(Opcode::from_bits);
    let opcode = opcode.ok_or(BadState("an unknown opcode"))?;
    if frame.received > frame.len {
        return Err(BadState("a frame that is more than whole"));
    }
    let header = Header {
        fin: frame.fin,
        compressed: false,
        opcode,
        len: frame.len,
        key: frame.key.to_be_bytes(),
    };
    Ok((header, frame.received))
}

fn resumed_message(message: WsMessage) -> Result<Message, BadState> {
    let utf8 = Utf8Stream::within(&message.code_point);
    Ok(Message {
        text: message.text,
        compressed: false,
        wire_bytes: message.wire_bytes,
        data: message.data,
        utf8: utf8.ok_or(BadState("a code point that is too long"))?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::frame::Input;
    use crate::frame::ws::WsError;

    const BYTES_MAX: usize = 1 << 16;

    /// What a decoder made of some bytes, and what it has left.
    fn read(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Result<String, WsError>> {
        let mut bytes = bytes.to_vec();
        let mut input = Input::new(&mut bytes);
        let mut events = Vec::new();
        loop {
            match decoder.next_event(&mut input, BYTES_MAX) {
                Ok(Some(event)) => events.push(Ok(format!("{event:?}"))),
                Ok(None) => return events,
                Err(error) => events.push(Err(error)),
            }
        }
    }

    fn over_the_wire(decoder: &Decoder) -> Decoder {
        let bytes = decoder.carried().unwrap().encode_to_vec();
        Decoder::resumed(WsDecoder::decode(&bytes[..]).unwrap()).unwrap()
    }

    fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let key = [7, 99, 0, 200];
        let mut out = vec![u8::from(fin) << 7 | opcode];
        match payload.len() {
            len @ ..126 => out.push(0x80 | len as u8),
            len => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(&key);
        out.extend(payload.iter().enumerate().map(|(i, b)| b ^ key[i % 4]));
        out
    }

    #[test]
    fn a_decoder_between_messages_carries_nothing() {
        let mut decoder = Decoder::new(None);
        assert_eq!(read(&mut decoder, &frame(true, 1, b"whole")).len(), 1);
        assert_eq!(decoder.carried().unwrap(), WsDecoder::default());
        assert!(over_the_wire(&decoder).partial.is_none());
    }

    #[test]
    fn the_end_is_carried() {
        let mut decoder = Decoder::new(None);
        read(&mut decoder, &frame(true, 8, &1000u16.to_be_bytes()));
        let mut next = over_the_wire(&decoder);
        assert!(next.is_ended());
        assert_eq!(read(&mut next, &frame(true, 1, b"late")), []);
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |carried| Decoder::resumed(carried).unwrap_err();
        refused(WsDecoder {
            head: vec![0; HEADER_BYTES_MAX],
            ..WsDecoder::default()
        });
        for (opcode, received) in [(5, 0), (1, 11), (300, 0)] {
            refused(WsDecoder {
                frame: Some(WsFrame {
                    opcode,
                    len: 10,
                    received,
                    ..WsFrame::default()
                }),
                ..WsDecoder::default()
            });
        }
        refused(WsDecoder {
            message: Some(WsMessage {
                code_point: vec![0xf0; 5],
                ..WsMessage::default()
            }),
            ..WsDecoder::default()
        });
    }

    proptest! {
        /// Wherever the stream is cut, the successor reads on as one decoder would have.
        #[test]
        fn reading_goes_on_wherever_it_is_cut(
            messages in prop::collection::vec(("\\PC{0,60}", 1usize..4, any::<bool>()), 1..5),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        ) {
            let mut wire = Vec::new();
            for (text, fragments, ping) in &messages {
                let bytes = text.as_bytes();
                let size = bytes.len().div_ceil(*fragments).max(1);
                let pieces: Vec<&[u8]> = match bytes {
                    [] => vec![bytes],
                    _ => bytes.chunks(size).collect(),
                };
                for (i, piece) in pieces.iter().enumerate() {
                    let opcode = u8::from(i == 0);
                    wire.extend(frame(i + 1 == pieces.len(), opcode, piece));
                    if *ping {
                        wire.extend(frame(true, 9, b"are you there"));
                    }
                }
            }
            if let Some((at, byte)) = damage {
                let at = at.index(wire.len());
                wire[at] = byte;
            }
            let mut whole = Decoder::new(None);
            let expected = read(&mut whole, &wire);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            at.sort_unstable();
            at.push(wire.len());
            let (mut decoder, mut events, mut from) = (Decoder::new(None), Vec::new(), 0);
            for to in at {
                events.extend(read(&mut decoder, &wire[from..to]));
                decoder = over_the_wire(&decoder);
                from = to;
            }
            prop_assert_eq!(events, expected);
            prop_assert_eq!(decoder.carried(), whole.carried());
        }
    }
}
