//! The purge: erases the entries of destroyed collections, and then their rows in `purge_queue`. One step is bounded, and is
//! repeated after a crash. Any number of processes may purge one database: on PostgreSQL they skip the rows that another
//! one has locked, on SQLite they take turns.

mod postgres;
mod sqlite;

use std::{collections::VecDeque, fmt};

use chrono::{DateTime, Utc};
use sea_orm::{DbErr, FromQueryResult, Statement};
use tokio::time::timeout;

use super::{
    Store,
    connect::Database,
    destroy::{BatchConnection, Kind, Ready},
    failure::message,
};
use crate::config::store;

/// Why a step failed. It can be repeated. The text may be shown to an operator, never to a client.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error("the database failed: {}", message(.0))]
    Database(#[from] DbErr),
    #[error("the database did not answer in time")]
    Timeout,
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Entries that were erased.
    pub entries: u64,
    /// Collections of which no entry is left, and whose row in the queue was deleted.
    pub collections: u64,
    /// The end of the queue was reached: the next step begins with the oldest row again.
    pub is_pass_complete: bool,
    /// Why rows stay in the queue although their entries are erased.
    pub wait: Option<PurgeWait>,
}

/// Why erased rows are still in the files of SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgeWait {
    /// The file was rewritten a short time ago.
    Interval,
    /// Another process uses the file, so that it could not be rewritten, or its write-ahead log not be emptied.
    Busy,
    /// The file is too large to be rewritten while destroys wait.
    TooLarge,
}

/// How many rows are in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromQueryResult)]
pub struct PurgeBacklog {
    pub purgeable: i64,
    /// Of ids that have no tombstone, or a row in `collections`: nothing is erased for them.
    pub blocked: i64,
}

/// Erases step by step, over a connection of its own.
pub struct Purger {
    database: Database,
    connection: BatchConnection,
    /// Entries and collections of one step.
    batch: u32,
    /// Read from the queue, and not finished yet.
    candidates: VecDeque<Candidate>,
    /// The last row that was read from the queue.
    cursor: Option<(DateTime<Utc>, i64)>,
    /// SQLite: whose entries are erased, and perhaps still in the file.
    erased: Vec<i64>,
    rewriter: sqlite::Rewriter,
}

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

impl Store {
    /// Erases at most `batch` entries of at most `batch` collections in a step. An SQLite file is rewritten whatever its size,
    /// if destroys may wait for that.
    #[must_use]
    pub fn purger(&self, batch: u32, destroys_may_wait: bool) -> Purger {
        Purger {
            database: self.database.clone(),
            connection: BatchConnection::new(&self.database, Kind::Dedicated),
            batch,
            candidates: VecDeque::new(),
            cursor: None,
            erased: Vec::new(),
            rewriter: sqlite::Rewriter::new(destroys_may_wait),
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
        let purged = self.step_or_rewrite().await;
        if purged.is_err() {
            self.connection.discard();
            self.candidates.clear();
            self.erased.clear();
            self.cursor = None;
        }
        purged
    }

    async fn step_or_rewrite(&mut self) -> Result<Purged, PurgeError> {
        let read = timeout(store::STATEMENT_BOUND, self.has_candidates());
        let is_pass_complete = !read.await.map_err(|_elapsed| PurgeError::Timeout)??;
        let is_rewrite_due = is_pass_complete || self.erased.len() >= store::PURGE_ERASED;
        if is_rewrite_due && !self.erased.is_empty() {
            let erased = std::mem::take(&mut self.erased);
            let (collections, wait) = match self.rewriter.finish(&self.database, &erased).await? {
                Ok(finished) => (finished, None),
                Err(wait) => (0, Some(wait)),
            };
            return Ok(Purged { collections, wait, is_pass_complete, ..Purged::default() });
        }
        if is_pass_complete {
            return Ok(Purged { is_pass_complete, ..Purged::default() });
        }
        let step = timeout(store::STATEMENT_BOUND, self.erase_chunk());
        Ok(step.await.map_err(|_elapsed| PurgeError::Timeout)??)
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
        self.erased.extend(chunk.erased);
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
        let rows = match self.connection.ready().await? {
            Ready::Postgres(connection) => postgres::read_queue(connection, self.cursor).await?,
            Ready::Sqlite(transaction, _) => sqlite::read_queue(transaction, self.cursor).await?,
        };
        self.cursor = rows.last().map(|(id, since)| (*since, *id));
        self.candidates = rows.into_iter().map(|(id, _)| Candidate { id, position: i64::MIN }).collect();
        Ok(!self.candidates.is_empty())
    }
}

impl fmt::Debug for Purger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Purger").field("batch", &self.batch).finish_non_exhaustive()
    }
}
