//! What the listeners of one process share: places for connections, and memory for requests.

use std::sync::Arc;

use ipnet::IpNet;

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

/// How the limits of the process are divided.
#[derive(Clone, Copy, Debug)]
struct Shares {
    /// Of the listeners of callers together, evicted connections not counted.
    connections: usize,
    admin_connections: usize,
    /// Files that are left for other uses than connections of listeners.
    reserved_files: u64,
    /// Of the listeners of callers together, in bytes.
    request_memory: usize,
}

/// What one listener uses of them.
#[derive(Clone, Debug)]
pub struct ListenerResources {
    pub(super) table: Arc<ConnectionTable>,
    pub(super) requests: Arc<RequestBudget>,
    pub(super) events: Arc<ConnectionEvents>,
    /// Proxies, which are not limited to the share of one client.
    pub(super) proxies: Vec<IpNet>,
}

impl ListenerResources {
    /// For a listener behind these proxies.
    #[must_use]
    pub fn behind(self, proxies: Vec<IpNet>) -> Self {
        Self { proxies, ..self }
    }
}

impl Resources {
    /// Raises the limit of open files, and divides what this process may use. Each connection to the database needs a file in
    /// addition to [`net::RESERVED_FILES`].
    #[must_use]
    pub fn of_process(database_connections: u32) -> Self {
        let limits = ProcessLimits::read();
        let shares = Shares::of(limits, database_connections);
        tracing::info!(
            memory_limit = limits.memory,
            file_limit = (limits.files < u64::MAX).then_some(limits.files),
            reserved_files = shares.reserved_files,
            connections = shares.connections,
            admin_connections = shares.admin_connections,
            request_memory = shares.request_memory,
            admin_request_memory = net::ADMIN_REQUEST_MEMORY,
            "limits of this process"
        );
        Self::new(shares)
    }

    fn new(shares: Shares) -> Self {
        let events = ConnectionEvents::new();
        let resources = |connections, request_memory| ListenerResources {
            table: ConnectionTable::new(TableLimits::of(connections)),
            requests: RequestBudget::new(request_memory),
            events: events.clone(),
            proxies: Vec::new(),
        };
        Self {
            public: resources(shares.connections, shares.request_memory),
            admin: resources(shares.admin_connections, net::ADMIN_REQUEST_MEMORY),
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

impl Shares {
    fn of(limits: ProcessLimits, database_connections: u32) -> Self {
        let file_share = usize::try_from(limits.files / net::MIN_CONNECTION_FILE_SHARE).unwrap_or(usize::MAX);
        let admin_connections = net::ADMIN_CONNECTION_LIMIT.min(file_share);
        let reserved_files = net::RESERVED_FILES + u64::from(database_connections);
        let by_memory = limits.memory / net::CONNECTION_MEMORY_SHARE / net::CONNECTION_BYTES;
        let admin_files = open(admin_connections);
        let by_files = limits.files.saturating_sub(reserved_files + admin_files);
        let all = usize::try_from(by_memory.min(by_files)).unwrap_or(usize::MAX);
        // Evicted connections are open in addition to the limit.
        let connections = all - all.div_ceil(net::EVICTED_CONNECTION_SHARE + 1);
        let least = net::MIN_CONNECTION_LIMIT.min(file_share);
        Self {
            connections: connections.clamp(least, net::CONNECTION_LIMIT),
            admin_connections,
            reserved_files,
            request_memory: request_memory(limits),
        }
    }
}

/// How many connections a table with this limit may have open at one time, evicted ones included.
const fn open(connections: usize) -> u64 {
    let limits = TableLimits::of(connections);
    (limits.connections + limits.evicted) as u64
}

fn request_memory(limits: ProcessLimits) -> usize {
    let share = usize::try_from(limits.memory / net::REQUEST_MEMORY_SHARE).unwrap_or(usize::MAX);
    share.clamp(net::MIN_REQUEST_MEMORY, net::REQUEST_MEMORY_LIMIT)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::{ProcessLimits, Resources, Shares, net, open};

    use crate::net::source::Source;

    const MIB: u64 = 1024 * 1024;

    /// The events are logged by a task.
    #[tokio::test]
    async fn requests_to_other_listeners_leave_memory_for_the_admin_listener() {
        let limits = ProcessLimits { memory: 64 * MIB, files: 1024 };
        let shares = Shares { request_memory: net::REQUEST_OVERHEAD, ..Shares::of(limits, 8) };
        let resources = Resources::new(shares);
        let request = Request::new(());
        let client = |requests: &std::sync::Arc<super::RequestBudget>| {
            requests.client(Source::Client([127, 0, 0, 1].into()))
        };
        assert!(client(&resources.public().requests).charge(&request).is_none());
        assert!(client(&resources.admin().requests).charge(&request).is_some());
    }

    #[test]
    fn connections_fit_into_memory_and_files() {
        for memory in [64 * MIB, 256 * MIB, 1024 * MIB, u64::MAX] {
            for files in [64, 256, 1024, 20_000, u64::MAX] {
                for database_connections in [1, 8, 1000] {
                    let limits = ProcessLimits { memory, files };
                    let shares = Shares::of(limits, database_connections);
                    let public = open(shares.connections);
                    let all = public + open(shares.admin_connections);
                    assert!(shares.connections > 0 && shares.admin_connections > 0, "{limits:?}");
                    assert!(
                        all <= files / 2 || all + 128 + u64::from(database_connections) <= files,
                        "{limits:?}"
                    );
                    assert!(public * net::CONNECTION_BYTES < memory / 2, "{limits:?}");
                    assert!(shares.request_memory as u64 <= memory / 4, "{limits:?}");
                }
            }
        }
        let connections = |limits| Shares::of(limits, 8).connections;
        let pod = ProcessLimits { memory: 256 * MIB, files: 1 << 20 };
        assert!(connections(pod) > 1024, "{}", connections(pod));
        let few_files = ProcessLimits { memory: u64::MAX, files: 1024 };
        assert!((512..1024).contains(&connections(few_files)));
    }
}
