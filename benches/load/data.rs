//! The rows that are destroyed, and what is left of them. The benchmark's own connection to the database.

use std::ops::Range;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};

use crate::{OWNER, Result};

pub struct Data {
    db: DatabaseConnection,
}

/// How the ids are shared out: to each caller a range of its own, so that callers everywhere ask for ids which lie as
/// far apart as those of different users do.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub callers: usize,
    /// Ids of one caller.
    pub each: i64,
}

impl Spread {
    /// For so many rows in all, or a few more.
    pub fn over(callers: usize, rows: usize) -> Self {
        Self { callers, each: i64::try_from(rows.div_ceil(callers)).expect("no benchmark needs that many") }
    }

    pub fn rows(self) -> i64 {
        self.each * i64::try_from(self.callers).expect("few callers")
    }

    /// The ids of one caller, in the order in which it asks.
    pub fn ids(self, caller: usize) -> Range<i64> {
        let first = 1 + self.each * i64::try_from(caller).expect("few callers");
        first..first + self.each
    }
}

impl Data {
    pub async fn open(url: &str) -> Result<Self> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false);
        Ok(Self { db: Database::connect(options).await? })
    }

    /// Only these rows, no tombstones, statistics that know it, and nothing left for a checkpoint to write.
    pub async fn fill(&self, rows: i64) -> Result<()> {
        let (forget, numbers, settle) = match self.db.get_database_backend() {
            DbBackend::Postgres => (
                &["TRUNCATE collections, destroyed_collections"][..],
                format!("SELECT n FROM generate_series(1, {rows}) AS n"),
                &["VACUUM ANALYZE collections, destroyed_collections", "CHECKPOINT"][..],
            ),
            _ => (
                &["DELETE FROM collections", "DELETE FROM destroyed_collections"][..],
                format!(
                    "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {rows})
                     SELECT n FROM g"
                ),
                &["PRAGMA wal_checkpoint(TRUNCATE)"][..],
            ),
        };
        for statement in forget {
            self.db.execute_unprepared(statement).await?;
        }
        let fill = format!(
            "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
             SELECT n, {OWNER}, 'Collection ' || n, 'curation_reverse_chron', '2026-01-01 00:00:00+00:00'
             FROM ({numbers}) AS numbers"
        );
        self.db.execute_unprepared(&fill).await?;
        for statement in settle {
            self.db.execute_unprepared(statement).await?;
        }
        // What the file system has put off until later would come in the middle of the measurement.
        nix::unistd::sync();
        Ok(())
    }

    /// How many rows have been destroyed since.
    pub async fn tombstones(&self) -> Result<u64> {
        self.count("SELECT count(*) AS n FROM destroyed_collections").await
    }

    /// How many callers have destroyed something since.
    pub async fn ranges_begun(&self, spread: Spread) -> Result<usize> {
        let each = spread.each;
        let ranges = format!("SELECT count(DISTINCT (id - 1) / {each}) AS n FROM destroyed_collections");
        Ok(usize::try_from(self.count(&ranges).await?)?)
    }

    pub async fn has_table(&self, name: &str) -> Result<bool> {
        let question = if self.is_postgres() {
            format!("SELECT count(*) AS n FROM pg_class WHERE oid = to_regclass('{name}')")
        } else {
            format!("SELECT count(*) AS n FROM sqlite_master WHERE type = 'table' AND name = '{name}'")
        };
        Ok(self.count(&question).await? > 0)
    }

    fn is_postgres(&self) -> bool {
        self.db.get_database_backend() == DbBackend::Postgres
    }

    async fn count(&self, question: &str) -> Result<u64> {
        let question = Statement::from_string(self.db.get_database_backend(), question);
        let row = self.db.query_one_raw(question).await?.ok_or("no count")?;
        Ok(u64::try_from(row.try_get::<i64>("", "n")?)?)
    }
}
