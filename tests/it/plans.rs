//! The destroy's statements find every row by its key, whatever the database knows or believes of the tables.

use std::fmt::Write;

use collections_service::config::BATCH_LOCK_WAIT;
use collections_service::store::{
    DESTROY, DESTROY_BATCH, Destroy, SETTINGS, SQLITE_DELETE, SQLITE_LOOK, SQLITE_TOMBSTONES, Store,
};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TransactionTrait,
};

use super::support::{Backend, Ground, OWNER, fresh_postgres};

/// Rows enough that reading all of them would show.
const MANY: i64 = 100_000;

/// One session, set up as the service's own.
async fn session(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1);
    let session = Database::connect(options).await.unwrap();
    session.execute_unprepared(SETTINGS).await.unwrap();
    session
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
}

async fn lines(session: &DatabaseConnection, statement: &str, column: &str) -> Vec<String> {
    let backend = session.get_database_backend();
    let rows = session.query_all_raw(Statement::from_string(backend, statement)).await.unwrap();
    rows.iter().map(|row| row.try_get("", column).unwrap()).collect()
}

/// The statements are prepared once, as the service does, and keep that plan.
async fn prepare(session: &DatabaseConnection) {
    let types = "bigint, bigint, timestamptz, uuid, text";
    let arrays = "bigint[], bigint[], timestamptz, uuid[], text[]";
    for (name, types, text) in [("one", types, DESTROY), ("many", arrays, DESTROY_BATCH)] {
        session.execute_unprepared(&format!("PREPARE {name} ({types}) AS {text}")).await.unwrap();
    }
}

/// The plans of both statements for these ids, of which some are there.
async fn plans(session: &DatabaseConnection, options: &str, ids: &[i64]) -> [Vec<String>; 2] {
    let list = |item: &dyn Fn(i64) -> String| ids.iter().map(|id| item(*id)).collect::<Vec<_>>().join(",");
    let (all, owners, nulls) =
        (list(&|id| id.to_string()), list(&|_| OWNER.to_string()), list(&|_| "NULL".into()));
    let one = format!("EXPLAIN ({options}) EXECUTE one({}, {OWNER}, now(), NULL, NULL)", ids[0]);
    let many = format!(
        "EXPLAIN ({options}) EXECUTE many('{{{all}}}', '{{{owners}}}', now(), '{{{nulls}}}', '{{{nulls}}}')"
    );
    [lines(session, &one, "QUERY PLAN").await, lines(session, &many, "QUERY PLAN").await]
}

/// Every scan of a table is one of its primary key, by the id.
fn assert_by_key(state: &str, plan: &[String]) {
    let text = plan.join("\n");
    for wrong in ["Seq Scan", "Bitmap", "Nested Loop", "Merge Join"] {
        assert!(!text.contains(wrong), "{state}: {wrong}\n{text}");
    }
    let mut scans = 0;
    for (number, line) in plan.iter().enumerate() {
        if line.contains("Scan using") {
            scans += 1;
            assert!(line.contains("_pkey on "), "{state}: {line}\n{text}");
            assert!(plan[number + 1].contains("Index Cond: (id = "), "{state}: {line}\n{text}");
        }
    }
    assert!(scans >= 3, "{state}\n{text}");
}

#[tokio::test]
async fn rows_are_found_by_key_on_postgres() {
    let ground = Ground::new(Backend::Postgres).await;
    let beside = ground.beside().await;
    for table in ["collections", "destroyed_collections"] {
        // Nobody's statistics but the test's.
        let off = format!("ALTER TABLE {table} SET (autovacuum_enabled = off)");
        beside.execute_unprepared(&off).await.unwrap();
    }
    let check = async |state: &str| {
        let session = session(&ground.url).await;
        prepare(&session).await;
        for plan in plans(&session, "COSTS OFF", &[1, 2, 3]).await {
            assert_by_key(state, &plan);
        }
        session
    };
    let analyze = async || beside.execute_unprepared("VACUUM ANALYZE").await.unwrap();
    let since_fresh = check("fresh").await;
    analyze().await;
    let since_empty = check("known to be empty").await;
    fill(&beside, 1, 1).await;
    check("one row, believed to be none").await;
    analyze().await;
    let since_one = check("one row").await;
    fill(&beside, 2, 10).await;
    analyze().await;
    let since_ten = check("ten rows").await;
    fill(&beside, 11, MANY).await;
    check("many rows, believed to be ten").await;
    for session in [&since_fresh, &since_empty, &since_one, &since_ten] {
        let ids: Vec<i64> = (1..=100).map(|number| number * 997).collect();
        session.execute_unprepared("BEGIN").await.unwrap();
        for plan in plans(session, "ANALYZE, BUFFERS, COSTS OFF, TIMING OFF", &ids).await {
            assert_by_key("planned before there were many rows", &plan);
            // The first line with buffers is the whole statement's.
            let buffers =
                plan.iter().find_map(|line| line.trim().strip_prefix("Buffers: shared hit=")).unwrap();
            let hit: usize = buffers.split_whitespace().next().unwrap().parse().unwrap();
            assert!(hit < 40 * ids.len(), "{hit} pages for {} ids", ids.len());
        }
        session.execute_unprepared("ROLLBACK").await.unwrap();
    }
    analyze().await;
    check("many rows").await;
}

