//! A TCP relay in front of a server, for an address that moves to another server.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::copy_bidirectional,
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
