//! Statements, and how destroys share them.

use std::{sync::OnceLock, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
};
use tokio::time::Instant;

use super::{Builder, Metrics, TracedHistogram, durations};
use crate::config::telemetry::{BATCH_BUCKETS, DURATION_BUCKETS};

/// What is observed of the database.
#[derive(Debug)]
pub struct Database {
    duration: Family<OperationLabels, TracedHistogram>,
    /// The series of the operations that succeed.
    succeeded: [OnceLock<TracedHistogram>; OPERATIONS],
    queue_wait: Histogram,
    batch_size: Histogram,
}

/// What a statement is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseOperation {
    Destroy,
    Purge,
    Check,
    Credentials,
}

const OPERATIONS: usize = 4;

/// The metrics of one database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DatabaseMetrics {
    metrics: Metrics,
    /// `db.system.name`
    system: &'static str,
}

/// Measures one statement. A statement that is given up, because its time is over or its caller disconnected, is observed when
/// this is dropped.
#[derive(Debug)]
#[must_use = "it measures until it is finished"]
pub struct DatabaseTimer {
    database: DatabaseMetrics,
    operation: DatabaseOperation,
    started: Instant,
    is_finished: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    db_system_name: &'static str,
    db_operation_name: &'static str,
    error_type: &'static str,
}

/// The `error.type` of a statement that was given up before its answer.
const CANCELLED: &str = "CANCELLED";

impl Database {
    pub(super) fn new(builder: &mut Builder) -> Self {
        Self {
            duration: builder.family(
                "db_client_operation_duration_seconds",
                "How long statements took; a batch of destroys is one",
                durations,
            ),
            succeeded: Default::default(),
            queue_wait: builder.histogram(
                "collections_queue_wait_duration_seconds",
                "How long destroys waited until their statement was sent",
                &DURATION_BUCKETS,
            ),
            batch_size: builder.histogram(
                "collections_batch_size",
                "Destroys that shared one statement",
                &BATCH_BUCKETS,
            ),
        }
    }

    /// A statement with so many destroys is sent.
    pub fn observe_batch(&self, destroys: usize) {
        self.batch_size.observe(destroys as f64);
    }

    /// A destroy is sent after this wait.
    pub fn observe_queue_wait(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }
}

impl DatabaseOperation {
    /// `db.operation.name`
    const fn name(self) -> &'static str {
        match self {
            Self::Destroy => "destroy",
            Self::Purge => "purge",
            Self::Check => "check",
            Self::Credentials => "credentials",
        }
    }
}

impl DatabaseMetrics {
    /// `system` is the value of `db.system.name`.
    #[must_use]
    pub const fn new(metrics: Metrics, system: &'static str) -> Self {
        Self { metrics, system }
    }

    /// The metrics of the process.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Begins to measure a statement.
    pub fn start(&self, operation: DatabaseOperation) -> DatabaseTimer {
        DatabaseTimer { database: self.clone(), operation, started: Instant::now(), is_finished: false }
    }

    fn observe(&self, operation: DatabaseOperation, duration: Duration, error_type: &'static str) {
        let database = &self.metrics.database;
        let series = || {
            database.duration.get_or_create_owned(&OperationLabels {
                db_system_name: self.system,
                db_operation_name: operation.name(),
                error_type,
            })
        };
        let usual = database.succeeded.get(operation as usize).filter(|_| error_type.is_empty());
        let seconds = duration.as_secs_f64();
        match usual {
            Some(usual) => usual.get_or_init(series).observe(seconds, None, None),
            None => series().observe(seconds, None, None),
        }
    }
}

impl DatabaseTimer {
    /// Observes the statement, with the kind of its error if it failed.
    pub fn finish(mut self, error_type: Option<&'static str>) {
        self.is_finished = true;
        self.database.observe(self.operation, self.started.elapsed(), error_type.unwrap_or_default());
    }
}

impl Drop for DatabaseTimer {
    fn drop(&mut self) {
        if !self.is_finished {
            self.database.observe(self.operation, self.started.elapsed(), CANCELLED);
        }
    }
}
