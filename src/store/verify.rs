//! Reads the whole database for rows that contradict each other, and repairs what can be repaired, in bounded steps.
//!
//! Every step that reads is one statement, and all that it reads about one id is of one snapshot. A destroy, a purge or an
//! import in flight is seen whole or not at all, so a serving service next to it causes no false findings.

mod fix;

use std::num::ParseIntError;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, Statement, Value};
use tokio::time::{sleep, timeout};

use super::{
    Store,
    failure::{Failure, message},
};
use crate::config::verify;

/// A kind of contradiction between rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Inconsistency {
    /// A row of `purge_queue` without a tombstone.
    PurgeWithoutTombstone,
    /// A row of `event_outbox` without a tombstone.
    EventWithoutTombstone,
    /// A collection that has a tombstone too.
    LiveAndDestroyed,
    /// Entries of a destroyed collection that is not queued for purging.
    PurgedWithEntries,
    /// Entries under an id that has neither a collection nor a tombstone.
    OrphanEntries,
}

/// What is read, in this order: a repair of an earlier phase may leave findings for a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum VerifyPhase {
    #[default]
    PurgeQueue,
    EventOutbox,
    Tombstones,
    Entries,
}

/// Where the next step begins to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VerifyPosition {
    phase: VerifyPhase,
    /// The first key of the phase that has not been read: an id, and in the last phase an entry too. `None`: from the beginning.
    from: Option<(i64, i64)>,
}

/// What one step has read.
#[derive(Debug)]
pub struct VerifyChunk {
    pub phase: VerifyPhase,
    /// Rows.
    pub rows: u64,
    /// Ids that no step before has read in this phase.
    pub ids: u64,
    /// The ids of each kind that was found, ascending. A collection whose entries are read by two steps is found by both.
    /// The ids are those of the rows: one that was written by hand may be no valid id.
    pub found: Vec<(Inconsistency, Vec<i64>)>,
    /// Where the next step begins, or `None` at the end of the last phase.
    pub next: Option<VerifyPosition>,
}

/// Why a step failed. A step that reads changes nothing; of one that repairs, all is rolled back, or, where the database went
/// away at the commit, all may have been done.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the database failed: {}", message(.0))]
    Database(#[from] DbErr),
    #[error("the database returned an id that is not a number: {0}")]
    Misread(#[from] ParseIntError),
    #[error("the database did not answer within {} s", verify::STEP_BOUND.as_secs())]
    Timeout,
}

/// One row for each chunk. `first` and `last` are NULL where no row is left; each text has ids separated by commas.
#[derive(Debug, FromQueryResult)]
struct ChunkRow {
    rows: i64,
    ids: i64,
    first: Option<i64>,
    last: Option<i64>,
    last_tweet: Option<i64>,
    found: Option<String>,
    orphans: Option<String>,
}

/// Entries in the order of the primary key, from `$1` and `$2`, at most `$3`. The joins are left for each entry, because a
/// distributed engine runs them on the node that has the rows. Their second conditions follow from the first: without them
/// PostgreSQL's merge join would read the other tables from their beginning for each chunk.
const ENTRIES: &str = "\
WITH chunk AS MATERIALIZED (
  SELECT entry.collection_id AS id, entry.tweet_id, live.id AS live, tombstone.id AS destroyed, queued.id AS queued
  FROM collection_entries AS entry
  LEFT JOIN collections AS live ON live.id = entry.collection_id AND live.id >= $1
  LEFT JOIN destroyed_collections AS tombstone ON tombstone.id = entry.collection_id AND tombstone.id >= $1
  LEFT JOIN purge_queue AS queued ON queued.id = entry.collection_id AND queued.id >= $1
  WHERE (entry.collection_id, entry.tweet_id) >= ($1, $2)
  ORDER BY entry.collection_id, entry.tweet_id LIMIT $3
) SELECT count(*) AS rows, count(DISTINCT id) AS ids, min(id) AS first, max(id) AS last,
  (SELECT tweet_id FROM chunk ORDER BY id DESC, tweet_id DESC LIMIT 1) AS last_tweet,
  (SELECT string_agg(CAST(id AS text), ',') FROM (SELECT DISTINCT id FROM chunk
    WHERE live IS NULL AND destroyed IS NOT NULL AND queued IS NULL) AS kind) AS found,
  (SELECT string_agg(CAST(id AS text), ',') FROM (SELECT DISTINCT id FROM chunk
    WHERE live IS NULL AND destroyed IS NULL) AS kind) AS orphans
FROM chunk";

/// Rows of a table in the order of their ids, from `$1`, at most `$2`, with the row of the other table where it has one.
macro_rules! pairs {
    ($table:literal, $other:literal, $is_finding:literal) => {
        concat!(
            "\
WITH chunk AS MATERIALIZED (
  SELECT this.id, other.id AS other
  FROM ",
            $table,
            " AS this LEFT JOIN ",
            $other,
            " AS other ON other.id = this.id AND other.id >= $1
  WHERE this.id >= $1 ORDER BY this.id LIMIT $2
) SELECT count(*) AS rows, count(*) AS ids, min(id) AS first, max(id) AS last, CAST(NULL AS bigint) AS last_tweet,
  (SELECT string_agg(CAST(id AS text), ',') FROM chunk WHERE other ",
            $is_finding,
            ") AS found,
  CAST(NULL AS text) AS orphans
FROM chunk"
        )
    };
}

