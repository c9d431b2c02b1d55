//! What is measured: the database clusters, the service's processes on them, and one measurement of each kind.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;

use crate::{
    Args, Kind, Result, Window, closed,
    cluster::{Cluster, DATABASE},
    contest::{self, Contested},
    data::Data,
    grpc::{Checks, Destroys},
    ids::{Spread, Table},
    locked::LockedRow,
    measure::Measured,
    open::{self, Opened},
    pgbench, rest,
    service::{Program, Service, Signer},
    usage::Processes,
};

/// More than any machine does in a second, of two cores at least; where it does more, its measurement ends early.
const MOST: usize = 60_000;
/// The same of one caller, and of signed requests, which take time and memory to sign beforehand.
const MOST_OF_ONE: usize = 20_000;
const MOST_SIGNED: usize = 30_000;
/// Rows of `collections` at least; fewer on SQLite, which takes longer to fill.
const ROWS: usize = 3_000_000;
const ROWS_SQLITE: usize = 300_000;

pub struct Testbed {
    pub window: Window,
    program: Program,
    /// Of `--versus`: its folder has the log and the key.
    _other_program: Option<Program>,
    cluster: Cluster,
    postgres: Target,
    /// For kinds that have a service of their own.
    others: BTreeMap<Kind, Target>,
    /// Signs REST requests.
    signer: Option<Signer>,
}

/// The service on a database.
struct Target {
    service: Service,
    data: Data,
    processes: Processes,
    _folder: Option<TempDir>,
}

/// What the figures belong to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Environment {
    pub program: String,
    pub postgres: String,
    pub processor: String,
    pub cores: usize,
    pub kernel: String,
    pub postgres_table: Table,
    pub sqlite_table: Table,
}

impl Testbed {
    pub async fn start(args: &Args, kinds: &[Kind]) -> Result<Self> {
        if statfs(&args.folder)?.filesystem_type() == TMPFS_MAGIC {
            return Err(format!(
                "--folder {}: is in memory, where durability costs nothing",
                args.folder.display()
            )
            .into());
        }
        let (program, cluster) = (Program::new(&args.binary, &args.folder)?, Cluster::start(&args.folder)?);
        let postgres = Target::on_postgres(&program, &cluster, DATABASE, args).await?;
        let mut others = BTreeMap::new();
        for (kind, flags) in [(Kind::GrpcSqlite, &[][..]), (Kind::GrpcSqliteSingle, &["--batch-max", "1"])] {
            if kinds.contains(&kind) {
                others.insert(kind, Target::on_sqlite(&program, args, flags).await?);
            }
        }
        let other = args.versus.as_ref().map(|binary| Program::new(binary, &args.folder)).transpose()?;
        if let Some(other) = &other {
            cluster.create_database("versus")?;
            others.insert(Kind::GrpcVersus, Target::on_postgres(other, &cluster, "versus", args).await?);
        }
        let signer = if kinds.iter().any(|kind| kind.is_signed()) {
            Some(program.signer(&cluster.url(DATABASE), postgres.data.table.owners())?)
        } else {
            None
        };
        let window = Window::of(args);
        Ok(Self { window, program, _other_program: other, cluster, postgres, others, signer })
    }

    pub fn environment(&self, args: &Args) -> Result<Environment> {
        let said = |command: &mut Command| -> Result<String> {
            Ok(String::from_utf8(command.output()?.stdout)?.trim().to_owned())
        };
        let processors = fs::read_to_string("/proc/cpuinfo")?;
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Environment {
            program: said(Command::new(&args.binary).arg("--version"))?,
            postgres: said(Command::new(self.cluster.program("postgres")).arg("--version"))?,
            processor: model.map_or_else(|| "an unnamed processor".to_owned(), |(_, model)| model.to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            postgres_table: postgres_table(args),
            sqlite_table: sqlite_table(args),
        })
    }

