//! Failures as statuses with `google.rpc` details.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use http::{HeaderMap, Response};
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    config,
    domain::{DestroyError, GrpcCode},
};

const DOMAIN: &str = "collections.v1";

/// The status of a failure.
#[must_use]
pub fn status_of(error: DestroyError) -> Status {
    status(error, error.row().grpc_message.to_owned(), config::calls::RETRY_AFTER)
}

/// The status of a failure with a text of its own.
pub fn status_with(error: DestroyError, message: String) -> Status {
    status(error, message, config::calls::RETRY_AFTER)
}

/// The status of a caller whose limit is used up until its next window starts, after this time.
pub fn rate_limited(wait: Duration) -> Status {
    let error = DestroyError::RateLimited;
    status(error, error.row().grpc_message.to_owned(), wait)
}

fn status(error: DestroyError, message: String, retry_after: Duration) -> Status {
    let row = error.row();
    let mut details = ErrorDetails::new();
    details.set_error_info(row.reason, DOMAIN, HashMap::new());
    match row.grpc {
        GrpcCode::InvalidArgument => {
            let field = if error == DestroyError::RequestIdInvalid { "request_id" } else { "id" };
            details.add_bad_request_violation(field, message.as_str());
        }
        GrpcCode::Unavailable | GrpcCode::ResourceExhausted => {
            details.set_retry_info(Some(retry_after));
        }
        _ => {}
    }
    Status::with_error_details(code_of(row.grpc), message, details)
}

/// The response to a call that is not admitted. It is rendered once, because it must cost far less than serving the call.
#[must_use]
pub fn refusal(error: DestroyError) -> Response<Body> {
    static OVERLOADED: LazyLock<HeaderMap> = LazyLock::new(|| headers(DestroyError::Overloaded));
    static UNAVAILABLE: LazyLock<HeaderMap> = LazyLock::new(|| headers(DestroyError::StoreUnavailable));
    let headers = if error == DestroyError::Overloaded { &OVERLOADED } else { &UNAVAILABLE };
    let mut response = Response::new(Body::empty());
    response.headers_mut().clone_from(headers);
    response
}

fn headers(error: DestroyError) -> HeaderMap {
    status_of(error).into_http::<Body>().into_parts().0.headers
}

fn code_of(code: GrpcCode) -> Code {
    Code::from_i32(code.number())
}
