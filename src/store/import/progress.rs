//! The progress row of an import, and its transactions.

use std::{io, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr,
    EntityTrait, IntoActiveModel, QueryFilter, QuerySelect, sea_query::OnConflict,
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Attempts, CollectionToImport, ImportError, ImportOutcome, batch, statements};
use crate::{
    config,
    store::{Store, entities::import, tombstones::INSERT_LOCK, transaction::begin_write},
};

/// How far an import has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportProgress {
    /// Where the next line begins, in bytes of the decompressed input.
    pub byte_offset: u64,
    /// Lines before that.
    pub line: u64,
    /// Collections.
    pub imported: u64,
    /// Entries of those.
    pub entries: u64,
    /// Collections that were there already, and identical.
    pub existing: u64,
    pub rejected: u64,
    /// The length of the rejects file.
    pub rejects_bytes: u64,
}

/// An import that has begun, and whose progress is stored under its name. Of several processes that import under one name
/// the latest to begin goes on; the others fail at their next batch.
pub struct Import {
    store: Store,
    name: String,
    run_id: Uuid,
    started_at: DateTime<Utc>,
    progress: ImportProgress,
    discarded: Option<ImportProgress>,
}

impl Store {
    /// Begins an import, or, with `resume`, continues an unfinished one of this name where there is one. Without it the
    /// progress of such an import is discarded.
    ///
    /// # Errors
    /// The unfinished import had another input, or the database failed.
    pub async fn begin_import(
        &self,
        name: &str,
        head_sha256: &str,
        resume: bool,
    ) -> Result<Import, ImportError> {
        let run_id = uuid::Builder::from_random_bytes(self.entropy.bytes()).into_uuid();
        let now = self.clock.now();
        // What PostgreSQL stores of a time.
        let now = DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now);
        let new = import::Model {
            name: name.to_owned(),
            run_id,
            head_sha256: head_sha256.to_owned(),
            started_at: now,
            updated_at: now,
            byte_offset: 0,
            line: 0,
            imported: 0,
            entries: 0,
            existing: 0,
            rejected: 0,
            rejects_bytes: 0,
        };
        let mut attempts = Attempts::default();
        loop {
            let begun = timeout(config::import::TRANSACTION_TIMEOUT, self.claim_import(&new, resume)).await;
            match begun.unwrap_or(Err(ImportError::Timeout)) {
                Ok((row, discarded)) => {
                    let (started_at, progress) = (row.started_at, ImportProgress::of(&row));
                    let (store, name) = (self.clone(), row.name);
                    return Ok(Import { store, name, run_id, started_at, progress, discarded });
                }
                Err(error) => attempts.back_off(error).await?,
            }
        }
    }

    /// Assigns the progress row to this run, and returns it with the progress that was discarded. Can be retried after an
    /// unknown outcome.
    async fn claim_import(
        &self,
        new: &import::Model,
        resume: bool,
    ) -> Result<(import::Model, Option<ImportProgress>), ImportError> {
        let transaction = self.begin_import_transaction().await?;
        let found = find_row(&transaction, &new.name).await?;
        let (continued, discarded) = if resume { (found, None) } else { (None, found) };
        let row = if let Some(found) = continued {
            if found.head_sha256 != new.head_sha256 {
                return Err(ImportError::OtherInput);
            }
            let mut row = found.into_active_model();
            row.run_id = Set(new.run_id);
            row.updated_at = Set(new.updated_at);
            row.update(&transaction).await?
        } else {
            use import::Column as C;
            let all = [
                C::RunId,
                C::HeadSha256,
                C::StartedAt,
                C::UpdatedAt,
                C::ByteOffset,
                C::Line,
                C::Imported,
                C::Entries,
                C::Existing,
                C::Rejected,
                C::RejectsBytes,
            ];
            let replace = OnConflict::column(C::Name).update_columns(all).to_owned();
            let insert = import::Entity::insert(new.clone().into_active_model()).on_conflict(replace);
            insert.exec_without_returning(&transaction).await?;
            new.clone()
        };
        transaction.commit().await?;
        let discarded = discarded.filter(|row| row.run_id != new.run_id && row.line > 0);
        Ok((row, discarded.as_ref().map(ImportProgress::of)))
    }

    /// On PostgreSQL plans use indexes and are made for each statement's values: a cached plan that was made while the tables
    /// are small would be used while the import fills them.
    async fn begin_import_transaction(&self) -> Result<DatabaseTransaction, DbErr> {
        let transaction = begin_write(&self.db).await?;
        if self.backend() == DbBackend::Sqlite {
            return Ok(transaction);
        }
        let lock_timeout = format!("SET LOCAL lock_timeout = {}", config::import::LOCK_TIMEOUT.as_millis());
        transaction.execute_unprepared(&lock_timeout).await?;
        transaction.execute_unprepared(INSERT_LOCK).await?;
        transaction.execute_unprepared(statements::PLANS).await?;
        Ok(transaction)
    }
}

