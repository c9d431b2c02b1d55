//! Opens the database that a URL names, without ever showing the URL: it may hold a password.

use std::{
    io,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    future::join_all,
    stream::{FuturesUnordered, StreamExt},
};
use percent_encoding::percent_decode_str;
use sea_orm::{
    ConnectOptions, Database as Connect, DatabaseConnection, DbErr, RuntimeErr,
    sqlx::{
        self, Connection, Executor, PgConnection, PgPool,
        postgres::{PgConnectOptions, PgSslMode},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};
use tokio::time::{Instant, sleep, timeout};

use super::sqlite_file::SqliteFile;
use crate::{
    config::{DatabaseUrl, store},
    telemetry::{DatabaseMetrics, Metrics},
};

/// Why the database could not be opened. The text may be shown to an operator, never to a client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("expected sqlite:<path> or postgres://<user>@<host>/<database>")]
    Unknown,
    #[error("{0}; `#`, `/`, `?`, `@` and `%` in a password are written %23, %2F, %3F, %40 and %25")]
    Postgres(DbErr),
    #[error("a `#` is not allowed; in a password it is written %23")]
    Fragment,
    #[error("unknown parameter; known are {}; a `?` in a password is written %3F", PARAMETERS.join(", "))]
    Parameter,
    #[error(
        "statement-cache-capacity: the service needs its prepared statements; a pooler has to keep them (PgBouncer: \
         1.21 or newer with max_prepared_statements above 0)"
    )]
    StatementCache,
    #[error("an SQLite database in memory keeps nothing; name a file")]
    Memory,
    #[error("{0}; a file that does not exist yet is created by sqlite:<path>?mode=rwc")]
    Sqlite(DbErr),
}

/// What may stand behind the `?` of a PostgreSQL URL.
const PARAMETERS: [&str; 18] = [
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
];

/// An open database: its pool, and what each engine needs beyond it. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pub pool: DatabaseConnection,
    pub engine: Engine,
    pub metrics: DatabaseMetrics,
}

#[derive(Clone)]
pub enum Engine {
    Postgres(Arc<Connector>),
    Sqlite(Arc<SqliteFile>),
}

/// Makes PostgreSQL connections outside the pool.
pub struct Connector {
    /// One for each host of the URL.
    hosts: Vec<PgConnectOptions>,
    /// Where there are several addresses, a server that takes no writes is passed over.
    must_write: bool,
}

/// Opens a pool of this many connections. PostgreSQL's are made when they are first used; with `must_write`, of several
/// servers one is used that takes writes.
pub async fn open(
    url: &DatabaseUrl,
    connections: u32,
    must_write: bool,
    metrics: Metrics,
) -> Result<Database, ConnectError> {
    if url.is_sqlite() {
        return open_sqlite(url, connections, metrics).await;
    }
    if !url.is_postgres() {
        return Err(ConnectError::Unknown);
    }
    // sqlx drops a fragment: of a password with a `#` it would use the part before it as a port, and the user as the host.
    if url.expose().contains('#') {
        return Err(ConnectError::Fragment);
    }
    check_parameters(url.expose())?;
    let urls = split_hosts(url.expose());
    let failed =
        |error: sqlx::Error| ConnectError::Postgres(DbErr::Conn(RuntimeErr::SqlxError(error.into())));
    // sea-orm would show a URL that does not parse.
    let parsed: Result<Vec<_>, _> = urls.iter().map(|url| PgConnectOptions::from_str(url)).collect();
    let hosts = parsed.map_err(failed)?.into_iter().map(adjust).collect();
    let options = postgres_options(urls.first().ok_or(ConnectError::Unknown)?, connections);
    let pool = Connect::connect(options).await.map_err(ConnectError::Postgres)?;
    let engine = Engine::Postgres(Arc::new(Connector { hosts, must_write }));
    Ok(Database { pool, engine, metrics: DatabaseMetrics::new(metrics, "postgresql") })
}

