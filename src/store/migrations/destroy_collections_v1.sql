-- Destroys collections, each for its owner, in the caller's transaction. The arrays have one element for each destroy.
--
--   anchor         any of the ids; where the engine is distributed, it chooses the node that runs the function
--   request_ids    of the callers, or made by the service; never NULL
--   callers        for the audit trail; an empty text where none is known
--   publish        also write to event_outbox
--   replays_first  decide which destroys repeat an earlier one before anything is deleted, and write over tombstones that
--                  stand already. Without it a tombstone that stands already fails the call with unique_violation:
--                  to be ready for one would cost each row a fifth more
--   lock_wait      the longest wait for a locked row, a lock_timeout
--
-- Returns one letter for each destroy: d destroyed, r replayed (an earlier call of this owner with this request id did it),
-- f another owner's, n not found, c conflict (another call took the row; run it again).
--
-- Negative ids, which no collection has, are a rehearsal: their rows are created and destroyed, and every trace is deleted.
CREATE FUNCTION destroy_collections_v1(
  anchor bigint, ids bigint[], owners bigint[], destroyed_at timestamptz, request_ids uuid[], callers text[],
  publish boolean, replays_first boolean, lock_wait text
) RETURNS text
LANGUAGE plpgsql
-- Its callers need no right on the tables, only EXECUTE.
SECURITY DEFINER
-- Only plans by primary key, whatever the planner knows of the tables. Without this, a plan made while they are small or
-- unknown reads them whole, and is kept while they grow.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_nestloop = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
  is_rehearsal boolean := cardinality(ids) > 0 AND 0 > ALL (ids);
  candidates bigint[] := owners;  -- NULL where the row must not be deleted
  places bigint[];                -- of the destroys that deleted their row
  all_deleted boolean;
  tombstone_ids bigint[]; tombstone_owners bigint[]; tombstone_requests uuid[];
  row_ids bigint[]; row_owners bigint[];
  outcomes text;
  ignored text;
