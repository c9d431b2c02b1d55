-- Distributes the schema over the nodes of a Citus cluster. Run it once after `collections-service migrate up`, and again
-- after every later `migrate up`, as the role that owns the tables:
--
--   psql -X -v ON_ERROR_STOP=1 -f deploy/citus.sql "$DATABASE_URL"
--
-- What is distributed already is left as it is, so it may be run any number of times. Stop the service the first time:
-- a table is locked while its rows are copied. Measured with Citus 13 on PostgreSQL 15.

\set ON_ERROR_STOP on
BEGIN;
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
    RAISE EXCEPTION 'the extension citus is not installed in this database';
  END IF;
  IF to_regclass('collections') IS NULL OR to_regclass('purge_queue') IS NULL THEN
    RAISE EXCEPTION 'the schema is missing or too old: run `collections-service migrate up` first';
  END IF;
END $$;
-- One connection to each node: the steps below depend on each other, and a transaction cannot change what several of its
-- connections are working on.
SET LOCAL citus.multi_shard_modify_mode = 'sequential';

-- Four shards on each node, unless -v shards=N names their number. A statement of a batch is planned once for each shard that it
-- touches, so fewer shards cost less. More of them can be spread over more nodes later.
\if :{?shards}
SELECT set_config('citus.shard_count', :'shards', true) AS shards;
\else
SELECT set_config('citus.shard_count', greatest(4 * count(*), 1)::text, true) AS shards
  FROM pg_dist_node WHERE shouldhaveshards AND noderole = 'primary';
\endif

-- Every table that a destroy writes is distributed by the collection's id and colocated (equal ids are on one node), so
-- that a destroy stays on one node. A table that had rows before leaves hidden copies of them on the coordinator, which
-- no destroy would reach: they are removed.
CREATE TEMPORARY TABLE to_distribute ON COMMIT DROP AS
  SELECT name::regclass, distribution_column
  FROM (VALUES (1, 'collections', 'id'), (2, 'destroyed_collections', 'id'), (3, 'purge_queue', 'id'),
               (4, 'event_outbox', 'id'), (5, 'collection_entries', 'collection_id'))
    AS wanted (place, name, distribution_column)
  WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = name::regclass)
  ORDER BY place;
SELECT name, create_distributed_table(name, distribution_column,
         colocate_with := CASE name WHEN 'collections'::regclass THEN 'default' ELSE 'collections' END)
  FROM to_distribute;
SELECT name, truncate_local_data_after_distributing_table(name) FROM to_distribute;

-- oauth_applications, oauth_access_tokens, imports and seaql_migrations stay tables of the coordinator. They are small, and no
-- statement joins them with the others. As reference tables they would be written on all nodes at once, so that while
-- one node is down no token could be issued or revoked.

-- Each version of the destroying function that is installed. A generic plan cannot be distributed: the statements in the
-- function would fail with 0A000 (could not create distributed plan). With the function distributed by its first argument,
-- the coordinator passes a call on to the node of that id, and the statements run there.
DO $$
DECLARE
  destroying regprocedure;
BEGIN
  FOR destroying IN
    SELECT oid FROM pg_proc WHERE proname ~ '^destroy_collections_v\d+$' AND pronamespace = current_schema()::regnamespace
  LOOP
    EXECUTE format('ALTER FUNCTION %s RESET plan_cache_mode', destroying);
    PERFORM create_distributed_function(destroying, 'anchor', colocate_with := 'collections');
  END LOOP;
  IF destroying IS NULL THEN
    RAISE EXCEPTION 'destroy_collections_vN is not installed: run `collections-service migrate up` first';
  END IF;
END $$;

-- The purge stays a function of the coordinator: each of its statements is for one id.
DO $$
DECLARE
  purging regprocedure;
BEGIN
  FOR purging IN
    SELECT oid FROM pg_proc WHERE proname ~ '^purge_collections_v\d+$' AND pronamespace = current_schema()::regnamespace
  LOOP
    EXECUTE format('ALTER FUNCTION %s RESET plan_cache_mode', purging);
  END LOOP;
END $$;
COMMIT;

-- The limit that the function sets for its waits for locked rows holds on the node that runs it alone. A batch that spans
-- nodes, as one may in the seconds after a shard was moved, waits on the other nodes until the service terminates it
-- after 5 s, and the other destroys of its group wait for it. A default of the role that owns the function bounds that
-- wait too; migrations set their own:
--
--   ALTER ROLE <owner> SET lock_timeout = '500ms';
