//! The 1.1 URL over HTTP.

use http::Request;

use super::support::{App, Backend, CONSUMER, OTHER, OWNER, TOKEN, oauth::Signer};

const PATH: &str = "/1.1/collections/destroy.json";
const NOW: i64 = 1_795_461_500;

fn signer() -> Signer {
    let pair = |(key, secret): (&str, &str)| (key.to_owned(), secret.to_owned());
    Signer { consumer: pair(CONSUMER), token: Some(pair(TOKEN)), timestamp: NOW }
}

/// A signed request with the id in a form.
fn signed(app: &App, signer: &Signer, id: &str) -> Request<String> {
    let header = signer.header(&format!("{}{PATH}", app.rest), &[("id", id)]);
    form(PATH, &header, &format!("id={id}"))
}

fn form(path: &str, authorization: &str, body: &str) -> Request<String> {
    Request::post(path)
        .header("authorization", authorization)
        .header("content-type", "application/x-www-form-urlencoded;charset=utf-8")
        .body(body.to_owned())
        .unwrap()
}

async fn expect(app: &App, request: Request<String>, status: u16, body: &str) {
    let answer = app.send(request).await;
    assert_eq!((answer.0, answer.2.as_str()), (status, body));
    for (name, value) in [
        ("content-type", "application/json;charset=utf-8"),
        ("cache-control", "no-cache, no-store, must-revalidate, pre-check=0, post-check=0"),
        ("pragma", "no-cache"),
        ("expires", "Tue, 31 Mar 1981 05:00:00 GMT"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "SAMEORIGIN"),
    ] {
        assert_eq!(answer.1[name], value);
    }
    assert!(answer.1.contains_key("x-transaction-id") && answer.1.contains_key("x-response-time"));
    assert_eq!(answer.1.contains_key("www-authenticate"), status == 401);
}

