-- verify(): no row on a healthy shop; each invariant broken by hand is one row.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
SELECT count(*) AS empty_shop FROM shop.verify();
-- A shop with something of everything
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF event->>'subject' = 'bad' THEN
        RAISE EXCEPTION 'no';
    END IF;
END
$$;
SELECT shop.create_product('Tea', 4500, 10), shop.create_product('Cup', 12000, 5), shop.create_product('Free', 0);
SELECT shop.restock(1, 5), shop.restock(2, -1);
SELECT balance FROM shop.charge_points(1, 100000);
SELECT balance FROM shop.charge_points(2, 50000);
SELECT balance FROM shop.use_points(1, 1000);
SELECT order_id, total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 2}, {"product_id": 2, "quantity": 1}]');
SELECT shop.refresh_popular_products() IS NOT NULL AS folded;
SELECT order_id, total FROM shop.place_order(2, '[{"product_id": 1, "quantity": 1}]');
SELECT name FROM shop.create_endpoint('e', 'function:public.take', options => '{"from_start": true, "max_attempts": 1}');
SELECT count(*) FROM (SELECT shop.emit_event('t', 'a', 'bad', '{}')) e;
SELECT shop.deliver_events();
SELECT count(*) AS healthy FROM shop.verify();
SELECT count(*) AS folded_all FROM shop.product_sales;
-- Another order, not folded yet, is no fault either
SELECT order_id, total FROM shop.place_order(1, '[{"product_id": 2, "quantity": 1}]');
SELECT count(*) AS healthy FROM shop.verify();
-- Runs a statement, shows what verify() has to say then, and undoes it
CREATE FUNCTION public.broken(statement text, OUT invariant text, OUT subject text, OUT detail jsonb)
    RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        EXECUTE statement;
        CREATE TEMP TABLE found AS SELECT * FROM shop.verify();
        RAISE EXCEPTION SQLSTATE 'XX0OK' USING DETAIL = (SELECT coalesce(jsonb_agg(f ORDER BY f.invariant COLLATE "C", f.subject COLLATE "C"), '[]') FROM found f);
    EXCEPTION WHEN SQLSTATE 'XX0OK' THEN
        GET STACKED DIAGNOSTICS invariant = PG_EXCEPTION_DETAIL;
    END;
    RETURN QUERY SELECT r.* FROM jsonb_to_recordset(invariant::jsonb) r(invariant text, subject text, detail jsonb);
