//! The only room that names sea-orm and holds SQL.

mod check;
mod columns;
mod connect;
mod credentials;
mod deletion;
mod destroy;
mod entities;
mod failure;
mod import;
mod inspect;
mod migrations;
mod pooler;
mod purge;
mod rotation;
mod sealing;
mod seed;
mod sqlite_file;
mod state_error;
mod status;
mod tombstones;
mod transaction;
mod verify;

use std::{fmt, sync::Arc};

use sea_orm::{DatabaseConnection, DbBackend};

use crate::{
    config::{self, DatabaseUrl},
    domain::{Clock, Entropy},
    telemetry::Metrics,
};
use connect::{Database, Engine};
use destroy::{Batcher, Shared};
use status::StoreStatus;

pub use check::StoreCheck;
pub use connect::ConnectError;
pub use credentials::{
    AppView, CredentialCache, CredentialError, Credentials, IssuedToken, NewApplication, TokenView,
};
pub use deletion::{DELETION_RULES, DeletionRule, TableRule};
pub use destroy::{
    BatchDriver, Destroy, SQLITE_CLASSIFY, SQLITE_DELETE, SQLITE_OUTBOX, SQLITE_PURGE, SQLITE_TOMBSTONES,
    hashint8,
};
pub use import::{
    CollectionToImport, EntryToImport, Import, ImportError, ImportOutcome, ImportProgress, Refusal,
};
pub use inspect::{InspectError, Inspected, LiveView, TombstoneView};
pub use migrations::MigrationState;
pub use purge::{PurgeBacklog, PurgeError, PurgeLimits, PurgeQueue, PurgeWait, Purged, Purger};
pub use rotation::{Place, Rotated, RotationError, UnopenedSecret};
pub use sealing::{KeyRing, KeyRingError, Unopened};
pub use seed::{NewCollection, SeedError};
pub use state_error::StateError;
pub use tombstones::{Applied, OwnerMismatch, Tombstone, TombstoneError};
pub use verify::{Inconsistency, VerifyChunk, VerifyError, VerifyPhase, VerifyPosition};

/// The database behind the service. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    database: Database,
    /// The database's pool.
    db: DatabaseConnection,
    clock: Clock,
    entropy: Entropy,
    batcher: Arc<Batcher>,
    status: StoreStatus,
    /// Whether this process destroys at all.
    destroys: bool,
    connections: u32,
}

/// How much may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// To PostgreSQL, with one group of nodes. SQLite has one, because it has one writer: a second would wait in SQLite's
    /// busy loop instead of a fair queue.
    pub connections: u32,
    /// Destroys in one statement.
    pub batch_max: u32,
    /// Statements at one time, each over a connection of its own; so many for each group of a distributed engine.
    pub batches_in_flight: u32,
    /// Whether a purge is run, which has a connection of its own.
    pub purge: bool,
    /// Whether each destroy also goes to the outbox.
    pub publish: bool,
}

impl Capacity {
    /// So many connections and no destroys: for looking up credentials, say.
    #[must_use]
    pub const fn without_destroys(connections: u32) -> Self {
        Self { batches_in_flight: 0, ..Self::of(connections) }
    }

    /// The usual batches over so many connections.
    #[must_use]
    pub const fn of(connections: u32) -> Self {
        Self {
            connections,
            batch_max: config::store::BATCH_MAX,
            batches_in_flight: 1,
            purge: false,
            publish: false,
        }
    }

    const fn on_sqlite(self) -> Self {
        let batches_in_flight = if self.batches_in_flight == 0 { 0 } else { 1 };
        Self { connections: 1, batches_in_flight, ..self }
    }

    /// Connections besides those of the batches, of the check and of the purge.
    fn pooled(self) -> u32 {
        self.connections.saturating_sub(self.batches_in_flight + 1 + u32::from(self.purge)).max(1)
    }

    /// Destroys that wait for locked rows: however many do, a connection is left for credentials.
    fn locked_rows(self) -> usize {
        self.pooled().saturating_sub(1).max(1) as usize
    }
}

impl Store {
    /// Opens the database. PostgreSQL need not be up yet: connections are made when they are first used, so that a service
    /// which starts before its database becomes ready without a restart. The driver has to be run for destroys to be sent.
    ///
    /// # Errors
    /// The URL is not understood, or an SQLite file cannot be opened.
    pub async fn connect(
        url: &DatabaseUrl,
        capacity: Capacity,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<(Self, BatchDriver), ConnectError> {
        Self::connect_observed(url, capacity, clock, entropy, Metrics::new()).await
    }

    /// The same, observed by the metrics of a process.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_observed(
        url: &DatabaseUrl,
        capacity: Capacity,
        clock: Clock,
        entropy: Entropy,
        metrics: Metrics,
    ) -> Result<(Self, BatchDriver), ConnectError> {
        Self::with(url, capacity, capacity.batches_in_flight > 0, clock, entropy, metrics).await
    }

    async fn with(
        url: &DatabaseUrl,
        capacity: Capacity,
        must_write: bool,
        clock: Clock,
        entropy: Entropy,
        metrics: Metrics,
    ) -> Result<(Self, BatchDriver), ConnectError> {
        let capacity = if url.is_sqlite() { capacity.on_sqlite() } else { capacity };
        let database = connect::open(url, capacity.pooled(), must_write, metrics).await?;
        let status = StoreStatus::default();
        let shared = Shared {
            clock: clock.clone(),
            entropy: entropy.clone(),
            status: status.clone(),
            metrics: database.metrics.clone(),
            publish: capacity.publish,
        };
        let (batcher, driver) = Batcher::new(&database, capacity, &Arc::new(shared));
        let db = database.pool.clone();
        let destroys = capacity.batches_in_flight > 0;
        Ok((
            Self {
                connections: capacity.connections,
                database,
                db,
                clock,
                entropy,
                batcher,
                status,
                destroys,
            },
            driver,
        ))
    }

    /// The most connections to the database, with one group of nodes.
    #[must_use]
    pub const fn connections(&self) -> u32 {
        self.connections
    }

    /// The metrics that statements are observed by.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        self.database.metrics.metrics()
    }

    /// How many destroys wait for a batch.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.batcher.queue_depth()
    }

    /// Opens the database for commands that destroy nothing, over one connection.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn open(url: &DatabaseUrl, clock: Clock, entropy: Entropy) -> Result<Self, ConnectError> {
        let capacity = Capacity::without_destroys(1);
        let (store, _idle) = Self::with(url, capacity, true, clock, entropy, Metrics::new()).await?;
        if let Engine::Postgres(connector) = &store.database.engine {
            // The pool then uses the address that answers. Where none does, the first statement reports it.
            let _unavailable = connector.connect(store.db.get_postgres_connection_pool()).await;
        }
        Ok(store)
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
