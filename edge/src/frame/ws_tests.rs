//! Goal: whatever a client may send is read the same however the network cuts it, and whatever it
//! may not send fails with the right close, at the earliest byte, for little memory.

use proptest::prelude::*;

use super::super::testing::{Seen, client_frame, feed, feed_in_pieces, masked};
use super::*;

const MAX: usize = 65_536;

fn text(s: &str) -> Seen {
    Seen::Text(s.as_bytes().to_vec())
}

fn protocol_error(seen: &[Seen]) -> bool {
    matches!(seen.last(), Some(Seen::Failed(WsError::Protocol(_))))
}

/// A conversation with everything in it, and what it says.
fn conversation() -> (Vec<u8>, Vec<Seen>) {
    let long = "ünïcödé ".repeat(40);
    let stream = [
        masked(0x81, b"hello"),
        masked(0x82, &[0, 255, 7]),
        masked(0x81, b""),
        masked(0x01, "é€".as_bytes().split_at(3).0),
        masked(0x89, b"are you there"),
        masked(0x00, "é€".as_bytes().split_at(3).1),
        masked(0x8a, b""),
        masked(0x80, "😀".as_bytes()),
        masked(0x81, long.as_bytes()),
        masked(0x02, b""),
        masked(0x80, b""),
        masked(0x88, b"\x0f\xa0bye"),
    ]
    .concat();
    let seen = vec![
        text("hello"),
        Seen::Binary(vec![0, 255, 7]),
        text(""),
        Seen::Ping(b"are you there".to_vec()),
        Seen::Pong(Vec::new()),
        text("é€😀"),
        text(&long),
        Seen::Binary(Vec::new()),
        Seen::Close(Some(4000), "bye".into()),
    ];
    (stream, seen)
}

#[test]
fn a_conversation_reads_the_same_cut_in_two_anywhere() {
    let (stream, expected) = conversation();
    for cut in 0..=stream.len() {
        let mut decoder = Decoder::new(None);
        let mut seen = feed(&mut decoder, &stream[..cut], MAX);
        seen.extend(feed(&mut decoder, &stream[cut..], MAX));
        assert_eq!(seen, expected, "cut at {cut}");
        assert!(decoder.is_ended());
    }
}

#[test]
fn a_conversation_reads_the_same_in_receives_of_every_size() {
    let (stream, expected) = conversation();
    for size in 1..=stream.len() {
        let mut decoder = Decoder::new(None);
        let seen = feed_in_pieces(&mut decoder, &stream, &[size], MAX);
        assert_eq!(seen, expected, "{size} bytes each");
    }
}

