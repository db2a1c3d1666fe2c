//! Errors as `application/problem+json` (RFC 9457), with the code of the external contract.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use trunkline_proto::client::Error;
use trunkline_proto::codes::Code;

/// All codes, to find the one that an error names.
const CODES: [Code; 15] = [
    Code::BadFrame,
    Code::BadRequest,
    Code::UnknownFrame,
    Code::Unauthorized,
    Code::Forbidden,
    Code::NotFound,
    Code::NotAMember,
    Code::TooLarge,
    Code::GroupFull,
    Code::IdempotencyConflict,
    Code::RateLimited,
    Code::Overloaded,
    Code::Unavailable,
    Code::NotImplemented,
    Code::Internal,
];
/// `Retry-After` of a 503 that does not say.
const RETRY_AFTER_DEFAULT_MS: u32 = 1_000;

/// An error answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    status: StatusCode,
    /// Boxed to keep results small where all is well.
    error: Box<Error>,
    /// Value of `WWW-Authenticate`.
    challenge: Option<&'static str>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    conversation_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_msg_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u32>,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self::from(code.error(detail))
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    /// No token came.
    pub(super) fn no_token() -> Self {
        Self {
            challenge: Some("Bearer realm=\"trunkline\""),
            ..Self::new(Code::Unauthorized, "a bearer token is needed")
        }
    }

    /// The token that came is worth nothing.
    pub(super) fn bad_token(detail: impl Into<String>) -> Self {
        Self {
            challenge: Some("Bearer realm=\"trunkline\", error=\"invalid_token\""),
            ..Self::new(Code::Unauthorized, detail)
        }
    }

    pub(super) fn method_not_allowed() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            ..Self::bad_request("this path does not take that method")
        }
    }

    /// For what a framework layer refused, by its status.
    pub(super) fn of_status(status: StatusCode, detail: impl Into<String>) -> Self {
        let code = match status {
            StatusCode::PAYLOAD_TOO_LARGE => Code::TooLarge,
            StatusCode::NOT_FOUND => Code::NotFound,
            _ if status.is_client_error() => Code::BadRequest,
            _ => Code::Internal,
        };
        Self::new(code, detail)
    }
}

/// An error of the engine. A code that is none of ours is a defect here.
impl From<Error> for Problem {
    fn from(mut error: Error) -> Self {
        let code = CODES
            .into_iter()
            .find(|c| c.as_str() == error.code)
            .unwrap_or(Code::Internal);
        error.code = code.as_str().to_owned();
        let status =
            StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status == StatusCode::SERVICE_UNAVAILABLE && error.retry_after_ms == 0 {
            error.retry_after_ms = RETRY_AFTER_DEFAULT_MS;
        }
        Self {
            status,
            error: Box::new(error),
            challenge: None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let retry_after_ms = Some(self.error.retry_after_ms).filter(|&ms| ms > 0);
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.error.message,
            code: &self.error.code,
            conversation_id: &self.error.conversation_id,
            client_msg_id: &self.error.client_msg_id,
            retry_after_ms,
        };
        // Plain strings and numbers always serialise.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(ms) = retry_after_ms {
            headers.insert(header::RETRY_AFTER, u64::from(ms.div_ceil(1_000)).into());
        }
        if let Some(challenge) = self.challenge {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status() {
        for code in CODES {
            let response = Problem::new(code, "x").into_response();
            assert_eq!(response.status().as_u16(), code.http_status(), "{code:?}");
            assert_eq!(
                response.headers()[header::CONTENT_TYPE],
                "application/problem+json"
            );
        }
        let unknown = Error {
            code: "new".into(),
            ..Error::default()
        };
        assert_eq!(
            Problem::from(unknown).status,
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }

    #[test]
    fn retry_after_is_rounded_up_to_seconds() {
        let limited = Error {
            retry_after_ms: 1_001,
            ..Code::RateLimited.error("slow down")
        };
        let response = Problem::from(limited).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let response = Problem::new(Code::Unavailable, "x").into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let response = Problem::new(Code::Forbidden, "x").into_response();
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
