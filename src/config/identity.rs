//! Limits of credentials.

use jsonwebtoken::Algorithm;

/// The longest consumer key or token that is looked up, in bytes: clients choose them, and they are cached.
pub const OAUTH_KEY_LIMIT: usize = 256;
/// OAuth timestamps may differ from our clock by this many seconds.
pub const OAUTH_WINDOW: i64 = 300;
/// The longest name in a certificate that is compared, in bytes: SPIFFE's own limit.
pub const PEER_NAME_LIMIT: usize = 2048;
/// Names that are read from one certificate.
pub const PEER_NAME_COUNT: usize = 100;
/// The longest description of a certificate in the log, in bytes: its holder may have chosen its names.
pub const LOGGED_CERTIFICATE_LIMIT: usize = 128;
/// What a JWT may be signed with. Public keys alone: a shared secret that can verify can also forge.
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
/// Signatures of JWTs that are verified at one time, at most: each occupies a processor for some 20 to 200 µs.
pub const JWT_VERIFICATION_LIMIT: usize = 8;
/// Calls that wait for the verification of their JWT: half of the calls in flight by default. At 100 µs each the last
/// waits 100 ms on one processor.
pub const JWT_VERIFICATION_QUEUE: usize = 1024;
/// By how many seconds an issuer's clock may differ from ours.
pub const JWT_LEEWAY: f64 = 30.0;
/// The longest name of a client in a JWT, in bytes: it is stored in the tombstone.
pub const JWT_CLIENT_LIMIT: usize = 256;
/// Parameters in a query, and in a form.
pub const PARAMETER_LIMIT: usize = 256;
/// The longest excerpt of a text from outside in a line of the log, in bytes: a client chooses these texts.
pub const EXCERPT_LIMIT: usize = 128;
/// Excerpts of one kind in a line of the log, such as the names in a certificate.
pub const EXCERPT_COUNT: usize = 8;
/// Letters of an OAuth token in a line of the log: enough to find it, too few to use it.
pub const TOKEN_EXCERPT_LIMIT: usize = 8;
