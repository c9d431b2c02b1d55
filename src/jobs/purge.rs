//! Erases the entries of destroyed collections, and gives way to destroys: after each step it pauses for a multiple of the
//! time that the step took, so that it slows down with the database.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    config,
    store::{PurgeError, PurgeWait, Purged, Purger},
    telemetry::Metrics,
};

/// How much a purge does.
#[derive(Clone, Copy, Debug)]
pub struct PurgeSettings {
    /// Entries that are erased in one step.
    pub batch: u32,
    /// The shortest pause between two steps.
    pub pause: Duration,
}

impl PurgeSettings {
    /// The pause after a step that took this long.
    #[must_use]
    pub fn pause_after(&self, step: Duration) -> Duration {
        self.pause.max(step * config::purge::PAUSE_FACTOR)
    }
}

/// Purges for ever.
pub async fn run(mut purger: Purger, settings: PurgeSettings, metrics: Metrics) {
    let mut log = StateLog::default();
    loop {
        let begun = Instant::now();
        let purged = purger.step().await;
        log.record(&purged);
        match &purged {
            Ok(purged) => metrics.purge.entries.inc_by(purged.entries),
            Err(_) => metrics.purge.failures.inc(),
        };
        let pause = match purged {
            Ok(Purged { is_pass_complete: false, .. }) => settings.pause_after(begun.elapsed()),
            Ok(_) | Err(_) => config::purge::IDLE_INTERVAL.max(settings.pause),
        };
        sleep(pause).await;
    }
}

/// Logs a failure when it begins and when it ends.
#[derive(Debug, Default)]
struct StateLog {
    error: Option<String>,
    /// In the pass that is not complete yet.
    has_failed: bool,
    wait: Option<PurgeWait>,
}

impl StateLog {
    fn record(&mut self, purged: &Result<Purged, PurgeError>) {
        match purged {
            Err(error) => {
                self.has_failed = true;
                let error = error.to_string();
                if self.error.as_ref() != Some(&error) {
                    tracing::error!(
                        error,
                        "purge failed; entries of destroyed collections are not erased until it succeeds"
                    );
                    self.error = Some(error);
                }
            }
            Ok(purged) => {
                if purged.is_pass_complete
                    && !std::mem::take(&mut self.has_failed)
                    && self.error.take().is_some()
                {
                    tracing::info!("purge recovered");
                }
                self.record_wait(purged);
            }
        }
    }

    fn record_wait(&mut self, purged: &Purged) {
        let wait = match purged.wait {
            // Rows have left the queue, so the file was rewritten.
            None if purged.collections > 0 => None,
            None | Some(PurgeWait::Interval) => return,
            wait => wait,
        };
        if wait == self.wait {
            return;
        }
        match wait {
            Some(PurgeWait::TooLarge) => tracing::warn!(
                limit = config::purge::VACUUM_LIMIT,
                "sqlite file too large to be vacuumed in the background; erased bytes remain in it until \
                 `collections-service purge --once` is run"
            ),
            Some(_) => tracing::warn!(
                "sqlite file in use by another process; erased bytes remain in it until that process is done"
            ),
            None => tracing::info!("erased bytes removed from the sqlite file"),
        }
        self.wait = wait;
    }
}
