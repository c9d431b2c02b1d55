//! Verifies client certificates, and decides which of their names the authorities may issue.

use std::{collections::HashMap, sync::Arc, sync::OnceLock};

use chrono::DateTime;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::{
    config,
    identity::{NameScope, PeerName, VerifiedNames},
};

/// The authorities of a listener's clients.
#[derive(Debug)]
pub struct ClientVerifier {
    anchors: RootCertStore,
    /// The names that each of the anchors may issue, in the same order.
    grants: Vec<Grant>,
    subjects: Vec<DistinguishedName>,
    is_mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Verifies the certificate of one handshake, and holds the outcome for the connection.
#[derive(Debug)]
pub struct HandshakeVerifier {
    verifier: Arc<ClientVerifier>,
    /// The names that were verified, or those that a refused certificate bears.
    pub outcome: OnceLock<Result<VerifiedNames, Vec<PeerName>>>,
}

/// The names that a trust anchor may issue.
#[derive(Debug)]
struct Grant {
    /// Names as the configuration has them: any, where it has none.
    scope: Option<NameScope>,
    types: NameTypes,
}

/// The types of names that an authority may issue, by the name constraints in its certificate. RFC 5280 leaves each type
/// open that has no permitted subtree. Here an authority with permitted subtrees of any type may issue those types alone.
/// That a name is within a subtree of its type is verified with the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NameTypes {
    spiffe: bool,
    dns: bool,
}

/// Why a chain is refused before any of its signatures is verified.
#[derive(Debug, thiserror::Error)]
enum ChainError {
    #[error("{0} intermediates, at most {limit} are accepted", limit = config::net::INTERMEDIATE_LIMIT)]
    TooLong(usize),
    #[error("more than {} intermediates have the same subject", config::net::SAME_SUBJECT_LIMIT)]
    SameSubject,
}

impl ClientVerifier {
    /// Authorities without any certificate so far. Clients without a certificate are refused where it `is_mandatory`.
    pub fn new(provider: &CryptoProvider, is_mandatory: bool) -> Self {
        Self {
            anchors: RootCertStore::empty(),
            grants: Vec::new(),
            subjects: Vec::new(),
            is_mandatory,
            algorithms: provider.signature_verification_algorithms,
        }
    }

    /// Adds an authority, which may issue names in this scope, or any name.
    ///
    /// # Errors
    /// The certificate is malformed.
    pub fn add(
        &mut self,
        certificate: CertificateDer<'static>,
        scope: Option<NameScope>,
    ) -> Result<(), Error> {
        let types = NameTypes::of_authority(&certificate);
        self.anchors.add(certificate)?;
        self.grants.push(Grant { scope, types });
        self.subjects = self.anchors.subjects();
        Ok(())
    }

    /// Verifies a client's chain at this time.
    ///
    /// # Errors
    /// The chain is malformed, too long, expired, not for clients, or leads to none of the authorities.
    pub fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedNames, Error> {
        check_size(intermediates)?;
        let parsed = EndEntityCert::try_from(end_entity).map_err(tls_error)?;
        let (algorithms, anchors) = (self.algorithms.all, &self.anchors.roots);
        let usage = KeyUsage::client_auth();
        let path = parsed.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, None);
        let path = path.map_err(tls_error)?;
        let malformed = Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, leaf) = X509Certificate::from_der(end_entity).map_err(|_error| malformed.clone())?;
        let not_after =
            DateTime::from_timestamp(leaf.validity().not_after.timestamp(), 0).ok_or(malformed)?;
        let names = PeerName::of_certificate(end_entity).into_iter();
        let (permitted, not_permitted) = names.partition(|name| self.permits(&path, name));
        Ok(VerifiedNames { permitted, not_permitted, not_after })
    }

    /// Whether every authority of a verified path may issue the name. An anchor that was added several times may issue what
    /// any of its scopes covers.
    fn permits(&self, path: &VerifiedPath<'_>, name: &PeerName) -> bool {
        let anchor = path.anchor();
        let mut grants = self.anchors.roots.iter().zip(&self.grants).filter(|(root, _)| {
            root.subject == anchor.subject && root.subject_public_key_info == anchor.subject_public_key_info
        });
        let mut intermediates = path.intermediate_certificates();
        grants.any(|(_, grant)| grant.covers(name))
            && intermediates.all(|authority| NameTypes::of_authority(&authority.der()).include(name))
    }
}

impl HandshakeVerifier {
    pub const fn new(verifier: Arc<ClientVerifier>) -> Self {
        Self { verifier, outcome: OnceLock::new() }
    }
}

impl ClientCertVerifier for HandshakeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.verifier.is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.verifier.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify(end_entity, intermediates, now);
        let (outcome, verified) = match verified {
            Ok(names) => (Ok(names), Ok(ClientCertVerified::assertion())),
            Err(error) => (Err(PeerName::of_certificate(end_entity)), Err(error)),
        };
        // A handshake has one certificate message, so this is the first outcome.
        let _first = self.outcome.set(outcome);
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.verifier.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.verifier.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.algorithms.supported_schemes()
    }
}

impl Grant {
    fn covers(&self, name: &PeerName) -> bool {
        self.types.include(name) && self.scope.as_ref().is_none_or(|scope| scope.covers(name))
    }
}

impl NameTypes {
    const NONE: Self = Self { spiffe: false, dns: false };
    const ALL: Self = Self { spiffe: true, dns: true };

    /// Reads the name constraints of an authority's certificate. One that is malformed may issue no names.
    fn of_authority(der: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Self::NONE };
        let mut types = Self::ALL;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::NameConstraints(constraints) => {
                    let Some(permitted) = &constraints.permitted_subtrees else { continue };
                    let has = |of: fn(&GeneralName<'_>) -> bool| permitted.iter().any(|tree| of(&tree.base));
                    types.spiffe &= has(|base| matches!(base, GeneralName::URI(_)));
                    types.dns &= has(|base| matches!(base, GeneralName::DNSName(_)));
                }
                ParsedExtension::ParseError { .. } => return Self::NONE,
                _ => {}
            }
        }
        types
    }

    const fn include(self, name: &PeerName) -> bool {
        match name {
            PeerName::Spiffe(_) => self.spiffe,
            PeerName::Dns(_) => self.dns,
        }
    }
}

/// Limits the work that a chain can cause. A path is searched for in all orders of the intermediates, up to webpki's limit of
/// 100 signatures: many intermediates with one subject, whose issuer bears the name of an authority, make it reach that limit.
fn check_size(intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
    if intermediates.len() > config::net::INTERMEDIATE_LIMIT {
        return Err(chain_error(ChainError::TooLong(intermediates.len())));
    }
    let mut subjects = HashMap::new();
    for certificate in intermediates {
        // One that webpki cannot parse is in no path, and costs no signature: a root of X.509 version 1, say.
        let Ok(parsed) = EndEntityCert::try_from(certificate) else { continue };
        let count: &mut usize = subjects.entry(parsed.subject().to_vec()).or_default();
        *count += 1;
        if *count > config::net::SAME_SUBJECT_LIMIT {
            return Err(chain_error(ChainError::SameSubject));
        }
    }
    Ok(())
}

fn chain_error(error: ChainError) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// The error as rustls has it, which decides the alert that the client gets.
fn tls_error(error: webpki::Error) -> Error {
    match error {
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}
