-- Security: what a role could try to become more than it is.
\set ECHO none
\i sql/setup.inc
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_shop_reader, regress_shop_writer, regress_shop_admin, regress_shop_nobody, "regress shop ""odd""";
RESET client_min_messages;
\set ECHO all
CREATE ROLE regress_shop_nobody;
CREATE ROLE regress_shop_reader;
CREATE ROLE regress_shop_writer;
CREATE ROLE regress_shop_admin;
CREATE ROLE "regress shop ""odd""";

--
-- Functions: none is left to the default, which is EXECUTE for PUBLIC; no
-- grant can be passed on; what writes is not for readers
--
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'shop'::regnamespace AND proacl IS NULL ORDER BY 1;
SELECT p.oid::regprocedure FROM pg_proc p, aclexplode(p.proacl) a
 WHERE p.pronamespace = 'shop'::regnamespace AND a.grantee = 0 ORDER BY 1;
SELECT shop.grant_access('regress_shop_reader', 'read'), shop.grant_access('regress_shop_writer', 'write'),
       shop.grant_access('regress_shop_admin', 'admin'), shop.grant_access('"regress shop ""odd"""', 'read');
SELECT p.oid::regprocedure, a.grantee::regrole FROM pg_proc p, aclexplode(p.proacl) a
 WHERE p.pronamespace = 'shop'::regnamespace AND a.is_grantable AND a.grantee <> p.proowner ORDER BY 1, 2;
SELECT p.proname, CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END AS volatility,
       CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel
  FROM pg_proc p WHERE p.pronamespace = 'shop'::regnamespace ORDER BY p.proname COLLATE "C";
SELECT p.oid::regprocedure FROM pg_proc p
 WHERE p.pronamespace = 'shop'::regnamespace AND p.provolatile = 'v'
   AND has_function_privilege('regress_shop_reader', p.oid, 'EXECUTE') ORDER BY 1;
-- a name that needs quotes; less than was granted before takes nothing away; undone with its transaction
SELECT has_function_privilege('regress shop "odd"', 'shop.version()', 'EXECUTE') AS odd_name;
SELECT shop.grant_access('regress_shop_admin', 'read');
SELECT has_function_privilege('regress_shop_admin', 'shop.verify()', 'EXECUTE') AS still_admin;
BEGIN;
SELECT shop.grant_access('regress_shop_nobody', 'write');
ROLLBACK;
SELECT has_schema_privilege('regress_shop_nobody', 'shop', 'USAGE') AS usage;
SELECT code FROM refusal('SELECT shop.grant_access(''regress_shop_nobody; DROP ROLE x'', ''read'')');
SELECT code FROM refusal('SELECT shop.grant_access(0::oid::regrole, ''read'')');
BEGIN READ ONLY;
SELECT * FROM refusal('SELECT shop.grant_access(''regress_shop_nobody'', ''read'')');
COMMIT;

--
-- There is no way around the functions
--
SELECT shop.create_product('Tea', 100, 10) AS tea \gset
SELECT jsonb_build_array(jsonb_build_object('product_id', :tea, 'quantity', 1)) AS tea_item \gset
SELECT balance FROM shop.charge_points(2, 1000);
CREATE TABLE public.calls (n integer GENERATED ALWAYS AS IDENTITY, call text);
GRANT SELECT ON public.calls TO PUBLIC;
INSERT INTO public.calls (call) VALUES
    ('INSERT INTO shop.account VALUES (3, 1000000)'),
    ('DELETE FROM shop.point_entry'),
    ('TRUNCATE shop.orders'),
    ('UPDATE shop.product SET price = 0'),
    ('SELECT nextval(''shop.orders_order_id_seq'')'),
    ('SELECT setval(''shop.outbox_event_no_seq'', 1)'),
    ('LOCK TABLE shop.account'),
    ('CREATE FUNCTION shop.mine() RETURNS void LANGUAGE sql AS ''SELECT'''),
    ('CREATE TRIGGER t AFTER INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()'),
    ('CREATE RULE r AS ON INSERT TO shop.orders DO INSTEAD NOTHING'),
    ('CREATE POLICY p ON shop.orders'),
    ('ALTER FUNCTION shop.place_order RESET search_path'),
    ('CREATE OR REPLACE FUNCTION shop.version() RETURNS text LANGUAGE sql AS ''SELECT NULL::text'''),
    ('DROP FUNCTION shop.verify()'),
    ('ALTER EXTENSION shop DROP FUNCTION shop.verify()'),
    ('ALTER EXTENSION shop UPDATE'),
    ('DROP EXTENSION shop'),
    ('DROP EVENT TRIGGER shop_guard_drop'),
    ('DROP SCHEMA shop CASCADE'),
    ('REFRESH MATERIALIZED VIEW shop.popular_products'),
    ('SELECT shop.fold_sales(''{}'')'),
    ('SELECT * FROM shop.endpoint'),
    ('SELECT secret FROM shop.endpoint'),
    ('SELECT endpoint_id FROM shop.endpoint FOR UPDATE');
