//! The HTTP/1.1 request that opens a WebSocket (RFC 6455, 4), and the answers to it. Everything that
//! is not such a request gets a sentence that says what would be, and the connection closes.
//!
//! Invariants: at most [`HEAD_BYTES_MAX`] bytes and [`HEADERS_MAX`] headers are looked at; a request
//! borrows from the head and owns nothing but what had to be percent-decoded; bytes after the head
//! are the WebSocket's. Called by the shard with all that a new connection has sent so far.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BufMut;
use sha1::{Digest, Sha1};
use smallvec::SmallVec;
use trunkline_proto::limits::{SUBPROTOCOL_JSON, SUBPROTOCOL_PROTO, WS_PATH};

use super::deflate::Agreed;
use super::encode_once::Encoding;

/// Bytes of a request head.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Header lines of a request.
pub const HEADERS_MAX: usize = 64;
/// Fixed suffix of the handshake's hash (RFC 6455, 1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the bytes so far are.
#[derive(Debug)]
pub enum Upgrade<'a> {
    /// The beginning of a request: call again with more.
    Partial,
    /// A request to upgrade. What lies behind `consumed` bytes belongs to the WebSocket.
    Request {
        consumed: usize,
        request: Request<'a>,
    },
    /// Answer with [`write_rejection`] and close.
    Reject(Rejection),
}

/// A well-formed request to upgrade; who may is for the session to say.
#[derive(Debug)]
pub struct Request<'a> {
    pub path: &'a str,
    /// `?access_token=`, decoded.
    pub access_token: Option<Cow<'a, str>>,
    /// `?device_id=`, decoded.
    pub device_id: Option<Cow<'a, str>>,
    /// `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
    pub origin: Option<&'a str>,
    /// `Sec-WebSocket-Key`, checked.
    pub key: &'a str,
    /// `Sec-WebSocket-Protocol`, in the client's order of preference.
    pub protocols: SmallVec<[&'a str; 2]>,
    /// `Sec-WebSocket-Extensions`, one value a header line.
    pub extensions: SmallVec<[&'a str; 2]>,
}

/// The status of an answer that refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    BadRequest,
    /// No valid token.
    Unauthorized,
    /// The origin may not.
    Forbidden,
    NotFound,
    MethodNotAllowed,
    UpgradeRequired,
    TooManyRequests,
    HeadTooLarge,
    ServiceUnavailable,
}

impl Status {
    /// The number.
    pub const fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::UpgradeRequired => 426,
            Self::TooManyRequests => 429,
            Self::HeadTooLarge => 431,
            Self::ServiceUnavailable => 503,
        }
    }

    const fn phrase(self) -> &'static str {
        match self {
            Self::BadRequest => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::UpgradeRequired => "Upgrade Required",
            Self::TooManyRequests => "Too Many Requests",
            Self::HeadTooLarge => "Request Header Fields Too Large",
            Self::ServiceUnavailable => "Service Unavailable",
        }
    }

    /// Whoever sends `Upgrade` must name it here too (RFC 9110, 7.8).
    const fn connection(self) -> &'static str {
        match self {
            Self::UpgradeRequired => "close, Upgrade",
            _ => "close",
        }
    }

    /// The header lines that this status must or should bring along.
    const fn headers(self) -> &'static str {
        match self {
            Self::Unauthorized => "WWW-Authenticate: Bearer\r\n",
            Self::MethodNotAllowed => "Allow: GET\r\n",
            Self::UpgradeRequired => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            _ => "",
        }
    }
}

/// An answer that refuses; the connection closes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub status: Status,
    /// The body: a sentence for whoever looks at it.
    pub reason: Cow<'static, str>,
    /// `Retry-After`.
    pub retry_after_s: Option<u32>,
    /// The request was a HEAD: say how long the body would be, and leave it out.
    pub head_only: bool,
}

impl Rejection {
    /// Without `Retry-After`.
    pub fn new(status: Status, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            reason: reason.into(),
            retry_after_s: None,
            head_only: false,
        }
    }

    /// With `Retry-After`.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

/// Which paths lead to the WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paths {
    /// `/v1/connect` alone.
    Connect,
    /// Every one: an echo server.
    Any,
}

