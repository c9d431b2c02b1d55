//! Connections and their handshakes.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::Builder;

/// What is observed of listeners.
#[derive(Debug)]
pub struct Listeners {
    connections: Family<ListenerLabel, Gauge>,
    handshake_failures: Family<ListenerLabel, Counter>,
}

/// The metrics of one listener. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ListenerMetrics {
    connections: Gauge,
    handshake_failures: Counter,
}

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: &'static str,
}

impl Listeners {
    pub(super) fn new(builder: &mut Builder) -> Self {
        Self {
            connections: builder.family("collections_connections", "Open connections", Gauge::default),
            handshake_failures: builder.family(
                "collections_handshake_failures",
                "TLS handshakes that failed",
                Counter::default,
            ),
        }
    }

    /// The metrics of the listener of this name.
    #[must_use]
    pub fn of(&self, listener: &'static str) -> ListenerMetrics {
        let label = ListenerLabel { listener };
        ListenerMetrics {
            connections: self.connections.get_or_create_owned(&label),
            handshake_failures: self.handshake_failures.get_or_create_owned(&label),
        }
    }
}

impl ListenerMetrics {
    /// Counts a connection that was accepted.
    #[must_use]
    pub fn open(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// Counts a failed handshake.
    pub fn fail_handshake(&self) {
        self.handshake_failures.inc();
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
