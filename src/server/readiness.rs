//! Whether calls can be served: the database can, and the gateway's keys open what is stored in it.

use super::{checks::Checks, not_ready::NotReady};
use crate::{
    collections::Admission,
    config,
    grpc::Health,
    store::{Credentials, StateError, StoreCheck},
};

/// Sets health and admission by what the checks find.
pub struct Readiness {
    pub database: StoreCheck,
    /// The gateway's, where there is one; checked until they were right once.
    pub credentials: Option<Credentials>,
    pub health: Health,
    pub admission: Admission,
    pub checks: Checks,
    /// What was logged last.
    pub logged: Option<Result<(), String>>,
}

impl Readiness {
    /// Checks once, and sets health and admission.
    ///
    /// # Errors
    /// The reason for which no call can be served.
    pub async fn check(&mut self) -> Result<(), NotReady> {
        let checked = self.check_all().await;
        match &checked {
            Ok(()) => self.admission.open(),
            // Admission stays as it is: closed until the first success, then open, because calls may wait.
            Err(error) if error.is_outage() => {}
            Err(_) => self.admission.refuse(),
        }
        self.checks.record(&checked);
        self.health.set_ready(checked.is_ok()).await;
        checked
    }

    async fn check_all(&mut self) -> Result<(), NotReady> {
        self.database.run().await?;
        if let Some(credentials) = &self.credentials {
            let check = tokio::time::timeout(config::store::STATEMENT_BOUND, credentials.check());
            check.await.map_err(|_elapsed| StateError::Timeout)??;
            self.credentials = None;
        }
        Ok(())
    }

    /// Logs the result of a check, where it differs from the one before.
    pub fn log_change(&mut self, checked: Result<(), NotReady>) {
        let checked = checked.map_err(|error| error.to_string());
        if self.logged.as_ref() != Some(&checked) {
            match &checked {
                Ok(()) => tracing::info!("ready"),
                Err(error) => tracing::error!(error, "not ready"),
            }
            self.logged = Some(checked);
        }
    }

    /// Checks at intervals, at once when a destroy fails, and more often while the service is not ready.
    pub async fn run(mut self) {
        loop {
            let is_ready = matches!(self.logged, Some(Ok(())));
            let interval =
                if is_ready { config::calls::READINESS_INTERVAL } else { config::calls::READINESS_RETRY };
            self.database.wait(interval).await;
            let checked = self.check().await;
            self.log_change(checked);
        }
    }
}
