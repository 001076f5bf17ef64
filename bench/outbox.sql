-- The database of suite outbox: the shop, a queue of PgQ where it is installed,
-- and a table as a queue.  Whoever takes an event notes it in a table, in the
-- transaction that takes it.

CREATE EXTENSION shop;
CREATE SCHEMA bench;

CREATE TABLE bench.got_shop (id text NOT NULL, payload jsonb);
CREATE TABLE bench.got_pgq (id text NOT NULL, payload jsonb);
CREATE TABLE bench.got_skip_locked (id text NOT NULL, payload jsonb);

CREATE FUNCTION bench.take(events jsonb[]) RETURNS void
    LANGUAGE sql
    AS $$ INSERT INTO bench.got_shop SELECT event ->> 'id', event -> 'data' FROM unnest(events) event $$;

CREATE PROCEDURE bench.drain_shop(batch integer)
    LANGUAGE plpgsql
    AS $$
BEGIN
    WHILE shop.deliver_events('bench', batch) > 0 LOOP
        COMMIT;
    END LOOP;
END
$$;

CREATE TABLE bench.queue (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    type    text NOT NULL,
    key     text NOT NULL,
    payload jsonb NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE PROCEDURE bench.drain_skip_locked(batch integer)
    LANGUAGE plpgsql
    AS $$
BEGIN
    LOOP
        WITH taken AS
          (DELETE FROM bench.queue
           WHERE id = ANY (ARRAY(SELECT id FROM bench.queue ORDER BY id LIMIT batch FOR UPDATE SKIP LOCKED))
           RETURNING id, payload)
        INSERT INTO bench.got_skip_locked SELECT id, payload FROM taken;
        EXIT WHEN NOT FOUND;
        COMMIT;
    END LOOP;
END
$$;

SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgq') AS has_pgq \gset
\if :has_pgq
CREATE EXTENSION pgq;
SELECT pgq.create_queue('bench');
SELECT pgq.set_queue_config('bench', 'ticker_max_lag', '0.1 s');
SELECT pgq.set_queue_config('bench', 'ticker_max_count', '1000');
SELECT pgq.register_consumer('bench', 'taker');

-- A batch of PgQ is what lies between two ticks, which its ticker makes
-- meanwhile; the last one is made here.  Its size is not ours to choose.
CREATE PROCEDURE bench.drain_pgq(batch integer)
    LANGUAGE plpgsql
    AS $$
DECLARE
    number bigint;
BEGIN
    PERFORM pgq.force_tick('bench');
    COMMIT;
    PERFORM pgq.ticker('bench');
    COMMIT;
    LOOP
        number := pgq.next_batch('bench', 'taker');
        EXIT WHEN number IS NULL;
        INSERT INTO bench.got_pgq SELECT ev_id, ev_data::jsonb FROM pgq.get_batch_events(number);
        PERFORM pgq.finish_batch(number);
        COMMIT;
    END LOOP;
END
$$;
\endif
