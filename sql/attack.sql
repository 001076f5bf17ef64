-- Every function, attacked: by what a caller plants before pg_catalog, and by
-- what he writes into its arguments.  The functions are found in pg_proc, so
-- that a new one is attacked too.
\set ECHO none
\i sql/setup.inc
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_shop_attacker, regress_shop_reader, regress_shop_writer;
RESET client_min_messages;
\set ECHO all
CREATE ROLE regress_shop_attacker;
SELECT shop.grant_access('regress_shop_attacker', 'admin');
CREATE SCHEMA regress_evil AUTHORIZATION regress_shop_attacker;
GRANT CREATE ON SCHEMA public TO regress_shop_attacker;
GRANT USAGE ON SCHEMA regress_evil TO PUBLIC;

--
-- Something for every function to work on
--
SELECT shop.create_product('Tea', 100, 1000);
SELECT balance FROM shop.charge_points(1, 100000);
SELECT order_id FROM shop.place_order(1, '[{"product_id": 1, "quantity": 3}]');
SELECT order_id FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 3}]');
SELECT shop.create_coupon_campaign('C', 'fixed', 10, 100, now() - interval '1 hour', now() + interval '1 hour');
SELECT coupon_id FROM shop.issue_coupon(1, 1);
SELECT name FROM shop.create_endpoint('platform', 'function:shop.receive_event', secret => 'hush 1');
SELECT name FROM shop.create_endpoint('dead', 'function:shop.receive_event', '{none}', secret => 'hush 2');
SELECT name FROM shop.create_endpoint('third', 'function:shop.receive_event', '{none}', secret => 'hush 3',
    options => '{"headers": {"x": "hush 4"}, "kafka": {"sasl.password": "hush 5"}}');

-- A good value for each argument; those of a function's own name first
CREATE TABLE public.good (function text, argument text, value text);
INSERT INTO public.good VALUES
    (NULL, 'access', 'read'), (NULL, 'aggregateid', '1'), (NULL, 'aggregatetype', 'a'), (NULL, 'amount', '10'), (NULL, 'before', NULL),
    (NULL, 'campaign_id', '1'), (NULL, 'coupon_id', NULL), (NULL, 'discount_type', 'fixed'), (NULL, 'discount_value', '10'),
    (NULL, 'endpoint', 'platform'), (NULL, 'ends_at', '2100-01-01'), (NULL, 'event_id', '00000000-0000-0000-0000-000000000000'),
    (NULL, 'event', '{"specversion": "1.0", "id": "11111111-1111-1111-1111-111111111111", "source": "s", "type": "t", "data": {}}'),
    (NULL, 'events', '{}'), (NULL, 'expected_total', NULL), (NULL, 'expires_in', '1 hour'), (NULL, 'idempotency_key', 'key'),
    (NULL, 'items', '[{"product_id": 1, "quantity": 1}]'), (NULL, 'limit', '10'), (NULL, 'max_discount', NULL), (NULL, 'max_events', '10'),
    (NULL, 'min_subtotal', '0'), (NULL, 'n', '5'), (NULL, 'name', 'third'), (NULL, 'options', '{}'), (NULL, 'order_id', '1'),
    (NULL, 'payload', '{}'), (NULL, 'price', '10'), (NULL, 'priority', '0'), (NULL, 'product_id', '1'), (NULL, 'quantity', '1'),
    (NULL, 'reason', 'because'), (NULL, 'restock', 'true'), (NULL, 'role', 'regress_shop_attacker'), (NULL, 'secret', 'quiet'),
    (NULL, 'since', NULL), (NULL, 'starts_at', '2000-01-01'), (NULL, 'status', 'on_sale'), (NULL, 'stock', '1'), (NULL, 'type', 'own'),
    (NULL, 'types', '{*}'), (NULL, 'url', 'function:shop.receive_event'), (NULL, 'usage_limit', '10'), (NULL, 'user_id', '1'),
    (NULL, 'valid_for', '1 hour'), (NULL, 'system_identifier', '1'), (NULL, 'database_oid', '1'),
    ('pay_order', 'order_id', '2'), ('pay_order', 'coupon_id', '1'), ('release_order', 'order_id', '2'), ('place_order', 'coupon_id', '1'),
    ('issue_coupon', 'user_id', '2'), ('create_endpoint', 'name', 'fourth'), ('fold_sales', 'events', '{"{\"type\": \"order.paid\", \"data\": {\"paid_at\": \"2026-11-20T00:00:00Z\", \"lines\": [{\"product_id\": 1, \"quantity\": 1, \"total\": 1}]}}"}');

