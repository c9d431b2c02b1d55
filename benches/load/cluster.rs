//! A PostgreSQL cluster of the benchmark's own, as durable as in production.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use tempfile::TempDir;

use crate::Result;

/// The database that the cluster begins with.
pub const DATABASE: &str = "bench";

/// As many segments of the write-ahead log as `min_wal_size` keeps are made beforehand. A server that has been up for a day
/// uses old ones again; a new one would make another every second, and each time all commits would wait for 16 MB.
const SEGMENTS: &str = "DO $$ BEGIN FOR segment IN 1..64 LOOP \
    PERFORM pg_logical_emit_message(false, 'load', ''), pg_switch_wal(); END LOOP; END $$";

/// What differs from PostgreSQL's defaults. Durability is spelt out, because it is what a destroy costs. Neither a
/// checkpoint nor autovacuum may fall into one measurement and not into the other: the benchmark asks for both itself.
const SETTINGS: [&str; 10] = [
    // Holds two tables of the benchmark's size, as a server in production is given a quarter of its memory. With the default
    // of 128 MB, much of a scattered destroy is copying pages from and to the operating system.
    "shared_buffers=1GB",
    "fsync=on",
    // Sooner than the service's batches give up waiting for a lock, or no deadlock would ever be seen.
    "deadlock_timeout=50ms",
    "synchronous_commit=on",
    "full_page_writes=on",
    "max_connections=1200",
    "max_wal_size=16GB",
    "min_wal_size=1GB",
    "checkpoint_timeout=1h",
    "autovacuum=off",
];

pub struct Cluster {
    folder: TempDir,
    bin: PathBuf,
    port: u16,
    server: Child,
}

impl Cluster {
    /// Makes a cluster in a folder below this one, and starts it.
    pub fn start(below: &Path) -> Result<Self> {
        let bin = programs()?;
        let folder = tempfile::Builder::new().prefix("load-postgres-").tempdir_in(below)?;
        if geteuid().is_root() {
            let owner = User::from_name("postgres")?
                .ok_or("PostgreSQL refuses to run as root, and there is no user postgres")?;
            chown(folder.path(), Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
        }
        let data = folder.path().join("data");
        let made = server_program(&bin.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-U", "bench", "--auth=trust", "--no-sync"])
            .output()?;
        if !made.status.success() {
            return Err(format!("initdb failed: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let server = server_program(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k"])
            .arg(folder.path())
            .args(SETTINGS.iter().flat_map(|setting| ["-c", setting]))
            .stderr(fs::File::create(folder.path().join("log"))?)
            .spawn()?;
        let cluster = Self { folder, bin, port, server };
        cluster.wait_and_create()?;
        cluster.run(
            "psql",
            &["-X", "-v", "ON_ERROR_STOP=1", "-d", DATABASE, "-q", "-c", SEGMENTS, "-c", "CHECKPOINT"],
        )?;
        Ok(cluster)
    }

    /// The URL of one of the cluster's databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://bench@127.0.0.1:{}/{database}", self.port)
    }

    pub fn create_database(&self, name: &str) -> Result<()> {
        self.run("createdb", &[name])
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// One of the programs that come with the server.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// What the server has written so far.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.path().join("log"))?)
    }

    fn wait_and_create(&self) -> Result<()> {
        let mut tries = 0;
        while let Err(error) = self.create_database(DATABASE) {
            tries += 1;
            if tries == 100 {
                return Err(format!("PostgreSQL did not come up: {error}{}", self.log()?).into());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// One of PostgreSQL's own clients.
    fn run(&self, name: &str, args: &[&str]) -> Result<()> {
        let port = self.port.to_string();
        let mut command = Command::new(self.program(name));
        let ended = command.args(["-h", "127.0.0.1", "-p", &port, "-U", "bench"]).args(args).output()?;
        if ended.status.success() {
            return Ok(());
        }
        Err(format!("{name}: {}", String::from_utf8_lossy(&ended.stderr)).into())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // An immediate shutdown: nobody needs the data any more.
        let _gone = kill(Pid::from_raw(self.server.id().cast_signed()), Signal::SIGQUIT);
        let _status = self.server.wait();
    }
}

/// The folder with the newest PostgreSQL's programs.
fn programs() -> Result<PathBuf> {
    let version = |bin: &PathBuf| -> Option<u32> { bin.parent()?.file_name()?.to_str()?.parse().ok() };
    let complete =
        |bin: &PathBuf| ["initdb", "postgres", "pgbench"].iter().all(|name| bin.join(name).exists());
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = installed.map(|entry| entry.path().join("bin")).filter(complete).max_by_key(version);
    if let Some(bin) = debian {
        return Ok(bin);
    }
    let asked = Command::new("pg_config").arg("--bindir").output();
    let bin = asked
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|bin| PathBuf::from(bin.trim()));
    const MISSING: &str = "no PostgreSQL with pgbench was found, neither in /usr/lib/postgresql nor by pg_config; \
                           tests/run installs it";
    bin.filter(complete).ok_or_else(|| MISSING.into())
}

/// PostgreSQL refuses to run as root. Ctrl-C on a terminal must not reach it: it ends when the benchmark says so.
fn server_program(path: &Path) -> Command {
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    command
}
