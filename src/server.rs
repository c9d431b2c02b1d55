//! The composition root: load, bind, serve, drain.

mod admin;
mod checks;
mod not_ready;
mod observed;
mod readiness;
mod settings;
mod tls_flags;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    runtime::Handle,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use self::{
    checks::Checks,
    observed::{Observed, optional_checks},
    readiness::Readiness,
    tls_flags::{GRPC_TLS, REST_TLS, TlsFlags, UPSTREAM_TLS},
};
pub use self::{
    not_ready::NotReady,
    settings::{Grpc, Rest, Rpc, Settings, StartError},
};
use crate::{
    collections::{Admission, DestroyApi, Local},
    domain::{Clock, Entropy},
    grpc::{self, Health, PublicRoutes},
    identity::{Callers, jwt::Verifier, oauth1},
    jobs::{backlog, purge},
    jwks::{Jwks, Jwt},
    net::{
        ClientTls, FileWatch, HandshakeThreads, Lifecycle, Listener, ListenerSettings, Protocol, Refuse,
        ReloadStatus, Resources, ServerTls, TlsServer,
    },
    rest::{self, Edge},
    store::{CredentialCache, Credentials, PurgeLimits, Store},
    telemetry::{Metrics, Traces},
    upstream::{Upstream, UpstreamUrl},
};

/// A server that is up.
#[derive(Debug)]
pub struct Running {
    /// None in a gateway.
    pub grpc: Option<SocketAddr>,
    pub rest: Option<SocketAddr>,
    pub admin: SocketAddr,
    store: Store,
    health: Health,
    checks: Checks,
    admission: Admission,
    readiness: JoinHandle<()>,
    purge: Option<AbortOnDropHandle<()>>,
    /// Reloads files, resolves names, refreshes keys, until it is dropped.
    _background: JoinSet<()>,
    lifecycle: Lifecycle,
    drain: Duration,
    traces: Traces,
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
        let (admission, metrics) = (Admission::new(settings.max_in_flight), settings.metrics);
        let health = Health::new().await;
        let credentials =
            settings.rest.as_ref().map(|rest| Credentials::new(store.clone(), rest.keys.clone()));
        let mut readiness = Readiness {
            database: store.check(),
            credentials: credentials.clone(),
            health: health.clone(),
            admission: admission.clone(),
            checks: Checks::new(credentials.is_some()),
            logged: None,
        };
        let checked = match readiness.check().await {
            Err(error) if !error.is_transient() => return Err(StartError::NotReady(error)),
            checked => checked,
        };
        let mut loader = Loader {
            clock: settings.clock,
            entropy: settings.entropy.clone(),
            metrics: metrics.clone(),
            traces: settings.traces.clone(),
            jwt: None,
            jwks: None,
            background: JoinSet::new(),
            reloads: Vec::new(),
            handshakes: None,
        };
        loader.open_jwks(settings.jwt).await?;
        let has_redis = redis.is_some();
        if let Some(redis) = redis {
            redis.poll_once().await;
            loader.background.spawn(redis.run());
        }

