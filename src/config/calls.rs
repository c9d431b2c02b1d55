//! Limits of calls, over either protocol.

use std::time::Duration;

/// The longest a call may take when the caller names no deadline, or a longer one.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest gRPC message, in bytes: a destroy needs some sixty.
pub const MESSAGE_LIMIT: usize = 4 * 1024;
/// The capacity that a gRPC message's buffer begins with, in bytes: room for the longest id with a request id. tonic reserves it
/// twice, for what was received and for the message.
pub const MESSAGE_BUFFER: usize = 192;
/// The delay in `RetryInfo`: how long an outage or an overload lasts is not known.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often the number of refused calls is logged.
pub const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Calls of health in flight on one listener, and as many streams (watches and reflection): they need no user, and a watch
/// lasts as long as its connection.
pub const AUXILIARY_CALLS: usize = 256;
/// The longest a reflection stream lasts: command-line clients keep theirs open during the call that they make.
pub const REFLECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Calls in flight by default.
pub const IN_FLIGHT: u32 = 2048;
/// The longest host and port that a REST request may name to sign for, in bytes: a DNS name has at most 253.
pub const AUTHORITY_LIMIT: usize = 260;
/// The largest REST body, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024;
/// REST bodies over this size, in bytes, need a place of their own, so that the memory of all is bounded. Requests of 1.1
/// clients are far below it.
pub const SMALL_BODY: usize = 4 * 1024;
/// Places for REST bodies over [`SMALL_BODY`]: 16 MiB in all.
pub const LARGE_BODIES: usize = 256;
/// Bytes of a body that are read and dropped, so that a client which sends its whole body first receives the response.
pub const DISCARD_LIMIT: u64 = 64 * 1024 * 1024;
/// The longest that takes.
pub const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that sends less than [`DISCARD_STEP`] bytes in this time receives the response without it.
pub const DISCARD_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
pub const DISCARD_STEP: u64 = 16 * 1024;
/// How often readiness asks the database.
pub const READINESS_INTERVAL: Duration = Duration::from_secs(1);
/// The same while the service is not ready: traffic returns no later than this after the database.
pub const READINESS_RETRY: Duration = Duration::from_millis(250);
