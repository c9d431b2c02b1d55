//! Logs: one line a call, on standard error, as JSON for machines or as text for people. Metrics, for Prometheus.

mod json;
mod lines;
mod metrics;

use std::{
    io::{self, IsTerminal},
    mem,
    time::Duration,
};

use tokio::time::Instant;
use tracing_subscriber::{EnvFilter, prelude::*};

use json::JsonLines;
use lines::Lines;
pub use metrics::Metrics;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Json,
    Pretty,
}

/// A call without its line in the log yet. Dropped like that, because its caller went away or it was cut, it writes one.
#[derive(Debug)]
pub struct Unanswered {
    name: &'static str,
    begun: Instant,
}

impl Unanswered {
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, begun: Instant::now() }
    }

    /// There is an answer, after this time.
    #[must_use]
    pub fn answered(self) -> Duration {
        let duration = self.begun.elapsed();
        mem::forget(self);
        duration
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let duration_ms = milliseconds(self.begun.elapsed());
        tracing::info!(outcome = "Cancelled", duration_ms, "{}", self.name);
    }
}

/// A duration as the log has it: no finer than a microsecond.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// The log, for as long as it is held. Dropped, it writes what has not been written yet.
#[derive(Debug)]
#[must_use]
pub struct Log(());

impl Drop for Log {
    fn drop(&mut self) {
        lines::end();
    }
}

/// Installs the log for this process. `filter` takes the directives of `RUST_LOG`.
///
/// # Errors
/// The filter does not parse.
pub fn install(format: LogFormat, filter: &str) -> Result<Log, tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    let installed = match format {
        LogFormat::Json => tracing_subscriber::registry().with(filter).with(JsonLines::new(Lines)).try_init(),
        LogFormat::Pretty => {
            let lines = tracing_subscriber::fmt::layer()
                .compact()
                .with_target(false)
                .with_ansi(io::stderr().is_terminal())
                .with_writer(Lines);
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
    };
    // A second installation can only come from a test; the first one stands.
    drop(installed);
    Ok(Log(()))
}
