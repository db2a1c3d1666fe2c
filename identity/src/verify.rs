//! Checking a token, and minting one.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use trunkline_proto::ids::is_valid_id;

use crate::hs256::Hs256;
use crate::numeric_date::NumericDate;

/// Bytes of a token; longer ones are refused unread.
pub const TOKEN_BYTES_MAX: usize = 8_192;

/// Where the keys come from that tokens are checked with.
#[derive(Clone)]
#[non_exhaustive]
pub enum KeySource {
    /// One shared secret, HS256.
    Secret(String),
}

/// A secret never reaches a log.
impl std::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Secret(_) => f.write_str("Secret(…)"),
        }
    }
}

/// Whom a token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A valid user id.
    pub user: String,
    /// Unix seconds; from then on the token is worth nothing.
    pub expires_at: Option<u64>,
}

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not three parts of base64url with JSON inside, or a claim of the wrong type.
    #[error("the token is malformed")]
    Malformed,
    /// `none`, or any other algorithm than the keys'.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// Signed with another key, or altered.
    #[error("the token's signature is wrong")]
    Signature,
    /// `exp` has come.
    #[error("the token has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// No `sub`, or one that is no user id.
    #[error("the token's sub is no user id: 1-64 bytes of [A-Za-z0-9._:@-]")]
    Subject,
}

#[derive(Deserialize)]
pub(crate) struct Claims {
    pub(crate) sub: Option<String>,
    exp: Option<NumericDate>,
    nbf: Option<NumericDate>,
    /// Nothing depends on them; named so that one that is there twice is an error here too, as it
    /// is where the library checks claims.
    #[serde(rename = "iss")]
    _iss: Option<IgnoredAny>,
    #[serde(rename = "aud")]
    _aud: Option<IgnoredAny>,
}

#[derive(Serialize)]
struct Minted<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
}

struct Keys {
    hs256: Hs256,
    decoding: DecodingKey,
    validation: Validation,
}

/// Checks tokens. Cloning shares the keys.
#[derive(Clone)]
pub struct Verifier {
    keys: Arc<Keys>,
}

impl Verifier {
    /// A verifier of tokens signed with `source`.
    pub fn new(source: &KeySource) -> Self {
        let (hs256, decoding, algorithm) = match source {
            KeySource::Secret(secret) => (
                Hs256::new(secret.as_bytes()),
                DecodingKey::from_secret(secret.as_bytes()),
                Algorithm::HS256,
            ),
        };
        let mut validation = Validation::new(algorithm);
        // The clock is the caller's, so times are compared here; `aud` is not ours to judge.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self {
            keys: Arc::new(Keys {
                hs256,
                decoding,
                validation,
            }),
        }
    }

    /// Whom `token` names at `now_unix_s`. No leeway: servers keep their clocks.
    pub fn verify(&self, token: &str, now_unix_s: u64) -> Result<Identity, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        // What is not plainly good is judged by the library, which also says what is wrong.
        let claims = match self.keys.hs256.claims(token) {
            Some(claims) => claims,
            None => self.decode(token)?,
        };
        let expires_at = claims.exp.map(|date| date.0);
        if expires_at.is_some_and(|at| now_unix_s >= at) {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|date| now_unix_s < date.0) {
            return Err(TokenError::NotYetValid);
        }
        let user = claims
            .sub
            .filter(|s| is_valid_id(s))
            .ok_or(TokenError::Subject)?;
        Ok(Identity { user, expires_at })
    }

    fn decode(&self, token: &str) -> Result<Claims, TokenError> {
        jsonwebtoken::decode(token, &self.keys.decoding, &self.keys.validation)
            .map(|token| token.claims)
            .map_err(|e| refusal(token, e.kind()))
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("algorithms", &self.keys.validation.algorithms)
            .finish_non_exhaustive()
    }
}

fn refusal(token: &str, kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Algorithm,
        // `none` and names from nowhere fail as JSON of the header; say what it is all the same.
        _ if names_unknown_algorithm(token) => TokenError::Algorithm,
        _ => TokenError::Malformed,
    }
}

