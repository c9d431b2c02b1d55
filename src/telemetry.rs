//! Logs: one line a call, on standard error, as JSON for machines or as text for people.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Json,
    Pretty,
}

/// Installs the log for this process. `filter` takes the directives of `RUST_LOG`.
///
/// # Errors
/// The filter does not parse.
pub fn install(format: LogFormat, filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse(filter)?)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let installed = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Pretty => builder.compact().with_target(false).try_init(),
    };
    // A second installation can only come from a test; the first one stands.
    drop(installed);
    Ok(())
}
