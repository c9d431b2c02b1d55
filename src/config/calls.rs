//! Limits of calls, over either protocol.

use std::time::Duration;

/// The longest a call may take when the caller names no deadline, or a longer one.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest gRPC message, in bytes: a destroy needs some sixty.
pub const MESSAGE_LIMIT: usize = 4 * 1024;
/// What a gRPC message's buffer begins with, in bytes: room for the longest id with a request id. tonic wants that of what
/// has come, and as much again for the message.
pub const MESSAGE_BUFFER: usize = 192;
/// The longest text of a UUID that is read, in bytes: `urn:uuid:` and 36 more.
pub const REQUEST_ID_LIMIT: usize = 45;
/// What `RetryInfo` asks for: it is not known when it will get better.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often the log says how many calls were refused for want of room.
pub const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Streams of health and reflection on one listener: whoever watches needs no user, and each stream costs memory for as
/// long as it likes. A connection with nothing but such streams counts as idle.
pub const OPEN_STREAMS: usize = 256;
/// The largest REST body, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024;
/// REST requests being read or worked on: with the largest bodies, 64 MiB.
pub const REST_IN_FLIGHT: usize = 1024;
/// The longest a REST body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A body that has not come whole within this time is a slow one; the usual one comes with its headers.
pub const BODY_GRACE: Duration = Duration::from_millis(100);
/// Slow bodies at one time: they need places of their own, or they could take those of everybody.
pub const SLOW_BODIES: usize = 256;
/// How often readiness asks the database.
pub const READINESS_INTERVAL: Duration = Duration::from_secs(1);
/// The same while the service is not ready: traffic returns no later than this after the database.
pub const READINESS_RETRY: Duration = Duration::from_millis(250);
/// Bytes of the log that may wait for the end of a turn of the runtime.
pub const LOG_BUFFER: usize = 64 * 1024;
