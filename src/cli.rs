//! The command line, one file a subcommand.

#![allow(
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    rustdoc::invalid_html_tags,
    reason = "the doc comments of flags are their help, which is no Markdown"
)]

mod address;
mod credentials;
mod database;
mod dev;
mod edge;
mod environment;
mod exit;
mod gateway;
mod heading;
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

use clap::{
    ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind, parser::ValueSource,
};
use tokio::runtime::Builder;

use crate::{
    config::{self, DatabaseUrl},
    domain::Secret,
    net::install_crypto_provider,
    telemetry::{self, LogFormat},
};

pub use exit::Exit;
use exit::Invocation;

/// Permanently delete collections owned by the authenticated user: a gRPC service with a Twitter-API-1.1 gateway
#[derive(Debug, Parser)]
#[command(name = "collections-service", version = VERSION, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// The format of log lines and of the error that ends the program
    /// [default: json for serve and gateway, pretty for other commands]
    #[arg(long, global = true, value_enum, value_name = "FORMAT", env = "COLLECTIONS_LOG_FORMAT", help_heading = heading::LOG)]
    log_format: Option<LogFormat>,
    /// Which log lines are written, in the form of `RUST_LOG`
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        default_value = "info,sea_orm_migration=warn,sqlx=error",
        env = "COLLECTIONS_LOG",
        help_heading = heading::LOG
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service on this machine alone, with an embedded database and demo data
    ///
    /// Creates the database, collections of a demo user, and an OAuth application with a token, and prints commands that destroy
    /// some of them. Any caller can name any user, so it serves loopback addresses only.
    Dev(dev::Args),
    /// Run the service
    ///
    /// Serves gRPC callers and, unless `--rest-addr off`, 1.1 clients over REST, until SIGTERM or SIGINT. Then health reports
    /// NOT_SERVING, new calls are refused with UNAVAILABLE, and accepted calls are finished. A second signal ends the process
    /// at once, with exit code 1. It waits, not ready, while the database is unavailable or has an older schema.
    Serve(Box<serve::Args>),
    /// Run the REST gateway in a process of its own, in front of a service elsewhere
    ///
    /// Verifies 1.1 clients against the database of the service, and calls the RPC as a trusted peer with the name in its
    /// certificate. It needs SELECT on the `oauth_` tables and on `seaql_migrations`.
    Gateway(Box<gateway::Args>),
    /// Create the database schema, or print its state
    Migrate(migrate::Args),
    /// Print what the database holds about one collection
    ///
    /// Whether the collection is live or destroyed, when and by which caller, and whether its entries are erased. The exit code
    /// is 1 when the id is unknown, or its rows contradict each other.
    Inspect(inspect::Args),
    /// Check the whole database for rows that contradict each other
    ///
    /// It can run next to a running service. The exit code is 1 when something is found and not fixed.
    Verify(verify::Args),
    /// Import collections and their entries from NDJSON
    ///
    /// A line is rejected or imported whole, and what is committed stays. `deploy/IMPORT.md` describes the format.
    Import(import::Args),
    /// Manage OAuth applications and access tokens
    Credentials(credentials::Args),
    /// Erase the entries of destroyed collections
    ///
    /// Does what `serve` does in the background, until nothing is left of what was destroyed before the command began.
    Purge(purge::Args),
    /// Export tombstones, and apply them to a restored database
    Tombstones(tombstones::Args),
    /// Print the health of a running service
    ///
    /// Calls the gRPC health service of an admin listener. Exit codes: 0 serving, 1 wrong arguments, 2 no connection, 3 the call
    /// failed, 4 not serving.
    Healthcheck(healthcheck::Args),
}

/// The package's version, with the commit that the program was built from where it is known.
const VERSION: &str = if REVISION.is_empty() {
    env!("CARGO_PKG_VERSION")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("COLLECTIONS_REVISION"), ")")
};

/// The commit that the program was built from, or empty.
const REVISION: &str = env!("COLLECTIONS_REVISION");

const EXAMPLES: &str = "Examples:
  collections-service dev
  collections-service serve --help
  collections-service migrate status --database-url postgres://collections@127.0.0.1/collections

Every flag with a variable can be given by that variable. An empty variable counts as not set, and an unknown COLLECTIONS_ variable is an error. Exit codes: 0 done, 2 wrong usage or configuration, 1 any other error; `healthcheck` has its own.";

/// Parses the arguments, runs the command, gives the exit code.
pub fn run() -> ExitCode {
    let command = environment::ignore_empty(Cli::command());
    let invocation = Invocation::of_process();
    install_crypto_provider();
    let parsed =
        command.try_get_matches().and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let outcome = match parsed {
        Ok((cli, matches)) => execute(cli, &matches, invocation.log_format()),
        Err(error) => usage(&error, invocation.log_format()),
    };
    outcome.map_or_else(|exit| exit.report(&invocation), |()| ExitCode::SUCCESS)
}

/// Help, or clap's message about what is wrong. A misspelt variable comes first: it may be why something is missing.
fn usage(error: &clap::Error, format: LogFormat) -> Result<(), Exit> {
    if error.exit_code() != 0 {
        environment::refuse_unknown(&Cli::command())?;
        let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        if format == LogFormat::Json && !is_help {
            return Err(Exit::Usage(on_one_line(&error.to_string())));
        }
    }
    drop(error.print());
    match error.exit_code() {
        0 => Ok(()),
        _ => Err(Exit::Reported),
    }
}

/// What clap reports to be wrong, without the usage that follows.
fn on_one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let wrong = message.split("\nUsage: ").next().unwrap_or(message);
    let wrong = wrong.split("\nFor more information").next().unwrap_or(wrong);
    let paragraphs = wrong.split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    paragraphs.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Writes a line to standard output, which may be closed or full.
fn print(line: impl fmt::Display) -> Result<(), Exit> {
    let mut output = io::stdout().lock();
    let written = writeln!(output, "{line}").and_then(|()| output.flush());
    written.map_err(|error| Exit::Failed(format!("standard output: {error}")))
}

fn execute(cli: Cli, matches: &ArgMatches, format: LogFormat) -> Result<(), Exit> {
    environment::refuse_unknown(&Cli::command())?;
    refuse_password_argument(matches)?;
    let format = cli.log_format.unwrap_or(format);
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
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn a_usage_error_fits_on_one_line() {
        let refused =
            super::Cli::command().try_get_matches_from(["collections-service", "gateway", "--upstrem=x"]);
        let message = super::on_one_line(&refused.unwrap_err().to_string());
        assert_eq!(
            message,
            "unexpected argument '--upstrem' found; tip: a similar argument exists: '--upstream'"
        );
    }
}
