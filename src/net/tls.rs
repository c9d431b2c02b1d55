//! Certificates and keys from files, for both ends of a connection.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::domain::Clock;

/// A certificate chain and its key, in PEM.
#[derive(Clone, Debug)]
pub struct KeyPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What a listener shows its clients, and asks of them.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub key_pair: KeyPair,
    pub clients: ClientAuth,
    pub alpn: &'static [&'static str],
}

/// What a listener asks of those who connect.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// No certificate.
    Anyone,
    /// A certificate that these authorities (PEM) signed, or none: there is another way to prove oneself.
    Optional(PathBuf),
    /// The same, and nobody without.
    Required(PathBuf),
}

/// How a client proves itself, and whom it trusts.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The authorities (PEM) that may sign the server's certificate; without them, those that browsers trust.
    pub authorities: Option<PathBuf>,
    pub key_pair: Option<KeyPair>,
}

/// Why a certificate, a key or an authority cannot be used. Says which file, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}: expected {expected} in PEM", path.display())]
    Malformed { path: PathBuf, expected: &'static str },
    #[error("{}: expired at {expiry}", path.display())]
    Expired { path: PathBuf, expiry: DateTime<Utc> },
    /// Well-formed, but TLS cannot do anything with it: a certificate of another key, say.
    #[error("{}: {error}", path.display())]
    Unfit { path: PathBuf, error: String },
}

impl ServerTls {
    /// The files whose contents [`Self::load`] uses.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.key_pair.certificate.clone(), self.key_pair.key.clone()];
        match &self.clients {
            ClientAuth::Anyone => {}
            ClientAuth::Optional(path) | ClientAuth::Required(path) => files.push(path.clone()),
        }
        files
    }

    /// # Errors
    /// A file is unreadable, no PEM, expired, or certificate and key do not belong together.
    pub fn load(&self, clock: &Clock) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unfit(&self.key_pair.certificate))?;
        let builder = match &self.clients {
            ClientAuth::Anyone => builder.with_no_client_auth(),
            ClientAuth::Optional(path) | ClientAuth::Required(path) => {
                let roots = Arc::new(authorities(path)?);
                let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                if matches!(self.clients, ClientAuth::Optional(_)) {
                    verifier = verifier.allow_unauthenticated();
                }
                builder.with_client_cert_verifier(verifier.build().map_err(unfit(path))?)
            }
        };
        let (chain, key) = self.key_pair.load(clock)?;
        let config = builder.with_single_cert(chain, key);
        let mut config = config.map_err(unfit(&self.key_pair.certificate))?;
        if !matches!(self.clients, ClientAuth::Anyone) {
            // A session that is resumed brings its certificate along unverified, however long ago it expired.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl ClientTls {
    /// The files whose contents [`Self::load`] uses.
    pub fn files(&self) -> Vec<PathBuf> {
        let key_pair = self.key_pair.iter().flat_map(|it| [it.certificate.clone(), it.key.clone()]);
        key_pair.chain(self.authorities.clone()).collect()
    }

    /// # Errors
    /// As [`ServerTls::load`].
    pub fn load(&self, clock: &Clock) -> Result<ClientConfig, TlsError> {
        let roots = match &self.authorities {
            Some(path) => authorities(path)?,
            None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
        };
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        // This fails only for a provider without ciphers, which ours is not.
        let builder = builder.map_err(unfit(Path::new("TLS")))?.with_root_certificates(roots);
        let Some(key_pair) = &self.key_pair else { return Ok(builder.with_no_client_auth()) };
        let (chain, key) = key_pair.load(clock)?;
        builder.with_client_auth_cert(chain, key).map_err(unfit(&key_pair.certificate))
    }
}

impl KeyPair {
    fn load(
        &self,
        clock: &Clock,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates(&self.certificate)?;
        let malformed = |path: &PathBuf, expected| TlsError::Malformed { path: path.clone(), expected };
        let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let (_, leaf) = leaf.ok_or_else(|| malformed(&self.certificate, "a certificate"))?;
        let expiry = DateTime::from_timestamp(leaf.validity().not_after.timestamp(), 0);
        if let Some(expiry) = expiry.filter(|expiry| *expiry <= clock.now()) {
            return Err(TlsError::Expired { path: self.certificate.clone(), expiry });
        }
        let text = zeroize::Zeroizing::new(read(&self.key)?);
        let key = PrivateKeyDer::from_pem_slice(&text);
        Ok((chain, key.map_err(|_error| malformed(&self.key, "a private key"))?))
    }
}

/// The one provider of cryptography, named wherever one is wanted.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(unfit(path))?;
    }
    Ok(roots)
}

/// The certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let malformed = || TlsError::Malformed { path: path.to_owned(), expected: "certificates" };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|_error| malformed())?;
    if found.is_empty() { Err(malformed()) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Unreadable { path: path.to_owned(), error })
}

fn unfit<E: fmt::Display>(path: &Path) -> impl FnOnce(E) -> TlsError {
    move |error| TlsError::Unfit { path: path.to_owned(), error: error.to_string() }
}
