//! Limits of listeners and their connections.

use std::time::Duration;

use super::calls;

/// The largest set of request headers, in bytes. A bearer token may have half of it, so it cannot be much smaller;
/// [`REQUEST_MEMORY_SHARE`] bounds all sets together.
pub const HEADER_LIMIT: u32 = 16 * 1024;
/// The longest an HTTP/1 connection may be idle, or the headers of a request may take to arrive. Longer than the minute
/// for which proxies keep an idle connection: they would use it again just when it is closed.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// Calls in flight on one HTTP/2 connection.
pub const STREAM_LIMIT: u32 = 100;
/// Streams a peer may make us reset before its connection is closed (RUSTSEC-2024-0003).
pub const RESET_LIMIT: usize = 1024;
/// Requests that a peer has reset before they were accepted, on one connection; one more closes it. A client of which forty calls
/// time out at once, while this process is paused, keeps its connection; with 200, rapid resets made an honest p99 of 38 ms.
pub const PENDING_RESET_LIMIT: usize = 50;
/// Bytes of a response that wait on one HTTP/2 stream for the peer to read them.
pub const SEND_BUFFER: usize = 16 * 1024;
/// Bytes of one connection, after which the others have their turn. A read may exceed it by its buffer, which has 8 KiB. Small
/// DATA frames have to be read by their call in time: h2 closes a connection with more than 32 KiB of overhead unread.
pub const READ_TURN: usize = 4 * 1024;
/// HTTP/2 frames that a connection may send without a completed call, apart from [`FRAMES_PER_SECOND`]. Calls in flight need
/// some ten each; a body of 64 KiB in frames of a hundred bytes needs 655.
pub const FRAME_BURST: u32 = 4096;
/// The number of frames that a connection may send without calls, for each second.
pub const FRAMES_PER_SECOND: u32 = 400;
/// The number of frames that a completed call allows: its own, and those that acknowledge its response.
pub const FRAMES_PER_CALL: u32 = 8;
/// Bytes of a frame's payload that count as another frame. DATA frames of this size count as none.
pub const FRAME_BYTES: u32 = 256;
/// The most open connections on the listeners of callers, together, however much memory there is. At the limit, one of the
/// client network with the most connections is evicted for a new one.
pub const CONNECTION_LIMIT: usize = 4096;
/// The least that [`CONNECTION_LIMIT`] becomes where memory or files are short.
pub const MIN_CONNECTION_LIMIT: usize = 64;
/// Open connections on the admin listener. They are counted apart, so that a probe always has a place.
pub const ADMIN_CONNECTION_LIMIT: usize = 64;
/// The part of the open files, as a divisor, that bounds [`MIN_CONNECTION_LIMIT`] and [`ADMIN_CONNECTION_LIMIT`].
pub const MIN_CONNECTION_FILE_SHARE: u64 = 8;
/// Bytes that an open connection uses. Measured: HTTP/1.1 after a call 35 KiB, HTTP/2 46 KiB, and with an unfinished header
/// block of 15 kB 73 KiB; few connections are in the last state at one time.
pub const CONNECTION_BYTES: u64 = 64 * 1024;
/// The part of the process's memory, as a divisor, that connections may use.
pub const CONNECTION_MEMORY_SHARE: u64 = 3;
/// Open files reserved for the database, key sets, the log and configuration.
pub const RESERVED_FILES: u64 = 128;
/// The memory of the process, in bytes, where neither a control group nor the system names it.
pub const UNKNOWN_MEMORY: u64 = 256 * 1024 * 1024;
/// The part of the process's memory, as a divisor, that requests in flight may use.
pub const REQUEST_MEMORY_SHARE: u64 = 8;
/// The most memory for requests in flight, in bytes.
pub const REQUEST_MEMORY_LIMIT: usize = 256 * 1024 * 1024;
/// The least memory for requests in flight, in bytes.
pub const MIN_REQUEST_MEMORY: usize = 8 * 1024 * 1024;
/// The memory for requests in flight on the admin listener, in bytes. It is counted apart, so that probes and metrics are
/// served during a flood of requests on the other listeners.
pub const ADMIN_REQUEST_MEMORY: usize = 4 * 1024 * 1024;
/// The part of the memory for requests, as a divisor, that one client network may use.
pub const REQUEST_MEMORY_CLIENT_SHARE: usize = 4;
/// Bytes that a request in flight uses without its headers: its stream, its task and its message.
pub const REQUEST_OVERHEAD: usize = 4 * 1024;
/// Bytes that a header uses in addition to its name and value.
pub const HEADER_OVERHEAD: usize = 128;
/// How often the log counts events that are too frequent for a line each.
pub const EVENT_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// The part of the limit, as a divisor, for connections that have not made a call yet: in a TLS handshake, sending slow
/// headers, or silent. A flood of them then evicts no connection that has made a call.
pub const NEW_CONNECTION_SHARE: usize = 4;
/// Evicted connections that may still be open, as a divisor of the limit; they are counted in addition to it.
pub const EVICTED_CONNECTION_SHARE: usize = 8;
/// The longest a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between two log lines about failed TLS handshakes, each of which counts all failures since the last:
/// unauthenticated peers cause them.
pub const HANDSHAKE_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// The longest reason of a failed TLS handshake in the log, in bytes: parts of it may be the peer's choice.
pub const HANDSHAKE_REASON_LIMIT: usize = 128;
/// Intermediate certificates in a client's chain, as many as webpki accepts in a path: more are refused before any signature is
/// verified.
pub const INTERMEDIATE_LIMIT: usize = 6;
/// Intermediate certificates with the same subject in a client's chain: an authority that is cross-signed or was renewed
/// needs two. With two, at most 17 signatures are verified for a chain of bogus certificates, without a limit 100.
pub const SAME_SUBJECT_LIMIT: usize = 2;
/// The longest a connection may take to its first call: preface and headers, however slowly they come.
pub const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may be without a call before it is closed, with a GOAWAY on HTTP/2.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// The longest an evicted connection without calls in flight stays open: a call that the peer has
/// already sent can still be answered.
pub const EVICTION_GRACE: Duration = Duration::from_millis(250);
/// The longest an evicted connection with calls in flight stays open. Shorter than the longest call: it occupies memory
/// that another connection needs.
pub const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest a connection stays open after its GOAWAY: the calls that it had accepted have ended by then.
pub const CLOSE_TIMEOUT: Duration = calls::TIMEOUT.saturating_add(LINGER);
/// Bytes that a peer may send on one stream, and on one HTTP/2 connection, before we have read them: HTTP/2's own
/// default, which a destroy does not fill.
pub const WINDOW: u32 = 64 * 1024 - 1;
/// The interval between two polls of files that may change. A change is loaded at the second poll that finds it, within
/// two seconds.
pub const RELOAD_INTERVAL: Duration = Duration::from_millis(500);
/// Bytes of a file that are hashed to detect a change: a bundle of public authorities has a third of that.
pub const WATCHED_FILE_LIMIT: u64 = 1024 * 1024;
/// The age at which a connection gets a GOAWAY, plus or minus a tenth: gRPC clients reuse their connections, so without a
/// maximum age a new replica would get no calls.
pub const CONNECTION_AGE: Duration = Duration::from_secs(600);
/// How long connections may take to send the last responses once every accepted call is finished.
pub const LINGER: Duration = Duration::from_secs(1);
/// The pause before the next try when a connection could not be accepted, for example because the
/// process has no file descriptors left.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// The interval of PINGs to a silent HTTP/2 peer, and the longest wait for the acknowledgement.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// Bytes of the body of a request that is refused for want of memory, which are read and dropped before the response.
pub const REFUSED_BODY_LIMIT: u64 = 64 * 1024 * 1024;
/// The longest that takes.
pub const REFUSED_BODY_TIMEOUT: Duration = Duration::from_secs(10);
