//! The purge: erases the entries of destroyed collections, and then their rows in `purge_queue`. One step is bounded, and is
//! repeated after a crash. Any number of processes may purge one database: on PostgreSQL they skip the rows that another
//! one has locked, on SQLite they take turns.

mod postgres;
mod sqlite;

use std::{collections::VecDeque, fmt};

use chrono::{DateTime, Utc};
use sea_orm::{DbBackend, DbErr, FromQueryResult, Statement};
use tokio::time::timeout;

use super::{
    Store,
    connect::Database,
    destroy::{BatchConnection, Kind, Ready},
    failure::{Failure, message},
};
use crate::config::purge;

/// Why a step failed. It can be repeated. The text may be shown to an operator, never to a client.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error("the database failed: {}", message(.0))]
    Database(#[from] DbErr),
    #[error("the database did not answer within {} s", purge::STEP_BOUND.as_secs())]
    Timeout,
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
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Entries that were erased.
    pub entries: u64,
    /// Collections of which no entry is left, and whose row in the queue was deleted.
    pub collections: u64,
    /// The end of the queue was reached, or what is left of it is locked.
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
}

/// Erases step by step, over a connection of its own.
pub struct Purger {
    database: Database,
    connection: BatchConnection,
    batch: u32,
    /// Read from the queue, and not finished yet.
    candidates: VecDeque<Candidate>,
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

const BACKLOG: &str = "\
SELECT count(*) FILTER (WHERE is_purgeable) AS purgeable, count(*) FILTER (WHERE NOT is_purgeable) AS blocked FROM (
  SELECT EXISTS (SELECT 1 FROM destroyed_collections WHERE destroyed_collections.id = purge_queue.id)
    AND NOT EXISTS (SELECT 1 FROM collections WHERE collections.id = purge_queue.id) AS is_purgeable
  FROM purge_queue) AS queued";

impl PurgeLimits {
    /// Of a purge next to a service.
    #[must_use]
    pub const fn background(batch: u32) -> Self {
        let (vacuum_limit, vacuum_pause_factor) = (purge::VACUUM_LIMIT, purge::VACUUM_PAUSE_FACTOR);
        Self { batch, vacuum_limit, vacuum_pause_factor }
    }

    /// Of a purge that an operator waits for: an SQLite file of any size is rewritten.
    #[must_use]
    pub const fn once(batch: u32) -> Self {
        Self { batch, vacuum_limit: u64::MAX, vacuum_pause_factor: 0 }
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
            cursor: None,
            erased: Vec::new(),
            rewriter: sqlite::Rewriter::new(limits),
        }
    }

    /// Counts the rows of the queue, which takes as long as the queue is.
    ///
    /// # Errors
    /// The database failed.
    pub async fn purge_backlog(&self) -> Result<PurgeBacklog, PurgeError> {
        let query = Statement::from_string(self.backend(), BACKLOG);
        Ok(PurgeBacklog::find_by_statement(query).one(&self.db).await?.unwrap_or_default())
    }
}

impl Purger {
    /// One step. Collections are taken in the order in which they were destroyed.
    ///
    /// # Errors
    /// The database failed. Nothing of the step happened, or all of it.
    pub async fn step(&mut self) -> Result<Purged, PurgeError> {
        let error = match self.step_once().await {
            Ok(purged) => return Ok(purged),
            Err(error) => error,
        };
        self.candidates.clear();
        self.erased.clear();
        self.cursor = None;
        let failure = match &error {
            PurgeError::Database(error) => Failure::from(error),
            PurgeError::Timeout => Failure::Misread,
        };
        let is_sqlite = self.database.pool.get_database_backend() == DbBackend::Sqlite;
        match failure {
            // Another transaction was first. What it has locked is left to the next pass.
            Failure::Conflict | Failure::Locked => Ok(Purged { is_pass_complete: true, ..Purged::default() }),
            Failure::Unavailable if is_sqlite => {
                Ok(Purged { is_pass_complete: true, wait: Some(PurgeWait::Busy), ..Purged::default() })
            }
            _ => {
                self.connection.discard();
                Err(error)
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
        let chunk = timeout(purge::STEP_BOUND, self.erase_chunk());
        Ok(chunk.await.map_err(|_elapsed| PurgeError::Timeout)??)
    }

    async fn erase_chunk(&mut self) -> Result<Purged, DbErr> {
        // A large collection is erased alone: the others would be locked for each of its chunks.
        let is_begun = self.candidates.front().is_some_and(|first| first.position > i64::MIN);
        let count = if is_begun { 1 } else { self.candidates.len().min(self.batch as usize) };
        let candidates: Vec<Candidate> = self.candidates.drain(..count).collect();
        let chunk = match self.connection.ready().await? {
            Ready::Postgres(connection) => postgres::erase(connection, &candidates, self.batch).await?,
            Ready::Sqlite(transaction, file) => {
                sqlite::erase(transaction, file, &candidates, self.batch).await?
            }
        };
        // Of more than these the ids are not kept. Their rows are read again once the file is rewritten.
        let kept = purge::ERASED.saturating_sub(self.erased.len());
        self.erased.extend(chunk.erased.iter().take(kept));
        for candidate in chunk.unfinished.into_iter().rev() {
            self.candidates.push_front(candidate);
        }
        Ok(Purged { entries: chunk.entries, collections: chunk.finished, ..Purged::default() })
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
