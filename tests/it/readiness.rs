//! Readiness follows the database: a destroy is rehearsed, and the reason of a failure is logged.

use std::{collections::BTreeSet, future::Future, time::Duration};

use collections_service::{domain::Entropy, store::Capacity};
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::support::{
    Backend, OWNER, TestDatabase,
    cluster::Cluster,
    destroy, fresh_database, fresh_postgres,
    program::{Program, command, run},
    rpc, wait_for, wait_until,
};

/// The longest that readiness may take to follow the database, either way.
const SOON: Duration = Duration::from_secs(5);
const NOT_SERVING: i32 = 4;
const SERVING: i32 = 0;

/// Callers that destroy one collection after the other, until they are stopped.
struct Load {
    stop: watch::Sender<bool>,
    count: watch::Sender<usize>,
    callers: Vec<JoinHandle<Vec<i64>>>,
}

impl Load {
    /// Returns once collections are being destroyed.
    async fn on(database: &TestDatabase, program: &Program) -> Self {
        let fill = format!(
            "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
             SELECT id, {OWNER}, '', '', now() FROM generate_series(1000, 200000) AS id"
        );
        database.connection().await.execute_unprepared(&fill).await.unwrap();
        let (stop, count) = (watch::Sender::new(false), watch::Sender::new(0));
        let callers = (0..8_i64)
            .map(|caller| {
                let (mut rpc, stop, count) = (rpc(&program.grpc), stop.subscribe(), count.clone());
                tokio::spawn(async move {
                    let mut destroyed = Vec::new();
                    for id in (1000 + caller..200_000).step_by(8) {
                        if *stop.borrow() {
                            break;
                        }
                        match destroy(&mut rpc, OWNER, &format!("custom-{id}"), "").await {
                            Ok(_) => {
                                destroyed.push(id);
                                count.send_modify(|count| *count += 1);
                            }
                            // A pause, so that the collections last.
                            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    }
                    destroyed
                })
            })
            .collect();
        let load = Self { stop, count, callers };
        wait_until("the load has begun", async || *load.count.borrow() >= 100).await;
        load
    }

    /// The ids that were acknowledged.
    async fn destroyed(self) -> BTreeSet<i64> {
        self.stop.send(true).unwrap();
        let mut all = BTreeSet::new();
        for caller in self.callers {
            all.extend(caller.await.unwrap());
        }
        all
    }
}

async fn soon(program: &Program, code: i32) {
    timeout(SOON, program.wait_for_health(code))
        .await
        .unwrap_or_else(|_| panic!("health is not {code} in time"));
}

/// Ends the program; returns the lines of its log with the reasons why it was not ready.
async fn reasons(program: Program) -> Vec<String> {
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(30)).await;
    log.into_iter().filter(|line| line.contains("not ready")).collect()
}

async fn refused(program: &Program, id: i64) {
    let answer = destroy(&mut rpc(&program.grpc), OWNER, &format!("custom-{id}"), "").await;
    assert_eq!(super::support::reason(&answer.unwrap_err()), "STORE_UNAVAILABLE");
}

async fn execute(connection: &DatabaseConnection, statement: &str) {
    connection.execute_unprepared(statement).await.unwrap();
}

/// A role that may read and not destroy is no service's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_the_grant_is_not_ready() {
    let mut database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    database.put(2, OWNER).await;
    let (role, admin) = (format!("r{}", Entropy::default().hex::<8>()), database.connection().await);
    let read = format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}");
    execute(&admin, &read).await;
    database.url = database.url.replace("//tests@", &format!("//{role}@"));
    let program = Program::serve(&database, &[]).await;
    soon(&program, NOT_SERVING).await;
    refused(&program, 1).await;
    execute(&admin, &format!("GRANT EXECUTE ON FUNCTION destroy_collections_v1 TO {role}")).await;
    soon(&program, SERVING).await;
    destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap();
    execute(&admin, &format!("REVOKE EXECUTE ON FUNCTION destroy_collections_v1 FROM {role}")).await;
    soon(&program, NOT_SERVING).await;
    refused(&program, 2).await;
    let reasons = reasons(program).await;
    assert!(
        reasons.iter().all(|line| line.contains("permission denied for function destroy_collections_v1")),
        "{reasons:?}"
    );
    assert_eq!(database.owned_by(OWNER).await, [2]);
}

