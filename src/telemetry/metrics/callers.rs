//! Destroyed collections by caller, with a bounded number of callers.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use super::{Builder, calls::OTHER};
use crate::{config, telemetry::Cut};

/// Counts destroyed collections by the caller in their tombstones.
#[derive(Debug)]
pub struct CallerMetrics {
    destroyed: Family<CallerLabel, Counter>,
    /// Of destroys without a caller.
    anonymous: Counter,
    /// Of the first callers, which have a label of their own.
    named: Mutex<HashMap<Box<str>, Counter>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallerLabel {
    caller: String,
}

impl CallerMetrics {
    pub(super) fn new(builder: &mut Builder) -> Self {
        let destroyed: Family<CallerLabel, Counter> = builder.family(
            "collections_destroyed",
            "Collections destroyed, by the caller in the tombstone",
            Counter::default,
        );
        let anonymous = destroyed.get_or_create_owned(&CallerLabel { caller: String::new() });
        Self { destroyed, anonymous, named: Mutex::default() }
    }

    /// Makes the series of callers that are known before their first destroy, because Prometheus does not see the first
    /// value of a new series as an increase.
    pub fn expect(&self, callers: impl IntoIterator<Item = String>) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        for caller in callers.into_iter().take(config::telemetry::CALLER_LABELS) {
            let counter =
                self.destroyed.get_or_create_owned(&CallerLabel { caller: Cut(&caller).to_string() });
            named.insert(caller.into(), counter);
        }
    }

    /// Counts one destroyed collection.
    pub fn count(&self, caller: Option<&str>) {
        let Some(caller) = caller else {
            self.anonymous.inc();
            return;
        };
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = named.get(caller) {
            counter.inc();
            return;
        }
        let label = |caller| self.destroyed.get_or_create_owned(&CallerLabel { caller });
        if named.len() >= config::telemetry::CALLER_LABELS {
            label(OTHER.to_owned()).inc();
        } else {
            let counter = label(Cut(caller).to_string());
            counter.inc();
            named.insert(caller.into(), counter);
        }
    }
}
