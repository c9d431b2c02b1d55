//! Our own accept loop: every connection has its limits, hears of the drain, and is waited for.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::codegen::StdError;
use tower::{Service, ServiceExt};

use crate::{config, domain::Entropy};

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

    /// Serves in tasks of the lifecycle until that closes; every connection finishes what it has begun.
    pub fn serve<S, B>(self, service: S, protocol: Protocol, lifecycle: &Lifecycle)
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
        let places = Arc::new(Semaphore::new(config::CONNECTION_LIMIT));
        let close = lifecycle.close.clone();
        let accepting = async move {
            while let Ok(place) = places.clone().acquire_owned().await {
                let stream = accept(&self.socket).await;
                let connection = serve_connection(builder.clone(), stream, service.clone(), shared.clone());
                shared.connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
        };
        lifecycle.connections.spawn(async move {
            close.run_until_cancelled(accepting).await;
        });
    }
}

/// One connection, until it ends, ages, or the drain ends it.
async fn serve_connection<S, B>(
    builder: Builder<TokioExecutor>,
    stream: TcpStream,
    service: S,
    lifecycle: Lifecycle,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<StdError>,
{
    // Who comes during the drain is answered, but not waited for.
    let (calls, late) = (lifecycle.calls.clone(), lifecycle.stop.is_cancelled());
    let leave = if late { &lifecycle.close } else { &lifecycle.stop };
    let counted = hyper::service::service_fn(move |request| {
        let (call, answer) = ((!late).then(|| calls.token()), service.clone().oneshot(request));
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
        () = leave.cancelled() => None,
        () = tokio::time::sleep(lifecycle.age()) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            lifecycle.cut.run_until_cancelled(connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended badly");
    }
}

/// The next connection. Where the process is out of file descriptors, it waits for some to come back.
async fn accept(socket: &TcpListener) -> TcpStream {
    loop {
        match socket.accept().await {
            Ok((stream, _peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY was refused");
                }
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(config::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Every limit is named: a connection may neither open streams nor cause resets without bound (RUSTSEC-2024-0003).
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
        .keep_alive_interval(config::KEEPALIVE)
        .keep_alive_timeout(config::KEEPALIVE);
    match protocol {
        Protocol::Grpc => builder.http2_only(),
        Protocol::Http => builder,
    }
}
