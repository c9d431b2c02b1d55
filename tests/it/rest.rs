//! The 1.1 URL over HTTP, in the ways clients really use it.

use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    errors::{assert_answer, error_body, form, signed},
    recorded::recorded,
    support::{App, Backend, OWNER, PATH, TOKEN, TestDatabase, oauth::Signer},
};

const DESTROYED: &str = r#"{"destroyed":true}"#;

#[tokio::test]
async fn a_revoked_token_is_refused() {
    let app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    app.database.store.revoke_token(TOKEN.0).await.unwrap();
    let refused = app.send(signed(&app, &Signer::owner(), "custom-1")).await;
    assert_answer(&refused, 401, &error_body(89, "Invalid or expired token."));
    assert_eq!(app.owned_by(OWNER).await, [1]);
}

#[tokio::test]
async fn recorded_requests_destroy_what_they_name() {
    for recorded in recorded() {
        let app = App::start_with(TestDatabase::new(Backend::Sqlite).await, |settings| {
            let origins = ["https://api.x.com", recorded.origin].map(|origin| origin.parse().unwrap());
            settings.rest.as_mut().unwrap().public_origins = origins.to_vec();
        })
        .await;
        app.put(390_882_285_743_898_624, OWNER).await;
        app.put(390_882_285_743_898_625, OWNER).await;
        let request = |target: &str, body: &str| {
            let mut builder = Request::post(target);
            if let Some(authorization) = &recorded.authorization {
                builder = builder.header("authorization", authorization);
            }
            if let Some(content_type) = recorded.content_type {
                builder = builder.header("content-type", content_type);
            }
            builder.body(body.to_owned()).unwrap()
        };
        let other = |text: &str| text.replace("390882285743898624", "390882285743898625");
        let changed = app.send(request(&other(&recorded.target()), &other(&recorded.body))).await;
        assert_answer(&changed, 401, &error_body(32, "Could not authenticate you."));
        let realm = "OAuth realm=\"https://api.x.com\"";
        assert_eq!(changed.1["www-authenticate"], realm, "{}", recorded.client);
        let answer = app.send(request(&recorded.target(), &recorded.body)).await;
        assert_answer(&answer, 200, DESTROYED);
        assert_eq!(answer.1["x-access-level"], "read-write");
        assert_eq!(app.owned_by(OWNER).await, [390_882_285_743_898_625], "{}", recorded.client);
    }
}

