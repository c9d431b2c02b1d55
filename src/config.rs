//! Configuration as plain data, and every limit by name.

pub mod import;
pub mod purge;
pub mod store;
pub mod tombstones;
pub mod verify;

use std::{fmt, time::Duration};

use jsonwebtoken::Algorithm;
use zeroize::Zeroizing;

/// How long an application or a token is served from memory: the time a revocation takes to be seen everywhere.
pub const CREDENTIAL_LIFE: Duration = Duration::from_secs(15);
/// How many applications, and how many tokens, are kept in memory.
pub const CREDENTIAL_CACHE: u64 = 10_000;
/// The longest name of an application, in bytes.
pub const APPLICATION_NAME_LIMIT: usize = 200;
/// How many applications, the newest, must open with the key file before the gateway is ready.
pub const CREDENTIAL_SAMPLE: u64 = 100;
/// The largest key file, in bytes: some hundred keys.
pub const KEY_FILE_LIMIT: usize = 8 * 1024;
/// How many secrets `rotate-key` reads, and re-seals in one transaction: that long, a destroy on SQLite waits.
pub const ROTATION_BATCH: u64 = 100;
/// The longest a batch may take: its hundred statements over a slow network.
pub const ROTATION_BOUND: Duration = Duration::from_secs(30);
/// How often a batch is run when the database undoes it (SQLSTATE 40001, 40P01).
pub const ROTATION_ATTEMPTS: u32 = 6;
/// How often `rotate-key` goes through all secrets, until it finds nothing to do: usually twice.
pub const ROTATION_PASSES: u32 = 4;
/// How many secrets that do not open are named.
pub const ROTATION_NAMED: usize = 100;
/// How often a long command says how far it is, where there is no terminal.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of the log that may wait for the end of a turn of the runtime.
pub const LOG_BUFFER: usize = 64 * 1024;
/// How often the log says how many calls were refused for want of room.
pub const REFUSALS_INTERVAL: Duration = Duration::from_secs(1);
/// The longest a call may take when the caller names no deadline, or a longer one.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest REST body, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024;
/// Parameters in a query, and in a form.
pub const PARAMETER_LIMIT: usize = 256;
/// REST requests being read or worked on: with the largest bodies, 64 MiB.
pub const REST_IN_FLIGHT: usize = 1024;
/// The longest a REST body may take to arrive.
pub const BODY_WAIT: Duration = Duration::from_secs(10);
/// A body that has not come whole within this time is a slow one; the usual one comes with its headers.
pub const BODY_GRACE: Duration = Duration::from_millis(100);
/// Slow bodies at one time: they need places of their own, or they could take those of everybody.
pub const SLOW_BODIES: usize = 256;
/// The largest gRPC message, in bytes: a destroy needs some sixty.
pub const MESSAGE_LIMIT: usize = 4 * 1024;
/// What a gRPC message's buffer begins with, in bytes: room for the longest id with a request id. tonic wants that of what
/// has come, and as much again for the message.
pub const MESSAGE_BUFFER: usize = 192;
/// The longest text of a UUID that is read, in bytes: `urn:uuid:` and 36 more.
pub const REQUEST_ID_LIMIT: usize = 45;
/// The largest set of request headers, in bytes.
pub const HEADER_LIMIT: u32 = 16 * 1024;
/// The longest an HTTP/1 connection may be idle, or the headers of a request may take to arrive. Longer than the minute
/// for which proxies keep an idle connection: they would use it again just when it is closed.
pub const HEADER_WAIT: Duration = Duration::from_secs(75);
/// The longest consumer key or token that is looked up, in bytes: whoever asks chooses them, and the cache keeps them.
pub const OAUTH_KEY_LIMIT: usize = 256;
/// Calls in flight on one HTTP/2 connection.
pub const STREAM_LIMIT: u32 = 100;
/// Streams of health and reflection on one listener: whoever watches needs no user, and each stream costs memory for as
/// long as it likes. A connection with nothing but such streams counts as idle.
pub const OPEN_STREAMS: usize = 256;
/// Streams a peer may make us reset before its connection is closed (RUSTSEC-2024-0003).
pub const RESET_LIMIT: usize = 1024;
/// Open connections on one listener. Over it, the one that has been idle longest leaves for the next.
pub const CONNECTION_LIMIT: usize = 2048;
/// Connections on one listener that have not made a call yet: in a TLS handshake, sending slow headers, or silent. Over
/// it, the oldest of them leaves, so that a flood of them costs nobody a place who ever made a call.
pub const NEW_CONNECTION_LIMIT: usize = 512;
/// The longest a TLS handshake may take.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// The longest a connection may take to its first call: preface and headers, however slowly they come.
pub const FIRST_CALL_WAIT: Duration = Duration::from_secs(30);
/// How long a connection may be without a call before it is told to go away.
pub const IDLE: Duration = Duration::from_secs(300);
/// How long an idle connection has to go when another one needs its place.
pub const EVICTION: Duration = Duration::from_millis(250);
/// Bytes that a peer may send on one stream, and on one HTTP/2 connection, before we have read them: HTTP/2's own
/// default, which a destroy does not fill.
pub const WINDOW: u32 = 64 * 1024 - 1;
/// The longest name in a certificate that is compared, in bytes: SPIFFE's own limit.
pub const PEER_NAME_LIMIT: usize = 2048;
/// Names that are read from one certificate.
pub const PEER_NAME_COUNT: usize = 100;
/// How often files are looked at that may change while the service runs. A change is used at the second look that sees
/// it: within two seconds with ease.
pub const RELOAD_INTERVAL: Duration = Duration::from_millis(500);
/// How much of a file is looked at to see whether it has changed, in bytes: a bundle of public authorities has a third.
pub const WATCHED_FILE_LIMIT: u64 = 1024 * 1024;
/// How old a connection may become, give or take a tenth, before it is told to go away: gRPC clients hold on to theirs,
/// so without an age a new replica would never get work.
pub const CONNECTION_AGE: Duration = Duration::from_secs(600);
/// How long connections may take to hand over the last answers once every accepted call is finished.
pub const LINGER: Duration = Duration::from_secs(1);
/// The pause before the next try when a connection could not be accepted, for want of file descriptors say.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What `RetryInfo` asks for: it is not known when it will get better.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often a silent HTTP/2 peer is asked whether it is there, and how long it may take to say so.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// How often readiness asks the database.
pub const READINESS_INTERVAL: Duration = Duration::from_secs(1);
/// The same while the service is not ready: traffic returns no later than this after the database.
pub const READINESS_RETRY: Duration = Duration::from_millis(250);
/// How often a gateway sends one call before it gives up: to different addresses, where there are several.
pub const UPSTREAM_ATTEMPTS: u32 = 3;
/// The pause before the second try of a call; before the third it is twice as long.
pub const UPSTREAM_PAUSE: Duration = Duration::from_millis(25);
/// The longest a connection to the upstream may take, TLS included: then another address is tried.
pub const UPSTREAM_CONNECT_WAIT: Duration = Duration::from_secs(2);
/// How long an address that could not be reached is passed over.
pub const UPSTREAM_AWAY: Duration = Duration::from_secs(5);
/// Addresses of the upstream that are used.
pub const UPSTREAM_ADDRESSES: usize = 100;
/// How often the upstream's name is looked up, and how long that may take.
pub const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);
pub const RESOLVE_WAIT: Duration = Duration::from_secs(5);
/// The longest a request waits for Redis to count it. A shared count is worth less than a fast answer.
pub const REDIS_BUDGET: Duration = Duration::from_millis(20);
/// The longest a connection to Redis may take, and then its first answer.
pub const REDIS_CONNECT_WAIT: Duration = Duration::from_secs(1);
/// How often a Redis that is away is looked for.
pub const REDIS_INTERVAL: Duration = Duration::from_secs(1);
/// Users whose requests are counted in memory, some 32 MB of them. More in one window are not limited: refusing them
/// would let anyone with many accounts lock out the rest.
pub const RATE_LIMIT_USERS: usize = 1_000_000;
/// OAuth timestamps may differ from our clock by this many seconds.
pub const OAUTH_WINDOW: i64 = 300;
/// What a JWT may be signed with. Public keys alone: whoever can verify a shared secret can also forge with it.
pub const JWT_ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// The longest JWT, in bytes: half of what all headers may have.
pub const JWT_LIMIT: usize = 8 * 1024;
/// By how many seconds an issuer's clock may differ from ours.
pub const JWT_LEEWAY: f64 = 30.0;
/// The longest name of a client in a JWT, in bytes: the audit trail keeps it.
pub const JWT_CLIENT_LIMIT: usize = 256;
/// The largest JWKS, in bytes, and the most keys in it: issuers publish a handful.
pub const JWKS_LIMIT: u64 = 128 * 1024;
pub const JWKS_KEYS: usize = 64;
/// How often a JWKS is fetched from its URL. A key that its issuer took back is believed no longer than this.
pub const JWKS_REFRESH: Duration = Duration::from_secs(300);
/// How often a JWKS file is read: soon enough for a person who has just changed it.
pub const JWKS_REREAD: Duration = Duration::from_secs(1);
/// The pause after a fetch that failed, doubled each time up to the longest.
pub const JWKS_RETRY: Duration = Duration::from_secs(1);
pub const JWKS_LONGEST_RETRY: Duration = Duration::from_secs(30);
/// The longest one fetch may take, from the name's resolution to the last byte.
pub const JWKS_WAIT: Duration = Duration::from_secs(5);
/// At most one fetch in so many seconds because of unknown key ids: whoever sends a token chooses its key id.
pub const JWKS_PROMPT_PAUSE: i64 = 30;
/// The longest a call waits for such a fetch.
pub const JWKS_PATIENCE: Duration = Duration::from_secs(2);
/// Calls that wait for it at one time; the others are told at once that the key is unknown.
pub const JWKS_WAITERS: usize = 128;
/// How many seconds the last good JWKS is used when no newer one can be had: a day to mend the issuer, and no key that
/// was taken back is believed for ever.
pub const JWKS_AGE: i64 = 24 * 60 * 60;

/// A database URL: `sqlite:…` or `postgres://…`. Its `Debug` hides it, because it may hold a password. Any text makes
/// one, and the store judges it: a refusal by clap would show the text.
#[derive(Clone)]
pub struct DatabaseUrl(Zeroizing<String>);

impl DatabaseUrl {
    /// The URL with its secrets.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn is_sqlite(&self) -> bool {
        self.0.starts_with("sqlite:")
    }

    #[must_use]
    pub fn is_postgres(&self) -> bool {
        ["postgres://", "postgresql://"].iter().any(|scheme| self.0.starts_with(scheme))
    }

    /// Whether the URL holds a password, in its authority or as a parameter.
    #[must_use]
    pub fn has_password(&self) -> bool {
        has_password(&self.0)
    }
}

/// Whether a URL holds a password, in its authority or as a parameter.
#[must_use]
pub fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next());
    let userinfo = authority.and_then(|authority| authority.rsplit_once('@')).map(|(userinfo, _)| userinfo);
    userinfo.is_some_and(|userinfo| userinfo.contains(':')) || url.contains("password=")
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(Zeroizing::new(url))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl")
    }
}