/// One SQLite connection, because SQLite has one writer: a second would wait in SQLite's busy loop instead of a fair
/// queue. Full durability: an acknowledged destroy survives a power cut.
async fn open_sqlite(
    url: &DatabaseUrl,
    connections: u32,
    metrics: Metrics,
) -> Result<Database, ConnectError> {
    if is_in_memory(url.expose()) {
        return Err(ConnectError::Memory);
    }
    let path = SqliteConnectOptions::from_str(url.expose()).map(|options| options.get_filename().to_owned());
    let path =
        path.map_err(|error| ConnectError::Sqlite(DbErr::Conn(RuntimeErr::SqlxError(error.into()))))?;
    let file = Arc::new(SqliteFile::new(path));
    let mut options = shared_options(url.expose(), connections);
    let (opened, checked) = (file.clone(), file.clone());
    options
        .connect_lazy(false)
        .map_sqlx_sqlite_pool_opts(move |pool| {
            let file = opened.clone();
            pool.after_connect(move |_connection, _metadata| {
                file.note_opened();
                Box::pin(async { Ok(()) })
            })
        })
        .map_sqlx_sqlite_before_acquire(move |connection, _idle| {
            // A commit that fails, on a full disk say, is undone by SQLite itself, and sqlx goes on counting a
            // transaction: the next one would be a savepoint in it, and its commit keep nothing.
            let usable = !connection.is_in_transaction() && !checked.take_discarded();
            Box::pin(async move { Ok(usable) })
        })
        .map_sqlx_sqlite_opts(|sqlite| {
            sqlite
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(store::BUSY_TIMEOUT)
                .pragma("secure_delete", "ON")
                .pragma("wal_autocheckpoint", store::WAL_PAGES.to_string())
        });
    let pool = Connect::connect(options).await.map_err(ConnectError::Sqlite)?;
    // A file that is gone later is not replaced by an empty one.
    let connections = pool.get_sqlite_connection_pool();
    let existing = connections.connect_options().as_ref().clone().create_if_missing(false);
    connections.set_connect_options(existing);
    Ok(Database { pool, engine: Engine::Sqlite(file), metrics: DatabaseMetrics::new(metrics, "sqlite") })
}

fn is_in_memory(url: &str) -> bool {
    let path = url.trim_start_matches("sqlite:").trim_start_matches("//");
    path.is_empty() || path.starts_with(['?', ':']) || path.contains("mode=memory")
}

/// sqlx goes on without what it does not know, and logs its value: a misspelt `sslmode` would leave the server
/// unverified, a misspelt `password` stand in the log.
fn check_parameters(url: &str) -> Result<(), ConnectError> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy();
        let is_setting = name.starts_with("options[") && name.ends_with(']');
        if name == "statement-cache-capacity" {
            return Err(ConnectError::StatementCache);
        }
        if !is_setting && !PARAMETERS.contains(&&*name) {
            return Err(ConnectError::Parameter);
        }
    }
    Ok(())
}

/// A URL for each host of `postgres://user@first:5432,second:5433/database`.
fn split_hosts(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    hosts.split(',').map(|host| format!("{scheme}://{user}{host}{path}")).collect()
}

/// What every connection differs in from sqlx's defaults. A session has no settings of ours, so that any pooler may stand
/// between.
fn adjust(options: PgConnectOptions) -> PgConnectOptions {
    // sqlx looks an IPv6 address up with its brackets.
    let host = options.get_host().trim_matches(['[', ']']).to_owned();
    // PgBouncer refuses this start-up parameter unless it is configured not to, and nothing here is a float.
    let options = options.host(&host).extra_float_digits(None);
    if options.get_application_name().is_some() {
        return options;
    }
    options.application_name("collections-service")
}

fn shared_options(url: &str, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections)
        .acquire_timeout(store::ACQUIRE_TIMEOUT)
        .connect_timeout(store::CONNECT_TIMEOUT)
        .idle_timeout(store::IDLE_TIMEOUT)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .record_stmt_in_spans(false);
    options
}

fn postgres_options(url: &str, connections: u32) -> ConnectOptions {
    let mut options = shared_options(url, connections);
    let last_failure = Arc::new(LastFailure::default());
    options
        .connect_lazy(true)
        .map_sqlx_postgres_opts(adjust)
        .map_sqlx_postgres_before_acquire(move |connection, metadata| {
            let (last_failure, idle) = (last_failure.clone(), metadata.idle_for);
            Box::pin(async move {
                if last_failure.is_within(idle) {
                    return Ok(false);
                }
                let usable = idle <= store::PING_AFTER_IDLE || answers(connection).await;
                if !usable {
                    last_failure.record();
                }
                Ok(usable)
            })
        })
        // sqlx pings a connection that is returned, and waits for ever where the other end is silent: its place would be
        // lost until TCP gives up.
        .map_sqlx_postgres_pool_opts(|pool| {
            pool.after_release(|connection, _metadata| Box::pin(async { Ok(answers(connection).await) }))
        });
    options
}

