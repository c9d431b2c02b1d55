//! Why no call can be served.

use crate::store::{CredentialError, StateError};

/// Why no call can be served.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error(transparent)]
    Database(#[from] StateError),
    #[error("the stored credentials: {0}")]
    Credentials(CredentialError),
}

impl From<CredentialError> for NotReady {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::Database(error) => Self::Database(error.into()),
            other => Self::Credentials(other),
        }
    }
}

impl NotReady {
    /// Whether waiting may help.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => error.is_transient(),
            Self::Credentials(_) => false,
        }
    }

    /// Whether calls may wait for the database to return.
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_outage())
    }
}
