//! The erasure of entries.

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

use super::{Builder, NoLabels};

/// What is observed of the purge.
#[derive(Debug)]
pub struct Purge {
    backlog: Family<NoLabels, Gauge>,
    oldest_age: Family<NoLabels, Gauge>,
    pub entries: Counter,
    pub failures: Counter,
}

impl Purge {
    pub(super) fn new(builder: &mut Builder) -> Self {
        Self {
            backlog: builder.family(
                "collections_purge_backlog",
                "Collections whose entries are still to be erased, in the whole database, counted to a limit; absent \
                 while they cannot be counted",
                Gauge::default,
            ),
            oldest_age: builder.family(
                "collections_purge_oldest_age_seconds",
                "Age of the oldest of the collections that collections_purge_backlog counts",
                Gauge::default,
            ),
            entries: builder.counter("collections_purged_entries", "Entries erased by this process"),
            failures: builder.counter("collections_purge_failures", "Steps of the purge that failed in this process"),
        }
    }

    /// Sets the backlog and the age of its oldest row in seconds; `None` where it could not be counted.
    pub fn set_backlog(&self, counted: Option<(i64, i64)>) {
        match counted {
            Some((rows, age)) => {
                self.backlog.get_or_create(&[]).set(rows);
                self.oldest_age.get_or_create(&[]).set(age);
            }
            // A value that is not known any more would look like one that is.
            None => {
                self.backlog.clear();
                self.oldest_age.clear();
            }
        }
    }
}
