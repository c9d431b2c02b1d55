//! The purge: erases the entries of destroyed collections, and then their rows in `purge_queue`. One step is bounded, and is
//! repeated after a crash. Any number of processes may purge one database: on PostgreSQL they skip the rows that another
//! one has locked, on SQLite they take turns.

mod postgres;
mod sqlite;

use std::{collections::VecDeque, fmt, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::{DbBackend, DbErr, FromQueryResult, Statement};
use tokio::time::timeout;

use super::{
    Store,
    connect::Database,
    destroy::{BatchConnection, Kind, Ready},
    failure::{Failure, error_type, message},
};
use crate::{config::purge, telemetry::DatabaseOperation};

/// Why a step failed. It can be repeated. The text may be shown to an operator, never to a client.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error("the database failed: {}", message(.0))]
    Database(#[from] DbErr),
    /// Of one collection. The others go on.
    #[error("custom-{id}: the database failed: {}", message(.error))]
    Collection { id: i64, error: DbErr },
    #[error("the database did not answer in time ({} s for a step, {} s for the queue)", purge::STEP_BOUND.as_secs(), purge::QUEUE_BOUND.as_secs())]
    Timeout,
}

impl PurgeError {
    /// Whether the database is away, which readiness logs.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Database(error) | Self::Collection { error, .. } => {
                Failure::from(error) == Failure::Unavailable
            }
        }
    }
}

/// What limits a purge.
#[derive(Clone, Copy, Debug)]
pub struct PurgeLimits {
    /// Entries, and collections, of one step.
    pub batch: u32,
    /// SQLite: the largest file, in bytes, that is rewritten. Destroys wait for that.
    pub vacuum_limit: u64,
    /// SQLite: the file is not rewritten again for so many times as long as it took the last time.
    pub vacuum_pause_factor: u32,
    /// SQLite: how long other processes that use the file are waited for. Destroys wait meanwhile.
    pub checkpoint_timeout: Duration,
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Entries that were erased.
    pub entries: u64,
    /// Collections of which no entry is left, and whose row in the queue was deleted.
    pub collections: u64,
    /// Collections that were left to the next pass, because another transaction has locked their entries.
    pub locked: u64,
    /// The end of the queue was reached.
    pub is_pass_complete: bool,
    /// Why rows stay in the queue although their entries are erased.
    pub wait: Option<PurgeWait>,
}

/// Why an SQLite file was not rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgeWait {
    /// It was rewritten a short time ago.
    Interval,
    /// Another process uses it.
    Busy,
    /// It is larger than [`PurgeLimits::vacuum_limit`].
    TooLarge,
}

/// The rows of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, FromQueryResult)]
pub struct PurgeBacklog {
    pub purgeable: i64,
    /// Of ids that have no tombstone, or a row in `collections`: nothing is erased for them.
    pub blocked: i64,
    /// Of the latest destroy.
    pub newest: Option<DateTime<Utc>>,
}

/// The queue, counted to a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PurgeQueue {
    /// No more than the limit.
    pub rows: i64,
    /// Seconds since the earliest destroy of them; 0 where there is none.
    pub oldest_age: i64,
}

#[derive(Debug, Default, FromQueryResult)]
struct CountedRows {
    counted: i64,
    oldest: Option<DateTime<Utc>>,
}

/// Erases step by step, over a connection of its own.
pub struct Purger {
    database: Database,
    connection: BatchConnection,
    batch: u32,
    /// Read from the queue, and not finished yet.
    candidates: VecDeque<Candidate>,
    /// So many of them are to be erased one at a time, because a step with all of them failed.
    alone: usize,
    /// The last row that was read from the queue.
    cursor: Option<Cursor>,
    /// SQLite: whose entries are erased, and perhaps still in the file.
    erased: Vec<i64>,
    rewriter: sqlite::Rewriter,
}

/// A row of the queue by its place, which is its age.
type Cursor = (DateTime<Utc>, i64);

/// A row of the queue.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: i64,
    /// The last tweet id that was erased.
    position: i64,
}

/// What a step did with its candidates. Those that are in neither list were skipped, and are read again with the next pass.
#[derive(Debug, Default)]
struct Chunk {
    /// Entries that were erased.
    entries: u64,
    /// Collections with entries left.
    unfinished: Vec<Candidate>,
    /// Collections whose row in the queue was deleted.
    finished: u64,
    /// SQLite: those without entries, which are finished once the file is rewritten.
    erased: Vec<i64>,
}

/// Of the year 9999: both databases can compare it.
const LAST_SECOND: DateTime<Utc> = match DateTime::from_timestamp(253_402_300_799, 0) {
    Some(time) => time,
    None => DateTime::UNIX_EPOCH,
};

