//! The record of one call: everything known of it, logged as one event, and recorded as one span.

mod span;

use std::{
    borrow::Cow,
    fmt::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::field::{DisplayValue, display};

use super::{CallOutcome, HttpRequest, Metrics, Observed, milliseconds, trace::CallTrace};
use crate::{
    config,
    domain::{CollectionId, DestroyFailure, Destroyed, UserId},
};

/// Collects the fields of one call's log line. It travels in the extensions of the request; clones share one record.
#[derive(Clone, Debug)]
pub struct CallRecord(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    fields: Mutex<CallFields>,
    metrics: Metrics,
}

/// What is known of a call. Fields that are `None` are left out of its line.
#[derive(Debug, Default)]
pub struct CallFields {
    /// `rpc.method`, of a gRPC call.
    pub rpc_method: Option<Cow<'static, str>>,
    /// `http.request.method`, of a REST request.
    pub http_method: Option<http::Method>,
    /// `url.path`, of a REST request.
    pub path: Option<Box<str>>,
    /// `server.address`: the host that a REST request names.
    pub host: Option<Box<str>>,
    /// `http.response.status_code`, of a REST request.
    pub http_status: Option<u16>,
    /// `client.address`
    pub client: Option<Arc<str>>,
    /// `request.id`: the header `x-request-id`, or the transaction id where the client sent none.
    pub request_id: Option<Box<str>>,
    /// `transaction.id`: the response's `x-transaction-id`, of a REST request.
    pub transaction: Option<Box<str>>,
    /// The call's place in its trace. Its span ends with the record.
    pub trace: CallTrace,
    /// The calling service or application, as in the audit trail.
    pub caller: Option<Arc<str>>,
    /// `enduser.id`
    pub user: Option<UserId>,
    /// `collection.id`
    pub collection: Option<CollectionId>,
    /// Whether an earlier call with the same request id had destroyed the collection.
    pub replayed: Option<bool>,
    /// Why the call failed, for an operator.
    pub error: Option<Arc<str>>,
    /// `None`: the caller disconnected, or the call was aborted.
    pub outcome: Option<CallOutcome>,
    /// Whether an operator has to act.
    pub is_fault: bool,
    /// Whether the call had a place among those in flight.
    pub is_admitted: bool,
    /// Whether no line is written: refused calls are logged together.
    pub is_silent: bool,
    /// `http.route`, of a REST request for a path that is served.
    pub http_route: Option<&'static str>,
    /// Whether a REST request was sent over TLS.
    pub is_secure: bool,
}

/// A value from outside, of which no more than [`config::telemetry::VALUE_LIMIT`] bytes are shown.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a>(pub &'a str);

/// The event's level has to be a constant, so there is one event for each.
macro_rules! log_call {
    ($level:ident, $fields:expr, $duration:expr) => {{
        let CallFields { path, host, client, caller, replayed, http_status, .. } = $fields;
        tracing::$level!(
            rpc.method = $fields.rpc_method.as_deref().map(cut),
            http.request.method = $fields.http_method.as_ref().map(|method| cut(method.as_str())),
            url.path = path.as_deref().map(cut),
            server.address = host.as_deref().map(cut),
            http.response.status_code = *http_status,
            client.address = client.as_deref(),
            request.id = $fields.request_id.as_deref().map(cut),
            transaction.id = $fields.transaction.as_deref(),
            trace_id = $fields.trace.trace_id().map(display),
            span_id = $fields.trace.span_id().map(display),
            caller = caller.as_deref().map(cut),
            enduser.id = $fields.user.map(display),
            collection.id = $fields.collection.map(display),
            replayed = *replayed,
            error = $fields.error.as_deref(),
            outcome = $fields.outcome.unwrap_or(CallOutcome::Cancelled).log_name(),
            duration_ms = $duration,
            "{}",
            if $fields.rpc_method.is_some() { "call" } else { "request" }
        );
    }};
}

impl CallRecord {
    /// Starts the call's clock.
    #[must_use]
    pub fn new(fields: CallFields, metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            fields: Mutex::new(fields),
            metrics: metrics.clone(),
        }))
    }

    /// The fields, to fill in. Not to be held across an await.
    pub fn fields(&self) -> MutexGuard<'_, CallFields> {
        self.0.fields.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the result of the destroy.
    pub fn finish(&self, result: &Result<Destroyed, DestroyFailure>) {
        let mut fields = self.fields();
        match result {
            Ok(destroyed) => {
                fields.outcome = Some(CallOutcome::Ok);
                fields.replayed = (*destroyed == Destroyed::Before).then_some(true);
            }
            Err(failure) => {
                fields.outcome = Some(CallOutcome::Failed(failure.error));
                fields.is_fault = failure.error.is_fault();
                fields.error = failure.cause.clone();
            }
        }
    }

    /// When the call began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.0.started
    }
}

