//! The destroying function of PostgreSQL, and the queues of what follows a destroy. Tombstones become immutable: what was
//! noted on them is a row in a queue now.

use sea_orm::DbBackend;
use sea_orm_migration::{prelude::*, schema};

use super::secure_function;

#[derive(DeriveMigrationName)]
pub struct Migration;

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
            connection.execute_unprepared(&secure_function("destroy_collections_v1")).await?;
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
