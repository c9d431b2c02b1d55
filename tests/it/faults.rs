//! Destroys during faults of PostgreSQL: conflicts, deadlocks, a stop, a freeze. And the number of round trips.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use collections_service::{
    config::store::{ACQUIRE_TIMEOUT, BATCH_LOCK_TIMEOUT},
    domain::{CollectionId, DestroyError},
    store::{Capacity, Destroy, NewCollection},
};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TransactionTrait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::watch,
    time::Instant,
};
use tonic::Code;

use super::{
    batches::{destroy_of, outcome_of},
    support::{
        App, BLOCKED, Backend, CONNECTIONS, OWNER, Rpc, TestDatabase, cluster::Cluster, connect, destroy,
        fresh_database, fresh_postgres, oauth::Signer, user, wait_for, wait_until,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serialization_failures_are_retried() {
    let url = fresh_postgres().await;
    let strict = format!("{url}?options[default_transaction_isolation]=repeatable%20read");
    let app = App::start_with(TestDatabase::on(Some(strict)).await, |_| ()).await;
    let codes = super::destroy::race(&app, "").await;
    assert_eq!(codes.iter().filter(|code| **code == Code::Ok).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == Code::NotFound).count(), 63, "{codes:?}");
}

/// An import during a destroy, where each transaction keeps its first snapshot by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_in_flight_does_not_return() {
    let url = fresh_postgres().await;
    let strict = format!("{url}?options[default_transaction_isolation]=repeatable%20read");
    let database = TestDatabase::on(Some(strict)).await;
    database.put(1, OWNER).await;
    let rival = database.connection().await.begin().await.unwrap();
    rival.execute_unprepared("DELETE FROM collections").await.unwrap();
    let tombstone = "INSERT INTO destroyed_collections (id, owner_id, destroyed_at) VALUES (1, 1, now())";
    rival.execute_unprepared(tombstone).await.unwrap();
    let store = database.store.clone();
    let again = NewCollection {
        id: CollectionId::new(1).unwrap(),
        owner: user(OWNER),
        name: String::new(),
        entries: vec![1],
    };
    let import = tokio::spawn(async move { store.insert_collection(again).await });
    wait_for(&database.connection().await, BLOCKED).await;
    rival.commit().await.unwrap();
    assert!(!import.await.unwrap().unwrap());
    assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
}

/// Connections that fall silent, as after the fail-over of an address, are replaced: those of batches, and those of single
/// destroys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_replaced() {
    let url = fresh_postgres().await;
    let (listener, through, server) = front(&url).await;
    let silence = watch::Sender::new(false);
    tokio::spawn(relay_until(listener, server, silence.subscribe()));
    let app = App::start_with(TestDatabase::on(Some(through)).await, |_| ()).await;
    let calls = || -> Vec<_> {
        let call =
            |mut rpc: Rpc, id| async move { destroy(&mut rpc, OWNER, &format!("custom-{id}"), "").await };
        (1..CONNECTIONS).map(|id| tokio::spawn(call(app.rpc(), id))).collect()
    };
    // A lock sends each of them alone, so that it holds a connection of its own, or nearly: one may still meet a silent one.
    let admin = Database::connect(&url).await.unwrap();
    let locked = async || {
        let fill = format!(
            "INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
             SELECT id, {OWNER}, '', '', now() FROM generate_series(1, {CONNECTIONS}) AS id ON CONFLICT DO NOTHING"
        );
        admin.execute_unprepared(&fill).await.unwrap();
        let lock = admin.begin().await.unwrap();
        lock.execute_unprepared("SELECT id FROM collections FOR UPDATE").await.unwrap();
        lock
    };
    let most_at_work = async || {
        let lock = locked().await;
        let all = calls();
        let watcher = Database::connect(&url).await.unwrap();
        wait_for(&watcher, &format!("{BLOCKED} OFFSET {}", CONNECTIONS - 5)).await;
        lock.rollback().await.unwrap();
        for call in all {
            let code = call.await.unwrap().map_or_else(|status| status.code(), |_destroyed| Code::Ok);
            assert!(matches!(code, Code::Ok | Code::Unavailable), "{code:?}");
        }
    };
    most_at_work().await;
    fall_silent(&silence).await;
    for call in calls() {
        let _unavailable = call.await.unwrap();
    }
    let lock = locked().await;
    for call in calls() {
        let _unavailable = call.await.unwrap();
    }
    lock.rollback().await.unwrap();
    // The attempts to connect that were made meanwhile have to time out.
    tokio::time::sleep(ACQUIRE_TIMEOUT + Duration::from_secs(1)).await;
    most_at_work().await;
}

