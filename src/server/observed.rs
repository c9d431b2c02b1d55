//! What the admin listener reports: metrics, with the values that are read when they are asked for, and readiness.

use std::sync::Arc;

use super::checks::{Checks, Optional};
use crate::{
    collections::Admission,
    jwks::Jwks,
    net::ReloadStatus,
    store::Store,
    telemetry::{Metrics, MetricsFormat},
};

/// The parts of a server that are asked for their state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Observed {
    pub metrics: Metrics,
    pub checks: Checks,
    pub optional: Arc<[Optional]>,
    pub admission: Admission,
    pub store: Store,
    pub jwks: Option<Jwks>,
}

impl Observed {
    /// All metrics of the process.
    pub fn metrics_text(&self, format: MetricsFormat) -> String {
        let Self { metrics, checks, admission, store, jwks, .. } = self;
        metrics.in_flight.set(signed(admission.in_flight()));
        metrics.in_flight_limit.set(signed(admission.limit()));
        metrics.queue_depth.set(signed(store.queue_depth()));
        metrics.ready.set(i64::from(checks.is_ready()));
        if let Some(jwks) = jwks {
            // 0 where there was none yet, so that an alert can see it.
            let fetched_at = jwks.last_success().map_or(0, |time| time.timestamp());
            metrics.jwks_last_success.get_or_create(&[]).set(fetched_at);
        }
        metrics.text(format)
    }
}

/// The checks whose failure leaves calls that can be served.
pub fn optional_checks(
    jwks: Option<&Jwks>,
    reloads: Vec<(&'static str, ReloadStatus)>,
    has_redis: bool,
    metrics: &Metrics,
) -> Arc<[Optional]> {
    let jwks = jwks.cloned().map(|jwks| Optional::new("jwks".to_owned(), move || jwks.failure()));
    let metrics = metrics.clone();
    let redis = move || {
        (metrics.rate_limit_fallback.get() != 0)
            .then(|| "redis unavailable; using in-process counters".to_owned())
    };
    let redis = has_redis.then(|| Optional::new("redis".to_owned(), redis));
    let reloads = reloads.into_iter().map(|(flag, status)| {
        let name = format!("reload/{}", flag.trim_start_matches('-'));
        Optional::new(name, move || status.failure())
    });
    jwks.into_iter().chain(redis).chain(reloads).collect()
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