/// When a pooled connection last failed its ping. Those that were idle then are dead too, after a fail-over say: one ping
/// is enough to find that out.
#[derive(Default)]
struct LastFailure(Mutex<Option<Instant>>);

impl LastFailure {
    /// Whether a connection that has been idle for so long was idle at the failure.
    fn is_within(&self, idle: Duration) -> bool {
        let failed = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|failed| failed.elapsed() < idle)
    }

    fn record(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// Whether the server answers a ping soon.
pub async fn answers(connection: &mut PgConnection) -> bool {
    matches!(timeout(store::PING_TIMEOUT, connection.ping()).await, Ok(Ok(())))
}

impl Connector {
    /// Connects to the first address that accepts, and makes it the pool's. Each address has a bounded try of its own, begun a
    /// little after the one before.
    pub async fn connect(&self, pool: &PgPool) -> Result<PgConnection, sqlx::Error> {
        let targets = self.targets().await?;
        let must_write = self.must_write && targets.len() > 1;
        let mut refused = None;
        let mut waiting = targets.into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            if let Some(target) = waiting.next() {
                running.push(connect_to(target, must_write));
            }
            tokio::select! {
                Some(result) = running.next() => match result {
                    Ok((connection, target)) => {
                        pool.set_connect_options(target);
                        return Ok(connection);
                    }
                    Err(error) => {
                        // What a server has said is worth more than that another one could not be reached.
                        if refused.is_none() || error.as_database_error().is_some() {
                            refused = Some(error);
                        }
                        if running.is_empty() && waiting.len() == 0 {
                            return Err(refused.unwrap_or(sqlx::Error::PoolTimedOut));
                        }
                    }
                },
                () = sleep(store::CONNECT_STAGGER), if waiting.len() > 0 => {}
            }
        }
    }

    /// Every address of every host. Where TLS is required a host stays a name, which the server may need to choose its
    /// certificate, and which that is compared with: then sqlx tries its addresses one after the other.
    async fn targets(&self) -> Result<Vec<PgConnectOptions>, sqlx::Error> {
        let resolved = join_all(self.hosts.iter().map(resolve)).await;
        let (mut targets, mut failed) = (Vec::new(), None);
        for addresses in resolved {
            match addresses {
                Ok(addresses) => targets.extend(addresses),
                Err(error) => failed = Some(error),
            }
        }
        targets.truncate(store::CONNECT_ADDRESSES);
        match failed {
            Some(error) if targets.is_empty() => Err(error.into()),
            _ => Ok(targets),
        }
    }
}

async fn resolve(host: &PgConnectOptions) -> io::Result<Vec<PgConnectOptions>> {
    let is_tls =
        matches!(host.get_ssl_mode(), PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    let is_socket = host.get_socket().is_some() || host.get_host().starts_with('/');
    if is_tls || is_socket {
        return Ok(vec![host.clone()]);
    }
    let addresses = tokio::net::lookup_host((host.get_host(), host.get_port()));
    let addresses = timeout(store::RESOLVE_TIMEOUT, addresses).await;
    let addresses = addresses.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(addresses.map(|address| host.clone().host(&address.ip().to_string())).collect())
}

/// Fails as a destroy would.
const REFUSE_READ_ONLY: &str = "DO $$ BEGIN IF current_setting('transaction_read_only') = 'on' THEN \
    RAISE EXCEPTION 'the server is read-only' USING ERRCODE = 'read_only_sql_transaction'; END IF; END $$";

async fn connect_to(
    target: PgConnectOptions,
    must_write: bool,
) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
    let connected = async {
        let mut connection = PgConnection::connect_with(&target).await?;
        if must_write {
            connection.execute(REFUSE_READ_ONLY).await?;
        }
        Ok::<_, sqlx::Error>(connection)
    };
    let connected = timeout(store::CONNECT_TIMEOUT, connected).await;
    let timed_out = |_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into());
    Ok((connected.unwrap_or_else(timed_out)?, target))
}

#[cfg(test)]
mod tests {
    use super::split_hosts;

    #[test]
    fn hosts_are_split_after_the_password() {
        assert_eq!(
            split_hosts("postgres://u:a,b@one:5432,two/db?sslmode=require"),
            ["postgres://u:a,b@one:5432/db?sslmode=require", "postgres://u:a,b@two/db?sslmode=require"]
        );
        assert_eq!(split_hosts("postgres:///db?host=/run"), ["postgres:///db?host=/run"]);
        assert_eq!(split_hosts("postgres://[::1]:5432"), ["postgres://[::1]:5432"]);
    }
}
