//! The REST gateway: the 1.1 URL onto [`DestroyApi`], and its results into 1.1 responses.

mod body;
mod handler;
mod reply;
mod transport;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    response::Response,
    routing::{get, post},
};
use http::Request;

use crate::{
    collections::{Admission, DestroyApi},
    domain::{DestroyError, Entropy},
    identity::{jwt, oauth1},
    rate_limit::RateLimit,
    telemetry::{Metrics, Traces},
};

use handler::Gateway;
pub use reply::{Outcome, ReplyContext};
pub use transport::TransportPolicy;

/// The one path of the API.
pub const PATH: &str = "/1.1/collections/destroy.json";

/// The path of the API's description in OpenAPI 3.1.
pub const OPENAPI_PATH: &str = "/openapi.json";

/// What the gateway authenticates and limits its clients by.
#[derive(Clone, Debug)]
pub struct Edge {
    pub oauth1: oauth1::Verifier,
    /// Verifies bearer tokens, where they are accepted.
    pub jwt: Option<jwt::Verifier>,
    pub transport: TransportPolicy,
    pub rate_limit: Option<RateLimit>,
    pub entropy: Entropy,
    pub metrics: Metrics,
    pub traces: Traces,
}

/// Refuses a request for which there is no memory, and counts it.
#[must_use]
pub fn refuse_request<B>(request: &Request<B>, metrics: &Metrics) -> Response<Body> {
    handler::record_refusal(request, metrics);
    Outcome::Failed(DestroyError::Overloaded).into_response(&ReplyContext::default(), Duration::ZERO)
}

/// The gateway as a service for a listener.
pub fn router(api: Arc<dyn DestroyApi>, admission: Admission, edge: Edge) -> Router {
    Router::new()
        .route(PATH, post(handler::destroy).fallback(handler::wrong_method))
        .route(OPENAPI_PATH, get(handler::describe).fallback(handler::method_not_allowed))
        .fallback(handler::unknown_path)
        .with_state(Arc::new(Gateway::new(api, admission, edge)))
}
