//! The schema's versions. Changing it is a job of its own (`migrate up`); the service only checks.

mod m20261123_000001_initial;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use sea_orm_migration::{MigrationStatus, MigrationTrait, MigratorTrait};

use super::{Store, failure::Failure};
use crate::config;

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20261123_000001_initial::Migration)]
    }
}

/// One version of the schema and whether the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationState {
    pub name: String,
    pub applied: bool,
}

/// Why the database's schema could not be read or changed, or why the database cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error(
        "the database schema is older than this program: run `collections-service migrate up` ({0} is missing)"
    )]
    Older(String),
    #[error("the database schema is newer than this program: deploy the version that made it")]
    Newer,
    #[error("the database cannot be asked for its schema: {0}")]
    Database(#[from] DbErr),
    #[error("the database did not answer in time: is it up, and is --database-url right?")]
    Timeout,
    #[error(
        "the database says that a commit is done before it is durable: set synchronous_commit to on for this database or role"
    )]
    NotDurable,
}

impl SchemaError {
    /// Whether the database is only away, so that asking again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => Failure::from(error) == Failure::Unavailable,
            Self::Timeout => true,
            Self::Older(_) | Self::Newer | Self::NotDurable => false,
        }
    }
}

impl Store {
    /// Every version this program knows, in order.
    ///
    /// # Errors
    /// [`SchemaError::Newer`] when the database has versions that this program does not know.
    pub async fn schema(&self) -> Result<Vec<MigrationState>, SchemaError> {
        let migrations =
            Migrator::get_migration_with_status_read_only(&self.db).await.map_err(schema_error)?;
        Ok(migrations
            .into_iter()
            .map(|migration| MigrationState {
                name: migration.name().to_owned(),
                applied: migration.status() == MigrationStatus::Applied,
            })
            .collect())
    }

    /// Whether this program may serve the database.
    ///
    /// # Errors
    /// The schema is older or newer than this program, or cannot be read; or commits would not be durable.
    pub async fn check(&self) -> Result<(), SchemaError> {
        let check = async {
            match self.schema().await?.into_iter().find(|migration| !migration.applied) {
                Some(missing) => Err(SchemaError::Older(missing.name)),
                None => self.check_durability().await,
            }
        };
        tokio::time::timeout(config::STORE_BOUND, check).await.map_err(|_elapsed| SchemaError::Timeout)?
    }

    /// On SQLite we choose ourselves. PostgreSQL can be told to lose what it has acknowledged, and that for a database or
    /// a role alone; its other choices ask more than our own disk or the same, and are the operator's.
    async fn check_durability(&self) -> Result<(), SchemaError> {
        if self.backend() != DbBackend::Postgres {
            return Ok(());
        }
        let ask = "SELECT current_setting('synchronous_commit', true) AS setting";
        let row = self.db.query_one_raw(Statement::from_string(DbBackend::Postgres, ask)).await?;
        let setting: Option<String> = row.map(|row| row.try_get("", "setting")).transpose()?.flatten();
        if setting.as_deref() == Some("off") { Err(SchemaError::NotDurable) } else { Ok(()) }
    }

    /// Applies the oldest version that is missing, and names it; `None` when the schema is complete.
    ///
    /// # Errors
    /// The statements of the version failed (they are undone), or the schema is newer than this program.
    pub async fn migrate_one(&self) -> Result<Option<String>, SchemaError> {
        let next = self.schema().await?.into_iter().find(|migration| !migration.applied);
        if next.is_some() {
            // The service bounds its statements; a migration may have to rewrite a table.
            if self.backend() == DbBackend::Postgres {
                self.db.execute_unprepared("SET statement_timeout = 0").await?;
            }
            Migrator::up(&self.db, Some(1)).await.map_err(schema_error)?;
        }
        Ok(next.map(|migration| migration.name))
    }
}

/// sea-orm-migration reports an unknown applied version as a custom error alone.
fn schema_error(error: DbErr) -> SchemaError {
    match error {
        DbErr::Custom(_) => SchemaError::Newer,
        // The pool's own text would name neither the database nor what to look at.
        DbErr::ConnectionAcquire(_) => SchemaError::Timeout,
        other => SchemaError::Database(other),
    }
}
