//! The database of the histories: read, backed up and restored without the store.

use std::{fs, sync::atomic::Ordering};

use collections_service::{
    domain::{Clock, CollectionId, RequestId},
    store::{Capacity, Purger, Store, Tombstone},
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Statement, TransactionTrait};

use super::model::{Collection, Entry, Tables, Time};
use crate::support::{Backend, TestDatabase, connect, user};

const TABLES: [&str; 6] =
    ["collections", "collection_entries", "destroyed_collections", "purge_queue", "event_outbox", "imports"];

pub struct Database {
    database: TestDatabase,
    backend: Backend,
    pub store: Store,
    /// The test's own.
    connection: DatabaseConnection,
    /// As the background job of a service has one, until the service ends.
    pub purger: Option<(Purger, u32)>,
}

impl Database {
    pub async fn new(backend: Backend) -> Self {
        let database = TestDatabase::new(backend).await;
        // Else it would delete the write-ahead log of the file that takes the place of its own.
        database.store.close().await;
        let connection = database.connection().await;
        let store = open(&database).await;
        let database = Self { database, backend, store, connection, purger: None };
        if matches!(backend, Backend::Postgres) {
            database.execute("CREATE SCHEMA saved").await;
            for table in TABLES {
                let create = format!("CREATE TABLE saved.{table} (backup int, saved_row public.{table})");
                database.execute(&create).await;
            }
        }
        database.back_up(0).await;
        database
    }

    /// Moves the clock on by a second.
    pub fn tick(&self) -> Time {
        let Clock::Set(seconds) = &self.database.clock else { panic!("the clock is the machine's") };
        seconds.fetch_add(1, Ordering::Relaxed);
        self.database.clock.now()
    }

    /// Deletes all rows.
    pub async fn clear(&mut self) {
        if matches!(self.backend, Backend::Postgres) {
            for table in TABLES {
                self.execute(&format!("DELETE FROM saved.{table} WHERE backup > 0")).await;
            }
        }
        self.restore(0).await;
    }

    pub async fn restart(&mut self) {
        self.purger = None;
        self.store.close().await;
        self.store = open(&self.database).await;
    }

    /// SQLite: as `deploy/RESTORE.md` does it. PostgreSQL: a copy of the rows of one snapshot, in place of `pg_dump`, which
    /// the test of `deploy/RESTORE.md` runs.
    pub async fn back_up(&self, number: usize) {
        if let Backend::Sqlite = self.backend {
            let _missing = fs::remove_file(self.saved_file(number));
            self.execute(&format!("VACUUM INTO '{}'", self.saved_file(number))).await;
            return;
        }
        let transaction = self.connection.begin().await.unwrap();
        transaction.execute_unprepared("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
        for table in TABLES {
            let copy = format!("INSERT INTO saved.{table} SELECT {number}, {table} FROM public.{table}");
            transaction.execute_unprepared(&copy).await.unwrap();
        }
        transaction.commit().await.unwrap();
    }

    /// The service is stopped meanwhile.
    pub async fn restore(&mut self, number: usize) {
        self.purger = None;
        self.store.close().await;
        if let Backend::Sqlite = self.backend {
            self.connection.close_by_ref().await.unwrap();
            let file = self.file("db");
            for old in [file.clone(), format!("{file}-wal"), format!("{file}-shm")] {
                let _missing = fs::remove_file(old);
            }
            fs::copy(self.saved_file(number), file).unwrap();
            self.connection = self.database.connection().await;
        } else {
            let transaction = self.connection.begin().await.unwrap();
            for table in TABLES {
                let delete = format!("DELETE FROM public.{table}");
                transaction.execute_unprepared(&delete).await.unwrap();
                let insert = format!(
                    "INSERT INTO public.{table} SELECT (saved_row).* FROM saved.{table} WHERE backup = {number}"
                );
                transaction.execute_unprepared(&insert).await.unwrap();
            }
            transaction.commit().await.unwrap();
        }
        self.store = open(&self.database).await;
    }

    fn file(&self, name: &str) -> String {
        self.database.folder.path().join(name).display().to_string()
    }

    fn saved_file(&self, number: usize) -> String {
        self.file(&format!("saved-{number}"))
    }

    /// An entry that another program writes.
    pub async fn add_entry(&self, id: i64, tweet: i64, now: Time) {
        let insert = "INSERT INTO collection_entries (collection_id, tweet_id, sort_index, added_at) \
                      VALUES ($1, $2, 0, $3)";
        let values = [id.into(), tweet.into(), now.into()];
        let backend = self.connection.get_database_backend();
        self.connection.execute_raw(Statement::from_sql_and_values(backend, insert, values)).await.unwrap();
    }

    async fn execute(&self, sql: &str) {
        self.connection.execute_unprepared(sql).await.unwrap();
    }

    pub async fn tables(&self) -> Tables {
        let collections = self.rows("SELECT id, owner_id, name, created_at FROM collections", |row| {
            let collection = Collection {
                owner: row.try_get("", "owner_id")?,
                name: row.try_get("", "name")?,
                created_at: row.try_get("", "created_at")?,
            };
            Ok((row.try_get("", "id")?, collection))
        });
        let entries = self.rows("SELECT * FROM collection_entries", |row| {
            let key = (row.try_get("", "collection_id")?, row.try_get("", "tweet_id")?);
            let (sort_index, added_at) = (row.try_get("", "sort_index")?, row.try_get("", "added_at")?);
            Ok((key, Entry { sort_index, added_at }))
        });
        let tombstones = self.rows("SELECT * FROM destroyed_collections", |row| {
            let number: i64 = row.try_get("", "id")?;
            let tombstone = Tombstone {
                id: CollectionId::new(number).unwrap(),
                owner: user(row.try_get("", "owner_id")?),
                destroyed_at: row.try_get("", "destroyed_at")?,
                request_id: row.try_get::<Option<uuid::Uuid>>("", "request_id")?.map(RequestId::from),
                caller: row.try_get("", "caller")?,
            };
            Ok((number, tombstone))
        });
        let queued = |row: &QueryResult| Ok((row.try_get("", "id")?, row.try_get("", "since")?));
        let (collections, entries, tombstones, purge_queue, event_outbox, imports) = (
            collections.await,
            entries.await,
            tombstones.await,
            self.rows("SELECT * FROM purge_queue", queued).await,
            self.rows("SELECT * FROM event_outbox", queued).await,
            self.rows("SELECT * FROM imports", |row| {
                let reached = (row.try_get("", "started_at")?, row.try_get("", "line")?);
                Ok((row.try_get("", "name")?, reached))
            })
            .await,
        );
        Tables {
            collections: collections.into_iter().collect(),
            entries: entries.into_iter().collect(),
            tombstones: tombstones.into_iter().collect(),
            purge_queue: purge_queue.into_iter().collect(),
            event_outbox: event_outbox.into_iter().collect(),
            imports: imports.into_iter().collect(),
        }
    }

    async fn rows<T>(&self, sql: &str, read: impl Fn(&QueryResult) -> Result<T, DbErr>) -> Vec<T> {
        let statement = Statement::from_string(self.connection.get_database_backend(), sql);
        let rows = self.connection.query_all_raw(statement).await.unwrap();
        rows.iter().map(|row| read(row).unwrap()).collect()
    }
}

/// As a service that publishes opens it.
async fn open(database: &TestDatabase) -> Store {
    let capacity = Capacity { publish: true, ..Capacity::of(3) };
    connect(&database.url, capacity, &database.clock).await
}
