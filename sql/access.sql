-- Who may do what: PUBLIC nothing, the rest by grant_access().
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
CREATE ROLE regress_shop_nobody;
CREATE ROLE regress_shop_reader;
CREATE ROLE regress_shop_writer;
CREATE ROLE regress_shop_admin;
--
-- Before anything is granted
--
SELECT has_schema_privilege('regress_shop_nobody', 'shop', 'USAGE') AS usage,
       has_schema_privilege('regress_shop_nobody', 'shop', 'CREATE') AS create;
SELECT p.proname FROM pg_proc p
 WHERE p.pronamespace = 'shop'::regnamespace AND has_function_privilege('regress_shop_nobody', p.oid, 'EXECUTE') ORDER BY 1;
SELECT c.relname, r.privilege FROM pg_class c, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) r(privilege)
 WHERE c.relnamespace = 'shop'::regnamespace AND c.relkind IN ('r', 'v', 'm')
   AND has_table_privilege('regress_shop_nobody', c.oid, r.privilege) ORDER BY 1, 2;
SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'shop'::regnamespace
   AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege('regress_shop_nobody', c.oid, 'USAGE, SELECT, UPDATE') END ORDER BY 1;
--
-- grant_access
--
\a
SELECT r.* FROM (VALUES ($$NULL, 'read'$$), ($$'regress_shop_reader', NULL$$), ($$'regress_shop_reader', ''$$),
    ($$'regress_shop_reader', 'READ'$$), ($$'regress_shop_reader', 'owner'$$), ($$'regress_shop_unknown', 'read'$$)
) v(arguments), LATERAL public.refusal('SELECT shop.grant_access(' || v.arguments || ')') r;
\a
SELECT shop.grant_access('regress_shop_reader', 'read');
SELECT shop.grant_access('regress_shop_writer', 'write');
SELECT shop.grant_access(role => 'regress_shop_admin', access => 'admin');
-- Again is the same
SELECT shop.grant_access('regress_shop_admin', 'admin');
-- Every function of the schema and who may call it; none has two signatures
SELECT p.proname,
       has_function_privilege('regress_shop_reader', p.oid, 'EXECUTE') AS read,
       has_function_privilege('regress_shop_writer', p.oid, 'EXECUTE') AS write,
       has_function_privilege('regress_shop_admin', p.oid, 'EXECUTE') AS admin
  FROM pg_proc p WHERE p.pronamespace = 'shop'::regnamespace ORDER BY p.proname COLLATE "C";
SELECT proname FROM pg_proc WHERE pronamespace = 'shop'::regnamespace GROUP BY proname HAVING count(*) > 1;
-- Known to grant_access: what an administrator may call, and what is the owner's
SELECT array_agg(p.proname ORDER BY p.proname COLLATE "C") AS owner_only FROM pg_proc p
 WHERE p.pronamespace = 'shop'::regnamespace AND NOT has_function_privilege('regress_shop_admin', p.oid, 'EXECUTE');
-- PUBLIC still may nothing
SELECT count(*) FROM pg_proc p
 WHERE p.pronamespace = 'shop'::regnamespace AND has_function_privilege('regress_shop_nobody', p.oid, 'EXECUTE');
-- Relations: to be read only
SELECT c.relname, c.relkind,
       has_table_privilege('regress_shop_reader', c.oid, 'SELECT') AS read,
       has_table_privilege('regress_shop_writer', c.oid, 'SELECT') AS write,
       has_table_privilege('regress_shop_admin', c.oid, 'SELECT') AS admin
  FROM pg_class c WHERE c.relnamespace = 'shop'::regnamespace AND c.relkind IN ('r', 'v', 'm') ORDER BY c.relname COLLATE "C";
SELECT c.relname, r.rolname FROM pg_class c, pg_roles r
 WHERE c.relnamespace = 'shop'::regnamespace AND c.relkind IN ('r', 'v', 'm') AND r.rolname LIKE 'regress\_shop\_%'
   AND (has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
        OR has_any_column_privilege(r.oid, c.oid, 'INSERT, UPDATE, REFERENCES')) ORDER BY 1, 2;
