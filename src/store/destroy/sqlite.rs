//! The statements on SQLite, which has no DELETE in a WITH. They run in one transaction that has the write lock from its
//! beginning, so nobody can come between.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, Value};

use super::Destroy;

/// One text with a letter for each: what will come of it. `?1` holds what is asked for, as JSON: `[[id, owner, request id in
/// hex or null, caller or null], …]`. One text, because each row would come through a channel of its own.
pub const SQLITE_LOOK: &str = "\
SELECT coalesce(group_concat(CASE
  WHEN EXISTS (SELECT 1 FROM collections AS row WHERE row.id = value ->> 0 AND row.owner_id = value ->> 1) THEN 'd'
  WHEN EXISTS (SELECT 1 FROM destroyed_collections AS stone WHERE stone.id = value ->> 0
    AND stone.owner_id = value ->> 1 AND stone.request_id = unhex(value ->> 2)) THEN 'r'
  WHEN EXISTS (SELECT 1 FROM collections AS row WHERE row.id = value ->> 0) THEN 'f'
  ELSE 'n'
END, '' ORDER BY key), '') AS outcomes FROM json_each(?1)";

/// For what may be destroyed: `?1` as above. The owner is decided here.
pub const SQLITE_DELETE: &str = "\
DELETE FROM collections WHERE (id, owner_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1))";

/// The same once more, `?2` now.
pub const SQLITE_TOMBSTONES: &str = "\
INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
SELECT value ->> 0, value ->> 1, ?2, unhex(value ->> 2), value ->> 3 FROM json_each(?1) WHERE true
ON CONFLICT (id) DO UPDATE SET owner_id = excluded.owner_id, destroyed_at = excluded.destroyed_at,
  request_id = excluded.request_id, caller = excluded.caller, purged_at = NULL, published_at = NULL";

/// A letter for each destroy.
pub async fn destroy(
    transaction: DatabaseTransaction,
    destroys: &[&Destroy],
    now: DateTime<Utc>,
) -> Result<String, DbErr> {
    let row = transaction.query_one_raw(statement(SQLITE_LOOK, [json(destroys).into()])).await?;
    let seen: String = row.ok_or_else(|| misread("no row"))?.try_get("", "outcomes")?;
    // A collection goes to the first who asks for it; the others were overtaken.
    let mut taken = HashSet::new();
    let letters = destroys.iter().zip(seen.chars()).map(|(destroy, letter)| match letter {
        'd' if !taken.insert(destroy.id) => 'o',
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
    let gone = transaction.execute_raw(statement(SQLITE_DELETE, [winning.clone().into()])).await?;
    if gone.rows_affected() != winners.len() as u64 {
        transaction.rollback().await?;
        return Err(misread("the rows that were seen are not those that were deleted"));
    }
    transaction.execute_raw(statement(SQLITE_TOMBSTONES, [winning.into(), now.into()])).await?;
    transaction.commit().await?;
    Ok(letters)
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
