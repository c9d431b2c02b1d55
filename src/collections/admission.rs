//! The limit of calls in flight, and each caller's share of it.

use std::{
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

/// Limits the calls in flight; more are refused at once. While fewer than a quarter of the places are free, a caller that
/// holds a quarter of all places gets no further one, so that one caller cannot take the places of all others.
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    /// Whether calls are admitted: not before the first successful check of the store, and not after the drain.
    is_open: AtomicBool,
    is_closed: AtomicBool,
    places: Mutex<Places>,
    /// Refused calls that are not logged yet.
    overloaded: AtomicU64,
    unavailable: AtomicU64,
}

/// The holder of each place, and which places are free. They are counted only when places are scarce.
#[derive(Debug, Default)]
struct Places {
    holders: Vec<Option<Holder>>,
    free: Vec<usize>,
}

/// Who holds a place, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// The number of the connection.
    pub connection: Option<usize>,
    /// The address, where it stands for one client.
    pub address: Option<IpAddr>,
    pub user: Option<UserId>,
    /// The calling service.
    pub caller: Option<Arc<str>>,
}

/// A place, held until it is dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Admission,
    place: usize,
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
        if self.places().taken() >= inner.limit { Err(DestroyError::Overloaded) } else { Ok(()) }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`DestroyError::Overloaded`]: all places are taken, places are scarce and the holder has its share of them, or the
    /// service is draining. [`DestroyError::StoreUnavailable`]: calls are refused.
    pub fn enter(&self, holder: Holder) -> Result<Permit, DestroyError> {
        self.check()?;
        let inner = &*self.0;
        let mut places = self.places();
        let taken = places.taken();
        if taken >= inner.limit || (inner.are_scarce(taken) && places.has_share(&holder, inner.share())) {
            return Err(DestroyError::Overloaded);
        }
        let place = places.take(holder);
        drop(places);
        Ok(Permit { admission: self.clone(), place })
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
                tracing::warn!(outcome = error.row().reason, calls, "calls refused");
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    const fn share(&self) -> usize {
        self.limit / 4
    }

    const fn are_scarce(&self, taken: usize) -> bool {
        taken >= self.limit - self.share()
    }
}

impl Places {
    const fn taken(&self) -> usize {
        self.holders.len() - self.free.len()
    }

    fn take(&mut self, holder: Holder) -> usize {
        if let Some(place) = self.free.pop() {
            if let Some(held) = self.holders.get_mut(place) {
                *held = Some(holder);
            }
            return place;
        }
        self.holders.push(Some(holder));
        self.holders.len() - 1
    }

    /// Whether any key of this holder already has `share` places.
    fn has_share(&self, holder: &Holder, share: usize) -> bool {
        let count = |is_same: &dyn Fn(&Holder) -> bool| {
            self.holders.iter().flatten().filter(|held| is_same(held)).take(share).count() >= share
        };
        (holder.connection.is_some() && count(&|held| held.connection == holder.connection))
            || (holder.address.is_some() && count(&|held| held.address == holder.address))
            || (holder.user.is_some() && count(&|held| held.user == holder.user))
            || (holder.caller.is_some() && count(&|held| held.caller == holder.caller))
    }
}

impl Permit {
    /// Adds the user and the calling service, once they are authenticated.
    ///
    /// # Errors
    /// [`DestroyError::Overloaded`]: places are scarce, and one of them has its share.
    pub fn identify(&self, user: UserId, caller: Option<Arc<str>>) -> Result<(), DestroyError> {
        let inner = &*self.admission.0;
        let holder = Holder { user: Some(user), caller, ..Holder::default() };
        let mut places = self.admission.places();
        // Its own place is not free, and does not count.
        let taken = places.taken() - 1;
        if inner.are_scarce(taken) && places.has_share(&holder, inner.share()) {
            return Err(DestroyError::Overloaded);
        }
        if let Some(Some(held)) = places.holders.get_mut(self.place) {
            (held.user, held.caller) = (holder.user, holder.caller);
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut places = self.admission.places();
        if let Some(held) = places.holders.get_mut(self.place) {
            *held = None;
        }
        places.free.push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::Ordering, time::Duration};

    use tokio::time::sleep;

    use super::{Admission, DestroyError, Holder, Permit, UserId};

    fn connection(number: usize) -> Holder {
        Holder { connection: Some(number), ..Holder::default() }
    }

    fn open(limit: usize) -> Admission {
        let admission = Admission::new(limit);
        admission.open();
        admission
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_logged_once_a_second() {
        let admission = Admission::new(1);
        assert!(admission.enter(connection(1)).is_err());
        admission.open();
        let permit = admission.enter(connection(1));
        assert!(permit.is_ok() && admission.enter(connection(2)).is_err());
        for _ in 0..2 {
            admission.count_refusal(DestroyError::Overloaded);
            admission.count_refusal(DestroyError::Overloaded);
            sleep(Duration::from_millis(900)).await;
            assert_eq!(admission.0.overloaded.load(Ordering::Relaxed), 2);
            sleep(Duration::from_millis(200)).await;
            assert_eq!(admission.0.overloaded.load(Ordering::Relaxed), 0);
        }
        drop(permit);
        assert!(admission.enter(connection(1)).is_ok());
    }

    /// Without competition one connection may have three quarters; the last quarter is for others.
    #[test]
    fn one_connection_cannot_take_the_last_quarter() -> Result<(), DestroyError> {
        let admission = open(16);
        let _first: Vec<Permit> =
            (0..12).map(|_| admission.enter(connection(1))).collect::<Result<_, _>>()?;
        assert_eq!(admission.enter(connection(1)).map(drop), Err(DestroyError::Overloaded));
        let _others: Vec<Permit> =
            (2..6).map(|number| admission.enter(connection(number))).collect::<Result<_, _>>()?;
        assert_eq!(admission.enter(connection(9)).map(drop), Err(DestroyError::Overloaded));
        Ok(())
    }

    #[test]
    fn one_user_cannot_take_the_last_quarter_over_many_connections() -> Result<(), DestroyError> {
        let admission = open(16);
        let (Some(one), Some(other)) = (UserId::new(1), UserId::new(2)) else { return Ok(()) };
        let enter = |number, user| {
            let permit = admission.enter(connection(number))?;
            permit.identify(user, None).map(|()| permit)
        };
        let _held: Vec<Permit> = (0..12).map(|number| enter(number, one)).collect::<Result<_, _>>()?;
        assert_eq!(enter(20, one).map(drop), Err(DestroyError::Overloaded));
        let _other = enter(21, other)?;
        assert_eq!(admission.places().holders.iter().flatten().count(), 13, "a refused call keeps no place");
        Ok(())
    }
}
