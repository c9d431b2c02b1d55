//! What a request costs where nothing is waited for: reading its id, verifying its signature, rendering its error.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::{
    future::{Future, ready},
    hint::black_box,
    pin::Pin,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use axum::body::Body;
use collections_service::{
    collections::{Admission, DestroyApi, DestroyCall, DestroyFuture},
    domain::{
        AccessToken, Application, Clock, CollectionId, CredentialDirectory, DestroyError, Destroyed,
        DirectoryError, Entropy, Found, Secret, UserId,
    },
    grpc::status_of,
    identity::oauth1::{Parameters, Request, Verifier, parse_header},
    rest::{Edge, Outcome, ReplyContext, TransportPolicy, router},
    telemetry::{Metrics, Traces},
};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

const NOW: i64 = 1_795_461_500;
const PATH: &str = "/1.1/collections/destroy.json";
const ORIGINS: [&str; 2] = ["https://api.twitter.com", "https://api.x.com"];
const BODY: &[u8] = b"id=custom-390882285743898624";
/// The credentials of the API's published documentation: key and secret.
const CONSUMER: (&str, &str) = ("xvz1evFS4wEEPTGEFPHBog", "kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw");
const TOKEN: (&str, &str) =
    ("370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb", "LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE");
/// A signature method, the origin that was signed for, and the signature.
const SIGNED: [(&str, &str, &str); 3] = [
    ("HMAC-SHA1", "the first origin", "Q%2BQYAmwoV%2FPJdDugU6uhJeNfAvI%3D"),
    ("HMAC-SHA1", "the second origin", "peRKbNr2RYpMLld0casKiM1mREE%3D"),
    ("HMAC-SHA256", "the first origin", "PY6EofhGrRnFifSVC243sp%2F4PuaZ4DGKnwKlUkC0T14%3D"),
];
const LONG_FORM: &[u8] =
    b"status=Hello+Ladies+%2B+Gentlemen%2C+a+signed+OAuth+request%21&name=caf%C3%A9&b=2&a=1&b=1&empty=";

/// One application with one token, and no way to it.
struct Known(Found);

impl CredentialDirectory for Known {
    fn find<'a>(
        &'a self,
        _consumer_key: &'a str,
        _token: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Found, DirectoryError>> + Send + 'a>> {
        Box::pin(ready(Ok(self.0.clone())))
    }
}

fn verifier() -> Verifier {
    let secret = |text: &str| Secret::from(text.to_owned());
    let application = Application { secret: secret(CONSUMER.1), suspended: false };
    let token = AccessToken {
        consumer_key: CONSUMER.0.to_owned(),
        user: UserId::new(1).unwrap(),
        secret: secret(TOKEN.1),
        write: true,
        revoked: false,
    };
    let known = Known(Found { application: Some(Arc::new(application)), token: Some(Arc::new(token)) });
    let origins = ORIGINS.map(|origin| origin.parse().unwrap()).to_vec();
    Verifier::new(Arc::new(known), origins, Clock::Set(Arc::new(AtomicI64::new(NOW))))
}

/// What stands behind the scheme of an `Authorization` header.
fn header(method: &str, signature: &str) -> String {
    let ((key, _), (token, _)) = (CONSUMER, TOKEN);
    format!(
        "oauth_consumer_key=\"{key}\", oauth_nonce=\"kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg\", \
         oauth_signature=\"{signature}\", oauth_signature_method=\"{method}\", oauth_timestamp=\"{NOW}\", \
         oauth_token=\"{token}\", oauth_version=\"1.0\""
    )
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

/// Answers at once.
struct Answer(Option<DestroyError>);

impl DestroyApi for Answer {
    fn destroy(&self, _call: DestroyCall) -> DestroyFuture<'_> {
        Box::pin(ready(self.0.map_or(Ok(Destroyed::Now), |error| Err(error.into()))))
    }
}

fn ids(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("collection id");
    let text = "custom-390882285743898624";
    let id: CollectionId = text.parse().unwrap();
    group.bench_function("parse", |bencher| bencher.iter(|| black_box(text).parse::<CollectionId>()));
    group.bench_function("print", |bencher| bencher.iter(|| black_box(id).to_string()));
    group.finish();
}

fn parameters(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("oauth parameters");
    let [(method, _, signature), ..] = SIGNED;
    let text = header(method, signature);
    let header = parse_header(&text).unwrap();
    group.bench_function("header/parse", |bencher| bencher.iter(|| parse_header(black_box(&text))));
    for (name, text) in [("id", BODY), ("six", LONG_FORM)] {
        let form = Parameters::decode(text);
        group.bench_function(format!("form of {name}/parse"), |bencher| {
            bencher.iter(|| Parameters::decode(black_box(text)));
        });
        group.bench_function(format!("form of {name} and header/normalize"), |bencher| {
            bencher.iter(|| Parameters::normalized(black_box(&[&header, &form])));
        });
    }
    group.finish();
}

fn verification(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("oauth verification");
    let verifier = verifier();
    let runtime = runtime();
    for (method, origin, signature) in SIGNED {
        let header = header(method, signature);
        // From the bytes of header and body, as the gateway does it.
        let verify = || async {
            let (query, form) = (Parameters::default(), Parameters::decode(black_box(BODY)));
            let header = Some(black_box(header.as_str()));
            let request =
                Request { method: "POST", path: PATH, header, query: &query, form: &form, origin: None };
            verifier.verify(request).await
        };
        assert!(runtime.block_on(verify()).is_ok(), "{method}, {origin}");
        group.bench_function(format!("{method}/{origin}"), |bencher| {
            bencher.to_async(&runtime).iter(verify);
        });
    }
    group.finish();
}

fn errors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("error");
    for error in [DestroyError::NotFound, DestroyError::IdInvalid, DestroyError::Overloaded] {
        let name = format!("grpc/{}", error.row().reason);
        group.bench_function(name, |bencher| bencher.iter(|| status_of(black_box(error))));
    }
    let failed = [DestroyError::NotFound, DestroyError::CredentialsInvalid].map(Outcome::Failed);
    for outcome in [Outcome::Destroyed].into_iter().chain(failed) {
        group.bench_function(format!("rest/{}", outcome.recorded().reason()), |bencher| {
            bencher.iter(|| black_box(outcome).into_response(&ReplyContext::default(), Duration::ZERO));
        });
    }
    group.finish();
}

/// A signed request from the listener to the use case and back.
fn gateway(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gateway");
    let runtime = runtime();
    let [(method, _, signature), ..] = SIGNED;
    let authorization = format!("OAuth {}", header(method, signature));
    let request = || {
        http::Request::post(PATH)
            .header("host", "api.twitter.com")
            .header("authorization", authorization.as_str())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(BODY))
            .unwrap()
    };
    for (name, failure) in [("destroyed", None), ("not found", Some(DestroyError::NotFound))] {
        let (oauth1, transport, entropy) = (verifier(), TransportPolicy::default(), Entropy::default());
        let (metrics, traces) = (Metrics::new(), Traces::default());
        let edge = Edge { oauth1, jwt: None, transport, rate_limit: None, entropy, metrics, traces };
        let admission = Admission::new(1);
        admission.open();
        let router = router(Arc::new(Answer(failure)), admission, edge);
        let answer = runtime.block_on(router.clone().oneshot(request())).unwrap();
        assert_eq!(answer.status(), failure.map_or(200, |error| error.row().http));
        group.bench_function(name, |bencher| {
            let answer = |request| router.clone().oneshot(request);
            bencher.to_async(&runtime).iter_batched(request, answer, BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, ids, parameters, verification, errors, gateway);
criterion_main!(benches);
