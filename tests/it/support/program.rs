//! The real binary in a process of its own.

use std::{
    path::Path,
    process::{ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
};

use super::{TestDatabase, wait_until};

pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
    stall: Arc<Notify>,
    pub grpc: String,
    pub rest: String,
    pub admin: String,
}

/// The binary, without the `COLLECTIONS_` and `OTEL_` variables of the environment. A file that may not grow fails it, and does not kill it.
pub fn command(arguments: &[&str]) -> Command {
    command_after("trap '' XFSZ", arguments)
}

/// The same, after this command of the shell.
fn command_after(setup: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("{setup}; exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_collections-service")]);
    let is_ours = |name: &str| name.starts_with("COLLECTIONS_") || name.starts_with("OTEL_");
    for (name, _) in std::env::vars().filter(|(name, _)| is_ours(name)) {
        command.env_remove(name);
    }
    command.args(arguments).kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Runs the binary to its end: exit code, standard output, standard error.
pub async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let running = command(arguments).envs(variables.iter().copied()).output();
    let output: Output = tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

impl Program {
    /// Starts `serve` on free ports; returns once it has logged that it serves.
    pub async fn serve(database: &TestDatabase, more: &[&str]) -> Self {
        let serve = ["serve", "--insecure-identity", "--grpc-addr", "127.0.0.1:0"];
        Self::start(database, &[&serve, more].concat()).await
    }

    /// Starts `serve` for authenticated callers only.
    pub async fn serve_strictly(database: &TestDatabase, more: &[&str]) -> Self {
        Self::start(database, &[&["serve", "--grpc-addr", "127.0.0.1:0"], more].concat()).await
    }

    /// Starts `gateway` with this upstream.
    pub async fn gateway(database: &TestDatabase, upstream: &str, more: &[&str]) -> Self {
        Self::start(database, &[&["gateway", "--upstream", upstream], more].concat()).await
    }

    /// Starts `serve` in a process that may open so many files.
    pub async fn serve_with_files(database: &TestDatabase, files: u32) -> Self {
        let serve = ["serve", "--insecure-identity", "--grpc-addr", "127.0.0.1:0"];
        Self::start_after(&format!("ulimit -n {files}"), database, &serve).await
    }

    async fn start(database: &TestDatabase, arguments: &[&str]) -> Self {
        Self::start_after("trap '' XFSZ", database, arguments).await
    }

    /// After this command of the shell.
    pub async fn start_after(setup: &str, database: &TestDatabase, arguments: &[&str]) -> Self {
        let key_file = database.folder.path().join("key");
        let free = "127.0.0.1:0";
        let shared = ["--rest-addr", free, "--admin-addr", free, "--credentials-key-file", path(&key_file)];
        let mut command = command_after(setup, &[arguments, &shared].concat());
        command.env("COLLECTIONS_DATABASE_URL", &database.url).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut first = Vec::new();
        let serving = loop {
            let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("serve ended: {first:?}"));
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            first.push(line);
            if event["message"] == "serving" {
                break event;
            }
        };
        let address = |name: &str| format!("http://{}", serving[name].as_str().unwrap_or_default());
        let (grpc, rest, admin) = (address("grpc"), address("rest"), address("admin"));
        let stall = Arc::new(Notify::new());
        let stalled = stall.clone();
        let log = Arc::new(Mutex::new(first));
        let read = log.clone();
        let reader = tokio::spawn(async move {
            loop {
                tokio::select! {
                    line = lines.next_line() => match line {
                        Ok(Some(line)) => read.lock().unwrap().push(line),
                        _ => return,
                    },
                    () = stalled.notified() => std::future::pending().await,
                }
            }
        });
        Self { child, log, reader, stall, grpc, rest, admin }
    }

    /// Waits until its health is SERVING.
    pub async fn wait_until_ready(&self) {
        self.wait_for_health(0).await;
    }

    /// Waits until the health probe exits with this code.
    pub async fn wait_for_health(&self, code: i32) {
        let admin = self.admin.trim_start_matches("http://");
        let probe = async || run(&["healthcheck", "--addr", admin], &[]).await.0 == code;
        wait_until(&format!("the health probe exits with {code}"), probe).await;
    }

    /// Waits until its log has so many lines that contain this text.
    pub async fn wait_for_log(&self, count: usize, text: &str) {
        let is_logged = async || {
            let lines = self.log.lock().unwrap();
            lines.iter().filter(|line| line.contains(text)).count() >= count
        };
        wait_until(&format!("{count} log lines contain {text:?}"), is_logged).await;
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it has ended")
    }

    /// Stops reading its log, and keeps it open: soon every write to it blocks.
    pub fn stall_log(&self) {
        self.stall.notify_one();
    }

    /// Waits until the process has ended, whatever its log holds.
    pub async fn exit_status(&mut self, bound: Duration) -> ExitStatus {
        tokio::time::timeout(bound, self.child.wait()).await.expect("it does not end").unwrap()
    }

    /// Reads its log no more: what it writes now fails.
    pub async fn ignore_log(&mut self) {
        self.reader.abort();
        let _cancelled = (&mut self.reader).await;
        self.reader = tokio::spawn(async {});
    }

    /// Waits until the process has ended.
    pub async fn ended(mut self, bound: Duration) -> (ExitStatus, Vec<String>) {
        let status = tokio::time::timeout(bound, self.child.wait()).await.expect("it does not end").unwrap();
        self.reader.await.unwrap();
        (status, std::mem::take(&mut *self.log.lock().unwrap()))
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
