//! Whether the database can be served: it is there, has the schema that this program knows, takes writes, and says that
//! a commit is done only when it is.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};

use super::{Store, failure::Failure};
use crate::config;

/// Why the database cannot be served, or its schema not be changed. The text may go to an operator, never to a client.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "the database schema is older than this program: run `collections-service migrate up` ({0} is missing)"
    )]
    Older(String),
    #[error("the database schema is newer than this program: deploy the version that made it")]
    Newer,
    #[error(
        "the database says that commits are done before they are durable: set synchronous_commit to on for it"
    )]
    NotDurable,
    #[error("the database takes no writes: is it a replica?")]
    ReadOnly,
    #[error("the database failed: {0}")]
    Database(DbErr),
    #[error(
        "the database gave no connection in time: is it up, has it one left, and is --database-url right?"
    )]
    Timeout,
}

impl StateError {
    /// Whether it may be gone by itself in a moment: the database is away, or being replaced.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => Failure::from(error) == Failure::Unavailable,
            Self::Timeout | Self::ReadOnly => true,
            Self::Older(_) | Self::Newer | Self::NotDurable => false,
        }
    }
}

impl From<DbErr> for StateError {
    fn from(error: DbErr) -> Self {
        match error {
            // The pool's own text would name neither the database nor what to look at.
            DbErr::ConnectionAcquire(_) => Self::Timeout,
            other => Self::Database(other),
        }
    }
}

impl Store {
    /// Whether this program may serve the database.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn check(&self) -> Result<(), StateError> {
        let check = async {
            match self.schema().await?.into_iter().find(|migration| !migration.applied) {
                Some(missing) => Err(StateError::Older(missing.name)),
                None => self.check_writes().await,
            }
        };
        tokio::time::timeout(config::STORE_BOUND, check).await.map_err(|_elapsed| StateError::Timeout)?
    }

    /// The part of [`Self::check`] that can change under a running service.
    ///
    /// # Errors
    /// The database is away, takes no writes, or does not keep what it acknowledged.
    pub async fn check_again(&self) -> Result<(), StateError> {
        let check = tokio::time::timeout(config::STORE_WAIT, self.check_writes());
        check.await.map_err(|_elapsed| StateError::Timeout)?
    }

    /// SQLite is set up by ourselves. PostgreSQL may be a replica, and may be told to lose what it has acknowledged, for
    /// one database or one role alone.
    async fn check_writes(&self) -> Result<(), StateError> {
        if self.backend() != DbBackend::Postgres {
            return Ok(self.db.ping().await?);
        }
        let ask = "SELECT current_setting('synchronous_commit', true) AS commit, \
                   current_setting('transaction_read_only', true) AS read_only";
        let row = self.db.query_one_raw(Statement::from_string(DbBackend::Postgres, ask)).await?;
        let row = row.ok_or_else(|| DbErr::Type("no row".to_owned()))?;
        let (commit, read_only): (Option<String>, Option<String>) =
            (row.try_get("", "commit")?, row.try_get("", "read_only")?);
        match (commit.as_deref(), read_only.as_deref()) {
            (Some("off"), _) => Err(StateError::NotDurable),
            (_, Some("on")) => Err(StateError::ReadOnly),
            _ => Ok(()),
        }
    }
}
