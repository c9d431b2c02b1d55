//! Whether a pooler between the service and PostgreSQL keeps prepared statements. In transaction mode each transaction of a
//! connection may be run by another session; PgBouncer follows statements from session to session since 1.21, under
//! names of its own, where it is configured to.

use std::io;

use sea_orm::{
    DbErr,
    sqlx::{self, Connection, Executor, PgConnection, Row},
};

use super::{
    connect::{Database, Engine},
    failure::sqlx_error,
    state_error::StateError,
};

/// Connections that are compared, at the start and after a lost statement. Each may lead to another one of several poolers,
/// which have no session in common.
const CONNECTIONS: usize = 3;

/// How often each connection is asked, twice in turn: a pooler that hands out the session that was used last gives it to the
/// next connection, one that hands out the others first gives the same connection another one.
const ATTEMPTS: usize = 4;

const SESSION: &str = "SELECT pg_backend_pid()";

/// Counts itself: prepared in this transaction, under the name that sqlx gave it.
const KEEPS_NAME: &str = "\
SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'sqlx\\_%' AND NOT from_sql AND prepare_time >= now()";

/// Connections that share a session are behind a pooler in transaction mode; it must have renamed the statements then.
/// Without a renamed statement, none may have been lost before (`has_lost`).
///
/// No statement is run that another session may have prepared under the same name.
///
/// # Errors
/// [`StateError::Pooler`], or the database failed.
pub async fn check(database: &Database, has_lost: bool) -> Result<(), StateError> {
    let Engine::Postgres(connector) = &database.engine else { return Ok(()) };
    let pool = database.pool.get_postgres_connection_pool();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = connector.connect(pool).await.map_err(connect_error)?;
        if keeps_name(&mut connection).await.map_err(sqlx_error)? {
            connections.push((connection, None));
        }
    }
    if has_lost && !connections.is_empty() {
        return Err(StateError::Pooler);
    }
    for _ in 0..ATTEMPTS {
        for place in 0..connections.len() {
            for _ in 0..2 {
                let Some((connection, before)) = connections.get_mut(place) else { continue };
                let session = session(connection).await?;
                let has_moved = before.replace(session).is_some_and(|before| before != session);
                let sharing = connections.iter().filter(|(_, other)| *other == Some(session)).count();
                if has_moved || sharing > 1 {
                    return Err(StateError::Pooler);
                }
            }
        }
    }
    Ok(())
}

/// A server that does not answer is reported as the pool's connections report it.
fn connect_error(error: sqlx::Error) -> StateError {
    match error {
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => StateError::Timeout,
        other => sqlx_error(other).into(),
    }
}

/// Whether a statement has the name in its session that the connection gave it. A transaction stays in one session.
async fn keeps_name(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let count: i64 = sqlx::query_scalar(KEEPS_NAME).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(count > 0)
}

/// The session that has run this, without a prepared statement.
async fn session(connection: &mut PgConnection) -> Result<i32, DbErr> {
    let row = connection.fetch_one(SESSION).await.map_err(sqlx_error)?;
    row.try_get(0).map_err(sqlx_error)
}
