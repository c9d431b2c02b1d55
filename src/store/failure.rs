//! What a database error means for a caller.

use sea_orm::{DbErr, RuntimeErr, sqlx};

/// What to do about a database error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The database undid the statement because of others beside it: run it again.
    Conflict,
    /// Somebody else has the row, and keeps it. Nothing happened.
    Locked,
    /// The database is away or gave up. Whether the statement took effect may be unknown.
    Unavailable,
    /// The database refused the statement or the data: our own fault. Nothing happened.
    Fault,
    /// Its answer was not understood: our own fault too. Whether the statement took effect is not known.
    Misread,
}

impl From<&DbErr> for Failure {
    fn from(error: &DbErr) -> Self {
        let (DbErr::Conn(runtime) | DbErr::Exec(runtime) | DbErr::Query(runtime)) = error else {
            return match error {
                DbErr::ConnectionAcquire(_) => Self::Unavailable,
                _ => Self::Misread,
            };
        };
        match runtime {
            RuntimeErr::SqlxError(error) => of_sqlx(error),
            RuntimeErr::Internal(_) => Self::Misread,
        }
    }
}

pub fn sqlx_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

fn of_sqlx(error: &sqlx::Error) -> Failure {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            if database.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                of_sqlite(&code)
            } else {
                of_sqlstate(&code)
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Failure::Unavailable,
        _ => Failure::Misread,
    }
}

fn of_sqlstate(code: &str) -> Failure {
    match code {
        // serialization_failure, deadlock_detected
        "40001" | "40P01" => Failure::Conflict,
        // lock_not_available (lock_timeout)
        "55P03" => Failure::Locked,
        // query_canceled (our statement_timeout), read_only_sql_transaction (a replica after a fail-over),
        // statement_completion_unknown, cannot_connect_now and its kin
        "57014" | "25006" | "40003" => Failure::Unavailable,
        // Connection exceptions, insufficient resources, operator intervention, wrong or expired credentials.
        _ if ["08", "53", "57", "58", "28"].iter().any(|class| code.starts_with(class)) => {
            Failure::Unavailable
        }
        _ => Failure::Fault,
    }
}

/// SQLite's extended codes keep the primary one in their low byte: 5 BUSY, 6 LOCKED, 8 READONLY, 10 IOERR, 13 FULL,
/// 14 CANTOPEN.
fn of_sqlite(code: &str) -> Failure {
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        5 | 6 | 8 | 10 | 13 | 14 => Failure::Unavailable,
        _ => Failure::Fault,
    }
}
