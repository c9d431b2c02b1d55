//! The gateway's way to the RPC over the network: a channel to every address behind a name, each call by one of them.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, request::Parts, uri::PathAndQuery};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, sync::watch, time::Instant};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt;
use tower::{BoxError, Service, timeout::Timeout, util::BoxCloneSyncService};
use tracing::{Span, field};

use super::{balancer::Balancer, resolver::Resolver, url::UpstreamUrl};
use crate::{
    config,
    domain::{Clock, DestroyError},
    grpc::{Admission, status_of},
    identity::AuthenticatedUser,
    net::{ClientTls, FileWatch, TlsError},
    rest::Bounds,
};

type Channel = Client<Connector, Full<Bytes>>;
type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// The RPC behind a name. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    channel: watch::Receiver<Channel>,
    balancer: Arc<Balancer>,
    scheme: &'static str,
    admission: Admission,
}

/// A call that may be sent more than once.
struct Call {
    parts: Parts,
    path: PathAndQuery,
    user: HeaderValue,
    body: Bytes,
    bounds: Bounds,
}

/// What went wrong with one try.
enum Failure {
    /// Nothing was sent.
    Unsent(String),
    /// What became of it is not known.
    Unknown(String),
}

impl Upstream {
    /// The way to this address, what keeps its certificates true to their files, and its addresses to their name. Calls
    /// are taken as `admission` has it.
    ///
    /// # Errors
    /// A file of `tls` cannot be used.
    pub fn new(
        url: UpstreamUrl,
        tls: ClientTls,
        clock: Clock,
        admission: Admission,
    ) -> Result<(Self, FileWatch, Resolver), TlsError> {
        let (files, name) = (tls.files(), url.name.clone());
        let build = move || Ok(channel(tls.load(&clock)?, name.clone()));
        let (reload, channel) = FileWatch::load("--upstream-cert", files, build)?;
        let scheme = url.scheme;
        let (resolver, addresses) = Resolver::new(url);
        let balancer = Arc::new(Balancer::new(addresses));
        Ok((Self { channel, balancer, scheme, admission }, reload, resolver))
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, DestroyError> {
        let _permit = self.admission.enter()?;
        let call = Call::read(request).await.ok_or(DestroyError::Internal)?;
        let answer = self.by_turns(&call).await?;
        match refusal_of_ourselves(&answer) {
            Some(reason) => {
                Span::current()
                    .record("error", format!("the upstream does not trust this gateway: {reason}"));
                Err(DestroyError::Internal)
            }
            None => Ok(answer),
        }
    }

    /// Tries one backend after the other, as long as that is safe: what may have been sent is sent again only under a
    /// request id, by which the service knows it.
    async fn by_turns(&self, call: &Call) -> Result<Response<Body>, DestroyError> {
        let mut attempt = 1;
        loop {
            let Some(address) = self.balancer.pick() else {
                return Err(blame("the name of the upstream has no address"));
            };
            let last = attempt == config::upstream::ATTEMPTS;
            match self.send(address, call).await {
                Ok(response) if last || !call.bounds.repeatable || !is_unavailable(&response) => {
                    return Ok(response.map(Body::new));
                }
                Ok(_unavailable) => {}
                Err(Failure::Unsent(cause)) => {
                    self.balancer.eject(address);
                    if last {
                        return Err(blame(format_args!("{address}: {cause}")));
                    }
                }
                Err(Failure::Unknown(cause)) if last || !call.bounds.repeatable => {
                    return Err(blame(format_args!("{address}: {cause}")));
                }
                Err(Failure::Unknown(_)) => {}
            }
            tokio::time::sleep(config::upstream::BACKOFF * attempt).await;
            attempt += 1;
        }
    }

    async fn send(&self, address: SocketAddr, call: &Call) -> Result<Response<Incoming>, Failure> {
        let request = call.to(self.scheme, address).map_err(|error| Failure::Unsent(error.to_string()))?;
        let channel = self.channel.borrow().clone();
        channel.request(request).await.map_err(|error| {
            let cause = chain(&error);
            if error.is_connect() { Failure::Unsent(cause) } else { Failure::Unknown(cause) }
        })
    }
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let upstream = self.clone();
        Box::pin(async move {
            let answer = upstream.answer(request).await;
            Ok(answer.unwrap_or_else(|error| status_of(error).into_http()))
        })
    }
}

impl Call {
    async fn read(request: Request<Body>) -> Option<Self> {
        let (parts, body) = request.into_parts();
        let user = parts.extensions.get::<AuthenticatedUser>()?.user().to_string();
        Some(Self {
            user: HeaderValue::from_str(&user).ok()?,
            bounds: *parts.extensions.get::<Bounds>()?,
            path: parts.uri.path_and_query()?.clone(),
            body: body.collect().await.ok()?.to_bytes(),
            parts,
        })
    }

    /// One try: the user in the metadata, and the time that is left.
    fn to(&self, scheme: &str, address: SocketAddr) -> Result<Request<Full<Bytes>>, http::Error> {
        let uri: Uri = format!("{scheme}://{address}{}", self.path).parse()?;
        let left = self.bounds.deadline.saturating_duration_since(Instant::now()).as_millis();
        let mut request = Request::post(uri).body(Full::new(self.body.clone()))?;
        *request.headers_mut() = self.parts.headers.clone();
        request.headers_mut().insert("x-user-id", self.user.clone());
        request.headers_mut().insert("grpc-timeout", HeaderValue::try_from(format!("{left}m"))?);
        Ok(request)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("balancer", &self.balancer).finish_non_exhaustive()
    }
}

/// HTTP/2 to whatever address, where somebody shows the certificate of this name. A silent server is noticed by pings.
fn channel(tls: ClientConfig, name: ServerName<'static>) -> Channel {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .with_server_name_resolver(FixedServerNameResolver::new(name))
        .enable_http2()
        .wrap_connector(http);
    Client::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(config::net::KEEPALIVE)
        .http2_keep_alive_timeout(config::net::KEEPALIVE)
        .http2_keep_alive_while_idle(true)
        .build(Connector::new(Timeout::new(connector, config::upstream::CONNECT_TIMEOUT)))
}

fn is_unavailable<B>(response: &Response<B>) -> bool {
    Status::from_header_map(response.headers()).is_some_and(|status| status.code() == Code::Unavailable)
}

/// Why the RPC refuses what the gateway says, who has found out the user by itself: no client is at fault.
fn refusal_of_ourselves<B>(response: &Response<B>) -> Option<String> {
    let status = Status::from_header_map(response.headers())?;
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let not_trusted = ["CALLER_NOT_ALLOWED", "USER_CONTEXT_REQUIRED"].contains(&reason.as_str());
    (not_trusted || status.code() == Code::Unauthenticated).then_some(reason)
}

/// Writes the cause on the request's line in the log; the client is told that it may try again.
fn blame(cause: impl fmt::Display) -> DestroyError {
    Span::current().record("error", field::display(format_args!("the upstream did not answer: {cause}")));
    DestroyError::StoreUnavailable
}

/// An error with all its causes, each of which says only its own part.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