/// Without the grant on the table of versions the schema appears to be missing.
#[tokio::test]
async fn an_unreadable_schema_is_reported_as_unreadable() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let role = format!("r{}", Entropy::default().hex::<8>());
    execute(&database.connection().await, &format!("CREATE ROLE {role} LOGIN")).await;
    let url = database.url.replace("//tests@", &format!("//{role}@"));
    let store = super::support::connect(&url, Capacity::of(4), &database.clock).await;
    let error = store.check_schema().await.unwrap_err().to_string();
    assert!(error.contains("permission denied for table seaql_migrations"), "{error}");
}

/// The function has the tables' rights, and no one else may call it.
#[tokio::test]
async fn the_function_requires_a_grant() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let role = format!("r{}", Entropy::default().hex::<8>());
    execute(&database.connection().await, &format!("CREATE ROLE {role} LOGIN")).await;
    let stranger = Database::connect(database.url.replace("//tests@", &format!("//{role}@"))).await.unwrap();
    let call = "SELECT destroy_collections_v1(1, '{1}', '{1}', now(), '{00000000-0000-4000-8000-000000000000}', '{a}',
        false, false, '1s')";
    let error = stranger.execute_unprepared(call).await.unwrap_err();
    assert!(error.to_string().contains("permission denied"), "{error}");
    // A rehearsal does not serve to delete the traces of a destroy.
    let mixed = "SELECT destroy_collections_v1(-1, '{-1,5}', '{1,1}', now(),
        '{00000000-0000-4000-8000-000000000000,00000000-0000-4000-8000-000000000000}', '{a,a}', false, true, '1s')";
    let error = Database::connect(&database.url).await.unwrap().execute_unprepared(mixed).await.unwrap_err();
    assert!(error.to_string().contains("not positive"), "{error}");
    // A table of the caller's own does not take the place of ours.
    let owner = Database::connect(&database.url).await.unwrap();
    let shadow = "SELECT proconfig::text AS config FROM pg_proc WHERE proname = 'destroy_collections_v1'";
    let row =
        owner.query_one_raw(Statement::from_string(DbBackend::Postgres, shadow)).await.unwrap().unwrap();
    assert!(row.try_get::<String>("", "config").unwrap().contains("search_path=public, pg_temp"));
}

/// fsync is switched off for the whole server while it is under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_fsync_is_not_ready() {
    let cluster = Cluster::start().await;
    let database = TestDatabase::on(Some(fresh_database(&cluster.url()).await)).await;
    let program = Program::serve(&database, &[]).await;
    let load = Load::on(&database, &program).await;
    let admin = database.connection().await;
    execute(&admin, "ALTER SYSTEM SET fsync = off").await;
    execute(&admin, "SELECT pg_reload_conf()").await;
    soon(&program, NOT_SERVING).await;
    refused(&program, 1).await;
    execute(&admin, "ALTER SYSTEM SET fsync = on").await;
    execute(&admin, "SELECT pg_reload_conf()").await;
    soon(&program, SERVING).await;
    assert!(!load.destroyed().await.is_empty());
    let reasons = reasons(program).await;
    assert!(reasons.iter().all(|line| line.contains("fsync is off")) && !reasons.is_empty(), "{reasons:?}");
}

