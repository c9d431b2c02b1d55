//! How the database's URL is understood, and which of several addresses is used.

use std::time::Duration;

use collections_service::{config::store::PING_AFTER_IDLE, domain::Destroyed, store::Capacity};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    batches::destroy_of,
    faults::{Sent, fall_silent, front, relay, relay_until},
    support::{
        Backend, OWNER, TestDatabase, cluster::Cluster, connect, fresh_database, program::run, wait_for,
    },
};

fn address(url: &str) -> &str {
    url.rsplit_once('@').unwrap().1.split_once('/').unwrap().0
}

/// The first of two hosts accepts and never answers.
#[tokio::test]
async fn a_host_that_does_not_answer_is_skipped() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hosts = format!("{},{}", silent.local_addr().unwrap(), address(&database.url));
    let url = database.url.replace(address(&database.url), &hosts);
    let (store, begun) = (connect(&url, Capacity::of(4), &database.clock).await, Instant::now());
    assert_eq!(store.destroy(destroy_of(1)).await, Ok(Destroyed::Now));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// The first of two hosts takes no writes.
#[tokio::test]
async fn a_standby_is_skipped() {
    let (standby, primary) = (Cluster::start().await, Cluster::start().await);
    let database = TestDatabase::on(Some(fresh_database(&primary.url()).await)).await;
    database.put(1, OWNER).await;
    let name = database.url.rsplit_once('/').unwrap().1;
    let admin = Database::connect(format!("{}/postgres", standby.url())).await.unwrap();
    for statement in [
        &format!("CREATE DATABASE {name}"),
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
    ] {
        admin.execute_unprepared(statement).await.unwrap();
    }
    wait_for(&admin, "SELECT 1 WHERE current_setting('default_transaction_read_only') = 'on'").await;
    let hosts = format!("{},{}", address(&format!("{}/", standby.url())), address(&database.url));
    let url = database.url.replace(address(&database.url), &hosts);
    let store = connect(&url, Capacity::of(4), &database.clock).await;
    assert_eq!(store.destroy(destroy_of(1)).await, Ok(Destroyed::Now));
    store.check().run().await.unwrap();
}

/// An address of IPv6, whose brackets are the URL's.
#[tokio::test]
async fn a_url_with_an_ipv6_address_connects() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let url = database.url.replace(address(&database.url), &listener.local_addr().unwrap().to_string());
    tokio::spawn(relay(listener, address(&database.url).to_owned(), Sent::default()));
    let store = connect(&format!("{url}?sslmode=disable"), Capacity::of(4), &database.clock).await;
    assert_eq!(store.destroy(destroy_of(1)).await, Ok(Destroyed::Now));
}

/// A socket's folder where a host is expected, as libpq understands it.
#[tokio::test]
async fn a_url_of_a_unix_socket_connects() {
    let cluster = Cluster::start().await;
    let name = fresh_database(&cluster.url()).await.rsplit_once('/').unwrap().1.to_owned();
    let folder = cluster.socket_folder();
    let with = [("PGHOST", folder), ("PGUSER", "tests"), ("PGPORT", &cluster.port().to_string())];
    let url = format!("postgres:///{name}");
    let variables = [&[("COLLECTIONS_DATABASE_URL", url.as_str())], &with[..]].concat();
    let (code, output, errors) = run(&["migrate", "up"], &variables).await;
    assert!(code == 0 && output.contains("applied"), "{output}{errors}");
    let database = TestDatabase::new(Backend::Sqlite).await;
    let key = database.folder.path().join("key");
    let create =
        ["credentials", "create-app", "--name", "x", "--credentials-key-file", key.to_str().unwrap()];
    assert_eq!(run(&create, &variables).await.0, 0);
}

/// As libpq does: without a user in the URL, the operating system's.
#[tokio::test]
async fn a_url_without_a_user_has_the_user_of_the_process() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let url = database.url.replace("tests@", "");
    let me = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
    let (code, _, errors) = run(&["migrate", "status"], &[("COLLECTIONS_DATABASE_URL", &url)]).await;
    assert!(code == 1 && errors.contains(&format!("role \"{me}\" does not exist")), "{errors}");
    let with = [("COLLECTIONS_DATABASE_URL", url.as_str()), ("PGUSER", "tests")];
    assert_eq!(run(&["migrate", "status"], &with).await.0, 0);
}

#[tokio::test]
async fn a_session_has_the_application_name_of_its_url() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let admin = database.connection().await;
    for (parameters, name) in [("", "collections-service"), ("?application_name=orders", "orders")] {
        let url = format!("{}{parameters}", database.url);
        let store = connect(&url, Capacity::of(4), &database.clock).await;
        store.check().run().await.unwrap();
        let query = format!(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{name}'"
        );
        wait_for(&admin, &query).await;
    }
}

/// The text of the first column of each row.
async fn texts(connection: &DatabaseConnection, query: &str) -> Vec<String> {
    let rows = connection.query_all_raw(Statement::from_string(DbBackend::Postgres, query)).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

/// A session has no setting but those that every pooler allows, and the function leaves none behind.
#[tokio::test]
async fn a_session_carries_no_state() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let admin = database.connection().await;
    let spy = "CREATE TABLE seen (name text);
        CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO seen SELECT name FROM pg_settings WHERE source IN ('client', 'session') AND name <> 'transaction_isolation'; RETURN NULL; END $$;
        CREATE TRIGGER spy AFTER INSERT ON oauth_applications FOR EACH STATEMENT EXECUTE FUNCTION spy()";
    admin.execute_unprepared(spy).await.unwrap();
    database.credentials.create_app("one").await.unwrap();
    assert_eq!(
        texts(&admin, "SELECT name FROM seen ORDER BY name").await,
        ["DateStyle", "TimeZone", "application_name", "client_encoding"]
    );
    let mut one = ConnectOptions::new(&database.url);
    one.max_connections(1);
    let session = Database::connect(one).await.unwrap();
    let settings = "SELECT name || '=' || setting FROM pg_settings WHERE name NOT LIKE 'plpgsql.%'";
    let before = texts(&session, settings).await;
    database.put(1, OWNER).await;
    let call = format!(
        "SELECT destroy_collections_v1(1, '{{1}}', '{{{OWNER}}}', now(), '{{00000000-0000-4000-8000-000000000000}}',
         '{{a}}', true, true, '12345ms')"
    );
    assert_eq!(texts(&session, &call).await, ["d"]);
    let after = texts(&session, settings).await;
    let changed: Vec<_> = after.iter().filter(|setting| !before.contains(setting)).collect();
    assert_eq!(changed, [] as [&String; 0]);
}

/// A connection that a firewall has dropped while it was idle: the next call is not held up by it for long.
#[tokio::test]
async fn a_dead_idle_connection_is_replaced_soon() {
    let database = TestDatabase::new(Backend::Postgres).await;
    database.put(1, OWNER).await;
    database.put(2, OWNER).await;
    let (listener, through, server) = front(&database.url).await;
    let silence = watch::Sender::new(false);
    tokio::spawn(relay_until(listener, server, silence.subscribe()));
    let store = connect(&through, Capacity::of(4), &database.clock).await;
    assert_eq!(store.destroy(destroy_of(1)).await, Ok(Destroyed::Now));
    fall_silent(&silence).await;
    // A connection that has been idle for so long is tested before it is used.
    sleep(PING_AFTER_IDLE * 11 / 10).await;
    let begun = Instant::now();
    assert_eq!(store.destroy(destroy_of(2)).await, Ok(Destroyed::Now));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
