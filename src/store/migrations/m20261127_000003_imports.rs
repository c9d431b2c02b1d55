//! The progress of imports, committed with the rows that it counts. On a distributed engine it stays a table of the
//! coordinator.

use sea_orm_migration::{prelude::*, schema};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(imports()).await
    }

    /// All or nothing, on SQLite too.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

fn imports() -> TableCreateStatement {
    let mut table = Table::create();
    table
        .table("imports")
        .col(schema::text("name").primary_key())
        .col(schema::uuid("run_id"))
        .col(schema::text("head_sha256"))
        .col(schema::timestamp_with_time_zone("started_at"))
        .col(schema::timestamp_with_time_zone("updated_at"));
    for count in ["byte_offset", "line", "imported", "entries", "existing", "rejected", "rejects_bytes"] {
        table.col(schema::big_integer(count));
    }
    table.to_owned()
}
