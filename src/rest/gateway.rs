//! One request: read, authenticate, call, answer.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{body::Body, extract::State};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::util::BoxCloneSyncService;
use tracing::{Instrument, Span, field};

use super::{Edge, PATH, answer::Outcome};
use crate::{
    config,
    domain::{DestroyError, EdgeError},
    identity::{
        AuthenticatedUser, Peer,
        oauth1::{self, Origin, Parameters, Scheme},
    },
    proto::{DestroyRequest, collections_service_client::CollectionsServiceClient},
    rate_limit::Allowance,
    telemetry::{self, Unanswered},
};

/// What the generated client speaks through: the in-process service, or a channel.
pub type Rpc = BoxCloneSyncService<Request<tonic::body::Body>, Response<tonic::body::Body>, Status>;

/// How far the way to the RPC may go for a call; in the extensions of its request.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Nobody waits for the answer any longer.
    pub deadline: Instant,
    /// The call has a request id, so that sending it twice does no harm.
    pub repeatable: bool,
}

/// The gateway's parts.
#[derive(Debug)]
pub struct Gateway {
    client: CollectionsServiceClient<Rpc>,
    edge: Edge,
    places: Semaphore,
    slow_bodies: Semaphore,
}

/// What is known of the user of a request.
#[derive(Debug, Default)]
struct Known {
    /// What the token may do, once a token was accepted.
    access: &'static str,
    allowance: Option<Allowance>,
}

/// What the 1.1 API asked of browsers: twenty years of TLS.
const HSTS: &str = "max-age=631138519";

/// As many headers as most answers have, those that hyper adds among them.
const USUAL_HEADERS: usize = 12;

/// Headers of a request that go on to the RPC as they are.
const FORWARDED: [&str; 3] = ["traceparent", "tracestate", "x-request-id"];

impl Gateway {
    pub fn new(service: Rpc, edge: Edge) -> Self {
        let places = Semaphore::new(config::calls::REST_IN_FLIGHT);
        let slow_bodies = Semaphore::new(config::calls::SLOW_BODIES);
        let client = CollectionsServiceClient::new(service);
        Self { client, edge, places, slow_bodies }
    }

    /// `known` becomes what is known of the user, for the answer's headers.
    async fn destroy(
        &self,
        parts: &Parts,
        body: Body,
        secure: bool,
        origin: Option<&Origin>,
        known: &mut Known,
    ) -> Outcome {
        if self.edge.surroundings.require_tls && !secure {
            return Outcome::Refused(EdgeError::TlsRequired);
        }
        if parts.uri.path() != PATH {
            return Outcome::Refused(EdgeError::UnknownPath);
        }
        if parts.method != Method::POST {
            return Outcome::Refused(EdgeError::WrongMethod);
        }
        // The service limits the calls; this limits the bodies that are kept until there is a call.
        let Ok(_place) = self.places.try_acquire() else { return Outcome::Failed(DestroyError::Overloaded) };
        let deadline = Instant::now() + config::calls::TIMEOUT;
        let body = match self.read(parts, body).await {
            Ok(body) => body,
            Err(outcome) => return outcome,
        };
        let query = Parameters::decode(parts.uri.query().unwrap_or_default().as_bytes());
        let form = if is_form(&parts.headers) { Parameters::decode(&body) } else { Parameters::default() };
        if query.are_too_many() || form.are_too_many() {
            return Outcome::Refused(EdgeError::BodyTooLarge);
        }
        let destroyed = async {
            let user = self.authenticate(parts, &query, &form, origin).await;
            known.access = match user {
                Ok(_) => "read-write",
                Err(DestroyError::WriteAccessRequired) => "read",
                Err(_) => "",
            };
            let user = user?;
            Span::current().record("enduser.id", field::display(user.user()));
            if let Some(rate_limit) = &self.edge.rate_limit {
                let allowance = rate_limit.take(user.user()).await;
                known.allowance = Some(allowance);
                if !allowance.granted {
                    return Err(DestroyError::RateLimited);
                }
            }
            let request =
                DestroyRequest { id: the_id(&query, &form)?, request_id: idempotency_key(&parts.headers)? };
            self.call(user, request, &parts.headers, deadline).await
        };
        match destroyed.await {
            Ok(()) => Outcome::Destroyed,
            Err(error) => Outcome::Failed(error),
        }
    }

