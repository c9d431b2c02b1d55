//! The command line, one file a subcommand.

#![allow(
    rustdoc::bare_urls,
    rustdoc::invalid_html_tags,
    reason = "the doc comments of flags are their help, which is no Markdown"
)]

mod address;
mod credentials;
mod database;
mod dev;
mod edge;
mod environment;
mod gateway;
mod healthcheck;
mod import;
mod input;
mod inspect;
mod jwt;
mod migrate;
mod progress;
mod purge;
mod rate_limit;
mod serve;
mod signal;
mod tombstones;
mod traces;
mod verify;

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};
use tokio::runtime::Builder;

use crate::{
    config::{self, DatabaseUrl},
    domain::Secret,
    net::install_crypto_provider,
    store::ConnectError,
    telemetry::{self, LogFormat},
};

/// Permanently delete collections owned by the authenticated user: a gRPC service with a Twitter-API-1.1 gateway.
#[derive(Debug, Parser)]
#[command(name = "collections-service", version, propagate_version = true)]
pub struct Cli {
    /// The format of log lines
    #[arg(long, global = true, value_enum, env = "COLLECTIONS_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// Which log lines are written, in the form of RUST_LOG
    #[arg(
        long,
        global = true,
        default_value = "info,sea_orm_migration=warn,sqlx=error",
        env = "COLLECTIONS_LOG"
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run on this machine alone, with an embedded database and data to destroy
    Dev(dev::Args),
    /// Run the service
    Serve(Box<serve::Args>),
    /// Run the REST gateway alone, in front of the service elsewhere
    Gateway(Box<gateway::Args>),
    /// Create or inspect the database schema
    Migrate(migrate::Args),
    /// Print what the database holds about one id: exit 1 when it is unknown, or its rows contradict each other
    Inspect(inspect::Args),
    /// Check the whole database for rows that contradict each other: exit 1 when one is found and not fixed
    Verify(verify::Args),
    /// Import collections and their entries from NDJSON (`deploy/IMPORT.md`)
    Import(import::Args),
    /// Manage OAuth applications and access tokens
    Credentials(credentials::Args),
    /// Erase the entries of destroyed collections
    Purge(purge::Args),
    /// Export tombstones, and apply them to a restored database
    Tombstones(tombstones::Args),
    /// Ask a running service for its health: exit 0 serving, 1 arguments, 2 connection, 3 RPC, 4 not serving
    Healthcheck(healthcheck::Args),
}

/// Why a command ended early, with its exit code.
#[derive(Debug)]
pub enum Exit {
    /// Usage or configuration: 2, or 1 from `healthcheck`.
    Usage(String),
    /// The same, where clap has printed the message.
    Reported,
    /// Anything else: 1.
    Failed(String),
    /// A code of the command's own, with its message.
    Code(u8, String),
}

impl Exit {
    fn usage(error: impl fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }

    fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    fn database_url(error: ConnectError) -> Self {
        Self::Usage(format!("--database-url: {error}"))
    }

    fn report(self) -> ExitCode {
        let (code, message) = match self {
            Self::Usage(message) => (usage_code(), message),
            Self::Reported => return ExitCode::from(usage_code()),
            Self::Failed(message) => (1, message),
            Self::Code(code, message) => (code, message),
        };
        // The exit code is the result, whether or not the message can be written.
        drop(writeln!(io::stderr(), "error: {message}"));
        ExitCode::from(code)
    }
}

/// Parses the arguments, runs the command, gives the exit code.
pub fn run() -> ExitCode {
    let command = environment::ignore_empty(Cli::command());
    install_crypto_provider();
    let parsed =
        command.try_get_matches().and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let outcome = match parsed {
        Ok((cli, matches)) => execute(cli, &matches),
        Err(error) => usage(&error),
    };
    outcome.map_or_else(Exit::report, |()| ExitCode::SUCCESS)
}

/// Help, or clap's message about what is wrong. A misspelt variable comes first: it may be why something is missing.
fn usage(error: &clap::Error) -> Result<(), Exit> {
    if error.exit_code() != 0 {
        environment::refuse_unknown(&Cli::command())?;
    }
    drop(error.print());
    match error.exit_code() {
        0 => Ok(()),
        _ => Err(Exit::Reported),
    }
}

