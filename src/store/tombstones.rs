//! Reads tombstones in the order of their ids, and applies them to a database that was restored from a backup: what they
//! name is destroyed again, with the time and the request of the first time.

mod statements;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, Statement, Value,
};
use tokio::time::{sleep, timeout};

use super::{
    Store,
    entities::destroyed_collection,
    failure::{Failure, message},
    transaction::begin_write,
};
use crate::{
    config::tombstones as limits,
    domain::{CollectionId, RequestId, UserId},
};
pub(super) use statements::INSERT_LOCK;
use statements::Statements;

/// The record of one destroy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub id: CollectionId,
    pub owner: UserId,
    pub destroyed_at: DateTime<Utc>,
    pub request_id: Option<RequestId>,
    pub caller: Option<String>,
}

/// What became of a batch of tombstones.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Collections that were live, and were destroyed.
    pub destroyed: u64,
    /// Tombstones that were missing, of collections that were not live.
    pub recorded: u64,
    /// Tombstones that existed already, of collections that were not live.
    pub existing: u64,
    /// Purges that were queued.
    pub queued: u64,
    /// Ids that belong to another owner in the database. Nothing was changed under them.
    pub mismatches: Vec<OwnerMismatch>,
}

/// An id whose owner in the database is not the one in its tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerMismatch {
    pub id: CollectionId,
    /// The owner in the tombstone that was to be applied.
    pub in_file: UserId,
    pub in_database: UserId,
}

/// Why tombstones were not read or not applied.
#[derive(Debug, thiserror::Error)]
pub enum TombstoneError {
    #[error("the database failed: {}", message(.0))]
    Database(#[from] DbErr),
    #[error("the database did not answer within {} s", limits::BATCH_BOUND.as_secs())]
    Timeout,
    #[error("{0} was given to another owner during the command; run the command again")]
    OwnerChanged(CollectionId),
}

impl Store {
    /// Reads up to `limit` tombstones with ids after this one, lowest id first. What is destroyed between two calls may be
    /// missing.
    ///
    /// # Errors
    /// The database failed or was too slow, also when asked again.
    pub async fn tombstones_after(
        &self,
        after: Option<CollectionId>,
        limit: u64,
    ) -> Result<Vec<Tombstone>, TombstoneError> {
        // Negative ids are a rehearsal's.
        let after = after.map_or(0, CollectionId::get);
        let read = async || {
            let rows = destroyed_collection::Entity::find()
                .filter(destroyed_collection::Column::Id.gt(after))
                .order_by_asc(destroyed_collection::Column::Id)
                .limit(limit)
                .all(&self.db);
            Ok(rows.await?.into_iter().map(Tombstone::from).collect())
        };
        retry(read).await
    }

    /// Applies a batch of tombstones, whose ids are ascending, in one transaction: live collections are deleted, missing
    /// tombstones are written, and purges are queued. Nothing is published. Applied again, it changes nothing.
    ///
    /// # Errors
    /// The database failed or was too slow, also when the batch was run again. Nothing of it was applied, or, where the
    /// connection was lost during the commit, all of it.
    pub async fn apply_tombstones(&self, batch: &[Tombstone]) -> Result<Applied, TombstoneError> {
        retry(async || self.apply_once(batch).await).await
    }

    /// The pause after a batch that took this long. SQLite has one writer, and without pauses the destroys of a service would
    /// wait for it until all is applied.
    #[must_use]
    pub fn pause_after_batch(&self, took: Duration) -> Duration {
        if self.backend() == DbBackend::Sqlite { took } else { Duration::ZERO }
    }

    async fn apply_once(&self, batch: &[Tombstone]) -> Result<Applied, TombstoneError> {
        let apply =
            Apply { transaction: self.begin_apply().await?, statements: Statements::of(self.backend()) };
        let mismatches = apply.mismatches(batch).await?;
        let skipped: HashSet<CollectionId> = mismatches.iter().map(|mismatch| mismatch.id).collect();
        let batch: Vec<&Tombstone> =
            batch.iter().filter(|tombstone| !skipped.contains(&tombstone.id)).collect();
        // The row first and the tombstone second, as a destroy does.
        let deleted = apply.delete(&batch).await?;
        let written = apply.ids(apply.statements.record, records(&batch)).await?;
        let is_new = |id: i64| deleted.contains(&id) || written.contains(&id);
        let existing: Vec<i64> = numbers(&batch).filter(|id| !is_new(*id)).collect();
        let unpurged = apply.unpurged(&existing).await?;
        let to_purge: Vec<&Tombstone> = batch
            .iter()
            .copied()
            .filter(|tombstone| is_new(tombstone.id.get()) || unpurged.contains(&tombstone.id.get()))
            .collect();
        let queued = apply.ids(apply.statements.queue, records(&to_purge)).await?;
        apply.transaction.commit().await?;
        Ok(Applied {
            destroyed: deleted.len() as u64,
            recorded: written.difference(&deleted).count() as u64,
            existing: existing.len() as u64,
            queued: queued.len() as u64,
            mismatches,
        })
    }

