//! The service behind PgBouncer: what it needs from a pooler, and what it leaves in the sessions that other clients get.

use std::{collections::BTreeSet, path::PathBuf, process::Stdio, time::Duration};

use collections_service::domain::Clock;
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    errors::form,
    support::{
        OWNER, PATH, TestDatabase, destroy, form_now, fresh_postgres, oauth,
        pgbouncer::PgBouncer,
        program::{Program, path, run},
        reason, rpc, send, wait_for,
    },
};

const COLLECTIONS: i64 = 1000;
const CALLERS: i64 = 64;
/// Collections that are destroyed through the gateway, after those.
const REQUESTS: i64 = 50;
/// More than the sessions that the service takes.
const CLIENTS: usize = 20;

const SESSION: &[&str] = &["pool_mode = session"];
const SESSION_WITHOUT_RESET: &[&str] = &["pool_mode = session", "server_reset_query = DEALLOCATE ALL"];
const TRANSACTION: &[&str] = &["pool_mode = transaction"];
const TRANSACTION_KEEPING: &[&str] = &["pool_mode = transaction", "max_prepared_statements = 100"];
const TRANSACTION_FORGETTING: &[&str] = &["pool_mode = transaction", "max_prepared_statements = 0"];

/// A database and the pooler in front of it. The URL of `database` leads through the pooler, its store does not.
struct Pooled {
    pooler: PgBouncer,
    database: TestDatabase,
    direct: String,
}

impl Pooled {
    async fn new(lines: &[&str]) -> Self {
        Self::on(PgBouncer::start(lines).await, fresh_postgres().await).await
    }

    async fn on(pooler: PgBouncer, direct: String) -> Self {
        let database = TestDatabase::on(Some(direct.clone())).await;
        Self { database: TestDatabase { url: pooler.url(&direct), ..database }, pooler, direct }
    }

    async fn connect_directly(&self) -> DatabaseConnection {
        Database::connect(&self.direct).await.unwrap()
    }

    async fn fill(&self, count: i64) {
        let fill = format!(
            "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
             SELECT id, {OWNER}, '', '', now() FROM generate_series(1, {count}) AS id"
        );
        self.connect_directly().await.execute_unprepared(&fill).await.unwrap();
    }

    /// Every destroy was whole, and is purged by the service.
    async fn assert_counts(&self, remaining: i64, destroyed: i64) {
        let count = "SELECT concat((SELECT count(*) FROM collections), ' ', (SELECT count(*) FROM destroyed_collections),
            ' ', (SELECT count(*) FROM collections JOIN destroyed_collections USING (id))) AS counts";
        let direct = self.connect_directly().await;
        let row = direct.query_one_raw(Statement::from_string(DbBackend::Postgres, count));
        let counts: String = row.await.unwrap().unwrap().try_get("", "counts").unwrap();
        assert_eq!(counts, format!("{remaining} {destroyed} 0"));
        wait_for(&direct, "SELECT 1 WHERE NOT EXISTS (SELECT FROM purge_queue)").await;
    }

    /// Runs `serve`, which has to end.
    async fn serve(&self) -> (i32, String) {
        let (key, free) = (self.database.folder.path().join("key"), "127.0.0.1:0");
        let addresses = ["--grpc-addr", free, "--rest-addr", free, "--admin-addr", free];
        let serve = ["serve", "--insecure-identity", "--credentials-key-file", path(&key)];
        let with = [("COLLECTIONS_DATABASE_URL", self.database.url.as_str())];
        let (code, _, errors) = run(&[&serve[..], &addresses].concat(), &with).await;
        (code, errors)
    }

    /// In every session of the pool another client has the settings of a session that the service has never used.
    async fn assert_default_settings(self) {
        self.database.store.close().await;
        let sessions = "SELECT pid::text FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let direct = self.connect_directly().await;
        let rows = direct.query_all_raw(Statement::from_string(DbBackend::Postgres, sessions)).await.unwrap();
        let used: BTreeSet<String> = rows.iter().map(|row| row.try_get("", "pid").unwrap()).collect();
        assert!(!used.is_empty(), "the pool has no session left");
        let unused = self.pooler.url(&fresh_postgres().await);
        let (_, defaults) = settings(&unused).await;
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            let mut clients = JoinSet::new();
            for _ in 0..CLIENTS {
                let url = self.database.url.clone();
                clients.spawn(async move { settings(&url).await });
            }
            for (session, settings) in clients.join_all().await {
                let differing: Vec<_> = settings.symmetric_difference(&defaults).collect();
                assert!(differing.is_empty(), "{differing:?}");
                seen.insert(session);
            }
            if seen.is_superset(&used) {
                return;
            }
        }
        panic!("of the sessions {used:?} the clients had only {seen:?}");
    }
}

