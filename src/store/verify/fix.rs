//! The repairs of `verify --fix`. Each is correct whatever has happened to the id since it was found.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, Value};

use super::{Inconsistency, VerifyError};
use crate::{
    config::verify,
    store::{Store, transaction::begin_write},
};

/// Waits for a destroy of the collection in flight, and keeps the next one waiting. The statement after it then sees the
/// tombstone and the queue row that the first one left.
const LOCK_COLLECTION: &str = "SELECT id FROM collections WHERE id = $1 FOR KEY SHARE";

const DELETE_FROM_PURGE_QUEUE: &str = "\
DELETE FROM purge_queue WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM destroyed_collections WHERE id = $1)";

const DELETE_FROM_EVENT_OUTBOX: &str = "\
DELETE FROM event_outbox WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM destroyed_collections WHERE id = $1)";

/// `$2` is the time from which the purge counts.
const QUEUE_PURGE: &str = "\
INSERT INTO purge_queue (id, since) SELECT id, $2 FROM destroyed_collections
WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM collections WHERE id = $1) ON CONFLICT (id) DO NOTHING";

/// Inserts a placeholder row, so that a concurrent insert of the id waits until the end of the transaction; one in flight is waited
/// for. Without it an import could insert the collection between the check and the DELETE, and lose entries. `$2` is any time.
const RESERVE: &str = "\
INSERT INTO collections (id, owner_id, name, timeline_order, created_at) VALUES ($1, 1, '', '', $2)
ON CONFLICT (id) DO NOTHING";

const RELEASE: &str = "DELETE FROM collections WHERE id = $1";

/// `$2` is the most entries that are deleted, less one.
const DELETE_ENTRIES: &str = "\
DELETE FROM collection_entries WHERE collection_id = $1 AND tweet_id <= coalesce(
  (SELECT tweet_id FROM collection_entries WHERE collection_id = $1 ORDER BY tweet_id LIMIT 1 OFFSET $2),
  9223372036854775807)";

impl Inconsistency {
    /// Whether [`Store::fix`] repairs it.
    #[must_use]
    pub const fn is_fixable(self) -> bool {
        !matches!(self, Self::LiveAndDestroyed)
    }
}

impl Store {
    /// Repairs findings of one kind by one transaction, and returns how many of the ids, from the first, are done. There may be
    /// none, where an id has more entries than one transaction deletes: the call is repeated with the rest.
    ///
    /// # Errors
    /// The database failed or was too slow.
    pub async fn fix(&self, kind: Inconsistency, ids: &[i64]) -> Result<usize, VerifyError> {
        let ids = ids.get(..verify::FIX_IDS).unwrap_or(ids);
        self.attempt(async || Ok(self.fix_once(kind, ids).await?)).await
    }

    async fn fix_once(&self, kind: Inconsistency, ids: &[i64]) -> Result<usize, DbErr> {
        let transaction = begin_write(&self.db).await?;
        let mut entries = verify::FIX_ENTRIES;
        let mut done = 0;
        for id in ids {
            match kind {
                Inconsistency::PurgeWithoutTombstone => {
                    self.delete_queue_row(&transaction, DELETE_FROM_PURGE_QUEUE, *id).await?;
                }
                Inconsistency::EventWithoutTombstone => {
                    self.delete_queue_row(&transaction, DELETE_FROM_EVENT_OUTBOX, *id).await?;
                }
                Inconsistency::PurgedWithEntries => {
                    let now = self.clock.now().into();
                    transaction.execute_raw(self.statement(QUEUE_PURGE, [(*id).into(), now])).await?;
                }
                Inconsistency::OrphanEntries => {
                    entries = entries.saturating_sub(self.delete_orphans(&transaction, *id, entries).await?);
                    if entries == 0 {
                        // The id may have more of them.
                        break;
                    }
                }
                Inconsistency::LiveAndDestroyed => {}
            }
            done += 1;
        }
        transaction.commit().await?;
        Ok(done)
    }

    async fn delete_queue_row(
        &self,
        transaction: &DatabaseTransaction,
        delete: &'static str,
        id: i64,
    ) -> Result<(), DbErr> {
        if self.backend() == DbBackend::Postgres {
            transaction.query_one_raw(self.statement(LOCK_COLLECTION, [id.into()])).await?;
        }
        transaction.execute_raw(self.statement(delete, [id.into()])).await?;
        Ok(())
    }

    /// Deletes up to so many entries of an id that has no collection, and returns how many.
    async fn delete_orphans(
        &self,
        transaction: &DatabaseTransaction,
        id: i64,
        most: u64,
    ) -> Result<u64, DbErr> {
        let reserve = self.statement(RESERVE, [id.into(), self.clock.now().into()]);
        if transaction.execute_raw(reserve).await?.rows_affected() == 0 {
            return Ok(0);
        }
        let others = i64::try_from(most.saturating_sub(1)).unwrap_or(i64::MAX);
        let delete = self.statement(DELETE_ENTRIES, [id.into(), others.into()]);
        let deleted = transaction.execute_raw(delete).await?.rows_affected();
        transaction.execute_raw(self.statement(RELEASE, [id.into()])).await?;
        Ok(deleted)
    }

    fn statement<const N: usize>(&self, sql: &'static str, values: [Value; N]) -> Statement {
        Statement::from_sql_and_values(self.backend(), sql, values)
    }
}
