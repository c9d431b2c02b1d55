//! TLS handshakes on threads of their own, and the client certificates of open connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use chrono::{DateTime, SecondsFormat};
use rustls::{
    CertificateError,
    pki_types::{CertificateDer, UnixTime},
};
use tokio::{
    net::TcpStream,
    runtime::{Builder, Runtime},
    sync::watch,
};
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::{
    client_verifier::ClientVerifier,
    tls::{ServerTlsConfig, unix_time},
};
use crate::{
    config,
    domain::Clock,
    identity::{PeerCertificate, Transport},
    telemetry::ListenerMetrics,
};

/// A listener's TLS configuration, which is replaced when its files change.
pub type ServerTlsReceiver = watch::Receiver<Arc<ServerTlsConfig>>;

/// The threads of all TLS handshakes of a process: those that serve calls do no public-key work. Handshakes in flight are
/// limited by [`config::net::NEW_CONNECTION_SHARE`].
#[derive(Debug)]
pub struct HandshakeThreads {
    /// Taken when this is dropped.
    runtime: Option<Runtime>,
    failures: Arc<FailureLog>,
}

/// The TLS of a listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TlsServer {
    config: ServerTlsReceiver,
    peers: Arc<OpenPeers>,
    threads: Arc<HandshakeThreads>,
    metrics: ListenerMetrics,
}

/// The client certificates of a listener's open connections.
#[derive(Debug, Default)]
struct OpenPeers(Mutex<Vec<OpenPeer>>);

#[derive(Clone, Debug)]
struct OpenPeer {
    certificate: Weak<PeerCertificate>,
    /// The chain as the client presented it, to be verified again when the authorities change.
    chain: Arc<[CertificateDer<'static>]>,
}

/// Failed handshakes that are not logged yet.
#[derive(Debug, Default)]
struct FailureLog(Mutex<Option<Failures>>);

#[derive(Debug)]
struct Failures {
    count: u64,
    last: FailedHandshake,
}

/// A failed handshake, for the log.
#[derive(Debug)]
struct FailedHandshake {
    reason: FailureReason,
    client: IpAddr,
    /// The listener's address, where it is known.
    listener: Option<SocketAddr>,
}

/// Why a handshake failed.
enum Failure {
    /// The client closed the connection: port scanners and load balancers do.
    Closed,
    Failed(FailureReason),
}

/// Why a handshake failed, and the names in the client's certificate.
#[derive(Debug)]
struct FailureReason {
    names: Option<String>,
    error: String,
}

impl HandshakeThreads {
    /// Starts so many threads.
    ///
    /// # Errors
    /// The operating system refuses them.
    pub fn start(threads: usize) -> io::Result<Arc<Self>> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(threads).thread_name("tls-handshake");
        Ok(Arc::new(Self { runtime: Some(builder.build()?), failures: Arc::default() }))
    }

    /// Runs the future on these threads. Dropping the handle cancels it.
    fn spawn<F>(&self, future: F) -> Option<AbortOnDropHandle<F::Output>>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.as_ref().map(|runtime| AbortOnDropHandle::new(runtime.spawn(future)))
    }
}

impl Drop for HandshakeThreads {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which is not allowed in a task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.failures.write();
    }
}

impl TlsServer {
    /// Serves with this configuration. When it is replaced, the certificates of open connections are verified again.
    #[must_use]
    pub fn new(config: ServerTlsReceiver, threads: Arc<HandshakeThreads>, metrics: ListenerMetrics) -> Self {
        let peers = Arc::<OpenPeers>::default();
        // It ends with the sender of the configuration, or with the threads.
        if let Some(runtime) = &threads.runtime {
            drop(runtime.spawn(reverify_on_reload(config.clone(), peers.clone())));
        }
        Self { config, peers, threads, metrics }
    }

    /// Performs the handshake of an accepted connection. Returns nothing where it fails or takes too long; the log has the
    /// reason.
    pub async fn accept(
        &self,
        stream: TcpStream,
        address: IpAddr,
    ) -> Option<(TlsStream<TcpStream>, Transport)> {
        let listener = stream.local_addr().ok();
        let handshake = self.threads.spawn(handshake(stream, self.config.clone(), self.peers.clone()))?;
        let failure = match tokio::time::timeout(config::net::HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(Ok(accepted))) => return Some(accepted),
            Ok(Ok(Err(failure))) => failure,
            Ok(Err(aborted)) => Failure::Failed(FailureReason { names: None, error: aborted.to_string() }),
            Err(_elapsed) => Failure::Failed(FailureReason { names: None, error: "timed out".to_owned() }),
        };
        match failure {
            Failure::Closed => {
                tracing::debug!(client.address = %address, "client closed the connection during the TLS handshake");
            }
            Failure::Failed(reason) => {
                self.metrics.fail_handshake();
                self.threads.failures.record(FailedHandshake { reason, client: address, listener });
            }
        }
        None
    }
}

