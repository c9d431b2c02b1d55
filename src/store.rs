//! The only room that knows sea-orm and SQL.

mod columns;
mod credentials;
mod destroy;
mod entities;
mod failure;
mod migrations;
mod sealing;
mod seed;

use std::{fmt, sync::Arc, time::Duration};

use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DbBackend, DbErr, RuntimeErr,
    sqlx::postgres::PgConnectOptions,
};
use tokio::sync::Semaphore;

use crate::{
    config::{self, DatabaseUrl},
    domain::Clock,
};

pub use credentials::{
    AppView, CredentialCache, CredentialError, Credentials, IssuedToken, NewApplication, TokenView,
};
pub use destroy::{Destroy, Destroyed};
pub use migrations::{MigrationState, SchemaError};
pub use sealing::{KeyRing, KeyRingError};
pub use seed::{NewCollection, SeedError};

/// The database behind the service. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: DatabaseConnection,
    clock: Clock,
    /// As many permits as the pool has connections: a destroy waits here, where its deadline can end the wait.
    gate: Arc<Semaphore>,
}

/// Why the database could not be opened. The text may go to an operator, never to a client, and does not show the URL.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("--database-url: expected sqlite:<path> or postgres://<user>@<host>/<database>")]
    Unknown,
    #[error(
        "--database-url: {0}; `#`, `/`, `?`, `@` and `%` in a password are written %23, %2F, %3F, %40 and %25"
    )]
    Postgres(DbErr),
    #[error("--database-url: {0}; a file that is not there yet is made by sqlite:<path>?mode=rwc")]
    Sqlite(DbErr),
}

impl Store {
    /// Opens the database. PostgreSQL need not be up yet: the pool connects when it is first used, so that a service
    /// which starts before its database becomes ready by itself.
    ///
    /// # Errors
    /// The URL is not understood, or an SQLite file cannot be opened.
    pub async fn connect(url: &DatabaseUrl, connections: u32, clock: Clock) -> Result<Self, ConnectError> {
        let (connections, failed): (_, fn(_) -> _) = if url.is_sqlite() {
            (1, ConnectError::Sqlite)
        } else if url.is_postgres() {
            // sea-orm would show a URL that does not parse, with the password in it.
            let parsed = url.expose().parse::<PgConnectOptions>();
            parsed
                .map_err(|error| ConnectError::Postgres(DbErr::Conn(RuntimeErr::SqlxError(error.into()))))?;
            (connections, ConnectError::Postgres)
        } else {
            return Err(ConnectError::Unknown);
        };
        let db = Database::connect(options(url, connections)).await.map_err(failed)?;
        Ok(Self { db, clock, gate: Arc::new(Semaphore::new(connections as usize)) })
    }

    /// Whether the database answers within [`config::STORE_WAIT`].
    pub async fn is_reachable(&self) -> bool {
        matches!(tokio::time::timeout(config::STORE_WAIT, self.db.ping()).await, Ok(Ok(())))
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

/// One SQLite connection, because SQLite has one writer: a second would wait in SQLite's busy loop instead of a fair
/// queue. Full durability on both: an acknowledged destroy survives a power cut.
fn options(url: &DatabaseUrl, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url.expose());
    options
        .max_connections(connections)
        .acquire_timeout(config::STORE_WAIT)
        .connect_timeout(config::STORE_WAIT)
        .idle_timeout(Duration::from_secs(300))
        .test_before_acquire_if_idle_for(Duration::from_secs(1))
        .connect_lazy(!url.is_sqlite())
        .sqlx_logging(false)
        .record_stmt_in_spans(false)
        .map_sqlx_postgres_opts(|postgres| {
            let statement_timeout = config::STATEMENT_TIMEOUT.as_millis().to_string();
            postgres.application_name("collections-service").options([
                ("statement_timeout", statement_timeout.as_str()),
                ("idle_in_transaction_session_timeout", statement_timeout.as_str()),
            ])
        })
        .map_sqlx_sqlite_opts(|sqlite| {
            use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
            sqlite
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(config::STORE_WAIT)
                .pragma("secure_delete", "ON")
        });
    options
}
