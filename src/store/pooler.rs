//! Whether a pooler between the service and PostgreSQL keeps prepared statements. In transaction mode each transaction of a
//! connection may be run by another session; PgBouncer follows statements from session to session since 1.21, under
//! names of its own, where it is configured to.

use sea_orm::{
    DbErr,
    sqlx::{self, PgConnection, Row},
};

use super::{
    check::StateError,
    connect::{Database, Engine},
    failure::sqlx_error,
};

/// How often two connections ask in turns which session they have.
const ATTEMPTS: usize = 8;

/// Prepared by sqlx under a name that begins with `sqlx_`, and so listed unless a pooler has renamed it.
const SESSION: &str = "SELECT pg_backend_pid(), \
    (SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'sqlx\\_%' AND from_sql = false)";

/// Connections that share a session are behind a pooler in transaction mode; it must have renamed the statements then.
///
/// # Errors
/// [`StateError::Pooler`], or the database failed.
pub async fn check(database: &Database) -> Result<(), StateError> {
    let Engine::Postgres(connector) = &database.engine else { return Ok(()) };
    let pool = database.pool.get_postgres_connection_pool();
    let connect = async || connector.connect(pool).await.map_err(sqlx_error);
    let mut connections = [connect().await?, connect().await?];
    let mut seen = [None, None];
    for _ in 0..ATTEMPTS {
        for place in [0, 1] {
            let (Some(connection), [first, second]) = (connections.get_mut(place), &mut seen) else {
                continue;
            };
            let (own, other) = if place == 0 { (first, second) } else { (second, first) };
            let (session, keeps_names) = ask(connection).await?;
            let is_shared = own.is_some_and(|own| own != session) || *other == Some(session);
            if is_shared && keeps_names {
                return Err(StateError::Pooler);
            }
            *own = Some(session);
        }
    }
    Ok(())
}

/// The session that has run this, and whether the statement has its own name there.
async fn ask(connection: &mut PgConnection) -> Result<(i32, bool), DbErr> {
    let row = sqlx::query(SESSION).fetch_one(connection).await.map_err(sqlx_error)?;
    let read = || -> Result<(i32, i64), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
    let (session, named) = read().map_err(sqlx_error)?;
    Ok((session, named > 0))
}