SELECT c.relname, r.rolname FROM pg_class c, pg_roles r
 WHERE c.relnamespace = 'shop'::regnamespace AND r.rolname LIKE 'regress\_shop\_%'
   AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(r.oid, c.oid, 'USAGE, SELECT, UPDATE') END ORDER BY 1, 2;
SELECT r.rolname, has_schema_privilege(r.oid, 'shop', 'USAGE') AS usage, has_schema_privilege(r.oid, 'shop', 'CREATE') AS create
  FROM pg_roles r WHERE r.rolname LIKE 'regress\_shop\_%' ORDER BY 1;
--
-- What they can do in practice
--
GRANT EXECUTE ON FUNCTION public.refusal(text), public.refused(text) TO PUBLIC;
SET ROLE regress_shop_nobody;
SELECT public.refused('SELECT shop.version()');
SELECT public.refused('SELECT * FROM shop.products');
SELECT public.refused('SELECT shop.charge_points(1, 1)');
SET ROLE regress_shop_admin;
SELECT shop.create_product('Tea', 4500, 10);
SELECT name, price FROM shop.set_price(1, 4000);
SELECT name, status FROM shop.set_product_status(1, 'on_sale');
SELECT shop.restock(1, 1);
SELECT balance FROM shop.charge_points(1, 10000);
SELECT shop.create_coupon_campaign('C', 'fixed', 3000, 10, '2026-11-20', '2026-11-21');
SELECT * FROM shop.verify();
SELECT name, run_as, signed FROM shop.create_endpoint('platform', 'function:shop.receive_event', secret => 'hush');
SELECT state FROM shop.pause_endpoint('platform');
SELECT state FROM shop.resume_endpoint('platform');
SELECT endpoint, state FROM shop.outbox_metrics();
SELECT shop.redrive_all('platform');
SELECT count(*) >= 0 AS readable FROM shop.workers;
SELECT shop.refresh_popular_products();
SELECT events_cleared, slots_merged, reservations_expired FROM shop.run_maintenance();
SELECT public.refused('SELECT secret FROM shop.endpoint');
SELECT public.refused($$SELECT shop.grant_access('regress_shop_nobody', 'read')$$);
SELECT public.refused('SELECT shop.fold_sales(NULL)');
SELECT public.refused('UPDATE shop.account SET balance = 1000000');
SELECT public.refused('INSERT INTO shop.outbox SELECT * FROM shop.outbox');
SELECT public.refused('DELETE FROM shop.popular_products');
SELECT public.refused('SELECT balance FROM shop.account');
SELECT public.refused('UPDATE shop.coupon SET order_id = NULL');
SELECT public.refused('UPDATE shop.coupon_stock SET remaining = 1000');
SELECT public.refused('DELETE FROM shop.stock_hold');
SELECT public.refused('SELECT * FROM shop.order_change');
SELECT public.refused($$SET shop.test_clock = '2020-01-01'$$);
SELECT public.refused('REFRESH MATERIALIZED VIEW shop.popular_products');
SELECT public.refused('CREATE TABLE shop.mine (x integer)');
SET ROLE regress_shop_writer;
SELECT total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]');
SELECT outcome FROM shop.try_place_order(1, '[{"product_id": 1, "quantity": 1000}]');
SELECT amount FROM shop.use_points(1, 10);
SELECT coupon_id, status FROM shop.issue_coupon(1, 1);
SELECT outcome FROM shop.try_issue_coupon(1, 1);
SELECT order_id, status FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 2}]');
SELECT status, total, balance FROM shop.pay_order(2, 1, 1);
SELECT amount FROM shop.refund_order(2, '[{"product_id": 1, "quantity": 1}]');
SELECT status, balance FROM shop.cancel_order(2);
SELECT order_id, status FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 1}]');
SELECT status FROM shop.release_order(3, 1);
SELECT shop.emit_event('own', 'a', '1', '{}') IS NOT NULL AS emitted;
SELECT product_id, available FROM shop.get_product(1);
SELECT public.refused('SELECT shop.restock(1, 1)');
SELECT public.refused('SELECT shop.set_price(1, 0)');
SELECT public.refused($$SELECT shop.create_endpoint('x', 'function:shop.receive_event')$$);
SELECT public.refused('SELECT shop.deliver_events()');
SELECT public.refused($$SELECT shop.create_coupon_campaign('C', 'fixed', 1, 1, '2026-11-20', '2026-11-21')$$);
SELECT public.refused('SELECT * FROM shop.coupon');
SELECT public.refused('SELECT * FROM shop.outbox');
SELECT public.refused('SELECT * FROM shop.endpoints');
SELECT public.refused('SELECT * FROM shop.verify()');
SET ROLE regress_shop_reader;
SELECT * FROM shop.products;
SELECT shop.point_balance(1);
SELECT amount, balance FROM shop.point_history(1);
SELECT status, total FROM shop.get_order(1);
SELECT line_no, name, quantity FROM shop.order_lines(1);
SELECT order_id FROM shop.order_history(1);
SELECT kind, status, amount FROM shop.order_changes(2);
SELECT name, status FROM shop.user_coupons(1);
SELECT name, remaining FROM shop.coupon_campaigns;
SELECT count(*) FROM shop.order_transitions();
SELECT * FROM shop.top_products();
SELECT * FROM shop.popular_products;
SELECT count(*) > 0 FROM shop.error_codes();
SELECT shop.clock();
SELECT public.refused('SELECT shop.charge_points(1, 1)');
SELECT public.refused($$SELECT shop.place_order(1, '[{"product_id": 1, "quantity": 1}]')$$);
SELECT public.refused($$SELECT shop.emit_event('own', 'a', '1', '{}')$$);
SELECT public.refused('SELECT shop.issue_coupon(1, 2)');
SELECT public.refused($$SELECT shop.reserve_order(1, '[{"product_id": 1, "quantity": 1}]')$$);
SELECT public.refused('SELECT shop.cancel_order(1)');
SELECT public.refused($$SELECT shop.refund_order(1, '[{"product_id": 1, "quantity": 1}]')$$);
SELECT public.refused('SELECT * FROM shop.orders');
RESET ROLE;
--
-- Functions that run as the owner, or become him, have their search_path pinned
--
SELECT proname FROM pg_proc WHERE pronamespace = 'shop'::regnamespace
   AND (prosecdef OR proname IN ('create_endpoint', 'guard_drop', 'pause_endpoint'))
   AND ('search_path=pg_catalog, pg_temp' = ANY (proconfig)) IS NOT TRUE ORDER BY 1;
