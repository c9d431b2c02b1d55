//! The destroy: one atomic step that deletes the row where id and owner match and leaves the tombstone.

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
    RuntimeErr, TransactionOptions, TransactionTrait, sea_query::OnConflict, sqlx,
};
use tokio::{sync::oneshot, time::Instant};
use tracing::{Instrument, Span, field};

use super::{
    Store,
    entities::{collection, destroyed_collection},
    failure::Failure,
};
use crate::{
    config,
    domain::{CollectionId, DestroyError, RequestId, UserId},
};

/// One destroy, as asked for.
#[derive(Clone, Debug)]
pub struct Destroy {
    pub id: CollectionId,
    pub user: UserId,
    pub request_id: Option<RequestId>,
    /// The service that asks, for the audit trail.
    pub caller: Option<String>,
    /// Past it, the statement is not sent any more.
    pub deadline: Instant,
}

/// How a destroy succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    Now,
    /// An earlier call with the same request id had already done it.
    Before,
}

/// What one run of the statement saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Destroyed,
    Replayed,
    NotOwner,
    NotFound,
    /// The statement's snapshot still shows the user's row, but another call took it meanwhile: look again.
    Overtaken,
    /// The deadline passed before there was a connection, or the write lock: nothing was sent.
    Late,
}

/// Deletes, writes the tombstone and tells the outcome, in one round trip.
///
/// Ownership is decided by the DELETE's own WHERE, under its row lock. The reads after it see the snapshot from before
/// the statement, which can be older than what the DELETE met; that one case is `overtaken`, and a second run, with a
/// fresh snapshot, resolves it. A tombstone that already stands (a row somebody restored by hand) is written over
/// rather than letting it wedge the destroy for ever.
const DESTROY: &str = "\
WITH gone AS (
  DELETE FROM collections WHERE id = $1 AND owner_id = $2 RETURNING id, owner_id
), tombstone AS (
  INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
  SELECT id, owner_id, $3, $4, $5 FROM gone
  ON CONFLICT (id) DO UPDATE SET owner_id = excluded.owner_id, destroyed_at = excluded.destroyed_at,
    request_id = excluded.request_id, caller = excluded.caller, purged_at = NULL, published_at = NULL
  RETURNING id
)
SELECT CASE
  WHEN EXISTS (SELECT 1 FROM tombstone) THEN 'destroyed'
  WHEN EXISTS (SELECT 1 FROM destroyed_collections WHERE id = $1 AND owner_id = $2 AND request_id = $4) THEN 'replayed'
  WHEN EXISTS (SELECT 1 FROM collections WHERE id = $1 AND owner_id = $2) THEN 'overtaken'
  WHEN EXISTS (SELECT 1 FROM collections WHERE id = $1) THEN 'not_owner'
  ELSE 'not_found'
END AS outcome";

impl Destroy {
    fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

impl Store {
    /// Destroys a collection of this user; returns once that is durable.
    ///
    /// The work runs in a task of its own: a caller who stops waiting does not cut a statement in two.
    ///
    /// # Errors
    /// [`DestroyError::NotOwner`], [`DestroyError::NotFound`], [`DestroyError::DeadlineExceeded`] when the statement was
    /// not sent in time, [`DestroyError::Overloaded`] when its turn did not come, [`DestroyError::StoreUnavailable`],
    /// [`DestroyError::Internal`].
    pub async fn destroy(&self, destroy: Destroy) -> Result<Destroyed, DestroyError> {
        let patience = destroy.deadline.min(Instant::now() + config::STORE_WAIT);
        let permit = match tokio::time::timeout_at(patience, self.gate.clone().acquire_owned()).await {
            Ok(permit) => permit.map_err(|_closed| DestroyError::StoreUnavailable)?,
            Err(_elapsed) if destroy.is_late() => return Err(DestroyError::DeadlineExceeded),
            Err(_elapsed) => return Err(DestroyError::Overloaded),
        };
        let store = self.clone();
        let (answer, answered) = oneshot::channel();
        let work = async move {
            let outcome = store.destroy_within_bounds(&destroy).await;
            drop(permit);
            const UNHEARD: &str = "a destroy ended that nobody waited for any more";
            match (answer.send(outcome), outcome) {
                (Ok(()), _) => {}
                (Err(_), Err(error)) if error.is_fault() => tracing::error!(?outcome, "{UNHEARD}"),
                (Err(_), _) => tracing::info!(?outcome, "{UNHEARD}"),
            }
        };
        tokio::spawn(work.in_current_span());
        answered.await.unwrap_or_else(|_died| Err(blame(DestroyError::Internal, "the destroy's task died")))
    }

