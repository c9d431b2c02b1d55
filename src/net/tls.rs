//! Certificates, keys and authorities from files, for both ends of a connection.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use rustls::{
    ClientConfig, InconsistentKeys, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
};
use tokio_rustls::TlsAcceptor;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::client_verifier::{ClientVerifier, HandshakeVerifier};
use crate::{
    domain::Clock,
    identity::{NameScope, NameScopeError, PeerName},
};

/// A certificate chain and its key, in PEM.
#[derive(Clone, Debug)]
pub struct KeyPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The files of a listener's TLS.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub key_pair: KeyPair,
    pub clients: ClientAuth,
    pub alpn: &'static [&'static str],
}

/// What a listener requires of its clients.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// No certificate.
    Anyone,
    /// A certificate that one of these authorities signed, or none: clients can authenticate in another way.
    Optional(Vec<ClientAuthority>),
    /// A certificate that one of these authorities signed.
    Required(Vec<ClientAuthority>),
}

/// Authorities (PEM) of client certificates, and the names that they may issue: any, where there is no scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuthority {
    pub scope: Option<NameScope>,
    pub file: PathBuf,
}

/// How a client authenticates, and which servers it accepts.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The authorities (PEM) that may sign the server's certificate; without them, those that browsers trust.
    pub authorities: Option<PathBuf>,
    pub key_pair: Option<KeyPair>,
}

/// A listener's TLS as it is in force, made of [`ServerTls`]'s files.
#[derive(Debug)]
pub struct ServerTlsConfig {
    /// For clients that are not asked for a certificate.
    anonymous: Arc<ServerConfig>,
    clients: Option<Arc<ClientVerifier>>,
    clock: Clock,
    /// When the listener's certificate expires.
    pub not_after: DateTime<Utc>,
}

/// Why a certificate, a key or an authority cannot be used. Its text names the file, and holds nothing of its contents.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct TlsError {
    /// Which of the files it is.
    pub input: TlsInput,
    path: PathBuf,
    cause: TlsErrorCause,
}

/// The files that TLS is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsInput {
    Certificate,
    Key,
    Authorities,
}

#[derive(Debug, thiserror::Error)]
enum TlsErrorCause {
    #[error("{0}")]
    Unreadable(io::Error),
    #[error("expected {0} in PEM")]
    Malformed(&'static str),
    #[error("expired at {0}")]
    Expired(DateTime<Utc>),
    #[error("is not the key of the certificate")]
    OtherKey,
    #[error("{0}")]
    Unusable(String),
}

/// A file with its part in TLS.
#[derive(Clone, Copy)]
struct Source<'a>(TlsInput, &'a Path);

/// The service's clock, for rustls.
#[derive(Debug)]
struct ClockTime(Clock);

/// Makes aws-lc-rs the cryptography of all TLS in this process. Only the first call has an effect.
pub fn install_crypto_provider() {
    let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

impl ServerTls {
    /// The files whose contents [`Self::load`] uses.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.key_pair.certificate.clone(), self.key_pair.key.clone()];
        files.extend(self.authorities().iter().map(|authority| authority.file.clone()));
        files
    }

    /// Loads the files, and logs which certificate is in force.
    ///
    /// # Errors
    /// A file is unreadable, no PEM, expired, or certificate and key do not belong together.
    pub fn load(&self, clock: &Clock) -> Result<Arc<ServerTlsConfig>, TlsError> {
        let provider = default_provider();
        let is_mandatory = matches!(self.clients, ClientAuth::Required(_));
        let mut clients = ClientVerifier::new(&provider, is_mandatory);
        for authority in self.authorities() {
            let source = Source(TlsInput::Authorities, &authority.file);
            for certificate in source.certificates()? {
                clients.add(certificate, authority.scope.clone()).map_err(source.unusable())?;
            }
        }
        let (certificate, not_after) = self.key_pair.load(clock, &provider)?;
        let certificate = Arc::new(SingleCertAndKey::from(certificate));
        let mut anonymous = ServerConfig::builder().with_no_client_auth().with_cert_resolver(certificate);
        anonymous.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        anonymous.time_provider = Arc::new(ClockTime(clock.clone()));
        let has_clients = !matches!(self.clients, ClientAuth::Anyone);
        Ok(Arc::new(ServerTlsConfig {
            anonymous: Arc::new(anonymous),
            clients: has_clients.then(|| Arc::new(clients)),
            clock: clock.clone(),
            not_after,
        }))
    }

    fn authorities(&self) -> &[ClientAuthority] {
        match &self.clients {
            ClientAuth::Anyone => &[],
            ClientAuth::Optional(authorities) | ClientAuth::Required(authorities) => authorities,
        }
    }
}

impl ServerTlsConfig {
    /// Prepares one handshake. Where clients are asked for certificates, the verifier has the outcome afterwards.
    pub fn acceptor(&self) -> (TlsAcceptor, Option<Arc<HandshakeVerifier>>) {
        let Some(clients) = &self.clients else { return (self.anonymous.clone().into(), None) };
        let verifier = Arc::new(HandshakeVerifier::new(clients.clone()));
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(self.anonymous.cert_resolver.clone());
        // A resumed session has the certificate of the first one, which is not verified again, however long ago it expired.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols.clone_from(&self.anonymous.alpn_protocols);
        config.time_provider = self.anonymous.time_provider.clone();
        (Arc::new(config).into(), Some(verifier))
    }

