//! The real binary under load, stopped and killed.

use std::{collections::BTreeSet, time::Duration};

use collections_service::{domain::Clock, proto::DestroyResponse};
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::watch, task::JoinHandle};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use super::support::{
    Answer, BLOCKED, Backend, CONSUMER, OWNER, PATH, TOKEN, TestDatabase, destroy, form_at, form_now,
    program::{Program, run},
    reason, rpc, send, wait_for,
};

const COLLECTIONS: i64 = 600;
const CALLERS: i64 = 16;

/// What became of each id that was tried.
type Outcomes = Vec<(i64, Result<(), Status>)>;

fn request_id(id: i64) -> String {
    format!("00000000-0000-4000-8000-{id:012}")
}

/// Callers that each destroy their share, one call after the other, until the connection is gone.
struct Load {
    callers: Vec<JoinHandle<Outcomes>>,
    answered: watch::Sender<u32>,
}

impl Load {
    fn on(grpc: &str) -> Self {
        let answered = watch::Sender::new(0);
        let callers = (0..CALLERS)
            .map(|caller| {
                let (mut rpc, answered) = (rpc(grpc), answered.clone());
                tokio::spawn(async move {
                    let mut outcomes = Vec::new();
                    for id in (1..=COLLECTIONS).filter(|id| id % CALLERS == caller) {
                        let answer = destroy(&mut rpc, OWNER, &format!("custom-{id}"), &request_id(id)).await;
                        answered.send_modify(|count| *count += u32::from(answer.is_ok()));
                        outcomes.push((id, answer.map(|_| ())));
                    }
                    outcomes
                })
            })
            .collect();
        Self { callers, answered }
    }

    async fn wait_for_answers(&self, count: u32) {
        let mut answered = self.answered.subscribe();
        let enough = answered.wait_for(|answered| *answered >= count);
        tokio::time::timeout(Duration::from_secs(30), enough).await.unwrap().unwrap();
    }

    async fn outcomes(self) -> Outcomes {
        let mut outcomes = Vec::new();
        for caller in self.callers {
            outcomes.extend(caller.await.unwrap());
        }
        outcomes
    }
}

/// Connections without a request: before and after HTTP/2's preface, and after a finished HTTP/1.1 request.
async fn silent_connections(program: &Program) -> Vec<TcpStream> {
    let connect =
        async |origin: &str| TcpStream::connect(origin.trim_start_matches("http://")).await.unwrap();
    let mut idle = connect(&program.grpc).await;
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut kept = connect(&program.rest).await;
    kept.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut half = connect(&program.rest).await;
    half.write_all(b"POST / HTTP/1.1\r\nhost:").await.unwrap();
    vec![connect(&program.grpc).await, connect(&program.rest).await, idle, kept, half]
}

