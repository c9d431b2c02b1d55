//! Reads an issuer's JWKS from a file or a URL, refreshes it in the background, and keeps the last valid one.

mod source;

use std::{future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::{Mutex, Semaphore, watch};

pub use self::source::{JwksError, JwksSource, SourceError};
use crate::{
    config,
    domain::Clock,
    identity::{
        excerpts,
        jwt::{KeySet, KeySource, NoKeys, Verifier},
    },
};

/// The settings of bearer tokens: whose are accepted.
#[derive(Clone, Debug)]
pub struct Jwt {
    pub jwks: JwksSource,
    /// What the claim `iss` must be.
    pub issuer: String,
    /// What the claim `aud` must be or hold: any of these.
    pub audiences: Vec<String>,
}

/// The keys of a JWKS, refreshed in the background. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jwks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: JwksSource,
    clock: Clock,
    current: watch::Sender<Current>,
    on_demand: watch::Sender<OnDemand>,
    /// One refresh at a time.
    refreshing: Mutex<()>,
    /// Calls that wait for a refresh.
    waiters: Semaphore,
}

/// The last valid key set, and the result of the last refresh.
#[derive(Debug)]
struct Current {
    keys: Option<Arc<KeySet>>,
    /// What the keys were read from.
    text: Bytes,
    /// When it was last read without an error.
    read_at: DateTime<Utc>,
    /// The error of the last refresh, if it failed.
    error: Option<String>,
}

/// The refreshes that tokens with unknown key ids caused.
#[derive(Debug, Default)]
struct OnDemand {
    last: Option<DateTime<Utc>>,
    started: u64,
    finished: u64,
}

impl Jwt {
    /// Returns a verifier, and its keys, which [`Jwks::run`] refreshes.
    ///
    /// # Errors
    /// As [`Jwks::open`].
    pub async fn open(self, clock: Clock) -> Result<(Verifier, Jwks), JwksError> {
        let jwks = Jwks::open(self.jwks, clock.clone()).await?;
        let verifier = Verifier::new(Arc::new(jwks.clone()), &self.issuer, &self.audiences, clock);
        Ok((verifier, jwks))
    }
}

impl Jwks {
    /// Reads the JWKS for the first time. A URL may not answer yet: until it does there are no keys.
    ///
    /// # Errors
    /// A file cannot be read or is no usable JWKS: no retry would help.
    pub async fn open(source: JwksSource, clock: Clock) -> Result<Self, JwksError> {
        let current = Current { keys: None, text: Bytes::new(), read_at: DateTime::UNIX_EPOCH, error: None };
        let (current, on_demand) = (watch::Sender::new(current), watch::Sender::default());
        let jwks = Self(Arc::new(Inner {
            source,
            clock,
            current,
            on_demand,
            refreshing: Mutex::default(),
            waiters: Semaphore::new(config::jwks::WAITER_LIMIT),
        }));
        match jwks.0.read().await {
            Err(error) if jwks.0.source.is_file() => {
                Err(JwksError::Unusable(jwks.0.source.to_string(), error.into()))
            }
            read => {
                jwks.0.apply(read);
                Ok(jwks)
            }
        }
    }

    /// Reads the JWKS once, within its limits. Returns whether it succeeded; changes are logged.
    pub async fn refresh(&self) -> bool {
        let _refreshing = self.0.refreshing.lock().await;
        let read = self.0.read().await;
        self.0.apply(read)
    }

    /// When the JWKS was last read without an error.
    #[must_use]
    pub fn last_success(&self) -> Option<DateTime<Utc>> {
        let current = self.0.current.borrow();
        current.keys.is_some().then_some(current.read_at)
    }

    /// Why the last refresh failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.0.current.borrow().error.clone()
    }

    /// Refreshes the keys in a loop, with a backoff after errors.
    pub async fn run(self) {
        let mut retry = config::jwks::RETRY_BACKOFF;
        let mut succeeded = self.0.current.borrow().error.is_none();
        loop {
            let interval = self.0.source.interval();
            if succeeded {
                retry = config::jwks::RETRY_BACKOFF;
                tokio::time::sleep(interval).await;
            } else {
                tokio::time::sleep(retry.min(interval)).await;
                retry = (retry * 2).min(config::jwks::RETRY_BACKOFF_MAX);
            }
            succeeded = self.refresh().await;
        }
    }
}

