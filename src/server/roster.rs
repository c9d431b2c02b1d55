//! The open connections of one listener: how many there may be, and which one leaves when another wants in.

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

/// Whoever connects finds a place: where there are many, the connection that has been idle longest leaves for it. So
/// neither silence nor slowness holds a place against somebody with work to do.
#[derive(Debug)]
pub struct Roster {
    begun: Instant,
    seats: Mutex<HashMap<u64, Arc<Seat>>>,
    left: Notify,
}

/// One connection's place.
#[derive(Debug)]
pub struct Seat {
    begun: Instant,
    calls: AtomicUsize,
    /// Whether a call has ever begun: until then the other end has shown nothing but that it can connect.
    served: AtomicBool,
    /// Since when it has been idle, in milliseconds of the roster's life.
    idle_since: AtomicU64,
    leave: CancellationToken,
}

/// A place that is given back when dropped.
#[derive(Debug)]
pub struct Occupied {
    number: u64,
    pub seat: Arc<Seat>,
    roster: Arc<Roster>,
}

/// A call in flight on a connection.
#[derive(Debug)]
pub struct Call(Arc<Seat>);

impl Roster {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), seats: Mutex::default(), left: Notify::new() })
    }

    /// A place for the connection with this number. Only the accept loop asks, one connection after the other.
    pub async fn admit(self: &Arc<Self>, number: u64) -> Occupied {
        loop {
            let left = self.left.notified();
            if let Some(seat) = self.try_admit(number) {
                return Occupied { number, seat, roster: self.clone() };
            }
            left.await;
        }
    }

    fn try_admit(&self, number: u64) -> Option<Arc<Seat>> {
        let mut seats = self.seats();
        if seats.len() >= config::NEW_CONNECTION_LIMIT {
            let staying = || seats.values().filter(|seat| !seat.leave.is_cancelled());
            let new = || staying().filter(|seat| seat.is_new());
            if new().count() >= config::NEW_CONNECTION_LIMIT {
                longest_idle(new());
            } else if staying().count() >= config::CONNECTION_LIMIT {
                longest_idle(staying());
            }
        }
        // Those who were asked to leave have a moment for it, and need not be waited for.
        if seats.len() >= config::CONNECTION_LIMIT + config::NEW_CONNECTION_LIMIT {
            return None;
        }
        let seat = Arc::new(Seat {
            begun: self.begun,
            calls: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            idle_since: AtomicU64::new(elapsed_ms(self.begun)),
            leave: CancellationToken::new(),
        });
        seats.insert(number, seat.clone());
        Some(seat)
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<u64, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the one that has been idle longest to leave; those with calls in flight stay.
fn longest_idle<'a>(seats: impl Iterator<Item = &'a Arc<Seat>>) {
    let idle = seats.filter(|seat| seat.calls.load(Ordering::Relaxed) == 0);
    if let Some(seat) = idle.min_by_key(|seat| seat.idle_since.load(Ordering::Relaxed)) {
        seat.leave.cancel();
    }
}

impl Seat {
    /// A call begins.
    pub fn call(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        Call(self.clone())
    }

    fn is_new(&self) -> bool {
        !self.served.load(Ordering::Relaxed)
    }

    /// Somebody else needs the place.
    pub async fn asked_to_leave(&self) {
        self.leave.cancelled().await;
    }

    pub fn is_asked_to_leave(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// Returns when the connection has been idle too long: less is too long for one that never made a call.
    pub async fn idle_too_long(&self) {
        loop {
            let bound = if self.is_new() { config::FIRST_CALL_WAIT } else { config::IDLE };
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

impl Drop for Call {
    fn drop(&mut self) {
        self.0.idle_since.store(elapsed_ms(self.0.begun), Ordering::Relaxed);
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.roster.seats().remove(&self.number);
        self.roster.left.notify_one();
    }
}

fn elapsed_ms(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