/// A program of PostgreSQL's for clients.
fn client(name: &str) -> Command {
    let folder = std::env::var("TEST_POSTGRES_BIN").expect("no PostgreSQL: start the tests with tests/run");
    let mut command = Command::new(PathBuf::from(folder).join(name));
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// The session that a client gets, and all its settings.
async fn settings(url: &str) -> (String, BTreeSet<String>) {
    let mut psql = client("psql");
    psql.args(["-XAtqd", url, "-c", "BEGIN", "-c", "SELECT pg_backend_pid()", "-c"])
        // PL/pgSQL adds its own once a function of it has run.
        .arg("SELECT name, setting FROM pg_settings WHERE name NOT LIKE 'plpgsql.%' ORDER BY name")
        // The other clients get other sessions.
        .args(["-c", "SELECT pg_sleep(0.3)", "-c", "COMMIT"]);
    let output = psql.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (session, settings) = text.split_once('\n').unwrap();
    (session.to_owned(), settings.lines().map(str::to_owned).collect())
}

/// Other clients of the pool, which run short transactions all the time.
fn busy_clients(url: &str, folder: &std::path::Path) -> Child {
    let script = folder.join("script");
    std::fs::write(&script, "SELECT pg_sleep(0.001 * random());\n").unwrap();
    let mut pgbench = client("pgbench");
    pgbench.args(["-n", "-c", "8", "-T", "600", "-f", path(&script), url]);
    pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Five at one time: one applies the versions.
async fn migrate_up(url: &str) {
    let with = [("COLLECTIONS_DATABASE_URL", url)];
    let all = futures_util::future::join_all((0..5).map(|_| run(&["migrate", "up"], &with))).await;
    assert!(all.iter().all(|(code, ..)| *code == 0), "{all:?}");
    assert_eq!(
        all.iter().filter(|(_, printed, _)| printed.contains("the schema is complete")).count(),
        1,
        "{all:?}"
    );
}

/// Makes an application and a token, and revokes it.
async fn change_credentials(database: &TestDatabase) {
    let key = database.folder.path().join("key");
    let with = [
        ("COLLECTIONS_DATABASE_URL", database.url.as_str()),
        ("COLLECTIONS_CREDENTIALS_KEY_FILE", path(&key)),
    ];
    let word = |text: &str| text.split_whitespace().nth(1).unwrap().to_owned();
    let (code, app, errors) = run(&["credentials", "create-app", "--name", "pooled"], &with).await;
    assert_eq!(code, 0, "{errors}");
    let issue = ["credentials", "issue-token", "--user", "7", "--consumer-key", &word(&app)];
    let (code, issued, errors) = run(&issue, &with).await;
    assert_eq!(code, 0, "{errors}");
    let revoke = ["credentials", "revoke-token", "--token", &word(&issued)];
    let (code, _, errors) = run(&revoke, &with[..1]).await;
    assert_eq!(code, 0, "{errors}");
    assert_eq!(run(&["credentials", "rotate-key"], &with).await.0, 0);
    let (code, listed, errors) = run(&["credentials", "list"], &with[..1]).await;
    assert!(code == 0 && listed.contains(&format!("token  {}  revoked", word(&issued))), "{listed}{errors}");
}

/// Destroys over gRPC with many callers, and over REST, with a look-up of credentials for every second request.
async fn destroy_all(program: &Program) {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = rpc(&program.grpc);
        callers.spawn(async move {
            for id in (1..=COLLECTIONS).filter(|id| id % CALLERS == caller) {
                destroy(&mut client, OWNER, &format!("custom-{id}"), "").await.unwrap();
            }
        });
    }
    for id in COLLECTIONS + 1..=COLLECTIONS + REQUESTS {
        let origin = program.rest.clone();
        callers.spawn(async move {
            let (status, _, body) = send(&origin, form_now(&origin, &format!("custom-{id}"))).await;
            assert_eq!((status, body.as_str()), (200, r#"{"destroyed":true}"#));
            assert_eq!(send(&origin, unknown_token(&origin, id)).await.0, 401);
        });
    }
    callers.join_all().await;
}

/// A request whose token has to be looked up, and does not exist.
fn unknown_token(origin: &str, number: i64) -> http::Request<String> {
    let token = Some((format!("unknown-{number}"), "x".to_owned()));
    let timestamp = Clock::System.now().timestamp();
    let signer = oauth::Signer { token, timestamp, ..oauth::Signer::owner() };
    form(PATH, &signer.header(&format!("{origin}{PATH}"), &[("id", "custom-1")]), "id=custom-1")
}

/// Everything works through a pooler with these settings, and nothing is left in its sessions.
async fn serves(lines: &[&str]) {
    let (pooler, direct) = (PgBouncer::start(lines).await, fresh_postgres().await);
    migrate_up(&pooler.url(&direct)).await;
    let pooled = Pooled::on(pooler, direct).await;
    change_credentials(&pooled.database).await;
    pooled.fill(COLLECTIONS + REQUESTS).await;
    let program = Program::serve(&pooled.database, &[]).await;
    program.wait_for_health(0).await;
    destroy_all(&program).await;
    pooled.assert_counts(0, COLLECTIONS + REQUESTS).await;
    program.signal(Signal::SIGTERM);
    let (status, log) = program.ended(Duration::from_secs(9)).await;
    let failures: Vec<_> = log.iter().filter(|line| line.contains("\"ERROR\"")).collect();
    assert!(status.success() && failures.is_empty(), "{failures:?}");
    pooled.assert_default_settings().await;
}

/// `serve` ends with one line that names what the pooler lacks, and destroys nothing.
async fn is_refused(lines: &[&str]) {
    let pooled = Pooled::new(lines).await;
    pooled.fill(10).await;
    let assert_refused = |(code, errors): (i32, String)| {
        let is_named = errors.contains("1.21") && errors.contains("max_prepared_statements");
        assert!(code == 1 && is_named && errors.lines().count() == 1, "{code}: {errors}");
    };
    assert_refused(pooled.serve().await);
    let mut busy = busy_clients(&pooled.database.url, pooled.database.folder.path());
    let connected = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(0.001%'";
    wait_for(&pooled.connect_directly().await, connected).await;
    for _ in 0..5 {
        assert_refused(pooled.serve().await);
    }
    busy.start_kill().unwrap();
    busy.wait().await.unwrap();
    pooled.assert_counts(10, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_mode_is_supported() {
    serves(SESSION).await;
    // What the service leaves in a session, the pooler does not clear.
    serves(SESSION_WITHOUT_RESET).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_mode_requires_prepared_statements() {
    if PgBouncer::keeps_statements() {
        serves(TRANSACTION_KEEPING).await;
        serves(&[TRANSACTION_KEEPING, &["default_pool_size = 2"]].concat()).await;
        is_refused(TRANSACTION_FORGETTING).await;
        is_refused(&[TRANSACTION_FORGETTING, &["server_round_robin = 1"]].concat()).await;
    } else {
        is_refused(TRANSACTION).await;
        is_refused(&[TRANSACTION, &["server_round_robin = 1"]].concat()).await;
        is_refused(&[TRANSACTION, &["default_pool_size = 1"]].concat()).await;
    }
}

/// Destroys that run for too long are terminated through the pooler, and run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_destroy_is_terminated() {
    let mode = if PgBouncer::keeps_statements() { TRANSACTION_KEEPING } else { SESSION };
    let pooled = Pooled::new(mode).await;
    pooled.fill(2).await;
    let direct = pooled.connect_directly().await;
    let slow = "CREATE TABLE stuck (id bigint);
        INSERT INTO stuck VALUES (1), (2);
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF EXISTS (SELECT 1 FROM public.stuck WHERE id = new.id) THEN PERFORM pg_sleep(30); END IF; RETURN new;
        END $$;
        CREATE TRIGGER slow BEFORE INSERT ON destroyed_collections FOR EACH ROW EXECUTE FUNCTION slow()";
    direct.execute_unprepared(slow).await.unwrap();
    let program = Program::serve(&pooled.database, &[]).await;
    for id in [1, 2] {
        let (mut client, begun) = (rpc(&program.grpc), Instant::now());
        let call =
            tokio::spawn(async move { destroy(&mut client, OWNER, &format!("custom-{id}"), "").await });
        wait_for(
            &direct,
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'",
        )
        .await;
        if id == 1 {
            direct.execute_unprepared("DELETE FROM stuck WHERE id = 1").await.unwrap();
        }
        let answer = call.await.unwrap();
        // The trigger would sleep for 30 s; the service terminates the statement, or the deadline passes, after 10 s at most.
        assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
        match (id, answer) {
            (1, Ok(answer)) => assert!(answer.get_ref().destroyed),
            (2, Err(status)) => {
                assert!(matches!(&*reason(&status), "STORE_UNAVAILABLE" | "DEADLINE_EXCEEDED"), "{status:?}");
            }
            (_, other) => panic!("custom-{id} was answered {other:?}"),
        }
    }
    direct.execute_unprepared("DELETE FROM stuck").await.unwrap();
    // The statement of the second may still be running.
    wait_for(
        &direct,
        "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep')",
    )
    .await;
    program.wait_for_health(0).await;
    let again = destroy(&mut rpc(&program.grpc), OWNER, "custom-2", "").await;
    assert!(again.unwrap().get_ref().destroyed);
    pooled.assert_counts(0, 2).await;
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(9)).await;
    assert!(log.iter().any(|line| line.contains("terminated a statement")), "{log:?}");
}

/// The pooler's mode changes under a running service: no destroy is half done or answered wrongly, and from the first lost
/// statement on the service is not ready, until the pooler is known to keep them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_no_longer_keeps_statements_is_refused() {
    let pooled = Pooled::new(SESSION).await;
    pooled.fill(COLLECTIONS).await;
    let program = Program::serve(&pooled.database, &[]).await;
    program.wait_for_health(0).await;
    let forgetting = if PgBouncer::keeps_statements() { TRANSACTION_FORGETTING } else { TRANSACTION };
    pooled.pooler.reload(forgetting);
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (mut client, origin) = (rpc(&program.grpc), program.rest.clone());
        callers.spawn(async move {
            let mut destroyed = 0;
            for id in (1..=COLLECTIONS).filter(|id| id % CALLERS == caller) {
                match destroy(&mut client, OWNER, &format!("custom-{id}"), "").await {
                    Ok(_) => destroyed += 1,
                    Err(status) => assert_eq!(reason(&status), "STORE_UNAVAILABLE", "{status:?}"),
                }
                let (status, _, body) = send(&origin, unknown_token(&origin, id)).await;
                assert!(matches!(status, 401 | 500 | 503), "{status}: {body}");
                // The calls have to go on while the pooler reloads its settings.
                sleep(Duration::from_millis(5)).await;
            }
            destroyed
        });
    }
    let destroyed = callers.join_all().await.into_iter().sum();
    pooled.assert_counts(COLLECTIONS - destroyed, destroyed).await;
    program.wait_for_health(4).await;
    let direct = pooled.connect_directly().await;
    // For four seconds, several checks of readiness are made in new sessions, where no other client's statement is in the way.
    for _ in 0..20 {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle'";
        direct.execute_unprepared(end).await.unwrap();
        sleep(Duration::from_millis(200)).await;
        program.wait_for_health(4).await;
    }
    let mut times_ready = 1;
    if PgBouncer::keeps_statements() {
        pooled.pooler.reload(TRANSACTION_KEEPING);
        program.wait_for_health(0).await;
        times_ready += 1;
    }
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(9)).await;
    let ready = log.iter().filter(|line| line.contains("\"ready\"")).count();
    assert_eq!(ready, times_ready, "{log:?}");
}
