-- Erases entries of destroyed collections, and deletes the rows of purge_queue of which none is left, in the caller's
-- transaction. Nothing is erased for an id that has no tombstone, or a row in collections.
--
--   ids        rows of purge_queue
--   positions  for each id, the last tweet_id that was erased, or the lowest bigint. Without it each chunk of a large
--              collection would begin by reading the dead rows of all chunks before
--   most       entries that are erased
--
-- Returns a row for each id, with its new position, the number of entries erased, and whether it is finished; and none for
-- an id that is skipped, because its row in the queue is locked, say by another replica.
CREATE FUNCTION purge_collections_v1(ids bigint[], positions bigint[], most bigint)
RETURNS TABLE (purged_id bigint, purged_position bigint, erased bigint, is_finished boolean)
LANGUAGE plpgsql
-- Its callers need no right on the tables, only EXECUTE, and can erase nothing else.
SECURITY DEFINER
-- Only plans by primary key, whatever the planner knows of the tables.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
  lowest constant bigint := -9223372036854775808;
  remaining bigint := most;
  ignored text;
BEGIN
  -- What is lost in a crash is erased once more, so nothing has to wait for the disk. Both hold until the end of the
  -- transaction.
  ignored := set_config('synchronous_commit', 'off', true);
  ignored := set_config('lock_timeout', '200ms', true);

  -- One id after the other, so that each statement stays on one node where the engine is distributed.
  FOR place IN 1..cardinality(ids) LOOP
    purged_id := ids[place];
    purged_position := positions[place];
    erased := 0;
    is_finished := false;
    IF remaining > 0 THEN
      PERFORM FROM purge_queue WHERE id = purged_id
        AND EXISTS (SELECT FROM destroyed_collections WHERE id = purged_id)
        AND NOT EXISTS (SELECT FROM collections WHERE id = purged_id)
        FOR UPDATE SKIP LOCKED;
      CONTINUE WHEN NOT FOUND;
      WITH deleted AS (
        DELETE FROM collection_entries WHERE collection_id = purged_id AND tweet_id IN (
          SELECT tweet_id FROM collection_entries
          WHERE collection_id = purged_id AND tweet_id >= purged_position ORDER BY tweet_id LIMIT remaining
        ) RETURNING tweet_id
      ) SELECT count(*), coalesce(max(tweet_id), purged_position) INTO erased, purged_position FROM deleted;
      IF erased < remaining THEN
        DELETE FROM purge_queue
          WHERE id = purged_id AND NOT EXISTS (SELECT FROM collection_entries WHERE collection_id = purged_id);
        is_finished := FOUND;
        -- Not finished: there are entries before the position.
        purged_position := lowest;
      END IF;
      remaining := remaining - erased;
    END IF;
    RETURN NEXT;
  END LOOP;
END $$;
