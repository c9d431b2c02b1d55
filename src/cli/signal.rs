//! SIGTERM, SIGINT and SIGHUP.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    task::yield_now,
    time::timeout,
};

use super::Exit;

/// Ignores SIGHUP: it is logged and has no other effect, because changed files are reloaded without
/// a signal.
///
/// # Errors
/// The signal cannot be handled.
pub fn ignore_hangup() -> Result<(), Exit> {
    let mut hangup = signal(SignalKind::hangup()).map_err(Exit::failed)?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP ignored; changed files are reloaded without it");
        }
    });
    Ok(())
}

/// Requests to stop. Signals are received from the moment it is made, so that none is lost between binding and serving.
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
