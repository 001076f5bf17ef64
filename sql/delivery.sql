-- Endpoints: who gets which events, in which order, and what happens when one is not taken.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
-- Targets that write down what they get, and fail on purpose
CREATE TABLE public.got (
    n serial, target text, type text, key text, data jsonb, batch integer DEFAULT 1, role name DEFAULT current_user);
CREATE TABLE public.broken (key text);
CREATE TABLE public.ids (id uuid);
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.ids VALUES ((event->>'id')::uuid);
    INSERT INTO public.got (target, type, key, data) VALUES ('take', event->>'type', event->>'subject', event->'data');
    IF EXISTS (SELECT FROM public.broken WHERE key IN ('*', event->>'subject')) THEN
        RAISE EXCEPTION 'can not take %', event->>'subject';
    END IF;
END
$$;
CREATE FUNCTION public.take_all(events jsonb[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.got (target, type, key, data, batch)
    SELECT 'take_all', e->>'type', e->>'subject', e->'data', cardinality(events) FROM unnest(events) e;
    IF EXISTS (SELECT FROM public.broken b JOIN unnest(events) e ON b.key = e->>'subject') THEN
        RAISE EXCEPTION 'can not take one of %', cardinality(events);
    END IF;
END
$$;
CREATE FUNCTION public.take_nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION public.take_text(event text) RETURNS void LANGUAGE sql AS '';
-- Emits an event of a key, with a number to tell it by
CREATE FUNCTION public.emit(key text, no integer, type text DEFAULT 'test.event', priority integer DEFAULT 0)
    RETURNS integer LANGUAGE sql AS $$
    SELECT no FROM shop.emit_event(type, 'test', key, jsonb_build_object('no', no), priority)
$$;
--
-- create_endpoint: bad input
--
\a
SELECT r.* FROM (VALUES
    ($$name => NULL, url => 'function:public.take'$$),
    ($$name => '', url => 'function:public.take'$$),
    ($$name => repeat('x', 256), url => 'function:public.take'$$),
    ($$name => 'shop.mine', url => 'function:public.take'$$),
    ($$name => 'e', url => NULL$$),
    ($$name => 'e', url => ''$$),
    ($$name => 'e', url => 'take'$$),
    ($$name => 'e', url => 'ftp://example.com/x'$$),
    ($$name => 'e', url => 'http://example.com/hook'$$),
    ($$name => 'e', url => 'https://example.com/hook'$$),
    ($$name => 'e', url => 'kafka://broker:9092/topic'$$),
    ($$name => 'e', url => 'function:'$$),
    ($$name => 'e', url => 'function:take'$$),
    ($$name => 'e', url => 'function:a.public.take'$$),
    ($$name => 'e', url => 'function:public.'$$),
    ($$name => 'e', url => 'function:nowhere.take'$$),
    ($$name => 'e', url => 'function:public.unknown'$$),
    ($$name => 'e', url => 'function:public.take_nothing'$$),
    ($$name => 'e', url => 'function:public.take_text'$$),
    ($$name => 'e', url => 'function:public.take(jsonb)'$$),
    ($$name => 'e', url => 'function:public.take', types => NULL$$),
    ($$name => 'e', url => 'function:public.take', types => '{}'$$),
    ($$name => 'e', url => 'function:public.take', types => ARRAY['a', NULL]$$),
    ($$name => 'e', url => 'function:public.take', types => '{""}'$$),
    ($$name => 'e', url => 'function:public.take', types => array_fill('a'::text, '{101}')$$),
    ($$name => 'e', url => 'function:public.take', types => ARRAY[repeat('x', 256)]$$),
    ($$name => 'e', url => 'function:public.take', options => NULL$$),
    ($$name => 'e', url => 'function:public.take', options => '[]'$$),
    ($$name => 'e', url => 'function:public.take', options => '"from_start"'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"colour": "red"}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"from_start": 1}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"max_attempts": 0}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"max_attempts": 1001}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"max_attempts": "3"}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"max_attempts": [3]}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"backoff": 1.5}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"backoff": 86400001}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"max_backoff": -1}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"timeout": null}'$$),
    ($$name => 'e', url => 'function:public.take', options => '{"timeout": 99999999999999999999}'$$)
) v(arguments), LATERAL public.refusal('SELECT shop.create_endpoint(' || v.arguments || ')') r;
\a
SELECT count(*) FROM shop.endpoints;
--
-- create_endpoint: what it answers, and which events arrive
--
SELECT public.emit('before', 0);
SELECT name, url, types, options, signed, run_as, state, pause_reason, delivered_total, last_delivered_at, last_error, created_at
  FROM shop.create_endpoint('now', 'function:public.take');
