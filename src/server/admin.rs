//! The admin listener: health for probes and `/metrics` for Prometheus, without credentials. Any other path is not found.

use std::convert::Infallible;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tonic::body::Body;
use tower::Service;

use crate::{grpc::AdminRoutes, telemetry::Metrics};

/// The service of the admin listener.
pub fn service(
    routes: AdminRoutes,
    metrics: Metrics,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send,
> + Clone
+ Send
+ Sync {
    tower::service_fn(move |request: Request<Incoming>| {
        let (routes, metrics) = (routes.clone(), metrics.clone());
        async move {
            if routes.serves(&request) {
                return Ok(routes.serve(request).await);
            }
            Ok(match (request.method(), request.uri().path()) {
                (&Method::GET | &Method::HEAD, "/metrics") => {
                    text("application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.text())
                }
                (_, "/metrics") => {
                    let mut response = with_status(StatusCode::METHOD_NOT_ALLOWED);
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                    response
                }
                _ => with_status(StatusCode::NOT_FOUND),
            })
        }
    })
}

/// The response where there is no memory for a request.
pub fn refusal() -> Response<Body> {
    with_status(StatusCode::SERVICE_UNAVAILABLE)
}

fn text(content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn with_status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
