//! `oauth_applications`: who may sign requests. The secret is sealed.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "oauth_applications")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub consumer_key: String,
    pub name: String,
    /// Which key sealed the secret.
    pub key_id: String,
    pub sealed_secret: Vec<u8>,
    pub suspended: bool,
    pub created_at: ChronoDateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
