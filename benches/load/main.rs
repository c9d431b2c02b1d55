//! The load that the service can bear, compared with PostgreSQL alone: `cargo bench --bench load`.
//!
//! Everything runs on this machine: a PostgreSQL cluster of the benchmark's own, the service as a process, and the load.
//! In each round all kinds are measured in turns (A B, then B A), so that a machine which is slow for a while is slow for
//! all of them, and none is always the first. The table has medians over the rounds, and ratios that were taken round by
//! round.
//!
//! Callers ask as many users do: each call for an id far from the one before in a table of millions of rows, on behalf of
//! its owner, whom gRPC names in `x-user-id` and REST by a token of that user. A database is filled once; before each
//! measurement the rows that the one before destroyed are put back, so that all begin with the same rows and no tombstones.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark"
)]

mod closed;
mod cluster;
mod contest;
mod data;
mod grpc;
mod http2;
mod ids;
mod kind;
mod locked;
mod measure;
mod open;
mod pgbench;
mod plot;
mod progress;
mod report;
mod rest;
mod results;
mod service;
mod targets;
mod testbed;
mod usage;

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};

use ids::Order;
use kind::Kind;
use progress::Progress;
use results::Results;
use testbed::Testbed;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The load that the service can bear, compared with pgbench with one statement a destroy on the same machine.
///
/// It starts a PostgreSQL cluster of its own, which tests/run installs, and the service on it and on SQLite. It writes
/// load.md, load.json and load.svg, and prints the first. All of it takes some twenty minutes. The table has three million
/// rows in PostgreSQL and 300,000 in SQLite, or more where a measurement needs them.
#[derive(Debug, Parser)]
#[command(name = "load", bin_name = "cargo bench --bench load --")]
struct Args {
    /// What to measure, with commas; all of it unless said
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// How many callers there are, each with one call in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 256, 1024], value_parser = callers)]
    callers: Vec<usize>,
    /// How often everything is measured, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How many seconds each measurement takes
    #[arg(long, default_value_t = 3.0, value_parser = positive)]
    seconds: f64,
    /// How many seconds the load is on before. A checkpoint precedes it, and PostgreSQL logs the first change of each page
    /// after that with the whole page: the longer the warm-up, the fewer of those are measured
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    warm_up: f64,
    /// Only an open loop with so many calls a second, on PostgreSQL: by a schedule, whatever became of those before
    #[arg(long, conflicts_with_all = ["only", "callers", "versus"], value_parser = positive)]
    rate: Option<f64>,
    /// In which order the ids are asked for
    #[arg(long, value_enum, default_value_t = Order::Scattered)]
    ids: Order,
    /// Measure this program too, in turns, each as grpc-postgres on a database of its own; shows the ratios
    #[arg(long, value_name = "BINARY")]
    versus: Option<PathBuf>,
    /// Show the CPU time that a call costs the load generator, the service and PostgreSQL, and its write-ahead log
    #[arg(long)]
    cpu: bool,
    /// Where load.md, load.json and load.svg are written
    #[arg(long, default_value = "target/load")]
    output: PathBuf,
    /// The program to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_collections-service"), hide_default_value = true)]
    binary: PathBuf,
    /// Where the databases are: on a disk, or durability costs nothing
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// When a measurement counts.
#[derive(Clone, Copy, Debug)]
struct Window {
    warm_up: Duration,
    measured: Duration,
}

impl Window {
    fn of(args: &Args) -> Self {
        let [warm_up, measured] = [args.warm_up, args.seconds].map(Duration::from_secs_f64);
        Self { warm_up, measured }
    }