/// Looks at all that a new connection has sent so far.
pub fn parse(received: &[u8], paths: Paths) -> Upgrade<'_> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let within = &received[..received.len().min(HEAD_BYTES_MAX)];
    match head.parse(within) {
        Ok(httparse::Status::Complete(consumed)) => match request(&head, paths) {
            Ok(request) => Upgrade::Request { consumed, request },
            Err(mut rejection) => {
                rejection.head_only = head.method == Some("HEAD");
                Upgrade::Reject(rejection)
            }
        },
        Ok(httparse::Status::Partial) if received.len() < HEAD_BYTES_MAX => Upgrade::Partial,
        Ok(httparse::Status::Partial) => Upgrade::Reject(Rejection::new(
            Status::HeadTooLarge,
            format!("The request head is over {HEAD_BYTES_MAX} bytes."),
        )),
        Err(httparse::Error::TooManyHeaders) => Upgrade::Reject(Rejection::new(
            Status::HeadTooLarge,
            format!("The request has over {HEADERS_MAX} headers."),
        )),
        Err(error) => Upgrade::Reject(Rejection::new(
            Status::BadRequest,
            match received {
                // A TLS record: handshake, version 3.
                [0x16, 0x03, ..] => "This port speaks plain HTTP/1.1, not TLS.".into(),
                _ => format!("This is no HTTP/1.1 request: {error}."),
            },
        )),
    }
}

fn bad(reason: &'static str) -> Rejection {
    Rejection::new(Status::BadRequest, reason)
}

fn request<'b>(head: &httparse::Request<'_, 'b>, paths: Paths) -> Result<Request<'b>, Rejection> {
    let (path, query) = split_target(head.path.unwrap_or_default());
    if paths == Paths::Connect && path != WS_PATH {
        return Err(Rejection::new(
            Status::NotFound,
            format!("Nothing is here but the WebSocket at {WS_PATH}."),
        ));
    }
    if head.method != Some("GET") {
        return Err(Rejection::new(
            Status::MethodNotAllowed,
            "A WebSocket is opened with GET.",
        ));
    }
    if head.version != Some(1) {
        return Err(bad("A WebSocket needs HTTP/1.1."));
    }
    let headers = Headers::read(head.headers)?;
    let key = headers.handshake_key()?;
    let mut request = Request {
        path,
        access_token: None,
        device_id: None,
        bearer: headers.authorization.and_then(bearer),
        origin: headers.origin,
        key,
        protocols: headers.protocols,
        extensions: headers.extensions,
    };
    read_query(query, &mut request)?;
    Ok(request)
}

/// The headers that matter here.
#[derive(Default)]
struct Headers<'a> {
    upgrades: bool,
    connection_upgrades: bool,
    has_body: bool,
    host: bool,
    key: Option<&'a str>,
    version: Option<&'a str>,
    authorization: Option<&'a str>,
    origin: Option<&'a str>,
    protocols: SmallVec<[&'a str; 2]>,
    extensions: SmallVec<[&'a str; 2]>,
}

impl<'a> Headers<'a> {
    fn read(headers: &[httparse::Header<'a>]) -> Result<Self, Rejection> {
        let mut read = Self::default();
        for header in headers {
            // A value that is no text can belong only to a header that does not matter here, or
            // to one in which it is as wrong as any other wrong value.
            let value = std::str::from_utf8(header.value)
                .unwrap_or("\u{fffd}")
                .trim();
            let name = header.name;
            if name.eq_ignore_ascii_case("host") {
                read.host = true;
            } else if name.eq_ignore_ascii_case("upgrade") {
                read.upgrades |= has_token(value, "websocket");
            } else if name.eq_ignore_ascii_case("connection") {
                read.connection_upgrades |= has_token(value, "upgrade");
            } else if name.eq_ignore_ascii_case("content-length") {
                read.has_body |= value != "0";
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                read.has_body = true;
            } else if name.eq_ignore_ascii_case("sec-websocket-key") {
                once(
                    &mut read.key,
                    value,
                    "There is more than one Sec-WebSocket-Key.",
                )?;
            } else if name.eq_ignore_ascii_case("sec-websocket-version") {
                once(
                    &mut read.version,
                    value,
                    "There is more than one Sec-WebSocket-Version.",
                )?;
            } else if name.eq_ignore_ascii_case("authorization") {
                once(
                    &mut read.authorization,
                    value,
                    "There is more than one Authorization.",
                )?;
            } else if name.eq_ignore_ascii_case("origin") {
                once(&mut read.origin, value, "There is more than one Origin.")?;
            } else if name.eq_ignore_ascii_case("sec-websocket-protocol") {
                let offered = value.split(',').map(str::trim).filter(|p| !p.is_empty());
                read.protocols.extend(offered);
            } else if name.eq_ignore_ascii_case("sec-websocket-extensions") {
                read.extensions.push(value);
            }
        }
        Ok(read)
    }

    /// The key, if this is a request to upgrade in every respect.
    fn handshake_key(&self) -> Result<&'a str, Rejection> {
        if !self.host {
            return Err(bad("HTTP/1.1 needs a Host header."));
        }
        if !self.upgrades || !self.connection_upgrades {
            return Err(Rejection::new(
                Status::UpgradeRequired,
                "This is a WebSocket: ask with Upgrade: websocket and Connection: Upgrade.",
            ));
        }
        if self.version != Some("13") {
            return Err(Rejection::new(
                Status::UpgradeRequired,
                "Only version 13 of the WebSocket protocol is spoken here.",
            ));
        }
        if self.has_body {
            return Err(bad("A WebSocket request has no body."));
        }
        let key = self
            .key
            .ok_or_else(|| bad("Sec-WebSocket-Key is missing."))?;
        // The decoder asks for room by its own estimate, which is above the 16 bytes.
        let mut nonce = [0; 18];
        match BASE64.decode_slice(key, &mut nonce) {
            Ok(16) => Ok(key),
            _ => Err(bad("Sec-WebSocket-Key is not 16 bytes in base64.")),
        }
    }
}

fn once<'a>(
    slot: &mut Option<&'a str>,
    value: &'a str,
    complaint: &'static str,
) -> Result<(), Rejection> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad(complaint)),
    }
}

