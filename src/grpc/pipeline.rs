//! What every call passes before it reaches the service: its record, its deadline, its body, admission and identity.

use std::{borrow::Cow, convert::Infallible, future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::{
    ResponseFuture,
    service::AuthenticatedCall,
    status::{rate_limited, refusal, status_with},
    status_of,
};
use crate::{
    collections::Admission,
    config::calls,
    domain::{DestroyError, DestroyFailure, GrpcCode},
    identity::{Callers, Peer},
    net::body::{self, BodyError},
    rate_limit::{Key, RateLimit},
    telemetry::{CallFields, CallOutcome, CallRecord, Cut, Metrics, Traces, known_rpc_method},
};

/// A service behind the pipeline. It gets requests with their whole body and an [`AuthenticatedCall`] in their extensions.
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pipeline<S> {
    inner: S,
    checks: Arc<Checks>,
}

/// What calls are checked by.
#[derive(Debug)]
struct Checks {
    admission: Admission,
    callers: Callers,
    caller_rate_limit: Option<RateLimit>,
    metrics: Metrics,
    traces: Traces,
}

impl<S> Pipeline<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    pub fn new(
        inner: S,
        admission: Admission,
        callers: Callers,
        caller_rate_limit: Option<RateLimit>,
        metrics: Metrics,
        traces: Traces,
    ) -> Self {
        metrics.calls.expect_grpc();
        let checks = Checks { admission, callers, caller_rate_limit, metrics, traces };
        Self { inner, checks: Arc::new(checks) }
    }

    /// Serves a call, or refuses it.
    pub fn call(&self, request: Request<Incoming>) -> ResponseFuture {
        // Before anything is spent on the call: refused calls must not starve those that are served.
        if let Err(error) = self.checks.admission.check() {
            self.checks.admission.count_refusal(error);
            record_refusal(&request, error, &self.checks.metrics);
            return Box::pin(future::ready(Ok(refusal(error))));
        }
        let pipeline = self.clone();
        Box::pin(async move { Ok(pipeline.serve(request).await) })
    }
}

impl<S> Pipeline<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<Body>, Error = Infallible>,
{
    async fn serve(self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let record = CallRecord::new(fields(&parts, &self.checks.traces), &self.checks.metrics);
        let deadline = record.started() + timeout(&parts.headers);
        let checks = self.checks.clone();
        // Pinned here, because a future of this size is expensive to move.
        let processed = pin!(self.process(parts, body, deadline, &record));
        let processed = tokio::time::timeout_at(deadline, processed).await;
        match processed.unwrap_or_else(|_elapsed| Err(DestroyError::DeadlineExceeded.into())) {
            Ok(response) => respond(response, &record),
            Err(failure) if failure.error == DestroyError::Overloaded => {
                record.finish(&Err(failure));
                record.fields().is_silent = true;
                checks.admission.count_refusal(DestroyError::Overloaded);
                refusal(DestroyError::Overloaded)
            }
            Err(failure) => {
                let error = failure.error;
                record.finish(&Err(failure));
                status_of(error).into_http()
            }
        }
    }

    /// The service's response; a failure where the call does not reach the service.
    async fn process(
        mut self,
        mut parts: Parts,
        mut body: Incoming,
        deadline: Instant,
        record: &CallRecord,
    ) -> Result<Response<Body>, DestroyFailure> {
        // Before the call has a place: a caller that never sends the message must not hold one.
        let message = body::read(&mut body, calls::MESSAGE_LIMIT + MESSAGE_HEADER).await;
        let message = match message {
            Ok(message) => message,
            Err(BodyError::TooLarge) => {
                let text = format!("message is larger than {} bytes", calls::MESSAGE_LIMIT);
                return Ok(invalid_message(record, text));
            }
            Err(BodyError::Incomplete) => {
                // There was no call yet, and a flood of such requests must not fill the log.
                record.fields().is_silent = true;
                return Ok(Status::cancelled("message is incomplete").into_http());
            }
        };
        if !is_one_message(&message) {
            return Ok(invalid_message(record, "expected one message".to_owned()));
        }
        let peer = parts.extensions.get::<Peer>();
        let mut permit = self.checks.admission.enter(peer.map(Peer::client))?;
        record.fields().is_admitted = true;
        let user = self.checks.callers.identify(&parts.headers, peer).await?;
        {
            let mut fields = record.fields();
            (fields.user, fields.caller) = (Some(user.user()), user.caller().cloned());
        }
        permit.identify(user.user(), user.caller().cloned())?;
        if let Some(limit) = &self.checks.caller_rate_limit {
            let caller = user.caller().map(|caller| &**caller).unwrap_or_default();
            let allowance = limit.take(Key::caller(caller)).await;
            if !allowance.granted {
                record.finish(&Err(DestroyError::RateLimited.into()));
                return Ok(rate_limited(Duration::from_secs(allowance.wait)).into_http());
            }
        }
        parts.extensions.insert(AuthenticatedCall { user, deadline, record: record.clone() });
        match self.inner.call(Request::from_parts(parts, Full::new(message))).await {
            Ok(response) => Ok(response),
            Err(never) => match never {},
        }
    }
}

