//! The rows that are destroyed, and their tombstones. The benchmark's own connection to the database.

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend, Statement,
    TransactionTrait,
};

use crate::{Result, ids::Table};

/// Tables that a destroy writes to, newest first. Older programs have only the last.
const WRITTEN: [&str; 3] = ["event_outbox", "purge_queue", "destroyed_collections"];

#[derive(Clone)]
pub struct Data {
    db: DatabaseConnection,
    url: String,
    pub table: Table,
}

impl Data {
    /// Connects to a database that has been migrated.
    pub async fn open(url: &str, table: Table) -> Result<Self> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false);
        Ok(Self { db: Database::connect(options).await?, url: url.to_owned(), table })
    }

    /// Fills the table the first time, and later puts back the rows that were destroyed. Afterwards there are no
    /// tombstones, the statistics are up to date, and a checkpoint has nothing left to write.
    pub async fn reset(&self) -> Result<()> {
        let mut written = Vec::new();
        for name in WRITTEN {
            if self.has_table(name).await? {
                written.push(name);
            }
        }
        let postgres = self.is_postgres();
        let is_empty =
            self.count("SELECT count(*) AS n FROM (SELECT 1 FROM collections LIMIT 1) AS row").await? == 0;
        if is_empty {
            self.insert(&self.numbers()).await?;
        } else {
            if postgres {
                // The rows go back to where they were: into the space of the dead ones, in the order of their ids.
                self.db.execute_unprepared("VACUUM (INDEX_CLEANUP ON) collections").await?;
            }
            self.insert("SELECT id AS n FROM destroyed_collections ORDER BY id").await?;
        }
        let settle = if postgres {
            let written = written.join(", ");
            vec![
                format!("TRUNCATE {written}"),
                format!("VACUUM ANALYZE collections, {written}"),
                "CHECKPOINT".to_owned(),
            ]
        } else {
            let clear = written.iter().map(|name| format!("DELETE FROM {name}"));
            clear.chain(["PRAGMA wal_checkpoint(TRUNCATE)".to_owned()]).collect()
        };
        for statement in settle {
            self.db.execute_unprepared(&statement).await?;
        }
        // What the file system has put off until later would come in the middle of the measurement.
        nix::unistd::sync();
        Ok(())
    }

    /// Inserts a row beyond those that are destroyed, and locks it: its id, its owner and the lock.
    pub async fn lock_row(&self) -> Result<(i64, i64, DatabaseTransaction)> {
        let (id, owner) = (self.table.rows + 1, 1);
        let insert = format!(
            "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
             VALUES ({id}, {owner}, '', '', now())"
        );
        self.db.execute_unprepared(&insert).await?;
        let transaction = Database::connect(&self.url).await?.begin().await?;
        let lock = format!("SELECT id FROM collections WHERE id = {id} FOR UPDATE");
        transaction.execute_unprepared(&lock).await?;
        Ok((id, owner, transaction))
    }

    /// Deletes such a row within its lock.
    pub async fn delete_locked(&self, id: i64, lock: DatabaseTransaction) -> Result<()> {
        lock.execute_unprepared(&format!("DELETE FROM collections WHERE id = {id}")).await?;
        Ok(lock.commit().await?)
    }

    /// A query for the numbers from 1 to that of the rows.
    fn numbers(&self) -> String {
        let rows = self.table.rows;
        if self.is_postgres() {
            return format!("SELECT n FROM generate_series(1, {rows}) AS n");
        }
        format!(
            "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {rows})
             SELECT n FROM g"
        )
    }

    async fn insert(&self, numbers: &str) -> Result<()> {
        let owner = self.table.owner_expression("n");
        let insert = format!(
            "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
             SELECT n, {owner}, 'Collection ' || n, 'curation_reverse_chron', '2026-01-01 00:00:00+00:00'
             FROM ({numbers}) AS numbers"
        );
        self.db.execute_unprepared(&insert).await?;
        Ok(())
    }

    /// How many rows have been destroyed since the last reset, by their owners.
    pub async fn tombstones(&self) -> Result<u64> {
        let owner = self.table.owner_expression("id");
        self.count(&format!("SELECT count(*) AS n FROM destroyed_collections WHERE owner_id = {owner}")).await
    }

    /// How many callers have destroyed something since, of callers who each give a name of their own.
    pub async fn callers(&self) -> Result<usize> {
        let callers = self.count("SELECT count(DISTINCT caller) AS n FROM destroyed_collections");
        Ok(usize::try_from(callers.await?)?)
    }

    /// The bytes of write-ahead log that PostgreSQL has written so far; NaN on SQLite.
    pub async fn wal_bytes(&self) -> Result<f64> {
        if !self.is_postgres() {
            return Ok(f64::NAN);
        }
        let position = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS n";
        Ok(self.count(position).await? as f64)
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
