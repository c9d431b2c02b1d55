//! SIGTERM and SIGINT.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    task::yield_now,
    time::timeout,
};

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

    /// Whether either has been received. Returns at once.
    pub async fn is_requested(&mut self) -> bool {
        self.is_requested_within(Duration::ZERO).await
    }

    /// Whether either has been received or is within this time.
    pub async fn is_requested_within(&mut self, time: Duration) -> bool {
        // The runtime receives signals when a task yields to it.
        yield_now().await;
        timeout(time, self.requested()).await.is_ok()
    }
}
