//! Resolves the upstream's name periodically.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use super::url::UpstreamUrl;
use crate::config;

/// Resolves the name of an upstream, and publishes its addresses.
#[derive(Debug)]
pub struct Resolver {
    url: UpstreamUrl,
    addresses: watch::Sender<Arc<[SocketAddr]>>,
    is_failing: bool,
}

impl Resolver {
    /// Publishes no address until the first [`Self::poll_once`].
    pub fn new(url: UpstreamUrl) -> (Self, watch::Receiver<Arc<[SocketAddr]>>) {
        let (addresses, receiver) = watch::channel(Arc::from([]));
        (Self { url, addresses, is_failing: false }, receiver)
    }

    /// Resolves the name once. Where it cannot be resolved the addresses stay, and that is logged once.
    pub async fn poll_once(&mut self) {
        match tokio::time::timeout(config::upstream::RESOLVE_TIMEOUT, self.url.addresses()).await {
            Ok(Ok(addresses)) if addresses.is_empty() => self.log_failure("it has no address"),
            Ok(Ok(addresses)) => self.publish(addresses),
            Ok(Err(error)) => self.log_failure(&error.to_string()),
            Err(_elapsed) => self.log_failure("no answer in time"),
        }
    }

    fn publish(&mut self, mut addresses: Vec<SocketAddr>) {
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(config::upstream::ADDRESS_LIMIT);
        self.is_failing = false;
        self.addresses.send_if_modified(|current| {
            let is_changed = **current != *addresses;
            if is_changed {
                tracing::info!(?addresses, "resolved the upstream's addresses");
                *current = addresses.into();
            }
            is_changed
        });
    }

    fn log_failure(&mut self, error: &str) {
        if !self.is_failing {
            tracing::error!(error, host = self.url.host, "the upstream's name cannot be resolved");
        }
        self.is_failing = true;
    }

    /// Resolves the name at intervals.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(config::upstream::RESOLVE_INTERVAL).await;
            self.poll_once().await;
        }
    }
}
