//! One request: read, authenticate, destroy, respond.

use std::{fmt, net::IpAddr, pin::pin, sync::Arc};

use axum::{body::Body, extract::State};
use http::{HeaderMap, HeaderValue, Request, Response, Version, header, request::Parts};
use tokio::time::Instant;

use super::{
    Edge, OPENAPI_PATH, PATH,
    body::RequestBody,
    reply::{Outcome, ReplyContext},
};
use crate::{
    collections::{Admission, CallContext, DestroyApi, DestroyCall},
    config::calls,
    domain::{DestroyError, DestroyFailure, Destroyed, EdgeError, ParseCollectionIdError, RequestId},
    identity::{
        AuthenticatedUser, Peer, excerpt,
        oauth1::{self, Origin, Parameters, Scheme, is_form},
    },
    rate_limit,
    telemetry::{CallFields, CallRecord, CallTrace, Cut, Metrics, Traces},
};

/// The gateway's parts.
pub struct Gateway {
    api: Arc<dyn DestroyApi>,
    admission: Admission,
    edge: Edge,
    large_bodies: Admission,
}

/// Handles the one method of the API.
pub async fn destroy(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Response<Body> {
    gateway.handle(request, None).await
}

/// Handles every other method on its path.
pub async fn wrong_method(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Response<Body> {
    gateway.handle(request, Some(Outcome::Refused(EdgeError::WrongMethod))).await
}

/// Handles every other path.
pub async fn unknown_path(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Response<Body> {
    gateway.handle(request, Some(Outcome::Refused(EdgeError::UnknownPath))).await
}

/// Handles GET and HEAD of the OpenAPI description.
pub async fn describe(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Response<Body> {
    let is_http1 = request.version() < Version::HTTP_2;
    let mut response = gateway.handle(request, Some(Outcome::Described)).await;
    if is_http1 {
        // Pipelined requests of some 40 bytes would each get 40 kB.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Handles every other method of a document.
pub async fn method_not_allowed(
    State(gateway): State<Arc<Gateway>>,
    request: Request<Body>,
) -> Response<Body> {
    gateway.handle(request, Some(Outcome::Refused(EdgeError::MethodNotAllowed))).await
}

impl Gateway {
    pub fn new(api: Arc<dyn DestroyApi>, admission: Admission, edge: Edge) -> Self {
        edge.metrics.calls.expect_rest();
        let large_bodies = Admission::new(calls::LARGE_BODIES);
        large_bodies.open();
        Self { api, admission, edge, large_bodies }
    }

    /// Responds to a request. `decided` is the outcome that its path and method lead to, of any but a destroy.
    async fn handle(&self, request: Request<Body>, decided: Option<Outcome>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let peer = parts.extensions.get::<Peer>();
        let transport = &self.edge.transport;
        let is_secure = transport.is_secure(peer, &parts.headers);
        let origin = self.own_origin(&parts, is_secure);
        let realm = self.edge.oauth1.origins().first().or(origin.as_ref()).map_or("", Origin::as_str);
        let mut context = ReplyContext {
            transaction: self.edge.entropy.hex::<8>(),
            is_secure,
            realm: realm.to_owned(),
            ..ReplyContext::default()
        };
        let fields = fields(&parts, &context.transaction, &self.edge.traces);
        let record = CallRecord::new(CallFields { is_secure, ..fields }, &self.edge.metrics);
        let is_refused = transport.require_tls && !is_secure;
        let decided = if is_refused { Some(Outcome::Refused(EdgeError::TlsRequired)) } else { decided };
        let mut body = RequestBody::new(&parts, body);
        let outcome = match decided {
            Some(outcome) => outcome,
            None => self.process(&parts, &mut body, origin.as_ref(), &record, &mut context).await,
        };
        // The outcome stands, however long the rest of the body takes.
        body.discard().await;
        let response = outcome.into_response(&context, record.started().elapsed());
        let mut fields = record.fields();
        fields.outcome = Some(outcome.recorded());
        fields.http_status = Some(response.status().as_u16());
        if outcome == Outcome::Failed(DestroyError::Overloaded) {
            fields.is_silent = true;
            self.admission.count_refusal(DestroyError::Overloaded);
        }
        response
    }

    /// Reads the body, takes a place, and destroys, within the deadline.
    async fn process(
        &self,
        parts: &Parts,
        body: &mut RequestBody,
        origin: Option<&Origin>,
        record: &CallRecord,
        context: &mut ReplyContext,
    ) -> Outcome {
        let deadline = record.started() + calls::TIMEOUT;
        let processed = pin!(async {
            // Before the request has a place: a client that never sends its body must not hold one.
            let body = body.read(&self.large_bodies, self.client(parts)).await?;
            let content_type = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
            let is_form = content_type.is_some_and(|text| is_form(&String::from_utf8_lossy(text)));
            let query = Parameters::decode(parts.uri.query().unwrap_or_default().as_bytes());
            let form = if is_form { Parameters::decode(&body) } else { Parameters::default() };
            if query.are_too_many() || form.are_too_many() {
                return Err(Outcome::Refused(EdgeError::BodyTooLarge));
            }
            let request = Parsed { parts, query: &query, form: &form, origin };
            let destroyed = self.destroy(request, deadline, record, context).await;
            record.finish(&destroyed);
            destroyed.map_err(|failure| Outcome::Failed(failure.error))
        });
        match tokio::time::timeout_at(deadline, processed).await {
            Ok(Ok(_destroyed)) => Outcome::Destroyed,
            Ok(Err(outcome)) => outcome,
            Err(_elapsed) => Outcome::Failed(DestroyError::DeadlineExceeded),
        }
    }

    async fn destroy(
        &self,
        request: Parsed<'_>,
        deadline: Instant,
        record: &CallRecord,
        context: &mut ReplyContext,
    ) -> Result<Destroyed, DestroyFailure> {
        let Parsed { parts, query, form, .. } = request;
        let mut permit = self.admission.enter(self.client(parts))?;
        record.fields().is_admitted = true;
        let user = self.authenticate(request).await;
        context.access = match &user {
            Ok(_) => "read-write",
            Err(failure) if failure.error == DestroyError::WriteAccessRequired => "read",
            Err(_) => "",
        };
        let user = user?;
        {
            let mut fields = record.fields();
            (fields.user, fields.caller) = (Some(user.user()), user.caller().cloned());
        }
        permit.identify(user.user(), None)?;
        if let Some(limit) = &self.edge.rate_limit {
            let allowance = limit.take(rate_limit::Key::User(user.user())).await;
            context.allowance = Some(allowance);
            if !allowance.granted {
                return Err(DestroyError::RateLimited.into());
            }
        }
        let id = the_id(query, form)?;
        let id = id.parse().map_err(|error| match error {
            ParseCollectionIdError::Empty => DestroyError::IdRequired.into(),
            ParseCollectionIdError::Malformed => {
                DestroyFailure::new(DestroyError::IdInvalid, format_args!("the id is {}", excerpt(&id)))
            }
        })?;
        record.fields().collection = Some(id);
        let request_id = idempotency_key(&parts.headers)?;
        let trace = record.fields().trace.clone();
        let context = call_context(&parts.headers, &context.transaction, trace);
        self.api.destroy(DestroyCall { user, id, request_id, deadline, context }).await
    }

    async fn authenticate(&self, request: Parsed<'_>) -> Result<AuthenticatedUser, DestroyFailure> {
        let Parsed { parts, query, form, origin } = request;
        let invalid = |cause: &str| DestroyFailure::new(DestroyError::CredentialsInvalid, cause);
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
                // Credentials for something else, perhaps a proxy: ours may be in the query or the form.
                Scheme::Unknown => None,
            },
            Some(Err(_not_text)) => return Err(invalid("the authorization header is not ASCII")),
        };
        if headers.next().is_some() {
            return Err(invalid("there are two authorization headers"));
        }
        if let Some(token) = bearer {
            // With a signature as well there would be two users to choose from.
            if query.has_oauth() || form.has_oauth() {
                return Err(invalid("there are a bearer token and OAuth parameters"));
            }
            let verifier = self.edge.jwt.as_ref();
            let verifier = verifier
                .ok_or_else(|| DestroyFailure::new(DestroyError::TokenInvalid, "no JWKS is configured"))?;
            return verifier.verify(token).await;
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

    /// The origin that the request itself names, where none is configured.
    fn own_origin(&self, parts: &Parts, is_secure: bool) -> Option<Origin> {
        if !self.edge.oauth1.origins().is_empty() {
            return None;
        }
        let scheme = if is_secure { "https" } else { parts.uri.scheme_str().unwrap_or("http") };
        // A longer text is no host, and would be copied.
        let authority = authority(parts).filter(|authority| authority.len() <= calls::AUTHORITY_LIMIT)?;
        Origin::of_request(scheme, authority)
    }

    /// The client that shares places with its other requests. A trusted proxy forwards those of many clients.
    fn client(&self, parts: &Parts) -> Option<IpAddr> {
        let peer = parts.extensions.get::<Peer>()?;
        (!self.edge.transport.is_proxy(peer)).then(|| peer.client())
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("edge", &self.edge).finish_non_exhaustive()
    }
}

/// A request with its parameters.
#[derive(Clone, Copy)]
struct Parsed<'a> {
    parts: &'a Parts,
    query: &'a Parameters<'a>,
    form: &'a Parameters<'a>,
    origin: Option<&'a Origin>,
}

/// The path, if it is one that is served.
fn route(path: &str) -> Option<&'static str> {
    [PATH, OPENAPI_PATH].into_iter().find(|route| *route == path)
}

/// Counts a request that is refused before it is read.
pub fn record_refusal<B>(request: &Request<B>, metrics: &Metrics) {
    let fields = CallFields {
        http_method: Some(request.method().clone()),
        http_route: route(request.uri().path()),
        http_status: Some(DestroyError::Overloaded.row().http),
        is_secure: request.extensions().get::<Peer>().is_some_and(Peer::is_secure),
        is_silent: true,
        ..CallFields::default()
    };
    CallRecord::new(fields, metrics).finish(&Err(DestroyError::Overloaded.into()));
}

fn fields(parts: &Parts, transaction: &str, traces: &Traces) -> CallFields {
    let host = authority(parts).and_then(|authority| authority.rsplit('@').next());
    CallFields {
        http_method: Some(parts.method.clone()),
        http_route: route(parts.uri.path()),
        path: Some(Cut(parts.uri.path()).copy()),
        host: host.map(|host| Cut(host).copy()),
        client: parts.extensions.get::<Peer>().map(Peer::address_text),
        request_id: Some(Cut(text(&parts.headers, "x-request-id").unwrap_or(transaction)).copy()),
        transaction: Some(transaction.into()),
        trace: traces.start_public_call(&parts.headers),
        ..CallFields::default()
    }
}

/// What is forwarded with the call. Without an `x-request-id` the transaction id takes its place, so that the log lines of
/// the gateway and of the RPC can be joined.
fn call_context(headers: &HeaderMap, transaction: &str, trace: CallTrace) -> CallContext {
    CallContext {
        request_id: Some(text(headers, "x-request-id").unwrap_or(transaction).into()),
        trace,
        traceparent: text(headers, "traceparent").map(Into::into),
        tracestate: text(headers, "tracestate").map(Into::into),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn authority(parts: &Parts) -> Option<&str> {
    parts.uri.authority().map(http::uri::Authority::as_str).or_else(|| text(&parts.headers, "host"))
}

/// The one id in query and form; a destroy never guesses between two.
fn the_id(query: &Parameters<'_>, form: &Parameters<'_>) -> Result<String, DestroyFailure> {
    let mut ids = query.all("id").chain(form.all("id"));
    let id = ids.next().ok_or(DestroyError::IdRequired)?;
    if ids.any(|other| other != id) {
        return Err(DestroyFailure::new(DestroyError::IdInvalid, "there are two different ids"));
    }
    String::from_utf8(id.to_vec())
        .map_err(|_error| DestroyFailure::new(DestroyError::IdInvalid, "the id is not UTF-8"))
}

/// The request id in `Idempotency-Key`, bare or quoted as its draft standard has it.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<RequestId>, DestroyError> {
    let invalid = DestroyError::RequestIdInvalid;
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(invalid);
    }
    let key = key.to_str().unwrap_or_default().trim().trim_matches('"');
    key.parse().map(Some).map_err(|_error| invalid)
}