-- The call of a function, one argument of which may be another than the good one
CREATE FUNCTION public.call_of(called oid, changed text DEFAULT NULL, changed_to text DEFAULT NULL) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('SELECT FROM shop.%I(%s)', p.proname, string_agg(format('%I => %L::pg_catalog.%I', a.name,
               CASE WHEN a.name = changed THEN changed_to ELSE coalesce(own.value, g.value) END, t.typname), ', ' ORDER BY a.n))
      FROM pg_proc p
      LEFT JOIN LATERAL (SELECT p.proargnames[n] AS name, p.proargtypes[n - 1] AS type, n FROM generate_series(1, p.pronargs) n) a ON true
      LEFT JOIN pg_type t ON t.oid = a.type
      LEFT JOIN public.good g ON g.function IS NULL AND g.argument = a.name
      LEFT JOIN public.good own ON own.function = p.proname AND own.argument = a.name
     WHERE p.oid = called GROUP BY p.oid $$;
-- a function without arguments has none to format
CREATE VIEW public.target AS
    SELECT p.oid, p.proname AS function, CASE WHEN p.pronargs = 0 THEN format('SELECT FROM shop.%I()', p.proname) ELSE call_of(p.oid) END AS call
      FROM pg_proc p WHERE p.pronamespace = 'shop'::regnamespace AND p.proname <> 'guard_drop';
GRANT SELECT ON public.target, public.good TO PUBLIC;
-- every argument has a good value to begin with
SELECT t.function, a.name FROM public.target t JOIN pg_proc p ON p.oid = t.oid
 CROSS JOIN LATERAL unnest(p.proargnames[1:p.pronargs]) a(name)
 WHERE NOT EXISTS (SELECT FROM public.good g WHERE g.argument = a.name) ORDER BY 1, 2;

--
-- What a caller can plant: operators, functions and aggregates that are a
-- better match than those of pg_catalog, tables, types, casts
--
SET ROLE regress_shop_attacker;
SET client_min_messages = error;
DO $$
DECLARE
    types oid[] := ARRAY['bool', 'int2', 'int4', 'int8', 'oid', 'text', 'name', 'jsonb', 'uuid', 'timestamptz', 'interval', 'numeric', 'float8',
                         'xid8', 'int8range', 'int8multirange', 'regclass', '_text', '_int8', '_int4', '_jsonb', '_timestamptz']::regtype[];
    body CONSTANT text := 'BEGIN RAISE EXCEPTION ''planted code runs as %'', current_user; END';
    o record;
