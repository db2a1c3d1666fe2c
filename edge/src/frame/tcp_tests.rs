//! Goal: delimited frames are read the same however they are cut, and a bad length fails before it
//! costs anything.

use proptest::prelude::*;
use prost::Message;
use trunkline_proto::client::{ClientBody, ClientFrame, Ping};

use super::*;

type Seen = Vec<Result<Vec<u8>, TcpError>>;

fn feed(decoder: &mut Decoder, data: &[u8], bytes_max: usize) -> Seen {
    let mut data = data.to_vec();
    let mut input = Input::new(&mut data);
    let mut seen = Vec::new();
    loop {
        match decoder.next_frame(&mut input, bytes_max) {
            Ok(Some(frame)) => seen.push(Ok(frame.to_vec())),
            Ok(None) => break,
            Err(error) => seen.push(Err(error)),
        }
    }
    assert!(input.is_empty());
    seen
}

fn feed_in_pieces(decoder: &mut Decoder, stream: &[u8], size: usize, bytes_max: usize) -> Seen {
    let pieces = stream.chunks(size);
    pieces
        .flat_map(|piece| feed(decoder, piece, bytes_max))
        .collect()
}

/// Frames as another implementation writes them.
fn stream_of(nonces: &[usize]) -> (Vec<u8>, Seen) {
    let (mut stream, mut seen) = (Vec::new(), Vec::new());
    for &len in nonces {
        let frame = ClientFrame {
            id: String::new(),
            frame: Some(ClientBody::Ping(Ping {
                nonce: "n".repeat(len),
            })),
        };
        frame.encode_length_delimited(&mut stream).unwrap();
        seen.push(Ok(frame.encode_to_vec()));
    }
    (stream, seen)
}

#[test]
fn frames_read_the_same_cut_anywhere() {
    let (mut stream, mut expected) = stream_of(&[0, 1, 120, 130, 300]);
    stream.push(0);
    expected.push(Ok(Vec::new()));
    for cut in 0..=stream.len() {
        let mut decoder = Decoder::default();
        let mut seen = feed(&mut decoder, &stream[..cut], 1000);
        seen.extend(feed(&mut decoder, &stream[cut..], 1000));
        assert_eq!(seen, expected, "cut at {cut}");
        assert_eq!(decoder.kept_bytes(), 0);
    }
    for size in 1..stream.len() {
        let seen = feed_in_pieces(&mut Decoder::default(), &stream, size, 1000);
        assert_eq!(seen, expected, "{size} bytes each");
    }
}

#[test]
fn a_whole_frame_is_a_slice_of_the_receive_buffer() {
    let mut data = Vec::new();
    write_frame(&mut data, &[9; 200]);
    let range = data.as_ptr_range();
    let mut decoder = Decoder::default();
    let mut input = Input::new(&mut data);
    let frame = decoder.next_frame(&mut input, 200).unwrap().unwrap();
    assert_eq!(frame, [9; 200]);
    assert!(range.contains(&frame.as_ptr()));
}

#[test]
fn a_length_over_the_limit_fails_at_once() {
    for size in [1, 10] {
        let mut stream = Vec::new();
        write_length(&mut stream, 1001);
        stream.extend([0; 5]);
        let mut decoder = Decoder::default();
        let seen = feed_in_pieces(&mut decoder, &stream, size, 1000);
        assert_eq!(seen, [Err(TcpError::TooBig)]);
        assert_eq!(decoder.kept_bytes(), 0);
        assert_eq!(feed(&mut decoder, &[1, 1], 1000), [], "ended");
    }
    let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let seen = feed(&mut Decoder::default(), &largest, 1000);
    assert_eq!(seen, [Err(TcpError::TooBig)]);
}

#[test]
fn a_length_of_more_than_64_bits_is_a_bad_frame() {
    for tail in [&[2][..], &[0x80], &[0x81, 0], &[0xff]] {
        let stream = [&[0xff; 9][..], tail].concat();
        for size in [1, 4, stream.len()] {
            let seen = feed_in_pieces(&mut Decoder::default(), &stream, size, 1000);
            assert_eq!(seen, [Err(TcpError::BadFrame)], "{tail:?} by {size}");
        }
    }
}

#[test]
fn memory_grows_with_what_came_and_not_with_what_was_declared() {
    let max = 1 << 40;
    let mut length = Vec::new();
    write_length(&mut length, max);
    let mut decoder = Decoder::default();
    assert_eq!(feed(&mut decoder, &length, max), []);
    assert_eq!(decoder.kept_bytes(), size_of::<Partial>());
    for received in 1..=64usize {
        feed(&mut decoder, &[7; 1024], max);
        let kept = decoder.kept_bytes() - size_of::<Partial>();
        assert!(kept <= received * 2048, "{kept} kept of {received} KiB");
    }
}

#[test]
fn lengths_are_written_as_others_read_them() {
    for len in [0, 1, 127, 128, 16_383, 16_384, 65_536, usize::MAX] {
        let mut out = Vec::new();
        write_length(&mut out, len);
        assert_eq!(prost::decode_length_delimiter(&out[..]).unwrap(), len);
        assert_eq!(parse_length(&out), Ok(Some((len as u64, out.len()))));
    }
}

proptest! {
    #[test]
    fn any_frames_in_any_pieces(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..8),
        size in 1usize..900,
    ) {
        let mut stream = Vec::new();
        for frame in &frames {
            write_frame(&mut stream, frame);
        }
        let seen = feed_in_pieces(&mut Decoder::default(), &stream, size, 600);
        let expected: Seen = frames.into_iter().map(Ok).collect();
        prop_assert_eq!(seen, expected);
    }
}
