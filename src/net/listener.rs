//! The accept loop, and the limits of HTTP on each connection.

use std::{convert::Infallible, io, net::SocketAddr};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::net::{TcpListener, TcpStream};
use tower::{BoxError, Service};

use super::{
    connection::{Connection, Refuse},
    handshake::TlsServer,
    lifecycle::Lifecycle,
    resources::ListenerResources,
    source::Source,
};
use crate::{config, telemetry::ListenerMetrics};

/// How a listener serves its connections.
pub struct ListenerSettings<B> {
    pub protocol: Protocol,
    /// With TLS, no connection is served without. A new connection gets the configuration that is current then.
    pub tls: Option<TlsServer>,
    pub refuse: Refuse<B>,
    pub metrics: ListenerMetrics,
}

/// The protocol of a listener.
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

    /// Serves in tasks of the lifecycle until that closes. Every connection finishes the calls that it has begun. The service
    /// must always be ready: `poll_ready` is not called.
    pub fn serve<S, B>(
        self,
        service: S,
        settings: ListenerSettings<B>,
        resources: ListenerResources,
        lifecycle: &Lifecycle,
    ) where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let ListenerSettings { protocol, tls, refuse, metrics } = settings;
        let builder = builder(protocol);
        let shared = lifecycle.clone();
        let close = lifecycle.close.clone();
        let accepting = async move {
            loop {
                let (stream, address) = accept(&self.socket).await;
                let address = address.ip().to_canonical();
                let source = Source::of(address, &resources.proxies);
                let connection = Connection {
                    entry: resources.table.admit(source).await,
                    builder: builder.clone(),
                    address,
                    service: service.clone(),
                    refuse: refuse.clone(),
                    budget: resources.requests.client(source),
                    events: resources.events.clone(),
                    lifecycle: shared.clone(),
                };
                let open = metrics.open();
                let served = connection.serve(stream, tls.clone());
                shared.connections.spawn(async move {
                    served.await;
                    drop(open);
                });
            }
        };
        lifecycle.connections.spawn(async move {
            close.run_until_cancelled(accepting).await;
        });
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
                tokio::time::sleep(config::net::ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Every limit is named: a connection may neither open streams nor cause resets without bound (RUSTSEC-2024-0003), nor
/// fill memory with unread data.
pub(super) fn builder(protocol: Protocol) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config::net::HEADER_TIMEOUT)
        .max_buf_size(config::net::HEADER_LIMIT as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(config::net::STREAM_LIMIT)
        .max_local_error_reset_streams(config::net::RESET_LIMIT)
        .max_pending_accept_reset_streams(config::net::PENDING_RESET_LIMIT)
        .max_header_list_size(config::net::HEADER_LIMIT)
        .max_send_buf_size(config::net::SEND_BUFFER)
        .initial_stream_window_size(config::net::WINDOW)
        .initial_connection_window_size(config::net::WINDOW)
        .keep_alive_interval(config::net::KEEPALIVE)
        .keep_alive_timeout(config::net::KEEPALIVE);
    match protocol {
        Protocol::Grpc => {
            // gRPC has no use for a date.
            builder.http2().auto_date_header(false);
            builder.http2_only()
        }
        Protocol::Http => builder,
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    use std::time::Duration;

    use super::Source;
    use crate::net::connection_table::{ConnectionTable, TableLimits};

    /// A client with two connections loses one, although the proxy has more, and had them longer.
    #[tokio::test(start_paused = true)]
    async fn a_proxy_is_not_the_client_with_the_most_connections() {
        let table = ConnectionTable::new(TableLimits { connections: 5, new: 5, evicted: 2 });
        let proxies = ["10.0.0.0/8".parse().expect("a network")];
        let mut entries = Vec::new();
        for address in ["10.0.0.1", "10.0.0.1", "10.0.0.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"] {
            tokio::time::advance(Duration::from_millis(1)).await;
            let source = Source::of(address.parse().expect("an address"), &proxies);
            entries.push(table.admit(source).await);
        }
        let evicted: Vec<_> = entries.iter().map(|entry| entry.connection.is_evicted()).collect();
        assert_eq!(evicted, [false, false, false, true, false, false]);
    }
}
