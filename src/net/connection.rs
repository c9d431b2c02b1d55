//! One accepted connection: its TLS handshake, then HTTP until it ends, ages, idles or is evicted.

use std::{convert::Infallible, net::IpAddr, sync::Arc};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tower::{BoxError, Service};

use super::{
    body,
    connection_table::TableEntry,
    event_counter::ConnectionEvents,
    handshake::TlsServer,
    lifecycle::Lifecycle,
    metered_stream::MeteredStream,
    request_budget::{ChargedBody, ClientBudget},
};
use crate::{
    config,
    identity::{Peer, Transport},
};

/// Makes the response to a request for which there is no memory.
pub type Refuse<B> = Arc<dyn Fn(&Request<Incoming>) -> Response<B> + Send + Sync>;

/// An accepted connection with what it is served by.
pub struct Connection<S, B> {
    pub builder: Builder<TokioExecutor>,
    pub address: IpAddr,
    pub service: S,
    pub refuse: Refuse<B>,
    pub budget: Arc<ClientBudget>,
    pub events: Arc<ConnectionEvents>,
    pub lifecycle: Lifecycle,
    pub entry: TableEntry,
}

impl<S, B> Connection<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    pub async fn serve(self, stream: TcpStream, tls: Option<TlsServer>) {
        let Some(tls) = tls else { return self.serve_http(stream, Transport::Plain).await };
        let accepted = tokio::select! {
            accepted = tls.accept(stream, self.address) => accepted,
            () = self.entry.connection.evicted() => return,
            () = self.lifecycle.abort.cancelled() => return,
        };
        if let Some((stream, transport)) = accepted {
            self.serve_http(stream, transport).await;
        }
    }

    /// Serves until the connection ends, is idle for too long, reaches its age, is evicted, or the drain begins. It then
    /// gets a GOAWAY, and is closed after [`config::net::CLOSE_TIMEOUT`] whatever the peer does.
    async fn serve_http(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        transport: Transport,
    ) {
        let Self { builder, address, service, refuse, budget, events, lifecycle, entry } = self;
        let certificate = transport.clone();
        let (peer, state) = (Peer::new(address, transport), entry.connection.clone());
        // Connections that are accepted during the drain are served, but not waited for.
        let (calls, late) = (lifecycle.calls.clone(), lifecycle.stop.is_cancelled());
        let stop = if late { &lifecycle.close } else { &lifecycle.stop };
        let (stream, turn) = MeteredStream::new(stream, entry.connection.clone(), events.clone());
        let counted = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let (call, token) = (state.begin_call(), (!late).then(|| calls.token()));
            let outcome = match budget.charge(&request) {
                Some(charge) => Ok((charge, service.clone().call(request))),
                None => {
                    events.refused.record();
                    let refused = refuse(&request);
                    // Without its headers, which are what there is no memory for.
                    Err((request.into_body(), refused))
                }
            };
            async move {
                let response = match outcome {
                    Ok((charge, response)) => {
                        response.await?.map(|body| ChargedBody::new(body, Some(charge)))
                    }
                    Err((mut body, refused)) => {
                        // Some clients lose a response that is sent before they have sent their body.
                        let discarded = body::discard(&mut body, config::net::REFUSED_BODY_LIMIT);
                        let _elapsed =
                            tokio::time::timeout(config::net::REFUSED_BODY_TIMEOUT, discarded).await;
                        refused.map(|body| ChargedBody::new(body, None))
                    }
                };
                call.complete();
                drop(token);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), counted);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = turn.run(connection.as_mut()) => Some(ended),
            () = stop.cancelled() => None,
            () = entry.connection.evicted() => None,
            () = entry.connection.idle_timeout() => None,
            () = certificate.rejected() => None,
            () = tokio::time::sleep(lifecycle.connection_age()) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // A peer with nothing in flight that stays silent is not waited for.
                let grace = if entry.connection.is_evicted() {
                    config::net::EVICTION_GRACE
                } else {
                    config::net::LINGER
                };
                tokio::select! {
                    ended = turn.run(connection) => ended,
                    () = entry.connection.quiet_for(grace) => Ok(()),
                    // The peer may ignore the GOAWAY, answer PINGs and hold a request open.
                    () = tokio::time::sleep(config::net::CLOSE_TIMEOUT) => Ok(()),
                    () = entry.connection.eviction_timeout() => Ok(()),
                    () = lifecycle.abort.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended badly");
        }
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    use std::{future, net::Ipv4Addr, time::Duration};

    use bytes::Bytes;
    use http_body_util::Empty;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        time::Instant,
    };

    use super::*;
    use crate::net::{
        connection_table::{ConnectionTable, TableLimits},
        listener::Protocol,
        request_budget::RequestBudget,
        source::Source,
    };

    const CLIENT: Source = Source::Client(IpAddr::V4(Ipv4Addr::LOCALHOST));
    /// The preface, empty SETTINGS, and a GET of `/` over http, whose body does not end.
    const HALF_A_REQUEST: &[u8] =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x03\x01\x04\0\0\0\x01\x82\x84\x86";
    const PING: u8 = 6;
    const ACK: u8 = 1;

    /// Begins a request and answers PINGs until the connection is closed, whatever else it receives.
    async fn ignore_goaway(mut stream: DuplexStream) {
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let [high, middle, low, kind, flags, ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
            stream.read_exact(&mut payload).await.expect("a payload");
            if kind == PING && flags == 0 {
                head[4] = ACK;
                let _closed = stream.write_all(&[&head[..], &payload].concat()).await;
            }
        }
    }

    async fn closed_after(action: impl FnOnce(&Lifecycle, &TableEntry)) -> Duration {
        let (mut client, server) = tokio::io::duplex(4096);
        let lifecycle = Lifecycle::default();
        let table = ConnectionTable::new(TableLimits::of(8));
        let entry = table.admit(CLIENT).await;
        client.write_all(HALF_A_REQUEST).await.expect("a request");
        action(&lifecycle, &entry);
        let connection = Connection {
            builder: crate::net::listener::builder(Protocol::Grpc),
            address: Ipv4Addr::LOCALHOST.into(),
            service: tower::service_fn(|_request| future::pending::<Result<Response<Empty<Bytes>>, _>>()),
            refuse: Arc::new(|_request| Response::new(Empty::new())),
            budget: RequestBudget::new(usize::MAX).client(CLIENT),
            events: ConnectionEvents::new(),
            lifecycle,
            entry,
        };
        let begun = Instant::now();
        let served = connection.serve_http(server, Transport::Plain);
        let both = async { tokio::join!(served, ignore_goaway(client)) };
        tokio::time::timeout(Duration::from_secs(3600), both).await.expect("an end");
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ignores_goaway_is_closed_after_its_age() {
        let closed = closed_after(|_, _| ()).await;
        let age = config::net::CONNECTION_AGE;
        assert!(closed > age.mul_f64(0.9), "{closed:?}");
        assert!(closed < age.mul_f64(1.1) + config::net::CLOSE_TIMEOUT + config::net::LINGER, "{closed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_half_a_request_no_longer_than_for_a_call() {
        let closed = closed_after(|lifecycle, _| {
            let lifecycle = lifecycle.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                lifecycle.stop();
            });
        });
        assert!(closed.await <= Duration::from_secs(2) + config::net::CLOSE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn an_evicted_connection_is_closed_with_a_request_in_flight() {
        let closed = closed_after(|_, entry| {
            let table = entry.connection.table.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let mut others = Vec::new();
                for _ in 0..8 {
                    let other = table.admit(CLIENT).await;
                    others.push((other.connection.begin_call(), other));
                }
                future::pending::<()>().await;
            });
        });
        assert!(closed.await <= 2 * config::net::EVICTION_TIMEOUT);
    }
}
