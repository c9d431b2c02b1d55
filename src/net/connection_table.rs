//! The open connections of one or more listeners: their limits, and which one is evicted at a limit.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::source::{Group, Source};
use crate::config;

/// The open connections. At a limit, a connection of the client network that has the most connections is evicted for a new
/// one, so that a flood from few addresses closes its own connections and not those of others.
#[derive(Debug)]
pub struct ConnectionTable {
    begun: Instant,
    limits: TableLimits,
    connections: Mutex<Connections>,
    removed: Notify,
}

/// How many connections a table holds.
#[derive(Clone, Copy, Debug)]
pub struct TableLimits {
    /// Connections that are not evicted.
    pub connections: usize,
    /// Those of them that have not made a call yet.
    pub new: usize,
    /// Evicted connections that are still open. Over it, the oldest of them is closed at once.
    pub evicted: usize,
}

#[derive(Debug, Default)]
struct Connections {
    last_number: u64,
    /// All that are not removed yet, evicted ones included.
    open: usize,
    /// Those that are not evicted.
    networks: HashMap<Group, Network>,
    counts: Counts,
    /// Evicted, and not closed yet; in the order of their eviction.
    evicted: VecDeque<Arc<ConnectionState>>,
}

/// The connections of one group that are not evicted.
#[derive(Debug, Default)]
struct Network {
    connections: HashMap<u64, Arc<ConnectionState>>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    all: usize,
    /// Without a call so far.
    new: usize,
}

/// The state of one connection.
#[derive(Debug)]
pub struct ConnectionState {
    number: u64,
    group: Group,
    pub(super) table: Arc<ConnectionTable>,
    calls: AtomicUsize,
    /// Calls completed since [`Self::take_completed`].
    completed: AtomicU32,
    /// Whether there was ever a call. Changes under the table's lock.
    served: AtomicBool,
    /// When the last call ended, in milliseconds since the table was made.
    idle_since: AtomicU64,
    eviction: CancellationToken,
    closing: CancellationToken,
}

/// A connection's entry in the table. Dropping it removes the connection.
#[derive(Debug)]
pub struct TableEntry {
    pub connection: Arc<ConnectionState>,
}

/// A call in flight on a connection.
#[derive(Debug)]
pub struct CallGuard(Arc<ConnectionState>);

impl TableLimits {
    /// The limits of a table of so many connections.
    pub const fn of(connections: usize) -> Self {
        Self {
            connections,
            new: connections / config::net::NEW_CONNECTION_SHARE,
            evicted: connections / config::net::EVICTED_CONNECTION_SHARE,
        }
    }
}

impl ConnectionTable {
    pub fn new(limits: TableLimits) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            limits,
            connections: Mutex::default(),
            removed: Notify::new(),
        })
    }

    /// Adds a connection. Waits only until connections that are closed already have been removed.
    pub async fn admit(self: &Arc<Self>, source: Source) -> TableEntry {
        loop {
            let removed = self.removed.notified();
            if let Some(connection) = self.try_admit(source) {
                return TableEntry { connection };
            }
            removed.await;
        }
    }

    fn try_admit(self: &Arc<Self>, source: Source) -> Option<Arc<ConnectionState>> {
        let mut connections = self.lock();
        connections.make_room(self.limits);
        if connections.open >= self.limits.connections + self.limits.evicted {
            return None;
        }
        connections.open += 1;
        connections.last_number += 1;
        let connection = Arc::new(ConnectionState {
            number: connections.last_number,
            group: source.group(connections.last_number),
            table: self.clone(),
            calls: AtomicUsize::new(0),
            completed: AtomicU32::new(0),
            served: AtomicBool::new(false),
            idle_since: AtomicU64::new(elapsed_ms(self.begun)),
            eviction: CancellationToken::new(),
            closing: CancellationToken::new(),
        });
        connections.insert(connection.clone());
        Some(connection)
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// Evicts a connection where a new one would exceed a limit.
    fn make_room(&mut self, limits: TableLimits) {
        if self.counts.new >= limits.new {
            self.evict_one(|counts| counts.new, ConnectionState::is_new);
        } else if self.counts.all >= limits.connections {
            self.evict_one(|counts| counts.all, |_| true);
        }
        while self.evicted.len() > limits.evicted {
            if let Some(oldest) = self.evicted.pop_front() {
                oldest.closing.cancel();
            }
        }
    }

    /// Evicts one of the connections that match, from the network with the highest count: the one that has been without a
    /// call for the longest; one with calls in flight only where each has some.
    fn evict_one(&mut self, count: fn(Counts) -> usize, matches: fn(&ConnectionState) -> bool) {
        let highest = self.networks.values().map(|network| count(network.counts)).max().unwrap_or_default();
        let networks = self.networks.values().filter(|network| count(network.counts) == highest);
        let connections = networks.flat_map(|network| network.connections.values());
        let order = |connection: &&Arc<ConnectionState>| {
            let in_flight = connection.calls.load(Ordering::Relaxed) > 0;
            (in_flight, connection.idle_since.load(Ordering::Relaxed), connection.number)
        };
        let evicted = connections.filter(|connection| matches(connection)).min_by_key(order).cloned();
        if let Some(connection) = evicted {
            self.remove(&connection);
            connection.eviction.cancel();
            self.evicted.push_back(connection);
        }
    }

    fn insert(&mut self, connection: Arc<ConnectionState>) {
        let network = self.networks.entry(connection.group).or_default();
        for counts in [&mut network.counts, &mut self.counts] {
            counts.all += 1;
            counts.new += 1;
        }
        network.connections.insert(connection.number, connection);
    }

    /// Returns whether the connection was there: it is not once it is evicted.
    fn remove(&mut self, connection: &ConnectionState) -> bool {
        let Some(network) = self.networks.get_mut(&connection.group) else { return false };
        if network.connections.remove(&connection.number).is_none() {
            return false;
        }
        for counts in [&mut network.counts, &mut self.counts] {
            counts.all -= 1;
            counts.new -= usize::from(connection.is_new());
        }
        if network.connections.is_empty() {
            self.networks.remove(&connection.group);
        }
        true
    }

    fn mark_served(&mut self, connection: &ConnectionState) {
        if connection.served.swap(true, Ordering::Relaxed) {
            return;
        }
        let network = self.networks.get_mut(&connection.group);
        if let Some(network) = network.filter(|it| it.connections.contains_key(&connection.number)) {
            network.counts.new -= 1;
            self.counts.new -= 1;
        }
    }
}

