//! The schema's versions. Changing it is a job of its own (`migrate up`); the service only checks.

mod m20261123_000001_initial;
mod m20261127_000002_destroy_function;
mod m20261127_000003_imports;
mod m20261127_000004_purge_function;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr};
use sea_orm_migration::{MigrationStatus, MigrationTrait, MigratorTrait};

use super::{StateError, Store, failure::Failure, transaction::begin_write};
use crate::config::store;

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_initial::Migration),
            Box::new(m20261127_000002_destroy_function::Migration),
            Box::new(m20261127_000003_imports::Migration),
            Box::new(m20261127_000004_purge_function::Migration),
        ]
    }
}

/// Held until the end of the transaction, so that it works behind a pooler too. The key is `collecti` in ASCII.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7165064744983032937)";

/// Makes a function with the rights of its owner (`SECURITY DEFINER`) safe to grant. The schema is known when it is created,
/// and not by whom it will be called: a `search_path` of the caller's could put other tables in place of ours. `pg_temp` is
/// searched first unless it is named. Without the REVOKE everyone who can connect could call it.
fn secure_function(name: &str) -> String {
    format!(
        "DO $$ BEGIN
           EXECUTE format('ALTER FUNCTION {name} SET search_path = %I, pg_temp', current_schema());
           REVOKE ALL ON FUNCTION {name} FROM PUBLIC;
         END $$"
    )
}

/// One version of the schema and whether the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationState {
    pub name: String,
    pub applied: bool,
}

impl Store {
    /// Every version this program contains, in order.
    ///
    /// # Errors
    /// [`StateError::Newer`] when the database has versions that this program does not contain.
    pub async fn schema(&self) -> Result<Vec<MigrationState>, StateError> {
        states(&self.db).await
    }

    /// Applies every missing version, all or none, and returns their names. One process at a time does so, the others wait.
    ///
    /// # Errors
    /// The statements of a version failed (they are rolled back), or the schema is newer than this program.
    pub async fn migrate(&self) -> Result<Vec<String>, StateError> {
        let transaction = self.begin_migration().await?;
        let missing = states(&transaction).await?.into_iter().filter(|version| !version.applied);
        let missing: Vec<_> = missing.map(|version| version.name).collect();
        if !missing.is_empty() {
            Migrator::up(&transaction, None).await.map_err(state_error)?;
        }
        transaction.commit().await?;
        Ok(missing)
    }

    async fn begin_migration(&self) -> Result<DatabaseTransaction, StateError> {
        if self.backend() == DbBackend::Sqlite {
            // Another process may be migrating.
            let mut attempts = 0;
            loop {
                match begin_write(&self.db).await {
                    Err(error)
                        if Failure::from(&error) == Failure::Unavailable
                            && attempts < store::MIGRATION_ATTEMPTS =>
                    {
                        attempts += 1;
                    }
                    begun => return Ok(begun?),
                }
            }
        }
        let transaction = begin_write(&self.db).await?;
        // A role's defaults may bound statements; a migration waits for its turn, and may have to rewrite a table.
        transaction.execute_unprepared("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
        transaction.execute_unprepared(LOCK).await?;
        Ok(transaction)
    }
}

async fn states(connection: &impl ConnectionTrait) -> Result<Vec<MigrationState>, StateError> {
    let migrations = Migrator::get_migration_with_status_read_only(connection).await.map_err(state_error)?;
    Ok(migrations
        .into_iter()
        .map(|migration| MigrationState {
            name: migration.name().to_owned(),
            applied: migration.status() == MigrationStatus::Applied,
        })
        .collect())
}

/// sea-orm-migration reports an unknown applied version as a custom error alone.
fn state_error(error: DbErr) -> StateError {
    match error {
        DbErr::Custom(_) => StateError::Newer,
        other => other.into(),
    }
}
