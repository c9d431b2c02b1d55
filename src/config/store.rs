//! Limits of the store.

use std::time::Duration;

/// The longest wait for a connection from the pool.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest one address of the database may take to accept a connection, TLS and authentication included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The head start of an address over the next one of the same name (RFC 8305 calls it the connection attempt delay).
pub const CONNECT_STAGGER: Duration = Duration::from_millis(250);
/// The longest that the resolution of one host of the URL may take.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Addresses that are tried, over all hosts of the URL.
pub const CONNECT_ADDRESSES: usize = 16;
/// How long a pooled connection may be idle before it is closed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a connection may be idle before it is pinged when it is needed.
pub const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// The longest wait for the answer to a ping. A connection that a firewall has dropped costs a call no more than this.
pub const PING_TIMEOUT: Duration = Duration::from_millis(250);
/// How long a statement may run before the readiness check terminates it (`pg_terminate_backend`). PostgreSQL's own
/// `statement_timeout` is session state, which does not get through a pooler, and does not hold for a commit.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that the service waits for one statement: a database that neither answers nor closes the connection.
pub const STATEMENT_BOUND: Duration = Duration::from_secs(7);
/// The longest one check of the database may take while the service is ready.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for one node of a distributed engine. Shorter, so that a node that does not answer fails its own group alone.
pub const NODE_CHECK_TIMEOUT: Duration = Duration::from_millis(1500);
/// How often it is checked on a plain PostgreSQL whether it has become a distributed engine.
pub const PLAIN_REFRESH: Duration = Duration::from_secs(60);
/// How often the placement of shards and the durability of the nodes are read again on a distributed engine. With the
/// interval of the checks, a node that stops waiting for its disk is found within 5 s.
pub const PLACEMENT_REFRESH: Duration = Duration::from_secs(3);
/// Groups of a distributed engine that have a queue and connections of their own; further nodes share them.
pub const GROUPS: usize = 64;
/// SQLite: how long to wait for another process's lock on the file.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// SQLite: how often a migration waits that long for another one.
pub const MIGRATION_ATTEMPTS: u32 = 30;
/// SQLite: pages, of 4 KiB, after which the write-ahead log is checkpointed. The default of a thousand would checkpoint
/// with every tenth batch, and write the same pages again and again; far more would make one batch wait long.
pub const WAL_PAGES: u32 = 4 * 1024;

/// Destroys in the queue, some 300 bytes each and the caller's name. More than the usual `--max-in-flight`, which refuses
/// calls before.
pub const QUEUE_CAPACITY: usize = 16 * 1024;
/// How often expired destroys are removed from the queue while a batch is in flight.
pub const QUEUE_SWEEP: Duration = Duration::from_millis(250);
/// Destroys in one statement, unless an operator configures another number.
pub const BATCH_MAX: u32 = 1024;
/// A batch that takes longer makes the check rehearse a destroy: commits may hang.
pub const SLOW_BATCH: Duration = Duration::from_secs(1);
/// As many as these go in one statement; of more, half. A commit costs as much as some thirty to sixty rows on a local
/// disk; where it takes longer, larger batches would do more.
pub const BATCH_WHOLE: usize = 64;
/// How long a batch waits for a locked row. Other replicas hold locks for as long as a commit takes.
pub const BATCH_LOCK_TIMEOUT: Duration = Duration::from_millis(50);
/// The same for the parts of a batch that met a locked row.
pub const SPLIT_LOCK_TIMEOUT: Duration = Duration::from_millis(5);
/// The same for a destroy on its own, whose row is known to be locked: then it gives its connection to the next one.
pub const SINGLE_LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Destroys that wait for locked rows; more are refused, so that they do not use up `--max-in-flight`.
pub const LOCKED_CAPACITY: usize = 256;
/// How long a row counts as locked after the last destroy that met its lock has given up.
pub const LOCKED_MEMORY: Duration = Duration::from_secs(1);
/// How often one destroy is run again after a conflict (SQLSTATE 40001, 40P01).
pub const CONFLICT_ATTEMPTS: u32 = 6;
/// How often a batch is run again as a whole after an error that one row may have caused.
pub const ROW_ERROR_ATTEMPTS: u32 = 2;
/// The pause before a statement whose outcome is unknown is run again, doubled each time up to the longest.
pub const RETRY_PAUSE: Duration = Duration::from_millis(10);
pub const LONGEST_RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long the connections of the batches may take to close when the service ends.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after a batch worker panicked.
pub const RESTART_PAUSE: Duration = Duration::from_millis(100);
