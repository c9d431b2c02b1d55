//! Health and reflection: calls that need no user, within limits of their own.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::body::Body;
use tower::Service;

use super::{refusal, status_of};
use crate::{
    collections::{Admission, Holder, Permit},
    config::calls,
    domain::DestroyError,
    identity::{Callers, Peer},
    net::body,
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
    watches: Admission,
    /// Refuses peers whose certificate has no name on the allow-list.
    callers: Callers,
}

/// A service within these limits.
#[derive(Clone, Debug)]
pub struct AuxiliaryService<S> {
    limits: Auxiliary,
    inner: S,
}

impl Auxiliary {
    /// Limits that both kinds of one listener share.
    pub fn new(callers: Callers) -> Self {
        let [calls, watches] = [(); 2].map(|()| Admission::new(calls::AUXILIARY_CALLS));
        calls.open();
        watches.open();
        Self { kind: Kind::Health, calls, watches, callers }
    }

    /// Puts a service within these limits.
    pub fn wrap<S>(&self, kind: Kind, inner: S) -> AuxiliaryService<S> {
        AuxiliaryService { limits: Self { kind, ..self.clone() }, inner }
    }
}

impl<S> AuxiliaryService<S> {
    /// Serves one call, or refuses it.
    pub async fn serve(mut self, request: Request<Incoming>) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        if let Err(failure) = self.limits.callers.service(request.extensions().get::<Peer>()) {
            return status_of(failure.error).into_http();
        }
        let peer = request.extensions().get::<Peer>();
        let holder = Holder {
            connection: peer.map(Peer::connection),
            address: peer.map(|peer| peer.address),
            ..Holder::default()
        };
        let is_watch = request.uri().path().ends_with("/Watch");
        let (parts, mut body) = request.into_parts();
        let deadline = match self.limits.kind {
            Kind::Reflection => Some(Instant::now() + calls::REFLECTION_TIMEOUT),
            Kind::Health if is_watch => None,
            Kind::Health => Some(Instant::now() + calls::TIMEOUT),
        };
        let body = match self.limits.kind {
            Kind::Reflection => Body::new(Bounded::new(body, deadline, None)),
            Kind::Health => {
                let message = body::read(&mut body, calls::MESSAGE_LIMIT);
                match tokio::time::timeout(calls::TIMEOUT, message).await {
                    Ok(Ok(message)) => Body::new(Full::new(message)),
                    Ok(Err(_too_large)) => return status_of(DestroyError::IdInvalid).into_http(),
                    Err(_elapsed) => return status_of(DestroyError::DeadlineExceeded).into_http(),
                }
            }
        };
        // After the message: a peer that never sends it must not keep a place.
        let admission = if is_watch { &self.limits.watches } else { &self.limits.calls };
        let place = match admission.enter(holder) {
            Ok(place) => place,
            Err(error) => return refusal(error),
        };
        match self.inner.call(Request::from_parts(parts, body)).await {
            Ok(response) => response.map(|body| Body::new(Bounded::new(body, deadline, Some(place)))),
            Err(never) => match never {},
        }
    }
}

/// A body that ends at a deadline: with its own trailers before, with DEADLINE_EXCEEDED at the deadline. It keeps the
/// call's place until then.
struct Bounded<B> {
    inner: B,
    end: Option<Pin<Box<Sleep>>>,
    place: Option<Permit>,
    is_ended: bool,
}

impl<B> Bounded<B> {
    fn new(inner: B, deadline: Option<Instant>, place: Option<Permit>) -> Self {
        Self { inner, end: deadline.map(|deadline| Box::pin(sleep_until(deadline))), place, is_ended: false }
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
            return Poll::Ready(frame);
        }
        let Some(end) = &mut self.end else { return Poll::Pending };
        ready!(end.as_mut().poll(context));
        self.is_ended = true;
        // A request ends; a response has trailers.
        let trailers = self.place.take().map(|_place| deadline_exceeded());
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
