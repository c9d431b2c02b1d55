//! The destroying statement of PostgreSQL: one call of the function that the migration installed.

use chrono::{DateTime, Utc};
use sea_orm::{DbBackend, Statement, Value, sea_query::ArrayType};
use uuid::Uuid;

use super::{Attempt, Destroy};
use crate::{config::store, domain::RequestId};

/// `migrations/destroy_collections_v1.sql` describes the parameters.
const DESTROY: &str = "SELECT destroy_collections_v1($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// How the check of the database calls it.
const CHECK: Attempt =
    Attempt { publish: true, replays_first: false, lock_timeout: store::SINGLE_LOCK_TIMEOUT };

/// One element of each of the function's arrays.
struct Row<'a> {
    id: i64,
    owner: i64,
    request_id: Uuid,
    caller: &'a str,
}

impl<'a> Row<'a> {
    fn of(destroy: &'a Destroy) -> Self {
        Self {
            id: destroy.id.get(),
            owner: destroy.user.get(),
            // Each has one by now.
            request_id: destroy.request_id.map_or(Uuid::nil(), RequestId::get),
            // An array of sea-query cannot hold NULL, so the function reads the empty text as none.
            caller: destroy.caller.as_deref().unwrap_or_default(),
        }
    }
}

/// The statement for these destroys. It returns one text with a letter for each.
pub fn statement(destroys: &[&Destroy], attempt: Attempt, now: DateTime<Utc>) -> Statement {
    let rows: Vec<Row<'_>> = destroys.iter().map(|destroy| Row::of(destroy)).collect();
    call(rows.first().map_or(0, |row| row.id), &rows, attempt, now)
}

/// Runs the function for an owner that no user is: it fails where no destroy could be run. With an id, because without one
/// a distributed engine would run the function's statements on all nodes.
pub fn probe(id: i64, now: DateTime<Utc>) -> Statement {
    let row = Row { id, owner: 0, request_id: Uuid::nil(), caller: "" };
    call(id, &[row], CHECK, now)
}

/// Destroys a row that the function creates for it, twice in one call, so that the second is a replay of the first; leaves no
/// trace. `id` is negative. The result has one `d` and one `r`.
pub fn rehearsal(id: i64, replays_first: bool, now: DateTime<Utc>) -> Statement {
    let row = || Row { id, owner: 1, request_id: Uuid::nil(), caller: "" };
    call(id, &[row(), row()], Attempt { replays_first, ..CHECK }, now)
}

fn call(anchor: i64, rows: &[Row<'_>], attempt: Attempt, now: DateTime<Utc>) -> Statement {
    let values = [
        anchor.into(),
        array(ArrayType::BigInt, rows.iter().map(|row| row.id.into())),
        array(ArrayType::BigInt, rows.iter().map(|row| row.owner.into())),
        now.into(),
        array(ArrayType::Uuid, rows.iter().map(|row| row.request_id.into())),
        array(ArrayType::String, rows.iter().map(|row| row.caller.into())),
        attempt.publish.into(),
        attempt.replays_first.into(),
        format!("{}ms", attempt.lock_timeout.as_millis()).into(),
    ];
    Statement::from_sql_and_values(DbBackend::Postgres, DESTROY, values)
}

fn array(of: ArrayType, values: impl Iterator<Item = Value>) -> Value {
    Value::Array(of, Some(Box::new(values.collect())))
}
