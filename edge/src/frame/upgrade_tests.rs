//! Goal: a request to upgrade is understood however it comes in, and everything else gets the status
//! and the sentence that it deserves.

use super::super::deflate::{Policy, negotiate};
use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn request_text(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

fn accepted(text: &str) -> (usize, Request<'_>) {
    match parse(text.as_bytes(), Paths::Connect) {
        Upgrade::Request { consumed, request } => (consumed, request),
        other => panic!("{text}: {other:?}"),
    }
}

fn rejected(text: &[u8]) -> Rejection {
    match parse(text, Paths::Connect) {
        Upgrade::Reject(rejection) => rejection,
        other => panic!("{}: {other:?}", text.escape_ascii()),
    }
}

fn status_of(text: &str) -> u16 {
    rejected(text.as_bytes()).status.code()
}

#[test]
fn a_full_request_is_understood() {
    let text = request_text(
        "/v1/connect?x=1&access_token=a.b%2Dc&device_id=web%3A1",
        "authorization: bearer tok.en\r\nOrigin: https://chat.example\r\n\
         Sec-WebSocket-Protocol: trunkline.proto.v1, trunkline.json.v1\r\n\
         Sec-WebSocket-Extensions: x-one, permessage-deflate; client_max_window_bits\r\n\
         Sec-WebSocket-Extensions: x-two\r\n",
    );
    let (consumed, request) = accepted(&text);
    assert_eq!(consumed, text.len());
    assert_eq!(request.path, "/v1/connect");
    assert_eq!(request.access_token.as_deref(), Some("a.b-c"));
    assert_eq!(request.device_id.as_deref(), Some("web:1"));
    assert_eq!(request.bearer, Some("tok.en"));
    assert_eq!(request.origin, Some("https://chat.example"));
    assert_eq!(request.key, KEY);
    assert_eq!(
        request.protocols[..],
        ["trunkline.proto.v1", "trunkline.json.v1"]
    );
    assert_eq!(request.extensions.len(), 2);
    assert!(negotiate(request.extensions, &Policy::default()).is_some());
}

#[test]
fn every_beginning_is_partial_and_what_follows_is_left_alone() {
    let text = request_text("/v1/connect", "");
    for len in 0..text.len() {
        let parsed = parse(&text.as_bytes()[..len], Paths::Connect);
        assert!(
            matches!(parsed, Upgrade::Partial),
            "{len} bytes: {parsed:?}"
        );
    }
    let pipelined = format!("{text}\u{81}\u{0}frames");
    assert_eq!(accepted(&pipelined).0, text.len());
}

#[test]
fn spelling_that_http_allows_is_accepted() {
    let text = format!(
        "GET /v1/connect HTTP/1.1\r\nhost:x\r\nUPGRADE: h2c, WebSocket\r\n\
         connection:  keep-alive , upgrade \r\nsec-websocket-key:{KEY}\r\n\
         SEC-WEBSOCKET-VERSION: 13 \r\nContent-Length: 0\r\n\r\n"
    );
    assert_eq!(accepted(&text).1.key, KEY);
    let proxied = request_text("http://chat.example:7400/v1/connect?device_id=a", "");
    let (_, request) = accepted(&proxied);
    assert_eq!(request.path, "/v1/connect");
    assert_eq!(request.device_id.as_deref(), Some("a"));
}

#[test]
fn other_authorizations_are_no_tokens() {
    let cases = [
        ("Basic YTpi", None),
        ("Bearer", Some("")),
        ("Bearer  x ", Some("x")),
    ];
    for (value, expected) in cases {
        let text = request_text("/v1/connect", &format!("Authorization: {value}\r\n"));
        assert_eq!(accepted(&text).1.bearer, expected, "{value}");
    }
}

#[test]
fn what_is_no_upgrade_is_told_so() {
    let ok = request_text("/v1/connect", "");
    for (what, text, status) in [
        ("another path", request_text("/", ""), 404),
        ("a longer path", request_text("/v1/connect/x", ""), 404),
        (
            "favicon",
            "GET /favicon.ico HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            404,
        ),
        ("POST", ok.replace("GET", "POST"), 405),
        ("HEAD", ok.replace("GET", "HEAD"), 405),
        (
            "plain GET",
            "GET /v1/connect HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            426,
        ),
        (
            "no Upgrade",
            ok.replace("Upgrade: websocket", "Upgrade: h2c"),
            426,
        ),
        (
            "no Connection",
            ok.replace("Connection: Upgrade", "Connection: close"),
            426,
        ),
        ("version 8", ok.replace("Version: 13", "Version: 8"), 426),
        (
            "no version",
            ok.replace("Sec-WebSocket-Version: 13\r\n", ""),
            426,
        ),
        ("HTTP/1.0", ok.replace("HTTP/1.1", "HTTP/1.0"), 400),
        ("no Host", ok.replace("Host: example\r\n", ""), 400),
        ("no key", ok.replace("Sec-WebSocket-Key", "X-Key"), 400),
        ("short key", ok.replace(KEY, "dGhlIHNhbXBsZQ=="), 400),
        ("long key", ok.replace(KEY, "dGhlIHNhbXBsZSBub25jZSA="), 400),
        (
            "no base64",
            ok.replace(KEY, "dGhlIHNhbXBsZSBub25jZ!=="),
            400,
        ),
        (
            "two keys",
            request_text("/v1/connect", "Sec-WebSocket-Key: x\r\n"),
            400,
        ),
        (
            "a body",
            request_text("/v1/connect", "Content-Length: 5\r\n"),
            400,
        ),
        (
            "chunks",
            request_text("/v1/connect", "Transfer-Encoding: chunked\r\n"),
            400,
        ),
        (
            "bad escape",
            request_text("/v1/connect?access_token=%zz", ""),
            400,
        ),
        (
            "cut escape",
            request_text("/v1/connect?access_token=%4", ""),
            400,
        ),
        (
            "no UTF-8",
            request_text("/v1/connect?device_id=%ff", ""),
            400,
        ),
        (
            "twice",
            request_text("/v1/connect?device_id=a&device_id=b", ""),
            400,
        ),
        ("garbage", "\u{1}\u{2}\u{3}\r\n\r\n".into(), 400),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400),
    ] {
        assert_eq!(status_of(&text), status, "{what}");
    }
    assert!(rejected(&[0x16, 3, 1, 2, 0]).reason.contains("TLS"));
}

