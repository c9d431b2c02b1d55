//! Why the database cannot be served.

use sea_orm::DbErr;

use super::failure::{Failure, message, sqlstate};

/// Why the database cannot be served, or its schema not be changed. The text may be shown to an operator, never to a client.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "the database schema is older than this program: run `collections-service migrate up` ({0} is missing)"
    )]
    Older(String),
    #[error("the database schema is newer than this program: deploy the version that made it")]
    Newer,
    #[error(
        "a pooler between the service and PostgreSQL keeps no prepared statements in its transaction mode: PgBouncer has \
         to be 1.21 or newer with max_prepared_statements above 0, or in session mode"
    )]
    Pooler,
    #[error("node {node} of the database acknowledges commits before they are durable: {settings}")]
    NotDurable { node: String, settings: String },
    #[error("the database takes no writes (is it a standby, or read-only by default?): {}", message(.0))]
    ReadOnly(DbErr),
    /// A destroy would fail until an operator acts.
    #[error("the database refuses: {}", message(.0))]
    Refused(DbErr),
    #[error("the database failed: {}", message(.0))]
    Database(DbErr),
    #[error(
        "the database did not answer in time: is it up, has it a connection left, and is its address right?"
    )]
    Timeout,
}

impl StateError {
    /// Whether it may pass without a new deployment.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        !matches!(self, Self::Newer | Self::Pooler)
    }

    /// Whether the database is away or failing over, as opposed to refusing: calls may wait for it to return.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Database(_) | Self::Timeout | Self::ReadOnly(_))
    }
}

impl From<DbErr> for StateError {
    fn from(error: DbErr) -> Self {
        match (&error, sqlstate(&error).as_deref()) {
            // The pool's own text would name neither the database nor what to look at.
            (DbErr::ConnectionAcquire(_), _) => Self::Timeout,
            (_, Some("25006")) => Self::ReadOnly(error),
            // A full disk, an I/O error, credentials that are not accepted: an operator has to act.
            (_, Some(code)) if code == "53100" || code == "58030" || code.starts_with("28") => {
                Self::Refused(error)
            }
            _ => match Failure::from(&error) {
                Failure::Unprepared => Self::Pooler,
                // Another transaction has locked a table.
                Failure::Unavailable | Failure::Locked | Failure::Conflict => Self::Database(error),
                _ => Self::Refused(error),
            },
        }
    }
}
