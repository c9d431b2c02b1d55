//! Whether calls can be served: the database can, and the gateway's keys open what is stored in it.

use crate::{
    config,
    grpc::{Admission, Health},
    store::{CredentialError, Credentials, StateError, Store},
};

/// Keeps health true to the database, and admits the first call once everything was seen to be right.
pub struct Readiness {
    pub store: Store,
    /// The gateway's, where there is one.
    pub credentials: Option<Credentials>,
    pub health: Health,
    pub admission: Admission,
    /// The calls to admit as soon as everything is known to be right.
    pub withheld: Option<usize>,
    /// What the log was told last.
    pub said: Option<Result<(), String>>,
}

/// Why no call can be served.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error(transparent)]
    Database(#[from] StateError),
    #[error("--credentials-key-file: {0}")]
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
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => error.is_transient(),
            Self::Credentials(_) => false,
        }
    }
}

impl Readiness {
    /// One look, of which health is told.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn look(&mut self) -> Result<(), NotReady> {
        let seen = match self.withheld {
            Some(calls) => {
                let seen = self.look_at_everything().await;
                if seen.is_ok() {
                    self.admission.grow(calls);
                    self.withheld = None;
                }
                seen
            }
            None => self.store.check_again().await.map_err(NotReady::from),
        };
        self.health.set_ready(seen.is_ok()).await;
        seen
    }

    async fn look_at_everything(&self) -> Result<(), NotReady> {
        self.store.check().await?;
        let Some(credentials) = &self.credentials else { return Ok(()) };
        let check = tokio::time::timeout(config::STORE_BOUND, credentials.check());
        Ok(check.await.map_err(|_elapsed| StateError::Timeout)??)
    }

    /// Logs what was seen, where it differs from before.
    pub fn say(&mut self, seen: Result<(), NotReady>) {
        let seen = seen.map_err(|error| error.to_string());
        if self.said.as_ref() != Some(&seen) {
            match &seen {
                Ok(()) => tracing::info!("ready"),
                Err(error) => tracing::error!(error, "not ready"),
            }
            self.said = Some(seen);
        }
    }

    /// Looks again and again.
    pub async fn keep(mut self) {
        loop {
            tokio::time::sleep(config::READINESS_INTERVAL).await;
            let seen = self.look().await;
            self.say(seen);
        }
    }
}
