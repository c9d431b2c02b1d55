//! The composition root: build, bind, serve, drain.

mod readiness;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

pub use self::readiness::NotReady;
use self::readiness::Readiness;
use crate::{
    domain::{Clock, Entropy},
    grpc::{self, Health, Routes},
    identity::{
        Callers, TrustedPeers,
        oauth1::{Origin, Verifier},
    },
    jobs::purge::{self, PurgeSettings},
    jwks::{JwksError, Jwt},
    net::{
        ClientTls, FileWatch, Lifecycle, Listener, Protocol, ServerTls, ServerTlsReceiver, TlsError,
        raise_file_limit,
    },
    rate_limit::RateLimit,
    rest::{self, Edge, Surroundings},
    store::{CredentialCache, Credentials, KeyRing, KeyRingError, PurgeLimits, Store},
    telemetry::Metrics,
    upstream::{Upstream, UpstreamUrl},
};

/// What to serve, and where. Port 0 takes a free one.
#[derive(Debug)]
pub struct Settings {
    pub rpc: Rpc,
    /// The REST gateway, with the keys that open its credentials.
    pub rest: Option<Rest>,
    /// Whose bearer tokens are believed, on either side.
    pub jwt: Option<Jwt>,
    pub admin: SocketAddr,
    /// Whether this process erases the entries of destroyed collections, and how fast.
    pub purge: Option<PurgeSettings>,
    /// Calls in flight; more are refused at once.
    pub max_in_flight: usize,
    /// The longest wait for accepted calls after a signal to stop.
    pub drain: Duration,
    pub metrics: Metrics,
    pub clock: Clock,
    pub entropy: Entropy,
}

impl Settings {
    /// Whether a listener that others reach has no TLS.
    #[must_use]
    pub fn is_in_clear(&self) -> bool {
        let open =
            |address: SocketAddr, tls: &Option<ServerTls>| !address.ip().is_loopback() && tls.is_none();
        let grpc = match &self.rpc {
            Rpc::Served(grpc) => open(grpc.address, &grpc.tls),
            Rpc::Upstream(..) => false,
        };
        grpc || self.rest.as_ref().is_some_and(|rest| open(rest.address, &rest.tls))
    }
}

/// Where the RPC is.
#[derive(Debug)]
pub enum Rpc {
    /// Here, for callers and for the gateway.
    Served(Grpc),
    /// Elsewhere: this process is a gateway alone.
    Upstream(UpstreamUrl, ClientTls),
}

/// The gRPC side.
#[derive(Debug)]
pub struct Grpc {
    pub address: SocketAddr,
    /// The admin listener never has TLS: a probe carries no certificate.
    pub tls: Option<ServerTls>,
    /// Services that may say who the user is, once their certificates are verified.
    pub trusted_peers: TrustedPeers,
    /// Believe `x-user-id` of anyone. Refused beyond loopback before it comes here.
    pub insecure_identity: bool,
}

