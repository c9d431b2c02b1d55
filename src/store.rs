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

use crate::{
    config::{self, DatabaseUrl},
    domain::Clock,
};
use destroy::Batcher;

pub use connect::ConnectError;
pub use credentials::{
    AppView, CredentialCache, CredentialError, Credentials, IssuedToken, NewApplication, TokenView,
};
pub use destroy::{
    DESTROY, DESTROY_BATCH, Destroy, Destroyed, SETTINGS, SQLITE_DELETE, SQLITE_LOOK, SQLITE_TOMBSTONES,
};
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
    batcher: Arc<Batcher>,
}

/// How much may go on at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// To PostgreSQL. SQLite has one, because it has one writer: a second would wait in SQLite's busy loop instead of a
    /// fair queue.
    pub connections: u32,
    /// Destroys in one statement.
    pub batch_max: u32,
    /// Statements at one time, each over a connection of its own.
    pub batches_in_flight: u32,
}

impl Capacity {
    /// So many connections and no destroys, for those who only look credentials up, say.
    #[must_use]
    pub const fn without_destroys(connections: u32) -> Self {
        Self { connections, batch_max: config::BATCH_MAX, batches_in_flight: 0 }
    }

    /// The usual batches over so many connections.
    #[must_use]
    pub const fn of(connections: u32) -> Self {
        Self { connections, batch_max: config::BATCH_MAX, batches_in_flight: 1 }
    }

    const fn on_sqlite(self) -> Self {
        let batches_in_flight = if self.batches_in_flight == 0 { 0 } else { 1 };
        Self { connections: 1, batches_in_flight, ..self }
    }

    /// Connections beside those of the batches.
    fn pooled(self) -> u32 {
        self.connections.saturating_sub(self.batches_in_flight).max(1)
    }

    /// Destroys beside the batches: however many are stuck, a connection is left for health and credentials.
    fn alone(self) -> usize {
        self.pooled().saturating_sub(1).max(1) as usize
    }
}

impl Store {
    /// Opens the database. PostgreSQL need not be up yet: the pool connects when it is first used, so that a service
    /// which starts before its database becomes ready by itself.
    ///
    /// # Errors
    /// The URL is not understood, or an SQLite file cannot be opened.
    pub async fn connect(url: &DatabaseUrl, capacity: Capacity, clock: Clock) -> Result<Self, ConnectError> {
        let capacity = if url.is_sqlite() { capacity.on_sqlite() } else { capacity };
        let db = connect::open(url, capacity.pooled()).await?;
        let batcher = Arc::new(Batcher::new(&db, capacity, &clock));
        Ok(Self { db, clock, batcher })
    }

    /// Runs `main` and beside it, ahead of all other tasks, what destroys; without it, that runs among them. To be called in
    /// the task that the runtime blocks on. Nothing can be destroyed afterwards.
    pub async fn beside<T>(&self, main: impl Future<Output = T>) -> T {
        self.batcher.beside(main).await
    }

    /// Closes the pool once its connections are back.
    pub async fn close(&self) {
        self.batcher.close();
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
