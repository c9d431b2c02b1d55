//! 1.1 answers: always JSON, always with the same headers.

use axum::{body::Body, http::HeaderValue, response::Response};
use http::{HeaderMap, StatusCode, header};

use crate::domain::{DestroyError, EdgeError};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Destroyed,
    Failed(DestroyError),
    Refused(EdgeError),
}

/// Headers that stand on every answer, as the 1.1 API sent them.
const FIXED: [(&str, &str); 6] = [
    ("content-type", "application/json;charset=utf-8"),
    ("cache-control", "no-cache, no-store, must-revalidate, pre-check=0, post-check=0"),
    ("pragma", "no-cache"),
    ("expires", "Tue, 31 Mar 1981 05:00:00 GMT"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "SAMEORIGIN"),
];

impl Outcome {
    /// HTTP status and body.
    fn rendered(self) -> (u16, String) {
        let (http, code, message) = match self {
            Self::Destroyed => return (200, r#"{"destroyed":true}"#.to_owned()),
            Self::Failed(error) => {
                let row = error.row();
                (row.http, row.code, row.message)
            }
            Self::Refused(error) => error.row(),
        };
        (http, serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string())
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
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if status == 401
            && let Ok(challenge) = HeaderValue::from_str(&format!("OAuth realm=\"{realm}\""))
        {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