/// Whatever is switched off for the system, the database or the role: the function's own transaction is durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroy_is_durable_with_any_defaults() {
    let cluster = Cluster::start().await;
    let database = TestDatabase::on(Some(fresh_database(&cluster.url()).await)).await;
    let admin = database.connection().await;
    // What the commit does is what holds when the transaction ends.
    let spy = "CREATE TABLE commits (setting text);
        CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO commits VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER spy AFTER INSERT ON destroyed_collections DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION spy()";
    execute(&admin, spy).await;
    execute(&admin, "ALTER SYSTEM SET synchronous_commit = off").await;
    execute(&admin, "ALTER ROLE tests SET synchronous_commit = off").await;
    execute(&admin, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$")
        .await;
    execute(&admin, "SELECT pg_reload_conf()").await;
    let program = Program::serve(&database, &[]).await;
    soon(&program, SERVING).await;
    database.put(1, OWNER).await;
    destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap();
    let count = "SELECT count(*) AS n FROM commits WHERE setting = 'on'";
    wait_for(&admin, &format!("{count} HAVING count(*) = (SELECT count(*) FROM commits) AND count(*) >= 2"))
        .await;
}

/// A synchronous standby that does not answer: commits hang, and what is given up is ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_hang_do_not_use_up_connections() {
    let cluster = Cluster::start().await;
    let database = TestDatabase::on(Some(fresh_database(&cluster.url()).await)).await;
    let program = Program::serve(&database, &[]).await;
    let load = Load::on(&database, &program).await;
    let admin = database.connection().await;
    execute(&admin, "ALTER SYSTEM SET synchronous_standby_names = 'away'").await;
    execute(&admin, "SELECT pg_reload_conf()").await;
    soon(&program, NOT_SERVING).await;
    // The sessions are counted for fifteen seconds, in which several checks are given up.
    let mut most = 0;
    for _ in 0..30 {
        let count =
            "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'collections-service'";
        let row = admin.query_one_raw(Statement::from_string(DbBackend::Postgres, count)).await.unwrap();
        most = most.max(row.unwrap().try_get::<i64>("", "n").unwrap());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Eight are configured; a check that was given up is terminated by a later one.
    assert!(most <= 12, "{most} sessions");
    execute(&admin, "ALTER SYSTEM RESET synchronous_standby_names").await;
    execute(&admin, "SELECT pg_reload_conf()").await;
    soon(&program, SERVING).await;
    let destroyed = load.destroyed().await;
    let remaining: BTreeSet<i64> = database.owned_by(OWNER).await.into_iter().collect();
    assert_eq!(destroyed.intersection(&remaining).count(), 0);
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(30)).await;
    assert!(
        log.iter().any(|line| line.contains("terminated a statement") && line.contains("SyncRep")),
        "{log:?}"
    );
}

/// A role that was read-only for a while: the sessions of that time are not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_was_read_only_is_replaced() {
    let database = TestDatabase::on(Some(fresh_postgres().await)).await;
    database.put(1, OWNER).await;
    let admin = database.connection().await;
    let set = async |what: &str| {
        // In one query, because the next one may go over another connection, which is read-only too.
        let statement = format!(
            "SET transaction_read_only = off;
             DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {what}', current_database()); END $$"
        );
        execute(&admin, &statement).await;
    };
    set("SET default_transaction_read_only = on").await;
    let program = Program::serve(&database, &[]).await;
    soon(&program, NOT_SERVING).await;
    set("RESET default_transaction_read_only").await;
    soon(&program, SERVING).await;
    destroy(&mut rpc(&program.grpc), OWNER, "custom-1", "").await.unwrap();
    let reasons = reasons(program).await;
    assert!(
        reasons.iter().all(|line| line.contains("takes no writes")) && !reasons.is_empty(),
        "{reasons:?}"
    );
}

