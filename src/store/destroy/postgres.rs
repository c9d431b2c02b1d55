//! The statements on PostgreSQL. They go through sqlx, over the connection that the batch holds.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, Executor, PgConnection, query, query_scalar};
use uuid::Uuid;

use super::Destroy;
use crate::domain::RequestId;

/// For a lone call: deletes, writes the tombstone and tells the outcome, in one round trip. `$1` id, `$2` owner, `$3` now,
/// `$4` request id, `$5` caller.
///
/// Ownership is decided by the DELETE's own WHERE, under its row lock. The reads after it see the snapshot from before
/// the statement, which can be older than what the DELETE met; that one case is `o` (overtaken), and a second run, with a
/// fresh snapshot, resolves it. A tombstone that already stands (a row somebody restored by hand) is written over
/// rather than letting it wedge the destroy for ever.
pub const DESTROY: &str = "\
WITH gone AS (
  DELETE FROM collections WHERE id = $1 AND owner_id = $2 RETURNING id, owner_id
), tombstone AS (
  INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
  SELECT id, owner_id, $3, $4, $5 FROM gone
  ON CONFLICT (id) DO UPDATE SET owner_id = excluded.owner_id, destroyed_at = excluded.destroyed_at,
    request_id = excluded.request_id, caller = excluded.caller, purged_at = NULL, published_at = NULL
  RETURNING id
)
SELECT CASE
  WHEN EXISTS (SELECT 1 FROM tombstone) THEN 'd'
  WHEN EXISTS (SELECT 1 FROM destroyed_collections WHERE id = $1 AND owner_id = $2 AND request_id = $4) THEN 'r'
  WHEN EXISTS (SELECT 1 FROM collections WHERE id = $1 AND owner_id = $2) THEN 'o'
  WHEN EXISTS (SELECT 1 FROM collections WHERE id = $1) THEN 'f'
  ELSE 'n'
END AS outcome";

/// The same for many, as arrays sorted by id: `$1` ids, `$2` owners, `$3` now, `$4` request ids, `$5` callers. The answer
/// is one text with a letter for each.
///
/// Where several ask for one collection, `gone` has it once, with the place of the one it was given to; the others were
/// overtaken. Rows are locked in the order of their ids: `id = ANY` is an index scan, the only one that [`SETTINGS`] leave,
/// and it is joined with what was asked for by hash.
///
/// A tombstone that already stands fails all of it, and its destroy has to go alone. To be ready for that here would cost each
/// row a fifth more: a look at the index before, and a second record in PostgreSQL's log.
pub const DESTROY_BATCH: &str = "\
WITH asked AS MATERIALIZED (
  SELECT * FROM unnest($1::bigint[], $2::bigint[], $4::uuid[], $5::text[])
    WITH ORDINALITY AS asked (id, owner_id, request_id, caller, place)
), gone AS (
  DELETE FROM collections USING asked
  WHERE collections.id = ANY ($1) AND collections.id = asked.id AND collections.owner_id = asked.owner_id
  RETURNING asked.*
), tombstone AS (
  INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
  SELECT id, owner_id, $3, request_id, caller FROM gone
  RETURNING id
)
SELECT string_agg(CASE
  WHEN place IN (SELECT place FROM gone) AND id IN (SELECT id FROM tombstone) THEN 'd'
  WHEN EXISTS (SELECT 1 FROM destroyed_collections AS stone
    WHERE stone.id = asked.id AND stone.owner_id = asked.owner_id AND stone.request_id = asked.request_id) THEN 'r'
  ELSE coalesce((SELECT CASE WHEN row.owner_id = asked.owner_id THEN 'o' ELSE 'f' END
    FROM collections AS row WHERE row.id = asked.id), 'n')
END, '' ORDER BY place) AS outcomes FROM asked";

/// Session settings that leave only plans by primary key, whatever the planner knows or believes of the tables: without
/// them a plan made while they are small or unknown reads them whole, and is kept while they grow. They hold for all that
/// the service asks, so nothing it asks may need another plan. Engines that only speak
/// PostgreSQL's protocol lack some of these, so those are set that exist.
pub const SETTINGS: &str = "\
SELECT set_config(name, CASE name WHEN 'plan_cache_mode' THEN 'force_generic_plan' ELSE 'off' END, false)
FROM pg_settings
WHERE name IN
  ('plan_cache_mode', 'enable_seqscan', 'enable_bitmapscan', 'enable_nestloop', 'enable_mergejoin', 'jit')";

/// A letter for each destroy.
pub async fn destroy(
    connection: &mut PgConnection,
    destroys: &[&Destroy],
    now: DateTime<Utc>,
) -> Result<String, sqlx::Error> {
    if let [destroy] = destroys {
        let statement = query_scalar(DESTROY)
            .bind(destroy.id.get())
            .bind(destroy.user.get())
            .bind(now)
            .bind(destroy.request_id.map(RequestId::get))
            .bind(destroy.caller.as_deref());
        return statement.fetch_one(connection).await;
    }
    let ids: Vec<i64> = destroys.iter().map(|destroy| destroy.id.get()).collect();
    let owners: Vec<i64> = destroys.iter().map(|destroy| destroy.user.get()).collect();
    let request_ids: Vec<Option<Uuid>> =
        destroys.iter().map(|destroy| destroy.request_id.map(RequestId::get)).collect();
    let callers: Vec<Option<&str>> = destroys.iter().map(|destroy| destroy.caller.as_deref()).collect();
    let statement =
        query_scalar(DESTROY_BATCH).bind(ids).bind(owners).bind(now).bind(request_ids).bind(callers);
    statement.fetch_one(connection).await
}

/// Gives a new session its [`SETTINGS`].
pub async fn set_up(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute(SETTINGS).await.map(|_done| ())
}

/// For the rest of the session.
pub async fn set_lock_timeout(connection: &mut PgConnection, most: Duration) -> Result<(), sqlx::Error> {
    let set = query("SELECT set_config('lock_timeout', $1, false)").bind(most.as_millis().to_string());
    set.execute(connection).await.map(|_done| ())
}
