//! Why a signed request is refused.

use super::super::excerpt::excerpt;
use crate::{
    config::identity::{OAUTH_KEY_LIMIT, OAUTH_WINDOW, TOKEN_EXCERPT_LIMIT},
    domain::{DestroyError, DestroyFailure, DirectoryError},
};

/// Why a signed request is refused. The client learns the failure that it stands for, the log this. Texts of the client
/// are excerpts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OAuthError {
    #[error("the request has no OAuth parameters")]
    NoParameters,
    #[error("the OAuth header is not a list of key=value parameters")]
    Header,
    #[error("OAuth parameters are in more than one of header, query and form")]
    TwoPlaces,
    #[error("{0} is missing or empty")]
    Missing(&'static str),
    #[error("{0} is given more than once")]
    Repeated(&'static str),
    #[error("{0} is not UTF-8")]
    NotText(&'static str),
    #[error("{0} is longer than {OAUTH_KEY_LIMIT} bytes or contains NUL")]
    Key(&'static str),
    #[error("oauth_version {0} is not 1.0, 1.0a or 1.0A")]
    Version(String),
    #[error("oauth_signature_method {0} is not HMAC-SHA1 or HMAC-SHA256")]
    Method(String),
    #[error("oauth_timestamp {0} is not a number of seconds")]
    TimestampFormat(String),
    #[error("oauth_signature is not base64")]
    SignatureFormat,
    #[error("oauth_timestamp is {} s {}, more than {OAUTH_WINDOW} s", late_by.saturating_abs(), direction(*late_by))]
    Timestamp { late_by: i64 },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("the token {0} is unknown")]
    UnknownToken(String),
    #[error("the token {0} is revoked or expired")]
    RevokedToken(String),
    #[error("the token {0} was issued to another application")]
    ForeignToken(String),
    #[error("the application is unknown")]
    UnknownApplication,
    #[error("the application is suspended")]
    SuspendedApplication,
    #[error("the signature is wrong for each origin tried: {0}")]
    Signature(String),
    #[error(
        "the signature cannot be checked: no public origin is configured, and the request names no valid host"
    )]
    NoOrigin,
    #[error("the request has no token, so it names no user")]
    NoUser,
    #[error("the token {0} is read-only")]
    ReadOnly(String),
}

impl OAuthError {
    const fn failure(&self) -> DestroyError {
        match self {
            Self::NoParameters | Self::Missing(_) | Self::TimestampFormat(_) => {
                DestroyError::CredentialsMissing
            }
            Self::Header
            | Self::TwoPlaces
            | Self::Repeated(_)
            | Self::NotText(_)
            | Self::Key(_)
            | Self::Version(_)
            | Self::Method(_)
            | Self::SignatureFormat
            | Self::Signature(_)
            | Self::NoOrigin => DestroyError::CredentialsInvalid,
            Self::Timestamp { .. } => DestroyError::TimestampOutOfBounds,
            Self::Directory(DirectoryError::Unavailable(_)) => DestroyError::StoreUnavailable,
            Self::Directory(DirectoryError::Broken(_)) => DestroyError::Internal,
            Self::UnknownToken(_) | Self::RevokedToken(_) | Self::ForeignToken(_) => {
                DestroyError::TokenInvalid
            }
            Self::UnknownApplication | Self::SuspendedApplication => DestroyError::ApplicationInvalid,
            Self::NoUser => DestroyError::UserContextRequired,
            Self::ReadOnly(_) => DestroyError::WriteAccessRequired,
        }
    }

    /// Adds the consumer key to the cause, where the request has one.
    pub fn into_failure(self, consumer_key: Option<&[u8]>) -> DestroyFailure {
        let failure = self.failure();
        match consumer_key {
            Some(key) => {
                let key = excerpt(&String::from_utf8_lossy(key));
                DestroyFailure::new(failure, format_args!("{self}; oauth_consumer_key {key}"))
            }
            None => DestroyFailure::new(failure, self),
        }
    }
}

/// Quotes the first letters of a token: enough to find it in a list, and never more than half of it.
pub fn token_excerpt(token: &str) -> String {
    let shown = TOKEN_EXCERPT_LIMIT.min(token.chars().count() / 2);
    let begin: String = token.chars().take(shown).chain(['…']).collect();
    excerpt(&begin)
}

const fn direction(late_by: i64) -> &'static str {
    if late_by > 0 { "behind the server's clock" } else { "ahead of the server's clock" }
}