    /// Runs the step again while the database undoes it, a bounded number of times.
    async fn destroy_within_bounds(&self, destroy: &Destroy) -> Result<Destroyed, DestroyError> {
        for attempt in 1..=config::DESTROY_ATTEMPTS {
            match tokio::time::timeout(config::STORE_BOUND, self.destroy_once(destroy)).await {
                Err(_elapsed) => {
                    return Err(blame(DestroyError::StoreUnavailable, "the database did not answer in time"));
                }
                Ok(Ok(Sight::Destroyed)) => return Ok(Destroyed::Now),
                Ok(Ok(Sight::Replayed)) => return Ok(Destroyed::Before),
                Ok(Ok(Sight::NotOwner)) => return Err(DestroyError::NotOwner),
                Ok(Ok(Sight::NotFound)) => return Err(DestroyError::NotFound),
                Ok(Ok(Sight::Late)) => return Err(DestroyError::DeadlineExceeded),
                Ok(Ok(Sight::Overtaken)) => {}
                Ok(Err(error)) => match Failure::from(&error) {
                    Failure::Conflict => tokio::time::sleep(Duration::from_millis(1 << attempt)).await,
                    Failure::Unavailable => return Err(blame(DestroyError::StoreUnavailable, error)),
                    Failure::Fault => return Err(blame(DestroyError::Internal, error)),
                },
            }
        }
        Err(blame(DestroyError::StoreUnavailable, "the destroy kept colliding with others"))
    }

    async fn destroy_once(&self, destroy: &Destroy) -> Result<Sight, DbErr> {
        match self.backend() {
            DbBackend::Sqlite => self.destroy_on_sqlite(destroy).await,
            _ => self.destroy_on_postgres(destroy).await,
        }
    }

    /// On a connection that sea-orm's pool gives first, because it may have to be made first: sea-orm would send the
    /// statement over it however late it came.
    async fn destroy_on_postgres(&self, destroy: &Destroy) -> Result<Sight, DbErr> {
        let pool = self.db.get_postgres_connection_pool();
        let mut connection = pool.acquire().await.map_err(sqlx_error)?;
        if destroy.is_late() {
            return Ok(Sight::Late);
        }
        let statement = sqlx::query_scalar(DESTROY)
            .bind(destroy.id.get())
            .bind(destroy.user.get())
            .bind(self.clock.now())
            .bind(destroy.request_id.map(RequestId::get))
            .bind(destroy.caller.as_deref());
        let outcome: String = statement.fetch_one(&mut *connection).await.map_err(sqlx_error)?;
        match outcome.as_str() {
            "destroyed" => Ok(Sight::Destroyed),
            "replayed" => Ok(Sight::Replayed),
            "overtaken" => Ok(Sight::Overtaken),
            "not_owner" => Ok(Sight::NotOwner),
            "not_found" => Ok(Sight::NotFound),
            other => Err(unreadable(other)),
        }
    }

    /// SQLite has no DELETE in a WITH. The transaction takes the write lock at once, so nobody can come between.
    async fn destroy_on_sqlite(&self, destroy: &Destroy) -> Result<Sight, DbErr> {
        let immediate = TransactionOptions {
            sqlite_transaction_mode: Some(sea_orm::SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let transaction = self.db.begin_with_options(immediate).await?;
        if destroy.is_late() {
            transaction.rollback().await?;
            return Ok(Sight::Late);
        }
        let gone = collection::Entity::delete_many()
            .filter(collection::Column::Id.eq(destroy.id))
            .filter(collection::Column::OwnerId.eq(destroy.user))
            .exec(&transaction)
            .await?;
        if gone.rows_affected == 0 {
            let sight = why_not(&transaction, destroy).await?;
            transaction.rollback().await?;
            return Ok(sight);
        }
        write_tombstone(&transaction, destroy, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(Sight::Destroyed)
    }
}

async fn write_tombstone(
    transaction: &DatabaseTransaction,
    destroy: &Destroy,
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    use destroyed_collection::{ActiveModel, Column, Entity};
    let tombstone = ActiveModel {
        id: Set(destroy.id),
        owner_id: Set(destroy.user),
        destroyed_at: Set(now),
        request_id: Set(destroy.request_id.map(RequestId::get)),
        caller: Set(destroy.caller.clone()),
        purged_at: Set(None),
        published_at: Set(None),
    };
    let columns = [
        Column::OwnerId,
        Column::DestroyedAt,
        Column::RequestId,
        Column::Caller,
        Column::PurgedAt,
        Column::PublishedAt,
    ];
    Entity::insert(tombstone)
        .on_conflict(OnConflict::column(Column::Id).update_columns(columns).to_owned())
        .exec_without_returning(transaction)
        .await?;
    Ok(())
}

async fn why_not(transaction: &DatabaseTransaction, destroy: &Destroy) -> Result<Sight, DbErr> {
    if collection::Entity::find_by_id(destroy.id).one(transaction).await?.is_some() {
        return Ok(Sight::NotOwner);
    }
    let tombstone = destroyed_collection::Entity::find_by_id(destroy.id).one(transaction).await?;
    let replayed = tombstone.is_some_and(|tombstone| {
        tombstone.owner_id == destroy.user
            && destroy.request_id.is_some()
            && tombstone.request_id == destroy.request_id.map(RequestId::get)
    });
    Ok(if replayed { Sight::Replayed } else { Sight::NotFound })
}

/// Writes the cause on the call's line in the log; the caller is told the failure alone.
fn blame(failure: DestroyError, cause: impl fmt::Display) -> DestroyError {
    Span::current().record("error", field::display(cause));
    failure
}

fn sqlx_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

fn unreadable(outcome: &str) -> DbErr {
    DbErr::Type(format!("the destroy statement answered {outcome:?}"))
}
