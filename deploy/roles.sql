-- The roles that migrate the schema and that serve, each with the rights that it needs. Run it in the service's database before
-- the first `migrate up` and again after every one, as a superuser, or as the owner of the database with CREATEROLE. It may be
-- run any number of times.
--
--   psql -X -v ON_ERROR_STOP=1 -f deploy/roles.sql "$DATABASE_URL"
--
-- The roles have no passwords yet: `\password collections` sets one.

\set ON_ERROR_STOP on
BEGIN;
DO $$
DECLARE
  role text;
BEGIN
  FOREACH role IN ARRAY ARRAY['collections_migrator', 'collections', 'collections_gateway'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
      EXECUTE format('CREATE ROLE %I LOGIN', role);
    END IF;
  END LOOP;
  -- To grant rights on what the role that migrates owns.
  IF NOT pg_has_role('collections_migrator', 'USAGE') THEN
    EXECUTE format('GRANT collections_migrator TO %I', current_user);
  END IF;
END $$;

-- A role that may create objects here could put functions in place of those that ours call. Clusters that were upgraded
-- from PostgreSQL 14 or older let every role do so.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- `migrate up`, `import`, `purge`, `inspect`, `verify`, `tombstones` and the `credentials` commands: it owns the tables.
GRANT CREATE ON SCHEMA public TO collections_migrator;

-- `serve`: the functions, also those of later versions, and four tables to read. It has no right on collections and entries.
ALTER DEFAULT PRIVILEGES FOR ROLE collections_migrator GRANT EXECUTE ON FUNCTIONS TO collections;

-- What exists only after the first migration.
DO $$ BEGIN
  IF to_regclass('public.seaql_migrations') IS NOT NULL THEN
    GRANT EXECUTE ON FUNCTION destroy_collections_v1, purge_collections_v1 TO collections;
    GRANT SELECT ON purge_queue, oauth_applications, oauth_access_tokens, seaql_migrations TO collections;
    -- `gateway`.
    GRANT SELECT ON oauth_applications, oauth_access_tokens, seaql_migrations TO collections_gateway;
  END IF;
END $$;
COMMIT;
