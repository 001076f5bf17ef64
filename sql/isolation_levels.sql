-- Every verb at every isolation level, in a savepoint, and refused in a read-only transaction.
\set ECHO none
\i sql/setup.inc
\set ECHO all
-- A campaign of one slot leaves maintenance nothing to merge
SET shop.max_stock_slots = 1;
SET shop.test_clock = '2026-11-20 12:00:00+00';
CREATE ROLE regress_shop_isolation;
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF event->>'subject' = 'bad' THEN
        RAISE EXCEPTION 'no';
    END IF;
END
$$;
SELECT shop.create_product('Tea', 100, 1000);
SELECT balance FROM shop.charge_points(1, 100000);
SELECT name FROM shop.create_endpoint('e', 'function:public.take', options => '{"max_attempts": 1}');
-- The verbs that write, with calls that succeed; run in this order
CREATE TABLE public.verb (n serial, name text, call text);
INSERT INTO public.verb (name, call) VALUES
    ('create_product', $$SELECT shop.create_product('Cup', 10, 5) > 0$$),
    ('set_price', $$SELECT (shop.set_price(1, 100)).price$$),
    ('set_product_status', $$SELECT (shop.set_product_status(1, 'on_sale')).status$$),
    ('restock', $$SELECT shop.restock(1, 1) > 0$$),
    ('charge_points', $$SELECT (shop.charge_points(1, 10)).amount$$),
    ('use_points', $$SELECT (shop.use_points(1, 10)).amount$$),
    ('place_order', $$SELECT (shop.place_order(1, '[{"product_id": 1, "quantity": 1}]')).total$$),
    ('try_place_order', $$SELECT (shop.try_place_order(1, '[{"product_id": 1, "quantity": 1}]')).outcome$$),
    ('create_coupon_campaign', $$SELECT shop.create_coupon_campaign('C', 'fixed', 10, 9, '2026-11-20', '2026-11-21') > 0$$),
    ('issue_coupon', $$SELECT (shop.issue_coupon((SELECT max(campaign_id) FROM shop.coupon_campaign), 1)).status$$),
    ('try_issue_coupon', $$SELECT (shop.try_issue_coupon((SELECT max(campaign_id) FROM shop.coupon_campaign), 2)).outcome$$),
    ('reserve_order', $$SELECT array_agg((shop.reserve_order(1, '[{"product_id": 1, "quantity": 2}]')).status) FROM generate_series(1, 2)$$),
    ('pay_order', $$SELECT (shop.pay_order(coalesce((SELECT max(order_id) FROM shop.orders WHERE status = 'reserved'), 1), 1,
                                           (SELECT max(coupon_id) FROM shop.coupon WHERE user_id = 1))).total$$),
    ('refund_order', $$SELECT (shop.refund_order((SELECT max(order_id) FROM shop.orders WHERE status = 'paid'), '[{"product_id": 1, "quantity": 1}]')).amount$$),
    ('cancel_order', $$SELECT (shop.cancel_order((SELECT max(order_id) FROM shop.orders WHERE status = 'paid'))).status$$),
    ('release_order', $$SELECT (shop.release_order(coalesce((SELECT max(order_id) FROM shop.orders WHERE status = 'reserved'), 1), 1)).status$$),
    ('emit_event', $$SELECT shop.emit_event('t', 'a', 'bad', '{}') IS NOT NULL$$),
    ('receive_event', $$SELECT shop.receive_event(jsonb_build_object('id', gen_random_uuid(), 'type', 't'))$$),
    ('receive_events', $$SELECT shop.receive_events(ARRAY[jsonb_build_object('id', gen_random_uuid(), 'type', 't')])$$),
    ('create_endpoint', $$SELECT (shop.create_endpoint('second', 'function:public.take')).name$$),
    ('pause_endpoint', $$SELECT (shop.pause_endpoint('e')).state$$),
    ('set_endpoint_secret', $$SELECT (shop.set_endpoint_secret('e', 'secret')).signed$$),
    ('resume_endpoint', $$SELECT (shop.resume_endpoint('e')).state$$),
    ('deliver_events', $$SELECT shop.deliver_events() > 0$$),
    ('redrive', $$SELECT shop.redrive('e', coalesce((SELECT event_id FROM shop.dead_letters ORDER BY event_no LIMIT 1),
                                                   '00000000-0000-0000-0000-000000000000'))$$),
    ('redrive_all', $$SELECT shop.redrive_all('e')$$),
    ('drop_endpoint', $$SELECT (shop.drop_endpoint('second')).name$$),
    ('refresh_popular_products', $$SELECT shop.refresh_popular_products()$$),
    ('run_maintenance', $$SELECT (shop.run_maintenance()).slots_merged$$),
    ('grant_access', $$SELECT shop.grant_access('regress_shop_isolation', 'read') IS NOT NULL$$);
-- None is missing: what is volatile in the schema writes, but for these
SELECT array_agg(p.proname ORDER BY p.proname COLLATE "C") AS not_verbs FROM pg_proc p
 WHERE p.pronamespace = 'shop'::regnamespace AND p.provolatile = 'v' AND p.proname NOT IN (SELECT name FROM public.verb);
