//! The XOR mask of client frames, removed in place in blocks that the compiler turns into vector
//! code. Called by [`super::ws`] for every payload byte that comes in.

/// Bytes per step: two AVX2 registers; a multiple of the key's length.
const BLOCK: usize = 64;

/// Unmasks `data`, whose first byte is the frame's payload byte number `offset`.
pub fn unmask(data: &mut [u8], key: [u8; 4], offset: u64) {
    let mut key = key;
    key.rotate_left((offset % 4) as usize);
    if key == [0; 4] {
        return;
    }
    let half = u64::from(u32::from_ne_bytes(key));
    let word = half << 32 | half;
    let (blocks, rest) = data.as_chunks_mut::<BLOCK>();
    for block in blocks {
        for lane in block.as_chunks_mut::<8>().0 {
            *lane = (u64::from_ne_bytes(*lane) ^ word).to_ne_bytes();
        }
    }
    let (words, rest) = rest.as_chunks_mut::<8>();
    for lane in words {
        *lane = (u64::from_ne_bytes(*lane) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_the_book(data: &mut [u8], key: [u8; 4], offset: u64) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte ^= key[((offset + i as u64) % 4) as usize];
        }
    }

    #[test]
    fn every_length_and_offset_matches_the_definition() {
        for len in 0..200 {
            for offset in 0..5 {
                let mut data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
                let mut expected = data.clone();
                by_the_book(&mut expected, [1, 2, 3, 250], offset);
                unmask(&mut data, [1, 2, 3, 250], offset);
                assert_eq!(data, expected, "len {len} offset {offset}");
            }
        }
    }

    proptest! {
        #[test]
        fn unmasking_in_pieces_equals_unmasking_at_once(
            data in prop::collection::vec(any::<u8>(), 0..600),
            key in any::<[u8; 4]>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(data.len() + 1);
            let mut whole = data.clone();
            unmask(&mut whole, key, 0);
            let mut pieces = data;
            let (a, b) = pieces.split_at_mut(cut);
            unmask(a, key, 0);
            unmask(b, key, cut as u64);
            prop_assert_eq!(pieces, whole);
        }
    }
}
