//! Who the clients are. Everything about a client follows from its number: its user id, its token,
//! its upgrade request; so nothing of it is kept.
//!
//! Invariants: user ids all have the same length, and differ between runs, so that a server that ran
//! before knows nobody.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use trunkline_proto::limits::{SUBPROTOCOL_JSON, SUBPROTOCOL_PROTO, WS_PATH};

use crate::args::{FleetArgs, TokenPlace, Transport};
use crate::result::unix_ms;

/// Tokens live this long: longer than any run.
const TOKEN_TTL_S: u64 = 24 * 3_600;
/// Letters that tell runs apart.
const RUN_LETTERS: usize = 5;

/// The users of one run.
#[derive(Clone)]
pub struct People {
    run: [u8; RUN_LETTERS],
    user_bytes: usize,
    device: String,
    /// HMAC-SHA256 under the server's secret, the key taken in already.
    key: Hmac<Sha256>,
    /// `{"alg":"HS256","typ":"JWT"}` and a dot, in base64.
    token_head: String,
    claims_tail: String,
    request: Vec<Piece>,
}

/// Of the upgrade request.
#[derive(Clone)]
enum Piece {
    Text(Vec<u8>),
    Key,
    Token,
}

impl People {
    /// The users of the run that begins now. `host`: what requests name.
    pub fn new(args: &FleetArgs, secret: &str, host: &str) -> Self {
        let now = unix_ms();
        let device = format!("{:d<width$}", "", width = args.device_bytes as usize);
        let mut tag = now ^ u64::from(std::process::id()) << 20;
        let run = std::array::from_fn(|_| {
            let letter = b"0123456789abcdefghijklmnopqrstuvwxyz"[(tag % 36) as usize];
            tag /= 36;
            letter
        });
        let seconds = now / 1_000;
        Self {
            run,
            user_bytes: args.user_bytes as usize,
            request: request(args, host, &device),
            device,
            key: Hmac::new_from_slice(secret.as_bytes())
                .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length")),
            token_head: URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#) + ".",
            claims_tail: format!(r#"","iat":{seconds},"exp":{}}}"#, seconds + TOKEN_TTL_S),
        }
    }

    /// Client `number`'s user id: `u`, the run, the number.
    pub fn user(&self, number: u32) -> String {
        let mut user = Vec::with_capacity(self.user_bytes);
        self.put_user(number, &mut user);
        String::from_utf8(user).unwrap_or_else(|_| unreachable!("letters and digits"))
    }

    fn put_user(&self, mut number: u32, out: &mut Vec<u8>) {
        let from = out.len();
        out.push(b'u');
        out.extend_from_slice(&self.run);
        out.resize(from + self.user_bytes, b'0');
        for digit in out[from + 1 + RUN_LETTERS..].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// Client `number`'s token.
    pub fn token(&self, number: u32) -> String {
        let mut token = Vec::with_capacity(256);
        self.put_token(number, &mut token);
        String::from_utf8(token).unwrap_or_else(|_| unreachable!("base64"))
    }

    fn put_token(&self, number: u32, out: &mut Vec<u8>) {
        let from = out.len();
        out.extend_from_slice(self.token_head.as_bytes());
        let mut claims = Vec::with_capacity(128);
        claims.extend_from_slice(br#"{"sub":""#);
        self.put_user(number, &mut claims);
        claims.extend_from_slice(self.claims_tail.as_bytes());
        put_base64(&claims, out);
        let mut mac = self.key.clone();
        mac.update(&out[from..]);
        out.push(b'.');
        put_base64(&mac.finalize().into_bytes(), out);
    }

    /// Appends client `number`'s upgrade request. `key`: of its WebSocket handshake.
    pub fn put_request(&self, number: u32, key: u128, out: &mut Vec<u8>) {
        for piece in &self.request {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Key => {
                    let mut text = [0; 22];
                    let written = STANDARD_NO_PAD.encode_slice(key.to_be_bytes(), &mut text);
                    out.extend_from_slice(&text[..written.unwrap_or(0)]);
                    out.extend_from_slice(b"==");
                }
                Piece::Token => self.put_token(number, out),
            }
        }
    }
}

fn put_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.resize(from + bytes.len() * 4 / 3 + 4, 0);
    let written = URL_SAFE_NO_PAD.encode_slice(bytes, &mut out[from..]);
    // There is room for all of it.
    out.truncate(from + written.unwrap_or(0));
}

fn request(args: &FleetArgs, host: &str, device: &str) -> Vec<Piece> {
    let protocol = match args.transport {
        Transport::WsJson => SUBPROTOCOL_JSON,
        Transport::WsProto | Transport::Tcp => SUBPROTOCOL_PROTO,
    };
    let path = format!("GET {WS_PATH}?device_id={device}");
    let fixed = format!(
        " HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\nSec-WebSocket-Key: "
    );
    let text = |text: &str| Piece::Text(text.as_bytes().to_vec());
    match args.token {
        TokenPlace::Header => vec![
            text(&(path + &fixed)),
            Piece::Key,
            text("\r\nAuthorization: Bearer "),
            Piece::Token,
            text("\r\n\r\n"),
        ],
        TokenPlace::Query => vec![
            text(&(path + "&access_token=")),
            Piece::Token,
            text(&fixed),
            Piece::Key,
            text("\r\n\r\n"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use trunkline_identity::{KeySource, Verifier};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        fleet: FleetArgs,
    }

    fn people(flags: &[&str]) -> People {
        let line = Line::parse_from([&["x"], flags].concat());
        People::new(&line.fleet, "s3cret", "host:1")
    }

    #[test]
    fn ids_have_the_length_asked_for_and_end_in_the_number() {
        let people = people(&["--user-bytes", "18", "--device-bytes", "2"]);
        for number in [0, 7, 1_999_999, (1 << 24) - 1] {
            let user = people.user(number);
            assert_eq!(user.len(), 18);
            assert!(user.ends_with(&format!("0{number}")), "{user}");
        }
        assert_eq!(people.device(), "dd");
    }

    #[test]
    fn the_server_knows_our_tokens() {
        let people = people(&[]);
        let verifier = Verifier::new(&KeySource::Secret("s3cret".into()));
        let now = unix_ms() / 1_000;
        let identity = verifier.verify(&people.token(123_456), now).unwrap();
        assert_eq!(identity.user, people.user(123_456));
        let other = Verifier::new(&KeySource::Secret("another".into()));
        assert!(other.verify(&people.token(123_456), now).is_err());
    }

    #[test]
    fn a_request_says_all_that_an_upgrade_must() {
        for flags in [&["--token", "header"], &["--token", "query"]] {
            let people = people(flags);
            let mut request = Vec::new();
            people.put_request(5, 1 << 100, &mut request);
            let request = String::from_utf8(request).unwrap();
            assert!(request.starts_with("GET /v1/connect?device_id=dddd"));
            assert!(request.contains(&people.token(5)));
            assert!(request.contains("Sec-WebSocket-Key: AAAAEAAAAAAAAAAAAAAAAA==\r\n"));
            assert!(request.ends_with("\r\n\r\n"));
            assert_eq!(request.matches("\r\n\r\n").count(), 1);
        }
    }
}