    /// How many calls there are at this rate at most.
    fn calls(self, rate: f64) -> usize {
        let seconds = (self.warm_up + self.measured).as_secs_f64() + 1.0;
        (rate * seconds) as usize
    }
}

/// The service refuses more calls in flight unless it is told otherwise.
fn callers(text: &str) -> std::result::Result<usize, String> {
    let callers = text.parse().ok().filter(|callers| (1..=1024).contains(callers));
    callers.ok_or_else(|| "expected 1 to 1024".to_owned())
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.001..=1e6).contains(value));
    value.ok_or_else(|| "expected a number above zero".to_owned())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum }).unwrap();
    // One thread: what the load generator takes is missing for the service.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = LocalSet::new().block_on(&runtime, async {
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(|kind| signal(kind).unwrap());
        let [interrupt, terminate, hangup] = &mut signals;
        // Whatever was started is ended as its owner is dropped, here too.
        tokio::select! {
            outcome = run(&args) => outcome,
            _ = interrupt.recv() => Err("interrupted".into()),
            _ = terminate.recv() => Err("terminated".into()),
            _ = hangup.recv() => Err("hung up".into()),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is to be measured, in order.
fn kinds(args: &Args) -> Result<Vec<Kind>> {
    if args.rate.is_some() {
        return Ok(vec![Kind::GivenRate]);
    }
    let mut kinds = if args.only.is_empty() { Kind::value_variants().to_vec() } else { args.only.clone() };
    if args.versus.is_some() {
        kinds.extend([Kind::GrpcPostgres, Kind::GrpcVersus]);
    }
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.contains(&Kind::GrpcSqliteSingle) && !testbed::has_batch_flag(&args.binary)? {
        if !args.only.is_empty() {
            return Err("grpc-sqlite-single: this program cannot be told to make batches of one".into());
        }
        kinds.retain(|kind| *kind != Kind::GrpcSqliteSingle);
    }
    let needs_maximum = |kind: &Kind| matches!(kind, Kind::HalfLoad | Kind::Overload | Kind::TwoProcesses);
    if kinds.iter().any(needs_maximum) && !kinds.contains(&Kind::GrpcPostgres) {
        return Err(
            "two-processes, half-load and overload begin with what grpc-postgres bears: measure that too"
                .into(),
        );
    }
    Ok(kinds)
}

async fn run(args: &Args) -> Result<()> {
    let kinds = kinds(args)?;
    let rounds = usize::from(args.rounds);
    let in_round: usize =
        kinds.iter().map(|kind| if kind.has_callers() { args.callers.len() } else { 1 }).sum();
    let testbed = Testbed::start(args, &kinds).await?;
    let mut results = Results::new(testbed.environment(args)?, args.rounds, args.seconds);
    // To put the rows back and make them durable takes about as long again as a short measurement.
    let each = Duration::from_secs_f64(args.warm_up + args.seconds + 2.5);
    let mut progress = Progress::begin(rounds * in_round, each);
    for round in 1..=rounds {
        for callers in &args.callers {
            let mut turns: Vec<Kind> = kinds.iter().copied().filter(|kind| kind.has_callers()).collect();
            if round % 2 == 0 {
                turns.reverse();
            }
            for kind in turns {
                progress.say(&format!("round {round}, {callers} callers: {}", kind.short_label()));
                let measured = testbed.measure(kind, *callers).await;
                let measured = measured
                    .map_err(|error| format!("{}, {callers} callers: {error}", kind.short_label()))?;
                results.add((kind, *callers), measured);
                progress.done();
            }
        }
    }
    // These begin with what the service can bear.
    let maximum = results.maximum();
    for round in 1..=rounds {
        for kind in kinds.iter().filter(|kind| !kind.has_callers()) {
            progress.say(&format!("round {round}: {}", kind.short_label()));
            let rate = match kind {
                Kind::GivenRate => args.rate,
                Kind::HalfLoad => maximum.map(|maximum| maximum / 2.0),
                Kind::Overload => maximum.map(|maximum| maximum * 3.0),
                _ => maximum,
            };
            let rate = rate.ok_or("no rate is known")?;
            if *kind == Kind::TwoProcesses {
                results.two_processes.push(testbed.contest(rate).await?);
            } else {
                results.open.entry(*kind).or_default().push(testbed.open(rate).await?);
            }
            progress.done();
        }
    }
    drop(progress);
    write(args, &results)
}

fn write(args: &Args, results: &Results) -> Result<()> {
    let markdown = report::markdown(results, args.cpu);
    print!("{markdown}");
    fs::create_dir_all(&args.output)?;
    fs::write(args.output.join("load.md"), markdown)?;
    fs::write(args.output.join("load.json"), report::json(results)?)?;
    if !results.closed.is_empty() {
        fs::write(args.output.join("load.svg"), plot::svg(results)?)?;
    }
    Ok(())
}
