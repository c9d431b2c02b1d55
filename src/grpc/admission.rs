//! Room for calls.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config, domain::DestroyError};

/// Limits the calls in flight; more are refused at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    /// Whether calls may take a place.
    is_open: Arc<AtomicBool>,
    /// Since the last line in the log.
    refused: Arc<Refused>,
}

/// Refused calls that are not logged yet, by reason.
#[derive(Debug, Default)]
struct Refused {
    overloaded: AtomicU64,
    unavailable: AtomicU64,
}

impl Admission {
    /// Room for so many calls, once it is opened.
    #[must_use]
    pub fn new(calls: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(calls)), is_open: Arc::default(), refused: Arc::default() }
    }

    /// Calls are admitted.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// Every call is refused until the next [`Self::open`].
    pub fn refuse(&self) {
        self.is_open.store(false, Ordering::Relaxed);
    }

    /// From now on every call is refused.
    pub fn close(&self) {
        self.places.close();
    }

    /// A place, for as long as it is held.
    ///
    /// # Errors
    /// [`DestroyError::Overloaded`]: all are taken, or the service is draining. [`DestroyError::StoreUnavailable`]: calls are
    /// refused.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, DestroyError> {
        if !self.is_open.load(Ordering::Relaxed) {
            return Err(DestroyError::StoreUnavailable);
        }
        self.places.clone().try_acquire_owned().map_err(|_full_or_closed| DestroyError::Overloaded)
    }

    /// Counts a refused call. It has no line of its own in the log: when calls come faster than they can be served, that
    /// line would cost more than the refusal, and be missing where it is needed, at the calls that are served.
    pub fn count_refusal(&self, error: DestroyError) {
        let count = match error {
            DestroyError::Overloaded => &self.refused.overloaded,
            _ => &self.refused.unavailable,
        };
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            let admission = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(config::calls::REFUSAL_LOG_INTERVAL).await;
                admission.log_refusals();
            });
        }
    }

    /// One line for each reason with the number of calls that were refused since the last one.
    pub fn log_refusals(&self) {
        for (error, count) in [
            (DestroyError::Overloaded, &self.refused.overloaded),
            (DestroyError::StoreUnavailable, &self.refused.unavailable),
        ] {
            let calls = count.swap(0, Ordering::Relaxed);
            if calls > 0 {
                tracing::warn!(outcome = error.row().reason, calls, "calls were refused");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::Ordering, time::Duration};

    use tokio::time::sleep;

    use super::{Admission, DestroyError};

    #[tokio::test(start_paused = true)]
    async fn refusals_are_logged_once_a_second() {
        let admission = Admission::new(1);
        assert!(admission.enter().is_err());
        admission.open();
        let place = admission.enter();
        assert!(place.is_ok() && admission.enter().is_err());
        for _ in 0..2 {
            admission.count_refusal(DestroyError::Overloaded);
            admission.count_refusal(DestroyError::Overloaded);
            sleep(Duration::from_millis(900)).await;
            assert_eq!(admission.refused.overloaded.load(Ordering::Relaxed), 2);
            sleep(Duration::from_millis(200)).await;
            assert_eq!(admission.refused.overloaded.load(Ordering::Relaxed), 0);
        }
        drop(place);
        assert!(admission.enter().is_ok());
    }
}
