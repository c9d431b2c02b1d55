//! Counts what the purge has still to erase, for metrics. Every process that serves a database counts, whether or not it
//! purges: where no process does, the backlog is what shows it.

use tokio::time::sleep;

use crate::{
    config,
    store::{PurgeError, Store},
    telemetry::Metrics,
};

/// Counts for ever.
pub async fn run(store: Store, metrics: Metrics) {
    let mut logged = None;
    loop {
        let failure = count_once(&store, &metrics).await.err();
        let failure = failure.filter(|error| !error.is_outage()).map(|error| error.to_string());
        if failure != logged {
            if let Some(error) = &failure {
                tracing::warn!(error, "purge backlog not counted; its metrics are absent until it is");
            }
            logged = failure;
        }
        sleep(config::purge::BACKLOG_INTERVAL).await;
    }
}

/// Counts once, and sets the metrics.
///
/// # Errors
/// The database failed, or may not be asked.
pub async fn count_once(store: &Store, metrics: &Metrics) -> Result<(), PurgeError> {
    let counted = store.purge_queue(config::purge::BACKLOG_LIMIT).await;
    let state = counted.as_ref().ok().map(|queue| (queue.rows, queue.oldest_age));
    metrics.purge.set_backlog(state);
    counted.map(|_queue| ())
}
