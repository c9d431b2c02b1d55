//! Where a JWKS is read from: a file, or a URL.

use std::{
    error::Error,
    fmt,
    fs::File,
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem, pem::PemObject},
};

use crate::{config, identity::jwt::KeySetError};

/// A file, or a URL with the way to it.
#[derive(Clone, Debug)]
pub enum JwksSource {
    File(PathBuf),
    Url { url: Uri, client: Box<HttpsClient> },
}

type HttpsClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Why a source cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "--jwks: expected a file, an https URL or, of a loopback host, an http URL; without user, password or fragment"
    )]
    Url,
    #[error("--jwks-ca: is for an https URL in --jwks")]
    CaWithoutHttps,
    #[error("--jwks-ca: {0}")]
    Ca(#[from] pem::Error),
    #[error("--jwks-ca: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a JWKS could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    #[error("{0}")]
    File(#[from] io::Error),
    #[error("{0}")]
    Http(String),
    #[error("the answer was HTTP {0}, not 200")]
    Status(StatusCode),
    #[error("no response within {} s", config::jwks::FETCH_TIMEOUT.as_secs())]
    Timeout,
    #[error("it is larger than {} bytes", config::jwks::SIZE_LIMIT)]
    TooLarge,
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// A file with any of the other errors.
    #[error("{0}: {1}")]
    Unusable(String, Box<JwksError>),
}

impl JwksSource {
    /// Reads a URL where there is a scheme, a file otherwise. An attacker who can change the keys on their way can act as any
    /// user, so a URL is https. Its server's certificate is checked against the authorities in the PEM file `ca`, or
    /// else against those that browsers trust: a `scratch` image has no trust store.
    ///
    /// # Errors
    /// The URL is not https, or `ca` holds no certificates.
    pub fn new(text: &str, ca: Option<&Path>) -> Result<Self, SourceError> {
        if !text.contains("://") {
            return if ca.is_some() { Err(SourceError::CaWithoutHttps) } else { Ok(Self::File(text.into())) };
        }
        let url: Uri = text.parse().map_err(|_error| SourceError::Url)?;
        let (Some(scheme), Some(authority)) = (url.scheme(), url.authority()) else {
            return Err(SourceError::Url);
        };
        let https = *scheme == Scheme::HTTPS;
        let plain = *scheme == Scheme::HTTP && is_loopback(authority.host());
        // `Uri` drops a fragment, and `Authority` accepts `a[::1]` and `a:+80`.
        let port = authority.as_str().strip_prefix(authority.host());
        let is_port =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok();
        let is_whole =
            port.is_some_and(|port| port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        if !(https || plain) || authority.host().is_empty() || !is_whole || text.contains('#') {
            return Err(SourceError::Url);
        }
        if ca.is_some() && !https {
            return Err(SourceError::CaWithoutHttps);
        }
        let tls = ClientConfig::builder().with_root_certificates(roots(ca)?).with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions().build();
        // A connection would be idle from one fetch to the next.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self::Url { url, client: Box::new(client) })
    }

    pub(super) const fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// The pause between two readings.
    pub(super) const fn interval(&self) -> Duration {
        match self {
            Self::File(_) => config::jwks::FILE_INTERVAL,
            Self::Url { .. } => config::jwks::REFRESH_INTERVAL,
        }
    }

    pub(super) async fn read(&self) -> Result<Bytes, JwksError> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                // Without a bound, because nothing ends a thread: a file system that hangs holds this one, not one more a
                // second.
                let read = tokio::task::spawn_blocking(move || read_file(&path));
                read.await.map_err(|panicked| JwksError::File(io::Error::other(panicked)))?
            }
            Self::Url { url, client } => {
                let fetched = tokio::time::timeout(config::jwks::FETCH_TIMEOUT, fetch(client, url)).await;
                fetched.map_err(|_elapsed| JwksError::Timeout)?
            }
        }
    }
}

impl fmt::Display for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url { url, .. } => url.fmt(f),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, SourceError> {
    let Some(ca) = ca else {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err(pem::Error::NoItemsFound.into()) } else { Ok(roots) }
}

fn read_file(path: &Path) -> Result<Bytes, JwksError> {
    let mut text = Vec::new();
    File::open(path)?.take(config::jwks::SIZE_LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > config::jwks::SIZE_LIMIT { Err(JwksError::TooLarge) } else { Ok(text.into()) }
}

/// One GET. Redirects are not followed: only the configured URL is trusted.
async fn fetch(client: &HttpsClient, url: &Uri) -> Result<Bytes, JwksError> {
    let request = Request::get(url)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, concat!("collections-service/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .map_err(|error| JwksError::Http(explain(&error)))?;
    let response = client.request(request).await.map_err(|error| JwksError::Http(explain(&error)))?;
    if response.status() != StatusCode::OK {
        return Err(JwksError::Status(response.status()));
    }
    match Limited::new(response.into_body(), config::jwks::SIZE_LIMIT as usize).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(JwksError::TooLarge),
        Err(error) => Err(JwksError::Http(explain(error.as_ref()))),
    }
}

/// An error with its causes: the HTTP client's own text is only that it could not connect.
fn explain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (**error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
