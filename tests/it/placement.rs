//! Destroys are grouped by the placement in the database's catalogs.

use std::collections::BTreeMap;

use collections_service::{
    domain::{Destroyed, Entropy},
    store::hashint8,
};
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::{
    batches::{destroy_concurrently, destroy_of},
    support::{Backend, OWNER, TestDatabase, fresh_postgres},
};

#[tokio::test]
async fn the_hash_matches_postgresql() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let admin = database.connection().await;
    let random = (0..10_000).map(|_| i64::from_be_bytes(Entropy::default().bytes()));
    let numbers: Vec<i64> = random.chain([0, 1, -1, i64::MIN, i64::MAX, 388_061_495_298_244_609]).collect();
    let list = numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let ask = format!(
        "SELECT hashint8(n) AS hash FROM unnest('{{{list}}}'::bigint[]) WITH ORDINALITY AS t(n, place) ORDER BY place"
    );
    let rows = admin.query_all_raw(Statement::from_string(DbBackend::Postgres, ask)).await.unwrap();
    let hashes: Vec<i32> = rows.iter().map(|row| row.try_get("", "hash").unwrap()).collect();
    assert_eq!(hashes, numbers.iter().map(|number| hashint8(*number)).collect::<Vec<_>>());
}

/// What Citus lists of its shards: four ranges in turns on two nodes. And each transaction that destroys.
const CATALOGS: &str = "
SET allow_system_table_mods = on;
CREATE TABLE pg_catalog.pg_dist_shard (logicalrelid regclass, shardid bigint, shardminvalue text);
CREATE TABLE pg_catalog.pg_dist_placement (shardid bigint, shardstate int, groupid int);
INSERT INTO pg_catalog.pg_dist_shard SELECT 'collections', n, (-2147483648 + n * 1073741824)::text
  FROM generate_series(0::bigint, 3) AS n;
INSERT INTO pg_catalog.pg_dist_placement SELECT n, 1, 1 + n % 2 FROM generate_series(0, 3) AS n;
CREATE TABLE pg_catalog.pg_dist_node (nodeid int, nodename text, nodeport int);
INSERT INTO pg_catalog.pg_dist_node VALUES (1, 'one', 5432), (2, 'two', 5432), (7, 'seven', 5432);
CREATE FUNCTION run_command_on_all_nodes(text) RETURNS TABLE (nodeid int, success bool, result text)
  LANGUAGE sql AS $$ SELECT n, true, 'synchronous_commit=on fsync=on' FROM generate_series(1, 2) AS n $$;
CREATE TABLE transactions (transaction xid8, id bigint);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO transactions VALUES (pg_current_xact_id(), new.id); RETURN new; END $$;
CREATE TRIGGER note BEFORE INSERT ON destroyed_collections FOR EACH ROW WHEN (new.id > 0) EXECUTE FUNCTION note();";

#[tokio::test]
async fn a_batch_never_mixes_groups() {
    let url = fresh_postgres().await;
    let database = TestDatabase::on(Some(url)).await;
    let admin = database.connection().await;
    admin.execute_unprepared(CATALOGS).await.unwrap();
    database.store.check().run().await.unwrap();
    for id in 1..=400 {
        database.put(id, OWNER).await;
    }
    let outcomes = destroy_concurrently(&database.store, (1..=400).map(destroy_of)).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Destroyed::Now)), "{outcomes:?}");
    let all = Statement::from_string(
        DbBackend::Postgres,
        "SELECT transaction::text AS transaction, id FROM transactions",
    );
    let mut groups: BTreeMap<String, [u32; 2]> = BTreeMap::new();
    for row in admin.query_all_raw(all).await.unwrap() {
        let (transaction, id): (String, i64) =
            (row.try_get("", "transaction").unwrap(), row.try_get("", "id").unwrap());
        let range = (i64::from(hashint8(id)) + 2_147_483_648) / 1_073_741_824;
        groups.entry(transaction).or_default()[usize::try_from(range % 2).unwrap()] += 1;
    }
    assert!(groups.values().all(|[first, second]| *first == 0 || *second == 0), "{groups:?}");
    assert!(groups.values().any(|[first, _]| *first > 50) && groups.values().any(|[_, second]| *second > 50));
}

/// A node that acknowledges before it is durable: the engine's own sessions commit there, which the function does not reach.
#[tokio::test]
async fn every_node_has_to_be_durable() {
    let database = TestDatabase::on(Some(fresh_postgres().await)).await;
    let admin = database.connection().await;
    admin.execute_unprepared(CATALOGS).await.unwrap();
    let mut check = database.store.check();
    check.run().await.unwrap();
    let off = "CREATE OR REPLACE FUNCTION run_command_on_all_nodes(text) RETURNS TABLE (nodeid int, success bool, result text)
        LANGUAGE sql AS $$ SELECT 7, true, 'synchronous_commit=off fsync=on' $$";
    admin.execute_unprepared(off).await.unwrap();
    let mut check = database.store.check();
    let error = check.run().await.unwrap_err();
    assert!(
        error.to_string().contains("node seven:5432") && error.to_string().contains("synchronous_commit=off"),
        "{error}"
    );
}
