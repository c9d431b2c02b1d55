//! A PostgreSQL cluster of a test's own, which it may stop, freeze and start again.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection,
    sqlx::{Connection, PgConnection},
};
use tempfile::TempDir;

use super::{wait_for, wait_until};

pub struct Cluster {
    folder: TempDir,
    port: u16,
    server: Child,
}

impl Cluster {
    pub async fn start() -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        let made = program("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "tests", "--auth=trust", "--no-sync"])
            .output();
        assert!(made.unwrap().status.success(), "initdb failed");
        Self::run(folder).await
    }

    /// A streaming standby of this server, which from now on acknowledges a commit only once the standby has it on disk.
    pub async fn start_standby(&self) -> Self {
        let folder = folder();
        let made = program("pg_basebackup")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "tests", "-D"])
            .arg(folder.path().join("data"))
            .args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"])
            .output()
            .unwrap();
        assert!(made.status.success(), "pg_basebackup failed: {}", String::from_utf8_lossy(&made.stderr));
        let standby = Self::run(folder).await;
        let primary = self.admin().await;
        // After the backup, so that the standby does not wait for one of its own once it is promoted.
        for change in ["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"] {
            primary.execute_unprepared(change).await.unwrap();
        }
        wait_for(
            &primary,
            "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'",
        )
        .await;
        standby
    }

    /// Ends the recovery of a standby; returns once it accepts writes.
    pub async fn promote(&self) {
        let standby = self.admin().await;
        standby.execute_unprepared("SELECT pg_promote(wait => false)").await.unwrap();
        wait_for(&standby, "SELECT 1 WHERE NOT pg_is_in_recovery()").await;
    }

    async fn run(folder: TempDir) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = spawn(&folder, port);
        let cluster = Self { folder, port, server };
        cluster.wait().await;
        cluster
    }

    /// A connection to the database `postgres`.
    pub async fn admin(&self) -> DatabaseConnection {
        Database::connect(format!("{}/postgres", self.url())).await.unwrap()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its socket is.
    pub fn socket_folder(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    pub fn url(&self) -> String {
        format!("postgres://tests@127.0.0.1:{}", self.port)
    }

    /// Ends every session and the server, as an operator's fast shutdown does.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGINT);
        self.server.wait().unwrap();
    }

    /// Ends the server without a checkpoint, as an immediate shutdown does: the next start recovers from the log.
    pub fn crash(&mut self) {
        self.signal(Signal::SIGQUIT);
        self.server.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        self.server = spawn(&self.folder, self.port);
        self.wait().await;
    }

    /// Every process of the server stands still: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        self.signal_sessions(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal_sessions(Signal::SIGCONT);
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.server.id().cast_signed()), signal).unwrap();
    }

    fn signal_sessions(&self, signal: Signal) {
        for child in self.children() {
            kill(child, signal).unwrap();
        }
    }

    /// Signals the process that receives a standby's log.
    pub fn signal_receiver(&self, signal: Signal) {
        let is_receiver = |child: &Pid| {
            let title = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            title.contains("walreceiver")
        };
        kill(self.children().into_iter().find(is_receiver).expect("a WAL receiver"), signal).unwrap();
    }

    fn children(&self) -> Vec<Pid> {
        let pid = self.server.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(|child| Pid::from_raw(child.parse().unwrap())).collect()
    }

    /// Waits until it accepts a connection.
    async fn wait(&self) {
        let url = format!("{}/postgres", self.url());
        wait_until("the cluster accepts a connection", async || match PgConnection::connect(&url).await {
            Ok(connection) => {
                connection.close().await.unwrap();
                true
            }
            Err(_starting) => false,
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let server = Pid::from_raw(self.server.id().cast_signed());
        for signal in [Signal::SIGCONT, Signal::SIGQUIT] {
            // It may have been stopped already.
            let _gone = kill(server, signal);
        }
        let _status = self.server.wait();
    }
}

/// A folder of the user that runs the server.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if geteuid().is_root() {
        let owner = User::from_name("postgres").unwrap().unwrap();
        chown(folder.path(), Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
    }
    folder
}

fn spawn(folder: &TempDir, port: u16) -> Child {
    program("postgres")
        .arg("-D")
        .arg(folder.path().join("data"))
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k"])
        .arg(folder.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// One of PostgreSQL's programs, which refuse to run as root.
fn program(name: &str) -> Command {
    let folder = std::env::var("TEST_POSTGRES_BIN").expect("no PostgreSQL: start the tests with tests/run");
    let path = PathBuf::from(folder).join(name);
    if !geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
    command
}