async fn a_drain_loses_nothing(backend: Backend, more: &[&str]) {
    let database = database(backend).await;
    let program = Program::serve(&database, &[&["--drain-seconds", "8"], more].concat()).await;
    let silent = silent_connections(&program).await;
    let load = Load::on(&program.grpc);
    load.wait_for_answers(100).await;
    program.signal(Signal::SIGTERM);
    let (status, log) = program.ended(Duration::from_secs(9)).await;
    assert_eq!(status.code(), Some(0), "{log:?}");
    assert!(log.iter().any(|line| line.contains("\"stopped\"")), "{log:?}");
    drop(silent);
    let remaining: BTreeSet<i64> = database.owned_by(OWNER).await.into_iter().collect();
    let (mut destroyed, mut refused, mut unanswered) = (0, 0, 0);
    for (id, outcome) in load.outcomes().await {
        match outcome {
            Ok(()) => {
                destroyed += 1;
                assert!(!remaining.contains(&id), "custom-{id} was acknowledged and still exists");
            }
            // Refused by us, not by a broken connection: then nothing may have been done.
            Err(status) if status.get_error_details().error_info().is_some() => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(remaining.contains(&id), "custom-{id} was refused and is gone");
                refused += 1;
            }
            // The connection was closed: then the call must not have been accepted.
            Err(status) => {
                assert!(remaining.contains(&id), "custom-{id} is gone and was not answered: {status:?}");
                unanswered += 1;
            }
        }
    }
    assert!(
        destroyed >= 100 && refused + unanswered > 0,
        "{destroyed} destroyed, {refused} refused: no load at the signal"
    );
    // A line for each call that was served, to the very last one, and one a second for those that were refused.
    let lines = log.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let (summed, single): (Vec<_>, Vec<_>) = lines.partition(|line| line["outcome"] == "OVERLOADED");
    let logged: u64 = summed.iter().map(|line| line["calls"].as_u64().expect("a number of calls")).sum();
    let served = single.iter().filter(|line| line["outcome"] == "Ok").count();
    assert!((destroyed..=destroyed + unanswered).contains(&served), "{served} of {destroyed} in the log");
    let more = refused + unanswered;
    assert!((refused..=more).contains(&usize::try_from(logged).unwrap()), "{logged} of {refused} in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_loses_nothing_on_sqlite() {
    a_drain_loses_nothing(Backend::Sqlite, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_loses_nothing_on_postgres() {
    a_drain_loses_nothing(Backend::Postgres, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_of_many_batches_loses_nothing() {
    let many = ["--batches-in-flight", "12", "--database-connections", "16"];
    a_drain_loses_nothing(Backend::Postgres, &many).await;
}

/// A call of each protocol, for collections 1 and 2, that waits in the database for a lock.
struct Held {
    program: Program,
    lock: DatabaseTransaction,
    call: JoinHandle<Result<Response<DestroyResponse>, Status>>,
    request: JoinHandle<Answer>,
}

impl Held {
    async fn on(database: &TestDatabase, more: &[&str]) -> Self {
        database.put(1, OWNER).await;
        database.put(2, OWNER).await;
        let program = Program::serve(database, more).await;
        let lock = database.connection().await.begin().await.unwrap();
        lock.execute_unprepared("SELECT id FROM collections FOR UPDATE").await.unwrap();
        let mut client = rpc(&program.grpc);
        let call = tokio::spawn(async move { destroy(&mut client, OWNER, "custom-1", "").await });
        let (rest, request) = (program.rest.clone(), form_now(&program.rest, "custom-2"));
        let request = tokio::spawn(async move { send(&rest, request).await });
        wait_for(&database.connection().await, &format!("{BLOCKED} OFFSET 1")).await;
        Self { program, lock, call, request }
    }
}

/// The signal comes while two calls are in the database, where another transaction's lock holds them up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_completes_accepted_calls() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let Held { program, lock, call, request } = Held::on(&database, &[]).await;
    program.signal(Signal::SIGTERM);
    // New calls are refused.
    let admin = program.admin.trim_start_matches("http://");
    let not_serving = async { while run(&["healthcheck", "--addr", admin], &[]).await.0 != 4 {} };
    tokio::time::timeout(Duration::from_secs(3), not_serving).await.unwrap();
    let refused = destroy(&mut rpc(&program.grpc), OWNER, "custom-3", "").await.unwrap_err();
    assert_eq!(reason(&refused), "OVERLOADED");
    let answer = send(&program.rest, form_now(&program.rest, "custom-3")).await;
    assert_eq!((answer.0, answer.2), (503, super::errors::error_body(130, "Over capacity")));
    // A body that does not arrive does not delay the end.
    let mut slow = TcpStream::connect(program.rest.trim_start_matches("http://")).await.unwrap();
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n");
    slow.write_all(head.as_bytes()).await.unwrap();
    // Longer than connections linger, which they do only once the calls have ended.
    tokio::time::sleep(collections_service::config::net::LINGER * 5 / 4).await;
    lock.rollback().await.unwrap();
    assert!(call.await.unwrap().unwrap().get_ref().destroyed);
    assert_eq!(request.await.unwrap().2, r#"{"destroyed":true}"#);
    let (status, log) = program.ended(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0), "{log:?}");
    let with = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!((with("\"stopped\""), with("\"Cancelled\"")), (1, 1), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_drain_at_once() {
    for threads in ["1", "2"] {
        let database = TestDatabase::new(Backend::Postgres).await;
        let Held { program, lock, call, request } = Held::on(&database, &["--worker-threads", threads]).await;
        program.signal(Signal::SIGTERM);
        program.wait_for_health(4).await;
        program.signal(Signal::SIGINT);
        let (status, log) = program.ended(Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(1), "{log:?}");
        let last: serde_json::Value = serde_json::from_str(log.last().unwrap()).unwrap();
        assert_eq!(last["level"], "ERROR", "{log:?}");
        assert!(last["message"].as_str().unwrap().starts_with("stopped by a second signal"), "{log:?}");
        assert!(!log.iter().any(|line| line.contains("\"stopped\"")), "{log:?}");
        call.await.unwrap().unwrap_err();
        request.abort();
        lock.rollback().await.unwrap();
    }
}

async fn a_kill_loses_no_acknowledged_destroy(backend: Backend) {
    let database = database(backend).await;
    let program = Program::serve(&database, &[]).await;
    let load = Load::on(&program.grpc);
    load.wait_for_answers(100).await;
    program.signal(Signal::SIGKILL);
    let (status, _) = program.ended(Duration::from_secs(9)).await;
    assert_eq!(status.code(), None);
    let remaining: BTreeSet<i64> = database.owned_by(OWNER).await.into_iter().collect();
    let program = Program::serve(&database, &[]).await;
    let mut rpc = rpc(&program.grpc);
    for (id, outcome) in load.outcomes().await {
        assert!(
            outcome.is_err() || !remaining.contains(&id),
            "custom-{id} was acknowledged and still exists"
        );
        // The same request is answered with success, whether or not its caller got the first answer.
        destroy(&mut rpc, OWNER, &format!("custom-{id}"), &request_id(id)).await.unwrap();
    }
    assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_no_acknowledged_destroy_on_sqlite() {
    a_kill_loses_no_acknowledged_destroy(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_no_acknowledged_destroy_on_postgres() {
    a_kill_loses_no_acknowledged_destroy(Backend::Postgres).await;
}

/// A disk that is full for a while: nothing is acknowledged that another process does not see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_no_acknowledged_destroy() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    for id in 1..=6 {
        database.put(id, OWNER).await;
    }
    let program = Program::serve(&database, &[]).await;
    let mut rpc = rpc(&program.grpc);
    let limit = async |size: &str| {
        let (pid, limit) = (program.pid().to_string(), format!("--fsize={size}:unlimited"));
        let done = tokio::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status().await;
        assert!(done.unwrap().success());
    };
    destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap();
    let log = std::fs::metadata(database.folder.path().join("db-wal")).unwrap().len();
    limit(&log.to_string()).await;
    for id in [2, 3] {
        // Refused by the database, then because the service is not ready.
        let refused = destroy(&mut rpc, OWNER, &format!("custom-{id}"), "").await.unwrap_err();
        assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
    }
    assert_eq!(database.owned_by(OWNER).await, [2, 3, 4, 5, 6]);
    limit("unlimited").await;
    program.wait_until_ready().await;
    for id in [2, 4] {
        destroy(&mut rpc, OWNER, &format!("custom-{id}"), "").await.unwrap();
    }
    assert_eq!(database.owned_by(OWNER).await, [3, 5, 6]);
}

/// A log that cannot be written costs the log, and no call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_succeed_when_the_log_cannot_be_written() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    database.put(1, OWNER).await;
    let mut program = Program::serve(&database, &[]).await;
    program.ignore_log().await;
    let mut rpc = rpc(&program.grpc);
    destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap();
    assert_eq!(destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap_err().code(), Code::NotFound);
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended(Duration::from_secs(9)).await.0.code(), Some(0));
}

/// A caller that disconnects before the answer leaves a line too, and so does the end of its statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_call_is_logged() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(2); RETURN new; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON destroyed_collections FOR EACH ROW WHEN (new.id > 0)
        EXECUTE FUNCTION slow()";
    let admin = database.connection().await;
    admin.execute_unprepared(slow).await.unwrap();
    let program = Program::serve(&database, &[]).await;
    let mut client = rpc(&program.grpc);
    let call = tokio::spawn(async move { destroy(&mut client, OWNER, "custom-1", "").await });
    wait_for(
        &admin,
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'",
    )
    .await;
    call.abort();
    wait_for(&admin, "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM collections)").await;
    program.signal(Signal::SIGTERM);
    let (_, log) = program.ended(Duration::from_secs(9)).await;
    let with = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!((with("\"Cancelled\""), with("caller disconnected")), (1, 1), "{log:?}");
}

async fn database(backend: Backend) -> TestDatabase {
    let database = TestDatabase::new(backend).await;
    for id in 1..=COLLECTIONS {
        database.put(id, OWNER).await;
    }
    database
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_is_logged_once_and_without_secrets() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    database.put(1, OWNER).await;
    database.put(2, OWNER).await;
    let program = Program::serve(&database, &["--log", "trace"]).await;
    let mut rpc = rpc(&program.grpc);
    destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap();
    destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap_err();
    let request = form_now(&program.rest, "custom-2");
    let late = form_at(&program.rest, "custom-2", Clock::System.now().timestamp() - 1000);
    assert_eq!(send(&program.rest, late).await.0, 401);
    let authorization = request.headers()["authorization"].to_str().unwrap().to_owned();
    assert_eq!(send(&program.rest, request).await.0, 200);
    database.connection().await.execute_unprepared("DROP TABLE destroyed_collections").await.unwrap();
    destroy(&mut rpc, OWNER, "custom-3", "").await.unwrap_err();
    program.signal(Signal::SIGTERM);
    let (_, lines) = program.ended(Duration::from_secs(25)).await;

    let signature = authorization.split("oauth_signature=\"").nth(1).unwrap().split('"').next().unwrap();
    for secret in [CONSUMER.1, TOKEN.1, signature, "oauth_signature="] {
        assert!(!lines.iter().any(|line| line.contains(secret)), "the log holds {secret}");
    }
    let events: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of =
        |message: &str| -> Vec<_> { events.iter().filter(|event| event["message"] == message).collect() };
    let (calls, requests) = (of("call"), of("request"));
    assert_eq!((calls.len(), requests.len()), (3, 2), "{lines:?}");
    for (line, id, outcome) in [
        (calls[0], 1, "Ok"),
        (calls[1], 1, "COLLECTION_NOT_FOUND"),
        (calls[2], 3, "STORE_UNAVAILABLE"),
        (requests[1], 2, "Ok"),
    ] {
        assert_eq!(line["outcome"], outcome, "{line}");
        assert_eq!(line["enduser.id"], OWNER.to_string(), "{line}");
        assert_eq!(line["collection.id"], format!("custom-{id}"), "{line}");
        assert!(line["duration_ms"].as_f64().is_some_and(|duration| duration > 0.0), "{line}");
    }
    assert!(lines.iter().all(|line| line.matches("enduser.id").count() <= 1), "{lines:?}");
    // The cause stands on the line itself, for the operator alone.
    assert!(calls[2]["error"].as_str().unwrap().contains("no such table"), "{}", calls[2]);
    let levels: Vec<_> = calls.iter().map(|call| &call["level"]).collect();
    assert_eq!(levels, ["INFO", "INFO", "ERROR"]);
}