        let trusted_proxies =
            settings.rest.as_ref().map(|rest| rest.transport.trusted_proxies.clone()).unwrap_or_default();
        let admin_listener = bind("--admin-addr", settings.admin).await?;
        let (api, grpc): (Arc<dyn DestroyApi>, _) = match settings.rpc {
            Rpc::Served(grpc) => {
                loader.background.spawn(backlog::run(store.clone(), metrics.clone()));
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
        let checks = readiness.checks.clone();
        let observed = Observed {
            optional: optional_checks(loader.jwks.as_ref(), loader.reloads, has_redis, &metrics),
            metrics: metrics.clone(),
            checks: checks.clone(),
            admission: admission.clone(),
            store: store.clone(),
            jwks: loader.jwks,
        };
        let resources = Resources::of_process(store.connections());
        let lifecycle = Lifecycle::new(settings.entropy);
        let running = Self {
            grpc: grpc.as_ref().map(|bound| bound.listener.address),
            rest: rest.as_ref().map(|bound| bound.listener.address),
            admin: admin_listener.address,
            health: health.clone(),
            checks,
            admission,
            _background: loader.background,
            readiness: tokio::spawn(readiness.run()),
            purge: settings.purge.map(|settings| {
                let purger = store.purger(PurgeLimits::background(settings.batch));
                AbortOnDropHandle::new(tokio::spawn(purge::run(purger, settings, metrics.clone())))
            }),
            store,
            lifecycle: lifecycle.clone(),
            drain: settings.drain,
            traces: settings.traces,
        };
        if let Some(BoundListener { listener, service, tls }) = grpc {
            let (of_listener, metrics) = (metrics.listeners.of("grpc"), metrics.clone());
            let refuse: Refuse<_> = Arc::new(move |request| grpc::refuse_call(request, &metrics));
            let settings = ListenerSettings { protocol: Protocol::Grpc, tls, refuse, metrics: of_listener };
            listener.serve(service, settings, resources.public(), &lifecycle);
        }
        if let Some(BoundListener { listener, service, tls }) = rest {
            let (of_listener, metrics) = (metrics.listeners.of("rest"), metrics.clone());
            let refuse: Refuse<_> = Arc::new(move |request| rest::refuse_request(request, &metrics));
            let settings = ListenerSettings { protocol: Protocol::Http, tls, refuse, metrics: of_listener };
            listener.serve(service, settings, resources.public().behind(trusted_proxies), &lifecycle);
        }
        let admin = admin::service(grpc::admin_routes(&health, &metrics), observed);
        let refuse: Refuse<_> = Arc::new(|_request| admin::refusal());
        let metrics = metrics.listeners.of("admin");
        let settings = ListenerSettings { protocol: Protocol::Http, tls: None, refuse, metrics };
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
        self.checks.set_draining();
        self.admission.close();
        self.health.set_draining().await;
        let is_finished = self.lifecycle.drain(deadline).await;
        self.admission.log_refusals();
        let is_finished = is_finished && tokio::time::timeout_at(deadline, self.store.close()).await.is_ok();
        // Every call has ended, and so has its span.
        self.traces.shut_down(deadline).await;
        is_finished
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
    metrics: Metrics,
    traces: Traces,
    jwt: Option<Verifier>,
    jwks: Option<Jwks>,
    background: JoinSet<()>,
    /// The files that are watched, by their flag.
    reloads: Vec<(&'static str, ReloadStatus)>,
    /// The threads of handshakes, once a listener has TLS: as many as serve.
    handshakes: Option<Arc<HandshakeThreads>>,
}

impl Loader {
    async fn open_jwks(&mut self, jwt: Option<Jwt>) -> Result<(), StartError> {
        if let Some(jwt) = jwt {
            let (verifier, jwks) = jwt.open(self.clock.clone()).await?;
            self.jwt = Some(verifier);
            self.jwks = Some(jwks.clone());
            self.background.spawn(jwks.run());
        }
        Ok(())
    }

    fn watch(&mut self, watch: FileWatch) {
        self.reloads.push((watch.flag(), watch.status()));
        let metrics = self.metrics.reloads.of_flag(watch.flag(), self.clock.clone());
        self.background.spawn(watch.observed(metrics).run());
    }

    async fn grpc(
        &mut self,
        grpc: Grpc,
        local: Local,
        admission: &Admission,
        health: &Health,
    ) -> Result<BoundListener<PublicRoutes>, StartError> {
        let tls = self.server_tls(GRPC_TLS, grpc.tls, "grpc")?;
        let listener = bind("--grpc-addr", grpc.address).await?;
        self.metrics.callers.expect(grpc.trusted_peers.callers());
        let callers = Callers {
            insecure: grpc.insecure_identity,
            trusted_peers: grpc.trusted_peers,
            jwt: self.jwt.clone(),
        };
        let service = grpc::public_routes(
            local,
            admission.clone(),
            health,
            &callers,
            grpc.caller_rate_limit,
            &self.metrics,
            self.traces.clone(),
        )?;
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
        self.watch(watch);
        let tls = self.server_tls(REST_TLS, rest.tls, "rest")?;
        let listener = bind("--rest-addr", rest.address).await?;
        let directory = Arc::new(CredentialCache::new(credentials));
        let edge = Edge {
            oauth1: oauth1::Verifier::new(directory, rest.public_origins, self.clock.clone()),
            jwt: self.jwt.clone(),
            transport: rest.transport,
            rate_limit: rest.rate_limit,
            entropy: self.entropy.clone(),
            metrics: self.metrics.clone(),
            traces: self.traces.clone(),
        };
        Ok(BoundListener { listener, service: rest::router(api, admission.clone(), edge), tls })
    }

    async fn upstream(&mut self, url: UpstreamUrl, tls: ClientTls) -> Result<Upstream, StartError> {
        let made = Upstream::new(url, tls, self.clock.clone(), self.metrics.clone());
        let (upstream, watch, mut resolver) = made.map_err(|error| UPSTREAM_TLS.error_for_flag(error))?;
        resolver.poll_once().await;
        self.watch(watch);
        self.background.spawn(resolver.run());
        Ok(upstream)
    }

    fn server_tls(
        &mut self,
        flags: TlsFlags,
        tls: Option<ServerTls>,
        listener: &'static str,
    ) -> Result<Option<TlsServer>, StartError> {
        let Some(tls) = tls else { return Ok(None) };
        let (files, clock) = (tls.files(), self.clock.clone());
        let metrics = self.metrics.clone();
        let load = move || {
            let loaded = tls.load(&clock).map_err(|error| flags.error_for_flag(error))?;
            metrics.reloads.set_certificate_expiry(flags.certificate, loaded.not_after.timestamp());
            Ok::<_, StartError>(loaded)
        };
        let (watch, current) = FileWatch::load(flags.certificate, files, load)?;
        self.watch(watch);
        let threads = match &self.handshakes {
            Some(threads) => threads.clone(),
            None => {
                let workers = Handle::current().metrics().num_workers();
                let threads = HandshakeThreads::start(workers).map_err(StartError::Threads)?;
                self.handshakes.insert(threads).clone()
            }
        };
        Ok(Some(TlsServer::new(current, threads, self.metrics.listeners.of(listener))))
    }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<Listener, StartError> {
    let failed = |error| StartError::Bind { flag, address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    Listener::new(listener).map_err(failed)
}
