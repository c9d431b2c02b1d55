//! The REST gateway: the 1.1 URL onto the RPC, and the RPC's answers into 1.1 answers. Nothing but a client of the RPC.

mod answer;
mod gateway;
mod surroundings;

use std::sync::Arc;

use axum::Router;

use crate::{
    domain::Entropy,
    identity::{jwt, oauth1},
    rate_limit::RateLimit,
};

pub use answer::Outcome;
pub use gateway::{Bounds, Gateway, Rpc};
pub use surroundings::Surroundings;

/// The one path of the API.
pub const PATH: &str = "/1.1/collections/destroy.json";

/// What the gateway authenticates its clients with, and how it meets them.
#[derive(Clone, Debug)]
pub struct Edge {
    pub oauth1: oauth1::Verifier,
    /// Of bearer tokens, where they are believed.
    pub jwt: Option<jwt::Verifier>,
    pub surroundings: Surroundings,
    pub rate_limit: Option<RateLimit>,
    pub entropy: Entropy,
}

/// The gateway as a service for a listener.
pub fn router(service: Rpc, edge: Edge) -> Router {
    let gateway = Arc::new(Gateway::new(service, edge));
    Router::new().fallback(gateway::handle).with_state(gateway)
}
