//! The span of a call: its name, attributes and status at the end.

use std::borrow::Cow;

use http::Method;
use opentelemetry::KeyValue;

use super::{CallFields, Cut};
use crate::telemetry::{
    CallOutcome,
    metrics::{HTTP_METHODS, OTHER},
    trace::CallSpan,
};

/// Ends the span with what the record holds.
pub fn end(span: &CallSpan, fields: &CallFields) {
    let outcome = fields.outcome.unwrap_or(CallOutcome::Cancelled);
    let mut attributes = Vec::with_capacity(10);
    let mut add = |name: &'static str, value: Option<String>| {
        attributes.extend(value.map(|value| KeyValue::new(name, value)));
    };
    add("client.address", fields.client.as_deref().map(str::to_owned));
    add("collections.outcome", Some(outcome.reason().to_owned()));
    let (name, error): (Cow<'static, str>, Option<String>) = match &fields.rpc_method {
        Some(method) => {
            let code = outcome.code();
            add("rpc.system.name", Some("grpc".to_owned()));
            add("rpc.method", Some(Cut(method).to_string()));
            add("rpc.response.status_code", Some(code.name().to_owned()));
            (method.clone(), code.is_server_error().then(|| code.name().to_owned()))
        }
        None => {
            let (method, original) = known_method(fields.http_method.as_ref());
            add("http.request.method", Some(method.to_owned()));
            add("http.request.method_original", original.map(|original| Cut(original).to_string()));
            add("http.route", fields.http_route.map(str::to_owned));
            add("url.scheme", Some(if fields.is_secure { "https" } else { "http" }.to_owned()));
            add("url.path", fields.path.as_deref().map(|path| Cut(path).to_string()));
            add("server.address", fields.host.as_deref().map(|host| Cut(host).to_string()));
            let is_error = fields.http_status.is_some_and(|status| status >= 500);
            let verb = if original.is_some() { "HTTP" } else { method };
            let name = match fields.http_route {
                Some(route) => format!("{verb} {route}").into(),
                None => verb.to_owned().into(),
            };
            (name, is_error.then(|| outcome.reason().to_owned()))
        }
    };
    add("error.type", error.clone());
    attributes.extend(
        fields.http_status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))),
    );
    span.end(name, attributes, error.is_some());
}

/// `http.request.method`, and the method as the client sent it where it is not one of the standard's.
fn known_method(method: Option<&Method>) -> (&str, Option<&str>) {
    match method {
        Some(method) if HTTP_METHODS.contains(&method.as_str()) => (method.as_str(), None),
        Some(method) => (OTHER, Some(method.as_str())),
        None => (OTHER, None),
    }
}