#[tokio::test]
async fn the_id_is_read_from_the_query_and_the_form() {
    let app = App::start(Backend::Sqlite).await;
    for id in 1..=4 {
        app.put(id, OWNER).await;
    }
    let url = format!("{}{PATH}", app.rest);
    let signer = Signer::owner();
    let in_query = signer.header(&url, &[("id", "custom-1"), ("trim_user", "1")]);
    assert_answer(
        &app.send(form(&format!("{PATH}?id=custom-1&trim_user=1"), &in_query, "")).await,
        200,
        DESTROYED,
    );
    let twice = signer.header(&url, &[("id", "custom-2"), ("id", "custom-2")]);
    assert_answer(
        &app.send(form(&format!("{PATH}?id=custom-2"), &twice, "id=custom-2")).await,
        200,
        DESTROYED,
    );
    // A body that is no form is neither read nor signed.
    let json = signer.header(&url, &[("id", "custom-3")]);
    let mut request = form(&format!("{PATH}?id=custom-3"), &json, r#"{"id":"custom-4"}"#);
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    assert_answer(&app.send(request).await, 200, DESTROYED);
    assert_eq!(app.owned_by(OWNER).await, [4]);
}

#[tokio::test]
async fn an_idempotency_key_makes_a_retry_safe() {
    let app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    let keyed = |key: &str| {
        let mut request = signed(&app, &Signer::owner(), "custom-1");
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        request
    };
    let key = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
    assert_eq!(app.send(keyed(key)).await.2, DESTROYED);
    assert_eq!(app.send(keyed(&format!("\"{key}\""))).await.2, DESTROYED);
    assert_eq!(app.send(keyed("7c9e6679-7425-40de-944b-e07fc1f90ae8")).await.0, 404);
}

/// The head and body of the answer to these bytes, on a connection that the client then closes.
pub async fn raw(app: &App, request: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(app.rest.trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_ref()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn old_http_clients_are_served() {
    let app = App::start(Backend::Sqlite).await;
    for id in 1..=4 {
        app.put(id, OWNER).await;
    }
    let host = app.rest.trim_start_matches("http://");
    let header = |id: &str| Signer::owner().header(&format!("http://{host}{PATH}"), &[("id", id)]);
    let common = |id: &str| format!("host: {host}\r\nconnection: close\r\nauthorization: {}\r\n", header(id));
    let urlencoded = "content-type: application/x-www-form-urlencoded\r\n";

    let no_length =
        raw(&app, &format!("POST {PATH}?id=custom-1 HTTP/1.1\r\n{}\r\n", common("custom-1"))).await;
    assert!(no_length.starts_with("HTTP/1.1 200 OK\r\n") && no_length.ends_with(DESTROYED), "{no_length}");
    let chunked = format!(
        "POST {PATH} HTTP/1.1\r\n{}{urlencoded}transfer-encoding: chunked\r\n\r\n5\r\nid=cu\r\n6\r\nstom-2\r\n0\r\n\r\n",
        common("custom-2")
    );
    assert!(raw(&app, &chunked).await.ends_with(DESTROYED));
    let old = format!("POST {PATH}?id=custom-3 HTTP/1.0\r\n{}\r\n", common("custom-3"));
    assert!(raw(&app, &old).await.contains(DESTROYED));

    let mut stream = TcpStream::connect(host).await.unwrap();
    let expecting = format!(
        "POST {PATH} HTTP/1.1\r\n{}{urlencoded}content-length: 11\r\nexpect: 100-continue\r\n\r\n",
        common("custom-4")
    );
    stream.write_all(expecting.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"id=custom-4").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(DESTROYED), "{answer}");

    // A client that sends `Expect: 100-continue` is refused before it sends too much, and any other client is refused as well.
    let large = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 70000\r\n\r\n"
    );
    let refused = raw(&app, &large).await;
    assert!(refused.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{refused}");
    assert!(refused.ends_with(&error_body(44, "Request body is too large.")), "{refused}");
    assert_eq!(app.owned_by(OWNER).await, [] as [i64; 0]);
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::{
        client::legacy::Client,
        rt::{TokioExecutor, TokioIo},
    };
    let app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<bytes::Bytes>>();
    let (mut parts, body) = signed(&app, &Signer::owner(), "custom-1").into_parts();
    parts.uri = format!("{}{PATH}", app.rest).parse().unwrap();
    let answer = client.request(Request::from_parts(parts, Full::from(body))).await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, DESTROYED.as_bytes());

    // The scheme that a front end passes on is the one that its client signed.
    app.put(2, OWNER).await;
    let address = app.rest.trim_start_matches("http://");
    let header = Signer::owner().header(&format!("https://{address}{PATH}"), &[("id", "custom-2")]);
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (mut parts, body) = form(PATH, &header, "id=custom-2").into_parts();
    parts.uri = format!("https://{address}{PATH}").parse().unwrap();
    let answer =
        sender.send_request(Request::from_parts(parts, Full::<bytes::Bytes>::from(body))).await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_user_header_of_a_client_is_ignored() {
    let app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    let mut request = form(PATH, "", "id=custom-1");
    request.headers_mut().remove("authorization");
    request.headers_mut().insert("x-user-id", OWNER.to_string().parse().unwrap());
    assert_answer(&app.send(request).await, 400, &error_body(215, "Bad Authentication data."));
    assert_eq!(app.owned_by(OWNER).await, [1]);
}
