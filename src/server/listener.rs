//! Our own accept loop: every connection has its limits, hears of the drain, and is waited for.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use rustix::process::{Resource, Rlimit};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::codegen::StdError;
use tower::{Service, ServiceExt};

use super::roster::{Occupied, Roster};
use crate::{
    config,
    domain::Entropy,
    identity::{Peer, PeerName, Transport},
};

/// What a listener shows its clients, as it is at the moment.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 alone.
    Grpc,
    /// HTTP/1.1 and HTTP/2.
    Http,
}

/// When to stop, and what has to end before; shared by all listeners.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// The drain begins: open connections are told to leave. New ones are still accepted, so that whoever asks hears
    /// NOT_SERVING and UNAVAILABLE rather than nothing.
    stop: CancellationToken,
    /// Every accepted call is answered: no more connections, and the last ones are told to leave.
    close: CancellationToken,
    /// Whatever is still open is cut.
    cut: CancellationToken,
    connections: TaskTracker,
    calls: TaskTracker,
    entropy: Entropy,
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    pub address: SocketAddr,
    socket: TcpListener,
}

/// An accepted connection with what it is served by.
struct Connection<S> {
    builder: Builder<TokioExecutor>,
    address: IpAddr,
    service: S,
    lifecycle: Lifecycle,
    place: Occupied,
}

impl Lifecycle {
    /// Connections get their ages from this source.
    pub fn new(entropy: Entropy) -> Self {
        Self { entropy, ..Self::default() }
    }

    /// Begins the drain.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits after the stop for the calls of open connections, until the deadline. Then the connections have
    /// [`config::LINGER`] to hand over the last answers: a peer that stays silent costs no more than that.
    /// Says whether every call was answered.
    pub async fn drain(&self, deadline: Instant) -> bool {
        self.calls.close();
        self.connections.close();
        let finished = tokio::time::timeout_at(deadline, self.calls.wait()).await.is_ok();
        self.close.cancel();
        let linger = deadline.min(Instant::now() + config::LINGER);
        let all_closed = tokio::time::timeout_at(linger, self.connections.wait()).await.is_ok();
        if !all_closed {
            tracing::debug!(connections = self.connections.len(), "open connections are cut");
        }
        self.cut.cancel();
        // They end at once; each call that is cut leaves its line.
        let _all_cut = tokio::time::timeout(config::LINGER, self.connections.wait()).await;
        finished
    }

    /// A connection's age, spread by a tenth so that those which came together do not leave together.
    fn age(&self) -> Duration {
        let spread = f64::from(u16::from_le_bytes(self.entropy.bytes())) / f64::from(u16::MAX);
        config::CONNECTION_AGE.mul_f64(0.9 + 0.2 * spread)
    }
}

impl Listener {
    /// # Errors
    /// The socket does not know its own address.
    pub fn new(socket: TcpListener) -> io::Result<Self> {
        Ok(Self { address: socket.local_addr()?, socket })
    }

    /// Serves in tasks of the lifecycle until that closes; every connection finishes what it has begun. With `tls`, nobody
    /// is served without; whoever connects gets the configuration that is current then.
    pub fn serve<S, B>(self, service: S, protocol: Protocol, tls: Option<Tls>, lifecycle: &Lifecycle)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<StdError>,
    {
        let builder = builder(protocol);
        let shared = lifecycle.clone();
        let roster = Roster::new();
        let close = lifecycle.close.clone();
        let accepting = async move {
            for number in 0.. {
                let (stream, address) = accept(&self.socket).await;
                let place = roster.admit(number).await;
                let connection = Connection {
                    builder: builder.clone(),
                    address: address.ip().to_canonical(),
                    service: service.clone(),
                    lifecycle: shared.clone(),
                    place,
                };
                let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.borrow().clone()));
                shared.connections.spawn(connection.serve(stream, tls));
            }
        };
        lifecycle.connections.spawn(async move {
            close.run_until_cancelled(accepting).await;
        });
    }
}

impl<S, B> Connection<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<StdError>,
{
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let Some(tls) = tls else { return self.serve_http(stream, Transport::Plain).await };
        let handshake = tokio::time::timeout(config::HANDSHAKE_WAIT, tls.accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = self.place.seat.asked_to_leave() => return,
            () = self.lifecycle.cut.cancelled() => return,
        };
        match shaken {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let certificate = certificate.map(|leaf| PeerName::of_certificate(leaf).into());
                self.serve_http(stream, Transport::Tls { certificate }).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, client.address = %self.address, "a TLS handshake failed")
            }
            Err(_elapsed) => tracing::debug!(client.address = %self.address, "a TLS handshake took too long"),
        }
    }

    /// Serves until the connection ends, is idle for too long, ages, or has to leave for another one or for the drain.
    async fn serve_http(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        transport: Transport,
    ) {
        let Self { builder, address, service, lifecycle, place } = self;
        let (peer, seat) = (Peer::new(address, transport), place.seat.clone());
        // Who comes during the drain is answered, but not waited for.
        let (calls, late) = (lifecycle.calls.clone(), lifecycle.stop.is_cancelled());
        let stop = if late { &lifecycle.close } else { &lifecycle.stop };
        let counted = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let call = (seat.call(), (!late).then(|| calls.token()));
            let answer = service.clone().oneshot(request);
            async move {
                let answer = answer.await;
                drop(call);
                answer
            }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), counted);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = stop.cancelled() => None,
            () = place.seat.asked_to_leave() => None,
            () = place.seat.idle_too_long() => None,
            () = tokio::time::sleep(lifecycle.age()) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // Whoever has nothing in flight and stays silent is not waited for.
                let patience = if place.seat.is_asked_to_leave() { config::EVICTION } else { config::LINGER };
                tokio::select! {
                    ended = connection => ended,
                    () = place.seat.quiet_for(patience) => Ok(()),
                    () = lifecycle.cut.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended badly");
        }
    }
}

/// Connections are files. The soft limit is low for the sake of programs that count theirs by bits; the hard one is ours.
pub fn allow_many_files() {
    let limits = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, files = limits.current, "the limit of open files stays as it is");
    }
}

/// The next connection. Where the process is out of file descriptors, it waits for some to come back.
async fn accept(socket: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut failing = false;
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY was refused");
                }
                return (stream, peer);
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                failing = true;
                tokio::time::sleep(config::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Every limit is named: a connection may neither open streams nor cause resets without bound (RUSTSEC-2024-0003), nor
/// fill our memory with what nobody has read yet.
fn builder(protocol: Protocol) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config::HEADER_WAIT)
        .max_buf_size(config::HEADER_LIMIT as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(config::STREAM_LIMIT)
        .max_local_error_reset_streams(config::RESET_LIMIT)
        .max_header_list_size(config::HEADER_LIMIT)
        .initial_stream_window_size(config::WINDOW)
        .initial_connection_window_size(config::WINDOW)
        .keep_alive_interval(config::KEEPALIVE)
        .keep_alive_timeout(config::KEEPALIVE);
    match protocol {
        Protocol::Grpc => {
            // gRPC has no use for a date.
            builder.http2().auto_date_header(false);
            builder.http2_only()
        }
        Protocol::Http => builder,
    }
}
