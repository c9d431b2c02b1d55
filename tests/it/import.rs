//! `import` as an operator runs it: what it takes, what it refuses, and how it is stopped and resumed.

mod documentation;
mod formats;
mod kills;
mod races;
mod rejects;
mod resuming;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use sea_orm::{ConnectionTrait, QueryResult, Statement};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::support::{Backend, TestDatabase, program};

/// A database, and a folder with the input.
pub struct ImportFixture {
    pub database: TestDatabase,
}

/// Exit code, standard output, standard error.
pub type Ended = (i32, String, String);

impl ImportFixture {
    pub async fn new(backend: Backend) -> Self {
        Self { database: TestDatabase::new(backend).await }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.database.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// `import` with these arguments, in the folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::command(&[&["import"], arguments].concat());
        command
            .env("COLLECTIONS_DATABASE_URL", &self.database.url)
            .current_dir(self.database.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub async fn import(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments).output().await.unwrap())
    }

    /// With this on standard input.
    pub async fn import_from(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // One that stops early does not read all.
        let _closed = stdin.write_all(input).await;
        drop(stdin);
        ended(child.wait_with_output().await.unwrap())
    }

    pub async fn execute(&self, sql: &str) {
        self.database.connection().await.execute_unprepared(sql).await.unwrap();
    }

    pub async fn rows(&self, sql: &str) -> Vec<QueryResult> {
        let connection = self.database.connection().await;
        let query = Statement::from_string(connection.get_database_backend(), sql);
        let rows = connection.query_all_raw(query).await.unwrap();
        connection.close().await.unwrap();
        rows
    }

    /// Every collection, as one line.
    pub async fn collections(&self) -> Vec<String> {
        let rows = self.rows("SELECT * FROM collections ORDER BY id").await;
        let line = |row: &QueryResult| {
            let number = |name: &str| row.try_get::<i64>("", name).unwrap();
            let text = |name: &str| row.try_get::<Option<String>>("", name).unwrap();
            let at: chrono::DateTime<chrono::Utc> = row.try_get("", "created_at").unwrap();
            let texts = ["name", "description", "url", "timeline_order"].map(text);
            format!("{} of {} {texts:?} {at:?}", number("id"), number("owner_id"))
        };
        rows.iter().map(line).collect()
    }

    /// Every entry, as one line.
    pub async fn entries(&self) -> Vec<String> {
        let rows =
            self.rows("SELECT * FROM collection_entries ORDER BY collection_id, sort_index, tweet_id").await;
        let line = |row: &QueryResult| {
            let number = |name: &str| row.try_get::<i64>("", name).unwrap();
            let at: chrono::DateTime<chrono::Utc> = row.try_get("", "added_at").unwrap();
            format!("{}: {} at {} {at:?}", number("collection_id"), number("tweet_id"), number("sort_index"))
        };
        rows.iter().map(line).collect()
    }

    /// Of unfinished imports: name and line.
    pub async fn unfinished(&self) -> Vec<(String, i64)> {
        let rows = self.rows("SELECT name, line FROM imports ORDER BY name").await;
        rows.iter().map(|row| (row.try_get("", "name").unwrap(), row.try_get("", "line").unwrap())).collect()
    }

    /// Line, reason and text of each reject.
    pub fn rejects(&self, name: &str) -> Vec<(u64, String, String)> {
        let file = std::fs::read_to_string(self.path(name)).unwrap();
        let reject = |line: &str| {
            let value: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| value[name].as_str().unwrap().to_owned();
            (value["line"].as_u64().unwrap(), text("reason"), text("text"))
        };
        file.lines().map(reject).collect()
    }
}

pub fn ended(output: std::process::Output) -> Ended {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    // On a busy machine an import may take long enough for lines of its progress.
    let errors = text(output.stderr).split_inclusive('\n').filter(|line| !line.contains(" rows/s")).collect();
    (output.status.code().unwrap(), text(output.stdout), errors)
}

pub fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}

/// A line with a time, so that two imports of it make the same rows.
pub fn line(id: u64, entries: usize) -> String {
    let entries: Vec<usize> = (1..=entries).collect();
    format!(
        "{{\"id\":\"custom-{id}\",\"owner_id\":7,\"name\":\"number {id}\",\
         \"created_at\":\"2026-01-02T03:04:05Z\",\"entries\":{entries:?}}}\n"
    )
}

pub fn summary(collections: u64, entries: u64, existing: u64, rejected: u64) -> String {
    format!(
        "imported {collections} collections with {entries} entries, {existing} existed already, {rejected} rejected\n"
    )
}