/// Relays connections until `silence` is true. From then on the open ones stay open and relay nothing; new ones are relayed.
pub async fn relay_until(listener: TcpListener, server: String, silence: watch::Receiver<bool>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let (server, mut silence) = (server.clone(), silence.clone());
        tokio::spawn(async move {
            let mut upstream = TcpStream::connect(server).await.unwrap();
            let relayed = tokio::io::copy_bidirectional(&mut client, &mut upstream);
            if *silence.borrow() {
                drop(silence);
                let _ended = relayed.await;
                return;
            }
            let fell_silent = async move {
                let _silent = silence.wait_for(|silent| *silent).await;
            };
            tokio::select! {
                _ended = relayed => return,
                () = fell_silent => {}
            }
            // Keeps both ends open.
            std::future::pending::<()>().await;
        });
    }
}

/// Silences the open connections of [`relay_until`]; returns once none of them relays anything.
pub async fn fall_silent(silence: &watch::Sender<bool>) {
    silence.send_replace(true);
    // The last receiver is that of the loop which accepts connections.
    wait_until("the open connections are silent", async || silence.receiver_count() == 1).await;
}

/// A busy machine may take too long for the two transactions to wait for each other at one time.
const DEADLOCK_ATTEMPTS: i64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_is_retried() {
    let url = fresh_postgres().await;
    // Sooner than the destroy on its own gives up waiting for a lock.
    let soon = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 300', current_database()); END $$";
    Database::connect(&url).await.unwrap().execute_unprepared(soon).await.unwrap();
    let app = App::start_with(TestDatabase::on(Some(url)).await, |_| ()).await;
    let admin = app.database.connection().await;
    let is_counted = "SELECT 1 FROM pg_stat_database WHERE datname = current_database() AND deadlocks > 0";
    for id in 1..=DEADLOCK_ATTEMPTS {
        app.put(id, OWNER).await;
        wait_for_each_other(&app, &admin, id).await;
        let is_counted = Statement::from_string(DbBackend::Postgres, is_counted);
        if admin.query_one_raw(is_counted).await.unwrap().is_some() {
            return;
        }
    }
    // The sessions report their statistics with a delay.
    wait_for(&admin, is_counted).await;
}

