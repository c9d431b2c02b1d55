//! The OpenAPI description, the error table and the responses agree.

use std::{collections::BTreeSet, time::Duration};

use collections_service::{
    domain::{DestroyError, EdgeError},
    rate_limit::Allowance,
    rest::{OPENAPI_PATH, Outcome, PATH, ReplyContext},
};
use http::Request;
use serde_json::{Value, json};
use tonic::Code;

use super::{
    errors::{collected, error_body, shown},
    support::{Answer, App, Backend, TestDatabase},
};

const DOCUMENT: &str = include_str!("../../proto/openapi.json");

fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

/// The description of the response with this status: of the operation, or of a document.
fn response(document: &Value, status: u16) -> Value {
    let responses = document["components"]["responses"].as_object().unwrap();
    let operation = &document["paths"][PATH]["post"]["responses"][status.to_string()]["$ref"];
    let name = operation.as_str().map_or("MethodNotAllowed", |name| name.rsplit('/').next().unwrap());
    responses[name].clone()
}

/// Reason, HTTP status, code and message of every row.
fn rows() -> Vec<(&'static str, u16, u16, &'static str)> {
    let rows = DestroyError::ALL.map(|error| {
        let row = error.row();
        (row.reason, row.http, row.code, row.message)
    });
    let edge = EdgeError::ALL.map(|error| {
        let (http, code, message) = error.row();
        (error.name(), http, code, message)
    });
    rows.into_iter().chain(edge).collect()
}

#[test]
fn describes_every_error_and_no_other() {
    let document = document();
    let mut described: BTreeSet<String> =
        document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    assert!(described.remove("Destroyed"));
    assert_eq!(described, rows().iter().map(|row| row.0.to_owned()).collect());
    for (reason, http, code, message) in rows() {
        let properties = &document["components"]["schemas"][reason]["properties"];
        assert_eq!(
            (&properties["code"]["const"], &properties["message"]["const"]),
            (&json!(code), &json!(message))
        );
        let content = &response(&document, http)["content"]["application/json"];
        let example: Value = serde_json::from_str(&error_body(code, message)).unwrap();
        assert_eq!(content["examples"][reason]["value"], example, "{reason}");
    }
    let statuses: BTreeSet<u16> = rows().iter().map(|row| row.1).collect();
    for status in statuses {
        let response = response(&document, status);
        let content = &response["content"]["application/json"];
        let of_status = || rows().into_iter().filter(move |row| row.1 == status);
        let expected: Vec<_> =
            of_status().map(|row| json!({ "$ref": format!("#/components/schemas/{}", row.0) })).collect();
        assert_eq!(content["schema"]["properties"]["errors"]["items"]["anyOf"], json!(expected), "{status}");
        assert_eq!(content["examples"].as_object().unwrap().len(), expected.len(), "{status}");
    }
}

/// The response to an outcome, with every header that it can have, or with those alone that it always has.
async fn answer(outcome: Outcome, has_all: bool) -> Answer {
    let is_known = match outcome {
        Outcome::Failed(error) => collections_service::grpc::status_of(error).code() != Code::Unauthenticated,
        Outcome::Destroyed => true,
        _ => false,
    };
    let granted = outcome != Outcome::Failed(DestroyError::RateLimited);
    let allowance = Allowance { granted, limit: 300, remaining: 299, reset: 1_795_461_600, wait: 100 };
    let context = ReplyContext {
        transaction: "0123456789abcdef".to_owned(),
        is_secure: has_all,
        realm: "https://api.example".to_owned(),
        access: if has_all && is_known { "read-write" } else { "" },
        allowance: (has_all && is_known || !granted).then_some(allowance),
    };
    collected(outcome.into_response(&context, Duration::from_millis(3))).await
}

/// The names of the headers besides the content type, which OpenAPI has elsewhere.
fn names(answer: &Answer) -> BTreeSet<String> {
    answer.1.keys().map(ToString::to_string).filter(|name| name != "content-type").collect()
}

#[tokio::test]
async fn describes_every_header_and_no_other() {
    let document = document();
    let outcomes = DestroyError::ALL.map(Outcome::Failed).into_iter();
    let outcomes = outcomes.chain(EdgeError::ALL.map(Outcome::Refused)).chain([Outcome::Destroyed]);
    let (mut seen, mut described) = (BTreeSet::new(), BTreeSet::new());
    for outcome in outcomes {
        let (all, least) = (answer(outcome, true).await, answer(outcome, false).await);
        let headers = response(&document, all.0)["headers"].as_object().unwrap().clone();
        let header = |name: &str| {
            let reference = headers[name]["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
            document["components"]["headers"][reference].clone()
        };
        let known: BTreeSet<_> = headers.keys().map(|name| name.to_lowercase()).collect();
        assert!(names(&all).is_subset(&known), "{outcome:?}: {:?} of {known:?}", names(&all));
        let required = headers.keys().filter(|name| header(name)["required"] == true);
        let required: BTreeSet<_> = required.map(|name| name.to_lowercase()).collect();
        assert!(required.is_subset(&names(&least)), "{outcome:?}: {required:?} in {:?}", names(&least));
        for name in headers.keys() {
            let (value, schema) = (all.1.get(name.to_lowercase()), header(name)["schema"].clone());
            let is_wrong = |value: &http::HeaderValue| {
                schema.get("const").is_some_and(|constant| constant != value.to_str().unwrap())
            };
            assert!(!value.is_some_and(is_wrong), "{outcome:?}: {name} is {value:?}");
        }
        seen.extend(names(&all).into_iter().map(|name| (all.0, name)));
        described.extend(known.into_iter().map(|name| (all.0, name)));
    }
    // The router adds the methods of the path.
    let app = App::start(Backend::Sqlite).await;
    let strict = strict().await;
    for (app, status) in [(&app, 400), (&strict, 403)] {
        let answer = app.send(Request::get(PATH).body(String::new()).unwrap()).await;
        assert_eq!((answer.0, &answer.1["allow"]), (status, &http::HeaderValue::from_static("POST")));
        seen.insert((status, "allow".to_owned()));
    }
    assert_eq!(described, seen, "headers that no response has");
}

/// A service that requires TLS.
async fn strict() -> App {
    App::start_with(TestDatabase::new(Backend::Sqlite).await, |settings| {
        settings.rest.as_mut().unwrap().transport.require_tls = true;
    })
    .await
}

#[tokio::test]
async fn the_description_is_served() {
    let app = App::start(Backend::Sqlite).await;
    let request =
        |method: &str| Request::builder().method(method).uri(OPENAPI_PATH).body(String::new()).unwrap();
    let mut answer = app.send(request("GET")).await;
    assert_eq!(answer.2, DOCUMENT);
    let length = DOCUMENT.len().to_string();
    answer.1.insert("content-length", "0".parse().unwrap());
    answer.2.clear();
    insta::assert_snapshot!("description", shown(&answer));
    let mut head = app.send(request("HEAD")).await;
    assert_eq!(head.1["content-length"].to_str().unwrap(), length);
    head.1.insert("content-length", "0".parse().unwrap());
    assert_eq!(shown(&head), shown(&answer));
    for method in ["POST", "DELETE", "OPTIONS"] {
        let refused = app.send(request(method)).await;
        assert_eq!((refused.0, refused.2), (405, error_body(86, "This method requires a GET.")), "{method}");
        assert_eq!(refused.1["allow"], "GET, HEAD");
    }
    assert_eq!(strict().await.send(request("GET")).await.0, 403);
}
