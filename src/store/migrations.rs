//! The schema's versions. Changing it is a job of its own (`migrate up`); the service only checks.

mod m20261123_000001_initial;

use sea_orm::{ConnectionTrait, DbBackend, DbErr};
use sea_orm_migration::{MigrationStatus, MigrationTrait, MigratorTrait};

use super::{StateError, Store};

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

impl Store {
    /// Every version this program knows, in order.
    ///
    /// # Errors
    /// [`StateError::Newer`] when the database has versions that this program does not know.
    pub async fn schema(&self) -> Result<Vec<MigrationState>, StateError> {
        let migrations =
            Migrator::get_migration_with_status_read_only(&self.db).await.map_err(state_error)?;
        Ok(migrations
            .into_iter()
            .map(|migration| MigrationState {
                name: migration.name().to_owned(),
                applied: migration.status() == MigrationStatus::Applied,
            })
            .collect())
    }

    /// Applies the oldest version that is missing, and names it; `None` when the schema is complete.
    ///
    /// # Errors
    /// The statements of the version failed (they are undone), or the schema is newer than this program.
    pub async fn migrate_one(&self) -> Result<Option<String>, StateError> {
        let next = self.schema().await?.into_iter().find(|migration| !migration.applied);
        if next.is_some() {
            // The service bounds its statements; a migration may have to rewrite a table.
            if self.backend() == DbBackend::Postgres {
                self.db.execute_unprepared("SET statement_timeout = 0").await?;
            }
            Migrator::up(&self.db, Some(1)).await.map_err(state_error)?;
        }
        Ok(next.map(|migration| migration.name))
    }
}

/// sea-orm-migration reports an unknown applied version as a custom error alone.
fn state_error(error: DbErr) -> StateError {
    match error {
        DbErr::Custom(_) => StateError::Newer,
        other => other.into(),
    }
}