impl ConnectionState {
    /// Counts a call until the guard is dropped.
    pub fn begin_call(self: &Arc<Self>) -> CallGuard {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.is_new() {
            self.table.lock().mark_served(self);
        }
        CallGuard(self.clone())
    }

    /// Returns how many calls were completed since it was last asked.
    pub fn take_completed(&self) -> u32 {
        match self.completed.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.completed.swap(0, Ordering::Relaxed),
        }
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

    /// Returns when an evicted connection has to be closed, even with calls in flight.
    pub async fn eviction_timeout(&self) {
        self.evicted().await;
        let _elapsed = tokio::time::timeout(config::net::EVICTION_TIMEOUT, self.closing.cancelled()).await;
    }

    /// Returns when the connection has been idle too long. The limit is shorter for a connection that never made a call.
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
        self.table.begun.elapsed().saturating_sub(since)
    }
}

impl CallGuard {
    /// Ends a call that has its response. One that is only dropped was given up by the peer.
    pub fn complete(self) {
        self.0.completed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.0.idle_since.store(elapsed_ms(self.0.table.begun), Ordering::Relaxed);
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        let table = &self.connection.table;
        let mut connections = table.lock();
        if !connections.remove(&self.connection) {
            connections.evicted.retain(|evicted| evicted.number != self.connection.number);
        }
        connections.open -= 1;
        drop(connections);
        // Wakes the accept loops of all listeners.
        table.removed.notify_waiters();
    }
}

fn elapsed_ms(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test")]
mod tests {
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use super::{ConnectionTable, Source, TableEntry, TableLimits};

    const LIMITS: TableLimits = TableLimits { connections: 4, new: 3, evicted: 2 };

    fn client(address: &str) -> Source {
        Source::of(address.parse().expect("an address"), &[])
    }

    async fn open(table: &std::sync::Arc<ConnectionTable>, address: &str) -> TableEntry {
        advance(Duration::from_millis(1)).await;
        let admitted = table.admit(client(address));
        timeout(Duration::from_secs(1), admitted).await.expect("a place")
    }

    /// One that has made a call.
    async fn open_served(table: &std::sync::Arc<ConnectionTable>, address: &str) -> TableEntry {
        let entry = open(table, address).await;
        drop(entry.connection.begin_call());
        entry
    }

    fn evicted(entries: &[&TableEntry]) -> Vec<bool> {
        entries.iter().map(|entry| entry.connection.is_evicted()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_network_with_the_most_new_connections_loses_one() {
        let table = ConnectionTable::new(LIMITS);
        let distant = open(&table, "192.0.2.1").await;
        let (first, second) = (open(&table, "2001:db8::1").await, open(&table, "2001:db8::2").await);
        let third = open(&table, "2001:db8::3").await;
        assert_eq!(evicted(&[&distant, &first, &second, &third]), [false, true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_in_flight_are_evicted_last_but_not_never() {
        let table = ConnectionTable::new(LIMITS);
        let other = open_served(&table, "192.0.2.1").await;
        let mut flood = Vec::new();
        for _ in 0..3 {
            flood.push(open_served(&table, "192.0.2.2").await);
        }
        let calls: Vec<_> = [0, 2].map(|number: usize| flood[number].connection.begin_call()).into();
        let fifth = open_served(&table, "192.0.2.3").await;
        let [first, second, third] = [&flood[0], &flood[1], &flood[2]];
        assert_eq!(evicted(&[&other, first, second, third, &fifth]), [false, false, true, false, false]);
        let sixth = open_served(&table, "192.0.2.4").await;
        assert_eq!(evicted(&[&other, first, third, &fifth, &sixth]), [false, true, false, false, false]);
        drop(calls);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_evicted_connection_is_closed_where_too_many_are_open() {
        let table = ConnectionTable::new(LIMITS);
        let mut entries = Vec::new();
        for _ in 0..6 {
            entries.push(open(&table, "192.0.2.1").await);
        }
        let waiting = table.admit(client("192.0.2.1"));
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_millis(10), waiting.as_mut()).await.is_err());
        let closing: Vec<_> = entries.iter().map(|it| it.connection.closing.is_cancelled()).collect();
        assert_eq!(closing, [true, true, false, false, false, false]);
        entries.remove(0);
        timeout(Duration::from_millis(10), waiting).await.expect("a place");
    }
}
