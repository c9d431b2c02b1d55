//! `destroyed_collections`: the tombstones, immutable. What makes retries safe, the audit trail, and the ledger that a restore is
//! corrected by. They hold nothing that the user wrote.

use sea_orm::entity::prelude::*;

use crate::domain::{CollectionId, UserId};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "destroyed_collections")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: CollectionId,
    pub owner_id: UserId,
    pub destroyed_at: ChronoDateTimeUtc,
    pub request_id: Option<Uuid>,
    /// The service that asked for it, where one is known.
    pub caller: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