    /// The whole body, within its limits. A length announced as too large is refused before the client sends it.
    async fn read(&self, parts: &Parts, body: Body) -> Result<Bytes, Outcome> {
        const TOO_LARGE: Outcome = Outcome::Refused(EdgeError::BodyTooLarge);
        let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let announced = announced.and_then(|length| length.parse::<u64>().ok());
        if announced.is_some_and(|length| length > config::calls::BODY_LIMIT as u64) {
            return Err(TOO_LARGE);
        }
        let mut whole = pin!(Limited::new(body, config::calls::BODY_LIMIT).collect());
        let mut collected = tokio::time::timeout(config::calls::BODY_GRACE, whole.as_mut()).await;
        if collected.is_err() {
            let Ok(_place) = self.slow_bodies.try_acquire() else {
                return Err(Outcome::Failed(DestroyError::Overloaded));
            };
            collected = tokio::time::timeout(config::calls::BODY_TIMEOUT, whole).await;
        }
        match collected {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(TOO_LARGE),
            // The client broke off or was too slow: there is hardly anyone left to tell.
            Ok(Err(_)) | Err(_) => Err(Outcome::Failed(DestroyError::DeadlineExceeded)),
        }
    }

    async fn authenticate(
        &self,
        parts: &Parts,
        query: &Parameters<'_>,
        form: &Parameters<'_>,
        origin: Option<&Origin>,
    ) -> Result<AuthenticatedUser, DestroyError> {
        let mut headers = parts.headers.get_all(header::AUTHORIZATION).iter();
        let mut bearer = None;
        let header = match headers.next().map(HeaderValue::to_str) {
            None => None,
            Some(Ok(text)) => match Scheme::of(text) {
                Scheme::OAuth(parameters) => Some(parameters),
                Scheme::Bearer(token) => {
                    bearer = Some(token);
                    None
                }
                // Somebody else's credentials, perhaps a proxy's: ours may stand in the query or the form.
                Scheme::Unknown => None,
            },
            Some(Err(_not_text)) => return Err(DestroyError::CredentialsInvalid),
        };
        if headers.next().is_some() {
            return Err(DestroyError::CredentialsInvalid);
        }
        if let Some(token) = bearer {
            // With a signature beside it there would be two users to choose from.
            let verifier = self.edge.jwt.as_ref().filter(|_| !query.has_oauth() && !form.has_oauth());
            return verifier.ok_or(DestroyError::CredentialsInvalid)?.verify(token).await;
        }
        let request = oauth1::Request {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            header,
            query,
            form,
            origin,
        };
        self.edge.oauth1.verify(request).await
    }

    async fn call(
        &self,
        user: AuthenticatedUser,
        request: DestroyRequest,
        headers: &HeaderMap,
        deadline: Instant,
    ) -> Result<(), DestroyError> {
        let bounds = Bounds { deadline, repeatable: !request.request_id.is_empty() };
        let mut request = tonic::Request::new(request);
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        request.extensions_mut().insert(user);
        request.extensions_mut().insert(bounds);
        for name in FORWARDED {
            if let Some(value) = headers.get(name) {
                request.metadata_mut().as_mut().insert(name, value.clone());
            }
        }
        // Of all of it: an answer may begin and not end.
        match tokio::time::timeout_at(deadline, self.client.clone().destroy(request)).await {
            Ok(Ok(answer)) if answer.get_ref().destroyed => Ok(()),
            Ok(Ok(_not_destroyed)) => Err(DestroyError::Internal),
            Ok(Err(status)) => Err(failure_of(&status)),
            Err(_elapsed) => Err(DestroyError::DeadlineExceeded),
        }
    }
}

