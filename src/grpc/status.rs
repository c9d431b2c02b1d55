//! Failures as statuses with `google.rpc` details.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{config, domain::DestroyError};

const DOMAIN: &str = "collections.v1";

/// The failure as a status.
#[must_use]
pub fn status_of(error: DestroyError) -> Status {
    let row = error.row();
    let mut details = ErrorDetails::new();
    details.set_error_info(row.reason, DOMAIN, HashMap::new());
    match row.grpc {
        Code::InvalidArgument => {
            let field = if error == DestroyError::RequestIdInvalid { "request_id" } else { "id" };
            details.add_bad_request_violation(field, row.message);
        }
        Code::Unavailable | Code::ResourceExhausted => {
            details.set_retry_info(Some(config::RETRY_AFTER));
        }
        _ => {}
    }
    Status::with_error_details(row.grpc, row.message, details)
}
