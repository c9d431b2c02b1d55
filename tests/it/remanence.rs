//! What was destroyed and purged is found in no file of the database.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use collections_service::domain::Entropy;
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, DatabaseConnection};

use super::{
    batches::{destroy_concurrently, destroy_with_request_id},
    purge::{count, put_with_entries, wait_until_purged},
    support::{
        Backend, OWNER, TestDatabase, destroy,
        program::{Program, run},
        rpc,
    },
};

/// Of so many collections every other one is destroyed.
const COLLECTIONS: i64 = 60;
const ENTRIES: i64 = 40;

/// The files of an SQLite database, a character for each byte.
fn contents(folder: &Path) -> String {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("db"));
    files.flat_map(|file| fs::read(file).unwrap()).map(char::from).collect()
}

/// Texts and numbers that are found nowhere else.
struct Patterns {
    texts: [String; 3],
    /// In the six lower bytes, so that SQLite stores all of them as they are.
    tweet: i64,
}

impl Patterns {
    fn new() -> Self {
        let text = || format!("pattern-{}", Entropy::default().hex::<12>());
        let random = i64::from_be_bytes(Entropy::default().bytes());
        Self { texts: [text(), text(), text()], tweet: random & 0x00ff_ffff_ffff | 0x0080_0000_0000_0000 }
    }

    /// How often those of the collection and of its entries are found.
    fn hits(&self, contents: &str) -> usize {
        // The six bytes that the tweet ids of one collection share.
        let tweet: String = self.tweet.to_be_bytes()[1..7].iter().copied().map(char::from).collect();
        let texts = self.texts.iter().chain([&tweet]);
        texts.map(|text| contents.matches(text.as_str()).count()).sum()
    }

    /// The statement that puts the collection in, and those of its entries.
    fn rows(&self, id: i64) -> Vec<String> {
        let [name, description, url] = &self.texts;
        let collection = format!(
            "INSERT INTO collections (id, owner_id, name, description, url, timeline_order, created_at)
             VALUES ({id}, {OWNER}, '{name}', '{description}', 'https://{url}', '', CURRENT_TIMESTAMP);"
        );
        let entry = |entry| {
            let tweet = self.tweet & !0xff | entry;
            format!("INSERT INTO collection_entries VALUES ({id}, {tweet}, {entry}, CURRENT_TIMESTAMP);")
        };
        std::iter::once(collection).chain((0..ENTRIES).map(entry)).collect()
    }
}

/// Puts all rows in, in an order in which the pages of the file are split again and again.
async fn put_all(connection: &DatabaseConnection, patterns: &[Patterns]) {
    let rows: Vec<_> = (1..).zip(patterns).map(|(id, pattern)| pattern.rows(id)).collect();
    for row in 0..=ENTRIES as usize {
        let order = (0..rows.len()).map(|index| index * 37 % rows.len());
        let script: String =
            order.map(|index| rows[index][row * 11 % (ENTRIES as usize + 1)].as_str()).collect();
        connection.execute_unprepared(&script).await.unwrap();
    }
}

/// Patterns in the rows of so many collections, of which every other one is destroyed by a service with these flags.
async fn destroy_half(database: &TestDatabase, flags: &[&str]) -> (Program, Vec<Patterns>, Vec<Patterns>) {
    let connection = database.connection().await;
    let patterns: Vec<Patterns> = (0..COLLECTIONS).map(|_| Patterns::new()).collect();
    put_all(&connection, &patterns).await;
    connection.close().await.unwrap();
    database.store.close().await;
    let found = contents(database.folder.path());
    assert!(
        patterns.iter().all(|pattern| pattern.hits(&found) >= 3 + ENTRIES as usize),
        "patterns are not found"
    );
    let program = Program::serve(database, flags).await;
    let (mut destroyed, mut live) = (Vec::new(), Vec::new());
    for (id, pattern) in (1..).zip(patterns) {
        if id % 2 == 0 {
            live.push(pattern);
            continue;
        }
        destroy(&mut rpc(&program.grpc), OWNER, &format!("custom-{id}"), "").await.unwrap();
        destroyed.push(pattern);
    }
    (program, destroyed, live)
}

/// While the service goes on, and after it has ended.
async fn assert_erased(database: &TestDatabase, program: Program, destroyed: &[Patterns], live: &[Patterns]) {
    let hits = |patterns: &[Patterns]| -> Vec<usize> {
        let found = contents(database.folder.path());
        patterns.iter().map(|pattern| pattern.hits(&found)).collect()
    };
    assert_eq!(hits(destroyed), vec![0; destroyed.len()], "found in the files");
    assert!(hits(live).iter().all(|hits| *hits >= 3 + ENTRIES as usize));
    program.signal(Signal::SIGTERM);
    program.ended(Duration::from_secs(25)).await;
    assert_eq!(hits(destroyed), vec![0; destroyed.len()], "found in the files after the service has ended");
    let connection = database.connection().await;
    assert_eq!(count(&connection, "collection_entries").await, COLLECTIONS / 2 * ENTRIES);
}

/// Through the real binary, whose SQLite is its own: another build of it may overwrite what it deletes where ours does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purge_once_leaves_nothing_in_the_files_of_sqlite() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let (program, destroyed, live) = destroy_half(&database, &["--purge", "off"]).await;
    let (code, output, error) =
        run(&["purge", "--once"], &[("COLLECTIONS_DATABASE_URL", &database.url)]).await;
    assert_eq!(code, 0, "{output}{error}");
    assert_erased(&database, program, &destroyed, &live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_leaves_nothing_in_the_files_of_sqlite() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let (program, destroyed, live) = destroy_half(&database, &[]).await;
    let connection = database.connection().await;
    wait_until_purged(&connection).await;
    connection.close().await.unwrap();
    assert_erased(&database, program, &destroyed, &live).await;
}

/// Every statement of the document runs as written, and what was destroyed is in no live row of PostgreSQL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_statements_of_the_document_run() {
    let document = include_str!("../../deploy/ERASURE.md");
    let database = TestDatabase::new(Backend::Postgres).await;
    for id in 1..=3 {
        put_with_entries(&database, id, 5).await;
    }
    destroy_concurrently(&database.store, [destroy_with_request_id(1, 0), destroy_with_request_id(2, 0)])
        .await;
    let (code, output, error) =
        run(&["purge", "--once"], &[("COLLECTIONS_DATABASE_URL", &database.url)]).await;
    assert_eq!(code, 0, "{output}{error}");
    let statements: Vec<&str> =
        document.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(statements.len(), 5, "{statements:?}");
    let psql = Path::new(&std::env::var("TEST_POSTGRES_BIN").unwrap()).join("psql");
    for statement in statements {
        let psql = Command::new(&psql)
            .args(["-X", "-v", "ON_ERROR_STOP=1", "-d", &database.url, "-f", "-"])
            .stdin(Stdio::piped())
            .spawn();
        let mut psql = psql.unwrap();
        psql.stdin.take().unwrap().write_all(statement.as_bytes()).unwrap();
        assert!(psql.wait().unwrap().success(), "{statement}");
    }
    let connection = database.connection().await;
    assert_eq!(count(&connection, "collections WHERE id < 3").await, 0);
    assert_eq!(count(&connection, "collection_entries WHERE collection_id < 3").await, 0);
    assert_eq!(count(&connection, "collection_entries").await, 5);
}
