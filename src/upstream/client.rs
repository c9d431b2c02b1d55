//! Destroys by RPC servers elsewhere: over HTTP/2, to one address after the other.

use std::{error::Error, fmt, net::SocketAddr, sync::Arc};

use http::{HeaderName, HeaderValue, Uri};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::{Code, Request, Status, body::Body};
use tonic_types::StatusExt;
use tower::{BoxError, timeout::Timeout, util::BoxCloneSyncService};

use super::{balancer::Balancer, resolver::Resolver, url::UpstreamUrl};
use crate::{
    collections::{DestroyApi, DestroyCall, DestroyFuture},
    config,
    domain::{Clock, DestroyError, DestroyFailure, Destroyed, GrpcCode},
    net::{ClientTls, FileWatch, TlsError},
    proto::{DestroyRequest, collections_service_client::CollectionsServiceClient},
    telemetry::{ClientSpan, DESTROY, Metrics},
};

/// Sends a request over a connection of its pool to the request's address. Boxed, because the compiler cannot prove that the
/// future of the client itself is `Send`.
type Channel = BoxCloneSyncService<http::Request<Body>, http::Response<Incoming>, legacy::Error>;
type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// The RPC behind a name. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    channel: watch::Receiver<Channel>,
    balancer: Arc<Balancer>,
    scheme: &'static str,
}

/// Why one attempt failed.
enum AttemptError {
    /// The address could not be reached: nothing was sent.
    Unsent(String),
    /// The connection failed afterwards. The outcome is not known.
    Unknown(String),
    /// The server's answer.
    Status(Status),
}

impl Upstream {
    /// The client, what reloads its certificates, and what resolves its name.
    ///
    /// # Errors
    /// A file of `tls` cannot be used.
    pub fn new(
        url: UpstreamUrl,
        tls: ClientTls,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<(Self, FileWatch, Resolver), TlsError> {
        let (files, name) = (tls.files(), url.name.clone());
        let build = move || {
            let (config, not_after) = tls.load(&clock)?;
            if let Some(not_after) = not_after {
                metrics.reloads.set_certificate_expiry("--upstream-cert", not_after.timestamp());
            }
            Ok(channel(config, name.clone()))
        };
        let (reload, channel) = FileWatch::load("--upstream", files, build)?;
        let scheme = url.scheme;
        let (resolver, addresses) = Resolver::new(url);
        let balancer = Arc::new(Balancer::new(addresses));
        Ok((Self { channel, balancer, scheme }, reload, resolver))
    }

    /// Tries one address after the other, as long as that is safe: what may have been sent is sent again only under a
    /// request id, by which the server recognizes it.
    async fn send_with_failover(&self, call: &DestroyCall) -> Result<Destroyed, DestroyFailure> {
        let is_repeatable = call.request_id.is_some();
        let mut attempt = 1;
        loop {
            let Some(address) = self.balancer.pick() else {
                return Err(unavailable("the upstream's name has no address"));
            };
            let is_last = attempt == config::upstream::ATTEMPTS;
            match self.send(address, call).await {
                Ok(destroyed) => return Ok(destroyed),
                Err(AttemptError::Unsent(cause)) => {
                    self.balancer.eject(address, &cause);
                    if is_last {
                        return Err(unavailable(format_args!("{address}: {cause}")));
                    }
                }
                Err(AttemptError::Unknown(cause)) if is_last || !is_repeatable => {
                    return Err(unavailable(format_args!("{address}: {cause}")));
                }
                Err(AttemptError::Status(status))
                    if is_last || !is_repeatable || status.code() != Code::Unavailable =>
                {
                    return Err(failure(address, &status));
                }
                Err(AttemptError::Unknown(_) | AttemptError::Status(_)) => {}
            }
            tokio::time::sleep(config::upstream::BACKOFF * attempt).await;
            attempt += 1;
        }
    }

    async fn send(&self, address: SocketAddr, call: &DestroyCall) -> Result<Destroyed, AttemptError> {
        let origin: Uri =
            format!("{}://{address}", self.scheme).parse().map_err(unsent::<http::uri::InvalidUri>)?;
        let span = call.context.trace.recorded().map(|call| ClientSpan::of_rpc(call, DESTROY, address));
        let request = request(call, span.as_ref()).map_err(unsent)?;
        let channel = self.channel.borrow().clone();
        let response = CollectionsServiceClient::with_origin(channel, origin)
            .max_decoding_message_size(config::calls::MESSAGE_LIMIT)
            .destroy(request)
            .await;
        if response.as_ref().err().is_none_or(|status| status.source().is_none()) {
            self.balancer.record_answer(address);
        }
        if let Some(span) = span {
            let code = response.as_ref().map_or_else(Status::code, |_response| Code::Ok);
            span.end_rpc(GrpcCode::of_number(code.into()));
        }
        match response {
            Ok(response) if response.get_ref().destroyed => Ok(Destroyed::Now),
            Ok(_) => Err(AttemptError::Status(Status::internal("OK without `destroyed`"))),
            Err(status) => Err(match status.source() {
                None => AttemptError::Status(status),
                Some(error) if is_connect(error) => AttemptError::Unsent(chain(error)),
                Some(error) => AttemptError::Unknown(chain(error)),
            }),
        }
    }
}

impl DestroyApi for Upstream {
    fn destroy(&self, call: DestroyCall) -> DestroyFuture<'_> {
        Box::pin(async move {
            let sent = timeout_at(call.deadline, self.send_with_failover(&call)).await;
            sent.unwrap_or_else(|_elapsed| Err(DestroyError::DeadlineExceeded.into()))
        })
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("balancer", &self.balancer).finish_non_exhaustive()
    }
}

