//! Whether the database can be served: a destroy is rehearsed, because nothing else shows that one would succeed.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::future::{join, join_all};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, FromQueryResult, Statement};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Store,
    connect::Engine,
    destroy::{BatchConnection, Kind, Placement},
    failure::{error_type, sqlstate, sqlx_error},
    pooler,
    state_error::StateError,
};
use crate::{config::store, telemetry::DatabaseOperation};

/// Checks the database again and again, over connections of its own.
pub struct StoreCheck {
    store: Store,
    /// One for each group: a node that does not answer delays no other group's check.
    connections: Vec<BatchConnection>,
    /// Not rehearsed yet, or something has failed since.
    must_rehearse: bool,
    /// The schema was complete. A newer one later means that a newer version is being rolled out.
    is_complete: bool,
    placement_read: Option<Instant>,
    /// The groups whose node failed at the last check, while others did not.
    failing: BTreeSet<usize>,
}

/// A statement that was terminated because it ran for too long.
#[derive(Debug, FromQueryResult)]
struct Terminated {
    wait: Option<String>,
}

/// A node of a distributed engine and what it does at a commit.
#[derive(Debug, FromQueryResult)]
struct Node {
    /// Its address.
    node: String,
    settings: String,
}

/// The destroys, credential look-ups and purges of this role under this application name, of this process or another.
/// Destroys that wait for a standby at their commit hold their locks.
/// Materialized: in one WHERE the sessions of others could be terminated before the conditions are evaluated.
const TERMINATE: &str = "\
WITH stuck AS MATERIALIZED (
  SELECT pid, concat_ws(':', wait_event_type, wait_event) AS wait
  FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = current_user AND datname = current_database()
    AND application_name = current_setting('application_name') AND state = 'active'
    AND (query LIKE 'SELECT destroy\\_collections\\_v%' OR query LIKE 'SELECT \"oauth\\_%'
      OR query LIKE 'SELECT purged\\_id%')
    AND clock_timestamp() - query_start > $1 * interval '1 millisecond'
) SELECT wait FROM stuck WHERE pg_terminate_backend(pid)";

/// A transaction that spans nodes is committed by sessions of the engine's own, which the function does not reach.
const NODES: &str = "\
SELECT concat(nodename, ':', nodeport) AS node, result AS settings FROM run_command_on_all_nodes(
  $$SELECT concat('synchronous_commit=', current_setting('synchronous_commit'), ' fsync=', current_setting('fsync'))$$)
JOIN pg_dist_node USING (nodeid) WHERE success";

