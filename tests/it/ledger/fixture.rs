//! The service, its database, and what happens to them.

use std::{ops::RangeInclusive, time::Duration};

use chrono::{DateTime, Utc};
use collections_service::domain::Clock;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use nix::sys::signal::Signal;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend};
use tokio::{
    sync::watch,
    task::block_in_place,
    time::{Instant, sleep},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    book::{ENTRIES, Killed},
    random_below,
    work::Work,
};
use crate::support::{
    Backend, OWNER, TestDatabase, cluster::Cluster, fresh_database, program::Program, relay::Relay, wait_for,
};

/// Not a line for each call: they would be kept in memory.
const LOG: &[&str] = &["--log", "warn,collections_service::cli=info,collections_service::server=info"];

/// What happens under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the service, which is started again.
    KillService,
    KillServiceOnSqlite,
    /// An immediate shutdown of PostgreSQL, which is started again.
    CrashDatabase,
    /// A fast shutdown of PostgreSQL, which is started again a little later.
    StopDatabase,
    /// The primary is killed, its synchronous standby is promoted, and the address moves to it.
    Promote,
}

/// A service that callers reach at `origin`, and its database.
pub struct LedgerFixture {
    pub origin: watch::Sender<String>,
    fault: Fault,
    database: TestDatabase,
    program: Option<Program>,
    servers: Option<Servers>,
}

/// The PostgreSQL of the fixture, where it is stopped or replaced.
struct Servers {
    primary: Cluster,
    standby: Option<Cluster>,
    relay: Relay,
    /// The database's name.
    name: String,
}

/// A fault that is over.
pub struct Injected {
    /// When the process was gone.
    pub down_at: DateTime<Utc>,
    /// When the database accepted writes again; where it had no fault, when the service was started again.
    pub right_at: Instant,
    pub killed: Option<Killed>,
}

impl Fault {
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillService => "service killed",
            Self::KillServiceOnSqlite => "service killed, SQLite",
            Self::CrashDatabase => "PostgreSQL crashed",
            Self::StopDatabase => "PostgreSQL stopped",
            Self::Promote => "standby promoted",
        }
    }
}

impl LedgerFixture {
    pub async fn new(fault: Fault) -> Self {
        let (database, servers) = match fault {
            Fault::KillService => (TestDatabase::new(Backend::Postgres).await, None),
            Fault::KillServiceOnSqlite => (TestDatabase::new(Backend::Sqlite).await, None),
            Fault::CrashDatabase | Fault::StopDatabase | Fault::Promote => {
                let primary = Cluster::start().await;
                let url = fresh_database(&primary.url()).await;
                let name = url.rsplit_once('/').unwrap().1.to_owned();
                let mut database = TestDatabase::on(Some(url)).await;
                let relay = Relay::start(primary.port()).await;
                if fault == Fault::Promote {
                    database.url = format!("postgres://tests@127.0.0.1:{}/{name}", relay.port);
                }
                (database, Some(Servers { primary, standby: None, relay, name }))
            }
        };
        let program = Program::serve(&database, LOG).await;
        program.wait_until_ready().await;
        let origin = watch::Sender::new(program.grpc.clone());
        Self { origin, fault, database, program: Some(program), servers }
    }

    /// A connection to the database that bypasses the relay.
    pub async fn connect(&self) -> DatabaseConnection {
        let url = match &self.servers {
            Some(servers) => format!("{}/{}", servers.primary.url(), servers.name),
            None => self.database.url.clone(),
        };
        Database::connect(url).await.unwrap()
    }

    /// Makes these collections, and a standby where the fault needs one.
    pub async fn prepare(&mut self, ids: &RangeInclusive<i64>) {
        if let (Fault::Promote, Some(servers)) = (self.fault, &mut self.servers) {
            servers.standby = Some(servers.primary.start_standby().await);
        }
        let connection = self.connect().await;
        let insert = format!(
            "WITH RECURSIVE new (id) AS (SELECT {} UNION ALL SELECT id + 1 FROM new WHERE id < {}) \
             INSERT INTO collections (id, owner_id, name, timeline_order, created_at) \
             SELECT id, {OWNER}, 'a name', 'curation_reverse_chron', CURRENT_TIMESTAMP FROM new; \
             WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 60) \
             INSERT INTO collection_entries (collection_id, tweet_id, sort_index, added_at) \
             SELECT id, n, n, CURRENT_TIMESTAMP FROM collections JOIN numbers ON n <= {ENTRIES} \
             WHERE id >= {}",
            ids.start(),
            ids.end(),
            ids.start()
        );
        connection.execute_unprepared(&insert).await.unwrap();
        if connection.get_database_backend() == DbBackend::Postgres {
            connection.execute_unprepared("VACUUM").await.unwrap();
        }
        connection.close().await.unwrap();
    }