BEGIN
    FOR o IN SELECT * FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprkind = 'b' AND oprleft = ANY (types) AND oprright = ANY (types)
    LOOP
        EXECUTE format('CREATE OR REPLACE FUNCTION regress_evil.planted_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L',
                       o.oprresult, o.oprleft::regtype, o.oprright::regtype, o.oprresult::regtype, body);
        EXECUTE format('CREATE OPERATOR regress_evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = regress_evil.planted_%s)',
                       o.oprname, o.oprleft::regtype, o.oprright::regtype, o.oprresult);
    END LOOP;
    -- of polymorphic ones, those for the types in use
    FOR o IN SELECT * FROM (VALUES ('@>', 'int8multirange', 'int8'), ('+', 'int8multirange', 'int8multirange'), ('-', 'int8multirange', 'int8multirange'),
                            ('*', 'int8multirange', 'int8multirange'), ('=', 'text[]', 'text[]'), ('||', 'text[]', 'text')) v(name, l, r)
    LOOP
        EXECUTE format('CREATE OR REPLACE FUNCTION regress_evil.planted(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', o.l, o.r,
                       CASE WHEN o.name IN ('@>', '=') THEN 'boolean' ELSE o.l END, body);
        EXECUTE format('CREATE OPERATOR regress_evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = regress_evil.planted)', o.name, o.l, o.r);
    END LOOP;
    FOR o IN SELECT DISTINCT ON (proname, proargtypes) p.* FROM pg_proc p
              WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind IN ('f', 'a') AND pronargs <= 3 AND provariadic = 0
                AND proargtypes::oid[] <@ types AND prorettype = ANY (types)
    LOOP
        EXECUTE format('CREATE FUNCTION regress_evil.%I(%s) RETURNS %s%s LANGUAGE plpgsql AS %L', o.proname,
                       (SELECT string_agg(t::regtype::text, ', ' ORDER BY n) FROM unnest(o.proargtypes) WITH ORDINALITY a(t, n)),
                       CASE WHEN o.proretset THEN 'SETOF ' ELSE '' END, o.prorettype::regtype, body);
    END LOOP;
    FOR o IN SELECT * FROM (VALUES ('unnest', 'bigint[]', 'SETOF bigint'), ('unnest', 'integer[]', 'SETOF integer'), ('unnest', 'jsonb[]', 'SETOF jsonb'),
                            ('unnest', 'text[]', 'SETOF text'), ('unnest', 'int8multirange', 'SETOF int8range'), ('array_agg', 'bigint', 'bigint[]'),
                            ('jsonb_array_elements', 'jsonb', 'SETOF jsonb'), ('lower', 'int8range', 'bigint'), ('upper', 'int8range', 'bigint'),
                            ('jsonb_build_object', 'VARIADIC text[]', 'jsonb'), ('clock', '', 'timestamptz')) v(name, args, result)
    LOOP
        EXECUTE format('CREATE OR REPLACE FUNCTION regress_evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', o.name, o.args, o.result, body);
    END LOOP;
    CREATE TYPE regress_evil.t AS (x bigint);
    CREATE FUNCTION regress_evil.to_t(bigint) RETURNS regress_evil.t LANGUAGE sql AS 'SELECT row($1)::regress_evil.t';
    CREATE CAST (bigint AS regress_evil.t) WITH FUNCTION regress_evil.to_t(bigint) AS IMPLICIT;
    FOR o IN SELECT relname FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind IN ('r', 'v', 'm')
             UNION SELECT unnest(ARRAY['pg_class', 'pg_proc', 'pg_roles', 'pg_extension', 'pg_database', 'pg_locks'])
    LOOP
        EXECUTE format('CREATE TEMP TABLE %I (planted integer)', o.relname);
    END LOOP;
    FOR o IN SELECT typname FROM pg_type WHERE oid = ANY (types) AND typelem = 0
    LOOP
        EXECUTE format('CREATE DOMAIN pg_temp.%I AS pg_catalog.bytea', o.typname);
    END LOOP;
END
$$;
RESET client_min_messages;
RESET ROLE;
-- our own statements are not to meet any of it
SET search_path = pg_catalog, public, pg_temp;
SELECT count(*) > 200 AS operators FROM pg_operator WHERE oprnamespace = 'regress_evil'::regnamespace;
SELECT count(*) > 500 AS functions FROM pg_proc WHERE pronamespace = 'regress_evil'::regnamespace;