impl Store {
    /// Whether the schema is the one that this program expects, and no pooler loses its statements.
    ///
    /// # Errors
    /// The schema is older or newer, [`StateError::Pooler`], or the database failed.
    pub async fn check_schema(&self) -> Result<(), StateError> {
        let missing = async {
            // First, as all that follows is run by statements that may be lost.
            pooler::check(&self.database, false).await?;
            let missing = self.schema().await?.into_iter().find(|version| !version.applied);
            if missing.is_some() && self.backend() == DbBackend::Postgres {
                self.check_schema_is_readable().await?;
            }
            Ok(missing)
        };
        match timeout(store::STATEMENT_BOUND, missing).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(missing))) => Err(StateError::Older(missing.name)),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(StateError::Timeout),
        }
    }

    /// To a role that may not read it, the table of versions looks as if it did not exist.
    async fn check_schema_is_readable(&self) -> Result<(), StateError> {
        match self.db.execute_unprepared("SELECT version FROM seaql_migrations LIMIT 1").await {
            // undefined_table
            Err(error) if sqlstate(&error).as_deref() != Some("42P01") => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// A check of this store.
    #[must_use]
    pub fn check(&self) -> StoreCheck {
        StoreCheck {
            store: self.clone(),
            connections: Vec::new(),
            must_rehearse: true,
            is_complete: false,
            placement_read: None,
            failing: BTreeSet::new(),
        }
    }
}

impl StoreCheck {
    /// One check. A destroy is rehearsed the first time, and again after a failure, here or of a destroy, until one succeeds;
    /// otherwise the function is run without a destroy.
    ///
    /// # Errors
    /// The reason for which no destroy would succeed.
    pub async fn run(&mut self) -> Result<(), StateError> {
        self.must_rehearse |= self.store.status.take_failure();
        let bound = if self.must_rehearse { store::STATEMENT_BOUND } else { store::CHECK_TIMEOUT };
        let checked = timeout(bound, self.run_unbounded()).await.unwrap_or(Err(StateError::Timeout));
        if checked.is_err() {
            // A session keeps what it once was: read-only, say. An SQLite file may be replaced by an older one.
            self.connections.clear();
            self.is_complete &= matches!(self.store.database.engine, Engine::Postgres(_));
        }
        if matches!(checked, Err(StateError::Pooler)) {
            self.store.status.report_lost_statement();
        }
        self.must_rehearse = checked.is_err();
        checked
    }

    /// Waits for the next check: this long, or, where all was well, until a destroy fails.
    pub async fn wait(&self, interval: Duration) {
        if self.must_rehearse {
            return sleep(interval).await;
        }
        let _elapsed = timeout(interval, self.store.status.failure()).await;
    }

    async fn run_unbounded(&mut self) -> Result<(), StateError> {
        let connector = match &self.store.database.engine {
            Engine::Postgres(connector) => Some(connector.clone()),
            Engine::Sqlite(_) => None,
        };
        let is_postgres = connector.is_some();
        if self.store.status.has_lost_statement() {
            pooler::check(&self.store.database, true).await?;
            self.store.status.clear_lost_statement();
        }
        if !self.is_complete {
            self.store.check_schema().await?;
            self.is_complete = true;
        }
        if is_postgres && self.must_rehearse {
            self.terminate_stuck().await;
        }
        if !self.store.destroys {
            if let Some(connector) = connector.filter(|_| self.must_rehearse) {
                // The pool then uses the address that answers now.
                let pool = self.store.db.get_postgres_connection_pool();
                drop(connector.connect(pool).await.map_err(sqlx_error)?);
            }
            let timer = self.store.database.metrics.start(DatabaseOperation::Check);
            let answered = self.store.db.ping().await;
            timer.finish(error_type(&answered));
            answered?;
        } else {
            self.check_destroys(is_postgres).await?;
        }
        if is_postgres && !self.must_rehearse {
            self.terminate_stuck().await;
        }
        Ok(())
    }

    async fn check_destroys(&mut self, is_postgres: bool) -> Result<(), StateError> {
        let must_check_nodes = is_postgres && self.read_placement().await?;
        let database = self.store.database.clone();
        let durable = async { if must_check_nodes { check_nodes(&database.pool).await } else { Ok(true) } };
        let (durable, served) = join(durable, self.check_groups()).await;
        let durable = durable?;
        served?;
        if !durable {
            self.placement_read = None;
        }
        Ok(())
    }

    /// Checks each group's node; while some can be served, so can the service.
    async fn check_groups(&mut self) -> Result<(), StateError> {
        let placement = self.store.batcher.placement();
        let now = self.store.clock.now();
        let groups = placement.groups();
        let bound = if groups == 1 { store::CHECK_TIMEOUT } else { store::NODE_CHECK_TIMEOUT };
        self.connections.resize_with(groups, || BatchConnection::new(&self.store.database, Kind::Dedicated));
        let checks = self.connections.iter_mut().enumerate().map(|(group, connection)| {
            // Another one each time: two processes must not wait for each other's.
            let random = u64::from_be_bytes(self.store.entropy.bytes());
            let id = if self.must_rehearse {
                placement.rehearsal_id(group, random)
            } else {
                placement.probe_id(group, random)
            };
            timeout(bound, check_group(connection, id, now))
        });
        let checked = join_all(checks).await;
        let (mut failing, mut first) = (BTreeSet::new(), None);
        for ((group, checked), connection) in checked.into_iter().enumerate().zip(&mut self.connections) {
            let checked =
                checked.map_or(Err(StateError::Timeout), |checked| checked.map_err(StateError::from));
            if let Err(error) = checked {
                connection.discard();
                failing.insert(group);
                first.get_or_insert(error);
            }
        }
        let was_failing = std::mem::replace(&mut self.failing, failing);
        match first {
            Some(error) if self.failing.len() == groups => {
                // Readiness is logged instead.
                self.failing.clear();
                return Err(error);
            }
            Some(error) if self.failing != was_failing => {
                tracing::error!(%error, failing = self.failing.len(), groups, "some nodes of the database fail");
            }
            None if !was_failing.is_empty() => {
                tracing::info!(groups, "all nodes of the database answer again");
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads where rows are, where the engine is a distributed one. Returns whether its nodes are to be checked too.
    async fn read_placement(&mut self) -> Result<bool, StateError> {
        let is_plain = !self.store.batcher.placement().is_distributed();
        let interval = if is_plain { store::PLAIN_REFRESH } else { store::PLACEMENT_REFRESH };
        let is_due = self.placement_read.is_none_or(|read| read.elapsed() > interval);
        if !self.must_rehearse && !is_due {
            return Ok(false);
        }
        let placement = Placement::read(&self.store.database.pool).await?;
        let is_distributed = placement.is_distributed();
        if placement != *self.store.batcher.placement() {
            tracing::info!(groups = placement.groups(), "placement read");
            self.store.batcher.regroup(placement);
        }
        self.placement_read = Some(Instant::now());
        Ok(is_distributed)
    }

    /// Terminates statements that run for too long: their callers have an answer, or the statements are run again.
    async fn terminate_stuck(&self) {
        let most = i64::try_from(store::STATEMENT_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, TERMINATE, [most.into()]);
        // Where this fails, the check fails with the reason.
        let terminated = timeout(
            store::CHECK_TIMEOUT,
            Terminated::find_by_statement(statement).all(&self.store.database.pool),
        );
        for stuck in terminated.await.ok().and_then(Result::ok).unwrap_or_default() {
            tracing::warn!(
                wait = stuck.wait,
                "terminated a statement that ran for {:?}; SyncRep means that a synchronous standby does not answer",
                store::STATEMENT_TIMEOUT
            );
        }
    }
}

/// Checks that the node of this id could run a destroy; with a negative id, one is rehearsed.
async fn check_group(connection: &mut BatchConnection, id: i64, now: DateTime<Utc>) -> Result<(), DbErr> {
    let metrics = connection.metrics().clone();
    let ready = connection.ready().await?;
    let timer = metrics.start(DatabaseOperation::Check);
    let checked = if id < 0 { ready.rehearse(id, now).await } else { ready.probe(id, now).await };
    timer.finish(error_type(&checked));
    checked
}

/// Whether the nodes that answer keep what they acknowledge; `false` where one does not answer in time, which then cannot
/// acknowledge anything.
async fn check_nodes(db: &DatabaseConnection) -> Result<bool, StateError> {
    let nodes = Statement::from_string(DbBackend::Postgres, NODES);
    let Ok(nodes) = timeout(store::NODE_CHECK_TIMEOUT, Node::find_by_statement(nodes).all(db)).await else {
        return Ok(false);
    };
    match nodes?.into_iter().find(|node| node.settings.contains("=off")) {
        Some(Node { node, settings }) => Err(StateError::NotDurable { node, settings }),
        None => Ok(true),
    }
}
