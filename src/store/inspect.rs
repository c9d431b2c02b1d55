//! All that the database holds about one id, without what the user wrote.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, Statement};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Store, failure::message};
use crate::{
    config::store,
    domain::{CollectionId, UserId},
};

/// What the tables hold about one id. The parts may contradict each other where rows were written by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    pub live: Option<LiveView>,
    pub destroyed: Option<TombstoneView>,
    /// Since when its entries wait to be purged.
    pub purge_since: Option<DateTime<Utc>>,
    /// Since when its event waits to be published.
    pub event_since: Option<DateTime<Utc>>,
    pub has_entries: bool,
}

/// A collection that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveView {
    pub owner: UserId,
    pub created_at: DateTime<Utc>,
}

/// The tombstone of a destroyed collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TombstoneView {
    pub owner: UserId,
    pub destroyed_at: DateTime<Utc>,
    pub request_id: Option<Uuid>,
    /// The service that asked for it, where one is known.
    pub caller: Option<String>,
}

/// Why an id could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("the database failed: {}", message(.0))]
    Database(#[from] DbErr),
    #[error("the database did not answer in time: is it up, and is its address right?")]
    Timeout,
}

/// One snapshot of all tables. Each is restricted by the id, so that a distributed engine runs it on one node.
const INSPECT: &str = "\
SELECT live.owner_id AS live_owner, live.created_at,
  tombstone.owner_id AS tombstone_owner, tombstone.destroyed_at, tombstone.request_id, tombstone.caller,
  queued.since AS purge_since, pending.since AS event_since,
  (SELECT min(tweet_id) FROM collection_entries WHERE collection_id = $1) AS entry
FROM (SELECT 1 AS one) AS one
LEFT JOIN collections AS live ON live.id = $1
LEFT JOIN destroyed_collections AS tombstone ON tombstone.id = $1
LEFT JOIN purge_queue AS queued ON queued.id = $1
LEFT JOIN event_outbox AS pending ON pending.id = $1";

#[derive(Debug, FromQueryResult)]
struct Row {
    live_owner: Option<UserId>,
    created_at: Option<DateTime<Utc>>,
    tombstone_owner: Option<UserId>,
    destroyed_at: Option<DateTime<Utc>>,
    request_id: Option<Uuid>,
    caller: Option<String>,
    purge_since: Option<DateTime<Utc>>,
    event_since: Option<DateTime<Utc>>,
    entry: Option<i64>,
}

impl Inspected {
    /// Whether the rows contradict each other in a way that `verify` finds.
    #[must_use]
    pub const fn is_inconsistent(&self) -> bool {
        match (&self.live, &self.destroyed) {
            (Some(_), Some(_)) => true,
            (Some(_), None) => self.is_queued(),
            (None, Some(_)) => self.has_entries && self.purge_since.is_none(),
            (None, None) => self.is_queued() || self.has_entries,
        }
    }

    const fn is_queued(&self) -> bool {
        self.purge_since.is_some() || self.event_since.is_some()
    }
}

impl Store {
    /// Reads what the tables hold about an id.
    ///
    /// # Errors
    /// The database failed or was too slow.
    pub async fn inspect(&self, id: CollectionId) -> Result<Inspected, InspectError> {
        let statement = Statement::from_sql_and_values(self.backend(), INSPECT, [id.into()]);
        let row = timeout(store::STATEMENT_BOUND, self.db.query_one_raw(statement)).await;
        let row = row.map_err(|_elapsed| InspectError::Timeout)??;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("a join has one row".to_owned()))?;
        let row = Row::from_query_result(&row, "")?;
        let live =
            row.live_owner.zip(row.created_at).map(|(owner, created_at)| LiveView { owner, created_at });
        let (request_id, caller) = (row.request_id, row.caller);
        let destroyed = row
            .tombstone_owner
            .zip(row.destroyed_at)
            .map(|(owner, destroyed_at)| TombstoneView { owner, destroyed_at, request_id, caller });
        let (purge_since, event_since) = (row.purge_since, row.event_since);
        Ok(Inspected { live, destroyed, purge_since, event_since, has_entries: row.entry.is_some() })
    }
}
