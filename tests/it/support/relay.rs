//! A TCP relay in front of a server, for an address that moves to another server, and for answers that are lost.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Accepts connections on its own port and forwards each to the current target, a port of this machine.
pub struct Relay {
    pub port: u16,
    target: watch::Sender<u16>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, targets) = watch::channel(target);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, targets.clone()));
            }
        });
        Self { port, target, accepting }
    }

    /// Closes every connection, and forwards new ones to this port.
    pub fn switch(&self, target: u16) {
        self.target.send_replace(target);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Until either end closes, or the target changes.
async fn forward(mut client: TcpStream, mut targets: watch::Receiver<u16>) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *targets.borrow_and_update()));
    let forwarded = async {
        let mut server = TcpStream::connect(address).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        _closed = forwarded => {}
        _switched = targets.changed() => {}
    }
}

/// Forwards connections to the server, and closes one instead of forwarding an answer that is to be lost.
pub async fn lose_answers(
    listener: TcpListener,
    server: String,
    is_lost: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
) {
    let is_lost = Arc::new(is_lost);
    while let Ok((client, _)) = listener.accept().await {
        let upstream = TcpStream::connect(&server).await.unwrap();
        let is_lost = is_lost.clone();
        tokio::spawn(async move {
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), upstream.into_split());
            let forward = async { tokio::io::copy(&mut from_client, &mut to_server).await };
            let back = async {
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    let length = from_server.read(&mut buffer).await.unwrap_or(0);
                    let answer = &buffer[..length];
                    if answer.is_empty() || is_lost(answer) || to_client.write_all(answer).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                _ended = forward => {}
                () = back => {}
            }
        });
    }
}
