//! OAuth 1.0a (RFC 5849) as the 1.1 API verified it. There is no nonce store: the signature covers the id, and a
//! destroyed id never comes back, so a replayed request finds nothing.

mod header;
mod parameters;
mod signature;

use std::{fmt, str::FromStr, sync::Arc};

use tracing::Span;

use super::AuthenticatedUser;
use crate::{
    config,
    domain::{
        AccessToken, Application, Clock, CredentialDirectory, DestroyError, DirectoryError, Found, Secret,
    },
};

pub use header::{Scheme, parse as parse_header};
pub use parameters::Parameters;
pub use signature::sign;

/// What a client signed: scheme, host and port as they stand in a base string, without default ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

/// A text that is no origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected http:// or https://, a host and perhaps a port, and nothing else")]
pub struct OriginError;

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

/// The `oauth_*` parameters of a request, each there exactly once.
struct Claims<'a> {
    consumer_key: &'a str,
    token: Option<&'a str>,
    method: signature::Method,
    signature: Vec<u8>,
    timestamp: i64,
}

impl Verifier {
    /// Without configured origins, the one each request names is used.
    pub fn new(directory: Arc<dyn CredentialDirectory>, origins: Vec<Origin>, clock: Clock) -> Self {
        let decoys = Arc::new((Secret::from("0".repeat(50)), Secret::from("0".repeat(44))));
        Self { directory, origins: origins.into(), clock, decoys }
    }

    /// The origins that clients are told to sign for.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Checks timestamp, token, application, signature, user context and write access, in this order.
    ///
    /// # Errors
    /// The first check that fails, as the error table names it.
    pub async fn verify(&self, request: Request<'_>) -> Result<AuthenticatedUser, DestroyError> {
        let header = match request.header {
            Some(text) => header::parse(text).ok_or(DestroyError::CredentialsInvalid)?,
            None => Parameters::default(),
        };
        let sent = [&header, request.query, request.form];
        match sent.iter().filter(|parameters| parameters.has_oauth()).count() {
            0 => return Err(DestroyError::CredentialsMissing),
            1 => {}
            // RFC 5849, 3.5: one place and only one. Of two, a proxy may have judged the other.
            _ => return Err(DestroyError::CredentialsInvalid),
        }
        let claims = Claims::read(&sent).ok_or(DestroyError::CredentialsInvalid)?;
        Span::current().record("oauth.consumer_key", claims.consumer_key);
        // Saturating: the timestamp is the client's to choose.
        let late = self.clock.now().timestamp().saturating_sub(claims.timestamp);
        if late.saturating_abs() > config::identity::OAUTH_WINDOW {
            Span::current().record("oauth.late_by_s", late);
            return Err(DestroyError::TimestampOutOfBounds);
        }
        let found =
            self.directory.find(claims.consumer_key, claims.token).await.map_err(|error| match error {
                DirectoryError::Unavailable => DestroyError::StoreUnavailable,
                DirectoryError::Broken => DestroyError::Internal,
            })?;
        let token = self.check_signature(request, &claims, &sent, &found)?;
        let token = token.ok_or(DestroyError::UserContextRequired)?;
        if !token.write {
            return Err(DestroyError::WriteAccessRequired);
        }
        let caller = ["oauth1:", claims.consumer_key].concat();
        Ok(AuthenticatedUser { user: token.user, caller: Some(caller.into()) })
    }

