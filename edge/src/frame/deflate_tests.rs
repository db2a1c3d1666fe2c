//! Goal: offers are taken or declined as RFC 7692 says, what is agreed upon is kept to by both
//! streams, and no small frame becomes a large message.

use proptest::prelude::*;

use super::super::encode;
use super::super::testing::{Seen, client_frame, feed, feed_in_pieces};
use super::super::ws::{Decoder, Opcode, WsError};
use super::*;

fn agree(offer: &str) -> Option<Agreed> {
    negotiate([offer], &Policy::default())
}

fn answer(offer: &str) -> String {
    agree(offer).map_or("declined".into(), |agreed| agreed.header_value())
}

#[test]
fn offers_are_answered_by_the_book() {
    for (offer, expected) in [
        ("permessage-deflate", "permessage-deflate"),
        (
            "Permessage-Deflate ;  client_max_window_bits",
            "permessage-deflate",
        ),
        (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        (
            "permessage-deflate; server_max_window_bits=10; client_max_window_bits=\"9\"",
            "permessage-deflate; server_max_window_bits=10; client_max_window_bits=9",
        ),
        (
            "permessage-deflate; server_max_window_bits = 15",
            "permessage-deflate; server_max_window_bits=15",
        ),
        (
            "permessage-deflate; server_max_window_bits=8, permessage-deflate",
            "permessage-deflate",
        ),
        (
            "x-webkit-deflate-frame, permessage-deflate",
            "permessage-deflate",
        ),
        (
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate; client_max_window_bits=8",
        ),
    ] {
        assert_eq!(answer(offer), expected, "{offer}");
    }
}

#[test]
fn malformed_offers_are_declined() {
    for offer in [
        "",
        "permessage-bzip2",
        "permessage-deflate; unknown",
        "permessage-deflate; unknown=1",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; server_max_window_bits=+10",
        "permessage-deflate; server_max_window_bits=\"10",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate;",
    ] {
        assert_eq!(answer(offer), "declined", "{offer}");
    }
}

#[test]
fn the_policy_caps_windows_and_contexts() {
    let policy = Policy {
        server_window_bits_max: 11,
        client_window_bits_max: 10,
        server_no_context_takeover: true,
        ..Policy::default()
    };
    let adaptable = negotiate(["permessage-deflate; client_max_window_bits"], &policy).unwrap();
    assert_eq!(
        adaptable.header_value(),
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=11; \
         client_max_window_bits=10"
    );
    let rigid = negotiate(["permessage-deflate"], &policy).unwrap();
    assert_eq!(rigid.client_window_bits, None, "it may not be told");
}

/// Compressible, but over more than any window.
fn speech(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("word{} ", (state >> 16) % 3000)
    });
    words.flat_map(String::into_bytes).take(len).collect()
}

/// A client's compressor for the agreed parameters.
struct Client {
    stream: Compress,
    fresh: bool,
}

impl Client {
    fn new(agreed: &Agreed) -> Self {
        let bits = agreed.client_window_bits.unwrap_or(15).max(9);
        Self {
            stream: Compress::new_with_window_bits(Compression::new(6), false, bits),
            fresh: agreed.client_no_context_takeover,
        }
    }

    fn compress(&mut self, payload: &[u8]) -> Vec<u8> {
        if payload.is_empty() {
            return vec![0];
        }
        let mut out = Vec::with_capacity(payload.len() * 2 + 100);
        self.stream
            .compress_vec(payload, &mut out, FlushCompress::Sync)
            .unwrap();
        if self.fresh {
            self.stream.reset();
        }
        assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
        out
    }
}

