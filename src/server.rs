//! The composition root: build, bind, serve, drain.

mod listener;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;
use tower::{ServiceExt, util::BoxCloneSyncService};

use self::listener::{Listener, Protocol};
use crate::{
    config,
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
    stop: CancellationToken,
    tasks: TaskTracker,
    drain: Duration,
}

impl Running {
    /// Binds every listener, then serves on all of them.
    ///
    /// # Errors
    /// An address cannot be bound; the error names its flag.
    pub async fn start(store: Store, settings: Settings) -> Result<Self, StartError> {
        let grpc_listener = bind("--grpc-addr", settings.grpc).await?;
        let admin_listener = bind("--admin-addr", settings.admin).await?;
        let admission = Arc::new(Semaphore::new(settings.max_in_flight));
        let service = grpc::service(store.clone(), admission.clone(), settings.insecure_identity);
        let health = Health::new().await;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let mut running = Self {
            grpc: grpc_listener.address,
            rest: None,
            admin: admin_listener.address,
            store: store.clone(),
            health: health.clone(),
            admission,
            stop: stop.clone(),
            tasks: tasks.clone(),
            drain: settings.drain,
        };
        let rest = match settings.rest {
            Some(rest) => Some((bind("--rest-addr", rest.address).await?, rest)),
            None => None,
        };
        if let Some((listener, rest)) = rest {
            running.rest = Some(listener.address);
            let credentials = Credentials::new(store.clone(), rest.keys);
            let directory = Arc::new(CredentialCache::new(credentials));
            let verifier = Verifier::new(directory, rest.public_origins, settings.clock);
            let router = rest::router(in_process(service.clone()), verifier, settings.entropy);
            listener.serve(router, Protocol::Http, &stop, &tasks);
        }
        grpc_listener.serve(grpc::public_routes(service, &health)?, Protocol::Grpc, &stop, &tasks);
        admin_listener.serve(grpc::admin_routes(&health), Protocol::Grpc, &stop, &tasks);
        running.watch_readiness().await;
        Ok(running)
    }

    /// Keeps readiness true to the database; the first look is over when this returns.
    async fn watch_readiness(&self) {
        let (store, health, stop) = (self.store.clone(), self.health.clone(), self.stop.clone());
        check_readiness(&store, &health).await;
        self.tasks.spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(config::READINESS_INTERVAL)).await.is_some() {
                check_readiness(&store, &health).await;
            }
            health.set_draining().await;
        });
    }

    /// Stops: health turns NOT_SERVING, new calls are refused, accepted ones are finished and answered, all within the
    /// drain's bound. Says whether everything was finished in time.
    pub async fn drain(self) -> bool {
        self.health.set_draining().await;
        self.admission.close();
        self.stop.cancel();
        self.tasks.close();
        let drained = async {
            self.tasks.wait().await;
            self.store.close().await;
        };
        tokio::time::timeout(self.drain, drained).await.is_ok()
    }
}

/// One look at the database.
async fn check_readiness(store: &Store, health: &Health) {
    health.set_ready(store.is_reachable().await).await;
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
