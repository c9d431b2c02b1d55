//! Requests counted in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{config, domain::UserId};

/// The counts of one window; the next one begins with none.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    window: u64,
    used: HashMap<UserId, u32>,
}

impl Memory {
    /// Counts a request. How many there are now, or `None` where the limit is used up.
    pub fn take(&self, window: u64, user: UserId, limit: u32) -> Option<u32> {
        let mut counts = self.of(window);
        let Some(used) = counts.count(user) else { return Some(1) };
        if *used >= limit {
            return None;
        }
        *used += 1;
        Some(*used)
    }

    /// How many requests of this user are known.
    pub fn used(&self, window: u64, user: UserId) -> u32 {
        self.of(window).used.get(&user).copied().unwrap_or_default()
    }

    /// Somebody else has counted at least so many.
    pub fn learn(&self, window: u64, user: UserId, used: u32) {
        if let Some(known) = self.of(window).count(user) {
            *known = used.max(*known);
        }
    }

    fn of(&self, window: u64) -> MutexGuard<'_, Counts> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that is set back goes on counting in the window that was latest.
        if window > counts.window {
            *counts = Counts { window, used: HashMap::new() };
        }
        counts
    }
}

impl Counts {
    /// The count of a user; none where there are too many users to count, who then are not limited.
    fn count(&mut self, user: UserId) -> Option<&mut u32> {
        if self.used.len() >= config::rate_limit::KEY_LIMIT && !self.used.contains_key(&user) {
            return None;
        }
        Some(self.used.entry(user).or_default())
    }
}
