//! Requests counted in this process.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Key;
use crate::config::rate_limit::KEY_LIMIT;

/// The counts of the two windows that were used last. There are two because the clock may be set back and forth, and
/// because a call may end in a later window than it began in. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct MemoryCounter(Arc<Mutex<Windows>>);

#[derive(Debug, Default)]
struct Windows {
    latest: Counts,
    other: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    window: u64,
    used: HashMap<Key, u32>,
}

impl MemoryCounter {
    /// Counts a request and returns the new count, or `None` where the limit is used up.
    pub fn take(&self, window: u64, key: Key, limit: u32) -> Option<u32> {
        let mut windows = self.select(window);
        let Some(used) = windows.entry(key) else { return Some(1) };
        if *used >= limit {
            return None;
        }
        *used += 1;
        Some(*used)
    }

    /// The count of a key.
    pub fn used(&self, window: u64, key: Key) -> u32 {
        self.select(window).latest.used.get(&key).copied().unwrap_or_default()
    }

    /// Raises the count of a key to `used`, where it is lower.
    pub fn raise(&self, window: u64, key: Key, used: u32) {
        if let Some(count) = self.select(window).entry(key) {
            *count = used.max(*count);
        }
    }

    /// Makes this window the latest one. The clock may be set back, so it can be earlier than the one before.
    fn select(&self, window: u64) -> MutexGuard<'_, Windows> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.latest.window != window {
            let Windows { latest, other } = &mut *windows;
            mem::swap(latest, other);
            if latest.window != window {
                *latest = Counts { window, used: HashMap::new() };
            }
        }
        windows
    }
}

impl Windows {
    /// The count of a key in the latest window. `None` where too many keys are counted to add one: its requests are not
    /// limited.
    fn entry(&mut self, key: Key) -> Option<&mut u32> {
        let used = &mut self.latest.used;
        if !used.contains_key(&key) {
            if used.len() + self.other.used.len() >= KEY_LIMIT {
                self.other.used = HashMap::new();
            }
            if used.len() >= KEY_LIMIT {
                return None;
            }
        }
        Some(used.entry(key).or_default())
    }
}
