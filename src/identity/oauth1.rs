//! OAuth 1.0a (RFC 5849) as the 1.1 API verified it. There is no nonce store: the signature covers the id, and a
//! destroyed id is never used again, so a replayed request finds nothing.

mod claims;
mod error;
mod header;
mod origin;
mod parameters;
mod signature;

use std::{fmt, sync::Arc};

use self::{
    claims::Claims,
    error::{OAuthError, token_excerpt},
};
use super::{excerpt::excerpts, user::AuthenticatedUser};
use crate::{
    config,
    domain::{AccessToken, Application, Clock, CredentialDirectory, DestroyFailure, Found, Secret},
};

pub use header::{Scheme, parse as parse_header};
pub use origin::{Origin, OriginError};
pub use parameters::{Parameters, is_form};
pub use signature::sign;

/// A request as far as its signature is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// The `Authorization` header, when its scheme is `OAuth`: the part after the scheme.
    pub header: Option<&'a str>,
    pub query: &'a Parameters<'a>,
    /// The parameters of a form-urlencoded body; empty for any other body.
    pub form: &'a Parameters<'a>,
    /// The origin the request itself names, tried when none is configured.
    pub origin: Option<&'a Origin>,
}

/// Verifies requests against the applications and tokens of a directory.
#[derive(Clone)]
pub struct Verifier {
    directory: Arc<dyn CredentialDirectory>,
    origins: Arc<[Origin]>,
    clock: Clock,
    /// For an application and for a token that are refused: as long as the secrets that are issued.
    decoys: Arc<(Secret, Secret)>,
}

impl Verifier {
    /// Without configured origins, the one each request names is used.
    pub fn new(directory: Arc<dyn CredentialDirectory>, origins: Vec<Origin>, clock: Clock) -> Self {
        let decoys = Arc::new((Secret::from("0".repeat(50)), Secret::from("0".repeat(44))));
        Self { directory, origins: origins.into(), clock, decoys }
    }

    /// Returns the origins that clients are meant to sign for.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Checks timestamp, token, application, signature, user context and write access, in this order.
    ///
    /// # Errors
    /// The first check that fails, as the error table names it, with its cause: which parameter, how late, which origins
    /// were tried.
    pub async fn verify(&self, request: Request<'_>) -> Result<AuthenticatedUser, DestroyFailure> {
        let header = match request.header.map(header::parse) {
            Some(Some(header)) => header,
            Some(None) => return Err(OAuthError::Header.into_failure(None)),
            None => Parameters::default(),
        };
        let sent = [&header, request.query, request.form];
        let checked = self.check(request, &sent).await;
        checked.map_err(|error| error.into_failure(claims::sent_consumer_key(&sent)))
    }

    async fn check(
        &self,
        request: Request<'_>,
        sent: &[&Parameters<'_>; 3],
    ) -> Result<AuthenticatedUser, OAuthError> {
        match sent.iter().filter(|parameters| parameters.has_oauth()).count() {
            0 => return Err(OAuthError::NoParameters),
            1 => {}
            // RFC 5849, 3.5: one place and only one. Of two places, a proxy may have checked the other one.
            _ => return Err(OAuthError::TwoPlaces),
        }
        let claims = Claims::read(sent)?;
        // Saturating: the timestamp is the client's to choose.
        let late_by = self.clock.now().timestamp().saturating_sub(claims.timestamp);
        if late_by.saturating_abs() > config::identity::OAUTH_WINDOW {
            return Err(OAuthError::Timestamp { late_by });
        }
        let found = self.directory.find(claims.consumer_key, claims.token).await?;
        let token = self.check_signature(request, &claims, sent, &found)?.ok_or(OAuthError::NoUser)?;
        if !token.write {
            return Err(OAuthError::ReadOnly(claims.token.map(token_excerpt).unwrap_or_default()));
        }
        let caller = ["oauth1:", claims.consumer_key].concat();
        Ok(AuthenticatedUser { user: token.user, caller: Some(caller.into()) })
    }

    /// Returns the token that signed the request. A rejected token or application takes as long as a valid one: the signature
    /// is checked against decoys, and the request is rejected whatever the result.
    fn check_signature<'f>(
        &self,
        request: Request<'_>,
        claims: &Claims<'_>,
        sent: &[&Parameters<'_>],
        found: &'f Found,
    ) -> Result<Option<&'f AccessToken>, OAuthError> {
        let accepted = accept(claims, found);
        let secrets = match &accepted {
            Ok((application, token)) => (&application.secret, token.map(|token| &token.secret)),
            Err(_) => (&self.decoys.0, claims.token.map(|_| &self.decoys.1)),
        };
        let base = signature::Base::new(request.method, request.path, sent);
        let origins = || self.origins_of(&request);
        let is_signed = signature::verify(claims.method, &base, origins(), secrets, &claims.signature);
        let (_, token) = accepted?;
        if is_signed {
            return Ok(token);
        }
        let tried = excerpts(origins().map(Origin::as_str), config::identity::EXCERPT_COUNT);
        Err(if tried.is_empty() { OAuthError::NoOrigin } else { OAuthError::Signature(tried) })
    }

    /// Returns the origins that a request may have been signed for.
    fn origins_of<'o>(&'o self, request: &Request<'o>) -> impl Iterator<Item = &'o Origin> {
        self.origins.iter().chain(request.origin.filter(|_| self.origins.is_empty()))
    }
}

/// Returns the application and the token of a request, if they are valid and belong together.
fn accept<'f>(
    claims: &Claims<'_>,
    found: &'f Found,
) -> Result<(&'f Application, Option<&'f AccessToken>), OAuthError> {
    let token = match (claims.token, found.token.as_deref()) {
        (Some(key), None) => return Err(OAuthError::UnknownToken(token_excerpt(key))),
        (Some(key), Some(token)) if token.revoked => {
            return Err(OAuthError::RevokedToken(token_excerpt(key)));
        }
        (Some(key), Some(token)) => Some((key, token)),
        (None, _) => None,
    };
    let application = found.application.as_deref().ok_or(OAuthError::UnknownApplication)?;
    if application.suspended {
        return Err(OAuthError::SuspendedApplication);
    }
    if let Some((key, token)) = token
        && token.consumer_key != claims.consumer_key
    {
        return Err(OAuthError::ForeignToken(token_excerpt(key)));
    }
    Ok((application, token.map(|(_, token)| token)))
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("origins", &self.origins).finish_non_exhaustive()
    }
}
