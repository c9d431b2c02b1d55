//! Requests counted in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Key;
use crate::config;

/// The counts of one window. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct MemoryCounter(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    window: u64,
    used: HashMap<Key, u32>,
}

impl MemoryCounter {
    /// Counts a request and returns the new count, or `None` where the limit is used up.
    pub fn take(&self, window: u64, key: Key, limit: u32) -> Option<u32> {
        let mut counts = self.of(window);
        let Some(used) = counts.entry(key) else { return Some(1) };
        if *used >= limit {
            return None;
        }
        *used += 1;
        Some(*used)
    }

    /// The count of a key.
    pub fn used(&self, window: u64, key: Key) -> u32 {
        self.of(window).used.get(&key).copied().unwrap_or_default()
    }

    /// Raises the count of a key to `used`, where it is lower.
    pub fn raise(&self, window: u64, key: Key, used: u32) {
        if let Some(known) = self.of(window).entry(key) {
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
    /// The count of a key. `None` where too many keys are counted to add one: its requests are not limited.
    fn entry(&mut self, key: Key) -> Option<&mut u32> {
        if self.used.len() >= config::rate_limit::KEY_LIMIT && !self.used.contains_key(&key) {
            return None;
        }
        Some(self.used.entry(key).or_default())
    }
}
