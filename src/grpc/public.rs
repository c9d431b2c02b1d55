//! What the public listener serves.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use tonic::{body::Body, codegen::StdError, server::NamedService};
use tower::Service as TowerService;

use super::{Routes, Service};

/// The RPC, and what is beside it. The router would cost a call a tenth of its work, so the RPC does not go through it.
#[derive(Clone, Debug)]
pub struct Public {
    rpc: Service,
    beside: Routes,
}

impl Public {
    pub const fn new(rpc: Service, beside: Routes) -> Self {
        Self { rpc, beside }
    }
}

impl<B> TowerService<Request<B>> for Public
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    /// The router is always ready.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        TowerService::<Request<B>>::poll_ready(&mut self.rpc, context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = request.uri().path().strip_prefix('/').and_then(|path| path.split('/').next());
        if service == Some(Service::NAME) {
            self.rpc.call(request)
        } else {
            Box::pin(self.beside.call(request))
        }
    }
}
