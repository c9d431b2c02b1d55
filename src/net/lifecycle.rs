//! Shutdown: the stage that it has reached, and what is waited for.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config, domain::Entropy};

/// The shutdown of all listeners. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// The drain has begun: open connections get a GOAWAY. New ones are still accepted, so that their calls are answered with
    /// NOT_SERVING and UNAVAILABLE.
    pub(super) stop: CancellationToken,
    /// Every accepted call is answered: no connection is accepted any more, and the last ones get a GOAWAY.
    pub(super) close: CancellationToken,
    /// Connections that are still open are closed at once.
    pub(super) abort: CancellationToken,
    pub(super) connections: TaskTracker,
    pub(super) calls: TaskTracker,
    entropy: Entropy,
}

impl Lifecycle {
    /// `entropy` spreads the ages of connections.
    pub fn new(entropy: Entropy) -> Self {
        Self { entropy, ..Self::default() }
    }

    /// Begins the drain.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits after [`Self::stop`] for the calls of open connections, until the deadline. Then the connections have
    /// [`config::net::LINGER`] to send the last answers: a silent peer delays the shutdown no longer than that.
    /// Returns whether every call was answered.
    pub async fn drain(&self, deadline: Instant) -> bool {
        self.calls.close();
        self.connections.close();
        let is_finished = tokio::time::timeout_at(deadline, self.calls.wait()).await.is_ok();
        self.close.cancel();
        let linger = deadline.min(Instant::now() + config::net::LINGER);
        let are_closed = tokio::time::timeout_at(linger, self.connections.wait()).await.is_ok();
        if !are_closed {
            tracing::debug!(connections = self.connections.len(), "closing connections that are still open");
        }
        self.abort.cancel();
        // They end at once; each call that is aborted writes its log line.
        let _all_closed = tokio::time::timeout(config::net::LINGER, self.connections.wait()).await;
        is_finished
    }

    /// The age at which a new connection gets a GOAWAY, spread by a tenth so that connections that were opened together
    /// do not end together.
    pub(super) fn connection_age(&self) -> Duration {
        let spread = f64::from(u16::from_le_bytes(self.entropy.bytes())) / f64::from(u16::MAX);
        config::net::CONNECTION_AGE.mul_f64(0.9 + 0.2 * spread)
    }
}
