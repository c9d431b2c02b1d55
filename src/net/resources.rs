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
    public: ListenerResources,
    /// For the admin listener alone, so that a probe always has a place.
    admin: ListenerResources,
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
        Self::new(connections, request_memory)
    }

    fn new(connections: usize, request_memory: usize) -> Self {
        let events = ConnectionEvents::new();
        let resources = |connections, request_memory| ListenerResources {
            table: ConnectionTable::new(TableLimits::of(connections)),
            requests: RequestBudget::new(request_memory),
            events: events.clone(),
        };
        Self {
            public: resources(connections, request_memory),
            admin: resources(net::ADMIN_CONNECTION_LIMIT, net::ADMIN_REQUEST_MEMORY),
        }
    }

    /// For a listener of callers.
    #[must_use]
    pub fn public(&self) -> ListenerResources {
        self.public.clone()
    }

    /// For the admin listener.
    #[must_use]
    pub fn admin(&self) -> ListenerResources {
        self.admin.clone()
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
    use http::Request;

    use super::{ProcessLimits, Resources, TableLimits, connections, net, request_memory};

    const MIB: u64 = 1024 * 1024;

    /// The events are logged by a task.
    #[tokio::test]
    async fn requests_to_other_listeners_leave_memory_for_the_admin_listener() {
        let resources = Resources::new(64, net::REQUEST_OVERHEAD);
        let request = Request::new(());
        let client = |requests: &std::sync::Arc<super::RequestBudget>| requests.client([127, 0, 0, 1].into());
        assert!(client(&resources.public().requests).charge(&request).is_none());
        assert!(client(&resources.admin().requests).charge(&request).is_some());
    }

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
