//! What can be counted, as Prometheus reads it.

use std::sync::Arc;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// All metrics of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// 1 while in-process counters are used because Redis is unavailable, else 0.
    pub rate_limit_fallback: Gauge,
    /// How often Redis became unavailable.
    pub rate_limit_fallbacks: Counter,
    registry: Arc<Registry>,
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("collections");
        let (rate_limit_fallback, rate_limit_fallbacks) = (Gauge::default(), Counter::default());
        registry.register(
            "rate_limit_fallback",
            "1 while in-process counters are used because Redis is unavailable",
            rate_limit_fallback.clone(),
        );
        registry.register(
            "rate_limit_fallbacks",
            "How often Redis became unavailable",
            rate_limit_fallbacks.clone(),
        );
        Self { rate_limit_fallback, rate_limit_fallbacks, registry: Arc::new(registry) }
    }

    /// In the OpenMetrics text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _written = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
