//! Opens the database a URL names, without ever showing the URL: it may hold a password.

use percent_encoding::percent_decode_str;
use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DbErr, RuntimeErr,
    sqlx::{
        self, Connection,
        postgres::PgConnectOptions,
        sqlite::{SqliteJournalMode, SqliteSynchronous},
    },
};

use super::destroy::set_up;
use crate::config::{self, DatabaseUrl};

/// Why the database could not be opened. The text may go to an operator, never to a client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("--database-url: expected sqlite:<path> or postgres://<user>@<host>/<database>")]
    Unknown,
    #[error(
        "--database-url: {0}; `#`, `/`, `?`, `@` and `%` in a password are written %23, %2F, %3F, %40 and %25"
    )]
    Postgres(DbErr),
    #[error("--database-url: unknown parameter; known are {}; a `?` in a password is written %3F", PARAMETERS.join(", "))]
    Parameter,
    #[error("--database-url: an SQLite database in memory keeps nothing; name a file")]
    Memory,
    #[error("--database-url: {0}; a file that is not there yet is made by sqlite:<path>?mode=rwc")]
    Sqlite(DbErr),
}

/// What may stand behind the `?` of a PostgreSQL URL.
const PARAMETERS: [&str; 19] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "ssl-mode",
    "ssl-root-cert",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "options[<setting>]",
    "statement-cache-capacity",
];

/// A pool of this many connections. PostgreSQL's are made when they are first used.
pub async fn open(url: &DatabaseUrl, connections: u32) -> Result<DatabaseConnection, ConnectError> {
    let failed = if url.is_sqlite() {
        if is_in_memory(url.expose()) {
            return Err(ConnectError::Memory);
        }
        ConnectError::Sqlite
    } else if url.is_postgres() {
        check_parameters(url.expose())?;
        // sea-orm would show a URL that does not parse.
        let parsed = url.expose().parse::<PgConnectOptions>();
        parsed.map_err(|error| ConnectError::Postgres(DbErr::Conn(RuntimeErr::SqlxError(error.into()))))?;
        ConnectError::Postgres
    } else {
        return Err(ConnectError::Unknown);
    };
    Database::connect(options(url, connections)).await.map_err(failed)
}

fn is_in_memory(url: &str) -> bool {
    let path = url.trim_start_matches("sqlite:").trim_start_matches("//");
    path.is_empty() || path.starts_with(['?', ':']) || path.contains("mode=memory")
}

/// sqlx goes on without what it does not know, and logs its value: a misspelt `sslmode` would leave the server
/// unverified, a misspelt `password` stand in the log.
fn check_parameters(url: &str) -> Result<(), ConnectError> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy();
        let is_setting = name.starts_with("options[") && name.ends_with(']');
        if !is_setting && !PARAMETERS.contains(&&*name) {
            return Err(ConnectError::Parameter);
        }
    }
    Ok(())
}

/// One SQLite connection, because SQLite has one writer: a second would wait in SQLite's busy loop instead of a fair
/// queue. Full durability on both: an acknowledged destroy survives a power cut.
fn options(url: &DatabaseUrl, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url.expose());
    options
        .max_connections(connections)
        .acquire_timeout(config::STORE_WAIT)
        .connect_timeout(config::STORE_WAIT)
        .idle_timeout(config::STORE_IDLE)
        .test_before_acquire_if_idle_for(config::STORE_TRUST)
        .connect_lazy(!url.is_sqlite())
        .sqlx_logging(false)
        .record_stmt_in_spans(false)
        .map_sqlx_postgres_pool_opts(|pool| {
            let pool = pool.after_connect(|connection, _metadata| Box::pin(set_up(connection)));
            // sqlx asks a connection that comes back whether it still works, and waits for ever where the other end has
            // fallen silent: its place would be lost until TCP gives up.
            pool.after_release(|connection, _age| {
                Box::pin(async move {
                    let answered = tokio::time::timeout(config::STORE_WAIT, connection.ping()).await;
                    answered.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(|()| true)
                })
            })
        })
        .map_sqlx_postgres_opts(|postgres| {
            let statement_timeout = config::STATEMENT_TIMEOUT.as_millis().to_string();
            postgres.application_name("collections-service").options([
                ("statement_timeout", statement_timeout.as_str()),
                ("idle_in_transaction_session_timeout", statement_timeout.as_str()),
            ])
        })
        .map_sqlx_sqlite_before_acquire(|connection, _idle| {
            // A commit that fails, on a full disk say, is undone by SQLite itself, and sqlx goes on counting a
            // transaction: the next one would be a savepoint in it, and its commit keep nothing.
            let ended = !connection.is_in_transaction();
            Box::pin(async move { Ok(ended) })
        })
        .map_sqlx_sqlite_opts(|sqlite| {
            sqlite
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(config::STORE_WAIT)
                .pragma("secure_delete", "ON")
                .pragma("wal_autocheckpoint", config::WAL_PAGES.to_string())
        });
    options
}