SELECT array_agg(proname ORDER BY proname COLLATE "C") AS run_as_the_caller
  FROM pg_proc WHERE pronamespace = 'shop'::regnamespace AND NOT prosecdef;
--
-- What a caller plants in pg_temp or public is not found
--
GRANT CREATE ON SCHEMA public TO regress_shop_admin;
SET ROLE regress_shop_admin;
CREATE FUNCTION public.trap(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'planted code runs as %', current_user; END $$;
CREATE FUNCTION public.trap(bigint, integer) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'planted code runs as %', current_user; END $$;
CREATE FUNCTION public.trap(text, text) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'planted code runs as %', current_user; END $$;
CREATE OPERATOR public.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = public.trap);
CREATE OPERATOR public.>= (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = public.trap);
CREATE OPERATOR public.< (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = public.trap);
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.trap);
CREATE FUNCTION pg_temp.sum(bigint) RETURNS bigint LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'planted code runs as %', current_user; END $$;
CREATE FUNCTION public.jsonb_array_elements(jsonb) RETURNS SETOF jsonb LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'planted code runs as %', current_user; END $$;
CREATE FUNCTION public.clock() RETURNS timestamptz LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'planted code runs as %', current_user; END $$;
CREATE FUNCTION public.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'planted code runs as %', current_user; END $$;
CREATE TEMP TABLE account (user_id bigint, balance bigint);
INSERT INTO account VALUES (1, 1000000000);
CREATE TEMP TABLE product (product_id bigint, price bigint, name text, status text);
CREATE TEMP TABLE stock (product_id bigint, location_id integer, slot integer, on_hand bigint);
CREATE TEMP TABLE orders (order_id bigint);
CREATE TEMP TABLE outbox (event_no bigint);
CREATE TEMP TABLE pg_class (oid oid, relispopulated boolean);
CREATE TEMP TABLE pg_proc (oid oid);
CREATE DOMAIN pg_temp.jsonb AS text;
CREATE DOMAIN pg_temp.bigint AS integer;
SET search_path = pg_temp, public, pg_catalog, shop;
SELECT pg_catalog.count(*) FROM shop.verify();
SELECT balance FROM shop.charge_points(1, 5000);
SELECT shop.point_balance(1);
SELECT total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 2}]');
SELECT amount FROM shop.point_history(1, "limit" => 1);
SELECT product_id, price, available FROM shop.get_product(1);
SELECT name, quantity FROM shop.order_lines(4);
SELECT coupon_id FROM shop.issue_coupon(shop.create_coupon_campaign('C', 'percent', 75, 10, '2026-11-20', '2026-11-21'), 1);
SELECT outcome FROM shop.try_issue_coupon(2, 2);
SELECT order_id, status FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 2}]', idempotency_key => 'planted');
SELECT replayed FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 2}]', idempotency_key => 'planted');
SELECT status, total FROM shop.pay_order(5, 1, 2);
SELECT amount, refunded FROM shop.refund_order(5, '[{"product_id": 1, "quantity": 1}]', idempotency_key => 'planted');
SELECT amount, replayed FROM shop.refund_order(5, '[{"product_id": 1, "quantity": 1}]', idempotency_key => 'planted');
SELECT status FROM shop.cancel_order(5);
SELECT kind, amount FROM shop.order_changes(5);
SELECT order_id, status FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 1}]');
SELECT status FROM shop.release_order(6, 1);
SELECT coupon_id, status FROM shop.user_coupons(1);
SELECT campaign_id, remaining FROM shop.coupon_campaigns ORDER BY 1;
SELECT shop.deliver_events() OPERATOR(pg_catalog.>) 0 AS delivered;
SELECT shop.refresh_popular_products();
SELECT rank, name, quantity FROM shop.top_products();
SELECT endpoint, pending FROM shop.outbox_metrics();
SELECT events_cleared, reservations_expired FROM shop.run_maintenance();
SELECT product_id, available FROM shop.products;
-- The owner with such a path, too
RESET ROLE;
SELECT shop.grant_access('regress_shop_reader', 'read');
SELECT balance FROM shop.charge_points(1, 5);
SELECT pg_catalog.count(*) FROM shop.verify();
RESET search_path;
SELECT count(*) AS nothing_taken FROM pg_temp.outbox;
SELECT target.user_id, balance FROM pg_temp.account target;
SELECT state, last_error FROM shop.endpoints;
--
-- A role that is taken away
--
DROP OPERATOR public.= (bigint, bigint), public.>= (bigint, integer), public.< (bigint, bigint), public.= (text, text);
DROP OWNED BY regress_shop_reader, regress_shop_writer, regress_shop_admin CASCADE;
SELECT count(*) FROM pg_proc p, pg_roles r
 WHERE p.pronamespace = 'shop'::regnamespace AND r.rolname LIKE 'regress\_shop\_%' AND has_function_privilege(r.oid, p.oid, 'EXECUTE');
SELECT name, run_as FROM shop.endpoints;
SELECT name FROM shop.drop_endpoint('platform');
DROP ROLE regress_shop_nobody, regress_shop_reader, regress_shop_writer, regress_shop_admin;
SELECT * FROM shop.verify();