fn has_token(list: &str, token: &str) -> bool {
    list.split(',')
        .any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// The token of `Bearer …`. Another scheme is none of ours (a proxy's, perhaps); an empty token is
/// one that will not verify.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ').unwrap_or((authorization, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Path and query of a target in origin form, or in the absolute form that proxies use.
fn split_target(target: &str) -> (&str, &str) {
    let target = match target.split_once("://") {
        Some(("http" | "ws", rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    target.split_once('?').unwrap_or((target, ""))
}

fn read_query<'a>(query: &'a str, request: &mut Request<'a>) -> Result<(), Rejection> {
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = match name {
            "access_token" => &mut request.access_token,
            "device_id" => &mut request.device_id,
            _ => continue,
        };
        let value = percent_decode(value)
            .ok_or_else(|| bad("The query is not valid percent-encoded UTF-8."))?;
        if slot.replace(value).is_some() {
            return Err(bad("A parameter of the query is there twice."));
        }
    }
    Ok(())
}

/// Decodes a form-encoded value; borrows it when there is nothing to decode.
fn percent_decode(value: &str) -> Option<Cow<'_, str>> {
    if !value.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Some(Cow::Borrowed(value));
    }
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                (high << 4 | low) as u8
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// The subprotocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subprotocol {
    pub encoding: Encoding,
    /// What the answer names; nothing if the client offered nothing.
    pub name: Option<&'static str>,
}

/// The first offer that is known here; JSON if there was none at all.
pub fn choose_subprotocol(offered: &[&str]) -> Result<Subprotocol, Rejection> {
    if offered.is_empty() {
        return Ok(Subprotocol {
            encoding: Encoding::JsonWs,
            name: None,
        });
    }
    let known = offered.iter().find_map(|&offer| match offer {
        SUBPROTOCOL_JSON => Some((Encoding::JsonWs, SUBPROTOCOL_JSON)),
        SUBPROTOCOL_PROTO => Some((Encoding::ProtoWs, SUBPROTOCOL_PROTO)),
        _ => None,
    });
    match known {
        Some((encoding, name)) => Ok(Subprotocol {
            encoding,
            name: Some(name),
        }),
        None => Err(Rejection::new(
            Status::BadRequest,
            format!("The subprotocols here are {SUBPROTOCOL_JSON} and {SUBPROTOCOL_PROTO}."),
        )),
    }
}

/// Appends the answer that opens the WebSocket.
pub fn write_accept(
    out: &mut impl BufMut,
    key: &str,
    subprotocol: Option<&str>,
    deflate: Option<&Agreed>,
) {
    let hash = Sha1::new()
        .chain_update(key.as_bytes())
        .chain_update(ACCEPT_GUID)
        .finalize();
    out.put_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.put_slice(BASE64.encode(hash).as_bytes());
    if let Some(name) = subprotocol {
        out.put_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.put_slice(name.as_bytes());
    }
    if let Some(agreed) = deflate {
        out.put_slice(b"\r\nSec-WebSocket-Extensions: ");
        out.put_slice(agreed.header_value().as_bytes());
    }
    out.put_slice(b"\r\n\r\n");
}

/// Appends an answer that refuses.
pub fn write_rejection(out: &mut impl BufMut, rejection: &Rejection) {
    let status = rejection.status;
    // The sentence and its line feed.
    let body_len = rejection.reason.len() + 1;
    let mut head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {body_len}\r\n\
         Connection: {}\r\n{}",
        status.code(),
        status.phrase(),
        status.connection(),
        status.headers(),
    );
    if let Some(seconds) = rejection.retry_after_s {
        // Writing to a String cannot fail.
        let _ = write!(head, "Retry-After: {seconds}\r\n");
    }
    out.put_slice(head.as_bytes());
    out.put_slice(b"\r\n");
    if !rejection.head_only {
        out.put_slice(rejection.reason.as_bytes());
        out.put_u8(b'\n');
    }
}

#[cfg(test)]
#[path = "upgrade_tests.rs"]
mod tests;
