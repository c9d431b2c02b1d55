//! The address that gets the next call.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{sync::watch, time::Instant};

use crate::config;

/// Chooses addresses in turn (round robin). An address that could not be reached is ejected for
/// [`config::upstream::EJECTION`].
#[derive(Debug)]
pub struct Balancer {
    addresses: watch::Receiver<Arc<[SocketAddr]>>,
    next: AtomicUsize,
    /// Ejected addresses, each with the end of its ejection.
    ejected: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Balancer {
    pub fn new(addresses: watch::Receiver<Arc<[SocketAddr]>>) -> Self {
        Self { addresses, next: AtomicUsize::new(0), ejected: Mutex::default() }
    }

    /// The next address that is not ejected; where all are, the next one. `None` where there is no address.
    pub fn pick(&self) -> Option<SocketAddr> {
        let addresses = self.addresses.borrow().clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % addresses.len().max(1);
        let mut turns = addresses.iter().cycle().skip(first).take(addresses.len());
        let mut ejected = self.ejected();
        ejected.retain(|_, end| Instant::now() < *end);
        let available = turns.clone().find(|address| !ejected.contains_key(address));
        available.or_else(|| turns.next()).copied()
    }

    /// Ejects an address that could not be reached.
    pub fn eject(&self, address: SocketAddr) {
        self.ejected().insert(address, Instant::now() + config::upstream::EJECTION);
    }

    fn ejected(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        self.ejected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use tokio::sync::watch;

    use super::Balancer;
    use crate::config;

    /// An ejection outlives a change of the addresses.
    #[tokio::test(start_paused = true)]
    async fn calls_go_round_robin_over_addresses_that_are_not_ejected() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (addresses, receiver) = watch::channel(Arc::from([]));
        let balancer = Balancer::new(receiver);
        let port = || balancer.pick().map(|address| address.port());
        assert_eq!(port(), None);
        addresses.send_replace(Arc::from([address(1), address(2), address(3)]));
        let mut ports: Vec<_> = (0..6).filter_map(|_| port()).collect();
        ports.sort_unstable();
        assert_eq!(ports, [1, 1, 2, 2, 3, 3]);

        balancer.eject(address(2));
        addresses.send_replace(Arc::from([address(2), address(4)]));
        assert!((0..6).all(|_| port() == Some(4)));
        tokio::time::sleep(config::upstream::EJECTION).await;
        assert_eq!((0..6).filter(|_| port() == Some(2)).count(), 3);

        balancer.eject(address(2));
        balancer.eject(address(4));
        assert!(port().is_some(), "with every address ejected, one is tried all the same");
    }
}