/// The REST side.
#[derive(Debug)]
pub struct Rest {
    pub address: SocketAddr,
    pub tls: Option<ServerTls>,
    pub surroundings: Surroundings,
    pub public_origins: Vec<Origin>,
    pub rate_limit: Option<RateLimit>,
    pub keys: Arc<KeyRing>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{flag} {address}: {error}")]
    Bind { flag: &'static str, address: SocketAddr, error: io::Error },
    #[error("{flag} {error}")]
    Tls { flag: &'static str, error: TlsError },
    #[error(transparent)]
    NotReady(NotReady),
    #[error("--credentials-key-file: {0}")]
    Keys(#[from] KeyRingError),
    #[error("--jwks: {0}")]
    Jwks(#[from] JwksError),
    #[error("the reflection service could not be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A server that is up.
#[derive(Debug)]
pub struct Running {
    /// None in a gateway.
    pub grpc: Option<SocketAddr>,
    pub rest: Option<SocketAddr>,
    pub admin: SocketAddr,
    store: Store,
    health: Health,
    admission: grpc::Admission,
    readiness: JoinHandle<()>,
    purge: Option<AbortOnDropHandle<()>>,
    /// What keeps certificates and addresses true, for as long as anybody is served.
    background: JoinSet<()>,
    /// Keeps the keys new that bearer tokens are verified with.
    _jwks: Option<AbortOnDropHandle<()>>,
    lifecycle: Lifecycle,
    drain: Duration,
}

impl Running {
    /// Checks whether the database can be served, binds every listener, then serves on all of them. A database that is
    /// away, refuses or has an older schema is waited for: that must not end in a crash loop. Calls are refused until then.
    ///
    /// # Errors
    /// The database cannot be served and waiting would not help, or an address cannot be bound; the error names its flag.
    pub async fn start(store: Store, settings: Settings) -> Result<Self, StartError> {
        let admission = grpc::Admission::new(settings.max_in_flight);
        let health = Health::new().await;
        let credentials =
            settings.rest.as_ref().map(|rest| Credentials::new(store.clone(), rest.keys.clone()));
        let mut readiness = Readiness {
            database: store.check(),
            credentials: credentials.clone(),
            health: health.clone(),
            admission: admission.clone(),
            logged: None,
        };
        match readiness.check().await {
            Err(error) if !error.is_transient() => return Err(StartError::NotReady(error)),
            checked => readiness.log_change(checked),
        }
        let jwt = match settings.jwt {
            Some(jwt) => Some(jwt.start(settings.clock.clone()).await?),
            None => None,
        };
        let (jwt, jwks) = jwt.unzip();
        raise_file_limit();
        let lifecycle = Lifecycle::new(settings.entropy.clone());
        let mut loaded = Loaded { clock: settings.clock.clone(), tasks: JoinSet::new() };
        let admin_listener = bind("--admin-addr", settings.admin).await?;
        let rest = match settings.rest.zip(credentials) {
            Some((rest, credentials)) => {
                loaded.keys(rest.keys.clone())?;
                let tls = loaded.server("--rest-tls-cert", rest.tls.clone())?;
                Some((bind("--rest-addr", rest.address).await?, tls, rest, credentials))
            }
            None => None,
        };
        let (rpc, grpc_address) = match settings.rpc {
            Rpc::Served(grpc) => {
                let tls = loaded.server("--tls-cert", grpc.tls)?;
                let listener = bind("--grpc-addr", grpc.address).await?;
                let callers = Callers {
                    insecure: grpc.insecure_identity,
                    trusted_peers: grpc.trusted_peers,
                    jwt: jwt.clone(),
                };
                let service = grpc::service(store.clone(), admission.clone(), callers.clone());
                let routes = grpc::public_routes(service.clone(), &health, &callers)?;
                let address = listener.address;
                listener.serve(routes, Protocol::Grpc, tls, &lifecycle);
                (local(service), Some(address))
            }
            Rpc::Upstream(url, tls) => (loaded.upstream(url, tls, admission.clone()).await?, None),
        };
        let mut running = Self {
            grpc: grpc_address,
            rest: rest.as_ref().map(|(listener, ..)| listener.address),
            admin: admin_listener.address,
            store,
            health: health.clone(),
            admission,
            background: loaded.tasks,
            _jwks: jwks,
            readiness: tokio::spawn(readiness.run()),
            purge: None,
            lifecycle,
            drain: settings.drain,
        };
        if let Some(settings) = settings.purge {
            let purger = running.store.purger(PurgeLimits::background(settings.batch));
            running.purge = Some(AbortOnDropHandle::new(tokio::spawn(purge::run(purger, settings))));
        }
        if let Some((listener, tls, rest, credentials)) = rest {
            if let Some(shared) = rest.rate_limit.as_ref().and_then(RateLimit::shared) {
                shared.look().await;
                running.background.spawn(shared.keep());
            }
            let directory = Arc::new(CredentialCache::new(credentials));
            let edge = Edge {
                oauth1: Verifier::new(directory, rest.public_origins, settings.clock),
                jwt,
                surroundings: rest.surroundings,
                rate_limit: rest.rate_limit,
                entropy: settings.entropy,
            };
            let router = rest::router(rpc, edge);
            listener.serve(router, Protocol::Http, tls, &running.lifecycle);
        }
        let admin = admin(grpc::admin_routes(&health), settings.metrics);
        admin_listener.serve(admin, Protocol::Http, None, &running.lifecycle);
        Ok(running)
    }

    /// Stops: health turns NOT_SERVING, new calls are refused, accepted ones are finished and answered, all within the
    /// drain's bound. Says whether everything was finished in time.
    pub async fn drain(mut self) -> bool {
        let deadline = Instant::now() + self.drain;
        // What the purge has not committed is rolled back. Draining calls need the database more.
        drop(self.purge.take());
        // Before the rest the readiness loop, or it could report SERVING once more.
        self.readiness.abort();
        let _aborted = self.readiness.await;
        self.lifecycle.stop();
        self.admission.close();
        self.health.set_draining().await;
        let finished = self.lifecycle.drain(deadline).await;
        self.admission.log_refusals();
        finished && tokio::time::timeout_at(deadline, self.store.close()).await.is_ok()
    }
}

/// Health for probes and `/metrics` for Prometheus, to anyone who asks.
fn admin(
    health: Routes,
    metrics: Metrics,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send,
> + Clone
+ Send
+ Sync {
    tower::service_fn(move |request: Request<Incoming>| {
        let (health, metrics) = (health.clone(), metrics.clone());
        async move {
            if request.uri().path() != "/metrics" {
                return health.oneshot(request).await;
            }
            let mut answer = Response::new(Body::new(metrics.text()));
            let text = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(text));
            Ok(answer)
        }
    })
}

/// What comes from files and names, and the tasks that keep it true to them.
struct Loaded {
    clock: Clock,
    tasks: JoinSet<()>,
}

impl Loaded {
    /// The listener's side of TLS.
    fn server(
        &mut self,
        flag: &'static str,
        tls: Option<ServerTls>,
    ) -> Result<Option<ServerTlsReceiver>, StartError> {
        let Some(tls) = tls else { return Ok(None) };
        let (files, clock) = (tls.files(), self.clock.clone());
        let loaded = FileWatch::load(flag, files, move || tls.load(&clock));
        let (watched, current) = loaded.map_err(|error| StartError::Tls { flag, error })?;
        self.tasks.spawn(watched.run());
        Ok(Some(current))
    }

    /// The keys that open secrets.
    fn keys(&mut self, keys: Arc<KeyRing>) -> Result<(), StartError> {
        let files = vec![keys.path().to_owned()];
        let (watched, _reloaded) = FileWatch::load("--credentials-key-file", files, move || keys.reload())?;
        self.tasks.spawn(watched.run());
        Ok(())
    }

    /// The gateway's way to the RPC over the network.
    async fn upstream(
        &mut self,
        url: UpstreamUrl,
        tls: ClientTls,
        admission: grpc::Admission,
    ) -> Result<rest::Rpc, StartError> {
        let made = Upstream::new(url, tls, self.clock.clone(), admission);
        let flag = "--upstream-cert";
        let (upstream, watched, mut resolver) = made.map_err(|error| StartError::Tls { flag, error })?;
        resolver.poll_once().await;
        self.tasks.spawn(watched.run());
        self.tasks.spawn(resolver.run());
        Ok(local(upstream))
    }
}

/// The gateway's way to a service that is in this process, and never fails but by a status.
fn local<S>(service: S) -> rest::Rpc
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    BoxCloneSyncService::new(service.map_err(|never: Infallible| -> Status { match never {} }))
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<Listener, StartError> {
    let failed = |error| StartError::Bind { flag, address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    Listener::new(listener).map_err(failed)
}
