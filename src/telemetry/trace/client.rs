//! Spans of what calls wait for: statements, and calls of a gateway to the RPC.

use std::net::SocketAddr;

use opentelemetry::{
    KeyValue,
    trace::{Span as _, Status},
};
use opentelemetry_sdk::trace::Span;

use super::{CallSpan, TraceHeaders};
use crate::domain::GrpcCode;

/// A span that ends when it is dropped.
#[derive(Debug)]
pub struct ClientSpan(Span);

impl ClientSpan {
    /// Of one attempt to call an RPC.
    #[must_use]
    pub fn of_rpc(call: &CallSpan, method: &'static str, server: SocketAddr) -> Self {
        let attributes = vec![
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
            KeyValue::new("server.address", server.ip().to_string()),
            KeyValue::new("server.port", i64::from(server.port())),
        ];
        Self(call.start_child(method, attributes, std::iter::empty()))
    }

    /// Of a statement for so many operations, below the first of these calls and linked with the others. `None` where none of
    /// the calls is recorded.
    pub fn of_statement<'a>(
        mut calls: impl Iterator<Item = &'a CallSpan> + Clone,
        system: &'static str,
        operation: &'static str,
        operations: usize,
    ) -> Option<Self> {
        let first = calls.next()?;
        let mut attributes =
            vec![KeyValue::new("db.system.name", system), KeyValue::new("db.operation.name", operation)];
        // By the conventions, one operation is no batch.
        if operations > 1 {
            let size = i64::try_from(operations).unwrap_or(i64::MAX);
            attributes.push(KeyValue::new("db.operation.batch.size", size));
        }
        Some(Self(first.start_child(operation, attributes, calls)))
    }

    /// What is sent with the call, so that the server's span is below this one.
    #[must_use]
    pub fn headers(&self) -> TraceHeaders {
        TraceHeaders::of(self.0.span_context())
    }

    /// Ends the span with the status code of the response.
    pub fn end_rpc(mut self, code: GrpcCode) {
        self.0.set_attribute(KeyValue::new("rpc.response.status_code", code.name()));
        if code.is_server_error() {
            self.set_error(code.name());
        }
    }

    /// Ends the span of a statement that failed, with the kind of the error and the database's own code for it.
    pub fn end_failed(mut self, error: &'static str, sqlstate: Option<String>) {
        if let Some(sqlstate) = sqlstate {
            self.0.set_attribute(KeyValue::new("db.response.status_code", sqlstate));
        }
        self.set_error(error);
    }

    fn set_error(&mut self, error: &'static str) {
        self.0.set_attribute(KeyValue::new("error.type", error));
        self.0.set_status(Status::error(""));
    }
}