-- Calls with a path that has all of it first, and undoes what the call did
CREATE FUNCTION public.under_attack(statement text, OUT code text, OUT message text) LANGUAGE plpgsql
    SET search_path = regress_evil, pg_temp, public, pg_catalog, shop AS $$
BEGIN
    EXECUTE statement;
    RAISE SQLSTATE 'XXOK0';
EXCEPTION WHEN OTHERS THEN
    code := sqlstate;
    message := sqlerrm;
END
$$;
CREATE FUNCTION public.attacked(role regrole) RETURNS TABLE (function name, code text, message text) LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    FOR t IN SELECT * FROM public.target ORDER BY target.function COLLATE "C" LOOP
        function := t.function;
        EXECUTE format('SET ROLE %s', role);
        SELECT u.code, u.message INTO code, message FROM public.under_attack(t.call) u;
        RESET ROLE;
        RETURN NEXT;
    END LOOP;
END
$$;
\pset format unaligned
\pset fieldsep ' | '
-- only what fails anyway fails: a role without the right, an event that is not dead
SELECT * FROM public.attacked('regress_shop_attacker') WHERE code <> 'XXOK0';
-- the owner with such a path, too
SELECT * FROM public.attacked(current_user::regrole) WHERE code <> 'XXOK0';
SELECT count(*) > 40 AS all_functions FROM public.target;
-- nor does any setting that a caller may change make a difference, to a repeated call least of all
SELECT replayed FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 1}]', '3 days 01:00', 'settings');
SET IntervalStyle = 'iso_8601'; SET DateStyle = 'German'; SET TimeZone = 'Asia/Kathmandu'; SET extra_float_digits = -15; SET array_nulls = off;
SET transform_null_equals = on; SET quote_all_identifiers = on; SET enable_indexscan = off; SET enable_bitmapscan = off; SET row_security = off;
SET plan_cache_mode = force_custom_plan; SET force_parallel_mode = on; SET work_mem = '64kB'; SET default_transaction_isolation = 'serializable';
SELECT replayed FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 1}]', '3 days 01:00', 'settings');
SELECT * FROM public.attacked('regress_shop_attacker') WHERE code <> 'XXOK0';
RESET IntervalStyle; RESET DateStyle; RESET extra_float_digits; RESET array_nulls; RESET transform_null_equals; RESET quote_all_identifiers; RESET enable_indexscan;
RESET enable_bitmapscan; RESET row_security; RESET plan_cache_mode; RESET force_parallel_mode; RESET work_mem; RESET default_transaction_isolation;
SET TimeZone = 'UTC';
-- a function whose path is not pinned would be caught by it
BEGIN;
ALTER FUNCTION shop.restock(bigint, integer, text) RESET search_path;
ALTER FUNCTION shop.outbox_metrics() RESET search_path;
ALTER FUNCTION shop.create_endpoint(text, text, text[], text, jsonb) RESET search_path;
SELECT function, code, replace(message, current_user, 'the owner') AS message
  FROM public.attacked('regress_shop_attacker') WHERE function IN ('create_endpoint', 'outbox_metrics', 'restock');
ROLLBACK;
-- DROP OWNED of the owner of the extension is guarded, whatever is planted
BEGIN;
CREATE ROLE regress_shop_owner;
UPDATE pg_extension SET extowner = 'regress_shop_owner'::regrole WHERE extname = 'shop';
SELECT * FROM public.under_attack('DROP OWNED BY regress_shop_owner CASCADE');
ROLLBACK;

