//! The connection that batches are sent over. Destroys are sent by sqlx itself: sea-orm takes a connection from its pool
//! within the call that sends the statement, and between the two the deadlines have to be checked. The statement and its
//! values are sea-orm's.

use std::fmt;

use chrono::{DateTime, Utc};
use sea_orm::{
    DatabaseTransaction, DbErr, Statement,
    sqlx::{self, AssertSqlSafe, Connection, PgConnection, Postgres, pool::PoolConnection},
};
use sea_query_sqlx::SqlxValues;
use tokio::time::{Instant, timeout};

use super::{Attempt, Destroy, RowOutcome, postgres, sqlite};
use crate::{
    config::store,
    store::{
        connect::{Connector, Database, Engine, answers},
        failure::sqlx_error,
        sqlite_file::SqliteFile,
        transaction::begin_write,
    },
    telemetry::DatabaseMetrics,
};

/// Which connection is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On PostgreSQL one outside the pool, made when it is needed and kept: the pool would ping it after each batch, and
    /// after a fail-over hand out all its dead ones in turn.
    Dedicated,
    /// One of the pool's, for as long as it is held.
    Pooled,
}

/// Runs one statement at a time.
pub struct BatchConnection {
    database: Database,
    kind: Kind,
    held: Option<Held>,
    /// When it last answered.
    answered_at: Instant,
}

enum Held {
    Dedicated(PgConnection),
    Pooled(PoolConnection<Postgres>),
}

/// What can send a statement at once.
pub enum Ready<'a> {
    Postgres(&'a mut PgConnection),
    /// With the write lock.
    Sqlite(DatabaseTransaction, &'a SqliteFile),
}

impl BatchConnection {
    pub fn new(database: &Database, kind: Kind) -> Self {
        Self { database: database.clone(), kind, held: None, answered_at: Instant::now() }
    }

    /// What statements are observed by.
    pub const fn metrics(&self) -> &DatabaseMetrics {
        &self.database.metrics
    }

    /// Waits for a connection, on SQLite for the write lock too.
    pub async fn ready(&mut self) -> Result<Ready<'_>, DbErr> {
        // Apart from `self`, of which `held` is borrowed.
        let Self { database, kind, held, answered_at } = self;
        match &database.engine {
            Engine::Sqlite(file) => {
                file.check_exists()?;
                Ok(Ready::Sqlite(begin_write(&database.pool).await?, file))
            }
            Engine::Postgres(connector) => {
                if let Some(idle) = held
                    && answered_at.elapsed() > store::PING_AFTER_IDLE
                    && !answers(idle.get()).await
                {
                    *held = None;
                }
                let connection = match held.take() {
                    Some(connection) => connection,
                    None => connect(database, connector, *kind).await.map_err(sqlx_error)?,
                };
                *answered_at = Instant::now();
                Ok(Ready::Postgres(held.insert(connection).get()))
            }
        }
    }

    /// Closes the connection, whose state is unknown, without waiting. The next statement gets another.
    pub fn discard(&mut self) {
        if let Engine::Sqlite(file) = &self.database.engine {
            file.discard();
        }
        match self.held.take() {
            Some(Held::Dedicated(connection)) => drop(connection),
            Some(Held::Pooled(connection)) => drop(connection.detach()),
            None => {}
        }
    }

    /// Closes the connection.
    pub async fn close(mut self) {
        if let Some(Held::Dedicated(connection)) = self.held.take() {
            // It is gone in any case.
            let _closed = timeout(store::CLOSE_TIMEOUT, connection.close()).await;
        }
    }
}

async fn connect(database: &Database, connector: &Connector, kind: Kind) -> Result<Held, sqlx::Error> {
    let pool = database.pool.get_postgres_connection_pool();
    match kind {
        Kind::Dedicated => Ok(Held::Dedicated(connector.connect(pool).await?)),
        Kind::Pooled => Ok(Held::Pooled(pool.acquire().await?)),
    }
}

impl Held {
    fn get(&mut self) -> &mut PgConnection {
        match self {
            Self::Dedicated(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

impl Ready<'_> {
    /// `db.system.name`.
    pub const fn system(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgresql",
            Self::Sqlite(..) => "sqlite",
        }
    }

    /// Runs the destroys: the outcome of each, in their order. `Failure` of an error says whether they may have taken effect.
    pub async fn destroy(
        self,
        destroys: &[&Destroy],
        attempt: Attempt,
        now: DateTime<Utc>,
    ) -> Result<Vec<RowOutcome>, DbErr> {
        let letters = match self {
            Self::Postgres(connection) => {
                scalar(connection, postgres::statement(destroys, attempt, now)).await?
            }
            Self::Sqlite(transaction, file) => {
                let letters = sqlite::destroy(transaction, destroys, attempt.publish, now).await?;
                file.check()?;
                letters
            }
        };
        let outcomes: Option<Vec<RowOutcome>> = letters.bytes().map(RowOutcome::of_letter).collect();
        outcomes
            .filter(|outcomes| outcomes.len() == destroys.len())
            .ok_or_else(|| DbErr::Type(format!("{} destroys were answered {letters:?}", destroys.len())))
    }

    /// Checks that a destroy could be run, without one. `id` chooses the node of a distributed engine.
    pub async fn probe(self, id: i64, now: DateTime<Utc>) -> Result<(), DbErr> {
        match self {
            Self::Postgres(connection) => {
                scalar(connection, postgres::probe(id, now)).await.map(|_letter| ())
            }
            Self::Sqlite(transaction, file) => {
                file.check()?;
                sqlite::destroy(transaction, &[], false, now).await.map(|_empty| ())
            }
        }
    }

    /// Commits a destroy that leaves no trace. `id` is negative.
    pub async fn rehearse(self, id: i64, now: DateTime<Utc>) -> Result<(), DbErr> {
        match self {
            Self::Postgres(connection) => {
                // Every branch of the function.
                for replays_first in [false, true] {
                    let outcomes = scalar(connection, postgres::rehearsal(id, replays_first, now)).await?;
                    if !matches!(outcomes.as_str(), "dr" | "rd") {
                        return Err(DbErr::Type(format!("the rehearsal returned {outcomes:?}")));
                    }
                }
                Ok(())
            }
            Self::Sqlite(transaction, file) => {
                file.check()?;
                sqlite::rehearse(transaction).await
            }
        }
    }
}

/// Runs a statement that returns one text.
async fn scalar(connection: &mut PgConnection, statement: Statement) -> Result<String, DbErr> {
    let values = statement.values.unwrap_or_else(|| sea_orm::Values(Vec::new()));
    let query = sqlx::query_scalar_with(AssertSqlSafe(statement.sql), SqlxValues(values));
    query.fetch_one(connection).await.map_err(sqlx_error)
}

impl fmt::Debug for BatchConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchConnection").field("kind", &self.kind).finish_non_exhaustive()
    }
}
