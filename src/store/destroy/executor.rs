//! Runs a batch of destroys until every caller has an answer.

use std::{fmt, mem, sync::Arc, time::Duration};

use sea_orm::{ConnAcquireErr, DbErr};
use tokio::time::{Instant, error::Elapsed, sleep, timeout};
use uuid::Builder;

use super::{
    Attempt, Destroy, RowOutcome,
    connection::{BatchConnection, Ready},
    queue::Pending,
};
use crate::{
    config::store,
    domain::{Clock, DestroyError, DestroyFailure, Entropy, RequestId},
    store::{
        failure::{Failure, error_type, sqlstate},
        status::StoreStatus,
    },
    telemetry::{CallerMetrics, ClientSpan, DatabaseMetrics, DatabaseOperation},
};

/// Runs batches over one connection, one after the other.
pub struct Executor {
    pub connection: BatchConnection,
    pub shared: Arc<Shared>,
}

/// What all executors of a store share.
pub struct Shared {
    pub clock: Clock,
    pub entropy: Entropy,
    pub status: StoreStatus,
    pub metrics: DatabaseMetrics,
    /// Whether a destroy is also to be published.
    pub publish: bool,
}

/// Destroys that are sent together.
struct Batch {
    pending: Vec<Pending>,
    attempt: Attempt,
    /// Conflicts so far.
    conflicts: u32,
    /// Errors so far that one row alone may have caused.
    row_errors: u32,
    /// Before the next attempt after an unknown outcome.
    pause: Duration,
}

impl Batch {
    fn new(pending: Vec<Pending>, attempt: Attempt) -> Self {
        Self { pending, attempt, conflicts: 0, row_errors: 0, pause: store::RETRY_PAUSE }
    }
}

impl Batch {
    /// Whether its parts are run apart, because one row may fail the others. A destroy on its own is run again until its deadline.
    fn should_split(&self) -> bool {
        self.row_errors >= store::ROW_ERROR_ATTEMPTS && self.attempt.lock_timeout < store::SINGLE_LOCK_TIMEOUT
    }
}

impl Executor {
    /// Takes a batch once there is a connection, and completes each of its destroys; returns those whose row is locked.
    /// Nothing is sent for a caller whose deadline has passed or who has disconnected.
    pub async fn run(&mut self, lock_timeout: Duration, take: impl FnOnce() -> Vec<Pending>) -> Vec<Pending> {
        let ready = timeout(store::STATEMENT_BOUND, self.connection.ready()).await;
        // Those that arrived meanwhile are in the batch.
        let mut pending = take();
        // All batches lock rows in this order, so that no two of them wait for each other.
        pending.sort_by_key(|pending| pending.destroy.id);
        add_request_ids(&mut pending, &self.shared.entropy);
        let attempt = Attempt { publish: self.shared.publish, replays_first: false, lock_timeout };
        let mut batch = Batch::new(pending, attempt);
        let sent = send(ready, &mut batch, &self.shared).await;
        let (mut batches, mut locked) = self.settle(batch, sent).await;
        while let Some(mut batch) = batches.pop() {
            let ready = timeout(store::STATEMENT_BOUND, self.connection.ready()).await;
            let sent = send(ready, &mut batch, &self.shared).await;
            let (more, still_locked) = self.settle(batch, sent).await;
            batches.extend(more);
            locked.extend(still_locked);
        }
        locked
    }

