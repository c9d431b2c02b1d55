//! `imports`: how far an unfinished import has got. The row is deleted when the import is finished.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "imports")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// The process that imports. A later one of the same name takes the row over, and the earlier one stops.
    pub run_id: Uuid,
    /// Of the start of the input.
    pub head_sha256: String,
    pub started_at: ChronoDateTimeUtc,
    pub updated_at: ChronoDateTimeUtc,
    /// Where the next line begins in the decompressed input.
    pub byte_offset: i64,
    /// Lines before that.
    pub line: i64,
    /// Collections.
    pub imported: i64,
    /// Entries of those.
    pub entries: i64,
    /// Collections that were there already, and identical.
    pub existing: i64,
    pub rejected: i64,
    /// The length of the rejects file.
    pub rejects_bytes: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
