//! Our own accept loop: every connection has its limits, hears of the drain, and is waited for.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::codegen::StdError;
use tower::Service;

use crate::config;

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 alone.
    Grpc,
    /// HTTP/1.1 and HTTP/2.
    Http,
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    pub address: SocketAddr,
    socket: TcpListener,
}

impl Listener {
    /// # Errors
    /// The socket does not know its own address.
    pub fn new(socket: TcpListener) -> io::Result<Self> {
        Ok(Self { address: socket.local_addr()?, socket })
    }

    /// Serves in tasks of the tracker until told to stop; then every connection finishes what it has begun.
    pub fn serve<S, B>(self, service: S, protocol: Protocol, stop: &CancellationToken, tasks: &TaskTracker)
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
        let (stop, connections) = (stop.clone(), tasks.clone());
        let places = Arc::new(Semaphore::new(config::CONNECTION_LIMIT));
        tasks.spawn(async move {
            while let Some(Ok(place)) = stop.run_until_cancelled(places.clone().acquire_owned()).await {
                let Some(stream) = stop.run_until_cancelled(accept(&self.socket)).await else { break };
                let (builder, stop) = (builder.clone(), stop.clone());
                let service = TowerToHyperService::new(service.clone());
                connections.spawn(async move {
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    tokio::pin!(connection);
                    let ended = tokio::select! {
                        ended = connection.as_mut() => ended,
                        () = stop.cancelled() => {
                            connection.as_mut().graceful_shutdown();
                            connection.await
                        }
                    };
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection ended badly");
                    }
                    drop(place);
                });
            }
        });
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
                tokio::time::sleep(Duration::from_millis(100)).await;
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
