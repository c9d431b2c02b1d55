//! The ways in which gRPC callers say who the user is.

use http::{HeaderMap, header};

use super::{AuthenticatedUser, Peer, PeerName, Scheme, TrustedPeers, jwt};
use crate::domain::{DestroyError, UserId};

/// The ways that are switched on.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    /// `x-user-id` is believed of anyone: for a developer's machine. Start-up refuses it beyond loopback.
    pub insecure: bool,
    /// `x-user-id` is believed of these services, which prove themselves by a certificate.
    pub trusted_peers: TrustedPeers,
    /// `authorization: Bearer …`.
    pub jwt: Option<jwt::Verifier>,
}

impl Callers {
    /// Who the user of a call is, by its metadata and the peer that sent it.
    ///
    /// # Errors
    /// [`DestroyError::CallerNotAllowed`] where the peer shows a certificate without a name on the list; whatever stands
    /// in the metadata, a service that is not meant to call is told so at its first call.
    /// [`DestroyError::CredentialsInvalid`] where `x-user-id` is no user id, stands there twice (even if equal: something
    /// on the way added one) or contradicts the token; [`DestroyError::CredentialsMissing`] where nothing that can be
    /// believed names a user; [`DestroyError::UserContextRequired`] where a trusted peer names none; and what the token's
    /// verification finds.
    pub async fn identify(
        &self,
        metadata: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<AuthenticatedUser, DestroyError> {
        let service = self.service(peer)?;
        let named = named_user(metadata)?;
        let mut user = match bearer(metadata)? {
            Some(token) => {
                let jwt = self.jwt.as_ref().ok_or(DestroyError::CredentialsInvalid)?;
                let user = jwt.verify(token).await?;
                if named.is_some_and(|named| named != user.user()) {
                    return Err(DestroyError::CredentialsInvalid);
                }
                user
            }
            None => AuthenticatedUser { user: self.believe(named, service)?, caller: None },
        };
        if let Some(service) = service {
            user.caller = Some(format!("mtls:{service}").into());
        }
        Ok(user)
    }

    /// The service at the other end, where it shows a certificate.
    ///
    /// # Errors
    /// [`DestroyError::CallerNotAllowed`] where the certificate has no name on the list.
    pub fn service<'a>(&self, peer: Option<&'a Peer>) -> Result<Option<&'a PeerName>, DestroyError> {
        let Some(names) = peer.and_then(Peer::certificate) else { return Ok(None) };
        self.trusted_peers.find(names).map(Some).ok_or(DestroyError::CallerNotAllowed)
    }

    /// The user whom the metadata names, if whoever sent it may say so.
    fn believe(&self, named: Option<UserId>, service: Option<&PeerName>) -> Result<UserId, DestroyError> {
        match (named, service) {
            (Some(user), Some(_)) => Ok(user),
            (Some(user), None) if self.insecure => Ok(user),
            (None, Some(_)) => Err(DestroyError::UserContextRequired),
            _ => Err(DestroyError::CredentialsMissing),
        }
    }
}

/// The user that the metadata `x-user-id` names.
fn named_user(metadata: &HeaderMap) -> Result<Option<UserId>, DestroyError> {
    let text = only(metadata, "x-user-id")?;
    text.map(|text| text.parse().map_err(|_error| DestroyError::CredentialsInvalid)).transpose()
}

fn bearer(metadata: &HeaderMap) -> Result<Option<&str>, DestroyError> {
    match only(metadata, header::AUTHORIZATION.as_str())?.map(Scheme::of) {
        None => Ok(None),
        Some(Scheme::Bearer(token)) => Ok(Some(token)),
        Some(_other) => Err(DestroyError::CredentialsInvalid),
    }
}

/// The value of a header that may stand there once.
fn only<'a>(metadata: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, DestroyError> {
    let mut values = metadata.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(DestroyError::CredentialsInvalid);
    }
    value.to_str().map(Some).map_err(|_error| DestroyError::CredentialsInvalid)
}
