//! The purge's statements on SQLite. Before a row leaves the queue the file is rewritten, so that no byte of what was erased
//! is left in it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, Value,
    sqlx::{self, Row, SqlitePool},
};

use tokio::time::Instant;

use super::{Candidate, Chunk, Cursor, PurgeLimits, PurgeWait};
use crate::{
    config::{purge, store},
    store::{
        connect::{Database, Engine},
        failure::sqlx_error,
        sqlite_file::SqliteFile,
    },
};

const QUEUE: &str = "\
SELECT id, since FROM purge_queue WHERE ?1 IS NULL OR (since, id) > (?1, ?2) ORDER BY since, id LIMIT ?3";

/// Nothing is erased for an id that is not destroyed. `?1` holds ids as a JSON array, here and below.
const CLAIM: &str = "\
SELECT id FROM purge_queue WHERE id IN (SELECT value FROM json_each(?1))
  AND EXISTS (SELECT 1 FROM destroyed_collections WHERE destroyed_collections.id = purge_queue.id)
  AND NOT EXISTS (SELECT 1 FROM collections WHERE collections.id = purge_queue.id)";

const ERASE: &str = "\
DELETE FROM collection_entries WHERE (collection_id, tweet_id) IN (
  SELECT collection_id, tweet_id FROM collection_entries
  WHERE collection_id IN (SELECT value FROM json_each(?1)) LIMIT ?2
)";

const UNFINISHED: &str = "\
SELECT value AS id FROM json_each(?1)
WHERE EXISTS (SELECT 1 FROM collection_entries WHERE collection_id = value)";

const FINISH: &str = "\
DELETE FROM purge_queue WHERE id IN (SELECT value FROM json_each(?1))
  AND NOT EXISTS (SELECT 1 FROM collection_entries WHERE collection_id = purge_queue.id)";

/// The next rows of the queue, oldest first.
pub async fn read_queue(
    connection: &impl ConnectionTrait,
    cursor: Option<Cursor>,
) -> Result<Vec<(i64, DateTime<Utc>)>, DbErr> {
    let (since, id) = cursor.unzip();
    let values = [since.into(), id.into(), purge::CANDIDATES.into()];
    let rows = connection.query_all_raw(statement(QUEUE, values)).await?;
    rows.iter().map(|row| Ok((row.try_get("", "id")?, row.try_get("", "since")?))).collect()
}

/// Erases up to `most` entries of these collections.
pub async fn erase(
    transaction: DatabaseTransaction,
    file: &SqliteFile,
    candidates: &[Candidate],
    most: u32,
) -> Result<Chunk, DbErr> {
    let ids: Vec<i64> = candidates.iter().map(|candidate| candidate.id).collect();
    let rows = transaction.query_all_raw(statement(CLAIM, [json(&ids)])).await?;
    let claimed = rows.iter().map(id).collect::<Result<Vec<i64>, DbErr>>()?;
    let erase = statement(ERASE, [json(&claimed), most.into()]);
    let entries = transaction.execute_raw(erase).await?.rows_affected();
    let rows = transaction.query_all_raw(statement(UNFINISHED, [json(&claimed)])).await?;
    let unfinished = rows.iter().map(id).collect::<Result<Vec<i64>, DbErr>>()?;
    transaction.commit().await?;
    file.check()?;
    let erased = claimed.into_iter().filter(|id| !unfinished.contains(id)).collect();
    // Deleted rows are gone at once here, so a chunk can begin at the first entry.
    let unfinished = unfinished.into_iter().map(|id| Candidate { id, position: i64::MIN }).collect();
    Ok(Chunk { entries, unfinished, finished: 0, erased })
}

/// Rewrites the file. `secure_delete` overwrites what is deleted, but not the copies that SQLite leaves in the unused part of
/// a page when it moves rows to another one: of some thousand deleted rows one was still found.
#[derive(Debug)]
pub struct Rewriter {
    limits: PurgeLimits,
    not_before: Instant,
    /// So many of the erased were so before the file was rewritten. What is left to do for them is to empty the log.
    rewritten: usize,
}

impl Rewriter {
    pub fn new(limits: PurgeLimits) -> Self {
        Self { limits, not_before: Instant::now(), rewritten: 0 }
    }

    /// The next list of erased ids has none of those of the last one.
    pub fn forget(&mut self) {
        self.rewritten = 0;
    }

    /// Rewrites the file, empties its write-ahead log, which holds what it held before, and deletes these rows of the queue.
    /// Returns how many they were, or why they have to stay; then they are given again, and may be followed by more.
    pub async fn finish(
        &mut self,
        database: &Database,
        erased: &[i64],
    ) -> Result<Result<u64, PurgeWait>, DbErr> {
        let Engine::Sqlite(file) = &database.engine else { return Ok(Ok(0)) };
        if self.rewritten < erased.len() {
            if Instant::now() < self.not_before {
                return Ok(Err(PurgeWait::Interval));
            }
            if file.size()? > self.limits.vacuum_limit {
                return Ok(Err(PurgeWait::TooLarge));
            }
        }
        match self.finish_once(database.pool.get_sqlite_connection_pool(), file, erased).await {
            Ok(Some(finished)) => {
                self.forget();
                Ok(Ok(finished))
            }
            Ok(None) => Ok(Err(PurgeWait::Busy)),
            Err(error) => Err(sqlx_error(error)),
        }
    }

    async fn finish_once(
        &mut self,
        pool: &SqlitePool,
        file: &SqliteFile,
        erased: &[i64],
    ) -> Result<Option<u64>, sqlx::Error> {
        let mut connection = pool.acquire().await?;
        if self.rewritten < erased.len() {
            let begun = Instant::now();
            sqlx::raw_sql("VACUUM").execute(&mut *connection).await?;
            let pause = begun.elapsed().saturating_mul(self.limits.vacuum_pause_factor);
            self.not_before = Instant::now().checked_add(pause).unwrap_or(self.not_before);
            self.rewritten = erased.len();
        }
        // Where this is cut short, the busy time-out of the connection may still be the short one: it is not used again.
        file.discard();
        let is_empty = empty_log(&mut connection, self.limits.checkpoint_timeout).await?;
        file.take_discarded();
        if !is_empty {
            return Ok(None);
        }
        let finished = sqlx::query(FINISH).bind(json_text(erased)).execute(&mut *connection).await?;
        Ok(Some(finished.rows_affected()))
    }
}

/// Writes the log into the file and cuts it to nothing. `false` where another process needs it for longer than this.
async fn empty_log(connection: &mut sqlx::SqliteConnection, bound: Duration) -> Result<bool, sqlx::Error> {
    let (short, usual) = (bound.as_millis(), store::BUSY_TIMEOUT.as_millis());
    let script = format!(
        "PRAGMA busy_timeout = {short}; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA busy_timeout = {usual}"
    );
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(script)).fetch_all(connection).await?;
    // `busy`, the size of the log, and how much of it was written.
    let checkpoint = rows.iter().find(|row| row.len() == 3).ok_or(sqlx::Error::RowNotFound)?;
    Ok(checkpoint.try_get::<i64, _>(0)? == 0)
}

fn id(row: &QueryResult) -> Result<i64, DbErr> {
    row.try_get("", "id")
}

fn json_text(ids: &[i64]) -> String {
    serde_json::Value::from_iter(ids.iter().copied()).to_string()
}

fn json(ids: &[i64]) -> Value {
    json_text(ids).into()
}

fn statement<const N: usize>(sql: &'static str, values: [Value; N]) -> Statement {
    Statement::from_sql_and_values(DbBackend::Sqlite, sql, values)
}
