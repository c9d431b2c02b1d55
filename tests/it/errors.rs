//! The error table, row by row, as callers of both protocols meet it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use collections_service::{
    domain::{DestroyError, EdgeError},
    grpc::status_of,
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
    Answer, App, BLOCKED, CONSUMER, Ground, NOW, OTHER, OWNER, PATH, cluster::Cluster, destroy,
    fresh_database, oauth::Signer, reason, user, wait_for,
};

/// The contract's table, written out a second time: reason, gRPC code, HTTP status, 1.1 code, message.
const TABLE: [(&str, Code, u16, u16, &str); 18] = [
    ("ID_REQUIRED", Code::InvalidArgument, 403, 38, "id parameter is missing."),
    ("ID_INVALID", Code::InvalidArgument, 400, 44, "id parameter is invalid."),
    ("REQUEST_ID_INVALID", Code::InvalidArgument, 400, 44, "Idempotency-Key is invalid."),
    ("CREDENTIALS_MISSING", Code::Unauthenticated, 400, 215, "Bad Authentication data."),
    ("CREDENTIALS_INVALID", Code::Unauthenticated, 401, 32, "Could not authenticate you."),
    ("TOKEN_INVALID", Code::Unauthenticated, 401, 89, "Invalid or expired token."),
    ("TIMESTAMP_OUT_OF_BOUNDS", Code::Unauthenticated, 401, 135, "Timestamp out of bounds."),
    ("APPLICATION_INVALID", Code::Unauthenticated, 401, 416, "Invalid / suspended application."),
    ("USER_CONTEXT_REQUIRED", Code::PermissionDenied, 403, 220, NO_ACCESS),
    ("WRITE_ACCESS_REQUIRED", Code::PermissionDenied, 403, 261, "Application cannot perform write actions."),
    (
        "CALLER_NOT_ALLOWED",
        Code::PermissionDenied,
        403,
        87,
        "Client is not permitted to perform this action.",
    ),
    ("NOT_OWNER", Code::PermissionDenied, 403, 220, NO_ACCESS),
    ("COLLECTION_NOT_FOUND", Code::NotFound, 404, 34, "Sorry, that page does not exist."),
    ("RATE_LIMITED", Code::ResourceExhausted, 429, 88, "Rate limit exceeded"),
    ("OVERLOADED", Code::Unavailable, 503, 130, "Over capacity"),
    ("STORE_UNAVAILABLE", Code::Unavailable, 503, 130, "Over capacity"),
    ("DEADLINE_EXCEEDED", Code::DeadlineExceeded, 503, 130, "Over capacity"),
    ("INTERNAL", Code::Internal, 500, 131, "Internal error"),
];
const NO_ACCESS: &str = "Your credentials do not allow access to this resource.";
/// Rows that other tests show, because they need certificates or a limit: `tls` and `rate_limit`.
const ELSEWHERE: [&str; 2] = ["CALLER_NOT_ALLOWED", "RATE_LIMITED"];

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

/// An answer with every header that the 1.1 API sent.
pub fn assert_answer((status, headers, body): &Answer, expected: u16, text: &str) {
    assert_eq!((*status, body.as_str()), (expected, text));
    for (name, value) in [
        ("content-type", "application/json;charset=utf-8"),
        ("cache-control", "no-cache, no-store, must-revalidate, pre-check=0, post-check=0"),
        ("pragma", "no-cache"),
        ("expires", "Tue, 31 Mar 1981 05:00:00 GMT"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "SAMEORIGIN"),
    ] {
        assert_eq!(headers[name], value);
    }
    assert!(headers.contains_key("x-transaction-id") && headers.contains_key("x-response-time"));
    assert_eq!(headers.contains_key("www-authenticate"), expected == 401);
}

