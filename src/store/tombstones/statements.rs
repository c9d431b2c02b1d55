//! The statements that apply tombstones. Each has one parameter: ids, or tombstones as a JSON array of objects.

use sea_orm::{DbBackend, Value, sea_query::ArrayType};

/// For one transaction on PostgreSQL. Rows are found by primary key alone, and so locked in the order of their ids, as
/// destroys lock them. The lock keeps batches of two commands apart, and inserts of collections; its key is `tombston` in ASCII.
pub const SETTINGS: &str = "\
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off; \
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'; \
SELECT pg_advisory_xact_lock(8390044900425756526)";

/// For a transaction on PostgreSQL that inserts collections, before its first statement: it waits for a batch that is being
/// applied, and a batch for it. Without it an id could be inserted while its missing tombstone is written, and each would not
/// be seen by the other. On SQLite there is one writer.
pub const INSERT_LOCK: &str = "SELECT pg_advisory_xact_lock_shared(8390044900425756526)";

#[derive(Clone, Copy)]
pub struct Statements {
    /// Of these ids: id and owner of each live collection.
    pub live: &'static str,
    /// Of these ids: id and owner of each tombstone.
    pub existing: &'static str,
    /// Deletes these collections, and returns id and owner of each.
    pub delete: &'static str,
    /// Writes these tombstones where there is none, and returns the ids of those that it wrote.
    pub record: &'static str,
    /// Of these ids: those whose purge is queued.
    pub queued: &'static str,
    /// Of these ids: those with entries.
    pub with_entries: &'static str,
    /// Queues the purges of these tombstones' collections, and returns the ids of those that it queued.
    pub queue: &'static str,
}

/// Each finds its rows by the column that a distributed engine places them by, and has no subquery that such an engine
/// would have to split.
const POSTGRES: Statements = Statements {
    live: "SELECT id, owner_id FROM collections WHERE id = ANY ($1)",
    existing: "SELECT id, owner_id FROM destroyed_collections WHERE id = ANY ($1)",
    delete: "DELETE FROM collections WHERE id = ANY ($1) RETURNING id, owner_id",
    record: "\
INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
SELECT id, owner_id, destroyed_at, request_id, caller FROM json_to_recordset($1::text::json)
  AS stated (id bigint, owner_id bigint, destroyed_at timestamptz, request_id uuid, caller text)
ON CONFLICT (id) DO NOTHING RETURNING id",
    queued: "SELECT id FROM purge_queue WHERE id = ANY ($1)",
    with_entries: "\
SELECT collection_id AS id FROM collection_entries WHERE collection_id = ANY ($1) GROUP BY collection_id",
    queue: "\
INSERT INTO purge_queue (id, since)
SELECT id, destroyed_at FROM json_to_recordset($1::text::json) AS stated (id bigint, destroyed_at timestamptz)
ON CONFLICT (id) DO NOTHING RETURNING id",
};

const SQLITE: Statements = Statements {
    live: "SELECT id, owner_id FROM collections WHERE id IN (SELECT value FROM json_each(?1))",
    existing: "SELECT id, owner_id FROM destroyed_collections WHERE id IN (SELECT value FROM json_each(?1))",
    delete: "\
DELETE FROM collections WHERE id IN (SELECT value FROM json_each(?1)) RETURNING id, owner_id",
    record: "\
INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
SELECT value ->> 'id', value ->> 'owner_id', value ->> 'destroyed_at', unhex(value ->> 'request_id'),
  value ->> 'caller' FROM json_each(?1) WHERE true
ON CONFLICT (id) DO NOTHING RETURNING id",
    queued: "SELECT id FROM purge_queue WHERE id IN (SELECT value FROM json_each(?1))",
    with_entries: "\
SELECT value AS id FROM json_each(?1)
WHERE EXISTS (SELECT 1 FROM collection_entries WHERE collection_id = value)",
    queue: "\
INSERT INTO purge_queue (id, since)
SELECT value ->> 'id', value ->> 'destroyed_at' FROM json_each(?1) WHERE true
ON CONFLICT (id) DO NOTHING RETURNING id",
};

impl Statements {
    pub const fn of(backend: DbBackend) -> Self {
        match backend {
            DbBackend::Sqlite => SQLITE,
            _ => POSTGRES,
        }
    }
}

/// These ids as a parameter.
pub fn array(backend: DbBackend, ids: &[i64]) -> Value {
    if backend == DbBackend::Sqlite {
        return serde_json::json!(ids).to_string().into();
    }
    Value::Array(ArrayType::BigInt, Some(Box::new(ids.iter().map(|id| (*id).into()).collect())))
}