    /// Measures one kind of the table once.
    pub async fn measure(&self, kind: Kind, callers: usize) -> Result<Measured> {
        let target = self.others.get(&kind).unwrap_or(&self.postgres);
        let Target { service, data, processes, .. } = target;
        let window = self.window;
        let most = if kind.is_signed() { MOST_SIGNED } else { MOST };
        let calls = window.calls((MOST_OF_ONE * callers).min(most) as f64);
        let spread = Spread::over(data.table, callers, calls);
        if kind == Kind::Health {
            return Ok(closed::measure(
                &service.grpc,
                Checks::over(&service.grpc, callers),
                window,
                processes,
            )
            .await?
            .0);
        }
        data.reset().await?;
        let rest = self.signer.as_ref().map(|signer| (service.rest.as_str(), signer));
        let (measured, good) = match (kind, rest) {
            (Kind::Pgbench, _) => pgbench::run(&self.cluster, data, spread, window).await?,
            (Kind::RestPostgres, Some(rest)) => rest::measure(rest, spread, window, processes).await?,
            (Kind::RestH2Postgres, Some(rest)) => {
                closed::measure(rest.0, rest::Signed::over(rest, spread)?, window, processes).await?
            }
            _ => {
                let locked = match kind {
                    Kind::GrpcLockedRow => Some(LockedRow::new(&service.grpc, data).await?),
                    _ => None,
                };
                let calls = Destroys::over(&service.grpc, spread);
                let measured = closed::measure(&service.grpc, calls, window, processes).await?;
                if let Some(locked) = locked {
                    locked.remove(data).await?;
                }
                measured
            }
        };
        target.settle(good).await?;
        Ok(measured)
    }

    /// An open loop at this rate.
    pub async fn open(&self, rate: f64) -> Result<Opened> {
        let Target { service, data, processes, .. } = &self.postgres;
        let spread = Spread::over(data.table, closed::CALLERS, self.window.calls(rate));
        data.reset().await?;
        let before = service.peak_memory_mb()?;
        let (opened, good) = open::measure(&service.grpc, rate, spread, self.window, processes).await?;
        if opened.others.is_empty() {
            self.postgres.settle(good).await?;
        }
        Ok(Opened { memory_mb: [before, service.peak_memory_mb()?], ..opened })
    }

    /// Two processes on one database. There is work for about as long as a measurement takes at this rate.
    pub async fn contest(&self, rate: f64) -> Result<Contested> {
        let second = self.program.serve(&self.cluster.url(DATABASE), &[])?;
        let Target { service, data, .. } = &self.postgres;
        let calls = (rate * self.window.measured.as_secs_f64()) as usize;
        contest::measure([&service.grpc, &second.grpc], data, calls, || self.cluster.log()).await
    }
}

impl Target {
    async fn on_postgres(program: &Program, cluster: &Cluster, database: &str, args: &Args) -> Result<Self> {
        let url = cluster.url(database);
        let service = program.serve(&url, &[])?;
        let data = Data::open(&url, postgres_table(args)).await?;
        let processes = Processes::with_own_load(service.pid(), Some(cluster.pid()), data.clone());
        Ok(Self { service, data, processes, _folder: None })
    }

    async fn on_sqlite(program: &Program, args: &Args, flags: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("load-sqlite-").tempdir_in(&args.folder)?;
        let url = format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
        let service = program.serve(&url, flags)?;
        let data = Data::open(&url, sqlite_table(args)).await?;
        let processes = Processes::with_own_load(service.pid(), None, data.clone());
        Ok(Self { service, data, processes, _folder: Some(folder) })
    }

    /// Every good answer has left its tombstone, and nothing else has.
    async fn settle(&self, good: u64) -> Result<()> {
        self.service.forget_log()?;
        let tombstones = self.data.tombstones().await?;
        if tombstones == good {
            Ok(())
        } else {
            Err(format!("{good} destroyed, and {tombstones} tombstones").into())
        }
    }
}

/// The table in PostgreSQL: its rows suffice for an overload too.
fn postgres_table(args: &Args) -> Table {
    let most = args.rate.unwrap_or(3.0 * MOST as f64);
    Table { rows: ROWS.max(Window::of(args).calls(most)) as i64, order: args.ids }
}

fn sqlite_table(args: &Args) -> Table {
    Table { rows: ROWS_SQLITE.max(Window::of(args).calls(MOST as f64)) as i64, order: args.ids }
}

/// Whether this program can be told how large its batches are.
pub fn has_batch_flag(binary: &Path) -> Result<bool> {
    let help = Command::new(binary).args(["serve", "--help"]).output()?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--batch-max"))
}
