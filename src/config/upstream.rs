//! Limits of the gateway's connections to the RPC.

use std::time::Duration;

/// How often a gateway sends one call before it gives up: to different addresses, where there are several.
pub const ATTEMPTS: u32 = 3;
/// The pause before the second try of a call; before the third it is twice as long.
pub const BACKOFF: Duration = Duration::from_millis(25);
/// The longest a connection to the upstream may take, TLS included: then another address is tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an address that could not be reached is passed over.
pub const EJECTION: Duration = Duration::from_secs(5);
/// Addresses of the upstream that are used.
pub const ADDRESS_LIMIT: usize = 100;
/// How often the upstream's name is resolved, and how long that may take.
pub const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
