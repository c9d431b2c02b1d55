//! The destroying statements of SQLite, which has no functions and no DELETE in a WITH. They run in one transaction that
//! has the write lock from its beginning, so no other statement runs between them.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, Value};

use super::Destroy;

/// One text with a letter for each: what will become of it. `?1` holds what is asked for, as JSON: `[[id, owner, request
/// id in hex, caller or null], …]`. One text, because each row would go through a channel of its own.
pub const SQLITE_CLASSIFY: &str = "\
SELECT coalesce(group_concat(CASE
  WHEN EXISTS (SELECT 1 FROM destroyed_collections AS tombstone WHERE tombstone.id = value ->> 0
    AND tombstone.owner_id = value ->> 1 AND tombstone.request_id = unhex(value ->> 2)) THEN 'r'
  WHEN EXISTS (SELECT 1 FROM collections AS row WHERE row.id = value ->> 0 AND row.owner_id = value ->> 1) THEN 'd'
  WHEN EXISTS (SELECT 1 FROM collections AS row WHERE row.id = value ->> 0) THEN 'f'
  ELSE 'n'
END, '' ORDER BY key), '') AS outcomes FROM json_each(?1)";

/// For what may be destroyed: `?1` as above. Ownership is decided here.
pub const SQLITE_DELETE: &str = "\
DELETE FROM collections WHERE (id, owner_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1))";

/// The same once more, `?2` now. A tombstone that stands already (a row that was restored by hand) is written over.
pub const SQLITE_TOMBSTONES: &str = "\
INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
SELECT value ->> 0, value ->> 1, ?2, unhex(value ->> 2), value ->> 3 FROM json_each(?1) WHERE true
ON CONFLICT (id) DO UPDATE SET owner_id = excluded.owner_id, destroyed_at = excluded.destroyed_at,
  request_id = excluded.request_id, caller = excluded.caller";

/// The same for the queues.
pub const SQLITE_PURGE: &str = "\
INSERT INTO purge_queue (id, since) SELECT value ->> 0, ?2 FROM json_each(?1) WHERE true ON CONFLICT DO NOTHING";
pub const SQLITE_OUTBOX: &str = "\
INSERT INTO event_outbox (id, since) SELECT value ->> 0, ?2 FROM json_each(?1) WHERE true ON CONFLICT DO NOTHING";

/// Destroys a row of its own, and leaves no trace but in the file: the commit shows that the file can be written.
const REHEARSAL: [&str; 7] = [
    "INSERT INTO collections (id, owner_id, name, timeline_order, created_at) VALUES (-1, 1, '', '', '')",
    "INSERT INTO destroyed_collections (id, owner_id, destroyed_at) VALUES (-1, 1, '')",
    "INSERT INTO purge_queue (id, since) VALUES (-1, '')",
    "INSERT INTO event_outbox (id, since) VALUES (-1, '')",
    "DELETE FROM collections WHERE id = -1",
    "DELETE FROM destroyed_collections WHERE id = -1",
    "DELETE FROM purge_queue WHERE id = -1; DELETE FROM event_outbox WHERE id = -1",
];

/// A letter for each destroy.
pub async fn destroy(
    transaction: DatabaseTransaction,
    destroys: &[&Destroy],
    publish: bool,
    now: DateTime<Utc>,
) -> Result<String, DbErr> {
    let row = transaction.query_one_raw(statement(SQLITE_CLASSIFY, [json(destroys).into()])).await?;
    let seen: String = row.ok_or_else(|| misread("no row"))?.try_get("", "outcomes")?;
    // A collection goes to the first who asks for it; the others are run again.
    let mut taken = HashSet::new();
    let letters = destroys.iter().zip(seen.chars()).map(|(destroy, letter)| match letter {
        'd' if !taken.insert(destroy.id) => 'c',
        letter => letter,
    });
    let letters: String = letters.collect();
    let winners: Vec<&Destroy> = destroys
        .iter()
        .zip(letters.chars())
        .filter(|(_, letter)| *letter == 'd')
        .map(|(destroy, _)| *destroy)
        .collect();
    if winners.is_empty() {
        transaction.rollback().await?;
        return Ok(letters);
    }
    let winning = json(&winners);
    let deleted = transaction.execute_raw(statement(SQLITE_DELETE, [winning.clone().into()])).await?;
    if deleted.rows_affected() != winners.len() as u64 {
        transaction.rollback().await?;
        return Err(misread("the rows that were found are not those that were deleted"));
    }
    let inserts = [SQLITE_TOMBSTONES, SQLITE_PURGE].into_iter().chain(publish.then_some(SQLITE_OUTBOX));
    for insert in inserts {
        transaction.execute_raw(statement(insert, [winning.clone().into(), now.into()])).await?;
    }
    transaction.commit().await?;
    Ok(letters)
}

/// Commits a destroy of a row that it makes, of which nothing is left.
pub async fn rehearse(transaction: DatabaseTransaction) -> Result<(), DbErr> {
    for statement in REHEARSAL {
        transaction.execute_unprepared(statement).await?;
    }
    transaction.commit().await
}

fn misread(what: &str) -> DbErr {
    DbErr::Type(format!("the destroy's statements: {what}"))
}

fn json(destroys: &[&Destroy]) -> String {
    let asked = destroys.iter().map(|destroy| {
        let request_id = destroy.request_id.map(|request_id| request_id.get().simple().to_string());
        (destroy.id.get(), destroy.user.get(), request_id, destroy.caller.as_deref())
    });
    serde_json::Value::from_iter(asked.map(|row| serde_json::json!(row))).to_string()
}

fn statement<const N: usize>(sql: &'static str, values: [Value; N]) -> Statement {
    Statement::from_sql_and_values(DbBackend::Sqlite, sql, values)
}