fn error(code: u16, message: &str) -> String {
    format!(r#"{{"errors":[{{"code":{code},"message":"{message}"}}]}}"#)
}

#[tokio::test]
async fn answers_each_row_of_the_table() {
    let app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    app.put(2, OTHER).await;
    let good = signer();
    expect(
        &app,
        signed(&app, &good, "custom-2"),
        403,
        &error(220, "Your credentials do not allow access to this resource."),
    )
    .await;
    expect(&app, signed(&app, &good, "custom-1"), 200, r#"{"destroyed":true}"#).await;
    expect(&app, signed(&app, &good, "custom-1"), 404, &error(34, "Sorry, that page does not exist.")).await;
    expect(&app, signed(&app, &good, ""), 403, &error(38, "id parameter is missing.")).await;
    expect(&app, signed(&app, &good, "custom-0"), 400, &error(44, "id parameter is invalid.")).await;
    let url = format!("{}{PATH}", app.rest);
    let two = good.header(&url, &[("id", "custom-2"), ("id", "custom-3")]);
    expect(
        &app,
        form(&format!("{PATH}?id=custom-2"), &two, "id=custom-3"),
        400,
        &error(44, "id parameter is invalid."),
    )
    .await;
    let mut keyed = signed(&app, &good, "custom-9");
    keyed.headers_mut().insert("idempotency-key", "x".parse().unwrap());
    expect(&app, keyed, 400, &error(44, "Idempotency-Key is invalid.")).await;

    expect(
        &app,
        Request::post(PATH).body(String::new()).unwrap(),
        400,
        &error(215, "Bad Authentication data."),
    )
    .await;
    expect(&app, form(PATH, "Bearer x", ""), 401, &error(32, "Could not authenticate you.")).await;
    let wrong = Signer { consumer: (CONSUMER.0.to_owned(), "wrong".to_owned()), ..good.clone() };
    expect(&app, signed(&app, &wrong, "custom-2"), 401, &error(32, "Could not authenticate you.")).await;
    let unknown = Signer { token: Some(("1-x".to_owned(), "y".to_owned())), ..good.clone() };
    expect(&app, signed(&app, &unknown, "custom-2"), 401, &error(89, "Invalid or expired token.")).await;
    let late = Signer { timestamp: NOW - 301, ..good.clone() };
    expect(&app, signed(&app, &late, "custom-2"), 401, &error(135, "Timestamp out of bounds.")).await;
    let stranger = Signer { consumer: ("x".to_owned(), "y".to_owned()), token: None, ..good.clone() };
    expect(&app, signed(&app, &stranger, "custom-2"), 401, &error(416, "Invalid / suspended application."))
        .await;
    let userless = Signer { token: None, ..good.clone() };
    expect(
        &app,
        signed(&app, &userless, "custom-2"),
        403,
        &error(220, "Your credentials do not allow access to this resource."),
    )
    .await;
    let read_only =
        app.credentials.issue_token(CONSUMER.0, super::support::user(OWNER), false).await.unwrap();
    let reader =
        Signer { token: Some((read_only.token, read_only.secret.expose().to_owned())), ..good.clone() };
    expect(
        &app,
        signed(&app, &reader, "custom-2"),
        403,
        &error(261, "Application cannot perform write actions."),
    )
    .await;

    expect(
        &app,
        Request::get(PATH).body(String::new()).unwrap(),
        400,
        &error(86, "This method requires a POST."),
    )
    .await;
    expect(
        &app,
        Request::post("/1.1/lists/destroy.json").body(String::new()).unwrap(),
        404,
        &error(34, "Sorry, that page does not exist."),
    )
    .await;
    expect(&app, form(PATH, "", &"x".repeat(65 * 1024)), 413, &error(44, "Request body is too large.")).await;
    assert_eq!(app.owned_by(OTHER).await, [2]);
}

#[tokio::test]
async fn a_revoked_token_is_refused() {
    let app = App::start(Backend::Sqlite).await;
    app.put(1, OWNER).await;
    app.credentials.revoke_token(TOKEN.0).await.unwrap();
    expect(&app, signed(&app, &signer(), "custom-1"), 401, &error(89, "Invalid or expired token.")).await;
    assert_eq!(app.owned_by(OWNER).await, [1]);
}

/// A client's name, and what it sent: the target, `authorization`, `content-type`, the body.
type Recorded = (&'static str, String, Option<String>, Option<&'static str>, String);

/// What unmodified clients sent, signed for `https://api.twitter.com`.
fn recorded() -> Vec<Recorded> {
    let form = Some("application/x-www-form-urlencoded");
    let common = |nonce: &str, timestamp: &str, version: &str, signature: &str| {
        format!(
            "OAuth oauth_nonce=\"{nonce}\", oauth_timestamp=\"{timestamp}\", oauth_version=\"{version}\", \
             oauth_signature_method=\"HMAC-SHA1\", oauth_consumer_key=\"{}\", oauth_token=\"{}\", \
             oauth_signature=\"{signature}\"",
            CONSUMER.0, TOKEN.0
        )
    };
    let id = "id=custom-390882285743898624";
    let sent = |nonce: &str, signature: &str| {
        format!(
            "{id}&oauth_nonce={nonce}&oauth_timestamp=1795461407&oauth_version=1.0&oauth_signature_method=HMAC-SHA1\
             &oauth_consumer_key={}&oauth_token={}&oauth_signature={signature}",
            CONSUMER.0, TOKEN.0
        )
    };
    let with_id = format!("{PATH}?{id}");
    vec![
        (
            "node-oauth",
            PATH.to_owned(),
            Some(
                common(
                    "HmcHQEHPBhOhMAOGKQILCzaauu20zwMM",
                    "1795461483",
                    "1.0A",
                    "5a0pukAvtfMTXCfll5PkoY1bcT4%3D",
                )
                .replace(", ", ","),
            ),
            form,
            id.to_owned(),
        ),
        (
            "twit",
            with_id.clone(),
            Some(common(
                "0999819a568d41798e782c4aebbe86b0",
                "1795461475",
                "1.0",
                "QWa2jXPTN0v1t0PM5ikkxNHOhLQ%3D",
            )),
            Some("application/json"),
            String::new(),
        ),
        (
            "Twitter::API",
            PATH.to_owned(),
            Some(common(
                "192dfe5305de386bb75ebbc3f8d8eecd7c5be6e7",
                "1795461630",
                "1.0",
                "%2BuHeOI401eHFRum0mEfu6CePXJc%3D",
            )),
            Some("application/x-www-form-urlencoded;charset=utf-8"),
            id.to_owned(),
        ),
        (
            "TwitterAPI",
            PATH.to_owned(),
            Some(common(
                "33628172142709780381795461404",
                "1795461404",
                "1.0",
                "TpThXd%2Brjt3SZaFHpfjFkGm%2B9xs%3D",
            )),
            form,
            id.to_owned(),
        ),
        (
            "requests-oauthlib, id in the query",
            with_id,
            Some(common(
                "128076963360395288061795461407",
                "1795461407",
                "1.0",
                "Ci0Lif8mSRbX%2Bz6VBs4oZ99BHto%3D",
            )),
            None,
            String::new(),
        ),
        (
            "requests-oauthlib, signed in the body",
            PATH.to_owned(),
            None,
            form,
            sent("26169699606582798991795461407", "TUNubPRYvGF7RM1qOEdTFxRM5yM%3D"),
        ),
        (
            "requests-oauthlib, signed in the query",
            format!(
                "{PATH}?{}",
                sent("184113455216075128431795461407", "i03H%2FafY56eO1XgeVoyviHL8V%2BE%3D")
            ),
            None,
            None,
            String::new(),
        ),
        (
            "twitter",
            PATH.to_owned(),
            None,
            form,
            sent("16803872961420282005", "4BfwtTIsv%2Fl8AtOPbertKC8QeKI%3D")
                .replace("1795461407", "1795461408"),
        ),
    ]
}

#[tokio::test]
async fn recorded_requests_verify_and_changed_ones_do_not() {
    for (client, target, authorization, content_type, body) in recorded() {
        let app = App::start_for(Backend::Sqlite, &["https://api.x.com", "https://api.twitter.com"]).await;
        app.put(390_882_285_743_898_624, OWNER).await;
        app.put(390_882_285_743_898_625, OWNER).await;
        let request = |target: &str, body: &str| {
            let mut builder = Request::post(target);
            if let Some(authorization) = &authorization {
                builder = builder.header("authorization", authorization);
            }
            if let Some(content_type) = content_type {
                builder = builder.header("content-type", content_type);
            }
            builder.body(body.to_owned()).unwrap()
        };
        let flip = |text: &str| text.replace("390882285743898624", "390882285743898625");
        let changed = app.send(request(&flip(&target), &flip(&body))).await;
        assert_eq!((changed.0, changed.2), (401, error(32, "Could not authenticate you.")), "{client}");
        let answer = app.send(request(&target, &body)).await;
        assert_eq!((answer.0, answer.2.as_str()), (200, r#"{"destroyed":true}"#), "{client}");
        assert_eq!(app.owned_by(OWNER).await, [390_882_285_743_898_625], "{client}");
    }
}
