//! A PostgreSQL cluster of a test's own, which it may stop, freeze and start again.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use sea_orm::Database;
use tempfile::TempDir;

pub struct Cluster {
    folder: TempDir,
    port: u16,
    server: Child,
}

impl Cluster {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        if geteuid().is_root() {
            let owner = User::from_name("postgres").unwrap().unwrap();
            chown(folder.path(), Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
        }
        let data = folder.path().join("data");
        let made = program("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "tests", "--auth=trust", "--no-sync"])
            .output();
        assert!(made.unwrap().status.success(), "initdb failed");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = spawn(&folder, port);
        let cluster = Self { folder, port, server };
        cluster.wait().await;
        cluster
    }

    pub fn url(&self) -> String {
        format!("postgres://tests@127.0.0.1:{}", self.port)
    }

    /// Ends every session and the server, as an operator's fast shutdown does.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGINT);
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
        let pid = self.server.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        for child in children.split_whitespace() {
            kill(Pid::from_raw(child.parse().unwrap()), signal).unwrap();
        }
    }

    async fn wait(&self) {
        for _ in 0..100 {
            if let Ok(connection) = Database::connect(format!("{}/postgres", self.url())).await {
                connection.close().await.unwrap();
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the cluster did not come up");
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
