//! Health and reflection: calls that need no user, within limits of their own.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response, request::Parts};
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::{
    pipeline::{fields, silent_fields},
    refusal, status_of,
};
use crate::{
    collections::{Admission, Permit},
    config::calls,
    domain::{DestroyError, GrpcCode},
    identity::{Callers, Peer},
    net::body::{self, BodyError},
    telemetry::{CallOutcome, CallRecord, Metrics, Traces},
};

/// Which of the two a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Check` and `List` have a deadline and one small message. `Watch` lasts until its connection ends.
    Health,
    /// A stream that lasts [`calls::REFLECTION_TIMEOUT`] at most.
    Reflection,
}

/// The limits of auxiliary calls on one listener.
#[derive(Clone, Debug)]
pub struct Auxiliary {
    kind: Kind,
    calls: Admission,
    streams: Admission,
    /// Refuses peers whose certificate has no name on the allow-list.
    callers: Callers,
    metrics: Metrics,
}

/// A service within these limits.
#[derive(Clone, Debug)]
pub struct AuxiliaryService<S> {
    limits: Auxiliary,
    inner: S,
}

impl Auxiliary {
    /// Limits that both kinds of one listener share.
    pub fn new(callers: Callers, metrics: Metrics) -> Self {
        let [calls, streams] = [(); 2].map(|()| Admission::new(calls::AUXILIARY_CALLS));
        calls.open();
        streams.open();
        Self { kind: Kind::Health, calls, streams, callers, metrics }
    }

    /// Puts a service within these limits.
    pub fn wrap<S>(&self, kind: Kind, inner: S) -> AuxiliaryService<S> {
        AuxiliaryService { limits: Self { kind, ..self.clone() }, inner }
    }
}

impl<S> AuxiliaryService<S> {
    /// Serves one call, or refuses it.
    pub async fn serve(self, request: Request<Incoming>) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let (parts, body) = request.into_parts();
        if let Err(failure) = self.limits.callers.service(parts.extensions.get::<Peer>()) {
            let error = failure.error;
            let fields = fields(&parts, &Traces::default());
            CallRecord::new(fields, &self.limits.metrics).finish(&Err(failure));
            return status_of(error).into_http();
        }
        let record = CallRecord::new(silent_fields(parts.uri.path()), &self.limits.metrics);
        let response = self.serve_admitted(parts, body, &record).await;
        // Without a status in its headers the response has a body, and a stream records how that ends.
        let mut fields = record.fields();
        if let Some(status) = Status::from_header_map(response.headers()) {
            fields.outcome = Some(outcome(status.code()));
        }
        drop(fields);
        response
    }

    async fn serve_admitted(mut self, parts: Parts, mut body: Incoming, record: &CallRecord) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let client = parts.extensions.get::<Peer>().map(Peer::client);
        let is_stream = self.limits.kind == Kind::Reflection || parts.uri.path().ends_with("/Watch");
        let deadline = match self.limits.kind {
            Kind::Reflection => Some(Instant::now() + calls::REFLECTION_TIMEOUT),
            Kind::Health if is_stream => None,
            Kind::Health => Some(Instant::now() + calls::TIMEOUT),
        };
        let body = match self.limits.kind {
            Kind::Reflection => Body::new(Bounded::new(body, deadline)),
            Kind::Health => {
                let message = body::read(&mut body, calls::MESSAGE_LIMIT);
                match tokio::time::timeout(calls::TIMEOUT, message).await {
                    Ok(Ok(message)) => Body::new(Full::new(message)),
                    Ok(Err(BodyError::TooLarge)) => {
                        return Status::resource_exhausted("message is too large").into_http();
                    }
                    Ok(Err(BodyError::Incomplete)) => {
                        return Status::cancelled("message is incomplete").into_http();
                    }
                    Err(_elapsed) => return status_of(DestroyError::DeadlineExceeded).into_http(),
                }
            }
        };
        // After the message: a peer that never sends it must not hold a place.
        let admission = if is_stream { &self.limits.streams } else { &self.limits.calls };
        let place = match admission.enter(client) {
            Ok(place) => place,
            Err(error) => {
                admission.count_refusal(error);
                return refusal(error);
            }
        };
        let response = match self.inner.call(Request::from_parts(parts, body)).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if !is_stream {
            // The one message is made. A peer that does not read it holds its own connection's memory alone.
            record.fields().outcome = Some(CallOutcome::Ok);
            return response;
        }
        let ended = CancellationToken::new();
        tokio::spawn(hold(place, deadline, ended.clone()));
        let end = StreamEnd { record: record.clone(), _ended: ended.drop_guard() };
        response.map(|body| Body::new(Bounded { end: Some(end), ..Bounded::new(body, deadline) }))
    }
}

/// The outcome of a call that ended with this status.
fn outcome(code: Code) -> CallOutcome {
    match GrpcCode::of_number(code.into()) {
        GrpcCode::Ok => CallOutcome::Ok,
        code => CallOutcome::Status(code),
    }
}

/// Holds the place of a stream until it ends or its deadline passes, whether or not the peer reads.
async fn hold(place: Permit, deadline: Option<Instant>, ended: CancellationToken) {
    match deadline {
        Some(deadline) => {
            let _elapsed = tokio::time::timeout_at(deadline, ended.cancelled()).await;
        }
        None => ended.cancelled().await,
    }
    drop(place);
}

/// A body that ends at a deadline: a request's as if it were complete, a response's with the trailers of DEADLINE_EXCEEDED.
struct Bounded<B> {
    inner: B,
    deadline: Option<Pin<Box<Sleep>>>,
    is_ended: bool,
    /// Of a response: what ends with it.
    end: Option<StreamEnd>,
}

/// Records how a stream ends, and releases its place. Dropped before the end of the stream, the peer has given it up.
struct StreamEnd {
    record: CallRecord,
    _ended: DropGuard,
}

impl<B> Bounded<B> {
    fn new(inner: B, deadline: Option<Instant>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Self { inner, deadline, is_ended: false, end: None }
    }
}

impl<B: HttpBody + Unpin> HttpBody for Bounded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            if let (Some(end), Some(Ok(frame))) = (&self.end, &frame) {
                let status = frame.trailers_ref().and_then(Status::from_header_map);
                end.record.fields().outcome = status.map(|status| outcome(status.code()));
            }
            return Poll::Ready(frame);
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        self.is_ended = true;
        let trailers = self.end.take().map(|end| {
            end.record.fields().outcome = Some(CallOutcome::Status(GrpcCode::DeadlineExceeded));
            deadline_exceeded()
        });
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended || self.inner.is_end_stream()
    }
}

fn deadline_exceeded() -> HeaderMap {
    let status = status_of(DestroyError::DeadlineExceeded);
    let (parts, _) = status.into_http::<Body>().into_parts();
    let mut trailers = parts.headers;
    trailers.remove(http::header::CONTENT_TYPE);
    trailers
}
