//! Failures of statements, reported to the check of the database.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

#[cfg(doc)]
use super::failure::Failure;

/// Whether statements have failed since the last check. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StoreStatus(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    failed: AtomicBool,
    has_lost_statement: AtomicBool,
    failure: Notify,
}

impl StoreStatus {
    /// A statement failed in a way that may meet all others.
    pub fn report_failure(&self) {
        self.0.failed.store(true, Ordering::Relaxed);
        self.0.failure.notify_one();
    }

    /// A statement failed because its session does not have it ([`Failure::Unprepared`]). Does not end [`Self::failure`].
    pub fn report_lost_statement(&self) {
        self.0.has_lost_statement.store(true, Ordering::Relaxed);
    }

    /// Whether a statement was lost since [`Self::clear_lost_statement`].
    pub fn has_lost_statement(&self) -> bool {
        self.0.has_lost_statement.load(Ordering::Relaxed)
    }

    /// Called once the pooler is known to keep statements.
    pub fn clear_lost_statement(&self) {
        self.0.has_lost_statement.store(false, Ordering::Relaxed);
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
