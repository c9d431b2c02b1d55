//! Room for calls.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config, domain::DestroyError};

/// Limits the calls in flight; more are refused at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    /// Since the log was last told.
    refused: Arc<AtomicU64>,
}

impl Admission {
    /// There is no room yet.
    #[must_use]
    pub fn none() -> Self {
        Self { places: Arc::new(Semaphore::new(0)), refused: Arc::default() }
    }

    /// Makes room for so many more calls.
    pub fn grow(&self, calls: usize) {
        self.places.add_permits(calls);
    }

    /// From now on every call is refused.
    pub fn close(&self) {
        self.places.close();
    }

    /// A place, for as long as it is held.
    ///
    /// # Errors
    /// [`DestroyError::Overloaded`]: all are taken, or there are none any more.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, DestroyError> {
        self.places.clone().try_acquire_owned().map_err(|_full_or_closed| DestroyError::Overloaded)
    }

    /// Counts a refused call. It has no line of its own in the log: when calls come faster than they can be served, that
    /// line would cost more than the refusal, and be missing where it is needed, at the calls that are served.
    pub fn count_refusal(&self) {
        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
            let admission = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(config::REFUSALS_INTERVAL).await;
                admission.log_refusals();
            });
        }
    }

    /// One line for all that were refused since the last one.
    pub fn log_refusals(&self) {
        let calls = self.refused.swap(0, Ordering::Relaxed);
        if calls > 0 {
            tracing::warn!(outcome = DestroyError::Overloaded.row().reason, calls, "calls were refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::Ordering, time::Duration};

    use tokio::time::sleep;

    use super::Admission;

    #[tokio::test(start_paused = true)]
    async fn refusals_are_told_once_a_second() {
        let admission = Admission::none();
        admission.grow(1);
        let place = admission.enter();
        assert!(place.is_ok() && admission.enter().is_err());
        for _ in 0..2 {
            admission.count_refusal();
            admission.count_refusal();
            sleep(Duration::from_millis(900)).await;
            assert_eq!(admission.refused.load(Ordering::Relaxed), 2);
            sleep(Duration::from_millis(200)).await;
            assert_eq!(admission.refused.load(Ordering::Relaxed), 0);
        }
        drop(place);
        assert!(admission.enter().is_ok());
    }
}