END
$$;
\a
-- Units appear, vanish, are sold twice, have no slot
SELECT * FROM public.broken('UPDATE shop.stock SET on_hand = on_hand + 1 WHERE product_id = 1');
SELECT * FROM public.broken('UPDATE shop.stock_movement SET quantity = quantity + 1 WHERE movement_id = 1');
SELECT * FROM public.broken('INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (1, 7, 3)');
SELECT * FROM public.broken('UPDATE shop.stock SET slot = 3 WHERE product_id = 2');
SELECT * FROM public.broken('DELETE FROM shop.stock WHERE product_id = 3');
SELECT * FROM public.broken('INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (99, 0, 0)');
SELECT * FROM public.broken($$INSERT INTO shop.stock_movement (product_id, quantity, available, kind, created_at) VALUES (99, 1, 1, 'restock', now())$$);
-- Points
SELECT * FROM public.broken('UPDATE shop.account SET balance = balance + 1 WHERE user_id = 2');
SELECT * FROM public.broken('DELETE FROM shop.account WHERE user_id = 2');
SELECT * FROM public.broken('INSERT INTO shop.account VALUES (9, 5)');
SELECT * FROM public.broken('INSERT INTO shop.account VALUES (9, 0)');
SELECT * FROM public.broken($$UPDATE shop.point_entry SET balance = balance + 1 WHERE user_id = 1 AND kind = 'use'$$);
SELECT * FROM public.broken($$UPDATE shop.point_entry SET amount = amount + 5 WHERE user_id = 1 AND kind = 'use'$$);
SELECT * FROM public.broken($$DELETE FROM shop.point_entry WHERE user_id = 1 AND kind = 'use'$$);
-- Orders
SELECT * FROM public.broken('UPDATE shop.orders SET subtotal = subtotal + 1, discount = discount + 1 WHERE order_id = 1');
SELECT * FROM public.broken($$UPDATE shop.orders SET status = 'strange' WHERE order_id = 1$$);
SELECT * FROM public.broken('UPDATE shop.orders SET total = total - 1 WHERE order_id = 1');
SELECT * FROM public.broken('DELETE FROM shop.order_line WHERE order_id = 1 AND line_no = 2');
SELECT * FROM public.broken('DELETE FROM shop.order_line WHERE order_id = 2');
SELECT * FROM public.broken('UPDATE shop.order_line SET discount = -1 WHERE order_id = 1 AND line_no = 2');
SELECT * FROM public.broken('UPDATE shop.order_line SET quantity = 0 WHERE order_id = 1 AND line_no = 2');
SELECT * FROM public.broken('UPDATE shop.order_line SET product_id = 99 WHERE order_id = 1 AND line_no = 2');
SELECT * FROM public.broken('DELETE FROM shop.orders WHERE order_id = 1');
SELECT * FROM public.broken('UPDATE shop.orders SET balance = balance + 1 WHERE order_id = 1');
SELECT * FROM public.broken('UPDATE shop.orders SET user_id = 2 WHERE order_id = 1');
SELECT * FROM public.broken('UPDATE shop.point_entry SET order_id = 2 WHERE order_id = 1');
-- Events
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 'order.paid' AND aggregateid = '1'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    SELECT created_at, aggregatetype, aggregateid, type, '{"lines": []}' FROM shop.outbox WHERE type = 'order.paid' AND aggregateid = '1'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    VALUES (now(), 'order', '77', 'order.paid', '{"lines": []}')$$);
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 'points.used'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    SELECT created_at, aggregatetype, aggregateid, type, payload FROM shop.outbox WHERE type = 'points.used'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    VALUES (now(), 'account', '1', 'points.charged', '{"entry_id": 777}')$$);
-- Deliveries
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 't'$$);
SELECT * FROM public.broken($$UPDATE shop.endpoint SET acked = acked - int8multirange(int8range(d.event_no, d.event_no, '[]'))
    FROM shop.delivery d WHERE d.endpoint_id = endpoint.endpoint_id$$);
SELECT * FROM public.broken('UPDATE shop.delivery SET endpoint_id = 99');
-- Sales folded
SELECT * FROM public.broken('UPDATE shop.product_sales SET quantity = quantity + 1 WHERE product_id = 1');
SELECT * FROM public.broken('UPDATE shop.product_sales SET revenue = revenue - 1 WHERE product_id = 2');
SELECT * FROM public.broken('DELETE FROM shop.product_sales WHERE product_id = 2');
SELECT * FROM public.broken($$INSERT INTO shop.product_sales VALUES ('2026-11-20 11:00+00', 3, 1, 0)$$);
-- Sequences
SELECT * FROM public.broken('ALTER SEQUENCE shop.product_product_id_seq RESTART WITH 2');
SELECT * FROM public.broken('ALTER SEQUENCE shop.stock_movement_movement_id_seq RESTART');
SELECT * FROM public.broken('ALTER SEQUENCE shop.point_entry_entry_id_seq RESTART');
SELECT * FROM public.broken('ALTER SEQUENCE shop.orders_order_id_seq RESTART WITH 3');
SELECT * FROM public.broken('ALTER SEQUENCE shop.outbox_event_no_seq RESTART');
SELECT * FROM public.broken('ALTER SEQUENCE shop.endpoint_endpoint_id_seq RESTART');
-- What the tables refuse by themselves
SELECT statement, r.code, r.message FROM unnest(ARRAY[
    'UPDATE shop.stock SET on_hand = -1 WHERE product_id = 1',
    'UPDATE shop.stock SET slot = -1 WHERE product_id = 1',
    'UPDATE shop.account SET balance = -1 WHERE user_id = 1',
    'UPDATE shop.product SET price = -1 WHERE product_id = 1']) statement, LATERAL public.refusal(statement) r;
\a
SELECT count(*) AS healthy_after_all FROM shop.verify();
-- In a read-only transaction, too
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT count(*) FROM shop.verify();
COMMIT;
\set ECHO none
DROP FUNCTION public.take(jsonb), public.broken(text);
