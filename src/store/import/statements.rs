//! The statements of a batch, on both databases.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, SecondsFormat, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, Value, sea_query::ArrayType};
use serde_json::json;

use super::{CollectionToImport, EntryToImport};
use crate::domain::CollectionId;

/// Settings of an import's transactions on PostgreSQL.
pub const PLANS: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL jit = off";

/// Collections as a table, of one JSON text.
fn new_collections(backend: DbBackend) -> &'static str {
    if backend == DbBackend::Postgres {
        return "json_to_recordset($1::json) AS new (id bigint, owner_id bigint, name text, description text, \
                url text, timeline_order text, created_at timestamptz)";
    }
    "(SELECT value ->> 'id' AS id, value ->> 'owner_id' AS owner_id, value ->> 'name' AS name, \
     value ->> 'description' AS description, value ->> 'url' AS url, \
     value ->> 'timeline_order' AS timeline_order, value ->> 'created_at' AS created_at FROM json_each($1)) AS new"
}

/// Entries as a table, of one JSON text.
fn new_entries(backend: DbBackend) -> &'static str {
    if backend == DbBackend::Postgres {
        return "json_to_recordset($1::json) AS new (collection_id bigint, tweet_id bigint, sort_index bigint, \
                added_at timestamptz)";
    }
    "(SELECT value ->> 'collection_id' AS collection_id, value ->> 'tweet_id' AS tweet_id, \
     value ->> 'sort_index' AS sort_index, value ->> 'added_at' AS added_at FROM json_each($1)) AS new"
}

/// Those of the ids that have a row in `collections`.
pub async fn live(connection: &impl ConnectionTrait, ids: &[i64]) -> Result<HashSet<CollectionId>, DbErr> {
    select_ids(connection, "SELECT id FROM collections WHERE id", ids).await
}

/// Those of the ids that have a tombstone.
pub async fn destroyed(
    connection: &impl ConnectionTrait,
    ids: &[i64],
) -> Result<HashSet<CollectionId>, DbErr> {
    select_ids(connection, "SELECT id FROM destroyed_collections WHERE id", ids).await
}

/// Those of the ids under which entries are stored.
pub async fn with_entries(
    connection: &impl ConnectionTrait,
    ids: &[i64],
) -> Result<HashSet<CollectionId>, DbErr> {
    let select = "SELECT DISTINCT collection_id AS id FROM collection_entries WHERE collection_id";
    select_ids(connection, select, ids).await
}

/// Inserts the collections whose id has no row, and returns their ids. Waits for a destroy of the same id in flight.
/// In the order of the ids, so that two imports cannot wait for each other.
pub async fn insert_collections(
    connection: &impl ConnectionTrait,
    new: &[&CollectionToImport],
    now: DateTime<Utc>,
) -> Result<HashSet<CollectionId>, DbErr> {
    if new.is_empty() {
        return Ok(HashSet::new());
    }
    let columns = "id, owner_id, name, description, url, timeline_order, created_at";
    let sql = format!(
        "INSERT INTO collections ({columns}) SELECT {columns} FROM {} WHERE true ORDER BY id \
         ON CONFLICT (id) DO NOTHING RETURNING id",
        new_collections(connection.get_database_backend())
    );
    let rows = json_of(new, |new| Some(new.created_at.unwrap_or(now)));
    read_ids(connection, &sql, rows.into()).await
}

pub async fn delete_collections(connection: &impl ConnectionTrait, ids: &[i64]) -> Result<(), DbErr> {
    let (operand, ids) = any_of(connection.get_database_backend(), ids);
    let sql = format!("DELETE FROM collections WHERE id {operand}");
    connection.execute_raw(statement(connection, &sql, [ids])).await?;
    Ok(())
}

/// For each of these collections that exists, the names of the fields that differ, in one text.
pub async fn compare_collections(
    connection: &impl ConnectionTrait,
    new: &[&CollectionToImport],
) -> Result<HashMap<CollectionId, String>, DbErr> {
    // CROSS JOIN: SQLite does not choose another order then.
    let sql = format!(
        "SELECT stored.id AS id, concat_ws(', ',
           CASE WHEN stored.owner_id <> new.owner_id THEN 'owner_id' END,
           CASE WHEN stored.name <> new.name THEN 'name' END,
           CASE WHEN stored.description IS DISTINCT FROM new.description THEN 'description' END,
           CASE WHEN stored.url IS DISTINCT FROM new.url THEN 'url' END,
           CASE WHEN stored.timeline_order <> new.timeline_order THEN 'timeline_order' END,
           CASE WHEN stored.created_at <> new.created_at THEN 'created_at' END) AS differing
         FROM {} CROSS JOIN collections AS stored WHERE stored.id = new.id",
        new_collections(connection.get_database_backend())
    );
    let rows = json_of(new, |new| new.created_at);
    let rows = connection.query_all_raw(statement(connection, &sql, [rows.into()])).await?;
    rows.iter().map(|row| Ok((row.try_get("", "id")?, row.try_get("", "differing")?))).collect()
}