const BACKLOG: &str = "\
SELECT count(*) FILTER (WHERE is_purgeable) AS purgeable, count(*) FILTER (WHERE NOT is_purgeable) AS blocked,
  max(since) AS newest FROM (
  SELECT since, EXISTS (SELECT 1 FROM destroyed_collections WHERE destroyed_collections.id = purge_queue.id)
    AND NOT EXISTS (SELECT 1 FROM collections WHERE collections.id = purge_queue.id) AS is_purgeable
  FROM purge_queue WHERE since <= $1) AS queued";

/// Reads one table: a service without further rights has SELECT on that. The rows have no index by age, so that all that are
/// counted are read.
const QUEUE: &str = "\
SELECT count(*) AS counted, min(since) AS oldest FROM (SELECT since FROM purge_queue LIMIT $1) AS queued";

impl PurgeLimits {
    /// Of a purge next to a service.
    #[must_use]
    pub const fn background(batch: u32) -> Self {
        Self {
            batch,
            vacuum_limit: purge::VACUUM_LIMIT,
            vacuum_pause_factor: purge::VACUUM_PAUSE_FACTOR,
            checkpoint_timeout: purge::CHECKPOINT_TIMEOUT,
        }
    }

    /// Of a purge that an operator waits for: an SQLite file of any size is rewritten.
    #[must_use]
    pub const fn once(batch: u32) -> Self {
        Self {
            batch,
            vacuum_limit: u64::MAX,
            vacuum_pause_factor: 0,
            checkpoint_timeout: purge::LONG_CHECKPOINT_TIMEOUT,
        }
    }
}

impl Store {
    #[must_use]
    pub fn purger(&self, limits: PurgeLimits) -> Purger {
        Purger {
            database: self.database.clone(),
            connection: BatchConnection::new(&self.database, Kind::Dedicated),
            batch: limits.batch,
            candidates: VecDeque::new(),
            alone: 0,
            cursor: None,
            erased: Vec::new(),
            rewriter: sqlite::Rewriter::new(limits),
        }
    }

    /// Counts the rows of the queue, to this limit, so that it takes no longer than that many.
    ///
    /// # Errors
    /// The database failed, or the role may not read the queue.
    pub async fn purge_queue(&self, limit: i64) -> Result<PurgeQueue, PurgeError> {
        let query = Statement::from_sql_and_values(self.backend(), QUEUE, [limit.into()]);
        let timer = self.database.metrics.start(DatabaseOperation::Purge);
        let counted = CountedRows::find_by_statement(query).one(&self.db);
        let counted = timeout(purge::STEP_BOUND, counted).await.map_err(|_elapsed| PurgeError::Timeout)?;
        timer.finish(error_type(&counted));
        let CountedRows { counted: rows, oldest } = counted?.unwrap_or_default();
        let age = oldest.map_or(0, |oldest| (self.clock.now() - oldest).num_seconds().max(0));
        Ok(PurgeQueue { rows, oldest_age: age })
    }

    /// Counts the rows of the queue, up to this time if there is one, which takes as long as the queue is.
    ///
    /// # Errors
    /// The database failed.
    pub async fn purge_backlog(&self, until: Option<DateTime<Utc>>) -> Result<PurgeBacklog, PurgeError> {
        let until = until.unwrap_or(LAST_SECOND);
        let query = Statement::from_sql_and_values(self.backend(), BACKLOG, [until.into()]);
        let counted = timeout(purge::QUEUE_BOUND, PurgeBacklog::find_by_statement(query).one(&self.db));
        Ok(counted.await.map_err(|_elapsed| PurgeError::Timeout)??.unwrap_or_default())
    }
}

impl Purger {
    /// One step. Collections are taken in the order in which they were destroyed.
    ///
    /// # Errors
    /// The database failed. Nothing of the step happened, or all of it.
    pub async fn step(&mut self) -> Result<Purged, PurgeError> {
        let purged = self.step_once().await;
        match &purged {
            Ok(_) | Err(PurgeError::Collection { .. }) => return purged,
            Err(_) => {}
        }
        self.candidates.clear();
        self.alone = 0;
        self.erased.clear();
        self.rewriter.forget();
        self.cursor = None;
        let is_sqlite = self.database.pool.get_database_backend() == DbBackend::Sqlite;
        match &purged {
            Err(PurgeError::Database(error)) if is_sqlite && Failure::from(error) == Failure::Unavailable => {
                Ok(Purged { is_pass_complete: true, wait: Some(PurgeWait::Busy), ..Purged::default() })
            }
            _ => {
                self.connection.discard();
                purged
            }
        }
    }

