//! What a database error means for a caller.

use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{self, postgres::PgDatabaseError, sqlite::SqliteError},
};

/// What to do about a database error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The statement was rolled back because of concurrent ones: run it again.
    Conflict,
    /// Another transaction has locked the row. Nothing happened.
    Locked,
    /// A row with this key exists. Nothing happened.
    Duplicate,
    /// The database is away, or gave up. Whether the statement took effect may be unknown: run it again over another
    /// connection, with the same request ids.
    Unavailable,
    /// The database refuses every such statement until an operator acts: missing grants, a read-only file, an older schema.
    /// Nothing happened.
    Unusable,
    /// The statement was prepared in another session: a pooler has moved the connection and not the statement. Nothing
    /// happened.
    Unprepared,
    /// The database refused the data. Nothing happened.
    Rejected,
    /// Its answer was not understood. Whether the statement took effect is not known.
    Misread,
}

impl From<&DbErr> for Failure {
    fn from(error: &DbErr) -> Self {
        match error {
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => of_sqlx(error),
            DbErr::ConnectionAcquire(_) => Self::Unavailable,
            // The store's own: the file is gone.
            DbErr::Custom(_) => Self::Unusable,
            _ => Self::Misread,
        }
    }
}

impl Failure {
    /// The kind of a failed statement in metrics.
    const fn name(self) -> &'static str {
        match self {
            Self::Conflict => "CONFLICT",
            Self::Locked => "LOCKED",
            Self::Duplicate => "DUPLICATE",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unusable => "UNUSABLE",
            Self::Unprepared => "UNPREPARED",
            Self::Rejected => "REJECTED",
            Self::Misread => "MISREAD",
        }
    }
}

/// The kind of a statement's error for metrics, if it failed.
pub fn error_type<T>(result: &Result<T, DbErr>) -> Option<&'static str> {
    result.as_ref().err().map(|error| Failure::from(error).name())
}

pub fn sqlx_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// The SQLSTATE of a PostgreSQL error.
pub fn sqlstate(error: &DbErr) -> Option<String> {
    let (DbErr::Conn(RuntimeErr::SqlxError(error))
    | DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))) = error
    else {
        return None;
    };
    Some(error.as_database_error()?.code()?.into_owned())
}

/// The database's own message, without what sea-orm and sqlx put around it.
pub fn message(error: &DbErr) -> String {
    let (DbErr::Conn(RuntimeErr::SqlxError(sqlx))
    | DbErr::Exec(RuntimeErr::SqlxError(sqlx))
    | DbErr::Query(RuntimeErr::SqlxError(sqlx))) = error
    else {
        return error.to_string();
    };
    match sqlx.as_database_error() {
        Some(database) => match database.code() {
            Some(code) => format!("{} (code {code})", database.message()),
            None => database.message().to_owned(),
        },
        None => sqlx.to_string(),
    }
}

fn of_sqlx(error: &sqlx::Error) -> Failure {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            if database.try_downcast_ref::<SqliteError>().is_some() {
                return of_sqlite(&code);
            }
            // The session has another statement of this name, with another number of parameters. Poolers use the same code
            // for errors of their own.
            let postgres = database.try_downcast_ref::<PgDatabaseError>();
            match postgres.and_then(PgDatabaseError::routine) {
                Some("exec_bind_message") if code == "08P01" => Failure::Unprepared,
                _ => of_sqlstate(&code),
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
        // unique_violation
        "23505" => Failure::Duplicate,
        // query_canceled, read_only_sql_transaction (the connection is to a standby, or to an old primary),
        // statement_completion_unknown
        "57014" | "25006" | "40003" => Failure::Unavailable,
        // invalid_sql_statement_name, duplicate_prepared_statement
        "26000" | "42P05" => Failure::Unprepared,
        // Connection exceptions, insufficient resources, operator intervention, system errors, wrong or expired credentials.
        _ if starts_with_any(code, &["08", "53", "57", "58", "28"]) => Failure::Unavailable,
        // Unsupported features, unknown database or schema, missing grants or tables, the function's own refusal.
        _ if starts_with_any(code, &["0A", "3D", "3F", "42", "CD"]) => Failure::Unusable,
        _ => Failure::Rejected,
    }
}

fn starts_with_any(code: &str, classes: &[&str]) -> bool {
    classes.iter().any(|class| code.starts_with(class))
}

/// SQLite's extended codes keep the primary one in their low byte: 5 BUSY, 6 LOCKED; 8 READONLY, 10 IOERR, 11 CORRUPT,
/// 13 FULL, 14 CANTOPEN, 26 NOTADB; 19 CONSTRAINT. 1 ERROR is a statement that the schema does not fit.
fn of_sqlite(code: &str) -> Failure {
    match code.parse::<u32>().unwrap_or_default() {
        // SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE
        1555 | 2067 => Failure::Duplicate,
        code => match code & 0xff {
            5 | 6 => Failure::Unavailable,
            1 | 8 | 10 | 11 | 13 | 14 | 26 => Failure::Unusable,
            _ => Failure::Rejected,
        },
    }
}
