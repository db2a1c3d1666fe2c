//! What a call needs of its request, or a [`Problem`] that says what is wrong with it.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use trunkline_proto::ids::{ConversationId, is_valid_id};
use trunkline_proto::limits::{PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX};

use super::RestState;
use super::problem::Problem;

/// The authenticated caller: a valid user id.
pub(super) struct Caller(pub(super) String);

#[derive(Deserialize)]
struct AccessToken {
    access_token: Option<String>,
}

impl FromRequestParts<RestState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &RestState) -> Result<Self, Problem> {
        let token = match bearer(parts)? {
            Some(token) => token,
            None => {
                let query = Query::<AccessToken>::try_from_uri(&parts.uri)
                    .map_err(|e| Problem::bad_request(e.body_text()))?;
                query.0.access_token.ok_or_else(Problem::no_token)?
            }
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        match state.verifier().verify(&token, now.as_secs()) {
            Ok(identity) => Ok(Self(identity.user)),
            Err(e) => Err(Problem::bad_token(e.to_string())),
        }
    }
}

fn bearer(parts: &Parts) -> Result<Option<String>, Problem> {
    let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| Some(token.trim().to_owned()))
        .ok_or_else(|| Problem::bad_token("Authorization must be: Bearer TOKEN"))
}

/// The query string.
pub(super) struct QueryOf<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<RestState> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &RestState) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(value)| Self(value))
            .map_err(|e| Problem::bad_request(e.body_text()))
    }
}

/// A JSON body, whatever its content type says. No body at all counts as `{}`.
pub(super) struct JsonOf<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<RestState> for JsonOf<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &RestState) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|e| Problem::of_status(e.status(), e.body_text()))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|e| Problem::bad_request(format!("the body: {e}")))
    }
}

/// The conversation that the path names first.
pub(super) struct InConversation(pub(super) ConversationId);

#[derive(Deserialize)]
struct IdInPath {
    id: String,
}

impl FromRequestParts<RestState> for InConversation {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &RestState) -> Result<Self, Problem> {
        let Path(IdInPath { id }) = path(parts, state).await?;
        ConversationId::parse(&id).map(Self).ok_or_else(|| {
            Problem::bad_request("a conversation id is a UUID in lowercase with hyphens")
        })
    }
}

/// The user that the path names.
pub(super) struct OfUser(pub(super) String);

#[derive(Deserialize)]
struct UserInPath {
    user: String,
}

impl FromRequestParts<RestState> for OfUser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &RestState) -> Result<Self, Problem> {
        let Path(UserInPath { user }) = path(parts, state).await?;
        user_id(user).map(Self)
    }
}

async fn path<T>(parts: &mut Parts, state: &RestState) -> Result<Path<T>, Problem>
where
    T: DeserializeOwned + Send,
{
    Path::from_request_parts(parts, state)
        .await
        .map_err(|e| Problem::of_status(e.status(), e.body_text()))
}

/// Checks a user id.
pub(super) fn user_id(text: String) -> Result<String, Problem> {
    if is_valid_id(&text) {
        Ok(text)
    } else {
        Err(Problem::bad_request(
            "a user id is 1-64 bytes of [A-Za-z0-9._:@-]",
        ))
    }
}

/// `limit` of a list: default, clamped above, refused below 1.
pub(super) fn limit(text: Option<&str>) -> Result<u32, Problem> {
    let Some(text) = text else {
        return Ok(PAGE_LIMIT_DEFAULT);
    };
    // A number beyond 64 bits is above the maximum all the same.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = digits.then(|| text.parse().unwrap_or(u64::MAX));
    match value {
        None | Some(0) => Err(Problem::bad_request("limit: a whole number of at least 1")),
        Some(value) => Ok(value.min(u64::from(PAGE_LIMIT_MAX)) as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_clamped_above_and_refused_below() {
        assert_eq!(limit(None), Ok(PAGE_LIMIT_DEFAULT));
        assert_eq!(limit(Some("1")), Ok(1));
        assert_eq!(limit(Some("200")), Ok(200));
        assert_eq!(limit(Some("201")), Ok(200));
        assert_eq!(limit(Some("99999999999999999999999")), Ok(200));
        for bad in ["0", "-1", "", "x", "1.5", "+3"] {
            assert!(limit(Some(bad)).is_err(), "{bad}");
        }
    }
}