impl KeySource for Jwks {
    fn keys(&self) -> Result<Arc<KeySet>, NoKeys> {
        let current = self.0.current.borrow();
        let error = || current.error.clone().unwrap_or_default();
        let keys = current.keys.as_ref().ok_or_else(|| NoKeys(error()))?;
        let age = (self.0.clock.now() - current.read_at).num_seconds();
        if age > config::jwks::MAX_AGE {
            return Err(NoKeys(format!("the last valid one is {age} s old; {}", error())));
        }
        Ok(keys.clone())
    }

    /// The refresh is a task of its own: a call that is cancelled must not cancel it for the others that wait.
    fn refresh_once(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let now = self.0.clock.now();
            let mut wanted = 0;
            let starts = self.0.on_demand.send_if_modified(|on_demand| {
                // The absolute value, or a clock that was set back would suspend them for as long.
                let is_due = |last: DateTime<Utc>| {
                    (now - last).num_seconds().abs() >= config::jwks::ON_DEMAND_INTERVAL
                };
                let starts = on_demand.last.is_none_or(is_due);
                if starts {
                    on_demand.last = Some(now);
                    on_demand.started += 1;
                }
                wanted = on_demand.started;
                starts
            });
            // The sender of a token chooses its key id, and each call that waits occupies a place of all callers.
            let Ok(_place) = self.0.waiters.try_acquire() else { return };
            let mut on_demand = self.0.on_demand.subscribe();
            if starts {
                let jwks = self.clone();
                let refresh = tokio::spawn({
                    let jwks = jwks.clone();
                    async move { jwks.refresh().await }
                });
                tokio::spawn(async move {
                    // Finished even if it panicked: no call must wait for it.
                    let _result = refresh.await;
                    jwks.0.on_demand.send_modify(|on_demand| on_demand.finished += 1);
                });
            }
            let finished = on_demand.wait_for(|on_demand| on_demand.finished >= wanted);
            let _in_time = tokio::time::timeout(config::jwks::ON_DEMAND_TIMEOUT, finished).await;
        })
    }
}

impl Inner {
    /// Reads the text of the JWKS, and parses its keys where the text has changed.
    async fn read(&self) -> Result<(Bytes, Option<KeySet>), JwksError> {
        let text = self.source.read().await?;
        let is_unchanged = {
            let current = self.current.borrow();
            current.keys.is_some() && current.text == text
        };
        let keys = if is_unchanged { None } else { Some(KeySet::parse(&text)?) };
        Ok((text, keys))
    }

    /// Makes what was read current, or leaves the current keys in place where reading failed, and logs changes. Returns
    /// whether reading succeeded.
    fn apply(&self, read: Result<(Bytes, Option<KeySet>), JwksError>) -> bool {
        let now = self.clock.now();
        let succeeded = read.is_ok();
        self.current.send_modify(|current| match read {
            Ok((text, keys)) => {
                let recovered = current.error.take().is_some();
                current.read_at = now;
                if let Some(keys) = keys {
                    self.log_loaded(&keys);
                    (current.keys, current.text) = (Some(Arc::new(keys)), text);
                } else if recovered {
                    tracing::info!(jwks = %self.source, "jwks available again");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if current.error.as_ref() != Some(&error) {
                    self.log_failure(current, &error);
                    current.error = Some(error);
                }
            }
        });
        succeeded
    }

    fn log_failure(&self, current: &Current, error: &str) {
        if current.keys.is_some() {
            let last_good = current.read_at.to_rfc3339_opts(SecondsFormat::Secs, true);
            tracing::error!(jwks = %self.source, error, last_good, "jwks unavailable; keeping the last loaded keys");
        } else {
            tracing::error!(
                jwks = %self.source,
                error,
                "jwks unavailable; no keys were loaded; bearer tokens are answered with UNAVAILABLE"
            );
        }
    }

    /// Logs which keys are in force, and which of them were published by mistake.
    fn log_loaded(&self, keys: &KeySet) {
        let (usable, ignored) = keys.counts();
        let kids = excerpts(keys.kids(), config::jwks::LOGGED_KID_COUNT);
        tracing::info!(jwks = %self.source, keys = usable, ignored, kids, "jwks loaded");
        if usable == 0 {
            tracing::error!(jwks = %self.source, "jwks has no keys; all bearer tokens are rejected");
        }
        if !keys.private_kids().is_empty() {
            let kids = excerpts(keys.private_kids(), config::jwks::LOGGED_KID_COUNT);
            tracing::warn!(
                jwks = %self.source,
                kids,
                "jwks contains private keys or shared secrets; anyone who can read it can sign tokens: replace these keys"
            );
        }
    }
}
