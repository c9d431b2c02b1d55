//! The composition root: build, bind, serve, drain.

mod listener;
mod readiness;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, time::Instant};
use tonic::Status;
use tower::{ServiceExt, util::BoxCloneSyncService};

pub use self::readiness::NotReady;
use self::{
    listener::{Lifecycle, Listener, Protocol},
    readiness::Readiness,
};
use crate::{
    domain::{Clock, Entropy},
    grpc::{self, Health},
    identity::oauth1::{Origin, Verifier},
    rest,
    store::{CredentialCache, Credentials, KeyRing, Store},
};

/// What to serve, and where. Port 0 takes a free one.
#[derive(Debug)]
pub struct Settings {
    pub grpc: SocketAddr,
    /// The REST gateway, with the keys that open its credentials.
    pub rest: Option<Rest>,
    pub admin: SocketAddr,
    /// Believe `x-user-id` of anyone. Refused beyond loopback before it comes here.
    pub insecure_identity: bool,
    /// Calls in flight; more are refused at once.
    pub max_in_flight: usize,
    /// The longest wait for accepted calls after a signal to stop.
    pub drain: Duration,
    pub clock: Clock,
    pub entropy: Entropy,
}

/// The REST side.
#[derive(Debug)]
pub struct Rest {
    pub address: SocketAddr,
    pub public_origins: Vec<Origin>,
    pub keys: Arc<KeyRing>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{flag} {address}: {error}")]
    Bind { flag: &'static str, address: SocketAddr, error: io::Error },
    #[error(transparent)]
    NotReady(NotReady),
    #[error("the reflection service could not be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A server that is up.
#[derive(Debug)]
pub struct Running {
    pub grpc: SocketAddr,
    pub rest: Option<SocketAddr>,
    pub admin: SocketAddr,
    store: Store,
    health: Health,
    admission: grpc::Admission,
    readiness: JoinHandle<()>,
    lifecycle: Lifecycle,
    drain: Duration,
}

impl Running {
    /// Looks whether the database can be served, binds every listener, then serves on all of them. A database that is
    /// away is waited for: a restart beside it must not end in a crash loop. Calls are refused until then.
    ///
    /// # Errors
    /// The database cannot be served and waiting would not help, or an address cannot be bound; the error names its flag.
    pub async fn start(store: Store, settings: Settings) -> Result<Self, StartError> {
        let admission = Arc::new(Semaphore::new(0));
        let health = Health::new().await;
        let credentials =
            settings.rest.as_ref().map(|rest| Credentials::new(store.clone(), rest.keys.clone()));
        let mut readiness = Readiness {
            store: store.clone(),
            credentials: credentials.clone(),
            health: health.clone(),
            admission: admission.clone(),
            withheld: Some(settings.max_in_flight),
            said: None,
        };
        match readiness.look().await {
            Err(error) if !error.is_transient() => return Err(StartError::NotReady(error)),
            seen => readiness.say(seen),
        }
        let grpc_listener = bind("--grpc-addr", settings.grpc).await?;
        let admin_listener = bind("--admin-addr", settings.admin).await?;
        let rest = match settings.rest.zip(credentials) {
            Some((rest, credentials)) => Some((bind("--rest-addr", rest.address).await?, rest, credentials)),
            None => None,
        };
        let service = grpc::service(store.clone(), admission.clone(), settings.insecure_identity);
        let public = grpc::public_routes(service.clone(), &health)?;
        let running = Self {
            grpc: grpc_listener.address,
            rest: rest.as_ref().map(|(listener, ..)| listener.address),
            admin: admin_listener.address,
            store,
            health: health.clone(),
            admission,
            readiness: tokio::spawn(readiness.keep()),
            lifecycle: Lifecycle::new(settings.entropy.clone()),
            drain: settings.drain,
        };
        if let Some((listener, rest, credentials)) = rest {
            let directory = Arc::new(CredentialCache::new(credentials));
            let verifier = Verifier::new(directory, rest.public_origins, settings.clock);
            let router = rest::router(in_process(service), verifier, settings.entropy);
            listener.serve(router, Protocol::Http, &running.lifecycle);
        }
        grpc_listener.serve(public, Protocol::Grpc, &running.lifecycle);
        admin_listener.serve(grpc::admin_routes(&health), Protocol::Grpc, &running.lifecycle);
        Ok(running)
    }

    /// Stops: health turns NOT_SERVING, new calls are refused, accepted ones are finished and answered, all within the
    /// drain's bound. Says whether everything was finished in time.
    pub async fn drain(self) -> bool {
        let deadline = Instant::now() + self.drain;
        // First of all the readiness loop, or it could say SERVING once more.
        self.readiness.abort();
        let _aborted = self.readiness.await;
        self.lifecycle.stop();
        self.admission.close();
        self.health.set_draining().await;
        let finished = self.lifecycle.drain(deadline).await;
        finished && tokio::time::timeout_at(deadline, self.store.close()).await.is_ok()
    }
}

/// The gateway's way to the RPC without a socket.
fn in_process(service: grpc::Service) -> rest::Rpc {
    BoxCloneSyncService::new(service.map_err(|never: Infallible| -> Status { match never {} }))
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<Listener, StartError> {
    let failed = |error| StartError::Bind { flag, address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    Listener::new(listener).map_err(failed)
}
