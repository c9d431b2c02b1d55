//! Certificate authorities of the tests' own, and clients that speak TLS.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tonic::body::Body;

pub type Https = HttpsConnector<HttpConnector>;
pub type TlsRpc =
    collections_service::proto::collections_service_client::CollectionsServiceClient<Client<Https, Body>>;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
    /// The certificates that its clients present with their own, in PEM: none for a root.
    pub intermediates: String,
}

/// A certificate with its key, in PEM.
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    Server,
    Client,
    ExpiredClient,
    ExpiredServer,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        Self::root(name, &[])
    }

    /// A root whose name constraints permit these DNS names alone, where there are any.
    pub fn root(name: &str, permitted: &[&str]) -> Self {
        let (params, key) = (authority_params(name, permitted), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), certificate, intermediates: String::new() }
    }

    /// An authority below this one, with name constraints like [`Self::root`].
    pub fn intermediate(&self, name: &str, permitted: &[&str]) -> Self {
        let (params, key) = (authority_params(name, permitted), KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let intermediates = format!("{certificate}{}", self.intermediates);
        Self { issuer: Issuer::new(params, key), certificate, intermediates }
    }

    /// A certificate for names like `spiffe://…`, `127.0.0.1` and `a.name`.
    pub fn issue(&self, names: &[&str], purpose: For) -> Leaf {
        self.issue_as(names, purpose, |_| ())
    }

    /// A client's certificate that ends so long after the epoch.
    pub fn issue_until(&self, names: &[&str], end: Duration) -> Leaf {
        self.issue_as(names, For::Client, |params| params.not_after = date_time_ymd(1970, 1, 1) + end)
    }

    fn issue_as(&self, names: &[&str], purpose: For, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains("://") => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.extended_key_usages = vec![match purpose {
            For::Server | For::ExpiredServer => ExtendedKeyUsagePurpose::ServerAuth,
            For::Client | For::ExpiredClient => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        if matches!(purpose, For::ExpiredClient | For::ExpiredServer) {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem() + &self.intermediates;
        Leaf { certificate, key: key.serialize_pem() }
    }

    /// A certificate for this machine's own address.
    pub fn server(&self) -> Leaf {
        self.issue(&["127.0.0.1"], For::Server)
    }

    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, &self.certificate).unwrap();
        path
    }
}

impl Leaf {
    /// Writes certificate and key; gives their paths.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        (certificate, key)
    }
}

fn authority_params(name: &str, permitted: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let permitted_subtrees: Vec<_> =
        permitted.iter().map(|name| GeneralSubtree::DnsName((*name).to_owned())).collect();
    if !permitted_subtrees.is_empty() {
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }
    params
}

/// How a client trusts one authority, and shows a certificate if it has one.
pub fn client_config(authority: &Authority, leaf: Option<&Leaf>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let chain = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
        }
    }
}

pub fn https(config: ClientConfig, http2: bool) -> Https {
    let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
    if http2 { builder.enable_http2().build() } else { builder.enable_http1().build() }
}

/// A client of the RPC over TLS, on a connection of its own.
pub fn tls_rpc(origin: &str, authority: &Authority, leaf: Option<&Leaf>) -> TlsRpc {
    rpc_at(&origin.replace("http://", "https://"), authority, leaf)
}

/// The same, over TLS or not as the origin has it.
pub fn rpc_at(origin: &str, authority: &Authority, leaf: Option<&Leaf>) -> TlsRpc {
    let connector = https(client_config(authority, leaf), true);
    let http = Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
    TlsRpc::with_origin(http, origin.parse().unwrap())
}
