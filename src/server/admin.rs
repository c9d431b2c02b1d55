//! The admin listener, without credentials: gRPC health, `/livez` and `/readyz` for probes, and `/metrics` for Prometheus. Any
//! other path is not found.

use std::convert::Infallible;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tonic::body::Body;
use tower::Service;

use super::observed::Observed;
use crate::{grpc::AdminRoutes, telemetry::MetricsFormat};

/// The service of the admin listener.
pub fn service(
    routes: AdminRoutes,
    observed: Observed,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send,
> + Clone
+ Send
+ Sync {
    tower::service_fn(move |request: Request<Incoming>| {
        let (routes, observed) = (routes.clone(), observed.clone());
        async move {
            if routes.serves(&request) {
                return Ok(routes.serve(request).await);
            }
            Ok(respond(&request, &observed))
        }
    })
}

/// The response where there is no memory for a request.
pub fn refusal() -> Response<Body> {
    with_status(StatusCode::SERVICE_UNAVAILABLE)
}

fn respond<B>(request: &Request<B>, observed: &Observed) -> Response<Body> {
    let uri = request.uri();
    if !["/livez", "/readyz", "/metrics"].contains(&uri.path()) {
        return with_status(StatusCode::NOT_FOUND);
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = with_status(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match uri.path() {
        "/metrics" => {
            let format = MetricsFormat::accepted(&accept(request.headers()));
            text(StatusCode::OK, format.content_type(), observed.metrics_text(format))
        }
        // Never the database: a process that is restarted does not bring that back.
        "/livez" => plain(StatusCode::OK, "ok\n".to_owned()),
        _ => readyz(uri.query().unwrap_or_default(), observed),
    }
}

/// As Kubernetes answers: what failed is shown whether or not it was asked for.
fn readyz(query: &str, observed: &Observed) -> Response<Body> {
    let is_ready = observed.checks.is_ready();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let is_verbose = query.split('&').any(|parameter| parameter.split('=').next() == Some("verbose"));
    plain(
        status,
        if is_ready && !is_verbose { "ok\n".to_owned() } else { observed.checks.report(&observed.optional) },
    )
}

/// All lines of the header as one list.
fn accept(headers: &HeaderMap) -> String {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    lines.collect::<Vec<_>>().join(",")
}

fn plain(status: StatusCode, body: String) -> Response<Body> {
    text(status, "text/plain; charset=utf-8", body)
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn with_status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
