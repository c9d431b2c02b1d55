//! 1.1 answers: always JSON, always with the same headers.

use std::borrow::Cow;

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::domain::{DestroyError, EdgeError};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Destroyed,
    Failed(DestroyError),
    Refused(EdgeError),
}

/// The body of every failure.
#[derive(Serialize)]
struct Errors {
    errors: [Error; 1],
}

#[derive(Serialize)]
struct Error {
    code: u16,
    message: &'static str,
}

/// Headers that stand on every answer, as the 1.1 API sent them.
const FIXED: [(HeaderName, HeaderValue); 6] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=utf-8")),
    (
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate, pre-check=0, post-check=0"),
    ),
    (header::PRAGMA, HeaderValue::from_static("no-cache")),
    (header::EXPIRES, HeaderValue::from_static("Tue, 31 Mar 1981 05:00:00 GMT")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN")),
];

impl Outcome {
    /// HTTP status and body.
    fn rendered(self) -> (u16, Cow<'static, str>) {
        let (http, code, message) = match self {
            Self::Destroyed => return (200, r#"{"destroyed":true}"#.into()),
            Self::Failed(error) => {
                let row = error.row();
                (row.http, row.code, row.message)
            }
            Self::Refused(error) => error.row(),
        };
        let body = Errors { errors: [Error { code, message }] };
        // Numbers and texts can always be written.
        (http, serde_json::to_string(&body).unwrap_or_default().into())
    }

    /// For the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Destroyed => "Ok",
            Self::Failed(error) => error.row().reason,
            Self::Refused(EdgeError::WrongMethod) => "WRONG_METHOD",
            Self::Refused(EdgeError::UnknownPath) => "UNKNOWN_PATH",
            Self::Refused(EdgeError::TlsRequired) => "TLS_REQUIRED",
            Self::Refused(EdgeError::BodyTooLarge) => "BODY_TOO_LARGE",
        }
    }

    /// The answer. `realm` is the origin clients sign for; `headers` are those of this one answer.
    pub fn into_response(self, realm: &str, headers: HeaderMap) -> Response {
        let (status, body) = self.rendered();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.headers_mut() = headers;
        for (name, value) in FIXED {
            response.headers_mut().insert(name, value);
        }
        if status == 401
            && let Ok(challenge) = HeaderValue::from_str(&format!("OAuth realm=\"{realm}\""))
        {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