/// Whether the header can be read but its `alg` is none that exists here.
fn names_unknown_algorithm(token: &str) -> bool {
    let Some((_, rest)) = token.split_once('.') else {
        return false;
    };
    rest.contains('.')
        && matches!(
            jsonwebtoken::decode_header(token),
            Err(e) if matches!(e.kind(), ErrorKind::Json(_))
        )
}

/// A token for `user` from now on, for `ttl`.
pub fn mint(secret: &str, user: &str, ttl: Duration) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    mint_at(secret, user, now.as_secs(), ttl)
}

/// A token for `user` from `now_unix_s` on, for `ttl` (whole seconds, at least one).
pub fn mint_at(secret: &str, user: &str, now_unix_s: u64, ttl: Duration) -> String {
    let claims = Minted {
        sub: user,
        iat: now_unix_s,
        exp: now_unix_s.saturating_add(ttl.as_secs().max(1)),
    };
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
        // HMAC takes a key of any length, and plain strings and integers always serialise.
        .expect("signing three plain claims with HS256 cannot fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn verifier() -> Verifier {
        Verifier::new(&KeySource::Secret("s3cret".into()))
    }

    fn signed(claims: &impl Serialize, alg: Algorithm) -> String {
        let key = EncodingKey::from_secret(b"s3cret");
        jsonwebtoken::encode(&Header::new(alg), claims, &key).unwrap()
    }

    #[derive(Serialize, Default)]
    struct Any<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        sub: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        exp: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        nbf: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<&'a str>,
    }

    #[test]
    fn a_minted_token_names_its_user_until_it_expires() {
        let token = mint_at("s3cret", "alice", NOW, Duration::from_secs(60));
        let identity = Identity {
            user: "alice".into(),
            expires_at: Some(NOW + 60),
        };
        assert_eq!(verifier().verify(&token, NOW), Ok(identity.clone()));
        assert_eq!(verifier().verify(&token, NOW + 59), Ok(identity));
        assert_eq!(
            verifier().verify(&token, NOW + 60),
            Err(TokenError::Expired)
        );
    }

    #[test]
    fn a_token_minted_by_the_clock_is_good_now() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let token = mint("s3cret", "bob", Duration::from_secs(3_600));
        assert_eq!(
            verifier().verify(&token, now.as_secs()).unwrap().user,
            "bob"
        );
    }

    #[test]
    fn another_key_is_refused() {
        let token = mint_at("other", "alice", NOW, Duration::from_secs(60));
        assert_eq!(verifier().verify(&token, NOW), Err(TokenError::Signature));
    }

    #[test]
    fn an_altered_payload_is_refused() {
        let alice = mint_at("s3cret", "alice", NOW, Duration::from_secs(60));
        let mallory = mint_at("s3cret", "mallory", NOW, Duration::from_secs(60));
        let signature = alice.rsplit_once('.').unwrap().1;
        let forged = format!("{}.{signature}", mallory.rsplit_once('.').unwrap().0);
        assert_eq!(verifier().verify(&forged, NOW), Err(TokenError::Signature));
    }

    #[test]
    fn other_algorithms_are_refused_also_with_the_right_secret() {
        let claims = Any {
            sub: Some("alice"),
            ..Any::default()
        };
        for alg in [Algorithm::HS384, Algorithm::HS512] {
            let token = signed(&claims, alg);
            assert_eq!(verifier().verify(&token, NOW), Err(TokenError::Algorithm));
        }
        // {"alg":"none","typ":"JWT"} . {"sub":"alice"} . nothing, and the same in capitals.
        for header in [
            "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0",
            "eyJhbGciOiJOT05FIiwidHlwIjoiSldUIn0",
        ] {
            let token = format!("{header}.eyJzdWIiOiJhbGljZSJ9.");
            assert_eq!(verifier().verify(&token, NOW), Err(TokenError::Algorithm));
        }
    }

    #[test]
    fn exp_is_optional_and_may_have_a_fraction() {
        let mut claims = Any {
            sub: Some("alice"),
            aud: Some("someone else"),
            ..Any::default()
        };
        let identity = verifier().verify(&signed(&claims, Algorithm::HS256), NOW);
        assert_eq!(identity.unwrap().expires_at, None);
        claims.exp = Some(NOW as f64 + 1.5);
        let identity = verifier().verify(&signed(&claims, Algorithm::HS256), NOW);
        assert_eq!(identity.unwrap().expires_at, Some(NOW + 1));
        claims.exp = Some(-1.0);
        let identity = verifier().verify(&signed(&claims, Algorithm::HS256), NOW);
        assert_eq!(identity, Err(TokenError::Expired));
    }

    #[test]
    fn nbf_is_kept() {
        let claims = Any {
            sub: Some("alice"),
            nbf: Some(NOW as i64 + 1),
            ..Any::default()
        };
        let token = signed(&claims, Algorithm::HS256);
        assert_eq!(verifier().verify(&token, NOW), Err(TokenError::NotYetValid));
        assert!(verifier().verify(&token, NOW + 1).is_ok());
    }

    #[test]
    fn the_subject_must_be_a_user_id() {
        for sub in [None, Some(""), Some("white space"), Some("a/b")] {
            let claims = Any {
                sub,
                ..Any::default()
            };
            let token = signed(&claims, Algorithm::HS256);
            assert_eq!(
                verifier().verify(&token, NOW),
                Err(TokenError::Subject),
                "{sub:?}"
            );
        }
        let token = signed(&[1, 2], Algorithm::HS256);
        assert_eq!(verifier().verify(&token, NOW), Err(TokenError::Malformed));
    }

    #[test]
    fn garbage_is_refused() {
        let long = "a".repeat(TOKEN_BYTES_MAX + 1);
        for token in ["", ".", "..", "...", "a.b.c", "nonsense", "é.ü.ß", &long] {
            assert!(verifier().verify(token, NOW).is_err(), "{token:?}");
        }
    }

    /// Whatever a token is, the short way either leaves it alone or reads what the library reads.
    #[test]
    fn the_short_way_agrees_with_the_library() {
        let verifier = verifier();
        let headers = [
            r#"{"typ":"JWT","alg":"HS256"}"#,
            r#"{"alg":"HS256","typ":"JWT"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"HS256","kid":"1"}"#,
            r#"{"alg":"HS384"}"#,
            r#"{"alg":"none"}"#,
        ];
        let payloads = [
            r#"{"sub":"alice","exp":1800000060,"iat":7}"#,
            r#"{"sub":"a\u0062","nbf":1.5,"aud":["x"],"iss":7}"#,
            r#"{"sub":"alice","sub":"bob"}"#,
            r#"{"sub":"alice","iss":"a","iss":"b"}"#,
            r#"{"sub":"alice","aud":"a","aud":"b"}"#,
            r#"{"sub":7}"#,
            r#"{"sub":"alice"} x"#,
            r#"[1,2]"#,
            r#"{}"#,
            "",
        ];
        let (mut read, mut left) = (0, 0);
        let mut check = |token: &str| {
            let library = verifier.decode(token);
            match verifier.keys.hs256.claims(token) {
                Some(claims) => {
                    let library = library.expect("a good token");
                    assert_eq!(claims.sub, library.sub, "{token}");
                    assert_eq!(claims.exp, library.exp, "{token}");
                    assert_eq!(claims.nbf, library.nbf, "{token}");
                    read += 1;
                }
                None => left += 1,
            }
        };
        for header in headers {
            for payload in payloads {
                check(&Hs256::new(b"s3cret").sign(header, payload));
                check(&Hs256::new(b"other").sign(header, payload));
            }
        }
        let good = mint_at("s3cret", "alice", NOW, Duration::from_secs(60));
        for at in 0..good.len() {
            for byte in [b'A', b'.', b'=', b'-', b'_', b'/', b'z'] {
                let mut bytes = good.clone().into_bytes();
                bytes[at] = byte;
                check(&String::from_utf8(bytes).unwrap());
            }
            check(&good[..at]);
        }
        check(&format!("{good}="));
        check(&format!("{good}.x"));
        assert!(read >= 9 && left > 500, "{read} {left}");
    }

    #[test]
    fn a_minted_token_takes_the_short_way() {
        let token = mint_at("s3cret", "alice", NOW, Duration::from_secs(60));
        let claims = verifier().keys.hs256.claims(&token).unwrap();
        assert_eq!(claims.sub.as_deref(), Some("alice"));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let source = KeySource::Secret("s3cret".into());
        assert!(!format!("{source:?} {:?}", Verifier::new(&source)).contains("s3cret"));
    }
}
