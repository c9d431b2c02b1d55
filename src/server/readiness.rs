//! Whether calls can be served: the database is there, and has the schema that this program knows.

use crate::{
    config,
    grpc::{Admission, Health},
    store::Store,
};

/// Keeps health true to the database, and admits the first call once the schema was seen to be right.
pub struct Readiness {
    store: Store,
    health: Health,
    admission: Admission,
    /// The calls to admit as soon as the schema is known to be right.
    withheld: Option<usize>,
    ready: Option<bool>,
}

impl Readiness {
    pub const fn new(store: Store, health: Health, admission: Admission, max_in_flight: usize) -> Self {
        Self { store, health, admission, withheld: Some(max_in_flight), ready: None }
    }

    /// One look at the database.
    pub async fn look(&mut self) {
        let seen = match self.withheld {
            Some(calls) => {
                let checked = self.store.check().await.map_err(|error| error.to_string());
                if checked.is_ok() {
                    self.admission.add_permits(calls);
                    self.withheld = None;
                }
                checked
            }
            None if self.store.is_reachable().await => Ok(()),
            None => Err("the database does not answer".to_owned()),
        };
        self.health.set_ready(seen.is_ok()).await;
        if self.ready.replace(seen.is_ok()) != Some(seen.is_ok()) {
            match seen {
                Ok(()) => tracing::info!("ready"),
                Err(error) => tracing::error!(error, "not ready"),
            }
        }
    }

    /// Looks again and again.
    pub async fn keep(mut self) {
        loop {
            tokio::time::sleep(config::READINESS_INTERVAL).await;
            self.look().await;
        }
    }
}
