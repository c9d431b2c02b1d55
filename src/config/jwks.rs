//! Limits of fetching and refreshing key sets.

use std::time::Duration;

/// The largest JWKS, in bytes, and the most keys in it: issuers publish a handful.
pub const SIZE_LIMIT: u64 = 128 * 1024;
pub const KEY_LIMIT: usize = 64;
/// How often a JWKS is fetched from its URL. A key that its issuer revoked is accepted no longer than this.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// How often a JWKS file is read: soon enough for a person who has just changed it.
pub const FILE_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a fetch that failed, doubled each time up to the longest.
pub const RETRY_BACKOFF: Duration = Duration::from_secs(1);
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest one fetch may take, from the name's resolution to the last byte.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// At most one fetch in so many seconds because of unknown key ids: the sender of a token chooses its key id.
pub const ON_DEMAND_INTERVAL: i64 = 30;
/// The longest a call waits for such a fetch.
pub const ON_DEMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls that wait for it at one time; further ones fail at once because their key is unknown.
pub const WAITER_LIMIT: usize = 128;
/// How many seconds the last valid JWKS is used while refreshes fail: a day to repair the issuer, and a limit for revoked
/// keys.
pub const MAX_AGE: i64 = 24 * 60 * 60;
/// Keys with one id and one algorithm that are tried for a token. Issuers publish one; each more is a verification more.
pub const CANDIDATE_LIMIT: usize = 2;
/// Ids of keys in the log line of a loaded JWKS.
pub const LOGGED_KID_COUNT: usize = 16;
