//! The limit of calls in flight, and each caller's share of it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    config,
    domain::{DestroyError, UserId},
};

/// Limits the calls in flight; more are refused at once. One client, user or caller never gets more places than are free, so that
/// however many of them are greedy, some places stay free for others (a dynamic threshold). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    /// Whether calls are admitted: not before the first successful check of the store.
    is_open: AtomicBool,
    /// Whether the service is draining.
    is_closed: AtomicBool,
    places: Mutex<Places>,
    /// Refused calls that are not logged yet.
    overloaded: AtomicU64,
    unavailable: AtomicU64,
}

/// How many places are taken, in all and by each holder.
#[derive(Debug, Default)]
struct Places {
    taken: usize,
    by_holder: HashMap<Holder, usize>,
}

/// One of those who hold a place together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The address of a client, or its /64 network.
    Client(IpAddr),
    User(UserId),
    /// The calling service.
    Caller(Arc<str>),
}

/// A place, released when this is dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Admission,
    holders: [Option<Holder>; 3],
}

impl Admission {
    /// At most `limit` calls in flight, once it is opened.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            is_open: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            places: Mutex::default(),
            overloaded: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
        }))
    }

    /// How many calls have a place.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.places().taken
    }

    /// How many calls can have a place at one time.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Admits calls.
    pub fn open(&self) {
        self.0.is_open.store(true, Ordering::Relaxed);
    }

    /// Refuses every call until the next [`Self::open`].
    pub fn refuse(&self) {
        self.0.is_open.store(false, Ordering::Relaxed);
    }

    /// Refuses every call from now on.
    pub fn close(&self) {
        self.0.is_closed.store(true, Ordering::Relaxed);
    }

    /// Whether a call could take a place now: a cheap check before anything else is done for it.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub fn check(&self) -> Result<(), DestroyError> {
        let inner = &*self.0;
        if inner.is_closed.load(Ordering::Relaxed) {
            return Err(DestroyError::Overloaded);
        }
        if !inner.is_open.load(Ordering::Relaxed) {
            return Err(DestroyError::StoreUnavailable);
        }
        if self.places().taken >= inner.limit { Err(DestroyError::Overloaded) } else { Ok(()) }
    }

    /// Takes a place, for the client where its address stands for one client alone.
    ///
    /// # Errors
    /// [`DestroyError::Overloaded`]: all places are taken, the client holds as many as are free, or the service is draining.
    /// [`DestroyError::StoreUnavailable`]: calls are refused.
    pub fn enter(&self, client: Option<IpAddr>) -> Result<Permit, DestroyError> {
        self.check()?;
        let mut places = self.places();
        let free = self.0.limit.saturating_sub(places.taken);
        let client = client.map(Holder::Client);
        if free == 0 || !places.add(client.as_ref(), free) {
            return Err(DestroyError::Overloaded);
        }
        places.taken += 1;
        drop(places);
        Ok(Permit { admission: self.clone(), holders: [client, None, None] })
    }

    /// Counts a refused call. Refused calls are logged together: in an overload, a line for each would cost more than the refusal.
    pub fn count_refusal(&self, error: DestroyError) {
        let count = match error {
            DestroyError::Overloaded => &self.0.overloaded,
            _ => &self.0.unavailable,
        };
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            let admission = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(config::calls::REFUSAL_LOG_INTERVAL).await;
                admission.log_refusals();
            });
        }
    }

    /// Logs the number of calls that were refused since the last time, one line for each reason.
    pub fn log_refusals(&self) {
        for (error, count) in [
            (DestroyError::Overloaded, &self.0.overloaded),
            (DestroyError::StoreUnavailable, &self.0.unavailable),
        ] {
            let calls = count.swap(0, Ordering::Relaxed);
            if calls > 0 {
                let is_draining = self.0.is_closed.load(Ordering::Relaxed);
                tracing::warn!(outcome = error.row().reason, calls, is_draining, "calls refused");
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// Counts one more place of this holder, unless it holds as many as are free.
    fn add(&mut self, holder: Option<&Holder>, free: usize) -> bool {
        let Some(holder) = holder else { return true };
        match self.by_holder.get_mut(holder) {
            Some(held) if *held >= free => return false,
            Some(held) => *held += 1,
            None => drop(self.by_holder.insert(holder.clone(), 1)),
        }
        true
    }

    fn remove(&mut self, holder: &Holder) {
        if let Some(held) = self.by_holder.get_mut(holder) {
            *held -= 1;
            if *held == 0 {
                self.by_holder.remove(holder);
            }
        }
    }
}

impl Permit {
    /// Adds the user and the calling service, once they are authenticated.
    ///
    /// # Errors
    /// [`DestroyError::Overloaded`]: one of them holds as many places as are free.
    pub fn identify(&mut self, user: UserId, caller: Option<Arc<str>>) -> Result<(), DestroyError> {
        let mut places = self.admission.places();
        // With its own place, which the user may have.
        let free = self.admission.0.limit.saturating_sub(places.taken) + 1;
        let [_, held_user, held_caller] = &mut self.holders;
        for (held, holder) in
            [(held_user, Some(Holder::User(user))), (held_caller, caller.map(Holder::Caller))]
        {
            if !places.add(holder.as_ref(), free) {
                return Err(DestroyError::Overloaded);
            }
            *held = holder;
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut places = self.admission.places();
        places.taken -= 1;
        for holder in self.holders.iter().flatten() {
            places.remove(holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::atomic::Ordering, time::Duration};

    use tokio::time::sleep;

    use super::{Admission, DestroyError, Permit, UserId};

    fn client(number: u8) -> Option<IpAddr> {
        Some([10, 0, 0, number].into())
    }

    fn open(limit: usize) -> Admission {
        let admission = Admission::new(limit);
        admission.open();
        admission
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_logged_once_a_second() {
        let admission = Admission::new(1);
        assert!(admission.enter(client(1)).is_err());
        admission.open();
        let permit = admission.enter(client(1));
        assert!(permit.is_ok() && admission.enter(client(2)).is_err());
        for _ in 0..2 {
            admission.count_refusal(DestroyError::Overloaded);
            admission.count_refusal(DestroyError::Overloaded);
            sleep(Duration::from_millis(900)).await;
            assert_eq!(admission.0.overloaded.load(Ordering::Relaxed), 2);
            sleep(Duration::from_millis(200)).await;
            assert_eq!(admission.0.overloaded.load(Ordering::Relaxed), 0);
        }
        drop(permit);
        assert!(admission.enter(client(1)).is_ok());
    }

    /// One greedy client gets half of the places, two a third each, and so on: some are always free.
    #[test]
    fn greedy_clients_leave_places_for_others() {
        for greedy in 1..=5_u8 {
            let admission = open(60);
            let mut held: Vec<Permit> = Vec::new();
            for _ in 0..60 {
                held.extend((1..=greedy).filter_map(|number| admission.enter(client(number)).ok()));
            }
            let free = 60 - held.len();
            assert!(free >= 60 / (usize::from(greedy) + 1) - 1, "{greedy} leave {free}");
            assert!(admission.enter(client(99)).is_ok());
            drop(held);
            assert_eq!(admission.places().taken, 0);
            assert!(admission.places().by_holder.is_empty());
        }
    }

    #[test]
    fn one_user_gets_no_more_over_many_addresses() -> Result<(), DestroyError> {
        let admission = open(16);
        let (Some(one), Some(other)) = (UserId::new(1), UserId::new(2)) else { return Ok(()) };
        let enter = |number, user| {
            let mut permit = admission.enter(client(number))?;
            permit.identify(user, Some("a caller".into())).map(|()| permit)
        };
        let held: Vec<Permit> = (0..16).filter_map(|number| enter(number, one).ok()).collect();
        assert_eq!(held.len(), 8);
        assert_eq!(admission.places().taken, 8, "a refused call holds no place");
        let mut permit = admission.enter(client(20))?;
        permit.identify(other, None)?;
        Ok(())
    }
}