#[test]
fn a_whole_message_is_a_slice_of_the_receive_buffer() {
    let mut data = masked(0x82, &[1; 1000]);
    let range = data.as_ptr_range();
    let mut decoder = Decoder::new(None);
    let mut input = Input::new(&mut data);
    match decoder.next_event(&mut input, MAX) {
        Ok(Some(WsEvent::Binary(payload))) => {
            assert_eq!(payload, [1; 1000]);
            assert!(range.contains(&payload.as_ptr()));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(decoder.kept_bytes(), 0);
}

#[test]
fn nothing_is_kept_between_messages() {
    let (stream, _) = conversation();
    let whole_frames = &stream[..stream.len() - masked(0x88, b"\x0f\xa0bye").len()];
    let mut decoder = Decoder::new(None);
    feed_in_pieces(&mut decoder, whole_frames, &[3], MAX);
    assert_eq!(decoder.kept_bytes(), 0);
    feed(&mut decoder, &masked(0x01, b"part"), MAX);
    assert!(decoder.kept_bytes() > 0);
    feed(&mut decoder, &masked(0x80, b"ed"), MAX);
    assert_eq!(decoder.kept_bytes(), 0);
}

#[test]
fn messages_of_every_length_class_arrive() {
    for len in [0, 1, 125, 126, 127, 128, 65_535, 65_536] {
        let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let stream = masked(0x82, &payload);
        for size in [stream.len(), 2048, 1000] {
            let seen = feed_in_pieces(&mut Decoder::new(None), &stream, &[size], MAX);
            assert_eq!(
                seen,
                [Seen::Binary(payload.clone())],
                "{len} bytes by {size}"
            );
        }
    }
}

#[test]
fn forbidden_headers_are_protocol_errors() {
    let long = |first: u8, second: u8, tail: &[u8]| [&[first, second][..], tail, &[0; 4]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("RSV1", masked(0xc1, b"x")),
        ("RSV2", masked(0xa1, b"x")),
        ("RSV3", masked(0x91, b"x")),
        ("RSV1 on a ping", masked(0xc9, b"x")),
        ("not masked", vec![0x81, 1, b'x']),
        ("opcode 3", masked(0x83, b"")),
        ("opcode 7", masked(0x87, b"")),
        ("opcode 11", masked(0x8b, b"")),
        ("opcode 15", masked(0x8f, b"")),
        ("ping in fragments", masked(0x09, b"x")),
        ("close in fragments", masked(0x08, b"")),
        ("ping of 126", masked(0x89, &[0; 126])),
        ("continuation of nothing", masked(0x80, b"x")),
        ("fragment of nothing", masked(0x00, b"x")),
        ("16 bits for 125", long(0x82, 0xfe, &[0, 125])),
        (
            "64 bits for 65,535",
            long(0x82, 0xff, &[0, 0, 0, 0, 0, 0, 0xff, 0xff]),
        ),
        ("64 bits", long(0x82, 0xff, &[0x80, 0, 0, 0, 0, 0, 0, 0])),
        ("close of one byte", masked(0x88, &[3])),
    ];
    for (what, stream) in cases {
        for size in [1, 2, stream.len()] {
            let mut decoder = Decoder::new(None);
            let seen = feed_in_pieces(&mut decoder, &stream, &[size], MAX);
            assert!(protocol_error(&seen), "{what}: {seen:?}");
            assert_eq!(
                feed(&mut decoder, &masked(0x81, b"more"), MAX),
                [],
                "{what}"
            );
        }
    }
}

#[test]
fn a_new_message_may_not_begin_within_another() {
    for second in [0x81, 0x82, 0x01] {
        let stream = [masked(0x01, b"a"), masked(second, b"b")].concat();
        let seen = feed(&mut Decoder::new(None), &stream, MAX);
        assert!(protocol_error(&seen), "{second:x}");
    }
    let stream = [masked(0x01, b"a"), masked(0x80, b"b"), masked(0x80, b"c")].concat();
    let seen = feed(&mut Decoder::new(None), &stream, MAX);
    assert_eq!(seen[0], text("ab"));
    assert!(protocol_error(&seen));
}

#[test]
fn close_codes_are_checked() {
    for code in 0..=u16::MAX {
        let frame = masked(0x88, &code.to_be_bytes());
        let seen = feed(&mut Decoder::new(None), &frame, MAX);
        let may_be_sent = match code {
            1004..=1006 => false,
            1000..=1011 | 3000..=4999 => true,
            _ => false,
        };
        if may_be_sent {
            assert_eq!(seen, [Seen::Close(Some(code), String::new())]);
        } else {
            assert!(protocol_error(&seen), "{code}");
        }
    }
    let seen = feed(&mut Decoder::new(None), &masked(0x88, b""), MAX);
    assert_eq!(seen, [Seen::Close(None, String::new())]);
    let seen = feed(&mut Decoder::new(None), &masked(0x88, b"\x03\xe8\xff"), MAX);
    assert_eq!(seen, [Seen::Failed(WsError::BadUtf8)]);
}

#[test]
fn nothing_is_read_after_a_close() {
    let stream = [
        masked(0x88, b"\x03\xe8"),
        masked(0x81, b"late"),
        vec![0xff; 9],
    ]
    .concat();
    for size in [1, 7, stream.len()] {
        let seen = feed_in_pieces(&mut Decoder::new(None), &stream, &[size], MAX);
        assert_eq!(seen, [Seen::Close(Some(1000), String::new())]);
    }
}

#[test]
fn bad_text_fails_at_the_first_hopeless_byte() {
    let mut decoder = Decoder::new(None);
    assert_eq!(feed(&mut decoder, &masked(0x01, b"fine \xf4"), MAX), []);
    assert_eq!(feed(&mut decoder, &masked(0x89, b"p"), MAX).len(), 1);
    // The second fragment declares five bytes; its first one is enough.
    let second = masked(0x80, b"\x90\x80\x80 and");
    assert_eq!(
        feed(&mut decoder, &second[..7], MAX),
        [Seen::Failed(WsError::BadUtf8)]
    );
    let within_one_frame = masked(0x81, b"ab\xc0cdefgh");
    let seen = feed(&mut Decoder::new(None), &within_one_frame[..9], MAX);
    assert_eq!(seen, [Seen::Failed(WsError::BadUtf8)]);
    let whole = feed(&mut Decoder::new(None), &within_one_frame, MAX);
    assert_eq!(whole, [Seen::Failed(WsError::BadUtf8)]);
}

#[test]
fn text_may_not_end_within_a_code_point() {
    let euro = "€".as_bytes();
    for cut in 1..3 {
        let whole = masked(0x81, &euro[..cut]);
        let fragments = [masked(0x01, &euro[..cut]), masked(0x80, b"")].concat();
        for stream in [whole, fragments] {
            for size in [1, stream.len()] {
                let seen = feed_in_pieces(&mut Decoder::new(None), &stream, &[size], MAX);
                assert_eq!(seen, [Seen::Failed(WsError::BadUtf8)]);
            }
        }
        let binary = feed(&mut Decoder::new(None), &masked(0x82, &euro[..cut]), MAX);
        assert_eq!(binary, [Seen::Binary(euro[..cut].to_vec())]);
    }
}

#[test]
fn a_message_over_the_limit_fails_when_its_length_is_known() {
    let header = &masked(0x82, &[0; 1001])[..8];
    let seen = feed(&mut Decoder::new(None), header, 1000);
    assert_eq!(seen, [Seen::Failed(WsError::TooBig)]);

    let mut decoder = Decoder::new(None);
    assert_eq!(feed(&mut decoder, &masked(0x02, &[0; 600]), 1000), []);
    let header = &masked(0x80, &[0; 401])[..8];
    assert_eq!(
        feed(&mut decoder, header, 1000),
        [Seen::Failed(WsError::TooBig)]
    );
    assert_eq!(decoder.kept_bytes(), 0);

    let fits = [masked(0x02, &[0; 600]), masked(0x80, &[0; 400])].concat();
    let seen = feed(&mut Decoder::new(None), &fits, 1000);
    assert_eq!(seen, [Seen::Binary(vec![0; 1000])]);

    let huge = [&[0x82, 0xff, 0x7f][..], &[0xff; 7], &[0; 4]].concat();
    let seen = feed(&mut Decoder::new(None), &huge, usize::MAX);
    assert_eq!(seen, [], "within a limit like that it is only incomplete");
}

#[test]
fn memory_grows_with_what_came_and_not_with_what_was_declared() {
    let max = 1 << 40;
    let header = [&[0x82, 0xff][..], &(max as u64).to_be_bytes(), &[0; 4]].concat();
    let mut decoder = Decoder::new(None);
    assert_eq!(feed(&mut decoder, &header, max), []);
    assert_eq!(decoder.kept_bytes(), size_of::<Partial>());
    for received in 1..=64usize {
        feed(&mut decoder, &[7; 1024], max);
        let kept = decoder.kept_bytes() - size_of::<Partial>();
        assert!(kept <= received * 2048, "{kept} kept of {received} KiB");
    }
}

#[derive(Clone, Debug)]
enum Said {
    Message(bool, Vec<Vec<u8>>),
    Control(u8, Vec<u8>),
}

fn said() -> impl Strategy<Value = Said> {
    let fragments = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..5);
    let words = prop::collection::vec("\\PC{0,60}".prop_map(String::into_bytes), 1..5);
    prop_oneof![
        fragments.prop_map(|f| Said::Message(false, f)),
        words.prop_map(|w| Said::Message(true, w)),
        (
            prop_oneof![Just(0x89u8), Just(0x8a)],
            prop::collection::vec(any::<u8>(), 0..126)
        )
            .prop_map(|(first, payload)| Said::Control(first, payload)),
    ]
}

/// The frames of what was said, pings strewn between fragments, and what is to be seen of them.
fn frames(all: &[Said], key: [u8; 4]) -> (Vec<u8>, Vec<Seen>) {
    let (mut stream, mut seen) = (Vec::new(), Vec::new());
    for said in all {
        match said {
            Said::Control(first, payload) => {
                stream.extend(client_frame(*first, payload, key));
                seen.push(match first {
                    0x89 => Seen::Ping(payload.clone()),
                    _ => Seen::Pong(payload.clone()),
                });
            }
            Said::Message(is_text, fragments) => {
                for (i, fragment) in fragments.iter().enumerate() {
                    let opcode = match (i, is_text) {
                        (0, true) => 1,
                        (0, false) => 2,
                        _ => 0,
                    };
                    let last = i + 1 == fragments.len();
                    let first = opcode | if last { 0x80 } else { 0 };
                    stream.extend(client_frame(first, fragment, key));
                    if !last {
                        stream.extend(client_frame(0x89, &[i as u8], key));
                        seen.push(Seen::Ping(vec![i as u8]));
                    }
                }
                seen.push(match is_text {
                    true => Seen::Text(fragments.concat()),
                    false => Seen::Binary(fragments.concat()),
                });
            }
        }
    }
    (stream, seen)
}

proptest! {
    #[test]
    fn what_was_said_is_seen_however_it_is_cut(
        all in prop::collection::vec(said(), 0..8),
        key in any::<[u8; 4]>(),
        sizes in prop::collection::vec(1usize..700, 1..20),
    ) {
        let (stream, expected) = frames(&all, key);
        let mut decoder = Decoder::new(None);
        let seen = feed_in_pieces(&mut decoder, &stream, &sizes, MAX);
        prop_assert_eq!(seen, expected);
        prop_assert!(!decoder.is_ended());
        // What was handed on last is freed on the next call.
        feed(&mut decoder, &[], MAX);
        prop_assert_eq!(decoder.kept_bytes(), 0);
    }

    #[test]
    fn noise_never_panics_and_never_outgrows_the_limit(
        noise in prop::collection::vec(any::<u8>(), 0..2000),
        sizes in prop::collection::vec(1usize..100, 1..8),
    ) {
        let mut decoder = Decoder::new(None);
        feed_in_pieces(&mut decoder, &noise, &sizes, 500);
        prop_assert!(decoder.kept_bytes() <= size_of::<Partial>() + 2 * 500 + CONTROL_BYTES_MAX * 2);
    }
}