/// One attempt's request: the user and the trace in the metadata, and the time that is left.
fn request(
    call: &DestroyCall,
    span: Option<&ClientSpan>,
) -> Result<Request<DestroyRequest>, http::header::InvalidHeaderValue> {
    let request_id = call.request_id.map(|request_id| request_id.to_string()).unwrap_or_default();
    let mut request = Request::new(DestroyRequest { id: call.id.to_string(), request_id });
    request.set_timeout(call.deadline.saturating_duration_since(Instant::now()));
    let headers = request.metadata_mut().as_mut();
    headers.insert("x-user-id", call.user.user().get().into());
    let own = span.map(ClientSpan::headers).or_else(|| call.context.trace.headers());
    let forwarded = |value| if own.is_none() { value } else { &None };
    for (name, value) in [
        ("x-request-id", &call.context.request_id),
        ("traceparent", forwarded(&call.context.traceparent)),
        ("tracestate", forwarded(&call.context.tracestate)),
    ] {
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
        }
    }
    if let Some(own) = own {
        own.insert_into(headers);
    }
    Ok(request)
}

/// HTTP/2 to any address whose server presents a certificate of this name. Pings detect a silent server.
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
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(config::net::KEEPALIVE)
        .http2_keep_alive_timeout(config::net::KEEPALIVE)
        .http2_keep_alive_while_idle(true)
        .build(Connector::new(Timeout::new(connector, config::upstream::CONNECT_TIMEOUT)));
    Channel::new(client)
}

/// The error of a status: by its reason or, where a proxy made the status, by its code.
fn error_of(status: &Status, reason: &str) -> DestroyError {
    DestroyError::from_reason(reason).unwrap_or(match status.code() {
        Code::Unavailable => DestroyError::StoreUnavailable,
        Code::DeadlineExceeded | Code::Cancelled => DestroyError::DeadlineExceeded,
        Code::ResourceExhausted => DestroyError::Overloaded,
        _ => DestroyError::Internal,
    })
}

/// The failure of an answer. The gateway has authenticated the user itself, so where the server does not trust the gateway,
/// the client is not at fault.
fn failure(address: SocketAddr, status: &Status) -> DestroyFailure {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let is_distrusted = ["CALLER_NOT_ALLOWED", "USER_CONTEXT_REQUIRED"].contains(&reason.as_str());
    if is_distrusted || status.code() == Code::Unauthenticated {
        let cause = format_args!("the upstream {address} rejected this gateway's credentials: {reason}");
        return DestroyFailure::new(DestroyError::Internal, cause);
    }
    let error = error_of(status, &reason);
    if error == DestroyError::RateLimited {
        // The limit is that of the gateway as a caller, and no client's.
        let cause = format_args!("the upstream {address} limits the calls of this gateway");
        return DestroyFailure::new(DestroyError::Overloaded, cause);
    }
    if error.is_fault() {
        DestroyFailure::new(
            error,
            format_args!("the upstream {address} answered {reason:.128}: {:.128}", status.message()),
        )
    } else {
        error.into()
    }
}

fn unavailable(cause: impl fmt::Display) -> DestroyFailure {
    DestroyFailure::new(DestroyError::StoreUnavailable, format_args!("the upstream did not answer: {cause}"))
}

fn unsent<E: fmt::Display>(error: E) -> AttemptError {
    AttemptError::Unsent(error.to_string())
}

fn is_connect(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect)
}

/// An error with all its causes, each of which names only its own part.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
