//! The error table, row by row, as callers of both protocols meet it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
    time::Duration,
};

use collections_service::{
    domain::{DestroyError, EdgeError},
    grpc::status_of,
    rate_limit::RateLimit,
    rest::{Outcome, ReplyContext},
};
use http::Request;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::support::{
    Answer, App, BLOCKED, Backend, CONSUMER, NOW, OTHER, OWNER, PATH, TestDatabase, cluster::Cluster,
    destroy, fresh_database, oauth::Signer, reason, user, wait_for,
};

/// A form signed with these credentials.
pub fn signed(app: &App, signer: &Signer, id: &str) -> Request<String> {
    let header = signer.header(&format!("{}{PATH}", app.rest), &[("id", id)]);
    form(PATH, &header, &format!("id={id}"))
}

pub fn form(path: &str, authorization: &str, body: &str) -> Request<String> {
    Request::post(path)
        .header("authorization", authorization)
        .header("content-type", "application/x-www-form-urlencoded;charset=utf-8")
        .body(body.to_owned())
        .unwrap()
}

pub fn assert_answer((status, headers, body): &Answer, expected: u16, text: &str) {
    assert_eq!((*status, body.as_str()), (expected, text));
    assert_eq!(headers["content-type"], "application/json;charset=utf-8");
    assert!(headers.contains_key("x-transaction-id") && headers.contains_key("x-response-time"));
    assert_eq!(headers.contains_key("www-authenticate"), expected == 401);
}

pub fn error_body(code: u16, message: &str) -> String {
    format!(r#"{{"errors":[{{"code":{code},"message":"{message}"}}]}}"#)
}

/// An answer as the snapshots have it: sorted headers, and a name for each value that differs from run to run.
pub fn shown((status, headers, body): &Answer) -> String {
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let value = value.to_str().unwrap();
        let is_hexadecimal = value.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = match name.as_str() {
            "date" => "[date]",
            "x-transaction-id" if value.len() == 16 && is_hexadecimal => "[16 hexadecimal digits]",
            "x-response-time" if value.parse::<u64>().is_ok() => "[milliseconds]",
            "www-authenticate" if value.starts_with("OAuth realm=\"http://127.0.0.1:") => {
                "OAuth realm=\"http://127.0.0.1:[port]\""
            }
            _ => value,
        };
        format!("{name}: {value}\n")
    };
    let mut lines: Vec<_> = headers.iter().map(line).collect();
    lines.sort_unstable();
    format!("HTTP {status}\n{}\n{body}\n", lines.concat())
}

/// A status with its details.
fn shown_status(status: &Status) -> String {
    let details = status.get_error_details();
    let mut text = format!("{:?}: {}\n", status.code(), status.message());
    if let Some(info) = details.error_info() {
        writeln!(text, "ErrorInfo: {} of {} {:?}", info.reason, info.domain, info.metadata).unwrap();
    }
    for violation in details.bad_request().iter().flat_map(|bad| &bad.field_violations) {
        writeln!(text, "BadRequest: {}: {}", violation.field, violation.description).unwrap();
    }
    if let Some(retry) = details.retry_info() {
        writeln!(text, "RetryInfo: {:?}", retry.retry_delay).unwrap();
    }
    text
}