-- Runs all of them, each in the caller's transaction
CREATE FUNCTION public.run_verbs(OUT name text, OUT result text) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    v public.verb;
BEGIN
    FOR v IN SELECT * FROM public.verb ORDER BY n LOOP
        name := v.name;
        EXECUTE v.call INTO result;
        RETURN NEXT;
    END LOOP;
END
$$;
-- What is in the tables, in a few numbers
CREATE VIEW public.state AS
    SELECT (SELECT count(*) FROM shop.product) AS products, (SELECT sum(on_hand) FROM shop.stock) AS units,
           (SELECT sum(balance) FROM shop.account) AS points, (SELECT count(*) FROM shop.point_entry) AS entries,
           (SELECT count(*) FROM shop.orders) AS orders, (SELECT count(*) FROM shop.order_change) AS changes,
           (SELECT count(*) FROM shop.stock_hold) AS holds, (SELECT count(*) FROM shop.coupon) AS coupons,
           (SELECT sum(remaining) FROM shop.coupon_stock) AS remaining, (SELECT count(*) FROM shop.outbox) AS events,
           (SELECT count(*) FROM shop.endpoints) AS endpoints, (SELECT count(*) FROM shop.delivery) AS deliveries,
           (SELECT count(*) FROM shop.received_events) AS received;
--
-- READ COMMITTED, REPEATABLE READ, SERIALIZABLE: the same answers
--
SELECT * FROM public.state;
BEGIN;
SELECT * FROM public.run_verbs();
COMMIT;
SELECT * FROM public.state;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM public.run_verbs();
COMMIT;
SELECT * FROM public.state;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM public.run_verbs();
COMMIT;
SELECT * FROM public.state;
SELECT * FROM shop.verify();
--
-- In a savepoint that is rolled back: nothing of it is left, and what follows works
--
BEGIN;
SAVEPOINT s;
SELECT count(*) FROM public.run_verbs();
ROLLBACK TO s;
SELECT * FROM public.state;
SELECT count(*) FROM public.run_verbs();
RELEASE s;
COMMIT;
SELECT * FROM public.state;
SELECT * FROM shop.verify();
BEGIN ISOLATION LEVEL REPEATABLE READ;
SAVEPOINT s;
SELECT count(*) FROM public.run_verbs();
ROLLBACK TO s;
SELECT count(*) FROM public.run_verbs();
COMMIT;
SELECT * FROM public.state;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SAVEPOINT s;
SELECT count(*) FROM public.run_verbs();
ROLLBACK TO s;
SELECT count(*) FROM public.run_verbs();
ROLLBACK;
SELECT * FROM public.state;
SELECT * FROM shop.verify();
-- A refusal in a savepoint leaves the transaction as it was
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT balance FROM shop.charge_points(1, 1);
SAVEPOINT s;
SELECT shop.use_points(1, 100000000);
ROLLBACK TO s;
SELECT shop.place_order(1, '[{"product_id": 1, "quantity": 100000}]');
ROLLBACK TO s;
SELECT balance FROM shop.use_points(1, 1);
COMMIT;
-- An account opened, a key kept, both taken back with the savepoint
BEGIN;
SAVEPOINT s;
SELECT balance, replayed FROM shop.charge_points(2, 5, 'k');
ROLLBACK TO s;
SELECT balance, replayed FROM shop.charge_points(2, 7, 'k');
SELECT balance, replayed FROM shop.charge_points(2, 7, 'k');
COMMIT;
--
-- Reads: in a read-only transaction at any level
--
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT available FROM shop.get_product(1);
SELECT shop.point_balance(1) > 0;
SELECT count(*) > 0 FROM shop.point_history(1);
SELECT status FROM shop.get_order(1);
SELECT quantity FROM shop.order_lines(1);
SELECT count(*) > 0 FROM shop.order_history(1);
SELECT count(*) FROM shop.order_changes(1);
SELECT count(*) > 0 FROM shop.user_coupons(1);
SELECT count(*) > 0 FROM shop.coupon_campaigns;
SELECT count(*) FROM shop.order_transitions();
SELECT count(*) FROM shop.top_products();
SELECT count(*) FROM shop.outbox_metrics();
SELECT count(*) > 0 FROM shop.error_codes();
SELECT count(*) FROM shop.verify();
SELECT count(*) >= 0 FROM shop.workers;
SELECT shop.clock(), shop.version() IS NOT NULL;
COMMIT;
--
-- Writes are refused in a read-only transaction, before anything else but bad input
--
BEGIN READ ONLY;
\a
SELECT v.name, r.* FROM public.verb v, LATERAL public.refusal(v.call) r ORDER BY v.n;
SELECT * FROM public.refusal('SELECT shop.charge_points(1, 0)');
SELECT * FROM public.refusal('SELECT shop.use_points(99, 1)');
SELECT * FROM public.refusal($$SELECT shop.drop_endpoint('unknown')$$);
\a
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT shop.place_order(1, '[{"product_id": 1, "quantity": 1}]');
ROLLBACK;
SET default_transaction_read_only = on;
SELECT shop.charge_points(1, 1);
RESET default_transaction_read_only;
SELECT * FROM public.state;
SELECT * FROM shop.verify();
\set ECHO none
DROP OWNED BY regress_shop_isolation;
DROP ROLE regress_shop_isolation;
DROP VIEW public.state;
DROP FUNCTION public.take(jsonb), public.run_verbs();
DROP TABLE public.verb;
