//! Limits of OAuth applications, tokens and their keys.

use std::time::Duration;

/// How long an application or a token is served from memory: the time a revocation takes to be seen everywhere.
pub const CACHE_LIFETIME: Duration = Duration::from_secs(15);
/// How many applications, and how many tokens, are kept in memory.
pub const CACHE_SIZE: u64 = 10_000;
/// The longest name of an application, in bytes.
pub const APPLICATION_NAME_LIMIT: usize = 200;
/// How many applications, the newest, must open with the key file before the gateway is ready.
pub const READINESS_SAMPLE: u64 = 100;
/// The largest key file, in bytes: some hundred keys.
pub const KEY_FILE_LIMIT: usize = 8 * 1024;
/// How many secrets `rotate-key` reads, and re-seals in one transaction: that long, a destroy on SQLite waits.
pub const ROTATION_BATCH: u64 = 100;
/// The longest a batch may take: its hundred statements over a slow network.
pub const ROTATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a batch is run when the database undoes it (SQLSTATE 40001, 40P01).
pub const ROTATION_ATTEMPTS: u32 = 6;
/// How often `rotate-key` goes through all secrets, until it finds nothing to do: usually twice.
pub const ROTATION_PASSES: u32 = 4;
/// How many secrets that do not open are named.
pub const ROTATION_NAMED: usize = 100;
