//! Limits of the command line.

use std::time::Duration;

/// The longest time that resolving a host name in a flag may take, so that a resolver that does not answer ends the start
/// with an error.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
