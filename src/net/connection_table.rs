//! The open connections of one listener: their limit, and which one is evicted at it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::config;

/// The open connections of one listener. At the limit, the connection that has been idle longest is evicted for a new one, so
/// that silent and slow peers cannot keep others out.
#[derive(Debug)]
pub struct ConnectionTable {
    begun: Instant,
    connections: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    removed: Notify,
}

/// What is known of one connection.
#[derive(Debug)]
pub struct ConnectionState {
    begun: Instant,
    calls: AtomicUsize,
    /// Whether there was ever a call.
    served: AtomicBool,
    /// Since when it has been idle, in milliseconds of the table's life.
    idle_since: AtomicU64,
    eviction: CancellationToken,
}

/// A connection in the table; dropped, it leaves the table.
#[derive(Debug)]
pub struct TableEntry {
    number: u64,
    pub connection: Arc<ConnectionState>,
    table: Arc<ConnectionTable>,
}

/// A call in flight on a connection.
#[derive(Debug)]
pub struct CallGuard(Arc<ConnectionState>);

impl ConnectionTable {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), connections: Mutex::default(), removed: Notify::new() })
    }

    /// Adds the connection with this number, and waits where the table is full. Called by the accept loop alone, one
    /// connection after the other.
    pub async fn admit(self: &Arc<Self>, number: u64) -> TableEntry {
        loop {
            let removed = self.removed.notified();
            if let Some(connection) = self.try_admit(number) {
                return TableEntry { number, connection, table: self.clone() };
            }
            removed.await;
        }
    }

    fn try_admit(&self, number: u64) -> Option<Arc<ConnectionState>> {
        let mut connections = self.connections();
        if connections.len() >= config::net::NEW_CONNECTION_LIMIT {
            let remaining = || connections.values().filter(|connection| !connection.eviction.is_cancelled());
            let new = || remaining().filter(|connection| connection.is_new());
            if new().count() >= config::net::NEW_CONNECTION_LIMIT {
                longest_idle(new());
            } else if remaining().count() >= config::net::CONNECTION_LIMIT {
                longest_idle(remaining());
            }
        }
        // Evicted connections have a grace period, and are not waited for.
        if connections.len() >= config::net::CONNECTION_LIMIT + config::net::NEW_CONNECTION_LIMIT {
            return None;
        }
        let connection = Arc::new(ConnectionState {
            begun: self.begun,
            calls: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            idle_since: AtomicU64::new(elapsed_ms(self.begun)),
            eviction: CancellationToken::new(),
        });
        connections.insert(number, connection.clone());
        Some(connection)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<ConnectionState>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Evicts the connection that has been idle longest; those with calls in flight stay.
fn longest_idle<'a>(connections: impl Iterator<Item = &'a Arc<ConnectionState>>) {
    let idle = connections.filter(|connection| connection.calls.load(Ordering::Relaxed) == 0);
    if let Some(connection) = idle.min_by_key(|connection| connection.idle_since.load(Ordering::Relaxed)) {
        connection.evict();
    }
}

impl ConnectionState {
    /// Counts a call until the guard is dropped.
    pub fn begin_call(self: &Arc<Self>) -> CallGuard {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        CallGuard(self.clone())
    }

    fn is_new(&self) -> bool {
        !self.served.load(Ordering::Relaxed)
    }

    /// Returns once the connection is evicted.
    pub async fn evicted(&self) {
        self.eviction.cancelled().await;
    }

    pub fn is_evicted(&self) -> bool {
        self.eviction.is_cancelled()
    }

    /// Asks the connection to leave.
    pub fn evict(&self) {
        self.eviction.cancel();
    }

    /// Returns when an evicted connection has to be closed, even with calls in flight.
    pub async fn eviction_timeout(&self) {
        self.evicted().await;
        tokio::time::sleep(config::net::EVICTION_TIMEOUT).await;
    }

    /// Returns when the connection has been idle too long: less is too long for one that never made a call.
    pub async fn idle_timeout(&self) {
        loop {
            let bound =
                if self.is_new() { config::net::FIRST_CALL_TIMEOUT } else { config::net::IDLE_TIMEOUT };
            match bound.checked_sub(self.idle()) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }

    /// Returns when there has been no call for this long, counted from now at the earliest.
    pub async fn quiet_for(&self, bound: Duration) {
        let begun = Instant::now();
        loop {
            match bound.checked_sub(self.idle().min(begun.elapsed())) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }

    fn idle(&self) -> Duration {
        if self.calls.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(since)
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.0.idle_since.store(elapsed_ms(self.0.begun), Ordering::Relaxed);
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        self.table.connections().remove(&self.number);
        self.table.removed.notify_one();
    }
}

fn elapsed_ms(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
