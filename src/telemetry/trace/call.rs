//! The span of a call that is served here.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        Link, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceId, TraceState, Tracer,
    },
};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use super::TraceHeaders;
use crate::config::traces;

/// The place of a call in its trace.
#[derive(Clone, Debug, Default)]
pub enum CallTrace {
    /// Traces are off, and the caller sent no context, or a malformed one.
    #[default]
    None,
    /// Traces are off: the caller's context.
    Caller(SpanContext),
    /// The call has a span that is not recorded.
    Unrecorded(SpanContext),
    /// The call has a span that is recorded.
    Recorded(CallSpan),
}

/// The recorded span of a call. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CallSpan(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: SpanContext,
    tracer: SdkTracer,
    span: Mutex<Span>,
}

impl CallTrace {
    pub(super) fn of_span(span: Span, tracer: &SdkTracer) -> Self {
        let context = span.span_context().clone();
        if !span.is_recording() {
            return Self::Unrecorded(context);
        }
        Self::Recorded(CallSpan(Arc::new(Inner { context, tracer: tracer.clone(), span: Mutex::new(span) })))
    }

    /// The id of the trace, whether or not it is recorded.
    #[must_use]
    pub fn trace_id(&self) -> Option<TraceId> {
        match self {
            Self::None => None,
            Self::Caller(context) | Self::Unrecorded(context) => Some(context.trace_id()),
            Self::Recorded(span) => Some(span.trace_id()),
        }
    }

    /// The id of the call's own span, whether or not it is recorded.
    #[must_use]
    pub fn span_id(&self) -> Option<SpanId> {
        match self {
            Self::None | Self::Caller(_) => None,
            Self::Unrecorded(context) => Some(context.span_id()),
            Self::Recorded(span) => Some(span.context().span_id()),
        }
    }

    /// The span, if it is recorded.
    #[must_use]
    pub fn recorded(&self) -> Option<&CallSpan> {
        match self {
            Self::Recorded(span) => Some(span),
            Self::None | Self::Caller(_) | Self::Unrecorded(_) => None,
        }
    }

    /// What is sent with a call to another server that has no recorded span of its own. `None` where traces are off: then what
    /// the caller sent is forwarded as it is.
    #[must_use]
    pub fn headers(&self) -> Option<TraceHeaders> {
        match self {
            Self::None | Self::Caller(_) => None,
            Self::Unrecorded(context) => Some(TraceHeaders::of(context)),
            Self::Recorded(span) => Some(TraceHeaders::of(span.context())),
        }
    }
}

impl CallSpan {
    #[must_use]
    pub fn trace_id(&self) -> TraceId {
        self.0.context.trace_id()
    }

    fn context(&self) -> &SpanContext {
        &self.0.context
    }

    fn identity(&self) -> SpanContext {
        identity(self.context())
    }

    /// Ends the span.
    pub fn end(&self, name: Cow<'static, str>, attributes: Vec<KeyValue>, is_error: bool) {
        let mut span = self.span();
        span.update_name(name);
        span.set_attributes(attributes);
        if is_error {
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Starts a span for work that this call and others wait for. Each of the other calls and the new span link to each other, as
    /// far as the limit of links allows.
    pub(super) fn start_child<'a>(
        &self,
        name: &'static str,
        attributes: Vec<KeyValue>,
        others: impl Iterator<Item = &'a Self> + Clone,
    ) -> Span {
        let links = others.clone().map(|other| Link::with_context(other.identity())).take(traces::LINKS);
        let builder = self.0.tracer.span_builder(name).with_kind(SpanKind::Client);
        let builder = builder.with_attributes(attributes).with_links(links.collect());
        // A local parent: the decision is its own.
        let parent = Context::new().with_remote_span_context(self.context().clone());
        let span = self.0.tracer.build_with_context(builder, &parent);
        for other in others.take(traces::LINKS) {
            other.span().add_link(identity(span.span_context()), Vec::new());
        }
        span
    }

    /// Nothing panics while it is held.
    fn span(&self) -> MutexGuard<'_, Span> {
        self.0.span.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a link needs of a context. The state of callers would be copied into each of up to [`traces::LINKS`] links.
fn identity(context: &SpanContext) -> SpanContext {
    let (trace, span) = (context.trace_id(), context.span_id());
    SpanContext::new(trace, span, context.trace_flags(), context.is_remote(), TraceState::NONE)
}