SELECT name, types, signed, options
  FROM shop.create_endpoint('start', 'function:public.take_all', types => '{test.event}', secret => 'hush',
                            options => '{"from_start": true, "max_attempts": 2.0}');
-- Names are unique; the first stays
SELECT * FROM public.refusal($$SELECT shop.create_endpoint('now', 'function:public.take_all')$$);
-- No view shows the secret
SELECT count(*) FROM shop.endpoints e WHERE e::text LIKE '%hush%';
SELECT public.emit('after', 1);
SELECT shop.deliver_events() AS delivered;
SELECT target, type, key, data, batch FROM public.got ORDER BY target, n;
SELECT shop.deliver_events() AS nothing_left;
-- The event as the target sees it
CREATE FUNCTION public.show(event jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO public.got (target, data)
    VALUES ('show', jsonb_set(event - 'source', '{id}', to_jsonb(pg_typeof((event->>'id')::uuid)::text))
                    || jsonb_build_object('source_ok', event->>'source' = '/shop/' || current_database()))
$$;
SELECT name FROM shop.create_endpoint('show', 'function:public.show');
SELECT public.emit('k', 2);
SELECT shop.deliver_events('show');
SELECT jsonb_pretty(data) AS event FROM public.got WHERE target = 'show';
SELECT name FROM shop.drop_endpoint('show');
SELECT name FROM shop.drop_endpoint('start');
SELECT name FROM shop.drop_endpoint('now');
TRUNCATE public.got RESTART IDENTITY;
--
-- Patterns of types: exact, a family, everything; whatever bounds the array has
--
CREATE FUNCTION public.take_exact(event jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.got (target, type) VALUES ('exact', event->>'type') $$;
CREATE FUNCTION public.take_family(event jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.got (target, type) VALUES ('family', event->>'type') $$;
CREATE FUNCTION public.take_any(event jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.got (target, type) VALUES ('any', event->>'type') $$;
CREATE FUNCTION public.take_odd(event jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.got (target, type) VALUES ('odd', event->>'type') $$;
SELECT name, types FROM shop.create_endpoint('exact', 'function:public.take_exact', types => '{test.a}');
SELECT name, types FROM shop.create_endpoint('family', 'function:public.take_family', types => '{test.*}');
SELECT name, types FROM shop.create_endpoint('any', 'function:public.take_any', types => '{*}');
SELECT name, types FROM shop.create_endpoint('odd', 'function:public.take_odd', types => '[5:6]={test.b,tes*}');
SELECT count(public.emit('k', i::integer, t))
  FROM unnest('{test.a,test.b,test.a.x,testing.a,test,TEST.A,te%t.a}'::text[]) WITH ORDINALITY x(t, i);
SELECT shop.deliver_events() AS delivered;
SELECT target, array_agg(type ORDER BY n) FROM public.got GROUP BY target ORDER BY target;
SELECT endpoint, pending, delivered_total FROM shop.outbox_metrics();
SELECT count(shop.drop_endpoint(name)) FROM shop.endpoints;
TRUNCATE public.got RESTART IDENTITY;
--
-- pause, resume, drop
--
SELECT name FROM shop.create_endpoint('e', 'function:public.take');
SELECT name, state, pause_reason FROM shop.pause_endpoint('e');
SELECT name, state, pause_reason FROM shop.pause_endpoint('e');
SELECT public.emit('k', 1);
SELECT shop.deliver_events('e') AS while_paused;
SELECT endpoint, state, pending FROM shop.outbox_metrics();
SELECT name, state, pause_reason FROM shop.resume_endpoint('e');
SELECT name, state, pause_reason FROM shop.resume_endpoint('e');
SELECT shop.deliver_events('e') AS after_resume;
SELECT name, state, delivered_total, last_delivered_at FROM shop.drop_endpoint('e');
SELECT count(*) FROM shop.endpoints;
\a
SELECT r.* FROM (VALUES
    ($$shop.pause_endpoint('e')$$), ($$shop.resume_endpoint('e')$$), ($$shop.drop_endpoint('e')$$),
    ($$shop.pause_endpoint(NULL)$$), ($$shop.resume_endpoint(NULL)$$), ($$shop.drop_endpoint(NULL)$$),
    -- The built-in subscriber is nobody's to touch
    ($$shop.pause_endpoint('shop.fold_sales')$$), ($$shop.resume_endpoint('shop.fold_sales')$$),
    ($$shop.drop_endpoint('shop.fold_sales')$$), ($$shop.deliver_events('shop.fold_sales')$$),
    ($$shop.deliver_events('e')$$), ($$shop.deliver_events(max_events => 0)$$), ($$shop.deliver_events(max_events => -1)$$),
    ($$shop.deliver_events(max_events => NULL)$$),
    ($$shop.redrive('e', '00000000-0000-0000-0000-000000000000')$$), ($$shop.redrive('e', NULL)$$),
    ($$shop.redrive(NULL, '00000000-0000-0000-0000-000000000000')$$), ($$shop.redrive_all('e')$$), ($$shop.redrive_all(NULL)$$)
) v(call), LATERAL public.refusal('SELECT ' || v.call) r;
\a
TRUNCATE public.got RESTART IDENTITY;
--
-- max_events: so many and no more, in order; what is not wanted does not count
--
SELECT name FROM shop.create_endpoint('e', 'function:public.take', types => '{test.*}');
SELECT count(public.emit('k', i, CASE WHEN i % 2 = 0 THEN 'other.event' ELSE 'test.event' END)) FROM generate_series(1, 10) i;
SELECT shop.deliver_events(NULL, 2);
SELECT shop.deliver_events('e', 1);
SELECT array_agg(data->>'no' ORDER BY n) FROM public.got;
SELECT shop.deliver_events();
SELECT array_agg(data->>'no' ORDER BY n) FROM public.got;
SELECT name FROM shop.drop_endpoint('e');
TRUNCATE public.got RESTART IDENTITY;
--
-- A failing event: retried with a back-off, its key behind it, other keys pass
--
SELECT name FROM shop.create_endpoint('e', 'function:public.take', options => '{"max_attempts": 3, "backoff": 10000}');
INSERT INTO public.broken VALUES ('bad');
SELECT count(public.emit(k, i::integer)) FROM unnest('{good,bad,good,bad,fine}'::text[]) WITH ORDINALITY x(k, i);
SELECT shop.deliver_events();
-- What the failing call had written is undone
SELECT array_agg(key || ' ' || (data->>'no') ORDER BY n) FROM public.got;
CREATE VIEW public.waiting AS
    SELECT d.aggregateid AS key, o.payload->>'no' AS no, d.attempts,
           CASE WHEN d.attempts > 0 THEN d.next_attempt_at - shop.clock() BETWEEN '00:00:05'::interval * 2 ^ (d.attempts - 1)
                                                            AND '00:00:15'::interval * 2 ^ (d.attempts - 1) END AS delay_as_expected,
           d.last_error, d.dead_at
      FROM shop.delivery d JOIN shop.outbox o USING (event_no) ORDER BY event_no;
SELECT * FROM public.waiting;
SELECT endpoint, state, pending, retrying, dead, oldest_age, delivered_total, last_error FROM shop.outbox_metrics();
SELECT name, state, last_error FROM shop.endpoints;
-- Not due yet: nothing is tried; a new event of the key queues, one of another key passes
SET shop.test_clock = '2026-11-20 12:00:04+00';
SELECT public.emit('bad', 6), public.emit('good', 7);
SELECT shop.deliver_events();
SELECT array_agg(key || ' ' || (data->>'no') ORDER BY n) FROM public.got;
SELECT key, no, attempts FROM public.waiting;
-- Due: the second try; the delay doubles
SET shop.test_clock = '2026-11-20 12:00:16+00';
SELECT shop.deliver_events();
SELECT * FROM public.waiting;
SET shop.test_clock = '2026-11-20 12:00:25+00';
SELECT shop.deliver_events();
SELECT key, no, attempts FROM public.waiting;
SELECT endpoint, state, pending, retrying, dead, oldest_age FROM shop.outbox_metrics();
-- The third is the last: a dead letter, and the next of its key is tried
SET shop.test_clock = '2026-11-20 12:00:47+00';
SELECT shop.deliver_events();
SELECT key, no, attempts, last_error, dead_at FROM public.waiting;
SELECT endpoint, type, aggregatetype, aggregateid, payload, attempts, last_error, dead_at FROM shop.dead_letters ORDER BY event_no;
SELECT endpoint, state, pending, retrying, dead, oldest_age FROM shop.outbox_metrics();
-- Repaired: what waits is delivered, in order; the dead letter stays
TRUNCATE public.broken;
TRUNCATE public.got RESTART IDENTITY;
SET shop.test_clock = '2026-11-20 12:01:03+00';
SELECT shop.deliver_events();
SELECT array_agg(key || ' ' || (data->>'no') ORDER BY n) FROM public.got;
SELECT endpoint, state, pending, retrying, dead, oldest_age, delivered_total, last_delivered_at FROM shop.outbox_metrics();
SELECT count(*) FROM shop.verify();
--
-- redrive: the same event id again, from the first attempt
--
SELECT * FROM public.refusal($$SELECT shop.redrive('e', '00000000-0000-0000-0000-000000000000')$$);
SELECT event_id FROM shop.dead_letters \gset
TRUNCATE public.ids;
SELECT shop.redrive('e', :'event_id') AS redriven;
-- It is no dead letter any more
SELECT code, message FROM public.refusal(format($$SELECT shop.redrive('e', %L)$$, :'event_id'));
SELECT count(*) FROM shop.dead_letters;
SELECT key, no, attempts, dead_at FROM public.waiting;
SELECT shop.deliver_events();
SELECT id = :'event_id' AS same_id FROM public.ids;
SELECT count(*) FROM public.waiting;
SELECT shop.redrive_all('e') AS nothing_to_redrive;
SELECT name FROM shop.drop_endpoint('e');
-- redrive_all, all or since a time
INSERT INTO public.broken VALUES ('a'), ('b');
SELECT name FROM shop.create_endpoint('e', 'function:public.take', options => '{"max_attempts": 1}');
SELECT public.emit('a', 1), public.emit('a', 2);
SELECT shop.deliver_events();
SET shop.test_clock = '2026-11-20 12:02:00+00';
SELECT public.emit('b', 3);
SELECT shop.deliver_events();
SELECT aggregateid, payload, attempts, dead_at FROM shop.dead_letters ORDER BY event_no;
TRUNCATE public.broken;
SELECT shop.redrive_all('e', '2026-11-20 12:02:00+00') AS since;
SELECT aggregateid, payload FROM shop.dead_letters ORDER BY event_no;
SELECT shop.redrive_all(endpoint => 'e') AS all_others;
SELECT shop.deliver_events();
SELECT count(*) FROM shop.dead_letters;
SELECT endpoint, pending, retrying, dead, delivered_total FROM shop.outbox_metrics();
-- A dropped endpoint takes its dead letters along
INSERT INTO public.broken VALUES ('a');
SELECT public.emit('a', 4);
SELECT shop.deliver_events();
SELECT count(*) FROM shop.dead_letters;
SELECT name FROM shop.drop_endpoint('e');
SELECT count(*) FROM shop.delivery;
--
-- A function of batches: all at once, in halves where one fails; each event once
--
TRUNCATE public.got RESTART IDENTITY;
SELECT name FROM shop.create_endpoint('e', 'function:public.take_all');
SELECT count(public.emit(k, i::integer)) FROM unnest('{p,q,r,s}'::text[]) WITH ORDINALITY x(k, i);
SELECT shop.deliver_events();
SELECT key, batch FROM public.got ORDER BY n;
TRUNCATE public.got RESTART IDENTITY;
SELECT count(public.emit(k, i::integer)) FROM unnest('{p,q,r,a,s,t,u,a}'::text[]) WITH ORDINALITY x(k, i);
SELECT shop.deliver_events();
SELECT key, data->>'no' AS no, count(*) FROM public.got GROUP BY 1, 2 ORDER BY 2;
SELECT key, no, attempts, last_error FROM public.waiting;
SELECT name FROM shop.drop_endpoint('e');
TRUNCATE public.broken;
TRUNCATE public.got RESTART IDENTITY;
--
-- 20 failures in a row: the endpoint as a whole backs off, its events stay in the outbox
--
INSERT INTO public.broken VALUES ('*');
SELECT name FROM shop.create_endpoint('e', 'function:public.take');
SELECT name FROM shop.create_endpoint('other', 'function:public.take_all');
SELECT count(public.emit('k' || i, i)) FROM generate_series(1, 30) i;
SELECT shop.deliver_events() AS to_the_other;
SELECT endpoint, state, pending, retrying, dead, delivered_total FROM shop.outbox_metrics();
SELECT failures, retry_at - shop.clock() BETWEEN '00:00:00.5' AND '00:00:01.5' AS delay_as_expected FROM shop.endpoint WHERE name = 'e';
SELECT shop.deliver_events() AS backing_off;
SELECT sum(attempts) AS tries FROM public.waiting;
-- A probe is one event; when it fails the delay doubles
SET shop.test_clock = '2026-11-20 12:02:02+00';
SELECT shop.deliver_events('e') AS probed;
SELECT failures, retry_at - shop.clock() BETWEEN '00:00:01' AND '00:00:03' AS delay_as_expected FROM shop.endpoint WHERE name = 'e';
SELECT sum(attempts) AS tries FROM public.waiting;
-- Repaired: everything arrives, once
TRUNCATE public.broken;
SET shop.test_clock = '2026-11-20 12:02:30+00';
SELECT shop.deliver_events('e') + shop.deliver_events('e') AS delivered;
SELECT count(*), count(DISTINCT key) FROM public.got WHERE target = 'take';
SELECT endpoint, state, pending, retrying, dead, delivered_total FROM shop.outbox_metrics();
-- resume_endpoint does not wait for the back-off of the endpoint
INSERT INTO public.broken VALUES ('*');
SELECT count(public.emit('k' || i, i)) FROM generate_series(1, 30) i;
SELECT shop.deliver_events('e') AS failed;
TRUNCATE public.broken;
SELECT name, state FROM shop.resume_endpoint('e');
SELECT shop.deliver_events('e') AS what_was_not_tried;
SELECT count(shop.drop_endpoint(name)) FROM shop.endpoints;
TRUNCATE public.got RESTART IDENTITY;
--
-- Priorities leave first, the order within a key is kept
--
SELECT name FROM shop.create_endpoint('e', 'function:public.take');
SELECT public.emit('k1', 1), public.emit('k2', 2), public.emit('k1', 3, priority => 5),
       public.emit('k3', 4, priority => 9), public.emit('k2', 5);
SELECT shop.deliver_events();
SELECT array_agg(key || ' ' || (data->>'no') ORDER BY n) FROM public.got;
TRUNCATE public.got RESTART IDENTITY;
-- A backlog larger than max_events: what is urgent far behind leaves with what is ahead of it in its key
SELECT count(public.emit('k' || i % 3, i)) FROM generate_series(1, 6) i;
SELECT public.emit('u', 7), public.emit('k0', 8), public.emit('u', 9, priority => 1);
SELECT shop.deliver_events(max_events => 3);
SELECT array_agg(key || ' ' || (data->>'no') ORDER BY n) FROM public.got;
SELECT shop.deliver_events() AS the_rest;
SELECT key, array_agg((data->>'no')::integer ORDER BY n) FROM public.got GROUP BY key ORDER BY key;
SELECT name FROM shop.drop_endpoint('e');
TRUNCATE public.got RESTART IDENTITY;
-- Retries that are due count as well
INSERT INTO public.broken VALUES ('*');
SELECT name FROM shop.create_endpoint('e', 'function:public.take');
SELECT count(public.emit('r' || i, i)) FROM generate_series(1, 3) i;
SELECT shop.deliver_events();
TRUNCATE public.broken;
SELECT count(public.emit('s' || i, i)) FROM generate_series(1, 3) i;
SET shop.test_clock = '2026-11-20 12:02:40+00';
SELECT shop.deliver_events(max_events => 2), shop.deliver_events(max_events => 3), shop.deliver_events(max_events => 4);
SELECT array_agg(key ORDER BY n) FROM public.got;
SELECT name FROM shop.drop_endpoint('e');
TRUNCATE public.got RESTART IDENTITY;
--
-- The function runs as the role that created the endpoint
--
CREATE ROLE regress_shop_subscriber;
SELECT shop.grant_access('regress_shop_subscriber', 'admin');
GRANT INSERT ON public.got, public.broken TO regress_shop_subscriber;
GRANT USAGE ON SEQUENCE public.got_n_seq TO regress_shop_subscriber;
CREATE FUNCTION public.take_secret(event jsonb) RETURNS void LANGUAGE sql AS
    'INSERT INTO public.broken SELECT secret FROM shop.endpoint';
CREATE FUNCTION public.forbidden(event jsonb) RETURNS void LANGUAGE sql AS '';
REVOKE EXECUTE ON FUNCTION public.forbidden(jsonb) FROM PUBLIC;
CREATE FUNCTION public.whoami(event jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.got (target) VALUES ('whoami') $$;
SET ROLE regress_shop_subscriber;
SELECT * FROM public.refusal($$SELECT shop.create_endpoint('e', 'function:public.forbidden')$$);
SELECT * FROM public.refusal($$SELECT shop.create_endpoint('e', 'function:shop.fold_sales')$$);
SELECT name, run_as FROM shop.create_endpoint('whoami', 'function:public.whoami');
SELECT name, run_as FROM shop.create_endpoint('secret', 'function:public.take_secret', secret => 'hush');
SELECT name, pause_reason FROM shop.pause_endpoint('secret');
SELECT name, run_as, state FROM shop.resume_endpoint('secret');
RESET ROLE;
SELECT public.emit('k', 1);
SELECT shop.deliver_events();
SELECT target, role FROM public.got ORDER BY n;
SELECT count(*) FROM public.broken;
SELECT name, state, delivered_total, last_error FROM shop.endpoints ORDER BY name;
SELECT current_user = session_user AS back_to_the_caller;
SELECT count(shop.drop_endpoint(name)) FROM shop.endpoints;
-- and as nobody else who comes to have its name
SET ROLE regress_shop_subscriber;
SELECT name, run_as FROM shop.create_endpoint('e', 'function:public.whoami');
RESET ROLE;
DROP OWNED BY regress_shop_subscriber;
DROP ROLE regress_shop_subscriber;
CREATE ROLE regress_shop_subscriber SUPERUSER;
SELECT public.emit('k', 1);
SELECT shop.deliver_events();
SELECT endpoint, retrying, last_error FROM shop.outbox_metrics();
SELECT name FROM shop.drop_endpoint('e');
DROP ROLE regress_shop_subscriber;
TRUNCATE public.got RESTART IDENTITY;
-- A function that is gone is a failure, not a loss
CREATE FUNCTION public.short_lived(event jsonb) RETURNS void LANGUAGE sql AS '';
SELECT name FROM shop.create_endpoint('e', 'function:public.short_lived');
DROP FUNCTION public.short_lived(jsonb);
SELECT public.emit('k', 1);
SELECT shop.deliver_events();
SELECT endpoint, state, retrying, last_error FROM shop.outbox_metrics();
SELECT name FROM shop.drop_endpoint('e');
-- A statement that takes too long is the caller's to cancel: no event has failed
CREATE FUNCTION public.slow(event jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)';
SELECT name FROM shop.create_endpoint('e', 'function:public.slow');
SELECT public.emit('k', 1);
\set SHOW_CONTEXT never
SET statement_timeout = '100ms';
SELECT shop.deliver_events('e');
RESET statement_timeout;
\set SHOW_CONTEXT errors
SELECT endpoint, state, pending, retrying, last_error FROM shop.outbox_metrics();
SELECT name FROM shop.drop_endpoint('e');
--
-- Numbers drawn by rolled back transactions: later events pass, then the holes close
--
SELECT name FROM shop.create_endpoint('e', 'function:public.take');
SELECT max(event_no) AS base FROM shop.outbox \gset
SELECT public.emit('k', 1);
BEGIN;
SELECT public.emit('k', 2), public.emit('k', 3);
ROLLBACK;
SELECT public.emit('k', 4);
SELECT shop.deliver_events();
SELECT array_agg(data->>'no' ORDER BY n) FROM public.got;
SELECT endpoint, pending FROM shop.outbox_metrics();
DO $$
BEGIN
    FOR i IN 1 .. 100 LOOP
        PERFORM shop.deliver_events('e');
        COMMIT;
        EXIT WHEN (SELECT int8multirange(range_merge(acked)) = acked FROM shop.endpoint WHERE name = 'e');
        PERFORM pg_sleep(0.1);
    END LOOP;
END
$$;
SELECT acked = int8multirange(int8range(NULL, :base + 5)) AS closed, horizon_no, horizon_xid FROM shop.endpoint WHERE name = 'e';
SELECT endpoint, pending FROM shop.outbox_metrics();
SELECT count(*) FROM shop.verify();
SELECT name FROM shop.drop_endpoint('e');
--
-- Deliveries are part of the caller's transaction
--
TRUNCATE public.got RESTART IDENTITY;
SELECT name FROM shop.create_endpoint('e', 'function:public.take');
SELECT public.emit('k', 1);
BEGIN;
SELECT shop.deliver_events();
ROLLBACK;
SELECT count(*) FROM public.got;
SELECT shop.deliver_events();
SELECT count(*) FROM public.got;
-- What has been emitted in the same transaction is delivered, and taken back with it
BEGIN;
SELECT public.emit('k', 2);
SELECT shop.deliver_events();
ROLLBACK;
SELECT shop.deliver_events();
SELECT array_agg(data->>'no' ORDER BY n) FROM public.got;
--
-- The metrics of an endpoint with a backlog
--
SELECT count(public.emit('k', i)) FROM generate_series(1, 3) i;
SET shop.test_clock = '2026-11-20 13:02:40+00';
SELECT endpoint, state, retrying, dead, oldest_age, delivered_total, last_delivered_at, last_error FROM shop.outbox_metrics();
SELECT shop.deliver_events();
SELECT endpoint, state, retrying, dead, oldest_age, delivered_total, last_delivered_at, last_error FROM shop.outbox_metrics();
SELECT count(*) FROM shop.verify();
--
-- A backlog of other types is passed over in a few steps, however few events are asked for
--
SELECT name FROM shop.create_endpoint('rare', 'function:public.take', '{test.rare}');
SELECT count(public.emit('k', i)) FROM generate_series(1, 3000) i;
SELECT count(public.emit('k', i, 'test.rare')) FROM generate_series(1, 3) i;
BEGIN;
SELECT pg_stat_get_xact_tuples_updated('shop.endpoint'::regclass) AS before \gset
SELECT shop.deliver_events('rare', 2);
SELECT pg_stat_get_xact_tuples_updated('shop.endpoint'::regclass) - :before < 20 AS in_few_steps;
COMMIT;
SELECT shop.deliver_events('rare', 2);
SELECT shop.deliver_events('rare', 2);
--
-- Of a backlog of which some are done, here and there, no more is read than is wanted
--
SELECT name FROM shop.create_endpoint('patchy', 'function:public.take', '{test.patch}');
SELECT count(public.emit('k', i, 'test.patch')) FROM generate_series(1, 6000) i;
UPDATE shop.endpoint SET acked = acked + (SELECT range_agg(int8range(event_no, event_no + 1)) FROM shop.outbox WHERE event_no % 50 = 0)
 WHERE name = 'patchy';
BEGIN;
SELECT pg_stat_get_xact_tuples_fetched('shop.outbox_pkey'::regclass) AS before \gset
SELECT shop.deliver_events('patchy', 100);
SELECT pg_stat_get_xact_tuples_fetched('shop.outbox_pkey'::regclass) - :before < 2000 AS not_all;
ROLLBACK;
SELECT name FROM shop.drop_endpoint('patchy');
--
-- Urgent events overtake a backlog, but no more than some 500, for each leaves a range in acked
--
SELECT name FROM shop.create_endpoint('overtaken', 'function:public.take', '{test.plain,test.urgent}');
SELECT count(public.emit('k' || i, i, 'test.plain')) FROM generate_series(1, 2600) i;
SELECT min(event_no) AS first FROM shop.outbox WHERE type = 'test.plain' \gset
SELECT count(public.emit('u' || i, i, 'test.urgent', 9)) FROM generate_series(1, 2) i;
TRUNCATE public.got;
-- every second one up to here is done
CREATE FUNCTION public.patch(first bigint, ranges integer) RETURNS void LANGUAGE sql AS $$
    UPDATE shop.endpoint SET acked = int8multirange(int8range(NULL, first)) +
        (SELECT range_agg(int8range(first + 2 * i - 1, first + 2 * i)) FROM generate_series(1, ranges) i) WHERE name = 'overtaken';
$$;
SELECT public.patch(:first, 600);
SELECT shop.deliver_events('overtaken', 1);
SELECT type, key FROM public.got;
SELECT public.patch(:first, 400);
SELECT shop.deliver_events('overtaken', 1);
SELECT type, key FROM public.got ORDER BY n;
SELECT name FROM shop.drop_endpoint('overtaken');
DROP FUNCTION public.patch(bigint, integer);
--
-- A dead letter, revived, is ahead of what waited for a retry in its key; what is queued goes on waiting
--
SELECT name FROM shop.create_endpoint('again', 'function:public.take', '{test.again}', options => '{"max_attempts": 2, "backoff": 10000}');
CREATE VIEW public.queue AS
    SELECT o.payload->>'no' AS no, d.attempts, CASE WHEN d.dead_at IS NOT NULL THEN 'dead' WHEN next_attempt_at = 'infinity' THEN 'queued'
                                                    WHEN next_attempt_at > shop.clock() THEN 'waiting' ELSE 'due' END AS state
      FROM shop.delivery d JOIN shop.outbox o USING (event_no) ORDER BY event_no;
TRUNCATE public.got;
INSERT INTO public.broken VALUES ('again');
SELECT count(public.emit('again', i, 'test.again')) FROM generate_series(1, 4) i;
SELECT shop.deliver_events('again');
SELECT * FROM public.queue;
SET shop.test_clock = '2026-11-20 14:00:00+00';
SELECT shop.deliver_events('again');
SELECT * FROM public.queue;
SELECT shop.redrive_all('again') AS redriven;
SELECT * FROM public.queue;
SELECT count(*) FROM shop.verify();
DELETE FROM public.broken;
SELECT shop.deliver_events('again');
SELECT array_agg(data->>'no' ORDER BY n) FROM public.got;
SELECT name FROM shop.drop_endpoint('again');
--
-- However many keys wait, and however much is queued behind one of them, what is due is found in a few steps
--
SELECT name FROM shop.create_endpoint('long', 'function:public.take', '{test.long}');
SELECT count(public.emit(CASE WHEN i % 2 = 0 THEN 'deep' ELSE 'w' || i END, i, 'test.long')) FROM generate_series(1, 6000) i;
-- As if each had failed once; only the first of the deep one is due
WITH waiting AS
    (INSERT INTO shop.delivery (endpoint_id, event_no, event_id, aggregateid, attempts, next_attempt_at)
     SELECT e.endpoint_id, o.event_no, o.id, o.aggregateid, 1,
            CASE o.payload->>'no' WHEN '2' THEN shop.clock() ELSE CASE o.aggregateid WHEN 'deep' THEN 'infinity' ELSE shop.clock() + '1 h' END END
       FROM shop.outbox o, shop.endpoint e WHERE o.type = 'test.long' AND e.name = 'long'
     RETURNING event_no)
UPDATE shop.endpoint SET acked = acked + (SELECT range_agg(int8range(event_no, event_no, '[]')) FROM waiting) WHERE name = 'long';
TRUNCATE public.got;
CREATE FUNCTION public.rows_read() RETURNS bigint LANGUAGE sql AS $$
    SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index WHERE indrelid = 'shop.delivery'::regclass
$$;
BEGIN;
SELECT public.rows_read() AS before \gset
SELECT shop.deliver_events('long', 40);
SELECT public.rows_read() - :before BETWEEN 40 AND 1000 AS few_rows;
-- A failure in the middle: the next is due when it is
INSERT INTO public.broken VALUES ('deep');
SELECT shop.deliver_events('long', 1);
SELECT count(*), max((data->>'no')::integer) FROM public.got;
SELECT payload->>'no' AS no, d.attempts, d.next_attempt_at > shop.clock() AS later
  FROM shop.delivery d JOIN shop.outbox USING (event_no, aggregateid) WHERE aggregateid = 'deep' AND next_attempt_at < 'infinity';
COMMIT;
SELECT count(*) FROM shop.verify();
SELECT name FROM shop.drop_endpoint('long');
DROP FUNCTION public.rows_read();
SELECT count(*) FROM shop.verify();
\set ECHO none
DROP TABLE public.got, public.broken, public.ids;
DROP VIEW public.waiting, public.queue;
DROP FUNCTION public.take(jsonb), public.take_all(jsonb[]), public.take_nothing(), public.take_text(text), public.show(jsonb),
    public.take_exact(jsonb), public.take_family(jsonb), public.take_any(jsonb), public.take_odd(jsonb),
    public.take_secret(jsonb), public.forbidden(jsonb), public.whoami(jsonb), public.slow(jsonb), public.emit(text, integer, text, integer);
