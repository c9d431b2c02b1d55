//! Bearer tokens: JWTs (RFC 7519) that an issuer signs with a key of its JWKS (RFC 7517), checked as RFC 8725 advises.

mod claims;
mod keys;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use tracing::{Span, field};

use self::claims::{Claims, Token};
use super::AuthenticatedUser;
use crate::{
    config,
    domain::{Clock, DestroyError, UserId},
};

pub use keys::{KeySet, KeySetError};

/// Where the issuer's keys come from.
pub trait KeySource: Send + Sync {
    /// The keys as they are known now.
    ///
    /// # Errors
    /// There are none that may be used any more, or none yet.
    fn keys(&self) -> Result<Arc<KeySet>, NoKeys>;

    /// Returns once the keys are as new as they may be had for a token whose key is unknown, after a bounded wait.
    fn renewed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Why there are no keys. No token is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no JWKS: {0}")]
pub struct NoKeys(pub String);

/// Verifies tokens of one issuer. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    keys: Arc<dyn KeySource>,
    issuer: Arc<str>,
    audiences: Arc<[String]>,
    clock: Clock,
}

/// Why a token is refused. The caller learns the failure it stands for, the log this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum JwtError {
    #[error("the token is longer than {} bytes", config::identity::JWT_LIMIT)]
    TooLong,
    #[error("the token is not three parts in base64url with a JSON header")]
    Malformed,
    #[error("the token's header has `crit`")]
    Critical,
    #[error("the token is of another type than JWT or at+jwt")]
    Type,
    #[error("the token's algorithm is not allowed")]
    Algorithm,
    #[error("the token's algorithm does not fit its key")]
    WrongKey,
    #[error("the token's key is unknown")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("a claim is missing, malformed or given twice")]
    Claims,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token is not valid yet")]
    Early,
    #[error("the token has expired")]
    Expired,
    #[error("the token's subject is no user")]
    NoUser,
    #[error("the token's scope does not let it write")]
    ReadOnly,
    #[error(transparent)]
    NoKeys(#[from] NoKeys),
}

impl JwtError {
    const fn failure(&self) -> DestroyError {
        match self {
            Self::TooLong
            | Self::Malformed
            | Self::Critical
            | Self::Type
            | Self::Algorithm
            | Self::WrongKey
            | Self::UnknownKey
            | Self::Signature
            | Self::Claims
            | Self::Issuer
            | Self::Audience
            | Self::Early => DestroyError::CredentialsInvalid,
            Self::Expired => DestroyError::TokenInvalid,
            Self::NoUser => DestroyError::UserContextRequired,
            Self::ReadOnly => DestroyError::WriteAccessRequired,
            Self::NoKeys(_) => DestroyError::StoreUnavailable,
        }
    }
}

impl Verifier {
    /// Believes this issuer's tokens for any of these audiences.
    pub fn new(keys: Arc<dyn KeySource>, issuer: &str, audiences: &[String], clock: Clock) -> Self {
        Self { keys, issuer: issuer.into(), audiences: audiences.into(), clock }
    }

    /// Checks form, key, signature, issuer, audience, times, user and scope, in this order.
    ///
    /// # Errors
    /// [`DestroyError::CredentialsInvalid`], but [`DestroyError::TokenInvalid`] where the token has only expired,
    /// [`DestroyError::UserContextRequired`] where its subject is no user, [`DestroyError::WriteAccessRequired`] where
    /// its scope does not let it write, and [`DestroyError::StoreUnavailable`] while there are no keys to verify with.
    pub async fn verify(&self, token: &str) -> Result<AuthenticatedUser, DestroyError> {
        self.check(token).await.map_err(|error| {
            Span::current().record("error", field::display(&error));
            error.failure()
        })
    }

    async fn check(&self, token: &str) -> Result<AuthenticatedUser, JwtError> {
        let token = Token::read(token)?;
        let mut keys = self.keys.keys()?;
        if let Some(kid) = token.kid()
            && !keys.has(kid)
        {
            // The issuer may have begun to sign with a new one.
            self.keys.renewed().await;
            keys = self.keys.keys()?;
        }
        self.accept(token.verify(&keys)?)
    }

    fn accept(&self, claims: Claims) -> Result<AuthenticatedUser, JwtError> {
        if claims.iss != *self.issuer {
            return Err(JwtError::Issuer);
        }
        if !claims.aud.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(JwtError::Audience);
        }
        // A NumericDate may have a fraction. A double holds a second of today to a millionth.
        let now = self.clock.now().timestamp_micros() as f64 / 1e6;
        if claims.nbf.is_some_and(|from| now < from - config::identity::JWT_LEEWAY) {
            return Err(JwtError::Early);
        }
        if now >= claims.exp + config::identity::JWT_LEEWAY {
            return Err(JwtError::Expired);
        }
        let user = claims.sub.as_ref().filter(|sub| !claims.is_of_a_client(sub));
        let user: UserId = user.and_then(|sub| sub.parse().ok()).ok_or(JwtError::NoUser)?;
        if !claims.may_write() {
            return Err(JwtError::ReadOnly);
        }
        let caller = format!("jwt:{}", claims.client());
        Ok(AuthenticatedUser { user, caller: Some(caller.into()) })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("issuer", &self.issuer)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}