/// 2, but 1 for `healthcheck`, whose codes are those of container probes.
fn usage_code() -> u8 {
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_string_lossy().as_ref() {
            "--log" | "--log-format" => drop(arguments.next()),
            option if option.starts_with('-') => {}
            command => return if command == "healthcheck" { 1 } else { 2 },
        }
    }
    2
}

/// Writes a line to standard output, which may be closed or full.
fn print(line: impl fmt::Display) -> Result<(), Exit> {
    let mut output = io::stdout().lock();
    let written = writeln!(output, "{line}").and_then(|()| output.flush());
    written.map_err(|error| Exit::Failed(format!("standard output: {error}")))
}

fn execute(cli: Cli, matches: &ArgMatches) -> Result<(), Exit> {
    environment::refuse_unknown(&Cli::command())?;
    refuse_password_argument(matches)?;
    let human = matches!(cli.command, Command::Dev(_));
    let format = cli.log_format.unwrap_or(if human { LogFormat::Pretty } else { LogFormat::Json });
    let log = telemetry::install(format, &cli.log).map_err(|error| Exit::Usage(format!("--log: {error}")))?;
    let runtime = runtime(&cli.command).enable_all().build().map_err(Exit::failed)?;
    runtime.spawn(log.report_dropped());
    let outcome = runtime.block_on(async {
        if matches!(cli.command, Command::Dev(_) | Command::Serve(_) | Command::Gateway(_)) {
            signal::ignore_hangup()?;
        }
        match cli.command {
            Command::Dev(args) => dev::run(args).await,
            Command::Serve(args) => serve::run(*args).await,
            Command::Gateway(args) => gateway::run(*args).await,
            Command::Migrate(args) => migrate::run(args).await,
            Command::Inspect(args) => inspect::run(args).await,
            Command::Verify(args) => verify::run(args).await,
            Command::Import(args) => import::run(args).await,
            Command::Credentials(args) => credentials::run(args).await,
            Command::Purge(args) => purge::run(args).await,
            Command::Tombstones(args) => tombstones::run(args).await,
            Command::Healthcheck(args) => healthcheck::run(args).await,
        }
    });
    // A connection that stayed silent through the drain must not hold the process.
    runtime.shutdown_background();
    outcome
}

/// One thread is the default: to hand a call over to another thread costs more than the call's own work.
fn runtime(command: &Command) -> Builder {
    let threads = match command {
        Command::Serve(args) => args.worker_threads,
        Command::Gateway(args) => args.worker_threads,
        _ => 1,
    };
    if threads == 1 {
        return Builder::new_current_thread();
    }
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads.into());
    builder
}

/// Every process on a machine can read another's arguments.
fn refuse_password_argument(matches: &ArgMatches) -> Result<(), Exit> {
    let Some((_, mut matches)) = matches.subcommand() else { return Ok(()) };
    loop {
        let given = |id: &str| {
            matches.try_contains_id(id).unwrap_or(false)
                && matches.value_source(id) == Some(ValueSource::CommandLine)
        };
        let redis = if given("redis_url") { matches.get_one::<Secret>("redis_url") } else { None };
        if redis.is_some_and(|url| config::has_password(url.expose())) {
            let message = "--redis-url: a password is not accepted on the command line; give the URL by COLLECTIONS_REDIS_URL";
            return Err(Exit::Usage(message.to_owned()));
        }
        let url = if given("database_url") { matches.get_one::<DatabaseUrl>("database_url") } else { None };
        if url.is_some_and(DatabaseUrl::has_password) {
            let advice =
                "give the URL by COLLECTIONS_DATABASE_URL, or the password by PGPASSWORD or ~/.pgpass";
            return Err(Exit::Usage(format!(
                "--database-url: a password is not accepted on the command line; {advice}"
            )));
        }
        match matches.subcommand() {
            Some((_, deeper)) => matches = deeper,
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
