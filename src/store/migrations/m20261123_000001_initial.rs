//! The first schema. No sequence, trigger or foreign key, so that it also runs on distributed engines that speak
//! PostgreSQL's protocol; every row is found by its primary key.

use sea_orm_migration::{prelude::*, schema};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [collections(), entries(), tombstones(), applications(), tokens()] {
            manager.create_table(table).await?;
        }
        Ok(())
    }

    /// All or nothing, on SQLite too: half a version could neither be finished nor undone.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

fn collections() -> TableCreateStatement {
    Table::create()
        .table("collections")
        .col(schema::big_integer("id").primary_key())
        .col(schema::big_integer("owner_id"))
        .col(schema::text("name"))
        .col(schema::text_null("description"))
        .col(schema::text_null("url"))
        .col(schema::text("timeline_order"))
        .col(schema::timestamp_with_time_zone("created_at"))
        .to_owned()
}

fn entries() -> TableCreateStatement {
    Table::create()
        .table("collection_entries")
        .col(schema::big_integer("collection_id"))
        .col(schema::big_integer("tweet_id"))
        .col(schema::big_integer("sort_index"))
        .col(schema::timestamp_with_time_zone("added_at"))
        .primary_key(Index::create().col("collection_id").col("tweet_id"))
        .to_owned()
}

fn tombstones() -> TableCreateStatement {
    Table::create()
        .table("destroyed_collections")
        .col(schema::big_integer("id").primary_key())
        .col(schema::big_integer("owner_id"))
        .col(schema::timestamp_with_time_zone("destroyed_at"))
        .col(schema::uuid_null("request_id"))
        .col(schema::text_null("caller"))
        .col(schema::timestamp_with_time_zone_null("purged_at"))
        .col(schema::timestamp_with_time_zone_null("published_at"))
        .to_owned()
}

fn applications() -> TableCreateStatement {
    Table::create()
        .table("oauth_applications")
        .col(schema::text("consumer_key").primary_key())
        .col(schema::text("name"))
        .col(schema::text("key_id"))
        .col(schema::blob("sealed_secret"))
        .col(schema::boolean("suspended"))
        .col(schema::timestamp_with_time_zone("created_at"))
        .to_owned()
}

fn tokens() -> TableCreateStatement {
    Table::create()
        .table("oauth_access_tokens")
        .col(schema::text("token").primary_key())
        .col(schema::text("consumer_key"))
        .col(schema::big_integer("user_id"))
        .col(schema::text("key_id"))
        .col(schema::blob("sealed_secret"))
        .col(schema::boolean("write_access"))
        .col(schema::timestamp_with_time_zone("created_at"))
        .col(schema::timestamp_with_time_zone_null("expires_at"))
        .col(schema::timestamp_with_time_zone_null("revoked_at"))
        .to_owned()
}