/// The five bytes before a message: whether it is compressed, and its length.
const MESSAGE_HEADER: usize = 5;

/// Whether a body is one message and nothing behind it, of which tonic would read the first alone.
fn is_one_message(body: &[u8]) -> bool {
    match body.split_at_checked(MESSAGE_HEADER) {
        Some(([_flag, length @ ..], message)) => <[u8; 4]>::try_from(length)
            .is_ok_and(|length| u32::from_be_bytes(length) as usize == message.len()),
        _ => false,
    }
}

pub(super) fn fields(parts: &Parts, traces: &Traces) -> CallFields {
    let header = |name: &str| {
        let text = parts.headers.get(name).and_then(|value| value.to_str().ok());
        text.map(|text| Cut(text).copy())
    };
    CallFields {
        rpc_method: Some(method(parts.uri.path())),
        client: parts.extensions.get::<Peer>().map(Peer::address_text),
        request_id: header("x-request-id"),
        trace: traces.start_call(&parts.headers),
        ..CallFields::default()
    }
}

/// The method that a path names, as the log has it.
fn method(path: &str) -> Cow<'static, str> {
    let method = path.trim_start_matches('/');
    match known_rpc_method(method) {
        Some(known) => Cow::Borrowed(known),
        None => Cut(method).copy().into_string().into(),
    }
}

/// The fields of a call that is counted and has no log line of its own.
pub(super) fn silent_fields(path: &str) -> CallFields {
    CallFields { rpc_method: Some(method(path)), is_silent: true, ..CallFields::default() }
}

/// Counts a call that is refused before anything is known of it but its method.
pub(super) fn record_refusal<B>(request: &Request<B>, error: DestroyError, metrics: &Metrics) {
    let record = CallRecord::new(silent_fields(request.uri().path()), metrics);
    record.finish(&Err(error.into()));
}

/// tonic itself refuses a message that does not decode, and an unknown encoding.
fn respond(response: Response<Body>, record: &CallRecord) -> Response<Body> {
    if record.fields().outcome.is_some() || record.fields().is_silent {
        return response;
    }
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    if matches!(code, Code::OutOfRange | Code::Internal | Code::ResourceExhausted) {
        // It has no details that a program could read.
        return invalid_message(record, "message does not decode".to_owned());
    }
    record.fields().outcome = Some(CallOutcome::Status(GrpcCode::of_number(code.into())));
    response
}

/// The response to a message from which no id can be read.
fn invalid_message(record: &CallRecord, text: String) -> Response<Body> {
    record.finish(&Err(DestroyFailure::new(DestroyError::IdInvalid, &text)));
    status_with(DestroyError::IdInvalid, text).into_http()
}

/// The longest the call may take: `grpc-timeout`, but no more than [`calls::TIMEOUT`].
fn timeout(headers: &HeaderMap) -> Duration {
    let requested = headers.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    requested.unwrap_or(calls::TIMEOUT).min(calls::TIMEOUT)
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

#[cfg(test)]
mod tests {
    use super::is_one_message;

    #[test]
    fn a_body_is_one_whole_message() {
        assert!(is_one_message(&[0, 0, 0, 0, 0]) && is_one_message(&[1, 0, 0, 0, 2, 7, 7]));
        for body in [&[][..], &[0, 0, 0, 0], &[0, 0, 0, 0, 2, 7], &[0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0]] {
            assert!(!is_one_message(body), "{body:?}");
        }
    }
}
