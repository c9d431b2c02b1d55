//! Keeps an issuer's keys: reads its JWKS from a file or a URL, again and again, and holds the last good one.

mod source;

use std::{future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::{Mutex, Semaphore, watch};

pub use self::source::{JwksError, JwksSource, SourceError};
use crate::{
    config,
    domain::Clock,
    identity::jwt::{KeySet, KeySource, NoKeys, Verifier},
};

/// Whose tokens are believed.
#[derive(Clone, Debug)]
pub struct Jwt {
    pub jwks: JwksSource,
    /// What the claim `iss` must be.
    pub issuer: String,
    /// What the claim `aud` must be or hold: any of these.
    pub audiences: Vec<String>,
}

/// The keys of a JWKS, kept new. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jwks(Arc<Keeper>);

#[derive(Debug)]
struct Keeper {
    source: JwksSource,
    clock: Clock,
    held: watch::Sender<Held>,
    prompted: watch::Sender<Prompted>,
    /// One reading at a time.
    turn: Mutex<()>,
    /// Calls that wait for a reading.
    waiters: Semaphore,
}

/// The last good key set, and what came of the last reading.
#[derive(Debug)]
struct Held {
    keys: Option<Arc<KeySet>>,
    /// What the keys were read from.
    text: Bytes,
    /// When it was last read well.
    at: DateTime<Utc>,
    trouble: Option<String>,
}

/// The readings that unknown key ids brought about.
#[derive(Debug, Default)]
struct Prompted {
    last: Option<DateTime<Utc>>,
    begun: u64,
    finished: u64,
}

impl Jwt {
    /// A verifier, and its keys, which [`Jwks::run`] refreshes.
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
    /// A file cannot be read or is no usable JWKS: it would hardly mend itself.
    pub async fn open(source: JwksSource, clock: Clock) -> Result<Self, JwksError> {
        let held = Held { keys: None, text: Bytes::new(), at: DateTime::UNIX_EPOCH, trouble: None };
        let (held, prompted) = (watch::Sender::new(held), watch::Sender::default());
        let jwks = Self(Arc::new(Keeper {
            source,
            clock,
            held,
            prompted,
            turn: Mutex::default(),
            waiters: Semaphore::new(config::jwks::WAITER_LIMIT),
        }));
        match jwks.0.read().await {
            Err(error) if jwks.0.source.is_file() => Err(error),
            seen => {
                jwks.0.hold(seen);
                Ok(jwks)
            }
        }
    }

    /// One reading, within its bounds. Says whether it went well; what is new about that stands in the log.
    pub async fn refresh(&self) -> bool {
        let _turn = self.0.turn.lock().await;
        let seen = self.0.read().await;
        self.0.hold(seen)
    }

    /// Refreshes the keys again and again.
    pub async fn run(self) {
        let mut retry = config::jwks::RETRY_BACKOFF;
        let mut well = self.0.held.borrow().trouble.is_none();
        loop {
            let interval = self.0.source.interval();
            if well {
                retry = config::jwks::RETRY_BACKOFF;
                tokio::time::sleep(interval).await;
            } else {
                tokio::time::sleep(retry.min(interval)).await;
                retry = (retry * 2).min(config::jwks::RETRY_BACKOFF_MAX);
            }
            well = self.refresh().await;
        }
    }
}

impl KeySource for Jwks {
    fn keys(&self) -> Result<Arc<KeySet>, NoKeys> {
        let held = self.0.held.borrow();
        let trouble = || held.trouble.clone().unwrap_or_default();
        let keys = held.keys.as_ref().ok_or_else(|| NoKeys(trouble()))?;
        let age = (self.0.clock.now() - held.at).num_seconds();
        if age > config::jwks::MAX_AGE {
            return Err(NoKeys(format!("the last good one is {age} s old; {}", trouble())));
        }
        Ok(keys.clone())
    }

    /// The reading is a task of its own: a caller who goes away must not cut it short for the others who wait.
    fn renewed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let now = self.0.clock.now();
            let mut wanted = 0;
            let begun = self.0.prompted.send_if_modified(|prompted| {
                // Of a clock that was set back, too, or there would be none for as long.
                let paused =
                    |last: DateTime<Utc>| (now - last).num_seconds().abs() >= config::jwks::PROMPTED_INTERVAL;
                let begin = prompted.last.is_none_or(paused);
                if begin {
                    prompted.last = Some(now);
                    prompted.begun += 1;
                }
                wanted = prompted.begun;
                begin
            });
            // Whoever sends a token chooses its key id, and each call that waits has a place of everybody's.
            let Ok(_place) = self.0.waiters.try_acquire() else { return };
            let mut prompted = self.0.prompted.subscribe();
            if begun {
                let jwks = self.clone();
                let reading = tokio::spawn({
                    let jwks = jwks.clone();
                    async move { jwks.refresh().await }
                });
                tokio::spawn(async move {
                    // Finished even if it died: nobody must wait for it.
                    let _read = reading.await;
                    jwks.0.prompted.send_modify(|prompted| prompted.finished += 1);
                });
            }
            let finished = prompted.wait_for(|prompted| prompted.finished >= wanted);
            let _patient = tokio::time::timeout(config::jwks::PROMPTED_TIMEOUT, finished).await;
        })
    }
}

impl Keeper {
    /// The text of the JWKS, with its keys where it is not the one that is held.
    async fn read(&self) -> Result<(Bytes, Option<KeySet>), JwksError> {
        let text = self.source.read().await?;
        let known = {
            let held = self.held.borrow();
            held.keys.is_some() && held.text == text
        };
        let keys = if known { None } else { Some(KeySet::parse(&text)?) };
        Ok((text, keys))
    }

    /// Holds what was read, or on to what is held, and logs where that differs from before.
    fn hold(&self, seen: Result<(Bytes, Option<KeySet>), JwksError>) -> bool {
        let now = self.clock.now();
        let well = seen.is_ok();
        self.held.send_modify(|held| match seen {
            Ok((text, keys)) => {
                let recovered = held.trouble.take().is_some();
                held.at = now;
                if let Some(keys) = keys {
                    let (usable, ignored) = keys.counts();
                    tracing::info!(jwks = %self.source, keys = usable, ignored, "a JWKS was loaded");
                    if usable == 0 {
                        tracing::error!(jwks = %self.source, "the issuer has no keys: no token is believed");
                    }
                    (held.keys, held.text) = (Some(Arc::new(keys)), text);
                } else if recovered {
                    tracing::info!(jwks = %self.source, "the JWKS can be had again");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if held.trouble.as_ref() != Some(&error) {
                    let last_good = held.keys.is_some().then(|| held.at.to_rfc3339());
                    tracing::error!(jwks = %self.source, error, last_good, "no JWKS could be loaded");
                    held.trouble = Some(error);
                }
            }
        });
        well
    }
}
