//! The RPC: tonic's service, what guards it, and errors as statuses with details.

mod admission;
mod beside;
mod guard;
mod public;
mod service;
mod status;

use std::sync::Arc;

use tokio::sync::Semaphore;
pub use tonic::service::Routes;
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{
    config,
    identity::Callers,
    proto::collections_service_server::{CollectionsServiceServer, SERVICE_NAME},
    store::Store,
};

pub use admission::Admission;
use beside::Beside;
pub use guard::Guarded;
pub use public::Public;
pub use service::Collections;
pub use status::status_of;

/// The one service, ready for a listener or for the in-process gateway.
pub type Service = Guarded<CollectionsServiceServer<Collections>>;

/// Health's two sides: what is said, and the service that says it.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    service: HealthServer<HealthService>,
}

/// The guarded service.
#[must_use]
pub fn service(store: Store, admission: Admission, callers: Callers) -> Service {
    let server = CollectionsServiceServer::new(Collections::new(store))
        .max_decoding_message_size(config::calls::MESSAGE_LIMIT);
    Guarded::new(server, admission, callers)
}

/// What the public listener serves: the service, health, and reflection for clients old and new.
///
/// # Errors
/// The compiled-in descriptors do not decode.
pub fn public_routes(
    service: Service,
    health: &Health,
    callers: &Callers,
) -> Result<Public, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // With these, grpcurl shows error details as text.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let streams = Arc::new(Semaphore::new(config::calls::OPEN_STREAMS));
    let beside = Routes::new(Beside::new(health.service.clone(), streams.clone(), callers.clone()))
        .add_service(Beside::new(reflection().build_v1()?, streams.clone(), callers.clone()))
        .add_service(Beside::new(reflection().build_v1alpha()?, streams, callers.clone()));
    Ok(Public::new(service, beside))
}

/// What the admin listener serves: health alone, without credentials, for probes.
#[must_use]
pub fn admin_routes(health: &Health) -> Routes {
    let streams = Arc::new(Semaphore::new(config::calls::OPEN_STREAMS));
    Routes::new(Beside::new(health.service.clone(), streams, Callers::default()))
}

impl Health {
    /// Alive, and not yet ready.
    pub async fn new() -> Self {
        let reporter = HealthReporter::new();
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let health = Self { reporter, service };
        health.set_ready(false).await;
        health
    }

    /// Readiness: whether calls can be served now.
    pub async fn set_ready(&self, ready: bool) {
        use tonic_health::ServingStatus::{NotServing, Serving};
        self.reporter.set_service_status(SERVICE_NAME, if ready { Serving } else { NotServing }).await;
    }

    /// Neither ready nor for long alive.
    pub async fn set_draining(&self) {
        self.set_ready(false).await;
        self.reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    }
}
