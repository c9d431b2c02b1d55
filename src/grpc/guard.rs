//! What every call passes before it reaches the service: admission, its deadline, identity; and its line in the log.

use std::{
    convert::Infallible,
    future::{self, Future},
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body, server::NamedService};
use tonic_types::StatusExt;
use tower::Service;
use tracing::{Instrument, Span, field};

use super::{Admission, service::Deadline, status::refused, status_of};
use crate::{
    config,
    domain::DestroyError,
    identity::{AuthenticatedUser, Callers, Peer},
    telemetry::{self, Unanswered},
};

/// A service behind the guard.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    admission: Admission,
    callers: Callers,
}

impl<S> Guarded<S> {
    pub const fn new(inner: S, admission: Admission, callers: Callers) -> Self {
        Self { inner, admission, callers }
    }
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // A call from the gateway is part of a request that has a span and a line of its own.
        let in_process = request.extensions().get::<AuthenticatedUser>().is_some();
        // Before anything is spent on the call: those who are refused must not starve those who are served.
        let place = match self.admission.enter() {
            Ok(place) => place,
            Err(error) => {
                if !in_process {
                    self.admission.count_refusal(error);
                }
                return Box::pin(future::ready(Ok(refused(error))));
            }
        };
        let span = if in_process { Span::current() } else { call_span(&request) };
        let line = (!in_process).then(|| Unanswered::new("call"));
        // The service that was asked whether it is ready must be the one that is called.
        let next = self.inner.clone();
        let (ready, callers) = (mem::replace(&mut self.inner, next), self.callers.clone());
        let deadline = Instant::now() + timeout(request.headers());
        let call = async move {
            let _place = place;
            let served = tokio::time::timeout_at(deadline, serve(ready, &callers, request, deadline)).await;
            let served = served.unwrap_or(Err(DestroyError::DeadlineExceeded));
            let response = served.unwrap_or_else(|error| status_of(error).into_http());
            if let Some(line) = line {
                log(&response, line.answered());
            }
            Ok(response)
        };
        Box::pin(call.instrument(span))
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

/// The service's answer; an error where the call is refused before.
async fn serve<S, B>(
    mut service: S,
    callers: &Callers,
    mut request: Request<B>,
    deadline: Instant,
) -> Result<Response<Body>, DestroyError>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    // In process the gateway has already found out who the user is, and says so in an extension.
    if request.extensions().get::<AuthenticatedUser>().is_none() {
        let peer = request.extensions().get::<Peer>();
        let user = callers.identify(request.headers(), peer).await?;
        tracing::record_all!(Span::current(), enduser.id = %user.user(), caller = user.caller());
        request.extensions_mut().insert(user);
    }
    request.extensions_mut().insert(Deadline(deadline));
    match service.call(request).await {
        Ok(response) => Ok(explained(response)),
        Err(never) => match never {},
    }
}

fn call_span<B>(request: &Request<B>) -> Span {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    // At the highest level, or a filter for errors alone would lose what the line says of them.
    tracing::error_span!(
        "call",
        rpc.method = request.uri().path().trim_start_matches('/'),
        request.id = header("x-request-id"),
        traceparent = header("traceparent"),
        client.address = request.extensions().get::<Peer>().map(Peer::as_str),
        caller = field::Empty,
        enduser.id = field::Empty,
        collection.id = field::Empty,
        replayed = field::Empty,
        error = field::Empty,
    )
}

/// tonic itself refuses a message that is too large or does not decode, and says nothing that a program could read.
/// No valid id needs such a message.
fn explained(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status)
            if status.details().is_empty() && matches!(status.code(), Code::OutOfRange | Code::Internal) =>
        {
            status_of(DestroyError::IdInvalid).into_http()
        }
        _ => response,
    }
}

/// The call's line. What went wrong inside stands in the span's `error`.
fn log(response: &Response<Body>, duration: Duration) {
    let duration_ms = telemetry::milliseconds(duration);
    let Some(status) = Status::from_header_map(response.headers()) else {
        tracing::info!(outcome = "Ok", duration_ms, "call");
        return;
    };
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    match reason.and_then(DestroyError::from_reason) {
        Some(error) if error.is_fault() => tracing::error!(outcome = reason, duration_ms, "call"),
        Some(_) => tracing::info!(outcome = reason, duration_ms, "call"),
        // What tonic itself answers to a method or an encoding that there is not.
        None => tracing::info!(outcome = ?status.code(), duration_ms, "call"),
    }
}

/// How long the call may take: what `grpc-timeout` says, within [`config::calls::TIMEOUT`].
fn timeout(headers: &HeaderMap) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    asked.unwrap_or(config::calls::TIMEOUT).min(config::calls::TIMEOUT)
}

/// gRPC's form: at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let digits_only = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let amount: u64 = digits_only.then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}