/// The database file is deleted, and later put back: nothing is acknowledged in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_file_is_noticed() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    for id in 1..=4 {
        database.put(id, OWNER).await;
    }
    database.store.close().await;
    let program = Program::serve(&database, &[]).await;
    let mut rpc = rpc(&program.grpc);
    destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap();
    let file = |name: &str| database.folder.path().join(name);
    for name in ["db", "db-wal", "db-shm"] {
        std::fs::rename(file(name), file(&format!("kept-{name}"))).unwrap();
    }
    destroy(&mut rpc, OWNER, "custom-2", "").await.unwrap_err();
    soon(&program, NOT_SERVING).await;
    refused(&program, 3).await;
    for name in ["db", "db-wal", "db-shm"] {
        std::fs::rename(file(&format!("kept-{name}")), file(name)).unwrap();
    }
    soon(&program, SERVING).await;
    destroy(&mut rpc, OWNER, "custom-4", "").await.unwrap();
    let reasons = reasons(program).await;
    assert!(reasons.iter().all(|line| line.contains("database file")) && !reasons.is_empty(), "{reasons:?}");
}

/// A file that cannot be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_file_is_not_ready() {
    let mut database = TestDatabase::new(Backend::Sqlite).await;
    database.store.close().await;
    database.url = database.url.replace("mode=rwc", "mode=ro");
    let program = Program::serve(&database, &[]).await;
    soon(&program, NOT_SERVING).await;
    refused(&program, 1).await;
    let reasons = reasons(program).await;
    assert!(reasons.iter().any(|line| line.contains("readonly")), "{reasons:?}");
}

/// Runs `migrate up` so often at one time.
async fn migrate(url: &str, times: usize) -> Vec<(i32, String)> {
    let migrations: Vec<_> = (0..times)
        .map(|_| {
            let url = url.to_owned();
            tokio::spawn(async move {
                let (code, output, errors) =
                    run(&["migrate", "up"], &[("COLLECTIONS_DATABASE_URL", &url)]).await;
                (code, output + &errors)
            })
        })
        .collect();
    let mut ended = Vec::new();
    for migration in migrations {
        ended.push(migration.await.unwrap());
    }
    ended
}

/// A service that is deployed before its schema waits for it. Of five migrations at one time one works.
async fn serve_waits_for_a_newer_schema(url: String) {
    let listen = "127.0.0.1:0";
    let database = TestDatabase::new(Backend::Sqlite).await;
    let database = TestDatabase { url: url.clone(), ..database };
    let program = Program::serve(&database, &["--admin-addr", listen][..0]).await;
    soon(&program, NOT_SERVING).await;
    let ended = migrate(&url, 5).await;
    assert!(ended.iter().all(|(code, _)| *code == 0), "{ended:?}");
    assert_eq!(ended.iter().filter(|(_, output)| output.contains("applied  m2026")).count(), 1, "{ended:?}");
    assert_eq!(ended.iter().filter(|(_, output)| output == "already up to date\n").count(), 4, "{ended:?}");
    soon(&program, SERVING).await;
    let reasons = reasons(program).await;
    assert!(reasons.iter().all(|line| line.contains("migrate up")) && !reasons.is_empty(), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_waits_for_a_newer_schema_on_postgres() {
    serve_waits_for_a_newer_schema(fresh_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_waits_for_a_newer_schema_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    serve_waits_for_a_newer_schema(format!("sqlite:{}?mode=rwc", folder.path().join("db").display())).await;
}

/// A migration that waits for another one ends at a signal, also as the first process of a container.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_migration_ends_at_a_signal() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let other = sea_orm::TransactionTrait::begin(&database.connection().await).await.unwrap();
    other.execute_unprepared("SELECT pg_advisory_xact_lock(7165064744983032937)").await.unwrap();
    let mut migration = command(&["migrate", "up"]);
    let mut child = migration.env("COLLECTIONS_DATABASE_URL", &database.url).spawn().unwrap();
    wait_for(&database.connection().await, super::support::BLOCKED).await;
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let ended: std::pin::Pin<Box<dyn Future<Output = _>>> = Box::pin(child.wait());
    assert_eq!(timeout(SOON, ended).await.unwrap().unwrap().code(), Some(1));
}