    async fn step_once(&mut self) -> Result<Purged, PurgeError> {
        let has_candidates = timeout(purge::QUEUE_BOUND, self.has_candidates());
        let has_candidates = has_candidates.await.map_err(|_elapsed| PurgeError::Timeout)??;
        if !self.erased.is_empty() && (!has_candidates || self.erased.len() >= purge::ERASED) {
            match self.rewriter.finish(&self.database, &self.erased).await? {
                Ok(collections) => {
                    self.erased.clear();
                    return Ok(Purged { collections, ..Purged::default() });
                }
                // The cursor stays: what is before it is erased.
                Err(wait) if !has_candidates => {
                    return Ok(Purged { is_pass_complete: true, wait: Some(wait), ..Purged::default() });
                }
                Err(_wait) => {}
            }
        }
        if !has_candidates {
            self.cursor = None;
            return Ok(Purged { is_pass_complete: true, ..Purged::default() });
        }
        // A large collection is erased alone: the others would be locked for each of its chunks.
        let is_begun = self.candidates.front().is_some_and(|first| first.position > i64::MIN);
        let count =
            if is_begun || self.alone > 0 { 1 } else { self.candidates.len().min(self.batch as usize) };
        self.alone = self.alone.saturating_sub(1);
        let candidates: Vec<Candidate> = self.candidates.drain(..count).collect();
        let chunk = timeout(purge::STEP_BOUND, self.erase_chunk(&candidates));
        match chunk.await.map_err(|_elapsed| PurgeError::Timeout)? {
            Ok(chunk) => Ok(self.record(chunk)),
            Err(error) => self.separate(error, candidates),
        }
    }

    async fn erase_chunk(&mut self, candidates: &[Candidate]) -> Result<Chunk, DbErr> {
        let ready = self.connection.ready().await?;
        let timer = self.database.metrics.start(DatabaseOperation::Purge);
        let erased = match ready {
            Ready::Postgres(connection) => postgres::erase(connection, candidates, self.batch).await,
            Ready::Sqlite(transaction, file) => {
                sqlite::erase(transaction, file, candidates, self.batch).await
            }
        };
        timer.finish(error_type(&erased));
        erased
    }

    fn record(&mut self, chunk: Chunk) -> Purged {
        // Of more than these the ids are not kept. Their rows are read again once the file is rewritten.
        let kept = purge::ERASED.saturating_sub(self.erased.len());
        self.erased.extend(chunk.erased.iter().take(kept));
        for candidate in chunk.unfinished.into_iter().rev() {
            self.candidates.push_front(candidate);
        }
        Purged { entries: chunk.entries, collections: chunk.finished, ..Purged::default() }
    }

    /// After an error that one collection may have caused, erases one at a time. The one that fails again is left to the next pass.
    fn separate(&mut self, error: DbErr, candidates: Vec<Candidate>) -> Result<Purged, PurgeError> {
        let failure = Failure::from(&error);
        if !matches!(failure, Failure::Conflict | Failure::Locked | Failure::Rejected) {
            return Err(error.into());
        }
        match *candidates.as_slice() {
            [_] if failure != Failure::Rejected => Ok(Purged { locked: 1, ..Purged::default() }),
            [Candidate { id, .. }] => Err(PurgeError::Collection { id, error }),
            _ => {
                self.alone = candidates.len();
                for candidate in candidates.into_iter().rev() {
                    self.candidates.push_front(candidate);
                }
                Ok(Purged::default())
            }
        }
    }

    /// Reads the next rows of the queue where none is left of those that were read. They are many, because there is no index of
    /// them by age, and each reading takes as long as the queue is. `false` at its end.
    async fn has_candidates(&mut self) -> Result<bool, DbErr> {
        if !self.candidates.is_empty() {
            return Ok(true);
        }
        let rows = if self.database.pool.get_database_backend() == DbBackend::Sqlite {
            sqlite::read_queue(&self.database.pool, self.cursor).await?
        } else {
            match self.connection.ready().await? {
                Ready::Postgres(connection) => postgres::read_queue(connection, self.cursor).await?,
                Ready::Sqlite(..) => Vec::new(),
            }
        };
        self.cursor = rows.last().map(|(id, since)| (*since, *id)).or(self.cursor);
        self.candidates = rows.into_iter().map(|(id, _)| Candidate { id, position: i64::MIN }).collect();
        Ok(!self.candidates.is_empty())
    }
}

impl fmt::Debug for Purger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Purger").field("batch", &self.batch).finish_non_exhaustive()
    }
}
