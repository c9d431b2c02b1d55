//! OAuth 1.0a credentials as the identity room sees them, and where it gets them from.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use zeroize::Zeroizing;

use super::UserId;

/// A secret text that is wiped from memory when dropped, and never printed. It keeps the buffer of the string that it is made
/// from: to shrink the buffer could leave a copy that is not wiped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

/// An application that may sign requests.
#[derive(Clone, Debug)]
pub struct Application {
    /// The consumer secret.
    pub secret: Secret,
    pub suspended: bool,
}

/// A user's grant to an application.
#[derive(Clone, Debug)]
pub struct AccessToken {
    /// The key of the application it was issued to.
    pub consumer_key: String,
    pub user: UserId,
    pub secret: Secret,
    /// Whether it may write.
    pub write: bool,
    pub revoked: bool,
}

/// The entries of the directory for the two keys of a request; `None` where a key is unknown or was not given.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub application: Option<Arc<Application>>,
    pub token: Option<Arc<AccessToken>>,
}

/// The directory did not answer: the credentials may be valid, so the client may retry. Holds the cause for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    #[error("credentials could not be looked up: {0}")]
    Unavailable(String),
    /// What the directory holds cannot be used: our own fault.
    #[error("credentials could not be looked up: {0}")]
    Broken(String),
}

/// Where applications and tokens are looked up.
pub trait CredentialDirectory: Send + Sync {
    /// Looks up an application and, if the request names one, a token.
    fn find<'a>(
        &'a self,
        consumer_key: &'a str,
        token: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Found, DirectoryError>> + Send + 'a>>;
}

impl Secret {
    /// The text itself, to sign or to seal with.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
