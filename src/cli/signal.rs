//! SIGTERM and SIGINT.

use tokio::signal::unix::{SignalKind, signal};

use super::Exit;

/// Listens from the moment it is made, so that no signal is lost between binding and serving.
pub struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    pub fn listen() -> Result<Self, Exit> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(Exit::failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(Exit::failed)?,
        })
    }

    /// Returns at the first of either.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Whether either has come, without waiting for it.
    pub async fn is_requested(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.requested() => true,
            () = std::future::ready(()) => false,
        }
    }
}
