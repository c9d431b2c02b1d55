//! The destroy finds every row by its key, whatever statistics the database has of the tables.

use collections_service::store::{
    SQLITE_CLASSIFY, SQLITE_DELETE, SQLITE_OUTBOX, SQLITE_PURGE, SQLITE_TOMBSTONES,
};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TransactionTrait,
};

use super::support::{Backend, OWNER, TestDatabase};

/// Rows enough that reading all of them would show.
const MANY: i64 = 100_000;

/// One session, so that the function's plans are kept in it.
async fn session(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1);
    Database::connect(options).await.unwrap()
}

async fn fill(session: &DatabaseConnection, from: i64, to: i64) {
    for (table, columns, values) in [
        ("collections", "owner_id, name, timeline_order, created_at", "'', '', now()"),
        ("destroyed_collections", "owner_id, destroyed_at", "now()"),
    ] {
        // Tombstones of other ids than those of the living.
        let id = if table == "collections" { "id" } else { "-id" };
        let insert = format!(
            "INSERT INTO {table} (id, {columns}) SELECT {id}, {OWNER}, {values} FROM generate_series({from}, {to}) AS id"
        );
        session.execute_unprepared(&insert).await.unwrap();
    }
    let queue = format!("INSERT INTO purge_queue SELECT -id, now() FROM generate_series({from}, {to}) AS id");
    session.execute_unprepared(&queue).await.unwrap();
}

/// A call of the function for these ids. Every third of them is asked for by another user.
fn call(ids: &[i64], replays_first: bool) -> String {
    let list = |item: &dyn Fn(i64) -> String| ids.iter().map(|id| item(*id)).collect::<Vec<_>>().join(",");
    let owner = |id: i64| if id % 3 == 0 { 1 } else { OWNER };
    format!(
        "SELECT destroy_collections_v1({}, '{{{}}}', '{{{}}}', now(), '{{{}}}', '{{{}}}', true, {replays_first}, '1s') AS codes",
        ids[0],
        list(&|id| id.to_string()),
        list(&|id| owner(id).to_string()),
        list(&|id| format!("00000000-0000-4000-8000-{id:012}")),
        list(&|_| "a".to_owned())
    )
}

/// Runs a call, and undoes it. Returns the codes, the tables that were read as a whole, and the number of rows that were read.
async fn run(session: &DatabaseConnection, call: &str) -> (String, Vec<String>, i64) {
    let transaction = session.begin().await.unwrap();
    let one = async |statement: &str| {
        let statement = Statement::from_string(DbBackend::Postgres, statement);
        transaction.query_all_raw(statement).await.unwrap()
    };
    let codes: String = one(call).await[0].try_get("", "codes").unwrap();
    let whole =
        "SELECT relname::text AS name FROM pg_stat_xact_user_tables WHERE seq_scan > 0 OR seq_tup_read > 0";
    let whole = one(whole).await.iter().map(|row| row.try_get("", "name").unwrap()).collect();
    let read =
        "SELECT sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::bigint AS rows FROM pg_stat_xact_user_tables";
    let rows = one(read).await[0].try_get("", "rows").unwrap();
    transaction.rollback().await.unwrap();
    // Or what this transaction did would be counted in the next one.
    session.execute_unprepared("SELECT pg_stat_force_next_flush()").await.unwrap();
    (codes, whole, rows)
}

/// For one destroy and for many, as usual and with replays decided first.
async fn assert_by_key(session: &DatabaseConnection, state: &str, ids: &[i64], expected: &str) {
    for ids in [&ids[..1], ids] {
        for replays_first in [false, true] {
            let (codes, whole, rows) = run(session, &call(ids, replays_first)).await;
            assert_eq!(
                codes.as_bytes(),
                &expected.as_bytes()[..ids.len()],
                "{state}, replays first: {replays_first}"
            );
            assert_eq!(whole, [] as [String; 0], "{state}, {} ids: read as a whole", ids.len());
            assert!(
                rows <= 8 * i64::try_from(ids.len()).unwrap(),
                "{state}: {rows} rows for {} ids",
                ids.len()
            );
        }
    }
}

#[tokio::test]
async fn rows_are_found_by_key_on_postgres() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let admin = database.connection().await;
    for table in ["collections", "destroyed_collections", "purge_queue", "event_outbox"] {
        // The test alone collects statistics.
        let off = format!("ALTER TABLE {table} SET (autovacuum_enabled = off)");
        admin.execute_unprepared(&off).await.unwrap();
    }
    let check = async |state: &str, expected: &str| {
        let session = session(&database.url).await;
        assert_by_key(&session, state, &[1, 2, 3, 4], expected).await;
        session
    };
    let analyze = async || admin.execute_unprepared("VACUUM ANALYZE").await.unwrap();
    let since_fresh = check("fresh", "nnnn").await;
    analyze().await;
    let since_empty = check("known to be empty", "nnnn").await;
    fill(&admin, 1, 1).await;
    check("one row, none in the statistics", "dnnn").await;
    analyze().await;
    let since_one = check("one row", "dnnn").await;
    fill(&admin, 2, 10).await;
    analyze().await;
    let since_ten = check("ten rows", "ddfd").await;
    fill(&admin, 11, MANY).await;
    check("many rows, ten in the statistics", "ddfd").await;
    for session in [&since_fresh, &since_empty, &since_one, &since_ten] {
        let ids: Vec<i64> = (1..=99).map(|number| number * 997).collect();
        let expected = "ddf".repeat(33);
        assert_by_key(session, "planned before there were many rows", &ids, &expected).await;
    }
    analyze().await;
    check("many rows", "ddfd").await;
}

#[tokio::test]
async fn rows_are_found_by_key_on_sqlite() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let admin = database.connection().await;
    for statement in [SQLITE_CLASSIFY, SQLITE_DELETE, SQLITE_OUTBOX, SQLITE_PURGE, SQLITE_TOMBSTONES] {
        let values = ["[]".into(), "now".into()].into_iter().take(1 + usize::from(statement.contains("?2")));
        let explain = Statement::from_sql_and_values(
            DbBackend::Sqlite,
            format!("EXPLAIN QUERY PLAN {statement}"),
            values.collect::<Vec<sea_orm::Value>>(),
        );
        let rows = admin.query_all_raw(explain).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.try_get("", "detail").unwrap()).collect();
        for line in &plan {
            let by_key =
                line.contains("USING INTEGER PRIMARY KEY (rowid=?)") || line.contains("VIRTUAL TABLE");
            assert!(by_key || !line.starts_with("SCAN") && !line.starts_with("SEARCH"), "{plan:?}");
        }
    }
}
