//! Bearer tokens: JWTs (RFC 7519) that an issuer signs with a key of its JWKS (RFC 7517), checked as RFC 8725 advises.

mod claims;
mod error;
mod keys;
mod offload;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use self::{
    claims::{Claims, Token},
    error::JwtError,
    offload::Offload,
};
use super::{
    excerpt::{excerpt, excerpts},
    user::AuthenticatedUser,
};
use crate::{
    config,
    domain::{Clock, DestroyFailure, UserId},
};

pub use error::NoKeys;
pub use keys::{KeySet, KeySetError};

/// Where the issuer's keys come from.
pub trait KeySource: Send + Sync {
    /// Returns the current keys.
    ///
    /// # Errors
    /// There are none yet, or the last ones are too old.
    fn keys(&self) -> Result<Arc<KeySet>, NoKeys>;

    /// Refreshes the keys for a token whose key is unknown. Returns after a bounded wait, also where a refresh is not due.
    fn refresh_once(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Verifies tokens of one issuer. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    keys: Arc<dyn KeySource>,
    issuer: Arc<str>,
    audiences: Arc<[String]>,
    clock: Clock,
    offload: Offload,
}

impl Verifier {
    /// Accepts this issuer's tokens for any of these audiences.
    pub fn new(keys: Arc<dyn KeySource>, issuer: &str, audiences: &[String], clock: Clock) -> Self {
        Self { keys, issuer: issuer.into(), audiences: audiences.into(), clock, offload: Offload::new() }
    }

    /// Checks form, key, signature, issuer, audience, times, user and scope, in this order.
    ///
    /// # Errors
    /// `TokenInvalid`; `UserContextRequired` where the subject is no user; `WriteAccessRequired` where the scope does not
    /// allow the token to write; `StoreUnavailable` while there are no keys to verify with; `Overloaded` where too many
    /// tokens wait for their verification. The cause names the check that failed.
    pub async fn verify(&self, token: &str) -> Result<AuthenticatedUser, DestroyFailure> {
        Ok(self.check(token).await?)
    }

    async fn check(&self, token: &str) -> Result<AuthenticatedUser, JwtError> {
        let token = Token::read(token)?;
        let mut keys = self.keys.keys()?;
        if let Some(kid) = token.kid()
            && !keys.has(kid)
        {
            // The issuer may sign with a new one.
            self.keys.refresh_once().await;
            keys = self.keys.keys()?;
        }
        let candidates = token.candidates(&keys)?;
        let claims = self.offload.run(move || token.verify(&candidates)).await??;
        self.accept(&claims)
    }

    fn accept(&self, claims: &Claims) -> Result<AuthenticatedUser, JwtError> {
        if claims.iss != *self.issuer {
            return Err(JwtError::Issuer(excerpt(&claims.iss)));
        }
        if !claims.aud.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(JwtError::Audience(excerpts(claims.aud.iter(), config::identity::EXCERPT_COUNT)));
        }
        self.check_times(claims)?;
        let sub = claims.sub.as_deref().unwrap_or_default();
        if claims.is_of_a_client(sub) {
            return Err(JwtError::NoUser(format!("{} is the client itself", excerpt(sub))));
        }
        let user: UserId = sub.parse().map_err(|_error| JwtError::NoUser(excerpt(sub)))?;
        if !claims.may_write() {
            return Err(JwtError::ReadOnly);
        }
        let caller = format!("jwt:{}", claims.client());
        Ok(AuthenticatedUser { user, caller: Some(caller.into()) })
    }

    fn check_times(&self, claims: &Claims) -> Result<(), JwtError> {
        // A NumericDate may have a fraction. A double holds a second of today to a millionth.
        let now = self.clock.now().timestamp_micros() as f64 / 1e6;
        let expiry = claims.exp.ok_or_else(|| JwtError::Claims("exp is missing".to_owned()))?;
        if let Some(begin) = claims.nbf.filter(|begin| now < begin - config::identity::JWT_LEEWAY) {
            return Err(JwtError::Early((begin - now) as i64));
        }
        if now >= expiry + config::identity::JWT_LEEWAY {
            return Err(JwtError::Expired((now - expiry) as i64));
        }
        Ok(())
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