    /// Completes what was decided. Returns what has to be run again, and the destroys whose row is locked.
    async fn settle(
        &mut self,
        mut batch: Batch,
        sent: Result<Vec<RowOutcome>, DbErr>,
    ) -> (Vec<Batch>, Vec<Pending>) {
        let error = match sent {
            Ok(outcomes) => {
                batch.pending = complete(batch.pending, outcomes, &self.shared.metrics.metrics().callers);
                // Other calls took their rows in between.
                return (retry_conflict(batch, &"the destroys kept being overtaken").await, Vec::new());
            }
            Err(error) => error,
        };
        let nothing = (Vec::new(), Vec::new());
        match Failure::from(&error) {
            Failure::Conflict => (retry_conflict(batch, &error).await, Vec::new()),
            Failure::Duplicate if !batch.attempt.replays_first => {
                // A tombstone stands already.
                batch.attempt.replays_first = true;
                (vec![batch], Vec::new())
            }
            Failure::Locked if batch.pending.len() == 1 => (Vec::new(), batch.pending),
            // Once for each batch: its parts wait for less.
            Failure::Locked
                if batch.attempt.lock_timeout > store::SPLIT_LOCK_TIMEOUT && self.is_table_locked().await =>
            {
                (retry_later(batch, &error).await, Vec::new())
            }
            Failure::Locked => {
                batch.attempt.lock_timeout = store::SPLIT_LOCK_TIMEOUT;
                (halves(batch), Vec::new())
            }
            Failure::Duplicate | Failure::Rejected if batch.pending.len() > 1 => {
                tracing::warn!(%error, destroys = batch.pending.len(), "batch rejected; running its halves");
                (halves(batch), Vec::new())
            }
            Failure::Duplicate | Failure::Rejected => {
                fail(batch.pending, DestroyError::Internal, &error);
                nothing
            }
            // If it is not the error of one row, the parts fail too, and are run again. A lone
            // destroy leaves the batches' connection to them.
            Failure::Unavailable if is_possible_row_error(&error) && batch.should_split() => {
                self.connection.discard();
                match batch.pending.len() {
                    1 => (Vec::new(), batch.pending),
                    _ => (halves(batch), Vec::new()),
                }
            }
            Failure::Unavailable => {
                batch.row_errors += u32::from(is_possible_row_error(&error));
                (self.retry_unknown(batch, &error).await, Vec::new())
            }
            // A trigger that fails for one row, say.
            Failure::Unusable if batch.pending.len() > 1 && self.rehearse().await.is_ok() => {
                tracing::warn!(%error, destroys = batch.pending.len(), "batch rejected; running its halves");
                (halves(batch), Vec::new())
            }
            failure @ (Failure::Unusable | Failure::Unprepared) => {
                self.connection.discard();
                if failure == Failure::Unprepared {
                    self.shared.status.report_lost_statement();
                }
                self.shared.status.report_failure();
                fail(batch.pending, DestroyError::StoreUnavailable, &error);
                nothing
            }
            Failure::Misread => {
                self.connection.discard();
                fail(batch.pending, DestroyError::Internal, &error);
                nothing
            }
        }
    }

    /// Whether not a row is locked but a table: then no destroy of any row could be run.
    async fn is_table_locked(&mut self) -> bool {
        matches!(self.rehearse().await, Err(error) if Failure::from(&error) == Failure::Locked)
    }

    /// Destroys a row that no collection is: where that fails, so would every destroy.
    async fn rehearse(&mut self) -> Result<(), DbErr> {
        let now = self.shared.clock.now();
        let id = -i64::from(u32::from_be_bytes(self.shared.entropy.bytes())) - 1;
        let rehearsed = async { self.connection.ready().await?.rehearse(id, now).await };
        timeout(store::STATEMENT_BOUND, rehearsed).await.map_err(|_elapsed| no_answer())?
    }

    /// Whether the statement took effect may be unknown. It is run again over another connection, with the same request ids,
    /// until its callers' deadlines.
    async fn retry_unknown(&mut self, batch: Batch, error: &DbErr) -> Vec<Batch> {
        self.connection.discard();
        self.shared.status.report_failure();
        retry_later(batch, error).await
    }
}

/// Runs a batch again after a pause, for those whose deadline is later.
async fn retry_later(mut batch: Batch, error: &DbErr) -> Vec<Batch> {
    let again = Instant::now() + batch.pause;
    let (over, left): (Vec<_>, _) =
        batch.pending.into_iter().partition(|pending| pending.destroy.deadline <= again);
    fail(over, DestroyError::StoreUnavailable, error);
    if left.is_empty() {
        return Vec::new();
    }
    batch.pending = left;
    sleep(batch.pause).await;
    batch.pause = (2 * batch.pause).min(store::LONGEST_RETRY_PAUSE);
    vec![batch]
}

/// A destroy without a request id gets one, so that running it again after an unknown outcome finds out what happened.
fn add_request_ids(pending: &mut [Pending], entropy: &Entropy) {
    let is_without = |pending: &&mut Pending| pending.destroy.request_id.is_none();
    let without: Vec<_> = pending.iter_mut().filter(is_without).collect();
    let mut random = vec![0; 16 * without.len()];
    entropy.fill(&mut random);
    for (pending, bytes) in without.into_iter().zip(random.as_chunks::<16>().0) {
        pending.destroy.request_id = Some(RequestId::from(Builder::from_random_bytes(*bytes).into_uuid()));
        pending.has_own_request_id = true;
    }
}

