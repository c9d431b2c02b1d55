//! A PgBouncer in front of the test cluster, in its default configuration but for the lines that a test gives.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::wait_until;

pub struct PgBouncer {
    folder: TempDir,
    port: u16,
    server: Child,
}

impl PgBouncer {
    /// `lines` are settings: `pool_mode = transaction`.
    pub async fn start(lines: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if geteuid().is_root() {
            let owner = User::from_name("postgres").unwrap().unwrap();
            chown(folder.path(), Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        fs::write(folder.path().join("users"), "\"tests\" \"\"\n").unwrap();
        configure(folder.path(), port, lines);
        let server = program()
            .arg("-q")
            .arg(folder.path().join("ini"))
            .stderr(Stdio::null())
            .spawn()
            .expect("no PgBouncer: start the tests with tests/run");
        let pooler = Self { folder, port, server };
        pooler.wait().await;
        pooler
    }

    /// The address of a database of the test cluster, through the pooler.
    pub fn url(&self, database: &str) -> String {
        let (_, name) = database.rsplit_once('/').unwrap();
        format!("postgres://tests@127.0.0.1:{}/{name}", self.port)
    }

    /// Changes the settings of the running pooler. It applies them a moment later.
    pub fn reload(&self, lines: &[&str]) {
        configure(self.folder.path(), self.port, lines);
        kill(Pid::from_raw(self.server.id().cast_signed()), Signal::SIGHUP).unwrap();
    }

    /// Whether this version can keep prepared statements in transaction mode.
    pub fn keeps_statements() -> bool {
        let output = Command::new(binary()).arg("--version").output();
        let output = output.expect("no PgBouncer: start the tests with tests/run");
        let text = String::from_utf8(output.stdout).unwrap();
        let version = text.lines().find_map(|line| line.strip_prefix("PgBouncer ")).unwrap();
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap());
        (numbers.next(), numbers.next()) >= (Some(1), Some(21))
    }

    async fn wait(&self) {
        let description =
            format!("PgBouncer, whose log is in {}, accepts a connection", self.folder.path().display());
        let address = ("127.0.0.1", self.port);
        wait_until(&description, async || TcpStream::connect(address).await.is_ok()).await;
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _gone = self.server.kill();
        let _status = self.server.wait();
    }
}

/// Replaces the configuration file.
fn configure(folder: &Path, port: u16, lines: &[&str]) {
    let cluster = std::env::var("TEST_POSTGRES").expect("no PostgreSQL: start the tests with tests/run");
    let (host, cluster_port) = cluster.rsplit_once('@').unwrap().1.rsplit_once(':').unwrap();
    let (users, log) = (folder.join("users"), folder.join("log"));
    let ini = format!(
        "[databases]\n* = host={host} port={cluster_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\nlogfile = {}\n{}\n",
        users.display(),
        log.display(),
        lines.join("\n")
    );
    fs::write(folder.join("ini"), ini).unwrap();
}

/// Another version may be tested than the installed one.
fn binary() -> String {
    std::env::var("TEST_PGBOUNCER").unwrap_or_else(|_| "pgbouncer".to_owned())
}

/// It refuses to run as root.
fn program() -> Command {
    if !geteuid().is_root() {
        return Command::new(binary());
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(binary());
    command
}