    /// Deletes the collections that were not destroyed.
    pub async fn delete_rest(&self, connection: &DatabaseConnection) {
        let delete = "DELETE FROM collection_entries WHERE collection_id IN (SELECT id FROM collections); \
                      DELETE FROM collections";
        connection.execute_unprepared(delete).await.unwrap();
    }

    /// The database that the service uses.
    pub fn url(&self) -> &str {
        &self.database.url
    }

    /// An import and a purge.
    pub fn start_work(&self, round: i64) -> Work {
        Work::start(&self.database, round)
    }

    /// Injects the fault, and ends it.
    pub async fn inject(&mut self, work: &mut Work) -> Injected {
        match (self.fault, &mut self.servers) {
            (Fault::Promote, Some(servers)) => servers.fail_over().await,
            (Fault::CrashDatabase, Some(servers)) => {
                block_in_place(|| servers.primary.crash());
                servers.start_again(Duration::ZERO).await
            }
            (Fault::StopDatabase, Some(servers)) => {
                block_in_place(|| servers.primary.stop());
                servers.start_again(Duration::from_millis(1000 + random_below(1000))).await
            }
            _ => {
                work.kill().await;
                self.kill_service().await
            }
        }
    }

    async fn kill_service(&mut self) -> Injected {
        let program = self.program.take().unwrap();
        let killed_from = Instant::now();
        program.signal(Signal::SIGKILL);
        let (status, _log) = program.ended(Duration::from_secs(9)).await;
        assert_eq!(status.code(), None, "it ended before the signal");
        let (down_at, right_at) = (Clock::System.now(), Instant::now());
        let program = Program::serve(&self.database, LOG).await;
        self.origin.send_replace(program.grpc.clone());
        self.program = Some(program);
        Injected { down_at, right_at, killed: Some((killed_from, right_at)) }
    }

    pub async fn is_serving(&self) -> bool {
        let http = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<tonic::body::Body>();
        let origin = self.origin.borrow().parse().unwrap();
        let service = "collections.v1.CollectionsService".to_owned();
        let answer = HealthClient::with_origin(http, origin).check(HealthCheckRequest { service }).await;
        answer.is_ok_and(|answer| answer.get_ref().status == 1)
    }

    /// Ends the service, and prints its log.
    pub async fn print_log(&mut self) {
        let program = self.program.take().unwrap();
        program.signal(Signal::SIGTERM);
        let (_, log) = program.ended(Duration::from_secs(30)).await;
        log.iter().for_each(|line| eprintln!("{line}"));
    }
}

impl Servers {
    /// Starts the primary, which has just ended, after a pause.
    async fn start_again(&mut self, pause: Duration) -> Injected {
        let down_at = Clock::System.now();
        sleep(pause).await;
        self.primary.start_again().await;
        Injected { down_at, right_at: Instant::now(), killed: None }
    }

    /// Kills the primary, promotes its standby, and moves the address there. At random, the commit in flight is on the
    /// standby already, and the address moves before the standby accepts writes.
    async fn fail_over(&mut self) -> Injected {
        let standby = self.standby.take().unwrap();
        let is_unacknowledged = random_below(2) == 0;
        if is_unacknowledged {
            // The next commit is on its way to the standby when the primary dies, and not acknowledged.
            standby.signal_receiver(Signal::SIGSTOP);
            let sent = "SELECT 1 FROM pg_stat_activity, pg_stat_replication
                WHERE wait_event = 'SyncRep' AND sent_lsn > write_lsn";
            wait_for(&self.primary.admin().await, sent).await;
        }
        block_in_place(|| self.primary.crash());
        let down_at = Clock::System.now();
        if is_unacknowledged {
            standby.signal_receiver(Signal::SIGCONT);
            let received = "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_wal_receiver)";
            wait_for(&standby.admin().await, received).await;
        }
        let is_early = random_below(2) == 0;
        if is_early {
            self.relay.switch(standby.port());
        }
        standby.promote().await;
        if !is_early {
            self.relay.switch(standby.port());
        }
        let right_at = Instant::now();
        block_in_place(|| self.primary = standby);
        Injected { down_at, right_at, killed: None }
    }
}
