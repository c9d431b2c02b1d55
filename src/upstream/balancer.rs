//! The address that gets the next call.

use std::{
    collections::HashMap,
    fmt,
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
    /// Addresses that were ejected and have not answered since, each with the end of its ejection.
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
        let (ejected, now) = (self.ejected(), Instant::now());
        let available = turns.clone().find(|address| ejected.get(address).is_none_or(|end| *end <= now));
        available.or_else(|| turns.next()).copied()
    }

    /// Ejects an address that could not be reached. That is logged once, until it has answered again.
    pub fn eject(&self, address: SocketAddr, cause: impl fmt::Display) {
        let (addresses, now) = (self.addresses.borrow().clone(), Instant::now());
        let mut ejected = self.ejected();
        // Those that the name does not have any more may never answer.
        ejected.retain(|address, end| now < *end || addresses.contains(address));
        let is_new = ejected.insert(address, now + config::upstream::EJECTION).is_none();
        drop(ejected);
        if is_new {
            tracing::warn!(%address, cause = format_args!("{cause:.128}"), "upstream address ejected");
        }
    }

    /// Records that an address has answered. Its ejection, if there was one, ends no sooner.
    pub fn record_answer(&self, address: SocketAddr) {
        let mut ejected = self.ejected();
        let has_ended = ejected.get(&address).is_some_and(|end| *end <= Instant::now());
        if has_ended {
            ejected.remove(&address);
            drop(ejected);
            tracing::info!(%address, "upstream address serves again");
        }
    }

    fn ejected(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        self.ejected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io, net::SocketAddr, sync::Arc};

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

        balancer.eject(address(2), "refused");
        addresses.send_replace(Arc::from([address(2), address(4)]));
        assert!((0..6).all(|_| port() == Some(4)));
        tokio::time::sleep(config::upstream::EJECTION).await;
        assert_eq!((0..6).filter(|_| port() == Some(2)).count(), 3);

        balancer.eject(address(2), "refused");
        balancer.eject(address(4), "refused");
        assert!(port().is_some(), "with every address ejected, one is tried all the same");
    }
    #[tokio::test(start_paused = true)]
    async fn an_ejection_is_logged_once_and_its_end_when_the_address_answers() -> io::Result<()> {
        let log = tempfile::NamedTempFile::new()?;
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.reopen()?).finish();
        let _subscribed = tracing::subscriber::set_default(subscriber);
        let text = || fs::read_to_string(log.path());
        let [first, second] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let (addresses, receiver) = watch::channel(Arc::from([first, second]));
        let balancer = Balancer::new(receiver);
        for _ in 0..3 {
            balancer.eject(first, "refused");
            // A call that was in flight. The ejection goes on.
            balancer.record_answer(first);
            balancer.record_answer(second);
            assert!((0..6).all(|_| balancer.pick() == Some(second)));
            tokio::time::sleep(config::upstream::EJECTION).await;
            assert_eq!((0..6).filter(|_| balancer.pick() == Some(first)).count(), 3);
        }
        assert_eq!(text()?.lines().count(), 1);
        for _ in 0..3 {
            balancer.record_answer(first);
        }
        let text = text()?;
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("upstream address ejected address=127.0.0.1:1 cause=refused"), "{text}");
        assert!(text.ends_with("upstream address serves again address=127.0.0.1:1\n"), "{text}");

        // One that the name does not have any more leaves nothing behind.
        balancer.eject(first, "refused");
        addresses.send_replace(Arc::from([second]));
        tokio::time::sleep(config::upstream::EJECTION).await;
        balancer.eject(second, "refused");
        assert_eq!(balancer.ejected().len(), 1);
        Ok(())
    }
}
