//! Inserts the collections of the demo. An id that was ever destroyed stays unusable.

use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, sea_query::OnConflict,
};

use super::{
    Store,
    entities::{collection, collection_entry, destroyed_collection},
    tombstones::INSERT_LOCK,
    transaction::begin_write,
};
use crate::domain::{CollectionId, UserId};

/// A collection to put in.
#[derive(Clone, Debug)]
pub struct NewCollection {
    pub id: CollectionId,
    pub owner: UserId,
    pub name: String,
    /// The posts in it, in order.
    pub entries: Vec<i64>,
}

/// Why a collection could not be put in.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error("the database failed: {0}")]
    Database(#[from] DbErr),
}

impl Store {
    /// Puts a collection in; `false` when its id is in use or was ever destroyed.
    ///
    /// The insert comes first and the look for a tombstone second, in one transaction: the insert waits for a destroy of
    /// the same id in flight, and only a statement begun after that wait can see the tombstone it left.
    ///
    /// # Errors
    /// The database failed; nothing was put in.
    pub async fn insert_collection(&self, new: NewCollection) -> Result<bool, SeedError> {
        let transaction = begin_write(&self.db).await?;
        if self.backend() == DbBackend::Postgres {
            transaction.execute_unprepared(INSERT_LOCK).await?;
        }
        let model = collection::ActiveModel {
            id: Set(new.id),
            owner_id: Set(new.owner),
            name: Set(new.name),
            description: Set(None),
            url: Set(None),
            timeline_order: Set("curation_reverse_chron".to_owned()),
            created_at: Set(self.clock.now()),
        };
        let inserted = collection::Entity::insert(model)
            .on_conflict(OnConflict::column(collection::Column::Id).do_nothing().to_owned())
            .exec_without_returning(&transaction)
            .await?;
        let tombstone = destroyed_collection::Entity::find_by_id(new.id).one(&transaction).await?;
        if inserted == 0 || tombstone.is_some() {
            transaction.rollback().await?;
            return Ok(false);
        }
        let entries = (0..).zip(new.entries).map(|(sort_index, tweet_id)| collection_entry::ActiveModel {
            collection_id: Set(new.id),
            tweet_id: Set(tweet_id),
            sort_index: Set(sort_index),
            added_at: Set(self.clock.now()),
        });
        collection_entry::Entity::insert_many(entries).exec_without_returning(&transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Up to `limit` collections of a user, lowest id first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn collections_of(&self, owner: UserId, limit: u64) -> Result<Vec<CollectionId>, SeedError> {
        let rows = collection::Entity::find()
            .filter(collection::Column::OwnerId.eq(owner))
            .order_by_asc(collection::Column::Id)
            .limit(limit)
            .all(&self.db)
            .await?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }
}
