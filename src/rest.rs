//! The REST gateway: the 1.1 URL onto the RPC, and the RPC's answers into 1.1 answers. Nothing but a client of the RPC.

mod answer;
mod gateway;
mod surroundings;

use axum::Router;

use crate::{domain::Entropy, identity::oauth1::Verifier, rate_limit::RateLimit};

pub use gateway::{Bounds, Gateway, Rpc};
pub use surroundings::Surroundings;

/// The one path of the API.
pub const PATH: &str = "/1.1/collections/destroy.json";

/// The gateway as a service for a listener.
pub fn router(
    service: Rpc,
    verifier: Verifier,
    surroundings: Surroundings,
    rate_limit: Option<RateLimit>,
    entropy: Entropy,
) -> Router {
    let gateway = Gateway::new(service, verifier, surroundings, rate_limit, entropy);
    Router::new().fallback(gateway::handle).with_state(gateway)
}
