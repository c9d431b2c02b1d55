//! The ways in which gRPC callers name the user.

use http::{HeaderMap, header};

use super::{
    excerpt::excerpt,
    jwt,
    oauth1::Scheme,
    peer::Peer,
    peer_name::{PeerName, TrustedPeers},
    user::AuthenticatedUser,
};
use crate::domain::{DestroyError, DestroyFailure, UserId};

const USER_ID: &str = "x-user-id";

/// The ways that are switched on.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    /// Accepts `x-user-id` from any caller, for development. Start-up rejects it on other than loopback addresses.
    pub insecure: bool,
    /// `x-user-id` is accepted from these services, which authenticate with a certificate.
    pub trusted_peers: TrustedPeers,
    /// `authorization: Bearer …`.
    pub jwt: Option<jwt::Verifier>,
}

/// Why a caller is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum CallerError {
    #[error("no name is on the allow-list: {0}")]
    NotListed(String),
    #[error("the metadata {0} is given more than once")]
    Repeated(&'static str),
    #[error("the metadata {0} is not ASCII text")]
    NotText(&'static str),
    #[error("x-user-id {0} is not a user id")]
    UserId(String),
    #[error("the metadata authorization is not a bearer token")]
    Scheme,
    #[error("bearer tokens are not accepted: no JWKS is configured")]
    NoVerifier,
    #[error("x-user-id is {named}, but the subject of the token is {subject}")]
    Contradiction { named: UserId, subject: UserId },
    #[error("there is neither a bearer token nor x-user-id")]
    Missing,
    #[error("x-user-id is accepted from trusted peers only, and the peer has no certificate")]
    Untrusted,
    #[error("the trusted peer {0} named no user in x-user-id")]
    NoUser(String),
}

impl CallerError {
    const fn failure(&self) -> DestroyError {
        match self {
            Self::NotListed(_) => DestroyError::CallerNotAllowed,
            Self::Repeated(_)
            | Self::NotText(_)
            | Self::UserId(_)
            | Self::Scheme
            | Self::Contradiction { .. } => DestroyError::CredentialsInvalid,
            Self::NoVerifier => DestroyError::TokenInvalid,
            Self::Missing | Self::Untrusted => DestroyError::CredentialsMissing,
            Self::NoUser(_) => DestroyError::UserContextRequired,
        }
    }
}

impl From<CallerError> for DestroyFailure {
    fn from(error: CallerError) -> Self {
        Self::new(error.failure(), error)
    }
}

impl Callers {
    /// Finds the user of a call from its metadata and the peer that sent it.
    ///
    /// # Errors
    /// [`DestroyError::CallerNotAllowed`] where the peer has a certificate without a name on the list, whatever the metadata
    /// holds: a service that is not meant to call learns it at its first call.
    /// [`DestroyError::CredentialsInvalid`] where `x-user-id` is no user id, is repeated (even if equal: something on the
    /// way added one) or contradicts the token; [`DestroyError::CredentialsMissing`] where no accepted way names a user;
    /// [`DestroyError::UserContextRequired`] where a trusted peer names none; and the failures of the token's verification.
    pub async fn identify(
        &self,
        metadata: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<AuthenticatedUser, DestroyFailure> {
        let service = self.service(peer)?;
        let named = named_user(metadata)?;
        let mut user = match bearer(metadata)? {
            Some(token) => {
                let jwt = self.jwt.as_ref().ok_or(CallerError::NoVerifier)?;
                let user = jwt.verify(token).await?;
                let subject = user.user();
                if let Some(named) = named.filter(|named| *named != subject) {
                    return Err(CallerError::Contradiction { named, subject }.into());
                }
                user
            }
            None => AuthenticatedUser { user: self.trusted_user(named, service)?, caller: None },
        };
        if let Some(service) = service {
            user.caller = Some(service.as_caller().into());
        }
        Ok(user)
    }

    /// Finds the service at the other end, where it has a certificate.
    ///
    /// # Errors
    /// [`DestroyError::CallerNotAllowed`] where the certificate has no name on the list, has expired since the connection was
    /// opened, or was issued by an authority that has been replaced.
    pub fn service<'a>(&self, peer: Option<&'a Peer>) -> Result<Option<&'a PeerName>, DestroyFailure> {
        let Some(certificate) = peer.and_then(Peer::certificate) else { return Ok(None) };
        let name = self.trusted_peers.find(certificate.names());
        name.map(Some).ok_or_else(|| CallerError::NotListed(certificate.describe()).into())
    }

    /// Returns the user whom the metadata names, if its sender may name one.
    fn trusted_user(&self, named: Option<UserId>, service: Option<&PeerName>) -> Result<UserId, CallerError> {
        match (named, service) {
            (Some(user), Some(_)) => Ok(user),
            (Some(user), None) if self.insecure => Ok(user),
            (None, Some(service)) => Err(CallerError::NoUser(excerpt(service.as_str()))),
            (Some(_), None) => Err(CallerError::Untrusted),
            (None, None) => Err(CallerError::Missing),
        }
    }
}

/// Reads the user that the metadata `x-user-id` names.
fn named_user(metadata: &HeaderMap) -> Result<Option<UserId>, CallerError> {
    let text = single(metadata, USER_ID)?;
    text.map(|text| text.parse().map_err(|_error| CallerError::UserId(excerpt(text)))).transpose()
}

fn bearer(metadata: &HeaderMap) -> Result<Option<&str>, CallerError> {
    match single(metadata, header::AUTHORIZATION.as_str())?.map(Scheme::of) {
        None => Ok(None),
        Some(Scheme::Bearer(token)) => Ok(Some(token)),
        Some(_other) => Err(CallerError::Scheme),
    }
}

/// Reads a header that may be given once.
fn single<'a>(metadata: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, CallerError> {
    let mut values = metadata.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(CallerError::Repeated(name));
    }
    value.to_str().map(Some).map_err(|_error| CallerError::NotText(name))
}
