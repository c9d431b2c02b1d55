//! The connection that batches are sent over.

use std::fmt;

use chrono::{DateTime, Utc};
use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, SqliteTransactionMode, TransactionOptions,
    TransactionTrait,
    sqlx::{self, Connection, PgConnection, Postgres, pool::PoolConnection},
};
use tokio::time::{Instant, timeout};

use super::{Destroy, Sight, postgres, sqlite};
use crate::{config, store::failure::sqlx_error};

/// Which connection a lane takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On PostgreSQL one of its own, made when it is needed and kept: the pool would ask it after each batch whether it
    /// still works, and after a fail-over hand out all its dead ones in turn. A statement over it waits for locked rows no
    /// longer than [`config::BATCH_LOCK_WAIT`].
    Own,
    /// One of the pool's. A statement over it waits for a row as long as it may take.
    Pooled,
}

/// A way to the database for one statement at a time.
pub struct Lane {
    db: DatabaseConnection,
    kind: Kind,
    held: Option<Held>,
    /// When it was last seen to work.
    seen: Instant,
}

enum Held {
    Own(PgConnection),
    Pooled(PoolConnection<Postgres>),
}

/// What can send a batch at once.
pub enum Ready<'a> {
    Postgres(&'a mut PgConnection),
    /// With the write lock.
    Sqlite(DatabaseTransaction),
}

impl Lane {
    pub fn new(db: &DatabaseConnection, kind: Kind) -> Self {
        Self { db: db.clone(), kind, held: None, seen: Instant::now() }
    }

    /// Waits for a connection, on SQLite for the write lock too.
    pub async fn ready(&mut self) -> Result<Ready<'_>, DbErr> {
        match self.db.get_database_backend() {
            DbBackend::Sqlite => {
                let immediate = TransactionOptions {
                    sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                    ..Default::default()
                };
                Ok(Ready::Sqlite(self.db.begin_with_options(immediate).await?))
            }
            _ => Ok(Ready::Postgres(self.connection().await?)),
        }
    }

    /// The connection that is held, unless it was idle and does not answer any more; or a new one.
    async fn connection(&mut self) -> Result<&mut PgConnection, DbErr> {
        if let Some(held) = &mut self.held
            && self.seen.elapsed() > config::STORE_TRUST
            && !matches!(timeout(config::STORE_WAIT, held.get().ping()).await, Ok(Ok(())))
        {
            self.cut();
        }
        let held = match self.held.take() {
            Some(held) => held,
            None => self.connect().await.map_err(sqlx_error)?,
        };
        self.seen = Instant::now();
        Ok(self.held.insert(held).get())
    }

    async fn connect(&self) -> Result<Held, sqlx::Error> {
        let pool = self.db.get_postgres_connection_pool();
        match self.kind {
            Kind::Own => {
                let options = pool.connect_options();
                let made = async {
                    let mut new = PgConnection::connect_with(&options).await?;
                    postgres::set_up(&mut new).await?;
                    postgres::set_lock_timeout(&mut new, config::BATCH_LOCK_WAIT).await?;
                    Ok(Held::Own(new))
                };
                timeout(config::STORE_WAIT, made).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
            }
            Kind::Pooled => Ok(Held::Pooled(pool.acquire().await?)),
        }
    }

    /// Lets go of a connection that does not work.
    pub fn cut(&mut self) {
        match self.held.take() {
            Some(Held::Own(broken)) => drop(broken),
            Some(Held::Pooled(broken)) => drop(broken.detach()),
            None => {}
        }
    }

    /// Says good-bye to the database.
    pub async fn close(mut self) {
        if let Some(Held::Own(connection)) = self.held.take() {
            // It is gone in any case.
            let _closed = timeout(config::STORE_WAIT, connection.close()).await;
        }
    }
}

impl Held {
    fn get(&mut self) -> &mut PgConnection {
        match self {
            Self::Own(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

impl Ready<'_> {
    /// Runs the statement: what it saw of each destroy, in their order. Whether it took effect where there is an error
    /// instead, `Failure` tells.
    pub async fn destroy(self, destroys: &[&Destroy], now: DateTime<Utc>) -> Result<Vec<Sight>, DbErr> {
        let letters = match self {
            Self::Postgres(connection) => {
                postgres::destroy(connection, destroys, now).await.map_err(sqlx_error)?
            }
            Self::Sqlite(transaction) => sqlite::destroy(transaction, destroys, now).await?,
        };
        let sights: Option<Vec<Sight>> = letters.bytes().map(Sight::of_letter).collect();
        sights
            .filter(|sights| sights.len() == destroys.len())
            .ok_or_else(|| DbErr::Type(format!("{} destroys were answered {letters:?}", destroys.len())))
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("kind", &self.kind).finish_non_exhaustive()
    }
}