impl Import {
    /// What has been committed.
    #[must_use]
    pub fn progress(&self) -> &ImportProgress {
        &self.progress
    }

    /// The progress of an unfinished import of the same name, which this one replaced.
    #[must_use]
    pub fn discarded(&self) -> Option<&ImportProgress> {
        self.discarded.as_ref()
    }

    /// Imports these collections, no id twice, and moves the progress on, in one transaction. `record` gets the progress
    /// before the batch and an outcome for each collection, and returns the progress after it; it is called just before the
    /// commit, and again where the batch has to be run again.
    ///
    /// # Errors
    /// Nothing of this batch is in the database; or, where the database stayed unavailable, all of it may be. The same holds
    /// where the future is dropped.
    pub async fn run(
        &mut self,
        collections: &[&CollectionToImport],
        mut record: impl FnMut(&ImportProgress, &[ImportOutcome]) -> io::Result<ImportProgress>,
    ) -> Result<(), ImportError> {
        let mut attempts = Attempts::default();
        loop {
            let attempt = self.attempt(collections, &mut record);
            let attempt = timeout(config::import::TRANSACTION_TIMEOUT, attempt).await;
            match attempt.unwrap_or(Err(ImportError::Timeout)) {
                Ok(progress) => {
                    self.progress = progress;
                    return Ok(());
                }
                Err(error) => attempts.back_off(error).await?,
            }
        }
    }

    async fn attempt(
        &self,
        collections: &[&CollectionToImport],
        record: &mut impl FnMut(&ImportProgress, &[ImportOutcome]) -> io::Result<ImportProgress>,
    ) -> Result<ImportProgress, ImportError> {
        let transaction = self.store.begin_import_transaction().await?;
        // Waits for a transaction of this run whose outcome is unknown, so that what is read is final.
        let row = find_row(&transaction, &self.name).await?;
        let row = row.filter(|row| row.run_id == self.run_id).ok_or(ImportError::Superseded)?;
        let stored = ImportProgress::of(&row);
        if stored.byte_offset != self.progress.byte_offset {
            // That transaction was committed.
            return Ok(stored);
        }
        let outcomes = batch::import_batch(&transaction, collections, self.started_at).await?;
        let progress = record(&self.progress, &outcomes).map_err(ImportError::Rejects)?;
        let mut row = row.into_active_model();
        row.updated_at = Set(self.store.clock.now());
        row.byte_offset = Set(progress.byte_offset.cast_signed());
        row.line = Set(progress.line.cast_signed());
        row.imported = Set(progress.imported.cast_signed());
        row.entries = Set(progress.entries.cast_signed());
        row.existing = Set(progress.existing.cast_signed());
        row.rejected = Set(progress.rejected.cast_signed());
        row.rejects_bytes = Set(progress.rejects_bytes.cast_signed());
        row.update(&transaction).await?;
        transaction.commit().await?;
        Ok(progress)
    }

    /// The pause after a batch that took this long. SQLite's write lock is not fair: without pauses, the destroys of a
    /// running service would time out. Other databases need none.
    #[must_use]
    pub fn pause_after(&self, batch: Duration) -> Duration {
        match self.store.backend() {
            DbBackend::Sqlite => batch.min(config::import::LONGEST_SQLITE_PAUSE),
            _ => Duration::ZERO,
        }
    }

    /// Deletes the progress: the import is finished.
    ///
    /// # Errors
    /// The database failed.
    pub async fn finish(self) -> Result<ImportProgress, ImportError> {
        let mut attempts = Attempts::default();
        loop {
            let delete = import::Entity::delete_many()
                .filter(import::Column::Name.eq(&self.name))
                .filter(import::Column::RunId.eq(self.run_id));
            let deleted = timeout(config::import::TRANSACTION_TIMEOUT, delete.exec(&self.store.db)).await;
            match deleted.map_or(Err(ImportError::Timeout), |deleted| deleted.map_err(ImportError::from)) {
                Ok(_count) => return Ok(self.progress),
                Err(error) => attempts.back_off(error).await?,
            }
        }
    }
}

impl ImportProgress {
    fn of(row: &import::Model) -> Self {
        Self {
            byte_offset: row.byte_offset.cast_unsigned(),
            line: row.line.cast_unsigned(),
            imported: row.imported.cast_unsigned(),
            entries: row.entries.cast_unsigned(),
            existing: row.existing.cast_unsigned(),
            rejected: row.rejected.cast_unsigned(),
            rejects_bytes: row.rejects_bytes.cast_unsigned(),
        }
    }
}

/// The progress row, locked until the transaction ends.
async fn find_row(transaction: &DatabaseTransaction, name: &str) -> Result<Option<import::Model>, DbErr> {
    import::Entity::find_by_id(name.to_owned()).lock_exclusive().one(transaction).await
}
