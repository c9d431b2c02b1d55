//! TLS handshakes on threads of their own, and the client certificates of open connections.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustls::pki_types::CertificateDer;
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
    reason: String,
    address: IpAddr,
}

/// Why a handshake failed.
enum Failure {
    /// The client closed the connection: port scanners and load balancers do.
    Closed,
    Failed(String),
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
    pub fn new(config: ServerTlsReceiver, threads: Arc<HandshakeThreads>) -> Self {
        let peers = Arc::<OpenPeers>::default();
        // It ends with the sender of the configuration, or with the threads.
        if let Some(runtime) = &threads.runtime {
            drop(runtime.spawn(reverify_on_reload(config.clone(), peers.clone())));
        }
        Self { config, peers, threads }
    }

    /// Performs the handshake of an accepted connection. Returns nothing where it fails or takes too long; the log has the
    /// reason.
    pub async fn accept(
        &self,
        stream: TcpStream,
        address: IpAddr,
    ) -> Option<(TlsStream<TcpStream>, Transport)> {
        let handshake = self.threads.spawn(handshake(stream, self.config.clone(), self.peers.clone()))?;
        let failure = match tokio::time::timeout(config::net::HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(Ok(accepted))) => return Some(accepted),
            Ok(Ok(Err(failure))) => failure,
            Ok(Err(aborted)) => Failure::Failed(aborted.to_string()),
            Err(_elapsed) => Failure::Failed("timed out".to_owned()),
        };
        match failure {
            Failure::Closed => {
                tracing::debug!(client.address = %address, "client closed the connection during the TLS handshake");
            }
            Failure::Failed(reason) => self.threads.failures.record(reason, address),
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
            return Err(Failure::Failed(format!("{error}; certificate for {}", names.join(", "))));
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
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl FailureLog {
    /// Counts a failure. The first one after a log line makes the next line due.
    fn record(self: &Arc<Self>, mut reason: String, address: IpAddr) {
        reason.truncate(reason.floor_char_boundary(config::net::HANDSHAKE_REASON_LIMIT));
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.as_ref().map_or(0, |failures| failures.count);
        *failures = Some(Failures { count: count + 1, reason, address });
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
        if let Some(Failures { count, reason, address }) = failures {
            tracing::warn!(count, reason, client.address = %address, "TLS handshakes failed");
        }
    }
}