const OLDEST_QUEUED_PURGE: &str = "SELECT min(since) AS since FROM purge_queue";

impl VerifyPhase {
    const fn next(self) -> Option<Self> {
        match self {
            Self::PurgeQueue => Some(Self::EventOutbox),
            Self::EventOutbox => Some(Self::Tombstones),
            Self::Tombstones => Some(Self::Entries),
            Self::Entries => None,
        }
    }

    /// What `ChunkRow::found` holds.
    const fn inconsistency(self) -> Inconsistency {
        match self {
            Self::PurgeQueue => Inconsistency::PurgeWithoutTombstone,
            Self::EventOutbox => Inconsistency::EventWithoutTombstone,
            Self::Tombstones => Inconsistency::LiveAndDestroyed,
            Self::Entries => Inconsistency::PurgedWithEntries,
        }
    }

    const fn statement(self) -> &'static str {
        match self {
            Self::PurgeQueue => pairs!("purge_queue", "destroyed_collections", "IS NULL"),
            Self::EventOutbox => pairs!("event_outbox", "destroyed_collections", "IS NULL"),
            Self::Tombstones => pairs!("destroyed_collections", "collections", "IS NOT NULL"),
            Self::Entries => ENTRIES,
        }
    }
}

impl VerifyPosition {
    const fn at(phase: VerifyPhase) -> Self {
        Self { phase, from: None }
    }

    /// After the last row of a chunk.
    fn after(self, row: &ChunkRow) -> Option<Self> {
        let is_last = row.rows < verify::CHUNK_ROWS;
        let from = row.last.filter(|_| !is_last).and_then(|last| match row.last_tweet {
            Some(tweet) if tweet < i64::MAX => Some((last, tweet + 1)),
            _ => last.checked_add(1).map(|next| (next, i64::MIN)),
        });
        match from {
            Some(from) => Some(Self { phase: self.phase, from: Some(from) }),
            None => self.phase.next().map(Self::at),
        }
    }
}

impl Store {
    /// Reads one chunk of one phase.
    ///
    /// # Errors
    /// The database failed or was too slow.
    pub async fn verify_chunk(&self, position: VerifyPosition) -> Result<VerifyChunk, VerifyError> {
        self.attempt(async || self.verify_chunk_once(position).await).await
    }

    async fn verify_chunk_once(&self, position: VerifyPosition) -> Result<VerifyChunk, VerifyError> {
        let phase = position.phase;
        let (id, tweet) = position.from.unwrap_or((i64::MIN, i64::MIN));
        let most = verify::CHUNK_ROWS.into();
        let values: Vec<Value> = match phase {
            VerifyPhase::Entries => vec![id.into(), tweet.into(), most],
            _ => vec![id.into(), most],
        };
        let statement = Statement::from_sql_and_values(self.backend(), phase.statement(), values);
        let row = self.db.query_one_raw(statement).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("an aggregate has one row".to_owned()))?;
        let row = ChunkRow::from_query_result(&row, "")?;
        let is_continued = position.from.is_some() && row.first == Some(id) && tweet > i64::MIN;
        let mut found = Vec::new();
        for (kind, ids) in [(phase.inconsistency(), &row.found), (Inconsistency::OrphanEntries, &row.orphans)]
        {
            if let Some(ids) = ids {
                let mut ids = ids.split(',').map(str::parse).collect::<Result<Vec<i64>, _>>()?;
                ids.sort_unstable();
                found.push((kind, ids));
            }
        }
        Ok(VerifyChunk {
            phase,
            rows: row.rows.unsigned_abs(),
            ids: row.ids.unsigned_abs().saturating_sub(u64::from(is_continued)),
            found,
            next: position.after(&row),
        })
    }

    /// Since when the oldest row of the purge queue waits; `None` where the queue is empty. Takes as long as the queue is.
    ///
    /// # Errors
    /// The database failed or was too slow.
    pub async fn oldest_queued_purge(&self) -> Result<Option<DateTime<Utc>>, VerifyError> {
        self.attempt(async || {
            let query = Statement::from_string(self.backend(), OLDEST_QUEUED_PURGE);
            let row = self.db.query_one_raw(query).await?;
            Ok(row.map(|row| row.try_get("", "since")).transpose()?.flatten())
        })
        .await
    }

    /// Runs a step within its time, and again where other transactions have undone it or the database is away for a moment.
    async fn attempt<T>(&self, step: impl AsyncFn() -> Result<T, VerifyError>) -> Result<T, VerifyError> {
        let mut pause = verify::RETRY_PAUSE;
        for _ in 1..verify::STEP_ATTEMPTS {
            match timeout(verify::STEP_BOUND, step()).await.map_err(|_elapsed| VerifyError::Timeout)? {
                Err(VerifyError::Database(error)) if is_transient(&error) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(verify::LONGEST_RETRY_PAUSE);
                }
                outcome => return outcome,
            }
        }
        timeout(verify::STEP_BOUND, step()).await.map_err(|_elapsed| VerifyError::Timeout)?
    }
}

fn is_transient(error: &DbErr) -> bool {
    matches!(Failure::from(error), Failure::Conflict | Failure::Locked | Failure::Unavailable)
}