/// How many entries are stored under each of the ids that have any.
pub async fn count_entries(
    connection: &impl ConnectionTrait,
    ids: &[i64],
) -> Result<HashMap<CollectionId, i64>, DbErr> {
    let (operand, ids) = any_of(connection.get_database_backend(), ids);
    let sql = format!(
        "SELECT collection_id AS id, count(*) AS count FROM collection_entries \
         WHERE collection_id {operand} GROUP BY collection_id"
    );
    read_counts(connection, &sql, ids).await
}

/// How many of these entries are stored as they are, for each id that has any.
pub async fn count_matching(
    connection: &impl ConnectionTrait,
    entries: &[(CollectionId, EntryToImport)],
) -> Result<HashMap<CollectionId, i64>, DbErr> {
    let sql = format!(
        "SELECT new.collection_id AS id, count(*) AS count FROM {} CROSS JOIN collection_entries AS stored
         WHERE stored.collection_id = new.collection_id AND stored.tweet_id = new.tweet_id
           AND stored.sort_index = new.sort_index AND (new.added_at IS NULL OR stored.added_at = new.added_at)
         GROUP BY new.collection_id",
        new_entries(connection.get_database_backend())
    );
    let rows = entries.iter().map(|(id, entry)| {
        json!({
            "collection_id": id.get(),
            "tweet_id": entry.tweet_id,
            "sort_index": entry.sort_index,
            "added_at": entry.added_at.map(text_of),
        })
    });
    read_counts(connection, &sql, serde_json::Value::from_iter(rows).to_string().into()).await
}

/// Inserts entries of collections that this transaction inserted, and returns their number.
pub async fn insert_entries(
    connection: &impl ConnectionTrait,
    entries: &[(CollectionId, EntryToImport, DateTime<Utc>)],
) -> Result<u64, DbErr> {
    let insert = "INSERT INTO collection_entries (collection_id, tweet_id, sort_index, added_at)";
    let inserted = if connection.get_database_backend() == DbBackend::Postgres {
        let sql = format!("{insert} SELECT * FROM unnest($1, $2, $3, $4)");
        let values = [
            array(ArrayType::BigInt, entries.iter().map(|(id, ..)| id.get().into())),
            array(ArrayType::BigInt, entries.iter().map(|(_, entry, _)| entry.tweet_id.into())),
            array(ArrayType::BigInt, entries.iter().map(|(_, entry, _)| entry.sort_index.into())),
            array(ArrayType::ChronoDateTimeUtc, entries.iter().map(|(.., added_at)| (*added_at).into())),
        ];
        connection.execute_raw(statement(connection, &sql, values)).await?
    } else {
        let sql = format!(
            "{insert} SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each($1) WHERE true"
        );
        let rows: Vec<_> = entries
            .iter()
            .map(|(id, entry, added_at)| (id.get(), entry.tweet_id, entry.sort_index, text_of(*added_at)))
            .collect();
        let rows = serde_json::to_string(&rows).map_err(|error| DbErr::Type(error.to_string()))?;
        connection.execute_raw(statement(connection, &sql, [rows.into()])).await?
    };
    Ok(inserted.rows_affected())
}

fn json_of(
    new: &[&CollectionToImport],
    created_at: impl Fn(&CollectionToImport) -> Option<DateTime<Utc>>,
) -> String {
    let rows = new.iter().map(|new| {
        json!({
            "id": new.id.get(),
            "owner_id": new.owner.get(),
            "name": new.name,
            "description": new.description,
            "url": new.url,
            "timeline_order": new.timeline_order,
            "created_at": created_at(new).map(text_of),
        })
    });
    serde_json::Value::from_iter(rows).to_string()
}

/// As sqlx writes a time into SQLite.
fn text_of(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, false)
}

async fn select_ids(
    connection: &impl ConnectionTrait,
    select: &str,
    ids: &[i64],
) -> Result<HashSet<CollectionId>, DbErr> {
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let (operand, ids) = any_of(connection.get_database_backend(), ids);
    read_ids(connection, &format!("{select} {operand}"), ids).await
}

async fn read_ids(
    connection: &impl ConnectionTrait,
    sql: &str,
    value: Value,
) -> Result<HashSet<CollectionId>, DbErr> {
    let rows = connection.query_all_raw(statement(connection, sql, [value])).await?;
    rows.iter().map(|row| row.try_get("", "id")).collect()
}

async fn read_counts(
    connection: &impl ConnectionTrait,
    sql: &str,
    value: Value,
) -> Result<HashMap<CollectionId, i64>, DbErr> {
    let rows = connection.query_all_raw(statement(connection, sql, [value])).await?;
    rows.iter().map(|row| Ok((row.try_get("", "id")?, row.try_get("", "count")?))).collect()
}

/// What follows a column that is one of these ids, and the value of its parameter.
fn any_of(backend: DbBackend, ids: &[i64]) -> (&'static str, Value) {
    if backend == DbBackend::Postgres {
        return ("= ANY ($1)", array(ArrayType::BigInt, ids.iter().map(|id| (*id).into())));
    }
    ("IN (SELECT value FROM json_each($1))", json!(ids).to_string().into())
}

fn array(of: ArrayType, values: impl Iterator<Item = Value>) -> Value {
    Value::Array(of, Some(Box::new(values.collect())))
}

fn statement<const N: usize>(connection: &impl ConnectionTrait, sql: &str, values: [Value; N]) -> Statement {
    Statement::from_sql_and_values(connection.get_database_backend(), sql, values)
}