/// The settings are those of the service's own sessions, of batches and of the pool.
#[tokio::test]
async fn its_sessions_are_set_up() {
    let ground = Ground::on(Some(fresh_postgres().await)).await;
    let settings = "SELECT name || '=' || setting AS line FROM pg_settings WHERE name IN
        ('plan_cache_mode', 'enable_seqscan', 'enable_bitmapscan', 'enable_nestloop', 'enable_mergejoin', 'jit') ORDER BY name";
    let session = session(&ground.url).await;
    let expected = [
        "enable_bitmapscan=off",
        "enable_mergejoin=off",
        "enable_nestloop=off",
        "enable_seqscan=off",
        "jit=off",
        "plan_cache_mode=force_generic_plan",
    ];
    assert_eq!(lines(&session, settings, "line").await, expected);
    // What a session has set shows in its own plans alone: a function tells what the service's sessions have.
    let mut spy =
        "CREATE TABLE seen (line text); CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO seen "
            .to_owned();
    write!(spy, "{settings}; RETURN new; END $$; CREATE TRIGGER spy AFTER INSERT ON destroyed_collections FOR EACH ROW EXECUTE FUNCTION spy()").unwrap();
    ground.beside().await.execute_unprepared(&spy).await.unwrap();
    let seen = async || lines(&session, "SELECT line FROM seen ORDER BY line", "line").await;
    ground.put(1, OWNER).await;
    destroy(&ground.store, 1).await;
    assert_eq!(seen().await, expected);
    // One that waits for a lock goes on alone, over a connection of the pool.
    session.execute_unprepared("DELETE FROM seen").await.unwrap();
    ground.put(2, OWNER).await;
    let rival = ground.beside().await.begin().await.unwrap();
    rival.execute_unprepared("SELECT id FROM collections WHERE id = 2 FOR UPDATE").await.unwrap();
    let end = async {
        tokio::time::sleep(2 * BATCH_LOCK_WAIT).await;
        rival.rollback().await.unwrap();
    };
    tokio::join!(destroy(&ground.store, 2), end);
    assert_eq!(seen().await, expected);
}

async fn destroy(store: &Store, id: i64) {
    let destroy = Destroy {
        id: collections_service::domain::CollectionId::new(id).unwrap(),
        user: super::support::user(OWNER),
        request_id: None,
        caller: None,
        deadline: tokio::time::Instant::now() + std::time::Duration::from_secs(10),
    };
    store.destroy(destroy).await.unwrap();
}

#[tokio::test]
async fn rows_are_found_by_key_on_sqlite() {
    let ground = Ground::new(Backend::Sqlite).await;
    let beside = ground.beside().await;
    for statement in [SQLITE_DELETE, SQLITE_LOOK, SQLITE_TOMBSTONES] {
        let values = ["[]".into(), "now".into()].into_iter().take(1 + usize::from(statement.contains("?2")));
        let explain = Statement::from_sql_and_values(
            DbBackend::Sqlite,
            format!("EXPLAIN QUERY PLAN {statement}"),
            values.collect::<Vec<sea_orm::Value>>(),
        );
        let rows = beside.query_all_raw(explain).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.try_get("", "detail").unwrap()).collect();
        for line in &plan {
            let by_key =
                line.contains("USING INTEGER PRIMARY KEY (rowid=?)") || line.contains("VIRTUAL TABLE");
            assert!(by_key || !line.starts_with("SCAN") && !line.starts_with("SEARCH"), "{plan:?}");
        }
    }
}
