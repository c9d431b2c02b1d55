//! Files that are read again when they change, and the certificates in them.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::Builder;
use crate::domain::Clock;

/// What is observed of files, by the flag that names them.
#[derive(Debug)]
pub struct Reloads {
    reloads: Family<ReloadLabels, Counter>,
    last_success: Family<FlagLabel, Gauge>,
    failing: Family<FlagLabel, Gauge>,
    certificate_expiry: Family<FlagLabel, Gauge>,
}

/// The metrics of the files of one flag.
#[derive(Clone, Debug)]
pub struct ReloadMetrics {
    successes: Counter,
    failures: Counter,
    last_success: Gauge,
    failing: Gauge,
    clock: Clock,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlagLabel {
    flag: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    flag: &'static str,
    result: &'static str,
}

impl Reloads {
    pub(super) fn new(builder: &mut Builder) -> Self {
        Self {
            reloads: builder.family(
                "collections_reloads",
                "Changes of files on disk, by whether they could be loaded",
                Counter::default,
            ),
            last_success: builder.family(
                "collections_reload_last_success_timestamp_seconds",
                "Unix time of the last successful load of files",
                Gauge::default,
            ),
            failing: builder.family(
                "collections_reload_failing",
                "1 while the files on disk cannot be used and the contents before them are in use",
                Gauge::default,
            ),
            certificate_expiry: builder.family(
                "collections_certificate_expiry_timestamp_seconds",
                "Unix time at which the certificate in use expires",
                Gauge::default,
            ),
        }
    }

    /// The metrics of a flag's files, which were just loaded.
    #[must_use]
    pub fn of_flag(&self, flag: &'static str, clock: Clock) -> ReloadMetrics {
        let counter = |result| self.reloads.get_or_create_owned(&ReloadLabels { flag, result });
        let label = FlagLabel { flag };
        let last_success = self.last_success.get_or_create_owned(&label);
        last_success.set(clock.now().timestamp());
        ReloadMetrics {
            successes: counter("success"),
            failures: counter("failure"),
            last_success,
            failing: self.failing.get_or_create_owned(&label),
            clock,
        }
    }

    /// Sets when the certificate of a flag expires, in Unix seconds.
    pub fn set_certificate_expiry(&self, flag: &'static str, not_after: i64) {
        self.certificate_expiry.get_or_create(&FlagLabel { flag }).set(not_after);
    }
}

impl ReloadMetrics {
    /// A change was loaded.
    pub fn succeed(&self) {
        self.successes.inc();
        self.failing.set(0);
        self.last_success.set(self.clock.now().timestamp());
    }

    /// A change cannot be loaded.
    pub fn fail(&self) {
        self.failures.inc();
        self.failing.set(1);
    }
}
