//! Imports of collections with their entries, batch by batch. The rows of a batch and the progress of the import are one
//! transaction, so that an import that is killed at any moment can be resumed exactly.

mod batch;
mod progress;
mod statements;

use std::{fmt, io};

use chrono::{DateTime, Utc};
use sea_orm::DbErr;
use tokio::time::sleep;

use super::{
    Store,
    failure::{Failure, message},
};
use crate::{
    config,
    domain::{CollectionId, UserId},
};

pub use progress::{Import, ImportProgress};

/// A collection as the input has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectionToImport {
    pub id: CollectionId,
    pub owner: UserId,
    pub name: String,
    pub description: Option<String>,
    pub url: Option<String>,
    pub timeline_order: &'static str,
    /// The start of the import where it is not given.
    pub created_at: Option<DateTime<Utc>>,
    /// No tweet twice.
    pub entries: Vec<EntryToImport>,
}

/// A post in a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryToImport {
    pub tweet_id: i64,
    pub sort_index: i64,
    /// That of the collection where it is not given.
    pub added_at: Option<DateTime<Utc>>,
}

/// What a batch did with one collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportOutcome {
    /// The collection and its entries were inserted.
    Imported,
    /// The collection exists with the same values and entries.
    Existing,
    Refused(Refusal),
}

/// Why a collection was not imported. Nothing of it is in the database because of this import.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the collection was destroyed")]
    Destroyed,
    /// Holds the names of the fields.
    #[error("the collection exists and differs in: {0}")]
    Differs(String),
    #[error(
        "entries without a collection are stored under this id; `collections-service verify --fix` removes them"
    )]
    Orphans,
}

/// Why an import ended early. What was committed stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("the database failed: {}", message(.0))]
    Database(#[from] DbErr),
    #[error("the database did not answer within {} s", config::import::TRANSACTION_TIMEOUT.as_secs())]
    Timeout,
    #[error(
        "a concurrent transaction changed a collection of the batch; gave up after {} attempts",
        config::import::CONFLICT_ATTEMPTS
    )]
    Changed,
    #[error("superseded by a later import of the same name")]
    Superseded,
    #[error("the start of the input differs from that of the unfinished import of this name")]
    OtherInput,
    /// The caller could not write the rejects.
    #[error("the rejects file could not be written: {0}")]
    Rejects(io::Error),
}

impl ImportError {
    fn failure(&self) -> Option<Failure> {
        match self {
            Self::Database(error) => Some(Failure::from(error)),
            Self::Changed => Some(Failure::Conflict),
            Self::Timeout | Self::Superseded | Self::OtherInput | Self::Rejects(_) => None,
        }
    }
}

/// Counts the failed attempts of one transaction.
#[derive(Default)]
struct Attempts {
    conflicts: u32,
    unavailable: u32,
}

impl Attempts {
    /// Waits before the next attempt.
    ///
    /// # Errors
    /// Returns the error itself where it is permanent, or where this was the last attempt.
    async fn back_off(&mut self, error: ImportError) -> Result<(), ImportError> {
        let (count, limit) = match error.failure() {
            // A duplicate key was inserted by a concurrent transaction.
            Some(Failure::Conflict | Failure::Duplicate | Failure::Locked | Failure::Unprepared) => {
                (&mut self.conflicts, config::import::CONFLICT_ATTEMPTS)
            }
            Some(Failure::Unavailable | Failure::Misread) => {
                (&mut self.unavailable, config::import::UNAVAILABLE_ATTEMPTS)
            }
            _ => return Err(error),
        };
        *count += 1;
        if *count >= limit {
            return Err(error);
        }
        tracing::debug!(error = %error, attempt = *count, "import transaction failed; retrying");
        let pause = config::import::RETRY_PAUSE.saturating_mul(1 << (*count - 1).min(16));
        sleep(pause.min(config::import::LONGEST_RETRY_PAUSE)).await;
        Ok(())
    }
}

impl Store {
    /// What [`Import::run`] would do with these collections. Nothing is written.
    ///
    /// # Errors
    /// The database failed, or stayed unavailable.
    pub async fn check_import(
        &self,
        collections: &[&CollectionToImport],
    ) -> Result<Vec<ImportOutcome>, ImportError> {
        let mut attempts = Attempts::default();
        loop {
            let checked = batch::check_batch(&self.db, collections);
            let checked = tokio::time::timeout(config::import::TRANSACTION_TIMEOUT, checked).await;
            match checked.unwrap_or(Err(ImportError::Timeout)) {
                Ok(outcomes) => return Ok(outcomes),
                Err(error) => attempts.back_off(error).await?,
            }
        }
    }
}

impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Import").field("progress", self.progress()).finish_non_exhaustive()
    }
}