    /// The authorities of client certificates, where clients are asked for them.
    pub fn clients(&self) -> Option<&ClientVerifier> {
        self.clients.as_deref()
    }

    /// The clock of certificates' validity.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl ClientTls {
    /// The files whose contents [`Self::load`] uses.
    pub fn files(&self) -> Vec<PathBuf> {
        let key_pair = self.key_pair.iter().flat_map(|it| [it.certificate.clone(), it.key.clone()]);
        key_pair.chain(self.authorities.clone()).collect()
    }

    /// Loads the files, and logs which certificate is in force. Returns when the certificate expires, if there is one.
    ///
    /// # Errors
    /// As [`ServerTls::load`].
    pub fn load(&self, clock: &Clock) -> Result<(ClientConfig, Option<DateTime<Utc>>), TlsError> {
        let roots = match &self.authorities {
            Some(path) => {
                let source = Source(TlsInput::Authorities, path);
                let mut roots = RootCertStore::empty();
                for certificate in source.certificates()? {
                    roots.add(certificate).map_err(source.unusable())?;
                }
                roots
            }
            None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
        };
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let Some(key_pair) = &self.key_pair else { return Ok((builder.with_no_client_auth(), None)) };
        let (certified, not_after) = key_pair.load(clock, &default_provider())?;
        let config = builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        Ok((config, Some(not_after)))
    }
}

impl KeyPair {
    /// The certificate with its key, and when it expires.
    fn load(
        &self,
        clock: &Clock,
        provider: &CryptoProvider,
    ) -> Result<(CertifiedKey, DateTime<Utc>), TlsError> {
        let source = Source(TlsInput::Certificate, &self.certificate);
        let chain = source.certificates()?;
        let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let (_, leaf) = leaf.ok_or_else(|| source.error(TlsErrorCause::Malformed("a certificate")))?;
        let not_after =
            DateTime::from_timestamp(leaf.validity().not_after.timestamp(), 0).unwrap_or_default();
        if not_after <= clock.now() {
            return Err(source.error(TlsErrorCause::Expired(not_after)));
        }
        let (subject, serial) = (leaf.subject().to_string(), leaf.raw_serial_as_string());
        let names: Vec<_> = PeerName::of_certificate(chain.first().map_or(&[], AsRef::as_ref))
            .iter()
            .map(ToString::to_string)
            .collect();
        let key_source = Source(TlsInput::Key, &self.key);
        let text = zeroize::Zeroizing::new(key_source.read()?);
        let key = PrivateKeyDer::from_pem_slice(&text);
        let key = key.map_err(|_error| key_source.error(TlsErrorCause::Malformed("a private key")))?;
        let key = provider.key_provider.load_private_key(key).map_err(key_source.unusable())?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(key_source.error(TlsErrorCause::OtherKey)),
            Err(error) => return Err(source.unusable()(error)),
        }
        let (file, names) = (self.certificate.display(), names.join(","));
        tracing::info!(%file, subject, names, serial, %not_after, "certificate in force");
        Ok((certified, not_after))
    }
}

impl Source<'_> {
    /// Reads the file's certificates, at least one.
    fn certificates(self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read()?).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            _ => Err(self.error(TlsErrorCause::Malformed("certificates"))),
        }
    }

    fn read(self) -> Result<Vec<u8>, TlsError> {
        fs::read(self.1).map_err(|error| self.error(TlsErrorCause::Unreadable(error)))
    }

    fn error(self, cause: TlsErrorCause) -> TlsError {
        TlsError { input: self.0, path: self.1.to_owned(), cause }
    }

    fn unusable<E: fmt::Display>(self) -> impl FnOnce(E) -> TlsError {
        move |error| self.error(TlsErrorCause::Unusable(error.to_string()))
    }
}

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(&self.0))
    }
}

/// The time of the service's clock, for the validity of certificates.
pub fn unix_time(clock: &Clock) -> UnixTime {
    let seconds = u64::try_from(clock.now().timestamp()).unwrap_or_default();
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn default_provider() -> Arc<CryptoProvider> {
    install_crypto_provider();
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| rustls::crypto::aws_lc_rs::default_provider().into())
}

impl FromStr for ClientAuthority {
    type Err = NameScopeError;

    /// Parses `[<scope>=]<file>`. What precedes `=` is a scope if it has the form of one, and part of the file otherwise.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scope, file) = match text.split_once('=') {
            Some((scope, file)) if scope.starts_with("spiffe://") => (Some(scope.parse()?), file),
            Some((scope, file)) => match scope.parse() {
                Ok(scope) => (Some(scope), file),
                Err(NameScopeError) => (None, text),
            },
            None => (None, text),
        };
        Ok(Self { scope, file: file.into() })
    }
}
