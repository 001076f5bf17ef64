-- Targets of endpoints: what a function may do, how it is called, where it lives.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 10:00:00+00';
CREATE TABLE public.taken (n bigint GENERATED ALWAYS AS IDENTITY, key text, data jsonb);
CREATE TABLE public.broken (key text PRIMARY KEY);
CREATE FUNCTION public.take(event jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.taken (key, data) VALUES (event->>'subject', event->'data');
    IF EXISTS (SELECT FROM public.broken WHERE key IN (event->>'subject', '*')) THEN
        RAISE EXCEPTION 'cannot take %', event->>'subject';
    END IF;
END
$$;
CREATE FUNCTION public.emit(key text, n integer) RETURNS integer
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM shop.emit_event('test.done', 'test', key, to_jsonb(n));
    RETURN n;
END
$$;
-- What has been taken since it was last asked for, in order
CREATE FUNCTION public.news() RETURNS text
    LANGUAGE sql AS $$
    WITH t AS (DELETE FROM public.taken RETURNING *)
    SELECT coalesce(string_agg(key || ':' || data, ' ' ORDER BY n), 'nothing') FROM t $$;

--
-- Who may create functions in the schema cannot put his before the one that was meant
--
CREATE FUNCTION public.take_both(events jsonb[]) RETURNS void
    LANGUAGE sql AS $$ INSERT INTO public.taken (key, data) VALUES ('many', to_jsonb(cardinality(events))) $$;
SELECT name FROM shop.create_endpoint('both', 'function:public.take_both', '{test.done}');
CREATE FUNCTION public.take_both(event jsonb) RETURNS void
    LANGUAGE sql AS $$ INSERT INTO public.taken (key, data) VALUES ('planted', event->'data') $$;
SELECT emit('k', 1), emit('l', 2);
SELECT shop.deliver_events(), news();
SELECT last_error FROM shop.endpoints WHERE name = 'both';
SELECT * FROM refusal('SELECT shop.create_endpoint(''two'', ''function:public.take_both'')');
-- called from now on is the one that is there
DROP FUNCTION public.take_both(jsonb);
SELECT emit('m', 3), emit('n', 4);
SELECT shop.deliver_events(), news();
SELECT name FROM shop.drop_endpoint('both');
DROP FUNCTION public.take_both(jsonb[]);

--
-- What it returns does not matter; a name may need quotes; a default is an argument less
--
CREATE SCHEMA "regress Odd";
CREATE FUNCTION "regress Odd"."Take It"(event jsonb, note text DEFAULT 'default') RETURNS SETOF boolean
    LANGUAGE sql AS $$ INSERT INTO public.taken (key, data) VALUES (note, event->'data') RETURNING false $$;
SELECT code FROM refusal('SELECT shop.create_endpoint(''odd'', ''function:"regress Odd"."Take It"'')');
DROP FUNCTION "regress Odd"."Take It"(jsonb, text);
CREATE FUNCTION "regress Odd"."Take It"(event jsonb) RETURNS SETOF boolean
    LANGUAGE sql AS $$ INSERT INTO public.taken (key, data) VALUES ('odd', event->'data') RETURNING false $$;
SELECT url FROM shop.create_endpoint('odd', 'function:"regress Odd"."Take It"', '{test.done}');
SELECT emit('k', 1), emit('k', 2);
SELECT shop.deliver_events(), news();
SELECT name FROM shop.drop_endpoint('odd');
DROP FUNCTION "regress Odd"."Take It"(jsonb);
DROP SCHEMA "regress Odd";

--
-- It may write events and call the shop; what it did exists if it is done
--
SELECT shop.create_product('Tea', 100, 10) AS tea \gset
CREATE FUNCTION public.follow_up(event jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM shop.emit_event('test.followed', 'test', event->>'subject', event->'data');
    PERFORM shop.charge_points((event->>'data')::bigint, 100, event->>'id');
    PERFORM shop.place_order((event->>'data')::bigint, '[{"product_id": 1, "quantity": 1}]', idempotency_key => event->>'id');
    IF EXISTS (SELECT FROM public.broken WHERE key = event->>'subject') THEN
        RAISE EXCEPTION 'not yet';
    END IF;
END
$$;
SELECT name FROM shop.create_endpoint('follow', 'function:public.follow_up', '{test.done}');
INSERT INTO public.broken VALUES ('b');
SELECT emit('a', 101), emit('b', 102);
SELECT shop.deliver_events();
SELECT aggregateid FROM shop.outbox WHERE type = 'test.followed' ORDER BY event_no;
SELECT user_id, total FROM shop.orders ORDER BY 1;
SELECT available FROM shop.get_product(1);
DELETE FROM public.broken;
SET shop.test_clock = '2026-11-20 10:01:00+00';
SELECT shop.deliver_events();
SELECT aggregateid FROM shop.outbox WHERE type = 'test.followed' ORDER BY event_no;
SELECT user_id, total FROM shop.orders ORDER BY 1;
SELECT available FROM shop.get_product(1);
SELECT name FROM shop.drop_endpoint('follow');
-- an event it writes for itself comes back to it, in the same call
CREATE FUNCTION public.count_down(event jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.taken (key, data) VALUES ('down', event->'data');
    IF (event->>'data')::integer > 0 THEN
        PERFORM shop.emit_event('test.done', 'test', 'down', to_jsonb((event->>'data')::integer - 1));
    END IF;
END
$$;
SELECT name FROM shop.create_endpoint('down', 'function:public.count_down', '{test.done}');
SELECT emit('down', 3);
SELECT shop.deliver_events() AS first_ \gset
SELECT :first_ + shop.deliver_events() + shop.deliver_events() + shop.deliver_events(), news();
SELECT name FROM shop.drop_endpoint('down');
-- a refusal of the shop is a failure as any other
CREATE FUNCTION public.overdraw(event jsonb) RETURNS void
    LANGUAGE sql AS $$ SELECT shop.use_points(4711, 1000000) $$;
SELECT name FROM shop.create_endpoint('overdraw', 'function:public.overdraw', '{test.done}');
SELECT emit('k', 1);
SELECT shop.deliver_events();
SELECT last_error FROM shop.endpoints;
SELECT name FROM shop.drop_endpoint('overdraw');
DROP FUNCTION public.overdraw(jsonb), public.count_down(jsonb), public.follow_up(jsonb);

--
-- A client that cancels its call cancels the delivery; that is no failure of the target
--
CREATE FUNCTION public.slow(event jsonb) RETURNS void
    LANGUAGE sql AS $$ SELECT pg_sleep(60) $$;
SELECT name FROM shop.create_endpoint('slow', 'function:public.slow', '{test.done}');
SELECT emit('k', 1);
SET statement_timeout = '100 ms';
\set VERBOSITY terse
SELECT shop.deliver_events();
\set VERBOSITY default
RESET statement_timeout;
SELECT endpoint, state, pending, retrying, last_error FROM shop.outbox_metrics();
SELECT name FROM shop.drop_endpoint('slow');
DROP FUNCTION public.slow(jsonb);

--
-- In a copy of the database nothing is delivered until it is told to
--
SELECT name FROM shop.create_endpoint('home', 'function:public.take', '{test.done}');
SELECT emit('c', 1);
UPDATE shop.endpoint SET system_identifier = system_identifier + 1 WHERE name = 'home';
SELECT state, pause_reason FROM shop.endpoints;
SELECT endpoint, state, pending FROM shop.outbox_metrics();
SELECT shop.deliver_events(), news();
SELECT shop.deliver_events('home'), news();
SELECT state, pause_reason FROM shop.resume_endpoint('home');
SELECT shop.deliver_events(), news();
UPDATE shop.endpoint SET database_oid = 1 WHERE name = 'home';
SELECT emit('c', 2);
SELECT shop.deliver_events(), news();
-- to pause it does not make it the copy's own
SELECT state, pause_reason = 'paused by ' || current_user AS paused FROM shop.pause_endpoint('home');
SELECT state, pause_reason FROM shop.resume_endpoint('home');
SELECT shop.deliver_events(), news();
SELECT name FROM shop.drop_endpoint('home');
-- the built-in subscriber follows its database by itself
UPDATE shop.endpoint SET database_oid = 1 WHERE builtin;
SELECT balance FROM shop.charge_points(1, 100);
SELECT total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]');
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.top_products();
SELECT * FROM shop.verify();

--
-- Retries that are due count for max_events like new events
--
SELECT name FROM shop.create_endpoint('e', 'function:public.take', '{test.done}', NULL, '{"backoff": 1000}');
INSERT INTO public.broken VALUES ('r1'), ('r2'), ('r3');
SELECT emit('r1', 1), emit('r2', 2), emit('r3', 3);
SELECT shop.deliver_events(), news();
DELETE FROM public.broken;
SELECT emit('r4', 4), emit('r5', 5), emit('r6', 6), emit('r7', 7);
SET shop.test_clock = '2026-11-20 11:00:00+00';
SELECT shop.deliver_events('e', 4), news();
SELECT shop.deliver_events('e', 4), news();
-- of all endpoints together
SELECT name FROM shop.create_endpoint('f', 'function:public.take', '{test.done}');
SELECT emit('s', 1), emit('s', 2), emit('s', 3);
SELECT shop.deliver_events(max_events => 4), news();
SELECT shop.deliver_events(max_events => 4), news();
-- by the first endpoint that fails altogether, the second is not held up
SELECT name FROM shop.drop_endpoint('e');
CREATE FUNCTION public.never(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'never'; END $$;
SELECT name FROM shop.create_endpoint('a', 'function:public.never', '{test.done}');
SELECT emit('t' || n, n) FROM generate_series(1, 3) n;
SELECT shop.deliver_events(), news();
SELECT endpoint, state, retrying FROM shop.outbox_metrics();
SELECT count(shop.drop_endpoint(name)) FROM shop.endpoints;
SELECT count(*) FROM shop.delivery;
SELECT * FROM shop.verify();
RESET shop.test_clock;
DROP FUNCTION public.news(), public.emit(text, integer), public.take(jsonb), public.never(jsonb);
DROP TABLE public.taken, public.broken;
