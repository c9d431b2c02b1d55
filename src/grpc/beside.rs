//! What is served beside the RPC and needs no user: health and reflection.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tonic::{body::Body, server::NamedService};
use tower::Service;

use super::status_of;
use crate::{
    domain::DestroyError,
    identity::{Callers, Peer},
};

/// A service whose streams have a limit: each costs memory for as long as its caller likes. `Check`, which probes call, is
/// no stream.
#[derive(Clone, Debug)]
pub struct Beside<S> {
    inner: S,
    streams: Arc<Semaphore>,
    /// Refuses those who show a certificate without a name on the list.
    callers: Callers,
}

impl<S> Beside<S> {
    pub const fn new(inner: S, streams: Arc<Semaphore>, callers: Callers) -> Self {
        Self { inner, streams, callers }
    }
}

impl<S, B> Service<Request<B>> for Beside<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let refused = |error| -> Self::Future { Box::pin(async move { Ok(status_of(error).into_http()) }) };
        if let Err(error) = self.callers.service(request.extensions().get::<Peer>()) {
            return refused(error);
        }
        if request.uri().path().ends_with("/Check") {
            return Box::pin(self.inner.call(request));
        }
        let Ok(place) = self.streams.clone().try_acquire_owned() else {
            return refused(DestroyError::Overloaded);
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // The place is given back with the body.
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &place;
                    frame
                }))
            }))
        })
    }
}

impl<S: NamedService> NamedService for Beside<S> {
    const NAME: &'static str = S::NAME;
}
