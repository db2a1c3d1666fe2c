//! UTF-8 checks: whole messages with SIMD, and a checker for text that comes in pieces, which fails
//! at the first byte that no continuation can make good. Called by [`super::ws`].

/// The bytes are not UTF-8, and nothing that could follow would change that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// Whether `bytes` are UTF-8 as a whole.
pub fn is_valid(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

/// Checks text in pieces, wherever they are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Utf8Stream {
    /// The beginning of a code point that the next piece must complete.
    pending: [u8; 4],
    pending_len: u8,
}

impl Utf8Stream {
    /// The beginning of a code point that the next piece must complete.
    pub fn code_point(&self) -> &[u8] {
        &self.pending[..usize::from(self.pending_len)]
    }

    /// A checker within a code point that begins with `bytes`: what [`Utf8Stream::code_point`] says
    /// of another. None if no code point begins so.
    pub fn within(bytes: &[u8]) -> Option<Self> {
        let mut stream = Self::default();
        stream.push(bytes).ok()?;
        (stream.code_point() == bytes).then_some(stream)
    }

    /// Takes the next piece.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), Invalid> {
        while self.pending_len > 0 {
            let Some((&byte, rest)) = piece.split_first() else {
                return Ok(());
            };
            piece = rest;
            self.complete_with(byte)?;
        }
        match simdutf8::compat::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(e) if e.error_len().is_some() => Err(Invalid),
            Err(e) => {
                // A valid beginning of a code point: at most three bytes.
                for &byte in &piece[e.valid_up_to()..] {
                    self.complete_with(byte)?;
                }
                Ok(())
            }
        }
    }

    /// The text ends here: an unfinished code point is an error.
    pub fn finish(self) -> Result<(), Invalid> {
        if self.pending_len == 0 {
            Ok(())
        } else {
            Err(Invalid)
        }
    }

    fn complete_with(&mut self, byte: u8) -> Result<(), Invalid> {
        // No code point has more than four bytes, so the slot below exists: after the fourth byte
        // the answer is either "valid" or "invalid", never "incomplete".
        self.pending[usize::from(self.pending_len)] = byte;
        self.pending_len += 1;
        match std::str::from_utf8(&self.pending[..usize::from(self.pending_len)]) {
            Ok(_) => {
                self.pending_len = 0;
                Ok(())
            }
            Err(e) if e.error_len().is_none() => Ok(()),
            Err(_) => Err(Invalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is wrong, and how many of its bytes can still be the beginning of something valid.
    const BAD: &[(&[u8], usize)] = &[
        (b"\x80", 0),                      // lone continuation
        (b"\xbf\xbf", 0),                  // two of them
        (b"\xc0\xaf", 0),                  // overlong slash
        (b"\xc1\xbf", 0),                  // overlong
        (b"\xe0\x80\xaf", 1),              // overlong in three
        (b"\xe0\x9f\xbf", 1),              // largest overlong in three
        (b"\xf0\x80\x80\xaf", 1),          // overlong in four
        (b"\xf0\x8f\xbf\xbf", 1),          // largest overlong in four
        (b"\xed\xa0\x80", 1),              // first surrogate
        (b"\xed\xbf\xbf", 1),              // last surrogate
        (b"\xf4\x90\x80\x80", 1),          // above U+10FFFF
        (b"\xf5\x80\x80\x80", 0),          // no such lead
        (b"\xf8\x88\x80\x80\x80", 0),      // five bytes
        (b"\xfc\x84\x80\x80\x80\x80", 0),  // six bytes
        (b"\xfe", 0),                      // never in UTF-8
        (b"\xff", 0),                      // never in UTF-8
        (b"\xce\xba\xe1\xbd\xb9\xe1A", 6), // interrupted
        (b"\xe2\x82\x28", 2),              // interrupted at the third
        (b"\xf0\x9f\x98\x28", 3),          // interrupted at the fourth
    ];

    #[test]
    fn bad_text_fails_at_the_first_hopeless_byte() {
        for &(bad, hopeful) in BAD {
            assert!(!is_valid(bad), "{bad:x?}");
            let mut stream = Utf8Stream::default();
            let failed_at = bad.iter().position(|&b| stream.push(&[b]).is_err());
            assert_eq!(failed_at, Some(hopeful), "{bad:x?}");
            assert_eq!(Utf8Stream::default().push(bad), Err(Invalid), "{bad:x?}");
        }
    }

    #[test]
    fn text_may_not_end_within_a_code_point() {
        for whole in ["é", "€", "😀", "\u{10ffff}", "\u{7ff}", "\u{ffff}"] {
            for cut in 1..whole.len() {
                let mut stream = Utf8Stream::default();
                assert_eq!(stream.push(&whole.as_bytes()[..cut]), Ok(()));
                assert_eq!(stream.finish(), Err(Invalid), "{whole} cut at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_give_the_same_answer_as_the_whole(
            mut bytes in "\\PC{0,120}".prop_map(String::into_bytes),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            sizes in prop::collection::vec(1usize..9, 1..40),
        ) {
            if let Some((at, byte)) = damage
                && !bytes.is_empty()
            {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let mut stream = Utf8Stream::default();
            let mut rest = &bytes[..];
            let mut sizes = sizes.iter().cycle();
            let mut good = true;
            while good && !rest.is_empty() {
                let (piece, tail) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                good = stream.push(piece).is_ok();
                rest = tail;
            }
            good = good && stream.finish().is_ok();
            prop_assert_eq!(good, std::str::from_utf8(&bytes).is_ok());
            prop_assert_eq!(good, is_valid(&bytes));
        }
    }
}