#[test]
fn messages_pass_in_both_directions_under_every_agreement() {
    let mut offers = vec![String::from("permessage-deflate")];
    for bits in 9..=15 {
        for takeover in [
            "",
            "; server_no_context_takeover; client_no_context_takeover",
        ] {
            offers.push(format!(
                "permessage-deflate; server_max_window_bits={bits}; \
                 client_max_window_bits={bits}{takeover}"
            ));
        }
    }
    let long = speech(150_000);
    let messages = [
        &long[..],
        b"",
        &long[..3_000],
        b"x",
        &long[60_000..],
        &long[..3_000],
    ];
    for offer in &offers {
        for level in [1, 3, 6, 9] {
            let mut agreed = agree(offer).unwrap();
            agreed.level = level;
            let mut inflater = agreed.inflater();
            let mut client = Client::new(&agreed);
            let mut deflater = agreed.deflater();
            // Strictly as large as agreed: a distance beyond it would fail.
            let mut peer = Inflater {
                stream: Decompress::new_with_window_bits(false, agreed.server_window_bits),
            };
            for message in messages {
                let mut out = Vec::new();
                inflater
                    .inflate(&client.compress(message), &mut out, 200_000)
                    .unwrap();
                inflater.finish_message(&mut out, 200_000).unwrap();
                assert!(out == message, "{offer} reading");
                out.clear();
                let deflated = deflater.deflate(message).to_vec();
                if agreed.server_no_context_takeover {
                    peer.stream =
                        Decompress::new_with_window_bits(false, agreed.server_window_bits);
                }
                peer.inflate(&deflated, &mut out, 200_000).unwrap();
                peer.finish_message(&mut out, 200_000).unwrap();
                assert!(out == message, "{offer} writing at level {level}");
            }
        }
    }
}

#[test]
fn the_context_is_taken_over_unless_agreed_otherwise() {
    let line = &speech(2_000)[..];
    let mut with = agree("permessage-deflate").unwrap().deflater();
    let (first, second) = (with.deflate(line).len(), with.deflate(line).len());
    assert!(second * 4 < first, "{first} then {second}");
    let offer = "permessage-deflate; server_no_context_takeover";
    let mut without = agree(offer).unwrap().deflater();
    let first = without.deflate(line).to_vec();
    assert_eq!(without.deflate(line), first);
}

#[test]
fn compressed_fragments_with_pings_between_them_are_one_message() {
    let agreed = agree("permessage-deflate").unwrap();
    let message = speech(5_000);
    let compressed = Client::new(&agreed).compress(&message);
    for cut in 0..=compressed.len() {
        let stream = [
            client_frame(0x41, &compressed[..cut], [9, 8, 7, 6]),
            client_frame(0x89, b"?", [1, 2, 3, 4]),
            client_frame(0x80, &compressed[cut..], [0; 4]),
        ]
        .concat();
        let mut decoder = Decoder::new(Some(agreed.inflater()));
        let seen = feed_in_pieces(&mut decoder, &stream, &[977], 10_000);
        assert!(
            seen == [Seen::Ping(b"?".to_vec()), Seen::Text(message.clone())],
            "cut at {cut}"
        );
    }
    let mut decoder = Decoder::new(Some(agreed.inflater()));
    let plain = client_frame(0x81, b"not compressed", [1; 4]);
    let seen = feed(&mut decoder, &plain, 100);
    assert_eq!(seen, [Seen::Text(b"not compressed".to_vec())]);
}

#[test]
fn rsv1_belongs_to_the_first_frame_of_a_message() {
    let agreed = agree("permessage-deflate").unwrap();
    let compressed = Client::new(&agreed).compress(b"message");
    for stream in [
        [
            client_frame(0x41, &compressed[..2], [0; 4]),
            client_frame(0xc0, &compressed[2..], [0; 4]),
        ]
        .concat(),
        client_frame(0xc9, b"ping", [0; 4]),
    ] {
        let mut decoder = Decoder::new(Some(agreed.inflater()));
        let seen = feed(&mut decoder, &stream, 1000);
        assert!(
            matches!(seen[..], [Seen::Failed(WsError::Protocol(_))]),
            "{seen:?}"
        );
    }
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let agreed = agree("permessage-deflate").unwrap();
    let bomb = Client::new(&agreed).compress(&vec![b'a'; 8 << 20]);
    assert!(bomb.len() < 10_000);
    let mut out = Vec::new();
    let result = agreed.inflater().inflate(&bomb, &mut out, 50_000);
    assert_eq!(result, Err(InflateError::TooBig));
    assert!(out.capacity() < 52_000, "{}", out.capacity());

    let mut decoder = Decoder::new(Some(agreed.inflater()));
    let seen = feed(&mut decoder, &client_frame(0xc1, &bomb, [1; 4]), 50_000);
    assert_eq!(seen, [Seen::Failed(WsError::TooBig)]);
    assert_eq!(decoder.kept_bytes(), 0);
}

