//! The composition root: load, bind, serve, drain.

mod admin;
mod readiness;
mod tls_flags;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    runtime::Handle,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

pub use self::readiness::NotReady;
use self::{
    readiness::Readiness,
    tls_flags::{GRPC_TLS, REST_TLS, TlsFlags, UPSTREAM_TLS},
};
use crate::{
    collections::{Admission, DestroyApi, Local},
    domain::{Clock, DestroyError, Entropy},
    grpc::{self, Health, PublicRoutes},
    identity::{
        Callers, TrustedPeers,
        jwt::Verifier,
        oauth1::{self, Origin},
    },
    jobs::purge::{self, PurgeSettings},
    jwks::{JwksError, Jwt},
    net::{
        ClientTls, FileWatch, HandshakeThreads, Lifecycle, Listener, ListenerSettings, Protocol, Resources,
        ServerTls, TlsError, TlsServer,
    },
    rate_limit::{RateLimit, Redis},
    rest::{self, Edge, TransportPolicy},
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
    /// The issuer whose bearer tokens are accepted, on either side.
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
    /// The Redis that the rate limits share.
    fn redis(&self) -> Option<Redis> {
        let caller_limit = match &self.rpc {
            Rpc::Served(grpc) => grpc.caller_rate_limit.as_ref(),
            Rpc::Upstream(..) => None,
        };
        let user_limit = self.rest.as_ref().and_then(|rest| rest.rate_limit.as_ref());
        user_limit.or(caller_limit).and_then(RateLimit::redis).cloned()
    }

    /// Whether a listener on another than a loopback address has no TLS.
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

/// Where destroys are carried out.
#[derive(Debug)]
pub enum Rpc {
    /// In this process, for gRPC callers and for the gateway.
    Served(Grpc),
    /// By servers elsewhere: this process is a gateway alone.
    Upstream(UpstreamUrl, ClientTls),
}

/// The gRPC side.
#[derive(Debug)]
pub struct Grpc {
    pub address: SocketAddr,
    /// The admin listener never has TLS: a probe carries no certificate.
    pub tls: Option<ServerTls>,
    /// Services whose `x-user-id` is accepted, once their certificates are verified.
    pub trusted_peers: TrustedPeers,
    /// Accept `x-user-id` from every caller. The command line allows it on a loopback address alone.
    pub insecure_identity: bool,
    /// Limits the calls of each calling service. Uses the same Redis as the limit of REST users.
    pub caller_rate_limit: Option<RateLimit>,
}

/// The REST side.
#[derive(Debug)]
pub struct Rest {
    pub address: SocketAddr,
    pub tls: Option<ServerTls>,
    pub transport: TransportPolicy,
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
    #[error("the threads of TLS handshakes could not be started: {0}")]
    Threads(io::Error),
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
    admission: Admission,
    readiness: JoinHandle<()>,
    purge: Option<AbortOnDropHandle<()>>,
    /// Reloads files, resolves names, refreshes keys, until it is dropped.
    _background: JoinSet<()>,
    lifecycle: Lifecycle,
    drain: Duration,
}

impl Running {
    /// Checks whether the database can be served, binds every listener, then serves on all of them. It waits for a database that
    /// is unavailable, refuses connections or has an older schema, because a crash loop would not help; until then it refuses
    /// calls.
    ///
    /// # Errors
    /// The database cannot be served and waiting would not help, or an address cannot be bound; the error names its flag.
    pub async fn start(store: Store, settings: Settings) -> Result<Self, StartError> {
        let redis = settings.redis();
        let admission = Admission::new(settings.max_in_flight);
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
        let checked = match readiness.check().await {
            Err(error) if !error.is_transient() => return Err(StartError::NotReady(error)),
            checked => checked,
        };
        let mut loader = Loader {
            clock: settings.clock,
            entropy: settings.entropy.clone(),
            jwt: None,
            background: JoinSet::new(),
            handshakes: None,
        };
        loader.open_jwks(settings.jwt).await?;
        if let Some(redis) = redis {
            redis.poll_once().await;
            loader.background.spawn(redis.run());
        }

        let trusted_proxies =
            settings.rest.as_ref().map(|rest| rest.transport.trusted_proxies.clone()).unwrap_or_default();
        let admin_listener = bind("--admin-addr", settings.admin).await?;
        let (api, grpc): (Arc<dyn DestroyApi>, _) = match settings.rpc {
            Rpc::Served(grpc) => {
                let local = Local::new(store.clone());
                let bound = loader.grpc(grpc, local.clone(), &admission, &health).await?;
                (Arc::new(local), Some(bound))
            }
            Rpc::Upstream(url, tls) => (Arc::new(loader.upstream(url, tls).await?), None),
        };
        let rest = match settings.rest.zip(credentials) {
            Some((rest, credentials)) => Some(loader.rest(rest, credentials, api, &admission).await?),
            None => None,
        };

        // After all that can still fail.
        readiness.log_change(checked);
        let resources = Resources::of_process(store.connections());
        let lifecycle = Lifecycle::new(settings.entropy);
        let running = Self {
            grpc: grpc.as_ref().map(|bound| bound.listener.address),
            rest: rest.as_ref().map(|bound| bound.listener.address),
            admin: admin_listener.address,
            health: health.clone(),
            admission,
            _background: loader.background,
            readiness: tokio::spawn(readiness.run()),
            purge: settings.purge.map(|settings| {
                let purger = store.purger(PurgeLimits::background(settings.batch));
                AbortOnDropHandle::new(tokio::spawn(purge::run(purger, settings)))
            }),
            store,
            lifecycle: lifecycle.clone(),
            drain: settings.drain,
        };
        if let Some(BoundListener { listener, service, tls }) = grpc {
            let refuse = || grpc::refusal(DestroyError::Overloaded);
            let settings = ListenerSettings { protocol: Protocol::Grpc, tls, refuse };
            listener.serve(service, settings, resources.public(), &lifecycle);
        }
        if let Some(BoundListener { listener, service, tls }) = rest {
            let settings = ListenerSettings { protocol: Protocol::Http, tls, refuse: rest::refusal };
            listener.serve(service, settings, resources.public().behind(trusted_proxies), &lifecycle);
        }
        let admin = admin::service(grpc::admin_routes(&health), settings.metrics);
        let settings = ListenerSettings { protocol: Protocol::Http, tls: None, refuse: admin::refusal };
        admin_listener.serve(admin, settings, resources.admin(), &lifecycle);
        Ok(running)
    }

    /// Stops: health turns NOT_SERVING, new calls are refused, accepted ones are finished and answered, all within the
    /// drain's bound. Returns whether everything was finished in time.
    pub async fn drain(mut self) -> bool {
        let deadline = Instant::now() + self.drain;
        // What the purge has not committed is rolled back. Draining calls need the database more.
        drop(self.purge.take());
        // The readiness loop ends first, or it could report SERVING once more.
        self.readiness.abort();
        let _aborted = self.readiness.await;
        self.lifecycle.stop();
        self.admission.close();
        self.health.set_draining().await;
        let is_finished = self.lifecycle.drain(deadline).await;
        self.admission.log_refusals();
        is_finished && tokio::time::timeout_at(deadline, self.store.close()).await.is_ok()
    }
}

/// A listener that is bound, with what it will serve.
struct BoundListener<S> {
    listener: Listener,
    service: S,
    tls: Option<TlsServer>,
}

/// Loads what the listeners need from files and over the network, and collects the tasks that refresh it.
struct Loader {
    clock: Clock,
    entropy: Entropy,
    jwt: Option<Verifier>,
    background: JoinSet<()>,
    /// The threads of handshakes, once a listener has TLS: as many as serve.
    handshakes: Option<Arc<HandshakeThreads>>,
}

impl Loader {
    async fn open_jwks(&mut self, jwt: Option<Jwt>) -> Result<(), StartError> {
        if let Some(jwt) = jwt {
            let (verifier, jwks) = jwt.open(self.clock.clone()).await?;
            self.jwt = Some(verifier);
            self.background.spawn(jwks.run());
        }
        Ok(())
    }

    async fn grpc(
        &mut self,
        grpc: Grpc,
        local: Local,
        admission: &Admission,
        health: &Health,
    ) -> Result<BoundListener<PublicRoutes>, StartError> {
        let tls = self.server_tls(GRPC_TLS, grpc.tls)?;
        let listener = bind("--grpc-addr", grpc.address).await?;
        let callers = Callers {
            insecure: grpc.insecure_identity,
            trusted_peers: grpc.trusted_peers,
            jwt: self.jwt.clone(),
        };
        let service =
            grpc::public_routes(local, admission.clone(), health, &callers, grpc.caller_rate_limit)?;
        Ok(BoundListener { listener, service, tls })
    }

    async fn rest(
        &mut self,
        rest: Rest,
        credentials: Credentials,
        api: Arc<dyn DestroyApi>,
        admission: &Admission,
    ) -> Result<BoundListener<axum::Router>, StartError> {
        let (files, keys) = (vec![rest.keys.path().to_owned()], rest.keys);
        let (watch, _reloaded) = FileWatch::load("--credentials-key-file", files, move || keys.reload())?;
        self.background.spawn(watch.run());
        let tls = self.server_tls(REST_TLS, rest.tls)?;
        let listener = bind("--rest-addr", rest.address).await?;
        let directory = Arc::new(CredentialCache::new(credentials));
        let edge = Edge {
            oauth1: oauth1::Verifier::new(directory, rest.public_origins, self.clock.clone()),
            jwt: self.jwt.clone(),
            transport: rest.transport,
            rate_limit: rest.rate_limit,
            entropy: self.entropy.clone(),
        };
        Ok(BoundListener { listener, service: rest::router(api, admission.clone(), edge), tls })
    }

    async fn upstream(&mut self, url: UpstreamUrl, tls: ClientTls) -> Result<Upstream, StartError> {
        let made = Upstream::new(url, tls, self.clock.clone());
        let (upstream, watch, mut resolver) = made.map_err(|error| UPSTREAM_TLS.error_for_flag(error))?;
        resolver.poll_once().await;
        self.background.spawn(watch.run());
        self.background.spawn(resolver.run());
        Ok(upstream)
    }

    fn server_tls(
        &mut self,
        flags: TlsFlags,
        tls: Option<ServerTls>,
    ) -> Result<Option<TlsServer>, StartError> {
        let Some(tls) = tls else { return Ok(None) };
        let (files, clock) = (tls.files(), self.clock.clone());
        let load = move || tls.load(&clock).map_err(|error| flags.error_for_flag(error));
        let (watch, current) = FileWatch::load(flags.certificate, files, load)?;
        self.background.spawn(watch.run());
        let threads = match &self.handshakes {
            Some(threads) => threads.clone(),
            None => {
                let workers = Handle::current().metrics().num_workers();
                let threads = HandshakeThreads::start(workers).map_err(StartError::Threads)?;
                self.handshakes.insert(threads).clone()
            }
        };
        Ok(Some(TlsServer::new(current, threads)))
    }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<Listener, StartError> {
    let failed = |error| StartError::Bind { flag, address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    Listener::new(listener).map_err(failed)
}
