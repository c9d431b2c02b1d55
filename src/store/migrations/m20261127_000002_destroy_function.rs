//! The destroying function of PostgreSQL, and the queues of what follows a destroy. Tombstones become immutable: what was
//! noted on them is a row in a queue now.

use sea_orm::DbBackend;
use sea_orm_migration::{prelude::*, schema};

#[derive(DeriveMigrationName)]
pub struct Migration;

/// The schema is known when the function is created, and not by whom it will be called: a `search_path` of the caller's
/// could put other tables in place of ours. `pg_temp` is searched first unless it is named. Without the REVOKE everyone
/// who can connect could destroy everything.
const SECURE: &str = "\
DO $$ BEGIN
  EXECUTE format('ALTER FUNCTION destroy_collections_v1 SET search_path = %I, pg_temp', current_schema());
  REVOKE ALL ON FUNCTION destroy_collections_v1 FROM PUBLIC;
END $$";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(queue("purge_queue")).await?;
        manager.create_table(queue("event_outbox")).await?;
        let connection = manager.get_connection();
        let fill = "INSERT INTO purge_queue (id, since) SELECT id, destroyed_at FROM destroyed_collections \
                    WHERE purged_at IS NULL";
        connection.execute_unprepared(fill).await?;
        for column in ["purged_at", "published_at"] {
            let drop = Table::alter().table("destroyed_collections").drop_column(column).to_owned();
            manager.alter_table(drop).await?;
        }
        if manager.get_database_backend() == DbBackend::Postgres {
            connection.execute_unprepared(include_str!("destroy_collections_v1.sql")).await?;
            connection.execute_unprepared(SECURE).await?;
        }
        Ok(())
    }

    /// All or nothing, on SQLite too.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

fn queue(name: &'static str) -> TableCreateStatement {
    Table::create()
        .table(name)
        .col(schema::big_integer("id").primary_key())
        .col(schema::timestamp_with_time_zone("since"))
        .to_owned()
}
