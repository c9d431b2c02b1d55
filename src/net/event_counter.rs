//! Log lines for events that are too frequent for a line each.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::config;

/// The events of connections that are logged together.
#[derive(Debug)]
pub struct ConnectionEvents {
    /// Requests refused because the request memory is used up.
    pub refused: Arc<EventCounter>,
    /// Connections closed for too many frames.
    pub floods: Arc<EventCounter>,
    /// Requests that HTTP/2 itself refused as malformed.
    pub malformed: Arc<EventCounter>,
}

/// Counts events, and logs their number together, a second after the first of them.
#[derive(Debug)]
pub struct EventCounter {
    count: AtomicU64,
    log: fn(u64),
}

impl ConnectionEvents {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            refused: EventCounter::new(|requests| {
                tracing::warn!(requests, "requests refused: the memory for requests in flight is used up");
            }),
            floods: EventCounter::new(|connections| {
                tracing::warn!(connections, "connections closed: too many HTTP/2 frames for the calls made");
            }),
            malformed: EventCounter::new(|requests| {
                tracing::warn!(
                    requests,
                    "requests reset as malformed HTTP/2; an :authority with several ports is, which gRPC clients send \
                     for targets such as ipv4:a,b: set their authority option",
                );
            }),
        })
    }
}

impl EventCounter {
    /// `log` writes the line for so many events.
    fn new(log: fn(u64)) -> Arc<Self> {
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
