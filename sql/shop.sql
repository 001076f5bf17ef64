-- What is loaded first: version, errors, clock, settings, the guard.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SELECT shop.version() = extversion AS library_matches_catalog, extversion
  FROM pg_extension WHERE extname = 'shop';
-- A schema of its own, a member of the extension
SELECT d.deptype FROM pg_depend d
 WHERE d.classid = 'pg_namespace'::regclass AND d.objid = 'shop'::regnamespace
   AND d.refclassid = 'pg_extension'::regclass;
SELECT extnamespace::regnamespace, extrelocatable FROM pg_extension WHERE extname = 'shop';
-- A schema that is there already is not adopted
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL shop.allow_drop = on;
DROP EXTENSION shop;
CREATE SCHEMA shop;
CREATE EXTENSION shop;
ROLLBACK;

--
-- error_codes
--
SELECT * FROM shop.error_codes() ORDER BY sqlstate;
-- Names and codes are unique, names are words, a meaning is a phrase
SELECT count(*) = count(DISTINCT sqlstate) AS unique_codes,
       count(*) = count(DISTINCT condition) AS unique_names,
       bool_and(condition ~ '^[a-z]+(_[a-z]+)*$') AS names_are_words,
       bool_and(sqlstate ~ '^[0-9A-Z]{5}$') AS codes_are_codes,
       bool_and(http_status BETWEEN 400 AND 599) AS statuses_are_errors,
       bool_and(meaning !~ '\.$') AS meanings_are_phrases
  FROM shop.error_codes();

--
-- The clock
--
-- The real time, the same all through a statement, not through a transaction
SELECT shop.clock() = statement_timestamp() AS is_now;
BEGIN;
SELECT pg_sleep(0.01);
SELECT shop.clock() > now() AS runs_on_in_a_transaction;
ROLLBACK;
-- Or the one that is set, with microseconds, in any time zone
SET shop.test_clock = '2026-11-20 19:40:00.123456+00';
SELECT shop.clock();
SET shop.test_clock = '2026-11-20 19:40:00.123456+09';
SELECT shop.clock();
SET shop.test_clock = '2026-11-20T19:40:00Z';
SELECT shop.clock();
SET shop.test_clock = '1999-01-01';
SELECT shop.clock();
-- Nonsense leaves it as it was
SET shop.test_clock = 'yesterday-ish';
SET shop.test_clock = '2026-13-01 00:00:00+00';
SET shop.test_clock = 'infinity';
SET shop.test_clock = '12:00';
SET shop.test_clock = '2026-11-20 19:40:00+00; DROP TABLE shop.orders';
SELECT shop.clock();
-- Every rule goes by it
SET shop.test_clock = '2026-11-20 19:40:00.123456+00';
SELECT amount FROM shop.charge_points(1, 100);
SELECT created_at FROM shop.point_history(1);
SELECT created_at FROM shop.outbox;
-- It comes and goes with the transaction that sets it
BEGIN;
SET LOCAL shop.test_clock = '2030-01-01 00:00:00+00';
SELECT shop.clock();
SAVEPOINT s;
SET LOCAL shop.test_clock = '2031-01-01 00:00:00+00';
SELECT shop.clock();
ROLLBACK TO s;
SELECT shop.clock();
ROLLBACK;
SELECT shop.clock();
SET shop.test_clock = '';
SELECT shop.clock() = statement_timestamp() AS is_now;
RESET shop.test_clock;

--
-- Settings
--
SELECT name, CASE WHEN name <> 'shop.worker' THEN setting END AS setting, unit, context, vartype, min_val, max_val
  FROM pg_settings WHERE name LIKE 'shop.%' ORDER BY name COLLATE "C";
-- Their ranges
SET shop.max_balance = -1;
SET shop.max_balance = 1000000000000001;
SET shop.max_stock_slots = 0;
SET shop.max_stock_slots = 1025;
SET shop.min_charge = 0;
SET shop.outbox_retention = -1;
SET shop.popular_interval = 0;
SET shop.popular_interval = '2d';
SET shop.popular_interval = '1d';
SHOW shop.popular_interval;
SET shop.outbox_retention = '36 h';
SHOW shop.outbox_retention;
RESET shop.popular_interval;
RESET shop.outbox_retention;
SET shop.currency = 'won';
SET shop.currency = 'EURO';
SET shop.currency = '';
SET shop.currency = 'E"R';
SET shop.currency = 'EUR';
SHOW shop.currency;
RESET shop.currency;
-- A setting that does not exist is a mistake
SET shop.max_stock_slot = 1;
-- Only superusers move the clock or the limits
CREATE ROLE shop_clerk;
SET ROLE shop_clerk;
SET shop.test_clock = '2030-01-01 00:00:00+00';
SET shop.max_balance = 1;
SET shop.min_charge = 1;
SET shop.max_stock_slots = 1;
SET shop.outbox_retention = 0;
SET shop.popular_interval = 1;
SET shop.currency = 'EUR';
SET shop.log_refusals = on;
SET shop.worker = on;
RESET ROLE;
DROP ROLE shop_clerk;