BEGIN
  -- These hold until the transaction has ended. As attributes of the function they would be undone before the commit.
  IF current_setting('fsync') = 'off' THEN
    RAISE EXCEPTION 'fsync is off: a commit would be acknowledged before it is durable' USING ERRCODE = 'CD001';
  END IF;
  IF current_setting('synchronous_commit') = 'off' THEN
    ignored := set_config('synchronous_commit', 'on', true);
  END IF;
  ignored := set_config('lock_timeout', lock_wait, true);

  IF is_rehearsal THEN
    INSERT INTO collections (id, owner_id, name, timeline_order, created_at)
      SELECT DISTINCT id, owner_id, '', '', destroyed_at FROM unnest(ids, owners) AS rehearsed (id, owner_id);
  ELSIF 0 >= ANY (ids) THEN
    -- Or the traces of a destroy could be deleted with those of a rehearsal.
    RAISE EXCEPTION 'an id is not positive' USING ERRCODE = 'invalid_parameter_value';
  END IF;

  IF replays_first THEN
    SELECT array_agg(id), array_agg(owner_id), array_agg(request_id)
      INTO tombstone_ids, tombstone_owners, tombstone_requests
      FROM destroyed_collections WHERE id = ANY (ids);
    candidates := ARRAY(
      SELECT CASE WHEN tombstone.id IS NULL THEN asked.owner_id END
      FROM unnest(ids, owners, request_ids) WITH ORDINALITY AS asked (id, owner_id, request_id, place)
      LEFT JOIN unnest(tombstone_ids, tombstone_owners, tombstone_requests) AS tombstone (id, owner_id, request_id)
        USING (id, owner_id, request_id)
      ORDER BY place);
  END IF;

  IF cardinality(ids) = 1 THEN
    DELETE FROM collections WHERE id = ids[1] AND owner_id = candidates[1];
    IF FOUND THEN
      places := '{1}';
    END IF;
  ELSE
    -- Rows are locked in the order of their ids: `id = ANY` is an index scan, the only one that the settings leave.
    -- Where several ask for one collection, the row goes to one of them.
    WITH deleted AS (
      DELETE FROM collections USING unnest(ids, candidates) WITH ORDINALITY AS asked (id, owner_id, place)
      WHERE collections.id = ANY (ids) AND collections.id = asked.id AND collections.owner_id = asked.owner_id
      RETURNING asked.place
    ) SELECT array_agg(place) INTO places FROM deleted;
  END IF;

  all_deleted := cardinality(places) = cardinality(ids);
  IF places IS NOT NULL THEN
    IF replays_first THEN
      INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
        SELECT ids[place], owners[place], destroyed_at, request_ids[place], nullif(callers[place], '')
        FROM unnest(places) AS place
        ON CONFLICT (id) DO UPDATE SET owner_id = excluded.owner_id, destroyed_at = excluded.destroyed_at,
          request_id = excluded.request_id, caller = excluded.caller;
      INSERT INTO purge_queue (id, since)
        SELECT ids[place], destroyed_at FROM unnest(places) AS place ON CONFLICT (id) DO NOTHING;
    ELSIF cardinality(ids) = 1 THEN
      INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
        VALUES (ids[1], owners[1], destroyed_at, request_ids[1], nullif(callers[1], ''));
      INSERT INTO purge_queue (id, since) VALUES (ids[1], destroyed_at);
    ELSE
      INSERT INTO destroyed_collections (id, owner_id, destroyed_at, request_id, caller)
        SELECT id, owner_id, destroyed_at, request_id, nullif(caller, '')
        FROM unnest(ids, owners, request_ids, callers) WITH ORDINALITY AS asked (id, owner_id, request_id, caller, place)
        -- Without a search where all are there, as they usually are.
        WHERE all_deleted OR place = ANY (places);
      INSERT INTO purge_queue (id, since) SELECT ids[place], destroyed_at FROM unnest(places) AS place;
    END IF;
    IF publish THEN
      INSERT INTO event_outbox (id, since)
        SELECT ids[place], destroyed_at FROM unnest(places) AS place ON CONFLICT (id) DO NOTHING;
    END IF;
    IF all_deleted AND NOT is_rehearsal THEN
      RETURN repeat('d', cardinality(ids));
    END IF;
  END IF;

  -- Each statement here sees what was committed before it began: also what the DELETE waited for.
  SELECT array_agg(id), array_agg(owner_id), array_agg(request_id)
    INTO tombstone_ids, tombstone_owners, tombstone_requests
    FROM destroyed_collections WHERE id = ANY (ids);
  SELECT array_agg(id), array_agg(owner_id) INTO row_ids, row_owners FROM collections WHERE id = ANY (ids);
  outcomes := (
    SELECT string_agg(CASE
      WHEN place = ANY (places) THEN 'd'
      WHEN tombstone.known OR candidates[place] IS NULL THEN 'r'
      WHEN existing.owner_id = asked.owner_id THEN 'c'
      WHEN existing.owner_id IS NOT NULL THEN 'f'
      ELSE 'n' END, '' ORDER BY place)
    FROM unnest(ids, owners, request_ids) WITH ORDINALITY AS asked (id, owner_id, request_id, place)
    LEFT JOIN (SELECT *, true FROM unnest(tombstone_ids, tombstone_owners, tombstone_requests))
      AS tombstone (id, owner_id, request_id, known) USING (id, owner_id, request_id)
    LEFT JOIN unnest(row_ids, row_owners) AS existing (id, owner_id) ON existing.id = asked.id);
  IF is_rehearsal THEN
    DELETE FROM collections WHERE id = ANY (ids);
    DELETE FROM destroyed_collections WHERE id = ANY (ids);
    DELETE FROM purge_queue WHERE id = ANY (ids);
    DELETE FROM event_outbox WHERE id = ANY (ids);
  END IF;
  IF outcomes LIKE '%r%' THEN
    -- A replay is answered once what it repeats is as durable as the first answer would have been: something has to be
    -- committed for that, or nothing is flushed and no standby waited for.
    ignored := pg_logical_emit_message(true, 'destroy_collections', '');
  END IF;
  RETURN coalesce(outcomes, '');
END $$;
