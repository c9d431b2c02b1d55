//! One accepted connection: its TLS handshake, then HTTP until it ends, ages, idles or is evicted.

use std::{convert::Infallible, net::IpAddr};

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
use tokio_rustls::TlsAcceptor;
use tower::{BoxError, Service, ServiceExt};

use super::{connection_table::TableEntry, lifecycle::Lifecycle};
use crate::{
    config,
    identity::{Peer, PeerName, Transport},
};

/// An accepted connection with what it is served by.
pub struct Connection<S> {
    pub builder: Builder<TokioExecutor>,
    pub address: IpAddr,
    pub service: S,
    pub lifecycle: Lifecycle,
    pub entry: TableEntry,
}

impl<S, B> Connection<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    pub async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let Some(tls) = tls else { return self.serve_http(stream, Transport::Plain).await };
        let handshake = tokio::time::timeout(config::net::HANDSHAKE_TIMEOUT, tls.accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = self.entry.connection.evicted() => return,
            () = self.lifecycle.abort.cancelled() => return,
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
        let Self { builder, address, service, lifecycle, entry } = self;
        let (peer, state) = (Peer::new(address, transport), entry.connection.clone());
        // Who comes during the drain is answered, but not waited for.
        let (calls, late) = (lifecycle.calls.clone(), lifecycle.stop.is_cancelled());
        let stop = if late { &lifecycle.close } else { &lifecycle.stop };
        let counted = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let call = (state.begin_call(), (!late).then(|| calls.token()));
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
            () = entry.connection.evicted() => None,
            () = entry.connection.idle_timeout() => None,
            () = tokio::time::sleep(lifecycle.connection_age()) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // Whoever has nothing in flight and stays silent is not waited for.
                let grace = if entry.connection.is_evicted() {
                    config::net::EVICTION_GRACE
                } else {
                    config::net::LINGER
                };
                tokio::select! {
                    ended = connection => ended,
                    () = entry.connection.quiet_for(grace) => Ok(()),
                    () = lifecycle.abort.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended badly");
        }
    }
}