--
-- What a caller can write into an argument
--
CREATE TABLE public.canary (alive boolean);
INSERT INTO public.canary VALUES (true);
CREATE TABLE public.payload (n integer GENERATED ALWAYS AS IDENTITY, text text);
INSERT INTO public.payload (text) VALUES
    ($p$'; DROP TABLE public.canary; --$p$),
    ($p$' || (SELECT secret FROM shop.endpoint WHERE name = 'third') || '$p$),
    ($p$' OR '1' = '1$p$),
    ($p$"; DROP TABLE public.canary; --$p$),
    ($p$\'; DROP TABLE public.canary; --$p$),
    ('$$; DROP TABLE public.canary; $$'),
    ('%s%s%s%s%n%n%x%1$s%p'),
    ('", "alive": true, "x": {"y'),
    (E'x\n\t\r\b\x01\x7f \\ \u2028 \u202e'),
    ('$1 :1 ? {} [] () ${x} #{x}'),
    ('function:shop.receive_event(''{}''); DROP TABLE public.canary; --'),
    ('function:public."x"";DROP TABLE public.canary;--"');
-- As the type of the argument wants it
CREATE FUNCTION public.as_value(payload text, type name) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE type WHEN '_text' THEN ARRAY[payload]::text
                     WHEN 'jsonb' THEN jsonb_build_object(payload, payload, 'product_id', payload, 'id', payload, 'type', payload,
                                                          'quantity', payload, 'headers', jsonb_build_object(payload, payload),
                                                          'kafka', jsonb_build_object(payload, payload))::text
                     WHEN '_jsonb' THEN ARRAY[jsonb_build_object('id', payload, 'type', payload, 'data', payload)]::text
                     ELSE payload END $$;
CREATE FUNCTION public.injected(OUT function name, OUT argument text, OUT code text, OUT message text, OUT detail text, OUT hint text)
    RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    FOR t IN SELECT p.oid, p.proname, a.name, as_value(x.text, ty.typname) AS value
               FROM public.target f JOIN pg_proc p ON p.oid = f.oid
              CROSS JOIN LATERAL (SELECT p.proargnames[n] AS name, p.proargtypes[n - 1] AS type FROM generate_series(1, p.pronargs) n) a
               JOIN pg_type ty ON ty.oid = a.type AND ty.typname IN ('text', '_text', 'jsonb', '_jsonb')
              CROSS JOIN public.payload x ORDER BY p.proname COLLATE "C", a.name COLLATE "C", x.n
    LOOP
        function := t.proname;
        argument := t.name;
        EXECUTE 'SET ROLE regress_shop_attacker';
        SELECT r.* INTO code, message, detail, hint FROM public.refusal(public.call_of(t.oid, t.name, t.value)) r;
        RESET ROLE;
        RETURN NEXT;
    END LOOP;
END
$$;
CREATE FUNCTION public.is_object(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RETURN jsonb_typeof($1::jsonb) = 'object'; EXCEPTION WHEN OTHERS THEN RETURN false; END $$;
CREATE TEMP TABLE injection AS SELECT * FROM public.injected();
SELECT function, argument, count(*) AS calls, string_agg(DISTINCT code, ' ' ORDER BY code) AS codes FROM injection GROUP BY 1, 2 ORDER BY function COLLATE "C", 2;
SELECT * FROM public.canary;
-- no message has what a SELECT in an argument would have brought, and every detail is one JSON object with the names that it has anyway
SELECT * FROM injection WHERE concat(message, detail, hint) ~ 'hush';
SELECT function, argument, message, detail FROM injection WHERE code ~ '^(SH|22023|22004)' AND NOT is_object(detail);
SELECT DISTINCT k FROM injection, jsonb_object_keys(CASE WHEN is_object(detail) THEN detail::jsonb ELSE '{}' END) k ORDER BY 1;
-- what was written is kept as it was
SELECT count(shop.emit_event('own', 'a', p.text, to_jsonb(p.text))) FROM public.payload p;
SELECT count(*) FROM public.payload p JOIN shop.outbox o ON o.aggregateid = p.text AND o.payload = to_jsonb(p.text);
SELECT count(shop.use_points(1, 1, p.text)) FROM public.payload p;
SELECT count(*) FROM public.payload p JOIN shop.point_history(1) h ON h.reason = p.text;
SELECT count(shop.create_product(p.text, 1)) FROM public.payload p;
SELECT count(*) FROM public.payload p JOIN shop.products s ON s.name = p.text;

--
-- What a role can come to read
--
CREATE ROLE regress_shop_reader;
CREATE ROLE regress_shop_writer;
SELECT shop.grant_access('regress_shop_reader', 'read'), shop.grant_access('regress_shop_writer', 'write');
ANALYZE shop.endpoint;
-- Every row of every relation that a role may read, searched for a secret
CREATE FUNCTION public.finds(role regrole, OUT relation text, OUT rows bigint) RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SET ROLE %s', role);
    FOR relation IN SELECT c.oid::regclass FROM pg_class c
                     WHERE c.relkind IN ('r', 'v', 'm') AND c.relnamespace NOT IN (pg_my_temp_schema(), 'information_schema'::regnamespace)
                       AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1
    LOOP
        BEGIN
            EXECUTE format('SELECT count(*) FROM %s x WHERE x::text LIKE %L', relation, '%hush%') INTO rows;
            IF rows > 0 AND relation NOT IN ('pg_stat_activity', 'pg_proc') THEN
                RETURN NEXT;
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
    RESET ROLE;
END
$$;
SELECT * FROM public.finds('regress_shop_reader');
SELECT * FROM public.finds('regress_shop_writer');
SELECT * FROM public.finds('regress_shop_attacker');
-- it would be found: the owner reads it, and the statistics have it
SELECT relation FROM public.finds(current_user::regrole) WHERE relation IN ('pg_statistic', 'shop.endpoint');
-- A cheap function in a condition sees what a view shows, not what it is made from
GRANT CREATE ON SCHEMA regress_evil TO PUBLIC;
CREATE FUNCTION public.leaks(relation text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    line text;
    plan text := '';
BEGIN
    EXECUTE format('SELECT FROM %s x WHERE regress_evil.see(x::text)', relation);
    FOR line IN EXECUTE format('EXPLAIN (ANALYZE, VERBOSE) SELECT x FROM %s x WHERE regress_evil.see(x::text)', relation) LOOP
        plan := plan || line;
    END LOOP;
    RETURN CASE WHEN plan ~ 'hush' THEN 'the plan shows a secret' END;
EXCEPTION WHEN raise_exception THEN
    RETURN sqlerrm;
END
$$;
SET ROLE regress_shop_attacker;
CREATE FUNCTION regress_evil.see(x text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
    $$ BEGIN IF x ~ 'hush' THEN RAISE EXCEPTION 'a condition sees a secret'; END IF; RETURN true; END $$;
SELECT v AS relation, public.leaks(v) FROM unnest(ARRAY['shop.endpoints', 'shop.dead_letters', 'shop.outbox_metrics()', 'shop.workers', 'pg_stats']) v;
RESET ROLE;
SELECT public.leaks('shop.endpoint');
-- What an operator gets of a broken endpoint has none either
SELECT concat_ws(' ', code, message, detail, hint) ~ 'hush' AS said
  FROM public.refusal($$SELECT shop.create_endpoint('third', 'http://x/', secret => 'hush hush', options => '{"headers": {"x": "hush"}, "kafka": {"y": "hush"}, "z": 1}')$$);

SELECT * FROM shop.verify();
SET client_min_messages = warning;
DROP VIEW public.target;
DROP TABLE public.good, public.canary, public.payload;
DROP FUNCTION public.call_of(oid, text, text), public.under_attack(text), public.attacked(regrole), public.as_value(text, name), public.injected(),
    public.is_object(text), public.finds(regrole), public.leaks(text);
SET search_path = public;
SELECT count(shop.drop_endpoint(name)) FROM shop.endpoints;
DROP OWNED BY regress_shop_attacker, regress_shop_reader, regress_shop_writer CASCADE;
DROP ROLE regress_shop_attacker, regress_shop_reader, regress_shop_writer;
