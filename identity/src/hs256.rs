//! The short way for the tokens that nearly everybody has: HS256 under one of the usual headers, with
//! the key's part of the HMAC computed once. A handshake spends most of its own CPU on its token.
//!
//! Invariant: what is read here is what the library reads ([`crate::verify`] tests it); whatever
//! else comes is left to it, bad signatures too.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::verify::Claims;

/// Headers as they are commonly written, encoded: `{"typ":"JWT","alg":"HS256"}`, its fields the other
/// way round, and `{"alg":"HS256"}`.
const HEADERS: [&str; 3] = [
    "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",
    "eyJhbGciOiJIUzI1NiJ9",
];
/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 32;
/// Bytes of a payload; a longer one goes the long way.
const PAYLOAD_BYTES_MAX: usize = 512;

/// A key, ready to be used.
pub(crate) struct Hs256 {
    keyed: Hmac<Sha256>,
}

impl Hs256 {
    pub(crate) fn new(secret: &[u8]) -> Self {
        let keyed = Hmac::new_from_slice(secret).expect("HMAC takes a key of any length");
        Self { keyed }
    }

    /// The claims of a token with a good signature; nothing if the long way must decide.
    pub(crate) fn claims(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        if !HEADERS.contains(&header) {
            return None;
        }
        let mut bytes = [0; SIGNATURE_BYTES + 2];
        let len = BASE64.decode_slice(signature, &mut bytes).ok()?;
        let mut mac = self.keyed.clone();
        mac.update(signed.as_bytes());
        mac.verify_slice(&bytes[..len]).ok()?;
        let mut bytes = [0; PAYLOAD_BYTES_MAX];
        let len = BASE64.decode_slice(payload, &mut bytes).ok()?;
        serde_json::from_slice(&bytes[..len]).ok()
    }

    #[cfg(test)]
    pub(crate) fn sign(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(payload));
        let mut mac = self.keyed.clone();
        mac.update(signed.as_bytes());
        let signature = BASE64.encode(mac.finalize().into_bytes());
        format!("{signed}.{signature}")
    }
}