#[test]
fn a_message_as_long_as_the_limit_passes_and_one_byte_more_does_not() {
    let agreed = agree("permessage-deflate").unwrap();
    for len in [1, 511, 512, 513, 4_096, 65_536] {
        let message = speech(len);
        let frame = client_frame(0xc2, &Client::new(&agreed).compress(&message), [1; 4]);
        let mut decoder = Decoder::new(Some(agreed.inflater()));
        let seen = feed(&mut decoder, &frame, len);
        assert!(seen == [Seen::Binary(message)], "{len}");
        let mut decoder = Decoder::new(Some(agreed.inflater()));
        let seen = feed(&mut decoder, &frame, len - 1);
        assert_eq!(seen, [Seen::Failed(WsError::TooBig)], "{len}");
    }
}

#[test]
fn corrupt_streams_and_bad_text_fail() {
    let agreed = agree("permessage-deflate").unwrap();
    let mut decoder = Decoder::new(Some(agreed.inflater()));
    let seen = feed(&mut decoder, &client_frame(0xc1, &[0xff; 20], [1; 4]), 1000);
    assert!(
        matches!(seen[..], [Seen::Failed(WsError::Protocol(_))]),
        "{seen:?}"
    );

    let compressed = Client::new(&agreed).compress(b"bad \xc0\xaf text");
    let mut decoder = Decoder::new(Some(agreed.inflater()));
    let seen = feed(&mut decoder, &client_frame(0xc1, &compressed, [1; 4]), 1000);
    assert_eq!(seen, [Seen::Failed(WsError::BadUtf8)]);
}

#[test]
fn a_final_block_ends_the_stream_and_not_the_connection() {
    let agreed = agree("permessage-deflate").unwrap();
    let mut finished = Vec::with_capacity(1000);
    Compress::new(Compression::new(6), false)
        .compress_vec(b"final", &mut finished, FlushCompress::Finish)
        .unwrap();
    // RFC 7692, 7.2.3.4: a final block is followed by an empty one, whose tail is taken off.
    finished.push(0);
    let frame = client_frame(0xc1, &finished, [5; 4]);
    let mut decoder = Decoder::new(Some(agreed.inflater()));
    for _ in 0..3 {
        let seen = feed(&mut decoder, &frame, 1000);
        assert_eq!(seen, [Seen::Text(b"final".to_vec())]);
    }
}

#[test]
fn a_compressed_frame_is_flagged_and_measured() {
    let agreed = agree("permessage-deflate").unwrap();
    let mut out = Vec::new();
    encode::compressed(
        &mut out,
        Opcode::Text,
        b"hello hello hello",
        &mut agreed.deflater(),
    );
    assert_eq!(out[0], 0xc1);
    assert_eq!(usize::from(out[1]), out.len() - 2);
    let mut text = Vec::new();
    let mut inflater = agreed.inflater();
    inflater.inflate(&out[2..], &mut text, 100).unwrap();
    inflater.finish_message(&mut text, 100).unwrap();
    assert_eq!(text, b"hello hello hello");
}

proptest! {
    #[test]
    fn random_messages_survive_random_cuts(
        messages in prop::collection::vec(prop::collection::vec(0u8..20, 0..3000), 1..5),
        sizes in prop::collection::vec(1usize..500, 1..10),
        bits in 9u8..=15,
    ) {
        let offer = format!("permessage-deflate; client_max_window_bits={bits}");
        let agreed = agree(&offer).unwrap();
        let mut client = Client::new(&agreed);
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|m| client_frame(0xc2, &client.compress(m), [3, 1, 4, 1]))
            .collect();
        let mut decoder = Decoder::new(Some(agreed.inflater()));
        let seen = feed_in_pieces(&mut decoder, &stream, &sizes, 3000);
        let expected: Vec<Seen> = messages.into_iter().map(Seen::Binary).collect();
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let agreed = agree("permessage-deflate").unwrap();
        let mut out = Vec::new();
        if agreed.inflater().inflate(&noise, &mut out, 10_000).is_ok() {
            prop_assert!(out.len() <= 10_000);
        }
    }
}