#[test]
fn heads_are_bounded() {
    let long = request_text(
        "/v1/connect",
        &format!("X: {}\r\n", "x".repeat(HEAD_BYTES_MAX)),
    );
    assert_eq!(status_of(&long), 431);
    assert_eq!(status_of(&long[..HEAD_BYTES_MAX]), 431);
    let parsed = parse(&long.as_bytes()[..HEAD_BYTES_MAX - 1], Paths::Connect);
    assert!(matches!(parsed, Upgrade::Partial));
    let many = request_text("/v1/connect", &"X: y\r\n".repeat(HEADERS_MAX));
    assert_eq!(status_of(&many), 431);
}

#[test]
fn an_echo_server_takes_every_path() {
    let text = request_text("/anything?x", "");
    let parsed = parse(text.as_bytes(), Paths::Any);
    assert!(matches!(parsed, Upgrade::Request { .. }), "{parsed:?}");
}

#[test]
fn the_first_known_subprotocol_is_chosen() {
    for (offered, encoding, name) in [
        (&[][..], Encoding::JsonWs, None),
        (
            &["trunkline.json.v1"],
            Encoding::JsonWs,
            Some("trunkline.json.v1"),
        ),
        (
            &["x", "trunkline.proto.v1"],
            Encoding::ProtoWs,
            Some("trunkline.proto.v1"),
        ),
        (
            &["trunkline.proto.v1", "trunkline.json.v1"],
            Encoding::ProtoWs,
            Some("trunkline.proto.v1"),
        ),
    ] {
        assert_eq!(
            choose_subprotocol(offered),
            Ok(Subprotocol { encoding, name })
        );
    }
    let none_known = choose_subprotocol(&["mqtt", "TRUNKLINE.json.v1"]).unwrap_err();
    assert_eq!(none_known.status, Status::BadRequest);
    assert!(none_known.reason.contains("trunkline.json.v1"));
}

#[test]
fn the_accept_matches_the_sample_of_the_rfc() {
    let mut out = Vec::new();
    write_accept(&mut out, KEY, None, None);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    let mut out = Vec::new();
    let agreed = negotiate(["permessage-deflate"], &Policy::default());
    write_accept(&mut out, KEY, Some("trunkline.json.v1"), agreed.as_ref());
    let text = String::from_utf8(out).unwrap();
    assert!(text.ends_with(
        "\r\nSec-WebSocket-Protocol: trunkline.json.v1\r\n\
         Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    ));
}

#[test]
fn rejections_say_how_long_they_are_and_that_they_close() {
    for (status, code, line) in [
        (Status::BadRequest, 400, ""),
        (Status::Unauthorized, 401, "WWW-Authenticate: Bearer\r\n"),
        (Status::Forbidden, 403, ""),
        (Status::NotFound, 404, ""),
        (Status::MethodNotAllowed, 405, "Allow: GET\r\n"),
        (
            Status::UpgradeRequired,
            426,
            "Sec-WebSocket-Version: 13\r\n",
        ),
        (Status::TooManyRequests, 429, "Retry-After: 7\r\n"),
        (Status::HeadTooLarge, 431, ""),
        (Status::ServiceUnavailable, 503, "Retry-After: 7\r\n"),
    ] {
        let mut rejection = Rejection::new(status, "Because.");
        if line.starts_with("Retry-After") {
            rejection = rejection.retry_after(7);
        }
        let mut out = Vec::new();
        write_rejection(&mut out, &rejection);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {code} ")), "{text}");
        assert!(text.contains("\r\nContent-Length: 9\r\n"), "{text}");
        let connection = match code {
            426 => "close, Upgrade",
            _ => "close",
        };
        let connection = format!("\r\nConnection: {connection}\r\n");
        assert!(text.contains(&connection), "{text}");
        assert!(text.contains(line), "{text}");
        assert!(text.ends_with("\r\n\r\nBecause.\n"), "{text}");
    }
}

#[test]
fn a_head_request_gets_a_head() {
    let rejection = rejected(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(rejection.status, Status::NotFound);
    let mut out = Vec::new();
    write_rejection(&mut out, &rejection);
    assert!(out.ends_with(b"\r\n\r\n"));
}
