//! A Redis server that belongs to one test, which may kill, freeze and restart it.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::net::TcpStream;

use super::wait_until;

pub struct RedisServer {
    port: u16,
    server: Child,
}

impl RedisServer {
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let redis = Self { port, server: spawn(port) };
        redis.wait().await;
        redis
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// Its data is lost.
    pub async fn start_again(&mut self) {
        self.server = spawn(self.port);
        self.wait().await;
    }

    /// Connections stay open, and no command gets a reply.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.server.id().cast_signed()), signal).unwrap();
    }

    async fn wait(&self) {
        let address = ("127.0.0.1", self.port);
        wait_until("Redis accepts a connection", async || TcpStream::connect(address).await.is_ok()).await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have been killed already.
        let _gone = self.server.kill();
        let _status = self.server.wait();
    }
}

fn spawn(port: u16) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .spawn()
        .expect("no Redis: start the tests with tests/run")
}
