//! An import and a purge that run during a fault, in processes of their own.

use std::{
    fmt::Write,
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use sea_orm::DatabaseConnection;
use tokio::{
    process::Child,
    time::{Instant, sleep, timeout},
};

use crate::{
    purge::count,
    support::{
        OWNER, TestDatabase,
        program::{self, path},
    },
};

/// In each import: enough that it is still running when the fault is injected.
const COLLECTIONS: i64 = 20_000;
/// In each of those.
const ENTRIES: i64 = 4;
/// Above all ids that the callers destroy.
const FIRST: i64 = 1_000_000_000;
/// The longest that an import may take after the fault.
const IMPORT_BOUND: Duration = Duration::from_secs(60);

pub struct Work {
    url: String,
    file: PathBuf,
    name: String,
    ids: RangeInclusive<i64>,
    import: Child,
    purge: Child,
}

impl Work {
    pub fn start(database: &TestDatabase, round: i64) -> Self {
        let first = FIRST + round * COLLECTIONS;
        let ids = first..=first + COLLECTIONS - 1;
        let file = database.folder.path().join("import.ndjson");
        let entries: Vec<i64> = (1..=ENTRIES).collect();
        let mut lines = String::new();
        for id in ids.clone() {
            writeln!(
                lines,
                r#"{{"id":"custom-{id}","owner_id":{OWNER},"name":"a name","entries":{entries:?}}}"#
            )
            .unwrap();
        }
        fs::write(&file, lines).unwrap();
        let name = format!("ledger-{round}");
        let url = database.url.clone();
        let import = start(&url, &import_arguments(&file, &name));
        let purge = start(&url, &["purge", "--once", "--purge-pause", "20", "--purge-batch", "10"]);
        Self { url, file, name, ids, import, purge }
    }

    /// Whether the import, and whether the purge, are still running.
    pub fn in_flight(&mut self) -> (bool, bool) {
        let is_running = |child: &mut Child| child.try_wait().unwrap().is_none();
        (is_running(&mut self.import), is_running(&mut self.purge))
    }

    /// SIGKILL of both.
    pub async fn kill(&mut self) {
        for child in [&mut self.import, &mut self.purge] {
            child.kill().await.unwrap();
        }
    }

    /// Resumes the import until it is complete. Returns what is wrong with its rows.
    pub async fn finish(mut self, connection: &DatabaseConnection) -> Vec<String> {
        let begun = Instant::now();
        timeout(IMPORT_BOUND, self.import.wait()).await.expect("the import does not end").unwrap();
        // Not with `wait_until`, because one attempt may take longer than that waits.
        loop {
            let mut again = start(&self.url, &import_arguments(&self.file, &self.name));
            let status = timeout(IMPORT_BOUND, again.wait()).await.expect("the import does not end").unwrap();
            if status.success() {
                break;
            }
            assert!(begun.elapsed() < IMPORT_BOUND, "the import fails again and again");
            sleep(Duration::from_millis(100)).await;
        }
        timeout(IMPORT_BOUND, self.purge.wait()).await.expect("the purge does not end").unwrap();
        let (first, last) = self.ids.into_inner();
        let rows = count(connection, &format!("collections WHERE id BETWEEN {first} AND {last}")).await;
        let entries =
            count(connection, &format!("collection_entries WHERE collection_id BETWEEN {first} AND {last}"))
                .await;
        if (rows, entries) == (COLLECTIONS, COLLECTIONS * ENTRIES) {
            return Vec::new();
        }
        vec![format!("{}: {rows} collections with {entries} entries were imported", self.name)]
    }
}

fn import_arguments<'a>(file: &'a Path, name: &'a str) -> [&'a str; 5] {
    ["import", path(file), "--resume", "--name", name]
}

fn start(url: &str, arguments: &[&str]) -> Child {
    let mut command = program::command(arguments);
    command.env("COLLECTIONS_DATABASE_URL", url).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}
