//! The program under test, as a process of its own.

use std::{
    cell::Cell,
    fs::{self, OpenOptions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use collections_service::{
    domain::{Entropy, Secret},
    store::KeyRing,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::Result;

/// What signs REST requests: an application, and a token of each user.
pub struct Signer {
    pub consumer: (String, Secret),
    /// Of the users from 1 on.
    tokens: Vec<(String, Secret)>,
}

/// The program, with a folder for its logs and the keys that open its credentials.
pub struct Program {
    binary: PathBuf,
    folder: TempDir,
    started: Cell<usize>,
}

pub struct Service {
    child: Child,
    log: PathBuf,
    pub grpc: String,
    pub rest: String,
}

impl Signer {
    pub fn token(&self, user: i64) -> &(String, Secret) {
        &self.tokens[user as usize - 1]
    }
}

impl Program {
    pub fn new(binary: &Path, below: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("load-service-").tempdir_in(below)?;
        let program = Self { binary: binary.to_owned(), folder, started: Cell::new(0) };
        fs::write(program.key(), KeyRing::generate_line("bench", &Entropy::default()).as_bytes())?;
        fs::set_permissions(program.key(), fs::Permissions::from_mode(0o600))?;
        Ok(program)
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    fn command(&self, url: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("COLLECTIONS_DATABASE_URL", url);
        command.env("COLLECTIONS_CREDENTIALS_KEY_FILE", self.key()).stdin(Stdio::null());
        command
    }

    fn ask(&self, url: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(url, arguments).output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} failed: {said}", arguments.join(" ")).into())
    }

    /// Makes credentials by the command line, which takes some ten milliseconds a user.
    pub fn signer(&self, url: &str, users: i64) -> Result<Signer> {
        let consumer = pair(&self.ask(url, &["credentials", "create-app", "--name", "bench"])?)?;
        let token = |user: i64| {
            let user = user.to_string();
            let issue = ["credentials", "issue-token", "--consumer-key", &consumer.0, "--user", &user];
            pair(&self.ask(url, &issue)?)
        };
        let tokens = (1..=users).map(token).collect::<Result<_>>()?;
        Ok(Signer { consumer, tokens })
    }

    /// Migrates the database, and serves.
    pub fn serve(&self, url: &str, flags: &[&str]) -> Result<Service> {
        self.ask(url, &["migrate", "up"])?;
        self.started.update(|started| started + 1);
        // A file: reading a pipe would cost the benchmark time that is not the service's.
        let log = self.folder.path().join(format!("log-{}", self.started.get()));
        let file = OpenOptions::new().append(true).create(true).open(&log)?;
        let free = "127.0.0.1:0";
        let child = self
            .command(url, &["serve", "--insecure-identity", "--rate-limit", "0"])
            .args(["--grpc-addr", free, "--rest-addr", free, "--admin-addr", free])
            .args(flags)
            // Ctrl-C on a terminal must not reach it: it ends when the benchmark says so.
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()?;
        let mut service = Service { child, log, grpc: String::new(), rest: String::new() };
        service.wait()?;
        Ok(service)
    }
}

impl Service {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Empties the log, so that it does not grow with every round.
    pub fn forget_log(&self) -> Result<()> {
        Ok(OpenOptions::new().write(true).open(&self.log)?.set_len(0)?)
    }

    /// The most memory it ever had.
    pub fn peak_memory_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.split_whitespace().nth(1).ok_or("no VmHWM")?.parse::<f64>()? / 1024.0)
    }

    fn wait(&mut self) -> Result<()> {
        for _ in 0..500 {
            let log = fs::read_to_string(&self.log)?;
            if let Some(line) = log.lines().find(|line| line.contains("\"serving\"") && line.ends_with('}')) {
                let serving: serde_json::Value = serde_json::from_str(line)?;
                let address = |name: &str| serving[name].as_str().unwrap_or_default().to_owned();
                (self.grpc, self.rest) = (address("grpc"), address("rest"));
                return Ok(());
            }
            if self.child.try_wait()?.is_some() {
                return Err(format!("serve ended: {log}").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err("serve did not come up".into())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _gone = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _status = self.child.wait();
    }
}

/// A key and its secret, as `credentials` prints them: a line each, the value last.
fn pair(printed: &str) -> Result<(String, Secret)> {
    let mut values = printed.lines().filter_map(|line| line.split_whitespace().last());
    match (values.next(), values.next()) {
        (Some(key), Some(secret)) => Ok((key.to_owned(), Secret::from(secret.to_owned()))),
        _ => Err(format!("not a key and its secret: {printed}").into()),
    }
}
