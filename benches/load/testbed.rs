//! What is measured: the database clusters, the service's processes on them, and one measurement of each kind.

use std::{fs, path::Path, process::Command};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;

use crate::{
    Args, Kind, Result, Window, closed,
    cluster::Cluster,
    contest::{self, Contested},
    data::{Data, Spread},
    grpc::{Checks, Destroys},
    measure::Measured,
    open::{self, Opened},
    pgbench, rest,
    service::{Program, Service},
    usage::Processes,
};

/// More than any machine does in a second, of two cores at least; where it does more, its measurement ends early.
const MOST: usize = 60_000;
/// The same of one caller, and of signed requests, which take time and memory to sign beforehand.
const MOST_OF_ONE: usize = 20_000;
const MOST_SIGNED: usize = 30_000;

pub struct Testbed {
    pub window: Window,
    program: Program,
    cluster: Cluster,
    postgres: Target,
    /// With batches, and with batches of one.
    sqlite: [Option<Target>; 2],
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
        let service = program.serve(&cluster.url(), &[])?;
        let processes = Processes::with_own_load(service.pid(), Some(cluster.pid()));
        let postgres = Target { service, data: Data::open(&cluster.url()).await?, processes, _folder: None };
        let mut sqlite = [None, None];
        for (place, (kind, flags)) in
            [(Kind::GrpcSqlite, &[][..]), (Kind::GrpcSqliteSingle, &["--batch-max", "1"])]
                .into_iter()
                .enumerate()
        {
            if kinds.contains(&kind) {
                sqlite[place] = Some(Target::on_sqlite(&program, &args.folder, flags).await?);
            }
        }
        let window = Window::of(args);
        Ok(Self { window, program, cluster, postgres, sqlite })
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
        })
    }

    /// Measures one kind of the table once.
    pub async fn measure(&self, kind: Kind, callers: usize) -> Result<Measured> {
        let target = match kind {
            Kind::GrpcSqlite => self.sqlite[0].as_ref(),
            Kind::GrpcSqliteSingle => self.sqlite[1].as_ref(),
            _ => Some(&self.postgres),
        };
        let target = target.ok_or("SQLite was not asked for")?;
        let Target { service, data, processes, .. } = target;
        let window = self.window;
        let most = if matches!(kind, Kind::RestPostgres | Kind::RestH2Postgres) { MOST_SIGNED } else { MOST };
        let spread = Spread::over(callers, self.rows((MOST_OF_ONE * callers).min(most) as f64));
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
        data.fill(spread.rows()).await?;
        let (measured, good) = match kind {
            Kind::Pgbench => pgbench::run(&self.cluster, data, spread, window).await?,
            Kind::RestPostgres => rest::measure(service, spread, window, processes).await?,
            Kind::RestH2Postgres => {
                closed::measure(&service.rest, rest::Signed::over(service, spread)?, window, processes)
                    .await?
            }
            _ => {
                closed::measure(&service.grpc, Destroys::over(&service.grpc, spread), window, processes)
                    .await?
            }
        };
        target.settle(good).await?;
        Ok(measured)
    }

    /// An open loop at this rate.
    pub async fn open(&self, rate: f64) -> Result<Opened> {
        let Target { service, data, processes, .. } = &self.postgres;
        let spread = Spread::over(closed::CALLERS, self.rows(rate));
        data.fill(spread.rows()).await?;
        let before = service.peak_memory_mb()?;
        let (opened, good) = open::measure(&service.grpc, rate, spread, self.window, processes).await?;
        if opened.others.is_empty() {
            self.postgres.settle(good).await?;
        }
        Ok(Opened { memory_mb: [before, service.peak_memory_mb()?], ..opened })
    }

    /// A second process beside the first. There is work for about as long as a measurement takes at this rate.
    pub async fn contest(&self, rate: f64) -> Result<Contested> {
        let second = self.program.serve(&self.cluster.url(), &[])?;
        let Target { service, data, .. } = &self.postgres;
        let rows = (rate * self.window.measured.as_secs_f64()) as usize;
        contest::measure([&service.grpc, &second.grpc], data, rows, || self.cluster.log()).await
    }

    /// So many rows that they do not run out at this rate.
    fn rows(&self, rate: f64) -> usize {
        let seconds = (self.window.warm_up + self.window.measured).as_secs_f64() + 1.0;
        (rate * seconds) as usize
    }
}

impl Target {
    async fn on_sqlite(program: &Program, below: &Path, flags: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("load-sqlite-").tempdir_in(below)?;
        let url = format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
        let service = program.serve(&url, flags)?;
        let processes = Processes::with_own_load(service.pid(), None);
        Ok(Self { service, data: Data::open(&url).await?, processes, _folder: Some(folder) })
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

/// Whether this program can be told how large its batches are.
pub fn has_batch_flag(binary: &Path) -> Result<bool> {
    let help = Command::new(binary).args(["serve", "--help"]).output()?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--batch-max"))
}
