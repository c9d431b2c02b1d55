//! The domain's ids as column types, so that an entity cannot mix up two of them.

use sea_orm::{
    ColIdx, DbErr, QueryResult, TryGetError, TryGetable, Value,
    sea_query::{ArrayType, ColumnType, Nullable, ValueType, ValueTypeErr},
};

use crate::domain::{CollectionId, UserId};

macro_rules! id_column {
    ($id:ident) => {
        impl From<$id> for Value {
            fn from(id: $id) -> Self {
                Self::BigInt(Some(id.get()))
            }
        }

        impl TryGetable for $id {
            fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
                let number = i64::try_get_by(row, index)?;
                Self::new(number).ok_or_else(|| {
                    TryGetError::DbErr(DbErr::Type(concat!(stringify!($id), " is not positive").into()))
                })
            }
        }

        impl ValueType for $id {
            fn try_from(value: Value) -> Result<Self, ValueTypeErr> {
                <i64 as ValueType>::try_from(value).and_then(|number| Self::new(number).ok_or(ValueTypeErr))
            }

            fn type_name() -> String {
                stringify!($id).to_owned()
            }

            fn array_type() -> ArrayType {
                ArrayType::BigInt
            }

            fn column_type() -> ColumnType {
                ColumnType::BigInteger
            }
        }

        impl Nullable for $id {
            fn null() -> Value {
                Value::BigInt(None)
            }
        }

        impl sea_orm::TryFromU64 for $id {
            fn try_from_u64(number: u64) -> Result<Self, DbErr> {
                TryInto::<i64>::try_into(number)
                    .ok()
                    .and_then(Self::new)
                    .ok_or_else(|| DbErr::Type(concat!(stringify!($id), " is out of range").into()))
            }
        }
    };
}

id_column!(CollectionId);
id_column!(UserId);
