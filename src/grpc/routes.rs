//! What the listeners that speak gRPC serve.

use std::{
    convert::Infallible,
    future,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::timeout;
use tonic::{Status, body::Body, server::NamedService};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};
use tower::{Service, util::BoxCloneSyncService};

use super::{
    ResponseFuture,
    auxiliary::AuxiliaryService,
    pipeline::{Pipeline, silent_fields},
    service::Collections,
};
use crate::{
    config::calls,
    domain::GrpcCode,
    net::body::discard,
    proto::collections_service_server::CollectionsServiceServer,
    telemetry::{CallOutcome, CallRecord, Metrics},
};

type Rpc = CollectionsServiceServer<Collections>;
pub type Health = AuxiliaryService<HealthServer<HealthService>>;
pub type Reflection = AuxiliaryService<BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>>;

/// The public listener's services. A router would cost a call a tenth of its work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PublicRoutes(pub(super) Arc<Services>);

#[derive(Debug)]
pub struct Services {
    pub(super) rpc: Pipeline<Rpc>,
    pub(super) health: Health,
    pub(super) reflection: Reflection,
    pub(super) reflection_v1alpha: Reflection,
    pub(super) metrics: Metrics,
}

/// The admin listener's gRPC service.
#[derive(Clone, Debug)]
pub struct AdminRoutes {
    pub(super) health: Health,
}

/// The path of the one method.
const DESTROY: &str = "/collections.v1.CollectionsService/Destroy";

/// The full names of the auxiliary services.
const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_V1ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

impl Service<Request<Incoming>> for PublicRoutes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> ResponseFuture {
        if let Some(response) = reject_other_protocols(&request) {
            return Box::pin(async move {
                // Some clients lose a response that is sent before they have sent their body.
                let mut body = request.into_body();
                let discarded = discard(&mut body, calls::BODY_LIMIT as u64);
                let _elapsed = timeout(calls::DISCARD_IDLE_TIMEOUT, discarded).await;
                Ok(response)
            });
        }
        let services = &*self.0;
        match service_of(&request) {
            Some(Rpc::NAME) if request.uri().path() == DESTROY => services.rpc.call(request),
            Some(Rpc::NAME) => services.unimplemented(&request, "unknown method"),
            Some(HEALTH) => serve(&services.health, request),
            Some(REFLECTION) => serve(&services.reflection, request),
            Some(REFLECTION_V1ALPHA) => serve(&services.reflection_v1alpha, request),
            _ => services.unimplemented(&request, "unknown service"),
        }
    }
}

impl AdminRoutes {
    /// Whether a request is for a service that is served here.
    #[must_use]
    pub fn serves(&self, request: &Request<Incoming>) -> bool {
        service_of(request) == Some(HEALTH)
    }

    /// Serves a call of the health service.
    pub async fn serve(self, request: Request<Incoming>) -> Response<Body> {
        match reject_other_protocols(&request) {
            Some(response) => response,
            None => self.health.serve(request).await,
        }
    }
}

fn serve<S>(service: &AuxiliaryService<S>, request: Request<Incoming>) -> ResponseFuture
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let service = service.clone();
    Box::pin(async move { Ok(service.serve(request).await) })
}

impl Services {
    fn unimplemented<B>(&self, request: &Request<B>, message: &str) -> ResponseFuture {
        let record = CallRecord::new(silent_fields(request.uri().path()), &self.metrics);
        record.fields().outcome = Some(CallOutcome::Status(GrpcCode::Unimplemented));
        Box::pin(future::ready(Ok(Status::unimplemented(message).into_http())))
    }
}

/// The service that a path names: `/<service>/<method>`.
fn service_of<B>(request: &Request<B>) -> Option<&str> {
    request.uri().path().strip_prefix('/')?.split_once('/').map(|(service, _method)| service)
}

/// The response to a request that is not a gRPC call, such as a browser's GET: it must not run anything.
fn reject_other_protocols<B>(request: &Request<B>) -> Option<Response<Body>> {
    if request.method() != Method::POST {
        let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Some(response);
    }
    let content_type =
        request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_grpc = content_type.strip_prefix(b"application/grpc").is_some_and(|rest| {
        let rest = rest.strip_prefix(b"+proto").unwrap_or(rest);
        rest.first().is_none_or(|next| [b';', b' '].contains(next))
    });
    if is_grpc { None } else { Some(empty(StatusCode::UNSUPPORTED_MEDIA_TYPE)) }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
