//! What the destroys tell the check of the database.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// Whether statements have failed since the last check. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StoreStatus(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    failed: AtomicBool,
    failure: Notify,
}

impl StoreStatus {
    /// A statement failed in a way that may meet all others.
    pub fn report_failure(&self) {
        self.0.failed.store(true, Ordering::Relaxed);
        self.0.failure.notify_one();
    }

    /// Whether a failure was reported since the last call.
    pub fn take_failure(&self) -> bool {
        self.0.failed.swap(false, Ordering::Relaxed)
    }

    /// Waits until a failure is reported.
    pub async fn failure(&self) {
        self.0.failure.notified().await;
    }
}
