//! A decoder on its way to another process.

use super::{Decoder, LENGTH_BYTES_MAX, Partial};
use crate::handover::state::{BadState, TcpDecoder};

impl Decoder {
    /// All that it holds, between two receives.
    pub fn carried(&self) -> TcpDecoder {
        let mut carried = TcpDecoder {
            ended: self.ended,
            ..TcpDecoder::default()
        };
        // What was handed on is over.
        if let Some(partial) = self.partial.as_ref().filter(|partial| !partial.handed_on) {
            partial.head[..usize::from(partial.head_len)].clone_into(&mut carried.head);
            carried.missing = partial.missing.map(|missing| missing as u64);
            carried.data.clone_from(&partial.data);
        }
        carried
    }

    /// Goes on where the other one stood.
    pub fn resumed(carried: TcpDecoder) -> Result<Self, BadState> {
        let mut decoder = Self {
            ended: carried.ended,
            ..Self::default()
        };
        if carried.head.len() >= LENGTH_BYTES_MAX {
            return Err(BadState("a frame length that is too long"));
        }
        if carried.head.is_empty() && carried.missing.is_none() && carried.data.is_empty() {
            return Ok(decoder);
        }
        let mut partial = Box::<Partial>::default();
        partial.head[..carried.head.len()].copy_from_slice(&carried.head);
        partial.head_len = carried.head.len() as u8;
        let missing = carried.missing.map(usize::try_from).transpose();
        partial.missing = missing.map_err(|_| BadState("a frame that is too long"))?;
        partial.data = carried.data;
        decoder.partial = Some(partial);
        Ok(decoder)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::frame::Input;
    use crate::frame::tcp::{TcpError, write_frame};

    fn read(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Result<Vec<u8>, TcpError>> {
        let mut bytes = bytes.to_vec();
        let mut input = Input::new(&mut bytes);
        let mut frames = Vec::new();
        loop {
            match decoder.next_frame(&mut input, 1_000) {
                Ok(Some(frame)) => frames.push(Ok(frame.to_vec())),
                Ok(None) => return frames,
                Err(error) => frames.push(Err(error)),
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let carried = TcpDecoder {
            head: vec![0x80; LENGTH_BYTES_MAX],
            ..TcpDecoder::default()
        };
        assert!(Decoder::resumed(carried).is_err());
    }

    proptest! {
        /// Wherever the stream is cut, the successor reads on as one decoder would have.
        #[test]
        fn reading_goes_on_wherever_it_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..6),
            too_long in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        ) {
            let mut wire = Vec::new();
            for frame in &frames {
                write_frame(&mut wire, frame);
            }
            if too_long {
                write_frame(&mut wire, &[7; 1_001]);
            }
            let mut whole = Decoder::default();
            let expected = read(&mut whole, &wire);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            at.sort_unstable();
            at.push(wire.len());
            let (mut decoder, mut found, mut from) = (Decoder::default(), Vec::new(), 0);
            for to in at {
                found.extend(read(&mut decoder, &wire[from..to]));
                let bytes = decoder.carried().encode_to_vec();
                decoder = Decoder::resumed(TcpDecoder::decode(&bytes[..]).unwrap()).unwrap();
                from = to;
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(decoder.carried(), whole.carried());
        }
    }
}