/// The service of every path and method.
pub async fn handle(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Response<Body> {
    let transaction = gateway.edge.entropy.hex::<8>();
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let peer = parts.extensions.get::<Peer>();
    let authority = parts.uri.authority().map(|authority| authority.as_str()).or_else(|| header("host"));
    let span = tracing::error_span!(
        "request",
        http.request.method = %parts.method,
        server.address = authority.and_then(|authority| authority.rsplit('@').next()),
        url.path = parts.uri.path(),
        client.address = peer.map(Peer::as_str),
        request.id = header("x-request-id"),
        traceparent = header("traceparent"),
        transaction.id = transaction,
        enduser.id = field::Empty,
        collection.id = field::Empty,
        oauth.consumer_key = field::Empty,
        oauth.late_by_s = field::Empty,
        replayed = field::Empty,
        error = field::Empty,
    );
    let secure = gateway.edge.surroundings.is_secure(peer, &parts.headers);
    let scheme = if secure { "https" } else { parts.uri.scheme_str().unwrap_or("http") };
    let own_origin = authority.filter(|_| gateway.edge.oauth1.origins().is_empty());
    let origin = own_origin.and_then(|authority| Origin::of_request(scheme, authority));
    async {
        let line = Unanswered::new("request");
        let mut known = Known::default();
        let outcome = gateway.destroy(&parts, body, secure, origin.as_ref(), &mut known).await;
        let duration = line.answered();
        let realm = gateway.edge.oauth1.origins().first().or(origin.as_ref()).map_or("", Origin::as_str);
        let mut headers = HeaderMap::with_capacity(USUAL_HEADERS);
        let texts = [
            ("x-transaction-id", transaction.as_str()),
            ("x-response-time", &duration.as_millis().to_string()),
            ("x-access-level", known.access),
            ("strict-transport-security", if secure { HSTS } else { "" }),
        ];
        for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(http::HeaderName::from_static(name), value);
            }
        }
        if let Some(allowance) = known.allowance {
            headers.insert("x-rate-limit-limit", allowance.limit.into());
            headers.insert("x-rate-limit-remaining", allowance.remaining.into());
            headers.insert("x-rate-limit-reset", allowance.reset.into());
            if !allowance.granted {
                headers.insert(header::RETRY_AFTER, allowance.wait.into());
            }
        }
        let response = outcome.into_response(realm, headers);
        log(outcome, response.status().as_u16(), duration);
        response
    }
    .instrument(span.clone())
    .await
}

/// The request's line. What went wrong inside stands in the span's `error`.
fn log(outcome: Outcome, status: u16, duration: Duration) {
    let duration_ms = telemetry::milliseconds(duration);
    if matches!(outcome, Outcome::Failed(error) if error.is_fault()) {
        tracing::error!(http.response.status_code = status, outcome = outcome.name(), duration_ms, "request");
    } else {
        tracing::info!(http.response.status_code = status, outcome = outcome.name(), duration_ms, "request");
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|text| text.split(';').next()).unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The one id in query and body; a destroy never guesses between two.
fn the_id(query: &Parameters<'_>, form: &Parameters<'_>) -> Result<String, DestroyError> {
    let mut ids = query.all("id").chain(form.all("id"));
    let id = ids.next().ok_or(DestroyError::IdRequired)?;
    if ids.any(|other| other != id) {
        return Err(DestroyError::IdInvalid);
    }
    String::from_utf8(id.to_vec()).map_err(|_error| DestroyError::IdInvalid)
}

/// The value of `Idempotency-Key`, bare or quoted as its draft standard has it; empty without one.
fn idempotency_key(headers: &HeaderMap) -> Result<String, DestroyError> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(String::new()) };
    let key = key.to_str().unwrap_or_default().trim().trim_matches('"');
    if key.is_empty() || key.len() > config::calls::REQUEST_ID_LIMIT || keys.next().is_some() {
        return Err(DestroyError::RequestIdInvalid);
    }
    Ok(key.to_owned())
}

/// The failure that a status stands for: by its reason or, where something on the way answered, by its code.
fn failure_of(status: &Status) -> DestroyError {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    DestroyError::from_reason(&reason).unwrap_or(match status.code() {
        Code::Unavailable => DestroyError::StoreUnavailable,
        Code::DeadlineExceeded | Code::Cancelled => DestroyError::DeadlineExceeded,
        Code::ResourceExhausted => DestroyError::Overloaded,
        _ => DestroyError::Internal,
    })
}
