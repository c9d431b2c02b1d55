//! 1.1 responses, always JSON with the same headers, and the OpenAPI description.

use std::{borrow::Cow, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{
    domain::{DestroyError, EdgeError},
    rate_limit::Allowance,
    telemetry::CallOutcome,
};

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Destroyed,
    Failed(DestroyError),
    Refused(EdgeError),
    /// The OpenAPI description was asked for.
    Described,
    /// The client disconnected before it had sent its body.
    Cancelled,
}

/// What the headers of a response report about its request. Filled in as the request is processed.
#[derive(Debug, Default)]
pub struct ReplyContext {
    pub transaction: String,
    /// Whether the request was sent over TLS.
    pub is_secure: bool,
    /// The origin that clients sign for.
    pub realm: String,
    /// The access of a token that was accepted; empty before.
    pub access: &'static str,
    /// What is left of the user's rate limit, once the request was counted.
    pub allowance: Option<Allowance>,
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

/// What the 1.1 API sent to browsers: twenty years.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=631138519");

/// As many headers as most responses have, with those that hyper adds.
const USUAL_HEADERS: usize = 14;

/// The OpenAPI description of the REST API.
const OPENAPI: &str = include_str!("../../proto/openapi.json");

/// Headers of the OpenAPI description, which changes with the program alone.
const OF_DOCUMENT: [(HeaderName, HeaderValue); 2] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
    (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600")),
];

/// Headers of every other response, as the 1.1 API sent them.
const NOT_CACHED: [(HeaderName, HeaderValue); 4] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=utf-8")),
    (
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate, pre-check=0, post-check=0"),
    ),
    (header::PRAGMA, HeaderValue::from_static("no-cache")),
    (header::EXPIRES, HeaderValue::from_static("Tue, 31 Mar 1981 05:00:00 GMT")),
];

/// Headers of every response, as the 1.1 API sent them.
const FIXED: [(HeaderName, HeaderValue); 2] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN")),
];

impl Outcome {
    /// HTTP status and body.
    fn rendered(self) -> (u16, Cow<'static, str>) {
        let (http, code, message) = match self {
            Self::Destroyed => return (200, r#"{"destroyed":true}"#.into()),
            Self::Described => return (200, OPENAPI.into()),
            Self::Failed(error) => {
                let row = error.row();
                (row.http, row.code, row.message)
            }
            Self::Refused(error) => error.row(),
            Self::Cancelled => {
                let row = DestroyError::DeadlineExceeded.row();
                (row.http, row.code, row.message)
            }
        };
        let body = Errors { errors: [Error { code, message }] };
        // Numbers and texts can always be written.
        (http, serde_json::to_string(&body).unwrap_or_default().into())
    }

    /// As it is recorded in the log and in metrics.
    pub const fn recorded(self) -> CallOutcome {
        match self {
            Self::Destroyed => CallOutcome::Ok,
            Self::Failed(error) => CallOutcome::Failed(error),
            Self::Refused(error) => CallOutcome::Refused(error),
            Self::Cancelled => CallOutcome::Cancelled,
            Self::Described => CallOutcome::Described,
        }
    }

    /// The response, `duration` after the request's headers.
    pub fn into_response(self, context: &ReplyContext, duration: Duration) -> Response {
        let (status, body) = self.rendered();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.reserve(USUAL_HEADERS);
        if self == Self::Described {
            headers.extend(OF_DOCUMENT);
        } else {
            headers.extend(NOT_CACHED);
        }
        headers.extend(FIXED);
        insert_text(headers, "x-transaction-id", &context.transaction);
        headers.insert("x-response-time", u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into());
        if !context.access.is_empty() {
            headers.insert("x-access-level", HeaderValue::from_static(context.access));
        }
        if context.is_secure {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
        }
        if self == Self::Refused(EdgeError::MethodNotAllowed) {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        if status == 401 {
            insert_text(headers, "www-authenticate", &format!("OAuth realm=\"{}\"", context.realm));
        }
        if let Some(allowance) = context.allowance {
            headers.insert("x-rate-limit-limit", allowance.limit.into());
            headers.insert("x-rate-limit-remaining", allowance.remaining.into());
            headers.insert("x-rate-limit-reset", allowance.reset.into());
        }
        match context.allowance {
            Some(allowance) if !allowance.granted => {
                headers.insert(header::RETRY_AFTER, allowance.wait.into());
            }
            _ if status == 503 => {
                headers.insert(header::RETRY_AFTER, crate::config::calls::RETRY_AFTER.as_secs().into());
            }
            _ => {}
        }
        response
    }
}

fn insert_text(headers: &mut HeaderMap, name: &'static str, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
