//! Traces: a span for each recorded call, for each call of a gateway to the RPC, and for each statement, exported over OTLP.
//! Names and attributes are those of OpenTelemetry's semantic conventions.

mod call;
mod client;
mod context;
mod endpoint;
mod export;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanContext, SpanKind, TraceContextExt, TraceFlags, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    Resource,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tokio::time::Instant;

use crate::config::traces;

pub use call::{CallSpan, CallTrace};
pub use client::ClientSpan;
pub use context::TraceHeaders;
pub use endpoint::{OtlpEndpoint, OtlpEndpointError, SampleRatio, SampleRatioError};
pub use export::{CollectorTls, ExportLimits};

use export::Exporting;

/// Where traces are exported, and which.
#[derive(Debug)]
pub struct TraceSettings {
    pub endpoint: OtlpEndpoint,
    /// For an https endpoint.
    pub tls: CollectorTls,
    pub sampling: Sampling,
    pub limits: ExportLimits,
    /// `service.name`, unless the environment has another.
    pub service: &'static str,
    /// `service.instance.id`: unique for each process.
    pub instance: String,
}

/// Which traces are recorded.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// The share of traces.
    pub ratio: SampleRatio,
    /// Whether the caller's decision has precedence over the ratio.
    pub follows_parent: bool,
}

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("the thread that exports traces could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts spans and exports them; off by default. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Tracing>>);

#[derive(Debug)]
struct Tracing {
    tracer: SdkTracer,
    exporting: Exporting,
    requested: Mutex<RequestedTraces>,
}

/// The traces that were recorded because an unauthenticated client asked for it, in a second that began at this time.
#[derive(Debug)]
struct RequestedTraces {
    since: Instant,
    count: u32,
}

impl Traces {
    /// Starts the thread that exports spans. The collector need not be up.
    ///
    /// # Errors
    /// The settings cannot be used, or the thread cannot be started.
    pub fn export(settings: TraceSettings) -> Result<Self, TraceError> {
        let resource = resource(&settings);
        let (exporting, processor) =
            Exporting::start(&settings.endpoint, settings.tls, settings.limits, &resource)?;
        let Sampling { ratio, follows_parent } = settings.sampling;
        let by_ratio = Sampler::TraceIdRatioBased(ratio.get());
        let sampler = if follows_parent { Sampler::ParentBased(Box::new(by_ratio)) } else { by_ratio };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(sampler)
            .with_span_processor(processor)
            .build();
        tracing::info!(endpoint = %settings.endpoint, ratio = ratio.get(), follows_parent, "traces are exported");
        let requested = Mutex::new(RequestedTraces { since: Instant::now(), count: 0 });
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        Ok(Self(Some(Arc::new(Tracing { tracer, exporting, requested }))))
    }

    /// Starts the span of a call with these headers, below the caller's span where the caller sent one.
    #[must_use]
    pub fn start_call(&self, headers: &HeaderMap) -> CallTrace {
        self.start(headers, |_tracing| true)
    }

    /// The same for a client that anyone can be: it may ask for a record, [`traces::REQUESTED_TRACES`] times a second.
    #[must_use]
    pub fn start_public_call(&self, headers: &HeaderMap) -> CallTrace {
        self.start(headers, Tracing::admit_request)
    }

    fn start(&self, headers: &HeaderMap, may_request: impl Fn(&Tracing) -> bool) -> CallTrace {
        let Some(tracing) = &self.0 else {
            return context::parent_of(headers).map_or(CallTrace::None, CallTrace::Caller);
        };
        let mut caller = context::of_headers(headers);
        if let Some(context) = caller.as_mut().filter(|context| context.is_sampled() && !may_request(tracing))
        {
            *context = SpanContext::new(
                context.trace_id(),
                context.span_id(),
                TraceFlags::NOT_SAMPLED,
                true,
                context.trace_state().clone(),
            );
        }
        let parent = match caller {
            Some(caller) => Context::new().with_remote_span_context(caller),
            None => Context::new(),
        };
        // Its name is set at its end, where it is known whether it is recorded.
        let builder = tracing.tracer.span_builder("call").with_kind(SpanKind::Server);
        CallTrace::of_span(tracing.tracer.build_with_context(builder, &parent), &tracing.tracer)
    }

    /// Exports the last spans until the deadline, for [`traces::FLUSH_TIMEOUT`] at most. Later ones are lost.
    pub async fn shut_down(&self, deadline: Instant) {
        if let Some(tracing) = &self.0 {
            tracing.exporting.shut_down(deadline.min(Instant::now() + traces::FLUSH_TIMEOUT)).await;
        }
    }
}

impl Tracing {
    fn admit_request(&self) -> bool {
        let mut requested = self.requested.lock().unwrap_or_else(PoisonError::into_inner);
        requested.admit(Instant::now())
    }
}

impl RequestedTraces {
    /// Whether one more trace may be recorded in this second because a client asks for it.
    fn admit(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= traces::REQUESTED_TRACES
    }
}

/// What the spans are of. `OTEL_RESOURCE_ATTRIBUTES` has precedence, and `OTEL_SERVICE_NAME` over that.
fn resource(settings: &TraceSettings) -> Resource {
    let builder = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", settings.service),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", settings.instance.clone()),
        ])
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => builder.with_service_name(name).build(),
        _ => builder.build(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::RequestedTraces;
    use crate::config::traces::REQUESTED_TRACES;

    #[test]
    fn limits_the_traces_that_clients_ask_for_in_each_second() {
        let since = Instant::now();
        let mut requested = RequestedTraces { since, count: 0 };
        for second in [0, 1, 7] {
            let now = since + Duration::from_secs(second);
            let admitted = (0..3 * REQUESTED_TRACES).filter(|_| requested.admit(now)).count();
            assert_eq!(admitted, REQUESTED_TRACES as usize);
        }
    }
}
