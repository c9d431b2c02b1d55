//! `dev`: the whole service on one machine, with data to destroy and the commands to do it.

use std::{
    fs, io,
    io::Write,
    net::SocketAddr,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::{
    Exit, address::Address, credentials::read_keys, heading::LISTENERS, print, serve::drain, signal::Stop,
};
use crate::{
    config::{self, DatabaseUrl},
    domain::{Clock, CollectionId, Entropy, Secret, UserId},
    identity::{
        TrustedPeers,
        oauth1::{self, Origin, Parameters},
    },
    jobs::purge::PurgeSettings,
    rate_limit::{RateLimit, Rule},
    rest::{self, TransportPolicy},
    server::{Grpc, Rest, Rpc, Running, Settings, StartError},
    store::{Capacity, CredentialError, Credentials, KeyRing, NewCollection, Store},
    telemetry::Traces,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  collections-service dev
  collections-service dev --data-dir /tmp/collections --grpc-addr 127.0.0.1:0 --rest-addr 127.0.0.1:0 --admin-addr 127.0.0.1:0")]
pub struct Args {
    /// The folder for the database and its key, which is created where it does not exist
    #[arg(long, value_name = "FOLDER", default_value = "collections-dev", env = "COLLECTIONS_DATA_DIR")]
    data_dir: PathBuf,
    /// The address of the gRPC listener
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051", env = "COLLECTIONS_GRPC_ADDR", help_heading = LISTENERS)]
    grpc_addr: Address,
    /// The address of the REST listener
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", env = "COLLECTIONS_REST_ADDR", help_heading = LISTENERS)]
    rest_addr: Address,
    /// The address of the admin listener: health for probes, and metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090", env = "COLLECTIONS_ADMIN_ADDR", help_heading = LISTENERS)]
    admin_addr: Address,
}

/// The user of the 1.1 documentation.
const DEMO_USER: i64 = 119_476_949;
const OTHER_USER: i64 = 783_214;
const DEMO_COLLECTIONS: [i64; 4] =
    [388_061_495_298_244_609, 390_882_285_743_898_624, 393_773_266_801_659_904, 394_026_155_298_308_096];
const OTHER_COLLECTION: i64 = 539_487_832_448_843_776;
const DEMO_APP: &str = "dev";
/// How many collections the demo user has at the start, so that there is always something to destroy.
const LEAST: u64 = 4;

/// Where each listener is bound.
struct Listeners {
    grpc: SocketAddr,
    rest: SocketAddr,
    admin: SocketAddr,
}

/// What the printed commands use.
struct Demo {
    user: UserId,
    ids: Vec<CollectionId>,
    application: (String, Secret),
    token: (String, Secret),
}

pub async fn run(args: Args) -> Result<(), Exit> {
    let listeners = Listeners {
        grpc: loopback("--grpc-addr", &args.grpc_addr).await?,
        rest: loopback("--rest-addr", &args.rest_addr).await?,
        admin: loopback("--admin-addr", &args.admin_addr).await?,
    };
    let entropy = Entropy::default();
    let keys = open_folder(&args.data_dir, &entropy)?;
    let database = args.data_dir.join("collections.sqlite");
    // In a URL the folder's `?` and `%` would mean something else.
    let path = percent_encode(database.as_os_str().as_bytes(), NON_ALPHANUMERIC);
    let url = DatabaseUrl::from(format!("sqlite:{path}?mode=rwc"));
    let connected = Store::connect(&url, Capacity::of(1), Clock::System, entropy.clone()).await;
    let (store, driver) = connected.map_err(Exit::usage)?;
    driver.run_until(serve(store, &args.data_dir, listeners, keys, entropy)).await
}

/// The address to listen on.
async fn loopback(flag: &str, address: &Address) -> Result<SocketAddr, Exit> {
    let resolved = address.resolve(flag).await?;
    if resolved.is_loopback() {
        return Ok(resolved.to_bind());
    }
    Err(Exit::Usage(format!(
        "{flag}: under dev any caller can name any user, so it serves loopback addresses only"
    )))
}

async fn serve(
    store: Store,
    folder: &Path,
    listeners: Listeners,
    keys: Arc<KeyRing>,
    entropy: Entropy,
) -> Result<(), Exit> {
    let mut stop = Stop::listen()?;
    for name in store.migrate().await.map_err(Exit::failed)? {
        print(format_args!("applied migration {name}"))?;
    }
    let settings = Settings {
        rpc: Rpc::Served(Grpc {
            address: listeners.grpc,
            tls: None,
            trusted_peers: TrustedPeers::default(),
            insecure_identity: true,
            caller_rate_limit: None,
        }),
        rest: Some(Rest {
            address: listeners.rest,
            tls: None,
            transport: TransportPolicy::default(),
            public_origins: Vec::new(),
            rate_limit: Some(RateLimit::new(Rule::default(), Clock::System, None)),
            keys: keys.clone(),
        }),
        jwt: None,
        admin: listeners.admin,
        purge: Some(PurgeSettings { batch: config::purge::BATCH, pause: config::purge::PAUSE }),
        max_in_flight: config::calls::IN_FLIGHT as usize,
        drain: Duration::from_secs(3),
        metrics: store.metrics().clone(),
        traces: Traces::default(),
        clock: Clock::System,
        entropy: entropy.clone(),
    };
    let credentials = Credentials::new(store.clone(), keys);
    credentials.check().await.map_err(|error| {
        let advice = match error {
            CredentialError::Sealed(_) => "; delete the folder to start over",
            _ => "",
        };
        Exit::Failed(format!("--data-dir {}: {error}{advice}", folder.display()))
    })?;
    let demo = seed(&store, credentials).await?;
    let running = Running::start(store, settings).await.map_err(port_taken)?;
    print_commands(&running, &demo, &entropy, folder)?;
    stop.requested().await;
    drain(running, &mut stop).await
}

fn port_taken(error: StartError) -> Exit {
    match error {
        StartError::Bind { flag, address, error } if error.kind() == io::ErrorKind::AddrInUse => {
            Exit::Failed(format!(
                "{address} is taken, perhaps by another `dev`: stop it, or choose another address with {flag}"
            ))
        }
        other => Exit::failed(other),
    }
}

/// The folder with its key file, made at the first run.
fn open_folder(folder: &Path, entropy: &Entropy) -> Result<Arc<KeyRing>, Exit> {
    let failed = |error: io::Error| Exit::Failed(format!("--data-dir {}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join("credentials.key");
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => file.write_all(KeyRing::generate_line("dev", entropy).as_bytes()).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    read_keys(&path, entropy.clone())
}

/// The documentation's collections, and new ones where those are destroyed; an application, and a token for this run.
async fn seed(store: &Store, credentials: Credentials) -> Result<Demo, Exit> {
    let (Some(user), Some(other)) = (UserId::new(DEMO_USER), UserId::new(OTHER_USER)) else {
        return Err(Exit::failed("the demo user ids are invalid"));
    };
    let put = async |number: i64, owner: UserId| match CollectionId::new(number) {
        Some(id) => {
            let new = NewCollection { id, owner, name: format!("Demo {id}"), entries: (1..=3).collect() };
            store.insert_collection(new).await.map_err(Exit::failed)
        }
        None => Ok(false),
    };
    for number in DEMO_COLLECTIONS {
        put(number, user).await?;
    }
    put(OTHER_COLLECTION, other).await?;
    let mut next = DEMO_COLLECTIONS.iter().max().copied().unwrap_or(1);
    while store.collections_of(user, LEAST).await.map_err(Exit::failed)?.len() < LEAST as usize {
        next += 1;
        put(next, user).await?;
    }
    let application = match credentials.app_named(DEMO_APP).await.map_err(Exit::failed)? {
        Some(application) => application,
        None => credentials.create_app(DEMO_APP).await.map_err(Exit::failed)?,
    };
    let issued =
        credentials.issue_token(&application.consumer_key, user, true).await.map_err(Exit::failed)?;
    Ok(Demo {
        user,
        ids: store.collections_of(user, LEAST).await.map_err(Exit::failed)?,
        application: (application.consumer_key, application.secret),
        token: (issued.token, issued.secret),
    })
}

fn print_commands(running: &Running, demo: &Demo, entropy: &Entropy, folder: &Path) -> Result<(), Exit> {
    let (Some(grpc), Some(rest), [by_grpc, by_rest, ..]) = (running.grpc, running.rest, demo.ids.as_slice())
    else {
        return Err(Exit::failed("the demo has nothing to destroy"));
    };
    let origin = Origin::of_request("http", &rest.to_string()).ok_or_else(|| Exit::failed("no origin"))?;
    let form = format!("id={by_rest}");
    let authorization = oauth1::sign(
        ("POST", &origin, rest::PATH),
        (&demo.application.0, &demo.token.0),
        (&demo.application.1, &demo.token.1),
        (Clock::System.now().timestamp(), &entropy.hex::<16>()),
        &Parameters::decode(form.as_bytes()),
    )
    .ok_or_else(|| Exit::failed("the demo request could not be signed"))?;
    let names: Vec<String> = demo.ids.iter().map(ToString::to_string).collect();
    let request_id = || uuid::Builder::from_random_bytes(entropy.bytes()).into_uuid();
    print(format_args!(
        "User {user} owns {names}; user {OTHER_USER} owns custom-{OTHER_COLLECTION}.

Destroy one over gRPC (the same command again is a retry, because it has the same request_id):

  grpcurl -plaintext -H 'x-user-id: {user}' -d '{{\"id\":\"{by_grpc}\",\"request_id\":\"{grpc_request}\"}}' {grpc} collections.v1.CollectionsService/Destroy

Destroy one over the 1.1 API (signed for the next five minutes; Idempotency-Key is the request_id of REST):

  curl -sS '{origin}{path}' -H 'Authorization: {authorization}' -H 'Idempotency-Key: {rest_request}' -d '{form}'

For a 1.1 client of your own:

  consumer key     {key}
  consumer secret  {secret}
  token            {token}
  token secret     {token_secret}

Health is on {admin}, the data in {folder}: delete that folder to start over. Ctrl-C stops.
ready",
        grpc_request = request_id(),
        rest_request = request_id(),
        user = demo.user,
        names = names.join(", "),
        origin = origin.as_str(),
        path = rest::PATH,
        key = demo.application.0,
        secret = demo.application.1.expose(),
        token = demo.token.0,
        token_secret = demo.token.1.expose(),
        admin = running.admin,
        folder = folder.display(),
    ))
}
