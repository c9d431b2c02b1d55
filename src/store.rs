//! The only room that knows sea-orm and SQL.

mod columns;
mod connect;
mod credentials;
mod destroy;
mod entities;
mod failure;
mod migrations;
mod rotation;
mod sealing;
mod seed;
mod state;

use std::{fmt, sync::Arc};

use sea_orm::{DatabaseConnection, DbBackend};
use tokio::sync::Semaphore;

use crate::{config::DatabaseUrl, domain::Clock};

pub use connect::ConnectError;
pub use credentials::{
    AppView, CredentialCache, CredentialError, Credentials, IssuedToken, NewApplication, TokenView,
};
pub use destroy::{Destroy, Destroyed};
pub use migrations::MigrationState;
pub use rotation::{Place, Rotated, RotationError, UnopenedSecret};
pub use sealing::{KeyRing, KeyRingError, Unopened};
pub use seed::{NewCollection, SeedError};
pub use state::StateError;

/// The database behind the service. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: DatabaseConnection,
    clock: Clock,
    /// Destroys wait here, where their deadlines can end the wait. There is a permit fewer than connections, except on
    /// SQLite: however many destroys are stuck, health and the look-up of credentials get theirs.
    gate: Arc<Semaphore>,
}

impl Store {
    /// Opens the database. PostgreSQL need not be up yet: the pool connects when it is first used, so that a service
    /// which starts before its database becomes ready by itself.
    ///
    /// # Errors
    /// The URL is not understood, or an SQLite file cannot be opened.
    pub async fn connect(url: &DatabaseUrl, connections: u32, clock: Clock) -> Result<Self, ConnectError> {
        let connections = if url.is_sqlite() { 1 } else { connections };
        let db = connect::open(url, connections).await?;
        let permits = connections.saturating_sub(1).max(1);
        Ok(Self { db, clock, gate: Arc::new(Semaphore::new(permits as usize)) })
    }

    /// Closes the pool once its connections are back.
    pub async fn close(&self) {
        if let Err(error) = self.db.close_by_ref().await {
            tracing::warn!(error = %error, "the database pool did not close cleanly");
        }
    }

    fn backend(&self) -> DbBackend {
        self.db.get_database_backend()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("backend", &self.backend()).finish_non_exhaustive()
    }
}
