//! What Prometheus reads. The names are those of OpenTelemetry's semantic conventions, as Prometheus translates them, and ours.

mod callers;
mod calls;
mod database;
mod format;
mod listeners;
mod process;
mod purge;
mod reloads;

use std::{ops::Deref, sync::Arc};

use prometheus_client::{
    encoding::{EncodeMetric, prometheus_text, text},
    metrics::{
        counter::Counter, exemplar::HistogramWithExemplars, family::Family, gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Metric, Registry},
};

use self::{calls::Calls, database::Database, listeners::Listeners, purge::Purge, reloads::Reloads};
use crate::config;

pub(super) use self::calls::{HTTP_METHODS, OTHER};
pub use self::{
    callers::CallerMetrics,
    calls::{DESTROY, HttpRequest, Observed, known_rpc_method},
    database::{DatabaseMetrics, DatabaseOperation, DatabaseTimer},
    format::MetricsFormat,
    listeners::{ListenerMetrics, OpenConnection},
    reloads::ReloadMetrics,
};

/// All metrics of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Families>);

/// The families of metrics, by what they observe.
#[derive(Debug)]
pub struct Families {
    pub calls: Calls,
    pub callers: CallerMetrics,
    pub database: Database,
    pub purge: Purge,
    pub reloads: Reloads,
    pub listeners: Listeners,
    /// Calls that have a place now.
    pub in_flight: Gauge,
    /// The places.
    pub in_flight_limit: Gauge,
    /// Destroys that wait for a batch.
    pub queue_depth: Gauge,
    /// 1 while in-process counters are used because Redis is unavailable, else 0.
    pub rate_limit_fallback: Gauge,
    /// How often Redis became unavailable.
    pub rate_limit_fallbacks: Counter,
    /// The Unix time of the last successful fetch, 0 before there was one; without a value where there is no `--jwks`.
    pub jwks_last_success: Family<NoLabels, Gauge>,
    /// 1 while calls can be served.
    pub ready: Gauge,
    registry: Registry,
}

/// The labels of a family that has at most one series.
pub type NoLabels = [(&'static str, &'static str); 0];

/// A histogram whose buckets remember a trace.
type TracedHistogram = HistogramWithExemplars<[(&'static str, String); 1]>;

/// Registers metrics.
struct Builder(Registry);

impl Builder {
    /// A metric of this name, without the `_total` of a counter. `help` is a sentence without its full stop.
    fn register<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(name, help, Histogram::new(buckets.iter().copied()))
    }

    fn family<L, M>(&mut self, name: &str, help: &str, make: fn() -> M) -> Family<L, M>
    where
        Family<L, M>: EncodeMetric + Send + Sync + std::fmt::Debug + 'static,
        L: Clone + std::hash::Hash + Eq,
    {
        self.register(name, help, Family::new_with_constructor(make))
    }
}

/// A histogram of durations, with exemplars.
fn durations() -> TracedHistogram {
    TracedHistogram::new(config::telemetry::DURATION_BUCKETS.into_iter())
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut builder = Builder(Registry::default());
        process::register(&mut builder.0);
        Self(Arc::new(Families {
            calls: Calls::new(&mut builder),
            callers: CallerMetrics::new(&mut builder),
            database: Database::new(&mut builder),
            purge: Purge::new(&mut builder),
            reloads: Reloads::new(&mut builder),
            listeners: Listeners::new(&mut builder),
            in_flight: builder
                .gauge("collections_calls_in_flight", "Destroy calls that are admitted and not answered yet"),
            in_flight_limit: builder.gauge(
                "collections_calls_in_flight_limit",
                "Destroy calls that are admitted at one time (--max-in-flight)",
            ),
            queue_depth: builder.gauge("collections_queue_depth", "Destroys that wait for a batch"),
            rate_limit_fallback: builder.gauge(
                "collections_rate_limit_fallback",
                "1 while in-process counters are used because Redis is unavailable",
            ),
            rate_limit_fallbacks: builder
                .counter("collections_rate_limit_fallbacks", "How often Redis became unavailable"),
            jwks_last_success: builder.family(
                "collections_jwks_last_success_timestamp_seconds",
                "Unix time of the last successful fetch of the key set (--jwks), 0 before there was one",
                Gauge::default,
            ),
            ready: builder.gauge("collections_ready", "1 while calls can be served, as /readyz reports"),
            registry: builder.0,
        }))
    }

    /// All metrics in this format. Values that are read rather than counted are those of the last
    /// [`Gauge::set`](prometheus_client::metrics::gauge::Gauge::set).
    #[must_use]
    pub fn text(&self, format: MetricsFormat) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _written = match format {
            MetricsFormat::Plain => prometheus_text::encode(&mut text, &self.registry),
            MetricsFormat::OpenMetrics => text::encode(&mut text, &self.registry),
        };
        text
    }
}

impl Deref for Metrics {
    type Target = Families;

    fn deref(&self) -> &Families {
        &self.0
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
