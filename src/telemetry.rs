//! The log (one line a call, on standard error, as JSON for machines or as text for people), metrics for Prometheus, and traces.

mod call;
mod metrics;
mod outcome;
mod trace;

use std::{
    io::{self, BufWriter, IsTerminal, Stderr, Write},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, Layer, fmt::MakeWriter, prelude::*, registry::LookupSpan};

use crate::config;

pub use call::{CallFields, CallRecord, Cut};
pub use metrics::{
    CallerMetrics, DESTROY, DatabaseMetrics, DatabaseOperation, DatabaseTimer, HttpRequest, ListenerMetrics,
    Metrics, MetricsFormat, Observed, OpenConnection, ReloadMetrics, known_rpc_method,
};
pub use outcome::CallOutcome;
pub use trace::{
    CallSpan, CallTrace, ClientSpan, CollectorTls, ExportLimits, OtlpEndpoint, OtlpEndpointError,
    SampleRatio, SampleRatioError, Sampling, TraceError, TraceHeaders, TraceSettings, Traces,
};

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object on each line, for programs
    Json,
    /// Text, for people
    Pretty,
}

/// The installed log. Lines are written by a thread of its own, because a write to a full pipe blocks; dropped, it waits
/// about a second at most for the last ones.
#[derive(Debug)]
#[must_use]
pub struct Log {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Log {
    /// Logs how many lines were dropped because the reader of standard error stalled, as long as it is polled.
    pub fn report_dropped(&self) -> impl Future<Output = ()> + Send + use<> {
        let dropped = self.dropped.clone();
        async move {
            let mut reported = 0;
            loop {
                tokio::time::sleep(config::telemetry::DROPPED_LOG_INTERVAL).await;
                let total = dropped.dropped_lines();
                if total > reported {
                    tracing::warn!(
                        lines = total - reported,
                        total,
                        "log lines dropped: standard error is not read"
                    );
                    reported = total;
                }
            }
        }
    }
}

/// The lines that the installed log has dropped. The log is the process's, and so is this.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// How many log lines were dropped because the reader of standard error stalled.
fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Standard error, written at intervals. Without the pause after each write, every line would wake the writer's thread, which
/// costs more than the rest of the line.
struct PacedWriter(BufWriter<Stderr>);

impl Write for PacedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    /// Called by the writer's thread when no line waits any more.
    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.0.flush();
        thread::sleep(config::telemetry::WRITE_INTERVAL);
        flushed
    }
}

/// A duration in milliseconds as the log has it, no finer than a microsecond.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// The filter of these directives. rustls logs what its peers do wrong, with values of theirs: a line for each, and of any length.
/// The reason of a failed handshake is logged by `net`. A directive for rustls has precedence.
fn env_filter(directives: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::builder().parse(format!("rustls=off,{directives}"))
}

/// Installs the log for this process. `filter` takes the directives of `RUST_LOG`.
///
/// # Errors
/// The filter does not parse.
pub fn install(format: LogFormat, filter: &str) -> Result<Log, tracing_subscriber::filter::ParseError> {
    let filter = env_filter(filter)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(config::telemetry::QUEUED_LINES)
        .thread_name("log")
        .finish(PacedWriter(BufWriter::with_capacity(config::telemetry::WRITE_SIZE, io::stderr())));
    let log = Log { _writer: guard, dropped: writer.error_counter() };
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match format {
        LogFormat::Json => registry.with(json_lines(writer)).try_init(),
        LogFormat::Pretty => {
            let lines = tracing_subscriber::fmt::layer().with_writer(writer).compact().with_target(false);
            registry.with(lines.with_ansi(io::stderr().is_terminal())).try_init()
        }
    };
    // A second installation can only come from a test; the first one stays in effect.
    if installed.is_ok() {
        let _first = DROPPED.set(log.dropped.clone());
    }
    Ok(log)
}

fn json_lines<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false).json();
    lines.flatten_event(true).with_current_span(false).with_span_list(false)
}

/// Writes the error that ends the program to standard error, in the format of log lines and whatever the log's filter. The
/// exit code is the result: an error that cannot be written within [`config::telemetry::LAST_LINE_TIMEOUT`] is dropped.
pub fn write_error(format: LogFormat, message: String) {
    let (done, is_done) = mpsc::channel();
    // A thread of its own, because a write to a full pipe blocks.
    let writer = thread::Builder::new().name("error".to_owned()).spawn(move || {
        match format {
            LogFormat::Json => {
                let line = tracing_subscriber::registry().with(json_lines(io::stderr));
                let log = || tracing::error!(target: "collections_service::cli", "{message}");
                tracing::subscriber::with_default(line, log);
            }
            LogFormat::Pretty => drop(writeln!(io::stderr(), "error: {message}")),
        }
        let _sent = done.send(());
    });
    if writer.is_ok() {
        let _written = is_done.recv_timeout(config::telemetry::LAST_LINE_TIMEOUT);
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    #[test]
    fn lines_of_rustls_are_written_on_request_alone() {
        for (directives, expected) in [("info", "rustls=off"), ("info,rustls=debug", "rustls=debug")] {
            let filter = super::env_filter(directives).expect("a filter").to_string();
            assert!(filter.split(',').any(|directive| directive == expected), "{filter}");
            assert_eq!(filter.matches("rustls").count(), 1, "{filter}");
        }
        assert!(super::env_filter("info,=").is_err());
    }
}