/// The call is counted, its line written and its span ended when the last clone is dropped: after the answer, or when the call is
/// aborted.
impl Drop for Inner {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        let duration_ms = milliseconds(duration);
        let fields = self.fields.get_mut().unwrap_or_else(PoisonError::into_inner);
        observe(&self.metrics, fields, duration);
        if let Some(span) = fields.trace.recorded() {
            span::end(span, fields);
        }
        if fields.is_silent {
            return;
        }
        if fields.is_fault {
            log_call!(error, fields, duration_ms);
        } else {
            log_call!(info, fields, duration_ms);
        }
    }
}

fn observe(metrics: &Metrics, fields: &CallFields, duration: Duration) {
    let observed = Observed {
        outcome: fields.outcome.unwrap_or(CallOutcome::Cancelled),
        duration,
        is_admitted: fields.is_admitted,
        trace_id: fields.trace.recorded().map(|span| span.trace_id().to_string().into()),
    };
    if let Some(method) = fields.rpc_method.as_deref() {
        metrics.calls.observe_rpc(method, observed);
    } else if let Some(method) = &fields.http_method {
        let request = HttpRequest {
            method: method.as_str(),
            route: fields.http_route,
            status: fields.http_status,
            is_secure: fields.is_secure,
        };
        metrics.calls.observe_http(request, observed);
    }
}

fn cut(text: &str) -> DisplayValue<Cut<'_>> {
    display(Cut(text))
}

impl Cut<'_> {
    /// The beginning of the text, a little longer than what is shown: a copy for the record.
    #[must_use]
    pub fn copy(&self) -> Box<str> {
        let end = self.0.floor_char_boundary(2 * config::telemetry::VALUE_LIMIT);
        self.0.split_at_checked(end).map_or("", |(begin, _)| begin).into()
    }
}

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = *self;
        let end = text.floor_char_boundary(config::telemetry::VALUE_LIMIT);
        let (shown, rest) = text.split_at_checked(end).unwrap_or((text, ""));
        if shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            f.write_str(shown)?;
        } else {
            // Control characters and those that change the direction of text are not for a terminal.
            for letter in shown.chars() {
                if letter.is_ascii_graphic() || letter == ' ' {
                    f.write_char(letter)?
                } else {
                    letter.escape_debug().fmt(f)?
                }
            }
        }
        f.write_str(if rest.is_empty() { "" } else { "…" })
    }
}

#[cfg(test)]
mod tests {
    use super::Cut;
    use crate::config::telemetry::VALUE_LIMIT;

    #[test]
    fn a_logged_value_is_cut_and_escaped() {
        assert_eq!(Cut("a\nb\u{202e}c").to_string(), "a\\nb\\u{202e}c");
        let long = "x".repeat(5000);
        assert_eq!(Cut(&long).to_string(), format!("{}…", "x".repeat(VALUE_LIMIT)));
        assert_eq!(Cut(&long).copy().len(), 2 * VALUE_LIMIT);
    }
}