    async fn begin_apply(&self) -> Result<DatabaseTransaction, DbErr> {
        let transaction = begin_write(&self.db).await?;
        if self.backend() == DbBackend::Sqlite {
            return Ok(transaction);
        }
        let wait = format!("SET LOCAL lock_timeout = {}", limits::LOCK_TIMEOUT.as_millis());
        transaction.execute_unprepared(&wait).await?;
        transaction.execute_unprepared(statements::SETTINGS).await?;
        Ok(transaction)
    }
}

impl From<destroyed_collection::Model> for Tombstone {
    fn from(row: destroyed_collection::Model) -> Self {
        Self {
            id: row.id,
            owner: row.owner_id,
            destroyed_at: row.destroyed_at,
            request_id: row.request_id.map(RequestId::from),
            caller: row.caller,
        }
    }
}

/// A batch that is being applied.
struct Apply {
    transaction: DatabaseTransaction,
    statements: Statements,
}

impl Apply {
    /// The ids of the batch that are live or destroyed under another owner, in order.
    async fn mismatches(&self, batch: &[Tombstone]) -> Result<Vec<OwnerMismatch>, DbErr> {
        let tombstones: HashMap<i64, &Tombstone> =
            batch.iter().map(|tombstone| (tombstone.id.get(), tombstone)).collect();
        let ids: Vec<i64> = batch.iter().map(|tombstone| tombstone.id.get()).collect();
        let mut found = Vec::new();
        for statement in [self.statements.live, self.statements.existing] {
            for (id, in_database) in self.owners(statement, self.array(&ids)).await? {
                let Some(tombstone) = tombstones.get(&id) else { continue };
                let in_file = tombstone.owner;
                if in_file != in_database {
                    found.push(OwnerMismatch { id: tombstone.id, in_file, in_database });
                }
            }
        }
        found.sort_by_key(|mismatch| mismatch.id);
        found.dedup_by_key(|mismatch| mismatch.id);
        Ok(found)
    }

    /// Deletes the live collections of the batch, and returns their ids.
    async fn delete(&self, batch: &[&Tombstone]) -> Result<HashSet<i64>, TombstoneError> {
        let owners: HashMap<i64, &Tombstone> =
            batch.iter().map(|tombstone| (tombstone.id.get(), *tombstone)).collect();
        let ids: Vec<i64> = numbers(batch).collect();
        let deleted = self.owners(self.statements.delete, self.array(&ids)).await?;
        for (id, owner) in &deleted {
            if let Some(tombstone) = owners.get(id).filter(|tombstone| tombstone.owner != *owner) {
                // The transaction is rolled back when it is dropped.
                return Err(TombstoneError::OwnerChanged(tombstone.id));
            }
        }
        Ok(deleted.into_iter().map(|(id, _)| id).collect())
    }

    /// Those of these destroyed collections that have entries and are not in the queue.
    async fn unpurged(&self, existing: &[i64]) -> Result<HashSet<i64>, DbErr> {
        if existing.is_empty() {
            return Ok(HashSet::new());
        }
        // Without those that are queued, of which one may have a million entries.
        let queued = self.ids(self.statements.queued, self.array(existing)).await?;
        let others: Vec<i64> = existing.iter().copied().filter(|id| !queued.contains(id)).collect();
        self.ids(self.statements.with_entries, self.array(&others)).await
    }

    async fn ids(&self, statement: &'static str, parameter: Value) -> Result<HashSet<i64>, DbErr> {
        let rows = self.transaction.query_all_raw(self.statement(statement, parameter)).await?;
        rows.iter().map(|row| row.try_get("", "id")).collect()
    }

    async fn owners(&self, statement: &'static str, parameter: Value) -> Result<Vec<(i64, UserId)>, DbErr> {
        let rows = self.transaction.query_all_raw(self.statement(statement, parameter)).await?;
        rows.iter().map(|row| Ok((row.try_get("", "id")?, row.try_get("", "owner_id")?))).collect()
    }

    fn statement(&self, sql: &'static str, parameter: Value) -> Statement {
        Statement::from_sql_and_values(self.transaction.get_database_backend(), sql, [parameter])
    }

    fn array(&self, ids: &[i64]) -> Value {
        statements::array(self.transaction.get_database_backend(), ids)
    }
}

fn numbers(batch: &[&Tombstone]) -> impl Iterator<Item = i64> {
    batch.iter().map(|tombstone| tombstone.id.get())
}

/// The batch as one JSON text, because an array of sea-query cannot hold NULL. The time is written as sqlx writes it on
/// SQLite, where it is a text.
fn records(batch: &[&Tombstone]) -> Value {
    let records = batch.iter().map(|tombstone| {
        serde_json::json!({
            "id": tombstone.id.get(),
            "owner_id": tombstone.owner.get(),
            "destroyed_at": tombstone.destroyed_at.to_rfc3339_opts(SecondsFormat::AutoSi, false),
            "request_id": tombstone.request_id.map(|request_id| request_id.get().simple().to_string()),
            "caller": tombstone.caller,
        })
    });
    serde_json::Value::from_iter(records).to_string().into()
}

/// Runs a step again after a temporary failure.
async fn retry<T>(step: impl AsyncFn() -> Result<T, TombstoneError>) -> Result<T, TombstoneError> {
    let mut pause = limits::RETRY_PAUSE;
    for _ in 1..limits::ATTEMPTS {
        match bounded(&step).await {
            Err(TombstoneError::Database(error)) if is_temporary(&error) => {
                sleep(pause).await;
                pause = (pause * 2).min(limits::LONGEST_RETRY_PAUSE);
            }
            outcome => return outcome,
        }
    }
    bounded(&step).await
}

async fn bounded<T>(step: &impl AsyncFn() -> Result<T, TombstoneError>) -> Result<T, TombstoneError> {
    let bound: Duration = limits::BATCH_BOUND;
    timeout(bound, step()).await.unwrap_or(Err(TombstoneError::Timeout))
}

fn is_temporary(error: &DbErr) -> bool {
    match Failure::from(error) {
        Failure::Conflict
        | Failure::Locked
        | Failure::Unavailable
        | Failure::Unprepared
        // An answer that belongs to another statement, from a pooler that moves connections.
        | Failure::Misread => true,
        Failure::Duplicate | Failure::Unusable | Failure::Rejected => false,
    }
}
