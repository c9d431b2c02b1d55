//! Calls by outcome, and how long they took.

use std::{sync::OnceLock, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use super::{Builder, TracedHistogram, durations};
use crate::{
    domain::{DestroyError, EdgeError, GrpcCode},
    telemetry::CallOutcome,
};

/// Observes every call once, when its record is dropped.
#[derive(Debug)]
pub struct Calls {
    rpc_duration: Family<RpcLabels, TracedHistogram>,
    http_duration: Family<HttpLabels, TracedHistogram>,
    calls: Family<CallLabels, Counter>,
    refused: Family<ReasonLabel, Counter>,
    /// The series of [`Self::rpc_duration`], by method and status, so that a call looks up none.
    rpc_series: [[Slot; GrpcCode::ALL.len()]; RPC_METHODS.len()],
    /// The most frequent series of the others.
    rest_destroyed: [Slot; 2],
    grpc_ok: OnceLock<Counter>,
    rest_ok: OnceLock<Counter>,
}

/// A series, once it is made.
type Slot = OnceLock<TracedHistogram>;

/// What every call has.
#[derive(Debug)]
pub struct Observed {
    pub outcome: CallOutcome,
    pub duration: Duration,
    /// Whether it had a place among the calls in flight.
    pub is_admitted: bool,
    /// The trace id of a call whose trace is recorded.
    pub trace_id: Option<Box<str>>,
}

/// What a REST request has in addition.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    pub method: &'a str,
    pub route: Option<&'static str>,
    /// `None` where no response was made.
    pub status: Option<u16>,
    pub is_secure: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    rpc_method: &'static str,
    rpc_response_status_code: &'static str,
    error_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    http_request_method: &'static str,
    http_route: &'static str,
    http_response_status_code: Option<u16>,
    error_type: &'static str,
    url_scheme: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    protocol: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The method that destroys, as `rpc.method` has it.
pub const DESTROY: &str = "collections.v1.CollectionsService/Destroy";

/// What stands for every value that is not a known one.
pub(in crate::telemetry) const OTHER: &str = "_OTHER";

/// The methods that are served; the last one stands for all others.
const RPC_METHODS: [&str; 7] = [
    DESTROY,
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    OTHER,
];

/// The methods that OpenTelemetry's semantic conventions for HTTP know.
pub(in crate::telemetry) const HTTP_METHODS: [&str; 10] =
    ["POST", "GET", "HEAD", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];

const GRPC: &str = "grpc";
const REST: &str = "rest";

/// The name of a method that is served, as `rpc.method` has it.
#[must_use]
pub fn known_rpc_method(name: &str) -> Option<&'static str> {
    RPC_METHODS.into_iter().find(|method| *method == name)
}

impl Calls {
    pub(super) fn new(builder: &mut Builder) -> Self {
        Self {
            rpc_duration: builder.family(
                "rpc_server_call_duration_seconds",
                "How long gRPC calls took, refused ones too",
                durations,
            ),
            http_duration: builder.family(
                "http_server_request_duration_seconds",
                "How long REST requests took, refused ones too",
                durations,
            ),
            calls: builder.family("collections_calls", "Destroy calls by their outcome", Counter::default),
            refused: builder.family(
                "collections_calls_refused",
                "Destroy calls that were not admitted",
                Counter::default,
            ),
            rpc_series: Default::default(),
            rest_destroyed: Default::default(),
            grpc_ok: OnceLock::new(),
            rest_ok: OnceLock::new(),
        }
    }

    /// Makes the series of gRPC destroys, so that the first failure is seen as an increase from 0.
    pub fn expect_grpc(&self) {
        self.expect(GRPC, DestroyError::ALL.map(CallOutcome::Failed));
        for outcome in DestroyError::ALL.map(CallOutcome::Failed).into_iter().chain([CallOutcome::Ok]) {
            let (_slot, series) = self.rpc(DESTROY, outcome.code());
            drop(series());
        }
    }

