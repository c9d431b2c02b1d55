//! The RPC: tonic's service, what every call passes before it, health and reflection, and failures as statuses.

mod auxiliary;
mod pipeline;
mod routes;
mod service;
mod status;

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc};

use http::{Request, Response};
use tonic::{body::Body, codec::CompressionEncoding};
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower::util::BoxCloneSyncService;

use crate::{
    collections::{Admission, Local},
    config::calls,
    domain::DestroyError,
    identity::Callers,
    proto::collections_service_server::{CollectionsServiceServer, SERVICE_NAME},
    rate_limit::RateLimit,
    telemetry::{Metrics, Traces},
};

use auxiliary::{Auxiliary, Kind};
use pipeline::Pipeline;
use routes::Services;
pub use routes::{AdminRoutes, PublicRoutes};
use service::Collections;
use status::refusal;
pub use status::status_of;

/// The response to a gRPC call.
type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The health service, and the means to set what it reports.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    service: HealthServer<HealthService>,
}

/// Serves the RPC, health, and reflection for clients old and new.
///
/// # Errors
/// The compiled-in descriptors do not decode.
pub fn public_routes(
    local: Local,
    admission: Admission,
    health: &Health,
    callers: &Callers,
    caller_rate_limit: Option<RateLimit>,
    metrics: &Metrics,
    traces: Traces,
) -> Result<PublicRoutes, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // With these, grpcurl shows error details as text.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1()?.max_decoding_message_size(calls::MESSAGE_LIMIT);
    let v1alpha = reflection().build_v1alpha()?.max_decoding_message_size(calls::MESSAGE_LIMIT);
    // Reflection streams must not take the places of health.
    let [health_limits, reflection_limits] =
        [(); 2].map(|()| Auxiliary::new(callers.clone(), metrics.clone()));
    let server = CollectionsServiceServer::new(Collections::new(local))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(calls::MESSAGE_LIMIT);
    Ok(PublicRoutes(Arc::new(Services {
        rpc: Pipeline::new(server, admission, callers.clone(), caller_rate_limit, metrics.clone(), traces),
        health: health_limits.wrap(Kind::Health, health.service.clone()),
        reflection: reflection_limits.wrap(Kind::Reflection, BoxCloneSyncService::new(v1)),
        reflection_v1alpha: reflection_limits.wrap(Kind::Reflection, BoxCloneSyncService::new(v1alpha)),
        metrics: metrics.clone(),
    })))
}

/// Serves health alone, without credentials, for probes.
#[must_use]
pub fn admin_routes(health: &Health, metrics: &Metrics) -> AdminRoutes {
    let auxiliary = Auxiliary::new(Callers::default(), metrics.clone());
    AdminRoutes { health: auxiliary.wrap(Kind::Health, health.service.clone()) }
}

/// Refuses a call for which there is no memory, and counts it.
#[must_use]
pub fn refuse_call<B>(request: &Request<B>, metrics: &Metrics) -> Response<Body> {
    pipeline::record_refusal(request, DestroyError::Overloaded, metrics);
    refusal(DestroyError::Overloaded)
}

impl Health {
    /// Alive, and not yet ready.
    pub async fn new() -> Self {
        let reporter = HealthReporter::new();
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()))
            .max_decoding_message_size(calls::MESSAGE_LIMIT);
        let health = Self { reporter, service };
        health.set_ready(false).await;
        health
    }

    /// Readiness: whether calls can be served now.
    pub async fn set_ready(&self, ready: bool) {
        use tonic_health::ServingStatus::{NotServing, Serving};
        self.reporter.set_service_status(SERVICE_NAME, if ready { Serving } else { NotServing }).await;
    }

    /// Neither ready nor alive for long.
    pub async fn set_draining(&self) {
        self.set_ready(false).await;
        self.reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    }
}