/// Sends the statement for those of the batch that are still in time; the others are completed.
async fn send(
    ready: Result<Result<Ready<'_>, DbErr>, Elapsed>,
    batch: &mut Batch,
    shared: &Shared,
) -> Result<Vec<RowOutcome>, DbErr> {
    let now = Instant::now();
    batch.pending =
        mem::take(&mut batch.pending).into_iter().filter_map(|pending| pending.in_time(now)).collect();
    if batch.pending.is_empty() {
        return Ok(Vec::new());
    }
    let ready = ready.map_err(|_elapsed| no_answer())??;
    let observed = &shared.metrics.metrics().database;
    for wait in batch.pending.iter_mut().filter_map(|pending| pending.mark_sent(now)) {
        observed.observe_queue_wait(wait);
    }
    observed.observe_batch(batch.pending.len());
    let destroys: Vec<&Destroy> = batch.pending.iter().map(|pending| &pending.destroy).collect();
    let timer = shared.metrics.start(DatabaseOperation::Destroy);
    let recorded = destroys.iter().filter_map(|destroy| destroy.span.as_ref());
    let span = ClientSpan::of_statement(recorded, ready.system(), "destroy", destroys.len());
    let statement = ready.destroy(&destroys, batch.attempt, shared.clock.now());
    let answered = timeout(store::STATEMENT_BOUND, statement).await;
    let error = answered.as_ref().map_or(Some("TIMEOUT"), error_type);
    timer.finish(error);
    let outcomes = answered.map_err(|_elapsed| no_answer()).flatten();
    if let Some((span, error)) = span.zip(error) {
        span.end_failed(error, outcomes.as_ref().err().and_then(sqlstate));
    }
    outcomes
}

/// Runs a batch again in a moment, a bounded number of times.
async fn retry_conflict(mut batch: Batch, cause: &impl fmt::Display) -> Vec<Batch> {
    batch.conflicts += 1;
    if batch.pending.is_empty() {
        return Vec::new();
    }
    if batch.conflicts >= store::CONFLICT_ATTEMPTS {
        fail(batch.pending, DestroyError::StoreUnavailable, cause);
        return Vec::new();
    }
    sleep(Duration::from_millis(1 << batch.conflicts)).await;
    // One row may be the cause each time.
    if batch.conflicts > store::CONFLICT_ATTEMPTS / 2 { halves(batch) } else { vec![batch] }
}

/// Completes each destroy; returns those that have to be run again.
fn complete(batch: Vec<Pending>, outcomes: Vec<RowOutcome>, callers: &CallerMetrics) -> Vec<Pending> {
    let overtaken =
        batch.into_iter().zip(outcomes).filter_map(|(pending, outcome)| match outcome.outcome() {
            Some(result) => {
                // A replay of the service's own request is a destroy whose answer was lost.
                let is_own = pending.has_own_request_id && outcome == RowOutcome::Replayed;
                if is_own || outcome == RowOutcome::Destroyed {
                    callers.count(pending.destroy.caller.as_deref());
                }
                pending.complete(result);
                None
            }
            None => Some(pending),
        });
    overtaken.collect()
}

fn fail(batch: Vec<Pending>, error: DestroyError, cause: &impl fmt::Display) {
    if batch.is_empty() {
        return;
    }
    let failed = DestroyFailure::new(error, cause);
    batch.into_iter().for_each(|pending| pending.complete(Err(failed.clone())));
}

/// The two parts of a batch, the first one last; with what is known of it. The part of a lone destroy is itself.
fn halves(mut batch: Batch) -> Vec<Batch> {
    if batch.pending.len() < 2 {
        return vec![batch];
    }
    let second = batch.pending.split_off(batch.pending.len() / 2);
    let (attempt, conflicts, row_errors) = (batch.attempt, batch.conflicts, batch.row_errors);
    let second = Batch { conflicts, row_errors, ..Batch::new(second, attempt) };
    vec![second, batch]
}

fn no_answer() -> DbErr {
    DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)
}

/// Whether the database gave up on the statement for a reason that one row may have: a cancellation, an I/O error.
fn is_possible_row_error(error: &DbErr) -> bool {
    sqlstate(error).is_some_and(|code| code == "57014" || code.starts_with("58"))
}
