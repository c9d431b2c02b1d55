//! Why a token is refused.

use jsonwebtoken::Algorithm;

use crate::{
    config::identity::{JWT_LIMIT, JWT_VERIFICATION_QUEUE},
    domain::{DestroyError, DestroyFailure},
};

/// Why there are no keys. The token itself may be valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no JWKS: {0}")]
pub struct NoKeys(pub String);

/// Why a token is refused. The caller learns the failure that it stands for, the log this. Texts of the token are excerpts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("the token is longer than {JWT_LIMIT} bytes")]
    TooLong,
    #[error("the token is not three parts in base64url with a JSON header")]
    Malformed,
    #[error("the token's header has `crit`, and no extension is supported")]
    Critical,
    #[error("the token's type {0} is not JWT or at+jwt")]
    Type(String),
    #[error("the token's algorithm {0} is not allowed")]
    Algorithm(String),
    #[error("the token's algorithm {algorithm:?} does not fit the key {kid}")]
    WrongKey { algorithm: Algorithm, kid: String },
    #[error("the token's key {0} is not in the JWKS")]
    UnknownKey(String),
    #[error("the token names no key, and the JWKS does not have exactly one")]
    NoKeyId,
    #[error("the token's signature is wrong for the key {0}")]
    Signature(String),
    #[error("a claim is missing, malformed or repeated: {0}")]
    Claims(String),
    #[error(
        "the client {0} in `azp` or `client_id` is empty, too long or has characters that are not displayed"
    )]
    Client(String),
    #[error("the token is bound to a key of its sender (`cnf`), which is not checked here")]
    SenderConstrained,
    #[error("the token is a security event token, such as a logout token")]
    SecurityEvent,
    #[error("the token is of another issuer, {0}")]
    Issuer(String),
    #[error("the token is for another audience: {0}")]
    Audience(String),
    #[error("the token is valid in {0} s only")]
    Early(i64),
    #[error("the token expired {0} s ago")]
    Expired(i64),
    #[error("the token's subject is not a user: {0}")]
    NoUser(String),
    #[error("the token's scope does not allow it to write")]
    ReadOnly,
    #[error("{JWT_VERIFICATION_QUEUE} tokens wait for their verification already")]
    Overloaded,
    #[error("the verification was interrupted")]
    Interrupted,
    #[error(transparent)]
    NoKeys(#[from] NoKeys),
}

impl JwtError {
    const fn failure(&self) -> DestroyError {
        match self {
            Self::TooLong
            | Self::Malformed
            | Self::Critical
            | Self::Type(_)
            | Self::Algorithm(_)
            | Self::WrongKey { .. }
            | Self::UnknownKey(_)
            | Self::NoKeyId
            | Self::Signature(_)
            | Self::Claims(_)
            | Self::Client(_)
            | Self::SenderConstrained
            | Self::SecurityEvent
            | Self::Issuer(_)
            | Self::Audience(_)
            | Self::Early(_)
            | Self::Expired(_) => DestroyError::TokenInvalid,
            Self::NoUser(_) => DestroyError::UserContextRequired,
            Self::ReadOnly => DestroyError::WriteAccessRequired,
            Self::Overloaded | Self::Interrupted => DestroyError::Overloaded,
            Self::NoKeys(_) => DestroyError::StoreUnavailable,
        }
    }
}

impl From<JwtError> for DestroyFailure {
    fn from(error: JwtError) -> Self {
        Self::new(error.failure(), error)
    }
}