pub fn error_body(code: u16, message: &str) -> String {
    format!(r#"{{"errors":[{{"code":{code},"message":"{message}"}}]}}"#)
}

/// The rows that were seen, on one protocol.
#[derive(Default)]
struct Seen(BTreeSet<&'static str>);

impl Seen {
    fn row(&mut self, expected: &'static str) -> (Code, u16, u16, &'static str) {
        self.0.insert(expected);
        let row = TABLE.iter().find(|row| row.0 == expected).unwrap();
        (row.1, row.2, row.3, row.4)
    }

    fn status(&mut self, status: &Status, expected: &'static str) {
        let (code, ..) = self.row(expected);
        let of_message =
            ["message is larger than 4096 bytes", "message does not decode", "expected one message"];
        let message = match of_message.into_iter().find(|text| *text == status.message()) {
            Some(text) if expected == "ID_INVALID" => text,
            _ => DestroyError::from_reason(expected).unwrap().row().grpc_message,
        };
        assert_eq!((reason(status).as_str(), status.code(), status.message()), (expected, code, message));
        let details = status.get_error_details();
        assert_eq!(details.retry_info().is_some(), code == Code::Unavailable);
        assert_eq!(details.bad_request().is_some(), code == Code::InvalidArgument);
    }

    fn answer(&mut self, answer: &Answer, expected: &'static str) {
        let (_, http, code, message) = self.row(expected);
        assert_answer(answer, http, &error_body(code, message));
        let access = answer.1.get("x-access-level").map(|access| access.to_str().unwrap());
        let known = match expected {
            "WRITE_ACCESS_REQUIRED" => Some("read"),
            "ID_REQUIRED"
            | "ID_INVALID"
            | "REQUEST_ID_INVALID"
            | "NOT_OWNER"
            | "COLLECTION_NOT_FOUND"
            | "INTERNAL" => Some("read-write"),
            _ => access.filter(|_| expected == "STORE_UNAVAILABLE"),
        };
        assert_eq!(access, known, "{expected}");
    }
}

#[test]
fn the_table_is_the_contracts() {
    let rows = DestroyError::ALL.map(|error| {
        let row = error.row();
        let code = status_of(error).code();
        assert_eq!(format!("{code:?}"), format!("{:?}", row.grpc));
        (row.reason, code, row.http, row.code, row.message)
    });
    assert_eq!(rows, TABLE);
    assert_eq!(EdgeError::TlsRequired.row(), (403, 92, "SSL is required"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_answered() {
    let mut cluster = Cluster::start().await;
    let ground = Ground::on(Some(fresh_database(&cluster.url()).await)).await;
    let app = Arc::new(App::start_with(ground, |settings| settings.max_in_flight = 1).await);
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
    rest.row("DEADLINE_EXCEEDED");
    assert!(body.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{body}");
    assert!(body.ends_with(&error_body(130, "Over capacity")) && !body.contains("x-access"), "{body}");
    assert_eq!((app.owned_by(OWNER).await, app.owned_by(OTHER).await), (vec![1, 99], vec![2]));

    cluster.stop();
    let mut rpc = app.rpc();
    grpc.status(&destroy(&mut rpc, OWNER, "custom-1", "").await.unwrap_err(), "STORE_UNAVAILABLE");
    rest.answer(&app.send(signed(&app, &Signer::owner(), "custom-1")).await, "STORE_UNAVAILABLE");

    let missing: Vec<_> = TABLE.iter().map(|row| row.0).filter(|reason| !rest.0.contains(reason)).collect();
    assert_eq!(missing, ELSEWHERE, "rows that no REST answer showed");
    let missing: Vec<_> = TABLE.iter().map(|row| row.0).filter(|reason| !grpc.0.contains(reason)).collect();
    let of_oauth =
        ["TIMESTAMP_OUT_OF_BOUNDS", "APPLICATION_INVALID", "USER_CONTEXT_REQUIRED", "WRITE_ACCESS_REQUIRED"];
    assert_eq!(missing, [&of_oauth[..], &ELSEWHERE[..]].concat(), "rows that no status showed");
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

    let edge = |error: EdgeError| error.row();
    for (request, error) in [
        (Request::get(PATH), EdgeError::WrongMethod),
        (Request::head("/"), EdgeError::UnknownPath),
        (Request::post("/1.1/lists/destroy.json"), EdgeError::UnknownPath),
    ] {
        let (http, code, message) = edge(error);
        let request = request.body(String::new()).unwrap();
        let text = if request.method() == "HEAD" { String::new() } else { error_body(code, message) };
        assert_answer(&app.send(request).await, http, &text);
    }
    let (http, code, message) = edge(EdgeError::BodyTooLarge);
    for large in ["x".repeat(65 * 1024), "a&".repeat(257)] {
        assert_answer(&app.send(form(PATH, "", &large)).await, http, &error_body(code, message));
    }
}

async fn refused_credentials(app: &App, seen: &mut Seen) {
    let good = Signer::owner();
    let nobody = Request::post(PATH).body(String::new()).unwrap();
    seen.answer(&app.send(nobody).await, "CREDENTIALS_MISSING");
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
    let other = app.ground.credentials.create_app("other").await.unwrap();
    let consumer = (other.consumer_key, other.secret.expose().to_owned());
    let borrowed = Signer { consumer, ..good.clone() };
    seen.answer(&app.send(signed(app, &borrowed, "custom-1")).await, "TOKEN_INVALID");
    let userless = Signer { token: None, ..good.clone() };
    seen.answer(&app.send(signed(app, &userless, "custom-1")).await, "USER_CONTEXT_REQUIRED");
    let credentials = &app.ground.credentials;
    let token = credentials.issue_token(CONSUMER.0, user(OWNER), false).await.unwrap();
    let reader = Signer { token: Some((token.token, token.secret.expose().to_owned())), ..good.clone() };
    seen.answer(&app.send(signed(app, &reader, "custom-1")).await, "WRITE_ACCESS_REQUIRED");

    let suspended = credentials.create_app("suspended").await.unwrap();
    let suspend = "UPDATE oauth_applications SET suspended = true WHERE name = 'suspended'";
    app.ground.connection().await.execute_unprepared(suspend).await.unwrap();
    let token = credentials.issue_token(&suspended.consumer_key, user(OWNER), true).await.unwrap();
    let signer = Signer {
        consumer: (suspended.consumer_key, suspended.secret.expose().to_owned()),
        token: Some((token.token, token.secret.expose().to_owned())),
        ..good
    };
    seen.answer(&app.send(signed(app, &signer, "custom-1")).await, "APPLICATION_INVALID");
}

/// One call waits for a row that somebody else has locked; there is room for one.
async fn busy(app: &Arc<App>, grpc: &mut Seen, rest: &mut Seen) {
    let locked = app.ground.connection().await.begin().await.unwrap();
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
    let admin = app.ground.connection().await;
    wait_for(&admin, BLOCKED).await;
    grpc.status(&destroy(&mut app.rpc(), OWNER, "custom-3", "").await.unwrap_err(), "OVERLOADED");
    rest.answer(&app.send(signed(app, &Signer::owner(), "custom-3")).await, "OVERLOADED");
    grpc.status(&waiting.await.unwrap(), "DEADLINE_EXCEEDED");
    // Nobody waits for that statement any more; it must not run once the row is free.
    wait_for(&admin, &format!("SELECT pg_cancel_backend(pid) FROM ({BLOCKED}) AS blocked")).await;
    locked.rollback().await.unwrap();
}

/// A database that refuses a row.
async fn broken(app: &App, grpc: &mut Seen, rest: &mut Seen) {
    app.put(99, OWNER).await;
    let admin = app.ground.connection().await;
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
