//! What the listeners of one process share: places for connections, and memory for requests.

use std::sync::Arc;

use super::{
    connection_table::{ConnectionTable, TableLimits},
    event_counter::ConnectionEvents,
    process_limits::ProcessLimits,
    request_budget::RequestBudget,
};
use crate::config::net;

/// The connections and the request memory of a process, within the limits that the operating system sets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Resources {
    /// For the listeners of callers.
    public: Arc<ConnectionTable>,
    /// For the admin listener alone, so that a probe always has a place.
    admin: Arc<ConnectionTable>,
    requests: Arc<RequestBudget>,
    events: Arc<ConnectionEvents>,
}

/// What one listener uses of them.
#[derive(Clone, Debug)]
pub struct ListenerResources {
    pub(super) table: Arc<ConnectionTable>,
    pub(super) requests: Arc<RequestBudget>,
    pub(super) events: Arc<ConnectionEvents>,
}

impl Resources {
    /// Raises the limit of open files, and divides what this process may use.
    #[must_use]
    pub fn of_process() -> Self {
        let limits = ProcessLimits::read();
        let (connections, request_memory) = (connections(limits), request_memory(limits));
        tracing::debug!(limits.memory, limits.files, connections, request_memory, "limits of connections");
        Self {
            public: ConnectionTable::new(TableLimits::of(connections)),
            admin: ConnectionTable::new(TableLimits::of(net::ADMIN_CONNECTION_LIMIT)),
            requests: RequestBudget::new(request_memory),
            events: ConnectionEvents::new(),
        }
    }

    /// For a listener of callers.
    #[must_use]
    pub fn public(&self) -> ListenerResources {
        self.with(&self.public)
    }

    /// For the admin listener.
    #[must_use]
    pub fn admin(&self) -> ListenerResources {
        self.with(&self.admin)
    }

    fn with(&self, table: &Arc<ConnectionTable>) -> ListenerResources {
        ListenerResources {
            table: table.clone(),
            requests: self.requests.clone(),
            events: self.events.clone(),
        }
    }
}

/// How many connections the listeners of callers may have together, evicted ones not counted.
fn connections(limits: ProcessLimits) -> usize {
    let by_memory = limits.memory / net::CONNECTION_MEMORY_SHARE / net::CONNECTION_BYTES;
    let admin = TableLimits::of(net::ADMIN_CONNECTION_LIMIT);
    let reserved = (admin.connections + admin.evicted) as u64 + net::RESERVED_FILES;
    let by_files = limits.files.saturating_sub(reserved);
    let open = usize::try_from(by_memory.min(by_files)).unwrap_or(usize::MAX);
    // Evicted connections are open in addition to the limit.
    let connections = open - open.div_ceil(net::EVICTED_CONNECTION_SHARE + 1);
    connections.clamp(net::MIN_CONNECTION_LIMIT, net::CONNECTION_LIMIT)
}

fn request_memory(limits: ProcessLimits) -> usize {
    let share = usize::try_from(limits.memory / net::REQUEST_MEMORY_SHARE).unwrap_or(usize::MAX);
    share.clamp(net::MIN_REQUEST_MEMORY, net::REQUEST_MEMORY_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::{ProcessLimits, TableLimits, connections, net, request_memory};

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn connections_fit_into_memory_and_files() {
        for memory in [64 * MIB, 256 * MIB, 1024 * MIB, u64::MAX] {
            for files in [256, 1024, 20_000, u64::MAX] {
                let limits = ProcessLimits { memory, files };
                let TableLimits { connections, evicted, .. } = TableLimits::of(connections(limits));
                let open = (connections + evicted) as u64;
                assert!(connections == net::MIN_CONNECTION_LIMIT || open + net::RESERVED_FILES < files);
                assert!(open * net::CONNECTION_BYTES < memory / 2, "{limits:?}");
                assert!(request_memory(limits) as u64 <= memory / 4, "{limits:?}");
            }
        }
        let pod = ProcessLimits { memory: 256 * MIB, files: 1 << 20 };
        assert!(connections(pod) > 1024, "{}", connections(pod));
        let few_files = ProcessLimits { memory: u64::MAX, files: 1024 };
        assert!((512..1024).contains(&connections(few_files)));
    }
}
