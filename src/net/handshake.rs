//! The TLS handshake of an accepted connection.

use std::net::IpAddr;

use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    config,
    identity::{PeerName, Transport},
};

/// Performs the handshake. Returns nothing, and logs why, where it fails or takes too long.
pub async fn accept(
    tls: &TlsAcceptor,
    stream: TcpStream,
    address: IpAddr,
) -> Option<(TlsStream<TcpStream>, Transport)> {
    match tokio::time::timeout(config::net::HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let certificate = certificate.map(|leaf| PeerName::of_certificate(leaf).into());
            Some((stream, Transport::Tls { certificate }))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, client.address = %address, "a TLS handshake failed");
            None
        }
        Err(_elapsed) => {
            tracing::debug!(client.address = %address, "a TLS handshake took too long");
            None
        }
    }
}
