//! Limits of traces. The `OTEL_…` variables in parentheses replace them.

use std::time::Duration;

/// The share of traces that are recorded where the caller has not decided. One process serves some 40,000 calls a second: all of
/// them would be more than a collector takes, and a hundredth is still several hundred traces a second.
pub const SAMPLE_RATIO: f64 = 0.01;
/// Traces a second that are recorded because an unauthenticated client asks for it, by the flag in its `traceparent`. Further
/// ones are not recorded: a client must not decide how much the collector gets.
pub const REQUESTED_TRACES: u32 = 100;
/// The longest `tracestate` that is used and forwarded, in bytes: what the W3C's recommendation requires at the least. A longer
/// one is dropped.
pub const STATE_LIMIT: usize = 512;
/// Links of one span, as in the SDK's default.
pub const LINKS: usize = 128;
/// Spans that wait to be exported. Further ones are dropped (`OTEL_BSP_MAX_QUEUE_SIZE`).
pub const SPAN_QUEUE: usize = 2048;
/// Spans in one export (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`).
pub const SPAN_BATCH: usize = 512;
/// How long a span waits for others before they are exported (`OTEL_BSP_SCHEDULE_DELAY`).
pub const EXPORT_INTERVAL: Duration = Duration::from_secs(5);
/// The longest that one export may take, with its retries (`OTEL_BSP_EXPORT_TIMEOUT`).
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that the last spans may take at the end of the drain, and never longer than what is left of the drain.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How much later than the flush's own deadline its end is no longer waited for.
pub const FLUSH_GRACE: Duration = Duration::from_millis(250);
/// How long no span must have been dropped before the end of dropping is logged.
pub const OVERFLOW_QUIET: Duration = Duration::from_secs(60);
