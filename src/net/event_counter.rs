//! Log lines for events that are too frequent for a line each.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::config;

/// Counts events, and logs their number together, a second after the first of them.
#[derive(Debug)]
pub struct EventCounter {
    count: AtomicU64,
    log: fn(u64),
}

impl EventCounter {
    /// `log` writes the line for so many events.
    pub fn new(log: fn(u64)) -> Arc<Self> {
        Arc::new(Self { count: AtomicU64::new(0), log })
    }

    pub fn record(self: &Arc<Self>) {
        if self.count.fetch_add(1, Ordering::Relaxed) > 0 {
            return;
        }
        let counter = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(config::net::EVENT_LOG_INTERVAL).await;
            (counter.log)(counter.count.swap(0, Ordering::Relaxed));
        });
    }
}