    /// The same for REST.
    pub fn expect_rest(&self) {
        self.expect(REST, DestroyError::ALL.map(CallOutcome::Failed));
        self.expect(REST, EdgeError::ALL.map(CallOutcome::Refused));
    }

    fn expect(&self, protocol: &'static str, outcomes: impl IntoIterator<Item = CallOutcome>) {
        let outcomes = outcomes.into_iter().chain([CallOutcome::Ok, CallOutcome::Cancelled]);
        for reason in outcomes.map(CallOutcome::reason) {
            drop(self.calls.get_or_create(&CallLabels { protocol, reason }));
        }
        for error in [DestroyError::Overloaded, DestroyError::StoreUnavailable] {
            drop(self.refused.get_or_create(&ReasonLabel { reason: error.row().reason }));
        }
    }

    /// Observes a gRPC call; one for Destroy counts as a destroy call.
    pub fn observe_rpc(&self, method: &str, call: Observed) {
        if method == DESTROY {
            self.count(GRPC, &self.grpc_ok, &call);
        }
        let (slot, series) = self.rpc(method, call.outcome.code());
        observe(slot, series, &call);
    }

    /// Observes a REST request.
    pub fn observe_http(&self, request: HttpRequest<'_>, call: Observed) {
        if call.outcome != CallOutcome::Described {
            self.count(REST, &self.rest_ok, &call);
        }
        let HttpRequest { method, route, status, is_secure } = request;
        let series = || {
            let is_server_error = status.is_some_and(|status| status >= 500);
            self.http_duration.get_or_create_owned(&HttpLabels {
                http_request_method: HTTP_METHODS.into_iter().find(|known| *known == method).unwrap_or(OTHER),
                http_route: route.unwrap_or_default(),
                http_response_status_code: status,
                error_type: if is_server_error { call.outcome.reason() } else { "" },
                url_scheme: if is_secure { "https" } else { "http" },
            })
        };
        // Only a destroy ends with OK, and all destroys have one route and one method.
        let usual = self.rest_destroyed.get(usize::from(is_secure));
        observe(usual.filter(|_| call.outcome == CallOutcome::Ok), series, &call);
    }

    fn count(&self, protocol: &'static str, ok: &OnceLock<Counter>, call: &Observed) {
        let series = || {
            let reason = call.outcome.reason();
            self.calls.get_or_create_owned(&CallLabels { protocol, reason })
        };
        match call.outcome {
            CallOutcome::Ok => ok.get_or_init(series).inc(),
            _ => series().inc(),
        };
        let is_refused = match call.outcome {
            CallOutcome::Failed(DestroyError::Overloaded) => true,
            CallOutcome::Failed(DestroyError::StoreUnavailable) => !call.is_admitted,
            _ => false,
        };
        if is_refused {
            self.refused.get_or_create(&ReasonLabel { reason: call.outcome.reason() }).inc();
        }
    }

    /// Where the series of a call is kept, and what makes it.
    fn rpc(&self, method: &str, code: GrpcCode) -> (Option<&Slot>, impl Fn() -> TracedHistogram) {
        let known = RPC_METHODS.into_iter().position(|known| known == method);
        let known = known.unwrap_or(RPC_METHODS.len() - 1);
        let series = move || {
            let error_type = if code.is_server_error() { code.name() } else { "" };
            self.rpc_duration.get_or_create_owned(&RpcLabels {
                rpc_method: RPC_METHODS.get(known).copied().unwrap_or(OTHER),
                rpc_response_status_code: code.name(),
                error_type,
            })
        };
        (self.rpc_series.get(known).and_then(|codes| codes.get(code as usize)), series)
    }
}

/// Observes how long a call took, without looking for its series where that is kept.
fn observe(slot: Option<&Slot>, series: impl Fn() -> TracedHistogram, call: &Observed) {
    let exemplar = call.trace_id.clone().map(|trace_id| [("trace_id", trace_id.into_string())]);
    let seconds = call.duration.as_secs_f64();
    match slot {
        Some(slot) => slot.get_or_init(series).observe(seconds, exemplar, None),
        None => series().observe(seconds, exemplar, None),
    }
}