/// Lets a destroy and another transaction wait for each other; the destroy has to succeed.
async fn wait_for_each_other(app: &App, admin: &DatabaseConnection, id: i64) {
    // This session is not cancelled; the destroy locks the row first, then waits for the tombstone.
    let rival = app.database.connection().await.begin().await.unwrap();
    rival.execute_unprepared("SET LOCAL deadlock_timeout = '30s'").await.unwrap();
    let tombstone =
        format!("INSERT INTO destroyed_collections (id, owner_id, destroyed_at) VALUES ({id}, 1, now())");
    rival.execute_unprepared(&tombstone).await.unwrap();
    let mut rpc = app.rpc();
    let call = tokio::spawn(async move { destroy(&mut rpc, OWNER, &format!("custom-{id}"), "").await });
    // In a batch it would give up before the deadlock is detected; alone it waits. PostgreSQL checks for a deadlock once in
    // each wait, so that this one has to be young.
    tokio::time::sleep(2 * BATCH_LOCK_TIMEOUT).await;
    let waits =
        "SELECT pid FROM pg_locks WHERE NOT granted AND waitstart > clock_timestamp() - interval '50 ms'";
    wait_for(admin, waits).await;
    rival
        .execute_unprepared(&format!("SELECT id FROM collections WHERE id = {id} FOR UPDATE"))
        .await
        .unwrap();
    rival.rollback().await.unwrap();
    assert!(call.await.unwrap().unwrap().get_ref().destroyed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_resumes_after_an_outage_of_the_database() {
    let mut cluster = Cluster::start().await;
    let app =
        App::start_with(TestDatabase::on(Some(fresh_database(&cluster.url()).await)).await, |_| ()).await;
    for id in 1..=4 {
        app.put(id, OWNER).await;
    }
    let mut rpc = app.rpc();
    destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap();
    let form = || super::errors::signed(&app, &Signer::owner(), "custom-3");
    assert_eq!(app.send(super::errors::signed(&app, &Signer::owner(), "custom-2")).await.0, 200);

    cluster.stop();
    assert_unavailable(&app, &form).await;
    wait_for_health(&app, false).await;
    cluster.start_again().await;
    wait_for_health(&app, true).await;
    assert_eq!(app.send(form()).await.0, 200);

    cluster.freeze();
    assert_unavailable(&app, &|| super::errors::signed(&app, &Signer::owner(), "custom-4")).await;
    wait_for_health(&app, false).await;
    cluster.thaw();
    wait_for_health(&app, true).await;
    // The client cannot see whether the frozen statements took effect; a retry does.
    let last = destroy(&mut rpc, OWNER, "custom-4", "").await;
    assert!(last.is_ok() || last.unwrap_err().code() == Code::NotFound);
    assert_eq!(app.owned_by(OWNER).await, [] as [i64; 0]);
}

/// Both protocols refuse within a bound.
async fn assert_unavailable(app: &App, request: &dyn Fn() -> http::Request<String>) {
    let begun = Instant::now();
    let mut rpc = app.rpc();
    let (status, answer) = tokio::join!(destroy(&mut rpc, OWNER, "custom-3", ""), app.send(request()));
    let code = status.unwrap_err().code();
    assert!(matches!(code, Code::Unavailable | Code::DeadlineExceeded), "{code:?}");
    assert_eq!((answer.0, answer.2), (503, super::errors::error_body(130, "Over capacity")));
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

async fn wait_for_health(app: &App, serving: bool) {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let service = "collections.v1.CollectionsService".to_owned();
    wait_until(&format!("health is serving: {serving}"), async || {
        let http = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new());
        let mut client = HealthClient::with_origin(
            http.clone().http2_only(true).build_http::<tonic::body::Body>(),
            app.grpc.parse().unwrap(),
        );
        let answer = client.check(HealthCheckRequest { service: service.clone() }).await.unwrap();
        (answer.get_ref().status == 1) == serving
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_starts_before_its_database_becomes_ready() {
    let mut cluster = Cluster::start().await;
    let database = TestDatabase::on(Some(fresh_database(&cluster.url()).await)).await;
    database.put(1, OWNER).await;
    cluster.stop();
    let program = super::support::program::Program::serve(&database, &[]).await;
    let mut rpc = super::support::rpc(&program.grpc);
    let refused = destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let admin = program.admin.trim_start_matches("http://");
    assert_eq!(super::support::program::run(&["healthcheck", "--addr", admin], &[]).await.0, 4);
    cluster.start_again().await;
    let is_served = async || destroy(&mut rpc, OWNER, "custom-1", "").await.is_ok();
    wait_until("a destroy is served", is_served).await;
}

/// However many destroys wait for locked rows, others are served, and so is health.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_rows_do_not_affect_health() {
    let app = App::start(Backend::Postgres).await;
    let locked = i64::from(3 * CONNECTIONS);
    for id in 1..=locked + 1 {
        app.put(id, OWNER).await;
    }
    let lock = app.database.connection().await.begin().await.unwrap();
    let rows = format!("SELECT id FROM collections WHERE id <= {locked} FOR UPDATE");
    lock.execute_unprepared(&rows).await.unwrap();
    let call = |id: i64| {
        let mut rpc = app.rpc();
        tokio::spawn(async move { destroy(&mut rpc, OWNER, &format!("custom-{id}"), "").await })
    };
    let stuck: Vec<_> = (1..=locked).map(call).collect();
    let admin = app.database.connection().await;
    wait_for(&admin, &format!("{BLOCKED} OFFSET 3")).await;
    let begun = Instant::now();
    call(locked + 1).await.unwrap().unwrap();
    app.database.store.check_schema().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    wait_for_health(&app, true).await;
    lock.rollback().await.unwrap();
    for call in stuck {
        call.await.unwrap().unwrap();
    }
}

/// The cause is logged each time that it changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cause_of_not_being_ready_is_logged() {
    let mut database = TestDatabase::new(Backend::Sqlite).await;
    let (listener, through, server) = front(&fresh_postgres().await).await;
    database.url = through;
    let program = super::support::program::Program::serve(&database, &[]).await;
    let sent = Sent::default();
    tokio::spawn(relay(listener, server, sent.clone()));
    program.wait_for_log(2, "not ready").await;
    program.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(25)).await;
    let why: Vec<_> = log.iter().filter(|line| line.contains("not ready")).collect();
    assert!(why[0].contains("did not answer") && why[1].contains("migrate up"), "{why:?}");
}

/// The deadline passes before there is a connection, or SQLite's write lock.
#[tokio::test]
async fn a_late_destroy_is_not_sent() {
    let late = |id| Destroy { deadline: Instant::now() + Duration::from_millis(100), ..destroy_of(id) };
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let (listener, through, server) = front(&database.url).await;
    let store = connect(&through, Capacity::of(1), &database.clock).await;
    assert_eq!(outcome_of(&store, late(1)).await, Err(DestroyError::DeadlineExceeded));
    tokio::spawn(relay(listener, server, Sent::default()));
    // The same connection executes what is still in the queue, in order.
    assert_eq!(outcome_of(&store, destroy_of(2)).await, Err(DestroyError::NotFound));
    assert_eq!(database.owned_by(OWNER).await, [1]);

    let database = TestDatabase::new(Backend::Sqlite).await;
    database.put(1, OWNER).await;
    let rival = database.connection().await.begin().await.unwrap();
    rival.execute_unprepared("UPDATE collections SET name = ''").await.unwrap();
    assert_eq!(outcome_of(&database.store, late(1)).await, Err(DestroyError::DeadlineExceeded));
    rival.rollback().await.unwrap();
    assert_eq!(outcome_of(&database.store, destroy_of(2)).await, Err(DestroyError::NotFound));
    assert_eq!(database.owned_by(OWNER).await, [1]);
}

/// Messages that a client sent to PostgreSQL, by their type bytes.
pub type Sent = Arc<Mutex<Vec<u8>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroy_is_one_round_trip() {
    let url = fresh_postgres().await;
    let ((listener, through, server), sent) = (front(&url).await, Sent::default());
    tokio::spawn(relay(listener, server, sent.clone()));
    let app = App::start_with(TestDatabase::on(Some(through)).await, |_| ()).await;
    let mut rpc = app.rpc();
    for id in 1..=30 {
        app.put(id, OWNER).await;
    }
    // The connection and the statement are made once.
    for id in 1..=5 {
        destroy(&mut rpc, OWNER, &format!("custom-{id}"), "").await.unwrap();
    }
    let count = |messages: &[u8], kind: u8| messages.iter().filter(|byte| **byte == kind).count();
    let (mut found, mut missing) = (0, 0);
    for id in 6..=50 {
        sent.lock().unwrap().clear();
        let answer = destroy(&mut rpc, OWNER, &format!("custom-{id}"), "").await;
        assert_eq!(answer.is_ok(), id <= 30);
        let messages = sent.lock().unwrap().clone();
        // One Bind and Execute, then a Sync that asks for the answer; the check may have sent its own between them.
        if count(&messages, b'E') == 1 && count(&messages, b'P') + count(&messages, b'Q') == 0 {
            *if id <= 30 { &mut found } else { &mut missing } += 1;
        }
    }
    assert!(found >= 10 && missing >= 10, "more than one statement a destroy: {found} and {missing} had one");
}

/// A socket to stand before the PostgreSQL of this URL, the URL that leads through it, and the server behind.
pub async fn front(url: &str) -> (TcpListener, String, String) {
    let server = url.rsplit_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = url.replace(&server, &listener.local_addr().unwrap().to_string());
    (listener, format!("{through}?sslmode=disable"), server)
}

pub async fn relay(listener: TcpListener, server: String, sent: Sent) {
    while let Ok((client, _)) = listener.accept().await {
        let upstream = TcpStream::connect(&server).await.unwrap();
        let ((from_client, mut to_client), (mut from_server, to_server)) =
            (client.into_split(), upstream.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        tokio::spawn(note(from_client, to_server, sent.clone()));
    }
}

/// Passes messages on and notes their types. The first message of a connection has none.
async fn note(
    mut from: OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    sent: Sent,
) -> std::io::Result<()> {
    let mut first = true;
    loop {
        let mut message = Vec::new();
        if !std::mem::take(&mut first) {
            message.push(from.read_u8().await?);
        }
        let length = from.read_u32().await?;
        message.extend(length.to_be_bytes());
        let header = message.len();
        message.resize(header + length as usize - 4, 0);
        from.read_exact(&mut message[header..]).await?;
        if header == 5 {
            sent.lock().unwrap().push(message[0]);
        }
        to.write_all(&message).await?;
    }
}
