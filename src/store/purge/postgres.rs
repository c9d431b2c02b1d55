//! The purge on PostgreSQL: one call of the function that the migration installed.

use chrono::{DateTime, Utc};
use sea_orm::{
    DbErr,
    sqlx::{self, AssertSqlSafe, Connection, PgConnection},
};

use super::{Candidate, Chunk, Cursor};
use crate::{config::purge, store::failure::sqlx_error};

const QUEUE: &str = "\
SELECT id, since FROM purge_queue WHERE $1::timestamptz IS NULL OR (since, id) > ($1, $2) ORDER BY since, id LIMIT $3";

/// `migrations/purge_collections_v1.sql` describes the parameters and the result.
const ERASE: &str = "\
SELECT purged_id, purged_position, erased, is_finished FROM purge_collections_v1($1, $2, $3)";

/// The next rows of the queue, oldest first. The server ends the statement too, if the disk hangs, say.
pub async fn read_queue(
    connection: &mut PgConnection,
    cursor: Option<Cursor>,
) -> Result<Vec<(i64, DateTime<Utc>)>, DbErr> {
    let read = async {
        let mut transaction = connection.begin().await?;
        let bound = format!("SET LOCAL statement_timeout = '{}s'", purge::QUEUE_BOUND.as_secs());
        sqlx::raw_sql(AssertSqlSafe(bound)).execute(&mut *transaction).await?;
        let (since, id) = cursor.unzip();
        let rows = sqlx::query_as(QUEUE).bind(since).bind(id).bind(purge::CANDIDATES);
        let rows = rows.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        Ok::<_, sqlx::Error>(rows)
    };
    read.await.map_err(sqlx_error)
}

/// Erases up to `most` entries of these collections.
pub async fn erase(
    connection: &mut PgConnection,
    candidates: &[Candidate],
    most: u32,
) -> Result<Chunk, DbErr> {
    let (ids, positions): (Vec<i64>, Vec<i64>) =
        candidates.iter().map(|candidate| (candidate.id, candidate.position)).unzip();
    let rows = erase_once(connection, &ids, &positions, most).await.map_err(sqlx_error)?;
    let mut chunk = Chunk::default();
    for (id, position, entries, is_finished) in rows {
        chunk.entries += entries.cast_unsigned();
        if is_finished {
            chunk.finished += 1;
        } else {
            chunk.unfinished.push(Candidate { id, position });
        }
    }
    Ok(chunk)
}

/// Collection, position, erased entries, and whether it is finished.
type Row = (i64, i64, i64, bool);

async fn erase_once(
    connection: &mut PgConnection,
    ids: &[i64],
    positions: &[i64],
    most: u32,
) -> Result<Vec<Row>, sqlx::Error> {
    // Whatever the database's default: a row that another purge has finished is skipped, and does not fail the step.
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    let erase = sqlx::query_as(ERASE).bind(ids).bind(positions).bind(i64::from(most));
    let rows = erase.fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(rows)
}
