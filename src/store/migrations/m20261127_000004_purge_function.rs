//! The function of PostgreSQL that erases the entries of destroyed collections.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

use super::secure_function;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Postgres {
            let connection = manager.get_connection();
            connection.execute_unprepared(include_str!("purge_collections_v1.sql")).await?;
            connection.execute_unprepared(&secure_function("purge_collections_v1")).await?;
        }
        Ok(())
    }

    /// All or nothing.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
