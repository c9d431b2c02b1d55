//! Public-key cryptography on threads of its own.

use std::{num::NonZero, sync::Arc, thread};

use tokio::sync::Semaphore;

use super::error::JwtError;
use crate::config::identity::{JWT_VERIFICATION_LIMIT, JWT_VERIFICATION_QUEUE};

/// Runs verifications on the runtime's blocking threads, a few at a time: one takes as long as many calls, and a forged token
/// costs as much as a valid one. The thread that serves connections does none, so verifications do not delay calls.
#[derive(Clone, Debug)]
pub struct Offload {
    /// Verifications that run.
    running: Arc<Semaphore>,
    /// Calls that wait for one to end.
    waiting: Arc<Semaphore>,
}

impl Offload {
    /// Runs as many at a time as there are processors, within [`JWT_VERIFICATION_LIMIT`].
    pub fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            running: Arc::new(Semaphore::new(processors.min(JWT_VERIFICATION_LIMIT))),
            waiting: Arc::new(Semaphore::new(JWT_VERIFICATION_QUEUE)),
        }
    }

    /// Runs the work and waits for its result. A caller that stops waiting leaves the queue; work that has begun is
    /// finished, and counts as running until then.
    ///
    /// # Errors
    /// [`JwtError::Overloaded`] where [`JWT_VERIFICATION_QUEUE`] calls wait already, [`JwtError::Interrupted`] where the
    /// runtime shuts down.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JwtError> {
        let waiting = self.waiting.try_acquire().map_err(|_full| JwtError::Overloaded)?;
        let running = self.running.clone().acquire_owned().await.map_err(|_closed| JwtError::Interrupted)?;
        drop(waiting);
        let done = tokio::task::spawn_blocking(move || {
            let _running = running;
            work()
        });
        done.await.map_err(|_shutdown| JwtError::Interrupted)
    }
}