    /// The token that signed the request. A token or an application that is refused costs what a good one costs: the
    /// signature is checked against decoys, and the refusal stands whatever comes of it.
    fn check_signature<'f>(
        &self,
        request: Request<'_>,
        claims: &Claims<'_>,
        sent: &[&Parameters<'_>],
        found: &'f Found,
    ) -> Result<Option<&'f AccessToken>, DestroyError> {
        let accepted = accept(claims, found);
        let secrets = match accepted {
            Ok((application, token)) => (&application.secret, token.map(|token| &token.secret)),
            Err(_) => (&self.decoys.0, claims.token.map(|_| &self.decoys.1)),
        };
        let is_signed = self.is_signed(request, claims, sent, secrets);
        let (_, token) = accepted?;
        if is_signed { Ok(token) } else { Err(DestroyError::CredentialsInvalid) }
    }

    fn is_signed(
        &self,
        request: Request<'_>,
        claims: &Claims<'_>,
        sent: &[&Parameters<'_>],
        secrets: signature::Secrets<'_>,
    ) -> bool {
        let base = signature::Base::new(request.method, request.path, sent);
        let configured = self.origins.iter();
        let own = request.origin.filter(|_| self.origins.is_empty());
        signature::verify(claims.method, &base, configured.chain(own), secrets, &claims.signature)
    }
}

/// The application and the token of a request, if they are good and belong together.
fn accept<'f>(
    claims: &Claims<'_>,
    found: &'f Found,
) -> Result<(&'f Application, Option<&'f AccessToken>), DestroyError> {
    let token = found.token.as_deref().filter(|token| !token.revoked);
    if claims.token.is_some() && token.is_none() {
        return Err(DestroyError::TokenInvalid);
    }
    let application = found.application.as_deref().filter(|application| !application.suspended);
    let application = application.ok_or(DestroyError::ApplicationInvalid)?;
    if token.is_some_and(|token| token.consumer_key != claims.consumer_key) {
        return Err(DestroyError::TokenInvalid);
    }
    Ok((application, token))
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("origins", &self.origins).finish_non_exhaustive()
    }
}

impl<'a> Claims<'a> {
    /// `None` where one is missing, malformed or given more than once, in one place or in two.
    fn read(sent: &[&'a Parameters<'_>]) -> Option<Self> {
        let text = |name: &str| -> Option<Option<&'a str>> {
            let mut values = sent.iter().flat_map(|parameters| parameters.all(name));
            let first = values.next();
            if values.next().is_some() {
                return None;
            }
            first.map_or(Some(None), |value| std::str::from_utf8(value).ok().map(Some))
        };
        let required = |name: &str| text(name)?.filter(|value| !value.is_empty());
        // PostgreSQL's texts hold no NUL.
        let is_key = |key: &&str| key.len() <= config::identity::OAUTH_KEY_LIMIT && !key.contains('\0');
        if let Some(version) = text("oauth_version")? {
            ["1.0", "1.0a", "1.0A"].contains(&version).then_some(())?;
        }
        let token = text("oauth_token")?.filter(|token| !token.is_empty());
        token.iter().all(is_key).then_some(())?;
        required("oauth_nonce")?;
        let timestamp = required("oauth_timestamp")?;
        timestamp.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
        Some(Self {
            consumer_key: required("oauth_consumer_key").filter(is_key)?,
            token,
            method: required("oauth_signature_method")?.parse().ok()?,
            signature: signature::decode(required("oauth_signature")?)?,
            timestamp: timestamp.parse().ok()?,
        })
    }
}

impl Origin {
    /// `https://api.twitter.com`, say.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The origin of a request that came over `scheme` and names this host.
    #[must_use]
    pub fn of_request(scheme: &str, authority: &str) -> Option<Self> {
        format!("{scheme}://{authority}").parse().ok()
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: http::Uri = text.parse().map_err(|_error| OriginError)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(OriginError);
        };
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(OriginError),
        };
        let host = authority.host();
        // `Authority` finds a host and a port in texts that have no such parts: `a[::1]:80`, `a:+80`.
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => None,
            Some(rest) => Some(rest.strip_prefix(':').and_then(port).ok_or(OriginError)?),
            None => return Err(OriginError),
        };
        // `Uri` drops a fragment, and adds a path.
        let is_all = text.len() == scheme.len() + "://".len() + authority.as_str().len();
        if !is_all || host.is_empty() {
            return Err(OriginError);
        }
        let host = host.to_ascii_lowercase();
        Ok(Self(match port.filter(|port| *port != default_port) {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        }))
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
