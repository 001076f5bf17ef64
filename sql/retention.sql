-- Retention: delivered events go after shop.outbox_retention; what somebody still waits for stays.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-01 00:00:00+00';
SHOW shop.outbox_retention;
CREATE TABLE public.broken (key text);
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM public.broken WHERE key = event->>'subject') THEN
        RAISE EXCEPTION 'can not take %', event->>'subject';
    END IF;
END
$$;
CREATE FUNCTION public.emit(key text, no integer) RETURNS integer LANGUAGE sql AS $$
    SELECT no FROM shop.emit_event('test.event', 'test', key, jsonb_build_object('no', no))
$$;
CREATE VIEW public.kept AS SELECT array_agg(aggregateid || ' ' || (payload->>'no') ORDER BY event_no) AS events FROM shop.outbox;
-- Without a transaction that could still commit, numbers are settled at the next look
CREATE PROCEDURE public.settle() LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 100 LOOP
        PERFORM shop.deliver_events();
        COMMIT;
        EXIT WHEN NOT EXISTS (SELECT FROM shop.endpoint WHERE int8multirange(range_merge(acked)) <> acked);
        PERFORM pg_sleep(0.1);
    END LOOP;
END
$$;
-- Nothing there, nothing to do
SELECT * FROM shop.run_maintenance();
SELECT count(*) FROM shop.outbox_cleared;
--
-- Undelivered events stay, however old
--
SELECT name FROM shop.create_endpoint('e', 'function:public.take', options => '{"max_attempts": 2}');
SELECT count(public.emit('a', i)) FROM generate_series(1, 3) i;
SET shop.test_clock = '2027-11-01 00:00:00+00';
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
--
-- Delivered ones go when they are older than the retention, not before
--
SET shop.test_clock = '2026-11-01 00:00:00+00';
SELECT shop.deliver_events();
CALL public.settle();
SET shop.test_clock = '2026-11-08 00:00:00+00';
SELECT events_cleared FROM shop.run_maintenance();
SELECT count(public.emit('a', i)) FROM generate_series(4, 5) i;
SELECT shop.deliver_events();
CALL public.settle();
SET shop.test_clock = '2026-11-08 00:00:00.000001+00';
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
SELECT created_upto, events FROM shop.outbox_cleared;
SELECT events_cleared FROM shop.run_maintenance();
-- The setting, in minutes where it has no unit
SET shop.outbox_retention = '1h';
SHOW shop.outbox_retention;
SET shop.test_clock = '2026-11-08 01:00:00+00';
SELECT events_cleared FROM shop.run_maintenance();
SET shop.test_clock = '2026-11-08 01:00:00.000001+00';
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
SELECT created_upto, events FROM shop.outbox_cleared;
SET shop.outbox_retention = 0;
\a
SELECT * FROM public.refusal('SET shop.outbox_retention = -1');
\a
--
-- Queued, waiting and dead events stay; so do those of a paused endpoint
--
INSERT INTO public.broken VALUES ('bad');
SELECT count(public.emit(k, i::integer)) FROM unnest('{good,bad,bad,fine}'::text[]) WITH ORDINALITY x(k, i);
SELECT shop.deliver_events();
CALL public.settle();
SET shop.test_clock = '2026-11-08 01:00:01+00';
SELECT aggregateid, attempts, dead_at FROM shop.delivery ORDER BY event_no;
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
SET shop.test_clock = '2026-11-08 01:00:05+00';
SELECT shop.deliver_events();
SELECT count(*) AS dead FROM shop.dead_letters;
SET shop.test_clock = '2026-11-08 01:01:00+00';
SELECT shop.deliver_events();
SELECT count(*) AS dead FROM shop.dead_letters;
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
SELECT aggregateid, payload FROM shop.dead_letters ORDER BY event_no;
SELECT count(*) FROM shop.verify();
-- Redriven and taken, they go
TRUNCATE public.broken;
SELECT shop.redrive_all('e');
SET shop.test_clock = '2026-11-08 01:02:00+00';
SELECT shop.deliver_events();
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
SELECT state FROM shop.pause_endpoint('e');
SELECT public.emit('a', 6);
SELECT shop.deliver_events();
SET shop.test_clock = '2026-11-09 00:00:00+00';
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
-- Without the endpoint nobody waits any more
SELECT name FROM shop.drop_endpoint('e');
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
-- From the old end: what is young stays, what is behind an undelivered event does too
SET shop.outbox_retention = '1d';
SELECT name FROM shop.create_endpoint('e', 'function:public.take');
SELECT public.emit('old', 1);
SET shop.test_clock = '2026-11-10 12:00:00+00';
SELECT public.emit('young', 2);
SELECT shop.deliver_events();
CALL public.settle();
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
-- A new endpoint gets, from the start, what is kept
SELECT name FROM shop.create_endpoint('start', 'function:public.take', options => '{"from_start": true}');
SELECT endpoint, pending FROM shop.outbox_metrics();
SELECT shop.deliver_events('start');
--
-- verify() knows what has been cleared, and still misses what has not
--
SELECT shop.create_product('Tea', 10, 100);
SELECT balance FROM shop.charge_points(1, 1000);
SELECT total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]');
CALL public.settle();
SET shop.test_clock = '2026-11-12 00:00:00+00';
SELECT events_cleared FROM shop.run_maintenance();
SELECT * FROM public.kept;
SELECT * FROM shop.verify();
SELECT total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]');
BEGIN;
DELETE FROM shop.outbox;
SELECT invariant, subject, detail FROM shop.verify() WHERE invariant LIKE 'outbox:%';
ROLLBACK;
-- Sales do not need their events any more
SELECT shop.refresh_popular_products();
SELECT product_id, quantity FROM shop.top_products();
-- At higher isolation levels nothing is cleared: its snapshot might not show the newest endpoint
CALL public.settle();
SET shop.test_clock = '2026-11-20 00:00:00+00';
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT events_cleared FROM shop.run_maintenance();
COMMIT;
-- Rolled back with the caller
BEGIN;
SELECT events_cleared FROM shop.run_maintenance();
ROLLBACK;
SELECT count(*) FROM shop.outbox;
SELECT events_cleared FROM shop.run_maintenance();
SELECT count(*) FROM shop.outbox;
-- Empty slots are merged: slot 0 stays
INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (1, 1, 0), (1, 2, 0);
SELECT slots_merged FROM shop.run_maintenance();
SELECT product_id, slot, on_hand FROM shop.stock ORDER BY 1, 2;
SELECT * FROM shop.verify();
\set ECHO none
DROP TABLE public.broken;
DROP VIEW public.kept;
DROP PROCEDURE public.settle();
DROP FUNCTION public.take(jsonb), public.emit(text, integer);