--
-- Refusals are for the client, not for the log
--
-- client_min_messages does not hide them, log_refusals does not change them
SET client_min_messages = error;
SELECT shop.get_product(4711);
SET shop.log_refusals = on;
SELECT shop.get_product(4711);
RESET shop.log_refusals;
RESET client_min_messages;

--
-- The guard
--
SELECT shop.guard_drop();
-- Nothing sold yet: the shop may go
BEGIN;
SET LOCAL client_min_messages = warning;
DROP EXTENSION shop;
SELECT count(*) FROM pg_namespace WHERE nspname = 'shop';
ROLLBACK;
-- With an order it may not
SELECT shop.create_product('Tea', 50, 10) AS tea \gset
SELECT order_id FROM shop.place_order(1, jsonb_build_array(jsonb_build_object('product_id', :tea, 'quantity', 1)));
SELECT * FROM refusal('DROP EXTENSION shop');
SELECT refused('DROP EXTENSION shop CASCADE');
SELECT refused('DROP EXTENSION IF EXISTS plpgsql_check, shop');
-- By no other way either: it owns its schema, its tables and the guard
SELECT refused('DROP SCHEMA shop CASCADE');
SELECT refused('DROP TABLE shop.orders CASCADE');
SELECT refused('DROP EVENT TRIGGER shop_guard_drop');
-- What is not the shop is none of its business
CREATE FUNCTION public.drop_other() RETURNS void LANGUAGE sql AS 'SELECT';
DROP FUNCTION public.drop_other();
SELECT * FROM refusal('DROP EXTENSION no_such_extension');
-- Whoever means it says so
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL shop.allow_drop = on;
DROP EXTENSION shop;
SELECT count(*) FROM pg_event_trigger WHERE evtname = 'shop_guard_drop';
ROLLBACK;
-- Made again, it starts empty, in the same session with the same kept plans
SET client_min_messages = warning;
SET shop.allow_drop = on;
BEGIN;
DROP EXTENSION shop;
CREATE EXTENSION shop;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET shop.worker', current_database()); END $$;
COMMIT;
RESET shop.allow_drop;
RESET client_min_messages;
SELECT shop.create_product('Tea', 50, 10) AS first_product;
SELECT balance FROM shop.charge_points(1, 100);
SELECT order_id, total, balance FROM shop.place_order(1, '[{"product_id": 1, "quantity": 2}]');
SELECT * FROM shop.verify();

--
-- The workers' view: a line for each, whether they run or not
--
SELECT kind, CASE WHEN kind <> 'launcher' THEN state END AS state,
       CASE WHEN kind <> 'launcher' THEN pid END AS pid
  FROM shop.workers ORDER BY kind;

--
-- The dump: every table and sequence of the extension is configuration
--
SELECT c.relname, c.relkind FROM pg_class c
 WHERE c.relnamespace = 'shop'::regnamespace AND c.relkind IN ('r', 'S', 'm')
   AND NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'shop' AND c.oid = ANY (e.extconfig))
 ORDER BY 1;
-- Every object of the schema is a member, and says what it is for
SELECT p.oid::regprocedure FROM pg_proc p
 WHERE p.pronamespace = 'shop'::regnamespace
   AND (obj_description(p.oid, 'pg_proc') IS NULL
        OR NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'))
 ORDER BY 1;
SELECT c.oid::regclass FROM pg_class c
 WHERE c.relnamespace = 'shop'::regnamespace AND c.relkind IN ('r', 'v', 'm')
   AND (obj_description(c.oid, 'pg_class') IS NULL
        OR NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
 ORDER BY 1;
-- Every function is called verb_noun once: none is overloaded, every argument has a name
SELECT proname, count(*) FROM pg_proc WHERE pronamespace = 'shop'::regnamespace GROUP BY 1 HAVING count(*) > 1;
SELECT oid::regprocedure FROM pg_proc
 WHERE pronamespace = 'shop'::regnamespace AND pronargs > 0
   AND (proargnames IS NULL OR '' = ANY (proargnames[1:pronargs]))
 ORDER BY 1;
-- Every write verb ends its arguments with idempotency_key, or has none
SELECT oid::regprocedure FROM pg_proc
 WHERE pronamespace = 'shop'::regnamespace AND 'idempotency_key' = ANY (proargnames)
   AND proargnames[pronargs] <> 'idempotency_key'
 ORDER BY 1;