SET ROLE regress_shop_writer;
SELECT call, refused(call) FROM public.calls ORDER BY n;
SET ROLE regress_shop_admin;
SELECT call, refused(call) FROM public.calls ORDER BY n;
RESET ROLE;
DROP TABLE public.calls;
-- Secrets are in one column, which only the owner can read
SELECT table_name FROM information_schema.columns WHERE table_schema = 'shop' AND column_name ~ 'secret' ORDER BY 1;
SELECT name, signed FROM shop.create_endpoint('hidden', 'function:shop.receive_event', secret => 'whsec_hush');
SELECT count(*) FROM shop.endpoints e WHERE e::text LIKE '%hush%';
SELECT count(*) FROM shop.outbox_metrics() m WHERE m::text LIKE '%hush%';
-- not even in the refusal of the call that brings one
SELECT code, concat_ws(' ', message, detail, hint) ~ 'hush' AS said
  FROM refusal('SELECT shop.create_endpoint(''hidden'', ''function:shop.receive_event'', secret => ''whsec_hush'')');
SELECT name FROM shop.drop_endpoint('hidden');

--
-- The function of an endpoint runs as the role that made the endpoint, and
-- cannot become anybody else, whoever delivers
--
CREATE TABLE public.attempts (n bigint GENERATED ALWAYS AS IDENTITY, attempt text, outcome text, who text DEFAULT current_user);
GRANT INSERT ON public.attempts TO regress_shop_admin;
CREATE SCHEMA regress_admin AUTHORIZATION regress_shop_admin;
SET ROLE regress_shop_admin;
CREATE FUNCTION regress_admin.climb(event jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    attempt text;
BEGIN
    FOREACH attempt IN ARRAY ARRAY[
        'RESET ROLE', 'SET ROLE NONE', 'SET SESSION AUTHORIZATION DEFAULT',
        'SELECT set_config(''role'', ''none'', false)', 'UPDATE shop.account SET balance = 1000000',
        'SELECT secret FROM shop.endpoint', 'SET shop.test_clock = ''2030-01-01''', 'CREATE TEMPORARY TABLE left_behind (x integer)',
        'DECLARE left_open CURSOR WITH HOLD FOR SELECT 1', 'ALTER ROLE regress_shop_admin SUPERUSER', 'COMMIT']
    LOOP
        BEGIN
            EXECUTE attempt;
            INSERT INTO public.attempts (attempt, outcome) VALUES (attempt, 'it worked');
        EXCEPTION WHEN OTHERS THEN
            INSERT INTO public.attempts (attempt, outcome) VALUES (attempt, sqlstate);
        END;
    END LOOP;
END
$$;
SELECT name, run_as FROM shop.create_endpoint('climb', 'function:regress_admin.climb', '{climb}', options => '{"backoff": 600000}');
RESET ROLE;
SELECT shop.emit_event('climb', 'climb', '1', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT attempt, outcome, who FROM public.attempts ORDER BY n;
SELECT current_user = session_user AS still_me;
-- a trigger cannot be put off until the commit, which is the deliverer's
SET ROLE regress_shop_admin;
CREATE TABLE regress_admin.lure (x integer);
CREATE FUNCTION regress_admin.at_commit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.attempts (attempt, outcome) VALUES ('at commit', 'it worked'); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON regress_admin.lure DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION regress_admin.at_commit();
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    SET CONSTRAINTS ALL DEFERRED;
    INSERT INTO regress_admin.lure VALUES (1);
END
$$;
RESET ROLE;
TRUNCATE public.attempts;
SELECT shop.emit_event('climb', 'climb', '2', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT count(*) FROM public.attempts;
SELECT last_error FROM shop.endpoints WHERE name = 'climb';
-- where it leaves them alone, they run at once, as that role
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO regress_admin.lure VALUES (2)';
SELECT shop.emit_event('climb', 'climb', '3', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT attempt, outcome, who FROM public.attempts ORDER BY n;
-- what may not be called may not be subscribed
SET ROLE regress_shop_admin;
SELECT * FROM refusal('SELECT shop.create_endpoint(''x'', ''function:shop.fold_sales'')');
RESET ROLE;
--
-- Nor does it leave anything behind that the owner's statements would meet
--
SET ROLE regress_shop_admin;
CREATE FUNCTION regress_admin.planted(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.attempts (attempt, outcome) VALUES ('planted operator', 'it worked'); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE OPERATOR regress_admin.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = regress_admin.planted);
GRANT USAGE ON SCHEMA regress_admin TO PUBLIC;
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    SET search_path = regress_admin, pg_catalog;
    SET TimeZone = 'Asia/Seoul';
    SET shop.traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    SET TRANSACTION READ ONLY;
END
$$;
RESET ROLE;
TRUNCATE public.attempts;
SELECT shop.emit_event('climb', 'climb', 'p', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT count(*) AS planted FROM public.attempts;
SELECT current_setting('search_path'), current_setting('TimeZone'), current_setting('shop.traceparent') AS traceparent;
SELECT last_error FROM shop.endpoints WHERE name = 'climb';
-- and what it must not leave is forbidden, even to the owner's
CREATE FUNCTION public.keep(event jsonb) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN EXECUTE event->'data'->>'statement'; END $$;
SELECT name FROM shop.create_endpoint('keep', 'function:public.keep', '{keep}');
CREATE FUNCTION public.kept(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM shop.emit_event('keep', 'keep', statement, jsonb_build_object('statement', statement));
    PERFORM shop.deliver_events('keep');
    RETURN (SELECT d.last_error FROM shop.delivery d WHERE d.aggregateid = statement);
END
$$;
SELECT s AS statement, kept(s)
  FROM unnest(ARRAY['CREATE TEMPORARY TABLE left_behind (x integer)', 'PREPARE left_behind AS SELECT 1', 'LISTEN left_behind',
                    'DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1', 'SET ROLE regress_shop_admin', 'SELECT 1']) s;
SELECT name FROM shop.drop_endpoint('keep');
DROP FUNCTION public.kept(text), public.keep(jsonb);

--
-- Who makes an endpoint is who calls, not whose session it is
--
SET ROLE regress_shop_admin;
DROP OPERATOR regress_admin.= (bigint, bigint);
CREATE FUNCTION regress_admin.take(event jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.attempts (attempt, outcome) VALUES ('second endpoint', 'it worked') $$;
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM shop.create_endpoint('second', 'function:regress_admin.take', '{second}'); END $$;
RESET ROLE;
SELECT shop.emit_event('climb', 'climb', 's', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT name, run_as FROM shop.endpoints ORDER BY name;
SELECT shop.emit_event('second', 'climb', 's', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('second');
SELECT attempt, outcome, who FROM public.attempts;
SELECT name FROM shop.drop_endpoint('second');
-- by way of an index, which a superuser (or autovacuum) works on
SET ROLE regress_shop_admin;
CREATE TABLE regress_admin.bait (x integer);
INSERT INTO regress_admin.bait VALUES (1);
CREATE FUNCTION regress_admin.at_index(x integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN x; END';
CREATE INDEX hook ON regress_admin.bait (regress_admin.at_index(x));
CREATE OR REPLACE FUNCTION regress_admin.at_index(x integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM shop.create_endpoint('by index', 'function:regress_admin.take', '{index}');
    RETURN x;
END
$$;
RESET ROLE;
REINDEX TABLE regress_admin.bait;
SELECT name, run_as FROM shop.endpoints ORDER BY name;
SELECT name FROM shop.drop_endpoint('by index');
-- a host, and a file, that the caller must not name
SET ROLE regress_shop_admin;
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM shop.create_endpoint('host', 'http://127.0.0.1/', '{none}'); END $$;
RESET ROLE;
SELECT shop.emit_event('climb', 'climb', 'h', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT last_error FROM shop.endpoints WHERE name = 'climb';
SET shop.allowed_hosts = '127.0.0.1';
SET ROLE regress_shop_admin;
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM shop.create_endpoint('file', 'http://127.0.0.1/', '{none}', options => '{"ca_file": "/etc/passwd"}'); END $$;
RESET ROLE;
SELECT shop.emit_event('climb', 'climb', 'f', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT last_error FROM shop.endpoints WHERE name = 'climb';
RESET shop.allowed_hosts;

--
-- A trigger that a caller has put off runs as the caller, not as the owner who delivers
--
SET ROLE regress_shop_admin;
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void LANGUAGE sql AS '';
CREATE OR REPLACE FUNCTION regress_admin.at_commit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.attempts (attempt, outcome) VALUES ('put off', 'it ran'); RETURN NULL; END $$;
TRUNCATE regress_admin.lure;
RESET ROLE;
TRUNCATE public.attempts;
SET ROLE regress_shop_admin;
BEGIN;
INSERT INTO regress_admin.lure VALUES (3);
SELECT shop.emit_event('climb', 'climb', 'd', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
COMMIT;
BEGIN;
INSERT INTO regress_admin.lure VALUES (4);
SELECT total FROM shop.place_order(2, :'tea_item');
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
COMMIT;
RESET ROLE;
SELECT attempt, outcome, who FROM public.attempts ORDER BY n;
-- one that delivers to itself does not get an event twice
SET ROLE regress_shop_admin;
CREATE TABLE regress_admin.seen (id text);
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO regress_admin.seen VALUES (event->>'subject');
    PERFORM shop.deliver_events('climb');
END
$$;
RESET ROLE;
SELECT shop.emit_event('climb', 'climb', 'again', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT * FROM regress_admin.seen;
SELECT last_error FROM shop.endpoints WHERE name = 'climb';
-- one that pauses or drops its own endpoint
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM shop.pause_endpoint('climb'); END $$;
SELECT shop.emit_event('climb', 'climb', 'pause', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT state, pause_reason FROM shop.endpoints WHERE name = 'climb';
SELECT state FROM shop.resume_endpoint('climb');
CREATE OR REPLACE FUNCTION regress_admin.climb(event jsonb) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM shop.drop_endpoint('climb'); END $$;
SELECT shop.emit_event('climb', 'climb', 'drop', '{}') IS NOT NULL AS emitted;
SELECT code, message FROM refusal('SELECT shop.deliver_events(''climb'')');
SELECT name FROM shop.endpoints;
SELECT * FROM shop.verify();
-- EXECUTE that is taken away is missed at the next delivery
REVOKE EXECUTE ON FUNCTION regress_admin.climb(jsonb) FROM PUBLIC, regress_shop_admin;
SELECT shop.emit_event('climb', 'climb', '4', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('climb');
SELECT last_error FROM shop.endpoints WHERE name = 'climb';
-- and so is the role
SET client_min_messages = warning;
DROP SCHEMA regress_admin CASCADE;
RESET client_min_messages;
DROP TABLE public.attempts;
SELECT count(shop.drop_endpoint(name)) FROM shop.endpoints;
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE sql AS '';
SET ROLE regress_shop_admin;
SELECT name FROM shop.create_endpoint('orphan', 'function:public.take', '{orphan}');
RESET ROLE;
DROP OWNED BY regress_shop_admin;
DROP ROLE regress_shop_admin;
SELECT shop.emit_event('orphan', 'orphan', '1', '{}') IS NOT NULL AS emitted;
SELECT shop.deliver_events('orphan');
SELECT last_error FROM shop.endpoints WHERE name = 'orphan';
SELECT name FROM shop.drop_endpoint('orphan');

DROP FUNCTION public.take(jsonb);
DROP OWNED BY regress_shop_reader, regress_shop_writer, "regress shop ""odd""";
SELECT * FROM shop.verify();
DROP ROLE regress_shop_reader, regress_shop_writer, regress_shop_nobody, "regress shop ""odd""";