async fn handshake(
    stream: TcpStream,
    config: ServerTlsReceiver,
    peers: Arc<OpenPeers>,
) -> Result<(TlsStream<TcpStream>, Transport), Failure> {
    let current = config.borrow().clone();
    let (acceptor, verifier) = current.acceptor();
    let accepted = acceptor.accept(stream).await;
    let outcome = verifier.as_ref().and_then(|verifier| verifier.outcome.get());
    let stream = match (accepted, outcome) {
        (Ok(stream), _) => stream,
        (Err(error), Some(Err(names))) if !names.is_empty() => {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let names = Some(cut(names.join(", ")));
            return Err(Failure::Failed(FailureReason { names, error: describe(&error) }));
        }
        (Err(error), _) => return Err(error.into()),
    };
    let Some(Ok(verified)) = outcome else { return Ok((stream, Transport::Tls { certificate: None })) };
    let certificate = Arc::new(PeerCertificate::new(verified.clone(), current.clock().clone()));
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let peer = OpenPeer { certificate: Arc::downgrade(&certificate), chain };
    peers.add(peer.clone());
    // The configuration may have been replaced after it was read here and before the certificate was added.
    let now_current = config.borrow().clone();
    if !Arc::ptr_eq(&current, &now_current) {
        peer.reverify(now_current.clients(), now_current.clock());
    }
    Ok((stream, Transport::Tls { certificate: Some(certificate) }))
}

async fn reverify_on_reload(mut config: ServerTlsReceiver, peers: Arc<OpenPeers>) {
    while config.changed().await.is_ok() {
        let current = config.borrow_and_update().clone();
        for peer in peers.all() {
            peer.reverify(current.clients(), current.clock());
            tokio::task::yield_now().await;
        }
    }
}

impl OpenPeers {
    fn add(&self, peer: OpenPeer) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() == peers.capacity() {
            peers.retain(|peer| peer.certificate.strong_count() > 0);
        }
        peers.push(peer);
    }

    fn all(&self) -> Vec<OpenPeer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl OpenPeer {
    /// Rejects the certificate where these authorities do not accept it, or do not permit the same names as before.
    fn reverify(&self, clients: Option<&ClientVerifier>, clock: &Clock) {
        let Some(certificate) = self.certificate.upgrade() else { return };
        let (Some(clients), Some((leaf, intermediates))) = (clients, self.chain.split_first()) else {
            return;
        };
        let verified = clients.verify(leaf, intermediates, unix_time(clock));
        if verified.as_ref().ok() != Some(certificate.verified()) {
            certificate.reject();
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Self::Closed
            }
            _ => Self::Failed(FailureReason { names: None, error: describe(&error) }),
        }
    }
}

/// The error's text. Those about the validity of a certificate are shorter than rustls's, with times that people can read.
fn describe(error: &io::Error) -> String {
    let error = match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            format!("certificate expired at {}", rfc3339(*not_after))
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before, ..
        })) => {
            format!("certificate not valid before {}", rfc3339(*not_before))
        }
        _ => error.to_string(),
    };
    cut(error)
}

fn rfc3339(time: UnixTime) -> String {
    let time = i64::try_from(time.as_secs()).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    time.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Cuts a text that may be the peer's choice, and marks where.
fn cut(mut text: String) -> String {
    if text.len() > config::net::HANDSHAKE_REASON_LIMIT {
        text.truncate(text.floor_char_boundary(config::net::HANDSHAKE_REASON_LIMIT));
        text.push('…');
    }
    text
}

impl FailureLog {
    /// Counts a failure. The first one after a log line makes the next line due.
    fn record(self: &Arc<Self>, last: FailedHandshake) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.as_ref().map_or(0, |failures| failures.count);
        *failures = Some(Failures { count: count + 1, last });
        if count == 0 {
            let log = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(config::net::HANDSHAKE_LOG_INTERVAL).await;
                log.write();
            });
        }
    }

    fn write(&self) {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Failures { count, last: FailedHandshake { reason, client, listener } }) = failures else {
            return;
        };
        let (names, reason) = (reason.names, reason.error);
        let listener = listener.map(tracing::field::display);
        tracing::warn!(count, names, reason, client.address = %client, listener, "TLS handshakes failed");
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use rustls::{CertificateError, Error, pki_types::UnixTime};

    use super::{cut, describe};

    #[test]
    fn errors_about_the_validity_of_a_certificate_have_a_readable_time() {
        let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (time, not_after) = (time(1_800_000_000), time(1_700_000_000));
        let of = |error: CertificateError| describe(&io::Error::other(Error::from(error)));
        let expired = of(CertificateError::ExpiredContext { time, not_after });
        assert_eq!(expired, "certificate expired at 2023-11-14T22:13:20Z");
        let early = of(CertificateError::NotValidYetContext { time: not_after, not_before: time });
        assert_eq!(early, "certificate not valid before 2027-01-15T08:00:00Z");
        assert_eq!(of(CertificateError::UnknownIssuer), "invalid peer certificate: UnknownIssuer");
        assert_eq!(cut("ä".repeat(65)), format!("{}…", "ä".repeat(64)));
        assert_eq!(cut("ä".repeat(64)), "ä".repeat(64));
    }
}