/// What was answered for each row of the table, on one protocol.
#[derive(Default)]
struct Seen(BTreeMap<&'static str, BTreeSet<String>>);

impl Seen {
    fn status(&mut self, status: &Status, expected: &'static str) {
        let row = DestroyError::from_reason(expected).unwrap().row();
        assert_eq!((reason(status).as_str(), status.code()), (expected, status_of_row(row.reason)));
        self.0.entry(expected).or_default().insert(shown_status(status));
    }

    fn answer(&mut self, answer: &Answer, expected: &'static str) {
        let row = DestroyError::from_reason(expected).unwrap().row();
        assert_eq!((answer.0, &answer.2), (row.http, &error_body(row.code, row.message)));
        let mut answer = answer.clone();
        if expected == "STORE_UNAVAILABLE" {
            // Present while the credentials are in the cache.
            answer.1.remove("x-access-level");
        }
        self.0.entry(expected).or_default().insert(shown(&answer));
    }

    fn edge(&mut self, answer: &Answer, error: EdgeError) {
        self.0.entry(error.name()).or_default().insert(shown(answer));
    }

    /// Each row with all that was answered for it, in the table's order.
    fn shown(&self) -> String {
        let reasons = DestroyError::ALL.map(|error| error.row().reason).into_iter();
        let reasons = reasons.chain(EdgeError::ALL.map(EdgeError::name));
        let seen = reasons.filter_map(|reason| Some((reason, self.0.get(reason)?)));
        let texts = seen.map(|(reason, answers)| {
            let answers: Vec<_> = answers.iter().map(String::as_str).collect();
            format!("=== {reason}\n{}", answers.join("\n"))
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    fn missing(&self) -> Vec<&'static str> {
        let reasons = DestroyError::ALL.map(|error| error.row().reason);
        reasons.into_iter().filter(|reason| !self.0.contains_key(reason)).collect()
    }
}

fn status_of_row(reason: &str) -> Code {
    status_of(DestroyError::from_reason(reason).unwrap()).code()
}

#[test]
fn the_table_matches_the_contract() {
    let mut table = String::new();
    for error in DestroyError::ALL {
        let row = error.row();
        let code = status_of(error).code();
        assert_eq!(format!("{code:?}"), format!("{:?}", row.grpc));
        let cells =
            [row.reason, &format!("{code:?}"), &row.http.to_string(), &row.code.to_string(), row.message];
        writeln!(table, "{}", cells.join(" | ")).unwrap();
    }
    for error in EdgeError::ALL {
        let (http, code, message) = error.row();
        writeln!(table, "{} | - | {http} | {code} | {message}", error.name()).unwrap();
    }
    insta::assert_snapshot!(table);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_answered() {
    let mut cluster = Cluster::start().await;
    let database = TestDatabase::on(Some(fresh_database(&cluster.url()).await)).await;
    let app = Arc::new(App::start_with(database, |settings| settings.max_in_flight = 1).await);
    app.put(1, OWNER).await;
    app.put(2, OTHER).await;
    let (mut grpc, mut rest) = (Seen::default(), Seen::default());
    let slow = tokio::spawn(slow_body(app.rest.clone()));

    refused_grpc(&app, &mut grpc).await;
    refused_rest(&app, &mut rest).await;
    refused_credentials(&app, &mut rest).await;
    busy(&app, &mut grpc, &mut rest).await;
    broken(&app, &mut grpc, &mut rest).await;
    let body = tokio::time::timeout(Duration::from_secs(30), slow).await.unwrap().unwrap();
    assert!(body.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{body}");
    rest.answer(&parsed(&body), "DEADLINE_EXCEEDED");
    assert_eq!((app.owned_by(OWNER).await, app.owned_by(OTHER).await), (vec![1, 99], vec![2]));

    cluster.stop();
    let mut rpc = app.rpc();
    grpc.status(&destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap_err(), "STORE_UNAVAILABLE");
    rest.answer(&app.send(signed(&app, &Signer::owner(), "custom-1")).await, "STORE_UNAVAILABLE");

    limited(&mut rest).await;
    // Only a gateway in front of another service answers this.
    let context =
        ReplyContext { access: "read-write", transaction: "0".repeat(16), ..ReplyContext::default() };
    let refused = Outcome::Failed(DestroyError::CallerNotAllowed).into_response(&context, Duration::ZERO);
    rest.answer(&collected(refused).await, "CALLER_NOT_ALLOWED");
    assert_eq!(rest.missing(), [] as [&str; 0], "rows that no REST answer showed");
    // Of OAuth and of certificates and limits, which `tls` and `rate_limit` show.
    let others = [
        "TIMESTAMP_OUT_OF_BOUNDS",
        "APPLICATION_INVALID",
        "USER_CONTEXT_REQUIRED",
        "WRITE_ACCESS_REQUIRED",
        "CALLER_NOT_ALLOWED",
        "RATE_LIMITED",
    ];
    assert_eq!(grpc.missing(), others, "rows that no status showed");
    insta::assert_snapshot!("rest_errors", rest.shown());
    insta::assert_snapshot!("grpc_errors", grpc.shown());
}

/// A user whose limit is used up, and a service that requires TLS.
async fn limited(seen: &mut Seen) {
    let app = App::start_with(TestDatabase::new(Backend::Sqlite).await, |settings| {
        let rule = "1/15m".parse().unwrap();
        let limit = RateLimit::new(rule, settings.clock.clone(), None);
        settings.rest.as_mut().unwrap().rate_limit = Some(limit);
    })
    .await;
    let form = || signed(&app, &Signer::owner(), "custom-3");
    seen.answer(&app.send(form()).await, "COLLECTION_NOT_FOUND");
    seen.answer(&app.send(form()).await, "RATE_LIMITED");
    let strict = App::start_with(TestDatabase::new(Backend::Sqlite).await, |settings| {
        settings.rest.as_mut().unwrap().transport.require_tls = true;
    })
    .await;
    let get = Request::get(PATH).body(String::new()).unwrap();
    seen.edge(&strict.send(get).await, EdgeError::TlsRequired);
}

/// A response of this process.
pub async fn collected(response: axum::response::Response) -> Answer {
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

/// The answer in these bytes of HTTP/1.1.
fn parsed(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = http::HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    (status, headers, body.to_owned())
}

async fn refused_grpc(app: &App, seen: &mut Seen) {
    let mut rpc = app.rpc();
    for (id, request_id, expected) in [
        ("", "", "ID_REQUIRED"),
        ("custom-01", "", "ID_INVALID"),
        (&"9".repeat(5000), "", "ID_INVALID"),
        ("custom-1", "7", "REQUEST_ID_INVALID"),
        ("custom-2", "", "NOT_OWNER"),
        ("custom-3", "", "COLLECTION_NOT_FOUND"),
    ] {
        seen.status(&destroy(&mut rpc, OWNER, id, request_id).await.unwrap_err(), expected);
    }
    let mut request = tonic::Request::new(collections_service::proto::DestroyRequest::default());
    seen.status(&rpc.destroy(request).await.unwrap_err(), "CREDENTIALS_MISSING");
    request = tonic::Request::new(collections_service::proto::DestroyRequest::default());
    request.metadata_mut().insert("authorization", "Bearer x".parse().unwrap());
    seen.status(&rpc.destroy(request).await.unwrap_err(), "TOKEN_INVALID");
    request = tonic::Request::new(collections_service::proto::DestroyRequest::default());
    request.metadata_mut().insert("authorization", "Basic x".parse().unwrap());
    seen.status(&rpc.destroy(request).await.unwrap_err(), "CREDENTIALS_INVALID");
}

async fn refused_rest(app: &App, seen: &mut Seen) {
    let good = Signer::owner();
    seen.answer(&app.send(signed(app, &good, "custom-2")).await, "NOT_OWNER");
    seen.answer(&app.send(signed(app, &good, "custom-3")).await, "COLLECTION_NOT_FOUND");
    seen.answer(&app.send(signed(app, &good, "")).await, "ID_REQUIRED");
    seen.answer(&app.send(signed(app, &good, "custom-0")).await, "ID_INVALID");
    let url = format!("{}{PATH}", app.rest);
    let two = good.header(&url, &[("id", "custom-1"), ("id", "custom-3")]);
    let request = form(&format!("{PATH}?id=custom-1"), &two, "id=custom-3");
    seen.answer(&app.send(request).await, "ID_INVALID");
    for key in ["x".to_owned(), "x".repeat(5000)] {
        let mut keyed = signed(app, &good, "custom-9");
        keyed.headers_mut().insert("idempotency-key", key.parse().unwrap());
        seen.answer(&app.send(keyed).await, "REQUEST_ID_INVALID");
    }

    for (request, error) in [
        (Request::get(PATH), EdgeError::WrongMethod),
        (Request::head("/"), EdgeError::UnknownPath),
        (Request::post("/1.1/lists/destroy.json"), EdgeError::UnknownPath),
        (Request::post("/openapi.json"), EdgeError::MethodNotAllowed),
    ] {
        seen.edge(&app.send(request.body(String::new()).unwrap()).await, error);
    }
    for large in ["x".repeat(65 * 1024), "a&".repeat(257)] {
        seen.edge(&app.send(form(PATH, "", &large)).await, EdgeError::BodyTooLarge);
    }
}

async fn refused_credentials(app: &App, seen: &mut Seen) {
    let good = Signer::owner();
    let anonymous = Request::post(PATH).body(String::new()).unwrap();
    seen.answer(&app.send(anonymous).await, "CREDENTIALS_MISSING");
    seen.answer(&app.send(form(PATH, "Bearer x", "id=custom-1")).await, "TOKEN_INVALID");
    let mut wrong = good.clone();
    wrong.consumer.1.push('x');
    seen.answer(&app.send(signed(app, &wrong, "custom-1")).await, "CREDENTIALS_INVALID");
    for seconds in [-301, 301] {
        let late = Signer { timestamp: NOW + seconds, ..good.clone() };
        seen.answer(&app.send(signed(app, &late, "custom-1")).await, "TIMESTAMP_OUT_OF_BOUNDS");
    }
    let unknown = Signer { token: Some(("1-x".to_owned(), "x".to_owned())), ..good.clone() };
    seen.answer(&app.send(signed(app, &unknown, "custom-1")).await, "TOKEN_INVALID");
    for key in ["\0".to_owned(), "x".repeat(257)] {
        let no_token = Signer { token: Some((key.clone(), "x".to_owned())), ..good.clone() };
        seen.answer(&app.send(signed(app, &no_token, "custom-1")).await, "CREDENTIALS_INVALID");
        let no_key = Signer { consumer: (key, "x".to_owned()), ..good.clone() };
        seen.answer(&app.send(signed(app, &no_key, "custom-1")).await, "CREDENTIALS_INVALID");
    }
    let stranger = Signer { consumer: ("x".to_owned(), "x".to_owned()), token: None, ..good.clone() };
    seen.answer(&app.send(signed(app, &stranger, "custom-1")).await, "APPLICATION_INVALID");
    let astray = Signer { consumer: ("x".to_owned(), CONSUMER.1.to_owned()), ..good.clone() };
    seen.answer(&app.send(signed(app, &astray, "custom-1")).await, "APPLICATION_INVALID");
    let other = app.database.credentials.create_app("other").await.unwrap();
    let consumer = (other.consumer_key, other.secret.expose().to_owned());
    let borrowed = Signer { consumer, ..good.clone() };
    seen.answer(&app.send(signed(app, &borrowed, "custom-1")).await, "TOKEN_INVALID");
    let userless = Signer { token: None, ..good.clone() };
    seen.answer(&app.send(signed(app, &userless, "custom-1")).await, "USER_CONTEXT_REQUIRED");
    let credentials = &app.database.credentials;
    let token = credentials.issue_token(CONSUMER.0, user(OWNER), false).await.unwrap();
    let reader = Signer { token: Some((token.token, token.secret.expose().to_owned())), ..good.clone() };
    seen.answer(&app.send(signed(app, &reader, "custom-1")).await, "WRITE_ACCESS_REQUIRED");

    let suspended = credentials.create_app("suspended").await.unwrap();
    let suspend = "UPDATE oauth_applications SET suspended = true WHERE name = 'suspended'";
    app.database.connection().await.execute_unprepared(suspend).await.unwrap();
    let token = credentials.issue_token(&suspended.consumer_key, user(OWNER), true).await.unwrap();
    let signer = Signer {
        consumer: (suspended.consumer_key, suspended.secret.expose().to_owned()),
        token: Some((token.token, token.secret.expose().to_owned())),
        ..good
    };
    seen.answer(&app.send(signed(app, &signer, "custom-1")).await, "APPLICATION_INVALID");
}

/// One call waits for a row that another session has locked; there is room for one.
async fn busy(app: &Arc<App>, grpc: &mut Seen, rest: &mut Seen) {
    let locked = app.database.connection().await.begin().await.unwrap();
    locked.execute_unprepared("SELECT id FROM collections WHERE id = 1 FOR UPDATE").await.unwrap();
    let waiting = tokio::spawn({
        let app = app.clone();
        async move {
            let mut request = tonic::Request::new(collections_service::proto::DestroyRequest {
                id: "custom-1".to_owned(),
                request_id: String::new(),
            });
            request.metadata_mut().insert("x-user-id", OWNER.to_string().parse().unwrap());
            request.set_timeout(Duration::from_millis(1500));
            app.rpc().destroy(request).await.unwrap_err()
        }
    });
    let admin = app.database.connection().await;
    wait_for(&admin, BLOCKED).await;
    grpc.status(&destroy(&mut app.rpc(), OWNER, "custom-3", "").await.unwrap_err(), "OVERLOADED");
    rest.answer(&app.send(signed(app, &Signer::owner(), "custom-3")).await, "OVERLOADED");
    grpc.status(&waiting.await.unwrap(), "DEADLINE_EXCEEDED");
    // The caller of that statement is gone; it must not run once the row is free.
    wait_for(&admin, &format!("SELECT pg_cancel_backend(pid) FROM ({BLOCKED}) AS blocked")).await;
    locked.rollback().await.unwrap();
}

/// A database that refuses a row.
async fn broken(app: &App, grpc: &mut Seen, rest: &mut Seen) {
    app.put(99, OWNER).await;
    let admin = app.database.connection().await;
    let refuse = "ALTER TABLE destroyed_collections ADD CONSTRAINT refuse CHECK (id <> 99) NOT VALID";
    admin.execute_unprepared(refuse).await.unwrap();
    let mut rpc = app.rpc();
    grpc.status(&destroy(&mut rpc, OWNER, "custom-99", "").await.unwrap_err(), "INTERNAL");
    rest.answer(&app.send(signed(app, &Signer::owner(), "custom-99")).await, "INTERNAL");
    admin.execute_unprepared("ALTER TABLE destroyed_collections DROP CONSTRAINT refuse").await.unwrap();
    admin.close().await.unwrap();
}

/// A request whose body does not arrive, and the whole answer to it.
async fn slow_body(origin: String) -> String {
    let mut stream = TcpStream::connect(origin.trim_start_matches("http://")).await.unwrap();
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
