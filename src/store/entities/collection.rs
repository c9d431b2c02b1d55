//! `collections`: the live ones.

use sea_orm::entity::prelude::*;

use crate::domain::{CollectionId, UserId};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "collections")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: CollectionId,
    pub owner_id: UserId,
    pub name: String,
    pub description: Option<String>,
    pub url: Option<String>,
    pub timeline_order: String,
    pub created_at: ChronoDateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
